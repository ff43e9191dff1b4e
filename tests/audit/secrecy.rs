//! The store's bytes contain no value of a message.

use std::{fs, path::Path, sync::Arc};

use portcullis_audit::{
    Arrival, Audit, Conclusion, DecisionContext, Intent, Options, Outcome, Refused,
};
use portcullis_protocol::{
    exchange::{Answer, Definition, Payload, Target},
    names::DecisionId,
    refusal::{Code, Refusal},
};
use serde_json::json;

use crate::common::{DEADLINE, call, refuse};

fn files(dir: &Path, found: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(fs::read(path).unwrap());
        }
    }
}

fn holds(dir: &Path, text: &str) -> bool {
    let mut found = Vec::new();
    files(dir, &mut found);
    assert!(found.iter().any(|file| !file.is_empty()));
    found.iter().any(|file| file.windows(text.len()).any(|at| at == text.as_bytes()))
}

#[tokio::test]
async fn store_contains_no_values_of_messages() {
    let dir = tempfile::tempdir().unwrap();
    let canary = ["canary", "in", "a", "mine"].join("-");
    let scrubbed = ["scrub", "me"].join("-");
    let scrub = {
        let secret = scrubbed.clone();
        Arc::new(move |text: &mut String| *text = text.replace(&secret, "[redacted]"))
    };
    let options = Options { deadline: DEADLINE, scrub: Some(scrub), ..Options::default() };
    let audit = Audit::open_with(dir.path(), options).unwrap();

    let mut exchange = call();
    let definition = Payload::from(json!({"inputSchema": {"properties": {"declared": {}}}}));
    let tool = Definition::new("notes".parse().unwrap(), "read".into(), definition);
    exchange.target = Target::Tool { name: "read".into(), tool: Some(Arc::new(tool)) };
    exchange.request = Payload::from(json!({
        "name": "read",
        "arguments": {"declared": canary, canary.as_str(): {"declared": [canary]}},
        "_meta": {"note": canary},
    }));
    exchange.response = Some(Answer::Result(Payload::from(json!({"content": canary}))));
    audit.intent(Intent::of(&exchange, DecisionContext::default(), audit.key())).await.unwrap();
    let delivered = Conclusion::Delivered;
    let outcome = Outcome::of(&exchange, DecisionContext::default(), delivered, None, audit.key());
    audit.outcome(outcome).await.unwrap();

    let mut read = call();
    read.target = Target::Resource { uri: format!("https://u:{canary}@host/x?key={canary}") };
    refuse(&audit, &read, Code::PolicyDenied).await.unwrap();

    let mut unknown = call();
    unknown.target = Target::Tool { name: format!("x{scrubbed}"), tool: None };
    refuse(&audit, &unknown, Code::Unknown).await.unwrap();

    let arrival = Arrival {
        id: DecisionId::next(),
        at: jiff::Timestamp::now(),
        transport: portcullis_protocol::exchange::Transport::Http,
        client_addr: None,
        principal: None,
        message: Some(canary.as_bytes()),
    };
    let refusal = Refusal::new(Code::Malformed, "not JSON");
    audit.refused(Refused::on_arrival(arrival, &refusal, audit.key())).await.unwrap();

    let shown = audit.archive().show(exchange.id).await.unwrap();
    let text = serde_json::to_string(&shown).unwrap();
    assert!(text.contains(r#""/declared":"string""#), "{text}");
    drop(audit);
    assert!(holds(dir.path(), "/declared"), "records are found by a search of the files");
    assert!(!holds(dir.path(), &canary));
    assert!(holds(dir.path(), "x[redacted]"));
    assert!(!holds(dir.path(), &scrubbed));
}
