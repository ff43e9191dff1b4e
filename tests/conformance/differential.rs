//! Generated requests to servers that others wrote, directly and through the proxy, at the server's
//! own path and at `/mcp`: the answers are equal, except for the kinds of difference that
//! docs/reference/conformance.md lists.
//!
//! The requests are made of the server's own lists: calls with arguments by the tool's schema and
//! against it, prompts, resources, completions, lists, and names and methods that do not exist.
//! `PORTCULLIS_SEED=NUMBER` generates others, for longer searches.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::{
    foreign::{FASTMCP, Foreign, MCP, PAGE, SERVER_EVERYTHING, cells, write_rows},
    suite::{LEGACY, MODERN},
    support::{agent::Agent, gate::Setup, root},
};

/// The seed where none is given.
const SEED: u64 = 19;
/// Requests to each server in each revision.
const REQUESTS: usize = 500;
/// Differences that a failure prints.
const SHOWN: usize = 40;

/// Tools, prompts and resources that are left out: the answers differ from call to call, need the
/// Internet, time, headers, another stream, or a client that answers requests.
const LEFT_OUT: [&str; 15] = [
    "get-env",
    "get-resource-reference",
    "gzip-file-as-resource",
    "trigger-long-running-operation",
    "simulate-research-query",
    "resource-prompt",
    "slow_compute",
    "test_elicitation",
    "test_elicitation_sep1034_defaults",
    "test_elicitation_sep1330_enums",
    "test_reconnection",
    "test_sampling",
    "test_x_mcp_header",
    "toggle-simulated-logging",
    "toggle-subscriber-updates",
];

/// Texts for arguments and names.
const TEXTS: [&str; 9] = [
    "",
    "a",
    "New York",
    "Zoë ☃ 😀",
    "line\nbreak\t\"quoted\" \\ \u{7}",
    "null",
    "0",
    "<b>&amp;</b>",
    "{\"json\": [1, 2.0]}",
];

/// The generator SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    /// True in one of `of` cases.
    fn once_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = self.below(from.len());
        &from[at]
    }

    fn text(&mut self) -> String {
        match self.below(12) {
            0 => "x".repeat(3_000),
            1 => self.next().to_string(),
            _ => (*self.pick(&TEXTS)).to_owned(),
        }
    }

    fn number(&mut self) -> Value {
        let numbers = [
            json!(0),
            json!(1),
            json!(-7),
            json!(2.5),
            json!(-0.1),
            json!(1e21),
            json!(1e-7),
            json!(9_007_199_254_740_991_i64),
        ];
        self.pick(&numbers).clone()
    }

    /// A value of any type.
    fn any(&mut self) -> Value {
        match self.below(6) {
            0 => Value::Null,
            1 => json!(self.once_in(2)),
            2 => self.number(),
            3 => json!([self.text(), self.number()]),
            4 => json!({ "x": self.text() }),
            _ => json!(self.text()),
        }
    }

    /// A value by a JSON Schema. Keywords that it does not know may exclude the value.
    fn by_schema(&mut self, schema: &Value) -> Value {
        if let Some(values) = schema["enum"].as_array() {
            return self.pick(values).clone();
        }
        if let Some(choices) = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array()) {
            let choice = self.pick(choices).clone();
            return self.by_schema(&choice);
        }
        match schema["type"].as_str() {
            Some("string") => json!(self.text()),
            Some("boolean") => json!(self.once_in(2)),
            Some("integer") => json!(self.below(12)),
            Some("number") => self.number(),
            Some("null") => Value::Null,
            Some("array") => {
                let count = self.below(3);
                (0..count).map(|_| self.by_schema(&schema["items"])).collect()
            }
            Some("object") => self.object(schema),
            _ => self.any(),
        }
    }

    /// An object by a JSON Schema, with some of its optional members.
    fn object(&mut self, schema: &Value) -> Value {
        let required: Vec<_> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let none = Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&none);
        let mut object = Map::new();
        for (name, schema) in properties {
            if required.contains(&name.as_str()) || self.once_in(2) {
                object.insert(name.clone(), self.by_schema(schema));
            }
        }
        object.into()
    }

    /// Changes an object against its schema.
    fn spoil(&mut self, object: &mut Value) {
        let Some(members) = object.as_object_mut() else { return };
        let names: Vec<_> = members.keys().cloned().collect();
        match (self.below(4), names.is_empty()) {
            (0, false) => drop(members.remove(self.pick(&names))),
            (1, false) => drop(members.insert(self.pick(&names).clone(), self.any())),
            (2, _) => *object = self.any(),
            _ => drop(members.insert("unlisted".to_owned(), self.any())),
        }
    }
}

/// What a server offers, by its own lists.
struct Offers {
    tools: Vec<Value>,
    prompts: Vec<Value>,
    resources: Vec<String>,
}

impl Offers {
    async fn of(agent: &Agent) -> Self {
        let list = async |method: &str, member: &str| {
            let listed = agent.ask(method, json!({})).await;
            let mut listed = listed.map(|result| result[member].clone()).unwrap_or_default();
            let entries = listed.as_array_mut().map(std::mem::take).unwrap_or_default();
            let used = |entry: &Value| !LEFT_OUT.contains(&entry["name"].as_str().unwrap());
            entries.into_iter().filter(used).collect::<Vec<_>>()
        };
        let resources = list("resources/list", "resources").await;
        let uri = |resource: Value| resource["uri"].as_str().unwrap().to_owned();
        Self {
            tools: list("tools/list", "tools").await,
            prompts: list("prompts/list", "prompts").await,
            resources: resources.into_iter().map(uri).collect(),
        }
    }

    /// A method with its parameters.
    fn request(&self, random: &mut Random, modern: bool) -> (String, Value) {
        let (method, mut params) = match random.below(100) {
            0..45 => ("tools/call", self.call(random)),
            45..49 => {
                let names = ["nothing", "Echo", "echo ", "get_sum", "test_simple_texts"];
                let name = *random.pick(&names);
                ("tools/call", json!({ "name": name, "arguments": {} }))
            }
            49..62 => ("prompts/get", self.prompt(random)),
            62..74 if !self.resources.is_empty() => {
                let known = json!(random.pick(&self.resources));
                let others = [json!("test://nothing"), json!(""), json!(7), Value::Null];
                let uri = if random.once_in(3) { random.pick(&others).clone() } else { known };
                ("resources/read", json!({ "uri": uri }))
            }
            74..82 => ("completion/complete", self.completion(random)),
            82..92 => {
                let lists =
                    ["tools/list", "prompts/list", "resources/list", "resources/templates/list"];
                let cursors = [json!({}), json!({}), json!({ "cursor": "nothing" })];
                (*random.pick(&lists), random.pick(&cursors).clone())
            }
            92..95 if !modern => ("ping", json!({})),
            95..98 if !modern => {
                let levels = ["debug", "info", "emergency", "loud"];
                ("logging/setLevel", json!({ "level": random.pick(&levels) }))
            }
            _ => {
                let methods = ["nothing/at-all", "tools/calls", "resources", "tasks/list"];
                (*random.pick(&methods), json!({}))
            }
        };
        if random.once_in(8) {
            params["unlisted"] = random.any();
        }
        if random.once_in(8) && !modern {
            params["_meta"] = json!({ "example.org/key": random.any() });
        }
        (method.to_owned(), params)
    }

    fn call(&self, random: &mut Random) -> Value {
        let tool = random.pick(&self.tools);
        let mut arguments = random.object(&tool["inputSchema"]);
        if random.once_in(3) {
            random.spoil(&mut arguments);
        }
        match random.below(24) {
            0 => json!({ "name": tool["name"] }),
            _ => json!({ "name": tool["name"], "arguments": arguments }),
        }
    }

    fn prompt(&self, random: &mut Random) -> Value {
        if self.prompts.is_empty() || random.once_in(8) {
            return json!({ "name": "nothing", "arguments": {} });
        }
        let prompt = random.pick(&self.prompts);
        let mut arguments = Map::new();
        for argument in prompt["arguments"].as_array().into_iter().flatten() {
            if argument["required"] == true || random.once_in(2) {
                let name = argument["name"].as_str().unwrap().to_owned();
                arguments.insert(name, json!(random.text()));
            }
        }
        let mut arguments = arguments.into();
        if random.once_in(4) {
            random.spoil(&mut arguments);
        }
        json!({ "name": prompt["name"], "arguments": arguments })
    }

    fn completion(&self, random: &mut Random) -> Value {
        let prompt = self.prompts.get(random.below(self.prompts.len().max(1)));
        let of = match random.below(4) {
            0 => json!({ "type": "ref/prompt", "name": "nothing" }),
            1 => json!({ "type": "ref/resource", "uri": "test://{nothing}" }),
            _ => json!({ "type": "ref/prompt", "name": prompt.map(|prompt| &prompt["name"]) }),
        };
        let argument = prompt.and_then(|prompt| prompt["arguments"].get(0)).map(|a| &a["name"]);
        let text = random.text();
        json!({ "ref": of, "argument": { "name": argument.unwrap_or(&json!("x")), "value": text } })
    }
}

/// An answer: the HTTP status, and the result or the error.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    answer: Result<Value, Value>,
}

impl Answer {
    async fn of(agent: &Agent, method: &str, params: &Value) -> Self {
        let mut request = agent.request(method, json!({}));
        let meta = request["params"]["_meta"].take();
        request["params"] = params.clone();
        if let Some(meta) = meta.as_object() {
            request["params"]["_meta"] = meta.clone().into();
        }
        let answered = agent.send(request).await;
        let message = answered.messages.into_iter().rfind(|message| message["method"].is_null());
        let mut message = message.unwrap_or_default();
        let answer = match message["result"].take() {
            Value::Null => Err(message["error"].take()),
            result => Ok(result),
        };
        Self { status: answered.status, answer }
    }

    /// Whether it is an error, or a result that reports one.
    fn fails(&self) -> bool {
        self.answer.as_ref().map_or(true, |result| result["isError"] == true)
    }

    fn code(&self) -> Option<i64> {
        self.answer.as_ref().err()?["code"].as_i64()
    }

    /// The code of the proxy's refusal.
    fn refusal(&self) -> Option<&str> {
        match &self.answer {
            Ok(result) => result["_meta"]["dev.portcullis/refusal"]["code"].as_str(),
            Err(error) => error["data"]["code"].as_str(),
        }
    }
}

/// The kind of a difference, as the page names it.
fn kind(direct: &Answer, through: &Answer) -> Option<&'static str> {
    let refused = |kind: &'static str, also: &'static str| match direct.fails() {
        true => Some(kind),
        false => Some(also),
    };
    match through.refusal() {
        Some("unknown-target") => refused("unknown name", "completion for an unknown name"),
        Some("header-mismatch") if direct.fails() => Some("mismatched header"),
        Some("arguments-invalid") => refused("invalid arguments", "arguments against the schema"),
        Some("invalid-params") => refused("invalid parameters", "parameters that are ignored"),
        Some("method-unknown") if direct.fails() => Some("unknown method"),
        Some(_) => None,
        None if direct.answer == through.answer => Some("HTTP status"),
        None => match (&direct.answer, &through.answer) {
            (Ok(direct), Ok(through)) => {
                let without = |result: &Value| {
                    let mut result = result.clone();
                    let members = result.as_object_mut().unwrap();
                    members.retain(|member, _| !["ttlMs", "cacheScope"].contains(&member.as_str()));
                    result
                };
                let sealed = |result: &Value| {
                    let mut result = result.clone();
                    result["requestState"].take().is_string().then_some(result)
                };
                match (sealed(direct), sealed(through)) {
                    (Some(direct), Some(through)) => (direct == through).then_some("state"),
                    _ => (without(direct) == without(through)).then_some("age"),
                }
            }
            (Err(_), Err(_)) if direct.code() == through.code() => Some("text of an error"),
            _ => None,
        },
    }
}

/// Paths of the proxy, as the page names them, and as they are requested.
const PATHS: [(&str, &str); 2] = [("`/servers/NAME/mcp`", crate::OWN), ("`/mcp`", crate::MERGED)];

/// Result of a run at one path.
#[derive(Default)]
struct Run {
    row: String,
    equal: usize,
    kinds: BTreeMap<&'static str, usize>,
    unlisted: Vec<String>,
}

async fn run(foreign: &Foreign, revision: &'static str, seed: u64) -> [Run; 2] {
    // What the requests to one side change in a server, the other must not see.
    let (direct, behind) = tokio::join!(foreign.start(), foreign.start());
    let config = format!("[servers.everything]\nprefix = \"\"\nurl = \"{}\"", behind.url);
    let gate = Setup::new(&config).start().await;
    let modern = revision == MODERN;
    let agent = async |url: &str| match modern {
        true => Agent::modern(url, None),
        false => Agent::legacy_without_abilities(url, None).await,
    };
    let direct = agent(&direct.url).await;
    let [(_, own), (_, merged)] = PATHS;
    let through = [agent(&gate.url(own)).await, agent(&gate.url(merged)).await];
    let offers = Offers::of(&direct).await;
    assert!(!offers.tools.is_empty() && !offers.prompts.is_empty(), "{}", foreign.name());
    let mut random = Random(seed);
    let mut runs = [Run::default(), Run::default()];
    for _ in 0..REQUESTS {
        let (method, params) = offers.request(&mut random, modern);
        let answer = |agent| Answer::of(agent, &method, &params);
        let [own, merged] = &through;
        let (direct, own, merged) = tokio::join!(answer(&direct), answer(own), answer(merged));
        for ((run, through), (path, _)) in runs.iter_mut().zip([own, merged]).zip(PATHS) {
            if direct == through {
                run.equal += 1;
            } else if let Some(kind) = kind(&direct, &through) {
                *run.kinds.entry(kind).or_default() += 1;
            } else {
                run.unlisted.push(format!("{path} {method} {params}\n  {direct:?}\n  {through:?}"));
            }
        }
    }
    gate.stop().await;
    for (run, (path, _)) in runs.iter_mut().zip(PATHS) {
        let kinds: Vec<_> =
            run.kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let (name, kinds, equal) = (foreign.name(), kinds.join(", "), run.equal);
        run.row = format!("| {name} | {revision} | {path} | {equal} of {REQUESTS} | {kinds} |");
    }
    runs
}

/// Head of the page's table of runs.
const HEAD: &str =
    "| server | revision | path | equal answers | differences |\n|---|---|---|---|---|\n";
/// Head of the page's table of kinds.
const KINDS: &str = "| difference | directly | through the proxy | reason |\n|---|---|---|---|\n";

/// The rows of a table of the page.
fn rows<'p>(page: &'p str, head: &str) -> Vec<Vec<&'p str>> {
    let (_, table) = page.split_once(head).unwrap();
    table.lines().take_while(|line| line.starts_with('|')).map(cells).collect()
}

#[tokio::test]
async fn answers_of_foreign_servers_are_equal_through_the_proxy() {
    let seed = match std::env::var("PORTCULLIS_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => SEED,
    };
    println!("PORTCULLIS_SEED={seed}");
    let (one, two, three, four) = tokio::join!(
        run(&SERVER_EVERYTHING, LEGACY, seed),
        run(&FASTMCP, LEGACY, seed),
        run(&FASTMCP, MODERN, seed),
        run(&MCP, MODERN, seed),
    );
    let runs: Vec<_> = [one, two, three, four].into_iter().flatten().collect();
    let unlisted: Vec<_> = runs.iter().flat_map(|run| &run.unlisted).collect();
    let shown: Vec<_> = unlisted.iter().take(SHOWN).map(|text| text.as_str()).collect();
    assert!(unlisted.is_empty(), "{} unlisted:\n{}", unlisted.len(), shown.join("\n"));
    if seed != SEED {
        return;
    }
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        let rows: Vec<_> = runs.iter().map(|run| run.row.clone()).collect();
        write_rows(HEAD, |_| rows);
    }
    let page = std::fs::read_to_string(root().join(PAGE)).unwrap();
    let listed: BTreeSet<_> = rows(&page, KINDS).into_iter().map(|row| row[0].to_owned()).collect();
    let found: BTreeSet<_> =
        runs.iter().flat_map(|run| run.kinds.keys().map(|kind| (*kind).to_owned())).collect();
    assert_eq!(found, listed, "the kinds of difference in {PAGE}");
    let found: Vec<_> = runs.iter().map(|run| cells(&run.row)).collect();
    assert_eq!(found, rows(&page, HEAD), "the runs in {PAGE}");
}
