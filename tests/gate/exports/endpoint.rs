//! HTTP endpoints and OTLP receivers.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use serde_json::json;

use super::{
    arrives, calls, exporting,
    sink::{Manner, Sink},
    stored,
};
use crate::support::until;

fn to(sink: &Sink) -> String {
    format!("[[audit.export]]\nname = \"siem\"\nto = \"http://{}/in\"\nbatch = 7\n", sink.address)
}

#[tokio::test]
async fn unreliable_endpoint_gets_every_record_without_affecting_calls() {
    let mut sink = Sink::start(Manner::Status(500)).await;
    let gate = exporting(&to(&sink)).start().await;
    calls(&gate, 5).await;
    until("a failed attempt", async || (sink.asked() > 1).then_some(())).await;
    assert_eq!(sink.lines(), 0);
    // Calls go on whatever the endpoint does.
    sink.behave(Manner::Hanging);
    let asked = sink.asked();
    until("a hanging attempt", async || (sink.asked() > asked).then_some(())).await;
    calls(&gate, 5).await;
    sink.stop().await;
    calls(&gate, 5).await;
    sink.behave(Manner::Well);
    sink.restart().await;
    arrives(&gate, async || sink.records()).await;
    // One at a time that takes little at once, and then one that is busy.
    sink.behave(Manner::AtMost(2));
    calls(&gate, 10).await;
    arrives(&gate, async || sink.records()).await;
    sink.behave(Manner::Busy);
    calls(&gate, 5).await;
    arrives(&gate, async || sink.records()).await;

    sink.behave(Manner::Well);

    let metrics = gate.metrics().await;
    for has in [
        "portcullis_audit_export_records_total{export=\"siem\"}",
        "portcullis_audit_export_failures_total{export=\"siem\"}",
        "portcullis_audit_export_lag_records{export=\"siem\"} 0",
        "portcullis_audit_export_lost_records_total{export=\"siem\"} 0",
    ] {
        assert!(metrics.contains(has), "{has} is not in\n{metrics}");
    }
    let told = gate.log();
    assert!(told.iter().any(|line| line.contains("export delivery failed")), "{told:#?}");
    assert!(told.iter().any(|line| line.contains("export recovered")), "{told:#?}");
    let written = gate.stop().await;
    // The last records were delivered, too.
    let (wanted, got) = (stored(&written).await, sink.records());
    assert!(got.values().last().unwrap().contains("proxy-stopped"), "{got:#?}");
    assert!(got.iter().all(|(seq, line)| wanted.get(seq) == Some(line)));
}

#[tokio::test]
async fn kill_during_an_export_leaves_no_gap() {
    let sink = Sink::start(Manner::Well).await;
    let mut written = exporting(&to(&sink)).write();
    for round in 0..3 {
        let gate = written.start().await;
        let before = sink.lines();
        let (making, killing) = (calls(&gate, 60), async {
            let wanted = before + 20 + 11 * round;
            until("records to be under way", async || (sink.lines() > wanted).then_some(())).await;
        });
        // Killed while calls are made and delivered.
        tokio::select! {
            () = making => {}
            () = killing => {}
        }
        written = gate.kill_9().await;
    }
    let gate = written.start().await;
    calls(&gate, 1).await;
    arrives(&gate, async || sink.records()).await;
    let (lines, records) = (sink.lines(), sink.records().len());
    println!("{records} records, {} came twice", lines - records);
    gate.stop().await;
}

#[tokio::test]
async fn credentials_are_sent_and_never_shown() {
    let sink = Sink::start(Manner::Well).await;
    let token = crate::support::credential();
    let setup = exporting(
        "[[audit.export]]\nname = \"siem\"\nto = { from = \"env:SINK_URL\" }\nformat = \"ocsf\"\n\
         headers = { Authorization = { from = \"file:token\" } }\n",
    );
    let url = format!("http://user:{token}@{}/in/{token}?key={token}", sink.address);
    let gate = setup.env("SINK_URL", &url).file("token", format!("Splunk {token}\n")).start().await;
    calls(&gate, 2).await;
    until("a record", async || (sink.lines() > 0).then_some(())).await;
    let taken = sink.taken();
    assert_eq!(taken[0].headers["authorization"], format!("Splunk {token}"));
    assert_eq!(taken[0].headers["content-type"], "application/x-ndjson");
    let event: serde_json::Value =
        serde_json::from_slice(taken[0].body.split(|b| *b == b'\n').next().unwrap()).unwrap();
    assert_eq!(event["metadata"]["version"], "1.9.0");
    // Failures are told without them, too.
    sink.behave(Manner::Status(403));
    calls(&gate, 1).await;
    let asked = sink.asked();
    until("a refused attempt", async || (sink.asked() > asked).then_some(())).await;
    let mut said = gate.log();
    said.push(gate.metrics().await);
    let written = gate.stop().await;
    said.extend(stored(&written).await.into_values());
    said.push(std::fs::read_to_string(written.path("state/audit/exports/siem.cursor")).unwrap());
    for text in said {
        assert!(!text.contains(&token), "{text}");
    }
}

#[tokio::test]
async fn otlp_receiver_gets_log_records() {
    let sink = Sink::start(Manner::Well).await;
    let export =
        format!("[[audit.export]]\nname = \"otel\"\nto = \"otlp+http://{}\"\n", sink.address);
    let gate = exporting(&export).start().await;
    calls(&gate, 3).await;
    arrives(&gate, async || {
        let taken = sink.taken();
        let requests = taken.iter().map(|taken| {
            assert_eq!(taken.headers["content-type"], "application/json");
            serde_json::from_slice::<ExportLogsServiceRequest>(&taken.body).unwrap()
        });
        let bodies: Vec<String> = requests
            .flat_map(|request| request.resource_logs)
            .flat_map(|logs| logs.scope_logs)
            .flat_map(|logs| logs.log_records)
            .map(|record| serde_json::to_value(record.body).unwrap()["stringValue"].clone())
            .map(|body| body.as_str().unwrap().to_owned())
            .collect();
        super::by_seq(bodies.iter().map(String::as_str))
    })
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn stream_gets_only_records_of_its_filter() {
    let sink = Sink::start(Manner::Well).await;
    let gate = exporting(&format!("{}filter = \"decision = refused\"\n", to(&sink))).start().await;
    calls(&gate, 3).await;
    gate.modern().refused("notes__no_such", json!({})).await;
    until("the refusal", async || (sink.lines() > 0).then_some(())).await;
    gate.stop().await;
    for line in sink.records().values() {
        assert!(line.contains("\"decision\":\"refused\""), "{line}");
    }
}
