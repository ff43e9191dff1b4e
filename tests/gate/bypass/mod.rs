//! Attempts to bypass the policies: every position of a tool's name or its arguments, on every
//! transport. Each is refused with a stable code and a decision id, the decision is recorded, and
//! nothing of it reaches a server. The server behind the proxy accepts everything, so only the
//! proxy refuses.
//!
//! The policies are the worst case: they permit everything except what is forbidden.

mod calls;
mod doors;
mod http;
mod ownership;
mod server;
mod table;

use std::collections::HashSet;

use doors::{Door, Refused, refusals};
use serde_json::{Value, json};
use server::{CONTROL, NEWS, Server};
use table::Attempt;

use crate::support::{
    PERMIT_ALL,
    gate::{Gate, Setup, Written},
};

const POLICIES: &str = r#"
@id("all")
permit (principal, action, resource);

@id("no-wipe")
forbid (principal, action, resource)
when { resource is Portcullis::Tool && ["wipe", "wipe/all"].contains(resource.name) };

@id("nothing-destructive")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when { resource.claims.destructive };

@id("vip-is-root's")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when { resource.name == "vip" && principal != Portcullis::Client::"root" };

@id("looks-below-srv")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when { resource.name == "look" }
unless { context.paths.hasTag("/path") && context.paths.getTag("/path") like "/srv/*" };

@id("fetches-what-is-good")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when { resource.name == "fetch" }
unless {
    context.urls.hasTag("/url") && context.urls.getTag("/url").verbatim
    && context.urls.getTag("/url").host == "good.example" && !context.urls.getTag("/url").login
};

@id("one-word")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when {
    ["say", "ask"].contains(resource.name) && context.args.hasTag("/word")
    && context.args.getTag("/word") == "forbidden"
};

@id("one-region")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when {
    resource.name == "say" && context.args.hasTag("/region")
    && context.args.getTag("/region") == "eu"
};

@id("says-it-nowhere")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when { resource.name == "say" && context.args.hasTag("/where/path") };

@id("asks-only-where-it-says-false")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when {
    resource.name == "say" && context.args.hasTag("/cfg/ask")
    && context.args.getTag("/cfg/ask") == "true"
};

@id("reads-text-alone")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when { resource.name == "say" && context.paths.hasTag("/file") }
unless { context.paths.getTag("/file") like "*.txt" };

@id("reads-nothing-of-etc")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when {
    resource.name == "say" && context.paths.hasTag("/other")
    && context.paths.getTag("/other") like "/etc/*"
};

@id("one-leaf")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when { resource.name == "say" && context.args.hasTag("/leaf/0") }
unless { context.args.leaves == 1 };

@id("one-of-a-list")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when { resource.name == "say" && context.args.keys.contains("list") }
unless {
    context.lists.hasTag("/list") && context.lists.getTag("/list") == 1
    && context.args.hasTag("/list/0") && context.args.getTag("/list/0") == "ok"
};

@id("completes-and-gets-not")
forbid (principal, action == Portcullis::Action::"get_prompt", resource)
when { resource.name like "*idden" };

@id("completes-nothing-hidden")
forbid (principal, action == Portcullis::Action::"complete", resource is Portcullis::Prompt)
when { resource.name == "hidden" };

@id("greets-about-nothing")
forbid (principal, action == Portcullis::Action::"get_prompt", resource)
when { context.args.hasTag("/topic") };

@id("no-messages")
forbid (principal, action == Portcullis::Action::"notify_client", resource)
when { context.method == "notifications/message" };

@id("no-secret-prompt")
forbid (principal, action, resource)
when { resource is Portcullis::Prompt && resource.name == "secret" };

@id("completes-values-that-it-sees")
forbid (principal, action == Portcullis::Action::"complete", resource is Portcullis::Prompt)
unless {
    context.args.hasTag("/argument/value") && context.args.getTag("/argument/value") != "forbidden"
};

@id("reads-what-is-open")
forbid (principal, action in Portcullis::Action::"read", resource is Portcullis::Resource)
unless { resource has url && resource.url.host == "open" && !resource.url.login };

@id("sees-what-is-open")
forbid (principal, action, resource is Portcullis::ResourceTemplate)
unless { resource.uri like "*://open/{id}" };
"#;

/// The proxy before one server of each era.
struct House {
    gate: Gate,
    servers: [Server; 2],
    /// The decisions that somebody was told of.
    told: HashSet<String>,
}

impl House {
    async fn write(policies: &str) -> (Written, [Server; 2]) {
        let servers = [Server::start("old", false).await, Server::start("new", true).await];
        let written = Setup::new(&format!(
            "[servers.old]\nurl = \"{}\"\n[servers.new]\nurl = \"{}\"\n",
            servers[0].url, servers[1].url
        ))
        // What policies refuse is not to be refused by another check.
        .without("schema")
        .policies(policies)
        .write();
        (written, servers)
    }

    async fn open(policies: &str) -> Self {
        let (written, servers) = Self::write(policies).await;
        Self::start(written, servers).await
    }

    async fn start(written: Written, servers: [Server; 2]) -> Self {
        let gate = written.start_with(&["--stdio"]).await;
        Self { gate, servers, told: HashSet::new() }
    }

    /// What reached the servers, but for what may.
    fn leaked(&self) -> Vec<String> {
        let reached = self.servers.iter().flat_map(Server::reached);
        reached.filter(|text| !text.contains(CONTROL)).collect()
    }

    /// Holds what came of an attempt to what must.
    fn refused(&mut self, what: &str, codes: &[&str], refusals: Vec<Refused>) {
        let leaked = self.leaked();
        assert!(leaked.is_empty(), "{what} reached a server: {leaked:#?}");
        assert!(!refusals.is_empty(), "{what} was not refused");
        for refused in refusals {
            assert!(codes.contains(&refused.code.as_str()), "{what}: {refused:?}");
            assert_eq!(refused.decision.len(), 36, "{what}: {refused:?}");
            self.told.insert(refused.decision);
        }
    }

    /// Tries attempts, and between them that the door is open.
    async fn attack(&mut self, door: &mut Door, attempts: &[&[Attempt]]) {
        self.pass(door).await;
        for attempt in attempts.iter().copied().flatten() {
            let text = match String::from_utf8(attempt.text()) {
                Ok(text) => door.fill(&text).into_bytes(),
                Err(bytes) => bytes.into_bytes(),
            };
            let answers = door.send(&text, attempt.silent).await;
            let what = String::from_utf8_lossy(&text);
            if attempt.silent && !door.reports_refused_notifications() {
                // It has gone its way before the next one is answered.
                self.pass(door).await;
                assert_eq!(answers, Vec::<Value>::new(), "{what}");
            } else {
                self.refused(&what, attempt.codes, refusals(&answers));
            }
        }
        self.pass(door).await;
    }

    /// What is allowed passes, as it came.
    async fn pass(&mut self, door: &mut Door) {
        let arguments = r#"{ "path":"/srv/ok",  "n":50.0, "mark":"control" }"#;
        let text = r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@look@","arguments":ARGS@meta@}}"#;
        let text = door.fill(text).replace("ARGS", arguments);
        let answers = door.send(text.as_bytes(), false).await;
        assert!(answers[0]["result"]["content"].is_array(), "{text}: {answers:#?}");
        let at = usize::from(door.server == "new");
        let reached = self.servers[at].reached();
        let [reached] = reached.as_slice() else { panic!("{text} reached as {reached:#?}") };
        assert!(reached.contains(arguments) && reached.contains("\"look\""), "{reached}");
    }

    /// All that was refused is on record.
    async fn stop(self) {
        let Self { gate, servers, told } = self;
        let written = gate.stop().await;
        for server in servers {
            let late: Vec<_> =
                server.reached().into_iter().filter(|text| !text.contains(CONTROL)).collect();
            assert!(late.is_empty(), "{late:#?}");
        }
        let all = ["audit", "query", "--format", "json", "--limit", "100000"];
        let ended = written.cli(&all).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let records = serde_json::Deserializer::from_str(&ended.stdout).into_iter::<Value>();
        let records: Vec<_> = records.map(Result::unwrap).collect();
        let of = |record: &Value, name: &str| record[name].as_str().map(str::to_owned);
        let on_record: HashSet<_> = records
            .iter()
            .filter(|record| {
                !record["refusal"].is_null() || record["event"] == "refusal-summary-opened"
            })
            .filter_map(|record| of(record, "id"))
            .collect();
        let missing: Vec<_> = told.difference(&on_record).collect();
        assert!(missing.is_empty(), "{missing:?} of {} are on no record", told.len());
        assert!(!told.is_empty());
    }
}

/// The attempts of all eras.
const ALL: &[&[Attempt]] =
    &[table::PLAIN, calls::NAMES, calls::ARGUMENTS, table::TEXTS, table::METHODS, table::OTHERS];

fn with(more: &'static [Attempt]) -> Vec<&'static [Attempt]> {
    [ALL, &[more]].concat()
}

#[tokio::test]
async fn streamable_http_cannot_bypass_policies() {
    let mut house = House::open(POLICIES).await;
    for server in ["old", "new"] {
        for merged in [true, false] {
            let mut door = Door::http(&house.gate, server, merged, false).await;
            house.attack(&mut door, &with(table::LEGACY)).await;
            let mut door = Door::http(&house.gate, server, merged, true).await;
            house.attack(&mut door, &with(table::MODERN)).await;
        }
    }
    house.stop().await;
}

#[tokio::test]
async fn sse_pipes_and_sockets_cannot_bypass_policies() {
    let mut house = House::open(POLICIES).await;
    let mut pipe = Door::stdio(&mut house.gate, "old").await;
    for server in ["old", "new"] {
        pipe.server = server;
        for modern in [false, true] {
            pipe.modern = modern;
            house.attack(&mut pipe, &with(if modern { &[] } else { table::LEGACY })).await;
        }
        for merged in [true, false] {
            let mut door = Door::sse(&house.gate, server, merged).await;
            house.attack(&mut door, &with(table::LEGACY)).await;
            let mut door = Door::unix(&house.gate, server, merged);
            house.attack(&mut door, &with(table::MODERN)).await;
        }
    }
    house.stop().await;
}

#[tokio::test]
async fn batches_cannot_bypass_policies() {
    let mut house = House::open(POLICIES).await;
    for server in ["old", "new"] {
        for merged in [true, false] {
            let mut door = Door::batches(&house.gate, server, merged).await;
            house.attack(&mut door, &[table::BATCHES]).await;
        }
    }
    house.stop().await;
}

/// Legitimate calls that resemble an attempt: data whose keys differ in case, binary text, a list
/// of one, a number between two shortest decimals. The same policies decide `look` and `say`.
#[tokio::test]
async fn legitimate_similar_calls_pass() {
    let house = House::open(POLICIES).await;
    for server in ["old", "new"] {
        for (merged, modern) in [(true, false), (false, true)] {
            let mut door = Door::http(&house.gate, server, merged, modern).await;
            for arguments in [
                r#"{"mark":"control","cfg":{"ask":false,"env":{"http_proxy":"a","HTTP_PROXY":"b"}}}"#,
                r#"{"mark":"control","env":{"Path":"a","PATH":"b"},"ask":1}"#,
                r#"{"mark":"control","opts":{"force":"x","other":"y"},"own":{"skip":"x"}}"#,
                r#"{"mark":"control","remote":{"force":"x","http_proxy":"a","HTTP_PROXY":"b"}}"#,
                r#"{"mark":"control","file":"/srv/a.txt","content":"\u0000\u0001 100%00"}"#,
                r#"{"leaf":["control"]}"#,
                r#"{"mark":"control","list":["ok"],"more":[{},[]]}"#,
                r#"{"mark":"control","n":-608775385858597.2}"#,
            ] {
                let text = r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@say@","arguments":ARGS@meta@}}"#;
                let text = door.fill(text).replace("ARGS", arguments);
                let answers = door.send(text.as_bytes(), false).await;
                assert!(answers[0]["result"]["content"].is_array(), "{text}: {answers:#?}");
                let at = usize::from(server == "new");
                let reached = house.servers[at].reached();
                assert!(
                    reached.iter().any(|text| text.contains(arguments)),
                    "{text}: {reached:#?}"
                );
            }
        }
    }
    house.gate.stop().await;
}

/// The rules about case also apply to notifications of a server during a call.
#[tokio::test]
async fn notifications_cannot_bypass_policies() {
    let house = House::open(POLICIES).await;
    let mut refused = 0;
    for server in ["old", "new"] {
        for modern in [false, true] {
            let mut door = Door::http(&house.gate, server, true, modern).await;
            let text = r#"{"jsonrpc":"2.0","id":@id@,"method":"tools/call","params":{"name":"@prefix@news"@meta@}}"#;
            let text = door.fill(text);
            let answers = door.send(text.as_bytes(), false).await;
            let said: Vec<_> = answers.iter().filter_map(|text| text["method"].as_str()).collect();
            assert_eq!(said, [NEWS[0]], "{answers:#?}");
            assert!(answers.last().unwrap()["result"].is_object(), "{answers:#?}");
            refused += NEWS.len() - 2;
        }
    }
    let records = house.gate.records(&[]).await;
    let of = |record: &&Value| record["refusal"]["code"] == "method-unknown";
    assert_eq!(records.iter().filter(of).count(), refused);
    house.gate.stop().await;
}

/// The control: without the policies, forbidden calls reach a server and are detected.
#[tokio::test]
async fn successful_bypass_would_be_detected() {
    let house = House::open(PERMIT_ALL).await;
    for server in ["old", "new"] {
        for (merged, modern) in [(true, false), (false, true)] {
            let mut door = Door::http(&house.gate, server, merged, modern).await;
            for attempt in table::PLAIN {
                let text = door.fill(&String::from_utf8(attempt.text()).unwrap());
                let answers = door.send(text.as_bytes(), false).await;
                assert!(answers[0]["result"].is_object(), "{text}: {answers:#?}");
                assert_eq!(house.leaked().len(), 1, "{text}");
            }
        }
    }
    let listed = house.gate.modern().ask("tools/list", json!({})).await.unwrap();
    assert_eq!(listed["tools"].as_array().map(Vec::len), Some(20), "{listed:#}");
    house.gate.stop().await;
}
