//! Floods of refusals: every decision id that a caller got is recorded, and a flood does not
//! exhaust the records of other callers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use crate::support::{
    agent::{Agent, MODERN},
    gate::{Gate, Setup, Written, reqwest_client},
    in_time, until,
};

const DUPLICATE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"ping"}"#;
const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

/// A caller with a key, or with something that is none.
#[derive(Clone)]
struct Caller {
    http: reqwest::Client,
    url: String,
    key: String,
}

/// The code and the decision id of a refusal.
struct Told {
    code: String,
    id: String,
}

impl Caller {
    fn new(gate: &Gate, key: &str) -> Self {
        Self { http: reqwest_client(), url: gate.url("/mcp"), key: key.to_owned() }
    }

    async fn refused(&self, headers: &[(&str, &str)], body: &str) -> Told {
        let mut request = self
            .http
            .post(&self.url)
            .bearer_auth(&self.key)
            .header("Content-Type", "application/json")
            .header("Accept", "application/json, text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = in_time("an answer", request.body(body.to_owned()).send()).await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        let data = &answer["error"]["data"];
        let text =
            |name: &str| data[name].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        Told { code: text("code"), id: text("decision") }
    }
}

/// Callers that are refused as fast as they can, until they are stopped.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Flood {
    fn of(callers: Vec<Caller>, body: &'static str) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let flood = |caller: Caller| {
            let (stop, sent) = (stop.clone(), sent.clone());
            tokio::spawn(async move {
                let mut told = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    told.push(caller.refused(&[], body).await.id);
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                told
            })
        };
        let tasks = callers.into_iter().map(flood).collect();
        Self { stop, sent, tasks }
    }

    /// Waits until so many more refusals were answered.
    async fn more(&self, count: usize) {
        let wanted = self.sent.load(Ordering::Relaxed) + count;
        until("a flood", async || (self.sent.load(Ordering::Relaxed) >= wanted).then_some(()))
            .await;
    }

    /// Ends it. Returns all decision ids that were given out.
    async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut told = Vec::new();
        for task in self.tasks {
            told.extend(task.await.unwrap());
        }
        told
    }
}

async fn records(written: &Written) -> Vec<Value> {
    let all = ["audit", "query", "--format", "json", "--intents", "--limit", "100000"];
    let ended = written.cli(&all).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::Deserializer::from_str(&ended.stdout).into_iter().map(Result::unwrap).collect()
}

/// Whether each id is on record, with how many refusals its records stand for.
fn on_record(records: &[Value]) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::<String, u64>::new();
    for record in records {
        let stands_for = match (record["record"].as_str(), record["event"].as_str()) {
            (Some("refused"), _) => 1,
            (_, Some("refusal-summary-opened")) => 0,
            (_, Some("refusals-summarized")) => record["count"].as_u64().unwrap(),
            _ => continue,
        };
        *found.entry(record["id"].as_str().unwrap().to_owned()).or_default() += stands_for;
    }
    found
}

/// How often each id was given out.
fn counted<'a>(told: impl IntoIterator<Item = &'a String>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    told.into_iter().for_each(|id| *counts.entry(id.clone()).or_default() += 1);
    counts
}

async fn shown(written: &Written, id: &str) -> String {
    let shown = written.cli(&["audit", "show", id]).await;
    assert_eq!(shown.code, Some(0), "{id}: {shown:#?}");
    shown.stdout
}

/// 60 refusals before the body is a message that goes anywhere: duplicate keys, the session of
/// somebody else, a header that says something else than the body.
async fn probes(gate: &Gate, key: &str, stolen: &str) -> Vec<Told> {
    let caller = Caller::new(gate, key);
    let modern = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": { "_meta": {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
        } },
    })
    .to_string();
    let mut told = Vec::new();
    for _ in 0..20 {
        told.push(caller.refused(&[], DUPLICATE).await);
        told.push(caller.refused(&[("Mcp-Session-Id", stolen)], PING).await);
        let other = [("MCP-Protocol-Version", MODERN), ("Mcp-Method", "prompts/list")];
        told.push(caller.refused(&other, &modern).await);
    }
    let codes: BTreeSet<_> = told.iter().map(|told| told.code.as_str()).collect();
    let expected = ["duplicate-key", "header-mismatch", "session-unknown"];
    assert_eq!(codes, BTreeSet::from(expected));
    told
}

#[tokio::test]
async fn anonymous_flood_hides_no_refusal_of_a_client() {
    let written = Setup::notes().keyed().write();
    let carol = written.add_client("carol", &[]).await;
    let dave = written.add_client("dave", &[]).await;
    let gate = written.start().await;
    let session = Agent::legacy(&gate.url("/mcp"), Some(&dave)).await.unwrap().session.unwrap();
    let wrong = ["pck", &"A".repeat(43)].join("_");
    let flood = Flood::of((0..3).map(|_| Caller::new(&gate, &wrong)).collect(), PING);
    flood.more(1_000).await;
    let probes = probes(&gate, &carol, &session).await;
    flood.more(100).await;
    let strangers = flood.end().await;

    // While the proxy runs, each id is found.
    for told in &probes {
        let shown = shown(&gate, &told.id).await;
        assert!(shown.contains("carol") && shown.contains(&told.code), "{shown}");
    }
    let shared = counted(&strangers);
    let shared: Vec<_> = shared.iter().filter(|(_, count)| **count > 1).collect();
    assert!(!shared.is_empty(), "no flood: {} refusals", strangers.len());
    for (id, _) in &shared {
        let shown = shown(&gate, id).await;
        assert!(shown.contains("refused unauthenticated"), "{shown}");
        assert!(shown.contains("too many refusals to record each"), "{shown}");
        assert!(shown.contains("127.0.0.1"), "{shown}");
    }

    let written = gate.stop().await;
    let records = records(&written).await;
    let of_carol: BTreeSet<_> = records
        .iter()
        .filter(|record| record["record"] == "refused" && record["principal"] == "carol")
        .map(|record| record["id"].as_str().unwrap())
        .collect();
    assert_eq!(of_carol, probes.iter().map(|told| told.id.as_str()).collect());
    // Nobody was given an id that is not on record, and no refusal is left out of the counts.
    let found = on_record(&records);
    for (id, count) in counted(&strangers) {
        assert_eq!(found.get(&id), Some(&count), "{id}");
    }
    let summarized = records.iter().find(|r| r["event"] == "refusals-summarized").unwrap();
    assert_eq!(summarized["code"], "unauthenticated", "{summarized:#}");
    assert_eq!(summarized["network"], "127.0.0.1", "{summarized:#}");
    assert!(summarized["principal"].is_null(), "{summarized:#}");
    // Questions by what the records of single refusals have find them, too.
    for filter in ["code = unauthenticated", "addr = 127.0.0.0/8", "decision = refused"] {
        let events = written.records(&[&format!("({filter}) and kind = event")]).await;
        assert!(events.iter().any(|r| r["event"] == "refusals-summarized"), "{filter}");
    }
    let stats = written.cli(&["audit", "stats", "--format", "json"]).await.expect(0);
    let code = &stats["summary"]["summarized"]["top"][0];
    assert_eq!(code["name"], "unauthenticated", "{stats:#}");
    let events = records.iter().filter(|r| r["event"] == "refusals-summarized");
    let total: u64 = events.filter_map(|record| record["count"].as_u64()).sum();
    assert_eq!(code["count"], total, "{stats:#}");
}

#[tokio::test]
async fn flood_of_one_client_hides_no_other_refusal() {
    let written = Setup::notes().keyed().write();
    let bob = written.add_client("bob", &[]).await;
    let carol = written.add_client("carol", &[]).await;
    let dave = written.add_client("dave", &[]).await;
    let gate = written.start().await;
    let session = Agent::legacy(&gate.url("/mcp"), Some(&dave)).await.unwrap().session.unwrap();
    let flood = Flood::of((0..4).map(|_| Caller::new(&gate, &bob)).collect(), DUPLICATE);
    flood.more(6_000).await;
    let probes = probes(&gate, &carol, &session).await;
    let told = flood.end().await;
    assert!(told.len() >= 6_000);
    let records = records(&gate.stop().await).await;
    let found = on_record(&records);
    for (id, count) in counted(&told) {
        assert_eq!(found.get(&id), Some(&count), "{id}");
    }
    let of = |name: &str| {
        let of = |r: &&Value| r["record"] == "refused" && r["principal"] == name;
        records.iter().filter(of).count()
    };
    assert_eq!(of("carol"), probes.len());
    let summarized = records.iter().find(|r| r["event"] == "refusals-summarized").unwrap();
    assert_eq!(summarized["principal"], "bob", "{summarized:#}");
    // A flood does not fill the disk.
    assert!(of("bob") < told.len(), "{} of {}", of("bob"), told.len());
}

#[tokio::test]
async fn killed_proxy_loses_no_decision_id_of_a_flood() {
    let gate = Setup::notes().keyed().start().await;
    let wrong = ["pck", &"A".repeat(43)].join("_");
    let flood = Flood::of((0..3).map(|_| Caller::new(&gate, &wrong)).collect(), PING);
    flood.more(1_000).await;
    let told = flood.end().await;
    let written = gate.kill_9().await;
    let found = on_record(&records(&written).await);
    let unknown: Vec<_> = told.iter().filter(|id| !found.contains_key(*id)).collect();
    assert!(unknown.is_empty(), "{} of {} ids", unknown.len(), told.len());
    assert!(counted(&told).values().any(|count| *count > 1), "no flood");
}
