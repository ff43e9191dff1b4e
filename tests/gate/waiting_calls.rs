//! Calls that wait in the queue of an instance after their decision. A change of policies, clients or
//! servers meanwhile applies to them.

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    PERMIT_ALL,
    agent::{Agent, code_of},
    gate::{Gate, Setup},
    in_time, until,
};

/// A tool that logs its argument, which shows that a call reached the server.
const TOOL: &str = "complain";
const REACHED: &str = "the call reached the server";

type Answer = JoinHandle<Result<Value, Value>>;

fn call(agent: Agent, tool: &str, arguments: Value) -> Answer {
    let tool = format!("crooked__{tool}");
    tokio::spawn(async move { agent.call(&tool, arguments).await })
}

/// The records of calls of a tool, oldest first.
async fn records_of(gate: &Gate, tool: &str) -> Vec<Value> {
    let mut records = gate.records(&["--tool", tool]).await;
    records.sort_by_key(|record| record["seq"].as_u64());
    records
}

async fn on_record(gate: &Gate, tool: &str) {
    until("the intent of a call", async || {
        (!records_of(gate, tool).await.is_empty()).then_some(())
    })
    .await;
}

/// A call in the queue, behind a call that never ends.
struct Queued {
    gate: Gate,
    in_flight: Answer,
    waiting: Answer,
}

impl Queued {
    async fn start() -> Self {
        let written = Setup::crooked("call-timeout-s = 3600\nconcurrent = 1").keyed().write();
        let other = written.add_client("other", &[]).await;
        let waiter = written.add_client("waiter", &["writers"]).await;
        let gate = written.start().await;
        let agent = |key: &str| Agent::modern(&gate.url("/mcp"), Some(key));
        let in_flight = call(agent(&other), "hang", json!({}));
        on_record(&gate, "hang").await;
        let waiting = call(agent(&waiter), TOOL, json!({ "text": REACHED }));
        on_record(&gate, TOOL).await;
        Self { gate, in_flight, waiting }
    }

    async fn policies(&mut self, text: &str) {
        std::fs::write(self.gate.path("policies/gate.cedar"), text).unwrap();
        self.gate.logged("the new policies", |line| line.contains("policies reloaded")).await;
    }

    /// Makes room for the waiting call, and waits for its end.
    async fn released(self) -> (Gate, Result<Value, Value>) {
        self.in_flight.abort();
        (self.gate, in_time("the waiting call", self.waiting).await.unwrap())
    }

    /// As [`Self::released`]. Asserts that the call is refused and did not reach the server.
    async fn refused(self, code: &str) -> Gate {
        let (gate, answer) = self.released().await;
        let error = answer.unwrap_err();
        assert_eq!(code_of(&error), code, "{error:#}");
        assert_unsent(&gate, code).await;
        gate
    }
}

async fn assert_unsent(gate: &Gate, code: &str) {
    let log = gate.cli(&["server", "logs", "crooked"]).await;
    assert!(!log.stdout.contains(REACHED), "{log:#?}");
    let records = records_of(gate, TOOL).await;
    let outcomes: Vec<_> = records.iter().filter(|one| one["record"] == "outcome").collect();
    let [outcome] = outcomes.as_slice() else { panic!("one outcome: {records:#?}") };
    assert_eq!(outcome["refusal"]["code"], code, "{outcome:#}");
}

#[tokio::test]
async fn queued_call_is_refused_if_new_policies_forbid_it() {
    let mut queued = Queued::start().await;
    let forbid = format!(
        "{PERMIT_ALL}\n@id(\"stop\") forbid (principal, action, resource) when \
         {{ resource is Portcullis::Tool && resource.name == \"{TOOL}\" }};"
    );
    queued.policies(&forbid).await;
    let gate = queued.refused("policy-denied").await;
    let records = records_of(&gate, TOOL).await;
    assert_eq!(records.last().unwrap()["rules"][0]["id"], "stop", "{records:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn queued_call_that_new_policies_permit_is_recorded_again_and_sent() {
    let mut queued = Queued::start().await;
    // The same policy at another line, and one more.
    let also = "@id(\"also\") permit (principal, action, resource);";
    queued.policies(&format!("{also}\n\n{PERMIT_ALL}")).await;
    let (gate, answer) = queued.released().await;
    answer.unwrap();
    let log = gate.cli(&["server", "logs", "crooked"]).await;
    assert!(log.stdout.contains(REACHED), "{log:#?}");
    let records = records_of(&gate, TOOL).await;
    let kinds: Vec<_> = records.iter().map(|one| one["record"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["intent", "intent", "outcome"], "{records:#?}");
    assert!(records.iter().all(|one| one["id"] == records[0]["id"]), "{records:#?}");
    let [first, again, outcome] = [0, 1, 2].map(|at| &records[at]["policy_revision"]);
    assert!(first != again && again == outcome, "{records:#?}");
    let rules = records[1]["rules"].to_string();
    assert!(rules.contains("\"also\"") && rules.contains("\"all\""), "{rules}");
    gate.stop().await;
}

#[tokio::test]
async fn queued_call_is_refused_if_new_policies_require_an_approval() {
    let mut queued = Queued::start().await;
    queued.policies(&format!("@approve(\"why\")\n{PERMIT_ALL}")).await;
    queued.refused("policy-denied").await.stop().await;
}

#[tokio::test]
async fn queued_call_of_a_removed_or_regrouped_client_is_refused() {
    for removed in [false, true] {
        let mut queued = Queued::start().await;
        if removed {
            assert_eq!(queued.gate.cli(&["client", "rm", "waiter"]).await.code, Some(0));
        } else {
            let path = queued.gate.path("state/clients.toml");
            let text = std::fs::read_to_string(&path).unwrap();
            let changed = text.replace("\"writers\"", "\"readers\"");
            assert_ne!(text, changed);
            std::fs::write(path.with_extension("new"), changed).unwrap();
            std::fs::rename(path.with_extension("new"), &path).unwrap();
        }
        queued.gate.logged("the new clients", |line| line.contains("clients reloaded")).await;
        queued.refused("unauthenticated").await.stop().await;
    }
}

#[tokio::test]
async fn queued_call_is_refused_if_the_entry_of_its_server_changed() {
    let mut queued = Queued::start().await;
    let config = queued.gate.config().replace("concurrent = 1", "concurrent = 2");
    queued.gate.put(&config);
    queued.gate.logged("the new config", |line| line.contains("config reloaded")).await;
    let gate = queued.refused("server-unavailable").await;
    gate.stop().await;
}
