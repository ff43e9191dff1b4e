//! The probe outside of any confinement. That there is a test of its own has cargo build the
//! executable for the tests of containers and sandboxes, too.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

#[test]
fn probe_server_returns_a_report() {
    let mut probe = Command::new(env!("CARGO_BIN_EXE_probe"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = probe.stdin.take().unwrap();
    let mut lines = BufReader::new(probe.stdout.take().unwrap()).lines();
    let greeting = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {},
        "clientInfo": { "name": "test", "version": "1" },
    } });
    let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
    writeln!(stdin, "{greeting}\n{ready}\n{list}").unwrap();
    let mut answer = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(answer()["result"]["serverInfo"]["name"], "probe");
    let tools = answer()["result"]["tools"].clone();
    assert!(tools.as_array().unwrap().iter().any(|tool| tool["name"] == "probe"), "{tools}");
    drop(stdin);
    assert!(probe.wait().unwrap().success());
}
