//! Policies from a signed bundle: only signed content decides.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::support::{
    gate::{Gate, Setup, Written},
    until,
};

const MACHINE: &str = "permit (principal, action in Portcullis::Action::\"from_proxy\", resource)\nwhen { resource.name != \"\" };\n";
const CONNECT: &str = "permit (principal, action == Portcullis::Action::\"connect\", resource);\n";

/// Permits this one tool.
fn tool(name: &str) -> String {
    format!(
        "{MACHINE}{CONNECT}permit (principal, action, resource == Portcullis::Tool::\"notes/{name}\");\n"
    )
}

/// A config that takes the bundle `live`, and the key to sign with in `key`. Nothing is signed yet.
async fn setup() -> Written {
    let keys = Setup::notes().write();
    let made = keys.cli(&["policy", "bundle", "key", &at(&keys, "key"), "--name", "acme"]).await;
    assert_eq!(made.code, Some(0), "{made:#?}");
    let secret = fs::read_to_string(keys.path("key")).unwrap();
    let written = Setup::notes()
        .and(&format!("[policy]\nbundle = \"live\"\nbundle-keys = [\"{}\"]\n", made.stdout.trim()))
        .file("key", secret)
        .write();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(written.path("key"), private).unwrap();
    written
}

fn at(written: &Written, name: &str) -> String {
    written.path(name).to_str().unwrap().to_owned()
}

/// Signs a folder with these policies, as this version.
async fn release(written: &Written, folder: &str, policies: &str, version: u64) {
    fs::create_dir_all(written.path(folder)).unwrap();
    fs::write(written.path(folder).join("all.cedar"), policies).unwrap();
    let (key, version) = (at(written, "key"), version.to_string());
    let folder = at(written, folder);
    let signed = ["policy", "bundle", "sign", &folder, "--key", &key, "--as-version", &version];
    let ended = written.cli(&signed).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

/// Has `live` be another folder, at once.
fn switch(written: &Written, to: &str) {
    let next = written.path("next");
    symlink(Path::new(to), &next).unwrap();
    fs::rename(next, written.path("live")).unwrap();
}

/// What the proxy says of its policies, which `doctor` goes by, too.
async fn policies(gate: &Gate) -> Value {
    let mut socket = UnixStream::connect(gate.path("state/admin.sock")).await.unwrap();
    let ask = b"GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    socket.write_all(ask).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    serde_json::from_str::<Value>(body).unwrap()["policies"].take()
}

/// Waits until this version is in force, and whether what is there is refused.
async fn in_force(gate: &Gate, version: u64, refused: bool) -> Value {
    until(&format!("version {version}, refused: {refused}"), async || {
        let policies = policies(gate).await;
        let there = policies["bundle"]["version"] == version
            && policies["last_error"].is_array() == refused;
        there.then_some(policies)
    })
    .await
}

#[tokio::test]
async fn only_signed_bundles_decide() {
    let written = setup().await;
    release(&written, "one", &tool("list_notes"), 1).await;
    release(&written, "two", &tool("read_note"), 2).await;
    release(&written, "three", &tool("add_note"), 3).await;
    switch(&written, "two");
    let gate = written.start().await;
    let names = async || gate.modern().names("tools/list").await;
    let two = in_force(&gate, 2, false).await;
    assert_eq!(two["bundle"]["name"], "acme");
    assert_eq!(names().await, ["notes__read_note"]);

    // A newer one, by a link.
    switch(&gate, "three");
    let three = in_force(&gate, 3, false).await;
    assert_ne!(two["revision"], three["revision"]);
    assert_eq!(names().await, ["notes__add_note"]);

    // An older one, though it is signed.
    switch(&gate, "two");
    let kept = in_force(&gate, 3, true).await;
    assert_eq!(kept["revision"], three["revision"]);
    let error = &kept["last_error"][0];
    assert_eq!(error["code"], "policy-bundle-rollback", "{error:#}");
    assert_eq!(names().await, ["notes__add_note"]);
    let doctor = gate.cli(&["doctor", "--format", "json"]).await.expect(11);
    let told: Vec<_> = doctor["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["name"] == "policies" && check["status"] == "fail")
        .map(|check| check["detail"].as_str().unwrap())
        .collect();
    assert!(told.iter().any(|told| told.contains("older than 3")), "{doctor:#}");
    assert!(told.iter().any(|told| told.contains("THE ONES BEFORE ARE IN FORCE")), "{doctor:#}");

    // One that was changed, and then the same as it was signed.
    switch(&gate, "three");
    in_force(&gate, 3, false).await;
    let file = gate.path("three/all.cedar");
    fs::write(&file, "permit (principal, action, resource);").unwrap();
    let kept = in_force(&gate, 3, true).await;
    assert_eq!(kept["last_error"][0]["code"], "policy-bundle-file");
    assert_eq!(kept["revision"], three["revision"]);
    assert_eq!(names().await, ["notes__add_note"]);
    fs::write(&file, tool("add_note")).unwrap();
    in_force(&gate, 3, false).await;

    // One whose manifest is gone, and the next version in its place.
    fs::remove_file(gate.path("three/bundle.note")).unwrap();
    let kept = in_force(&gate, 3, true).await;
    assert_eq!(kept["last_error"][0]["code"], "policy-bundle-unsigned");
    release(&gate, "three", &tool("delete_note"), 4).await;
    in_force(&gate, 4, false).await;
    assert_eq!(names().await, ["notes__delete_note"]);

    let written = gate.stop().await;
    let records = written.records(&["--oldest-first"]).await;
    let loaded: Vec<_> = records
        .iter()
        .filter(|record| record["event"] == "policy-loaded")
        .map(|record| {
            assert_eq!(record["bundle"], "acme", "{record:#}");
            record["bundle_version"].as_u64().unwrap()
        })
        .collect();
    assert_eq!((loaded.first(), loaded.last()), (Some(&2), Some(&4)), "{loaded:?}");
    assert!(loaded.is_sorted(), "{loaded:?}");
    let rejected: Vec<_> = records
        .iter()
        .filter(|record| record["event"] == "policy-rejected")
        .map(|record| record["reason"].as_str().unwrap())
        .collect();
    for reason in ["older than 3", "is not what was signed", "the manifest cannot be read"] {
        assert!(rejected.iter().any(|told| told.contains(reason)), "{reason}: {rejected:#?}");
    }

    // What was in force is known after the end, too.
    switch(&written, "one");
    refuses_to_start(&written, "version 1 of `acme` is older than 4").await;
    switch(&written, "three");
    written.start().await.stop().await;
}

#[tokio::test]
async fn proxy_without_a_valid_bundle_does_not_start() {
    let written = setup().await;
    refuses_to_start(&written, "cannot read the bundle live").await;
    fs::create_dir(written.path("live")).unwrap();
    fs::write(written.path("live/all.cedar"), tool("read_note")).unwrap();
    refuses_to_start(&written, "the manifest cannot be read").await;
    release(&written, "live", &tool("read_note"), 1).await;
    fs::write(written.path("live/more.cedar"), MACHINE).unwrap();
    refuses_to_start(&written, "the manifest does not list `more.cedar`").await;
    fs::remove_file(written.path("live/more.cedar")).unwrap();

    let verify = ["policy", "bundle", "verify", "--format", "json"];
    let holds = written.cli(&verify).await.expect(0);
    assert_eq!(holds["bundle"]["version"], 1);
    fs::write(written.path("live/all.cedar"), MACHINE).unwrap();
    let broken = written.cli(&verify).await.expect(11);
    assert_eq!(broken["findings"][0]["code"], "policy-bundle-file");
    // What was signed is not laid out anew.
    assert_eq!(written.cli(&["policy", "fmt"]).await.code, Some(2));
    fs::write(written.path("live/all.cedar"), tool("read_note")).unwrap();
    // A dry run keeps nothing in mind: nothing of it was in force.
    assert_eq!(written.cli(&["run", "--dry-run"]).await.code, Some(0));
    assert!(!written.path("state/policy-bundles.json").exists());

    // Nobody else's signature will do.
    let other = at(&written, "other");
    let made = written.cli(&["policy", "bundle", "key", &other, "--name", "acme"]).await;
    assert_eq!(made.code, Some(0), "{made:#?}");
    let live = at(&written, "live");
    let sign = ["policy", "bundle", "sign", &live, "--key", &other, "--as-version", "2"];
    assert_eq!(written.cli(&sign).await.code, Some(0));
    refuses_to_start(&written, "none of the keys that may has signed").await;
    let one = ["policy", "bundle", "verify", &live, "--key", made.stdout.trim()];
    assert_eq!(written.cli(&one).await.code, Some(0));
}

async fn refuses_to_start(written: &Written, why: &str) {
    let ended = written.cli(&["run"]).await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains(why), "{why}: {ended:#?}");
    let checked = written.cli(&["check", "--format", "json"]).await.expect(11);
    let findings = checked.as_array().unwrap();
    let found = |finding: &Value| finding["message"].as_str().is_some_and(|m| m.contains(why));
    assert!(findings.iter().any(found), "{checked:#}");
    let records = written.records(&[]).await;
    let rejected = json!("policy-rejected");
    assert!(records.iter().any(|record| record["event"] == rejected), "{records:#?}");
}
