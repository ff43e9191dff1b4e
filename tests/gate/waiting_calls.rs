//! Calls that wait in the queue of an instance after their decision, and subscriptions that wait for
//! the start of one. A change of policies, clients or servers meanwhile applies to them.

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
    in_order(gate.records(&["--tool", tool]).await)
}

fn in_order(mut records: Vec<Value>) -> Vec<Value> {
    records.sort_by_key(|record| record["seq"].as_u64());
    records
}

/// The kind of each record, and the policies that it names.
fn decisions(records: &[Value]) -> Vec<(&str, Vec<&str>)> {
    let decided = records.iter().map(|record| {
        let rules = record["rules"].as_array().unwrap().iter();
        let rules = rules.map(|rule| rule["id"].as_str().unwrap());
        (record["record"].as_str().unwrap(), rules.collect())
    });
    decided.collect()
}

async fn on_record(gate: &Gate, tool: &str, intents: usize) {
    until("the intents of calls", async || {
        (records_of(gate, tool).await.len() == intents).then_some(())
    })
    .await;
}

/// A call in the queue, behind calls that never end.
struct Queued {
    gate: Gate,
    in_flight: Vec<Answer>,
    waiting: Answer,
}

impl Queued {
    async fn start() -> Self {
        Self::behind(1).await
    }

    async fn behind(calls: usize) -> Self {
        let settings = format!("call-timeout-s = 3600\nconcurrent = {calls}");
        let written = Setup::crooked(&settings).keyed().write();
        let other = written.add_client("other", &[]).await;
        let waiter = written.add_client("waiter", &["writers"]).await;
        let gate = written.start().await;
        let agent = |key: &str| Agent::modern(&gate.url("/mcp"), Some(key));
        let in_flight = (0..calls).map(|_| call(agent(&other), "hang", json!({}))).collect();
        on_record(&gate, "hang", calls).await;
        let waiting = call(agent(&waiter), TOOL, json!({ "text": REACHED }));
        on_record(&gate, TOOL, 1).await;
        Self { gate, in_flight, waiting }
    }

    async fn policies(&mut self, text: &str) {
        put_policies(&mut self.gate, text).await;
    }

    /// Makes room for the waiting call, and waits for its end.
    async fn released(self) -> (Gate, Result<Value, Value>) {
        self.in_flight[0].abort();
        let answer = in_time("the waiting call", self.waiting).await.unwrap();
        self.in_flight.iter().for_each(JoinHandle::abort);
        (self.gate, answer)
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

async fn put_policies(gate: &mut Gate, text: &str) {
    std::fs::write(gate.path("policies/gate.cedar"), text).unwrap();
    gate.logged("the new policies", |line| line.contains("policies reloaded")).await;
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
    queued.policies("@id(\"other\") permit (principal, action, resource);").await;
    let (gate, answer) = queued.released().await;
    answer.unwrap();
    let log = gate.cli(&["server", "logs", "crooked"]).await;
    assert!(log.stdout.contains(REACHED), "{log:#?}");
    let records = records_of(&gate, TOOL).await;
    // Each record names the policies of its own decision.
    let expected = [("intent", vec!["all"]), ("intent", vec!["other"]), ("outcome", vec!["other"])];
    assert_eq!(decisions(&records), expected, "{records:#?}");
    assert!(records.iter().all(|one| one["id"] == records[0]["id"]), "{records:#?}");
    let [first, again, outcome] = [0, 1, 2].map(|at| &records[at]["policy_revision"]);
    assert!(first != again && again == outcome, "{records:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn queued_call_that_is_decided_again_keeps_its_turn() {
    let mut queued = Queued::start().await;
    queued.policies(&format!("\n{PERMIT_ALL}")).await;
    let url = queued.gate.url("/mcp");
    let key = queued.gate.add_client("late", &[]).await;
    queued.gate.logged("the new client", |line| line.contains("clients reloaded")).await;
    let late = call(Agent::modern(&url, Some(&key)), TOOL, json!({ "text": "the later call" }));
    on_record(&queued.gate, TOOL, 2).await;
    let (gate, answer) = queued.released().await;
    answer.unwrap();
    in_time("the later call", late).await.unwrap().unwrap();
    let log = gate.cli(&["server", "logs", "crooked"]).await.stdout;
    let (first, second) = (log.find(REACHED).unwrap(), log.find("the later call").unwrap());
    assert!(first < second, "{log}");
    gate.stop().await;
}

#[tokio::test]
async fn queued_call_is_refused_if_an_operator_stopped_its_server() {
    // The other call in flight keeps the process running.
    let queued = Queued::behind(2).await;
    queued.gate.cli(&["server", "stop", "crooked", "--format", "json"]).await.expect(0);
    queued.refused("server-unavailable").await.stop().await;
}

#[tokio::test]
async fn subscription_that_awaited_a_start_is_decided_again() {
    let forbid = "@id(\"stop\") forbid (principal, \
                  action == Portcullis::Action::\"subscribe_resource\", resource);";
    let other = "@id(\"other\") permit (principal, action, resource);";
    for (new, permitted) in [(format!("{PERMIT_ALL}\n{forbid}"), false), (other.into(), true)] {
        let mut gate = Setup::holding("").start().await;
        let own = gate.url("/servers/crooked/mcp");
        // The server may send it requests, so it gets an instance of its own, which is not started.
        let client = Agent::legacy(&own, None).await.unwrap();
        gate.hold("initialize");
        let subscribed = tokio::spawn(async move {
            client.ask("resources/subscribe", json!({ "uri": "crooked://x" })).await
        });
        gate.held("crooked", "initialize").await;
        put_policies(&mut gate, &new).await;
        // The server reports each subscription that reaches it.
        gate.hold("resources/subscribe");
        gate.let_go("initialize");
        if permitted {
            gate.held("crooked", "resources/subscribe").await;
        } else {
            let refused = in_time("the subscription", subscribed).await.unwrap().unwrap_err();
            assert_eq!(code_of(&refused), "policy-denied", "{refused:#}");
            let log = gate.cli(&["server", "logs", "crooked"]).await.stdout;
            assert!(!log.contains("holds resources/subscribe"), "{log}");
        }
        let records = in_order(gate.records(&["method = resources/subscribe"]).await);
        let end = match permitted {
            true => ("intent", vec!["other"]),
            false => ("outcome", vec!["stop"]),
        };
        assert_eq!(decisions(&records), [("intent", vec!["all"]), end], "{records:#?}");
        gate.let_go("resources/subscribe");
        gate.stop().await;
    }
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
