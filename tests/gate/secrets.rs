//! Secrets: where they come from, how servers get them, and what becomes of them.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{
    agent::Agent,
    credential,
    engine::{containers, docker},
    gate::{Gate, Setup},
    marked, until,
};

/// A value that nothing else looks like.
fn value(n: u8) -> String {
    ["hunter", "2", "hunter", &n.to_string()].concat()
}

const AS_FILE: &str = "secrets = { TOKEN = { from = \"file:token\", as = \"file\" } }";

/// What the server reads in the file of its secret.
async fn read(agent: &Agent) -> String {
    agent.text("crooked__environment", json!({ "name": "TOKEN_FILE", "read": true })).await
}

fn write(gate: &Gate, n: u8) {
    std::fs::write(gate.path("token"), format!("{}\n", value(n))).unwrap();
}

#[tokio::test]
async fn secret_file_is_readable_only_by_its_server_and_rotates_without_a_restart() {
    for runtime in ["sandbox", "container"] {
        let setup = Setup::crooked(AS_FILE).shown().file("token", value(1));
        let gate = setup.runtime(runtime).start().await;
        let agent = gate.modern();
        assert_eq!(read(&agent).await, value(1), "{runtime}");
        let name = agent.text("crooked__environment", json!({ "name": "TOKEN_FILE" })).await;
        assert_eq!(name, "/run/secrets/TOKEN", "{runtime}");
        let none = agent.text("crooked__environment", json!({ "name": "TOKEN" })).await;
        assert_eq!(none, "", "{runtime}");

        let before = marked(&gate.mark);
        let folder = before.iter().find_map(|pid| folder(*pid)).expect("a mount of secrets");
        assert!(folder.is_dir(), "{runtime}: {}", folder.display());
        write(&gate, 2);
        let rotated = gate.cli(&["secret", "rotate", "crooked", "--format", "json"]).await;
        let rotated = rotated.expect(0);
        // Its file is followed, so that it may have the new one already.
        assert_eq!(rotated["rotation"]["secrets"], json!(["TOKEN"]), "{runtime}");
        assert_eq!(rotated["rotation"]["later"], json!([]), "{runtime}");
        assert_eq!(read(&agent).await, value(2), "{runtime}");
        assert_eq!(marked(&gate.mark), before, "{runtime}: it was started again");

        for pid in before {
            for what in ["cmdline", "environ"] {
                let text = std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
                assert!(!String::from_utf8_lossy(&text).contains("hunter"), "{runtime}: {what}");
            }
        }
        for id in containers(&gate.mark) {
            assert!(!docker(&["inspect", &id]).contains("hunter"));
        }
        let inspected = gate.cli(&["server", "inspect", "crooked", "--format", "json"]).await;
        let records = gate.records(&[]).await;
        let handed: Vec<&Value> =
            records.iter().filter(|record| record["event"] == "secrets-delivered").collect();
        assert_eq!(handed.len(), 2, "{runtime}");
        for record in &handed {
            let secrets = json!([{ "secret": "TOKEN", "source": "file", "by": "file" }]);
            assert_eq!(record["secrets"], secrets, "{runtime}");
        }
        assert_eq!(handed[0]["launch"], handed[1]["launch"], "{runtime}");
        let told = format!("{records:?}{:?}{inspected:?}", gate.log());
        assert!(!told.contains("hunter"), "{runtime}: {told}");
        gate.stop().await;
        assert!(!folder.exists(), "{runtime}: {}", folder.display());
    }
}

/// Where the folder of secrets of a process is on this machine: read-only inside, and in memory.
fn folder(pid: i32) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/run/secrets"))?;
    let (mount, system) = line.split_once(" - ")?;
    let mount: Vec<&str> = mount.split(' ').collect();
    assert!(system.starts_with("tmpfs "), "{line}");
    assert!(mount[5].split(',').any(|option| option == "ro"), "{line}");
    let places = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].map(|name| std::env::var(name).ok());
    let places = places.into_iter().flatten().chain(["/run".to_owned(), "/dev/shm".to_owned()]);
    let found = |place: String| PathBuf::from(format!("{place}{}", mount[3]));
    places.map(found).find(|folder| folder.is_dir())
}

#[tokio::test]
async fn server_logs_are_stored_without_secrets() {
    // As a program prints a key.
    let (lines, rsa) = (
        ["MIIEowIBAAKCAQEA".repeat(4).as_str(); 20].join("\n"),
        ["RSA PRIVATE", "KEY-----"].join(" "),
    );
    let key = format!("-----BEGIN {rsa}\n{lines}\n-----END {rsa}");
    let text = format!("see {}\nand {}\n{key}\nthe end", value(1), credential());
    for runtime in ["sandbox", "container"] {
        let setup = Setup::crooked(AS_FILE)
            .and("[[interceptors]]\nuse = \"secrets\"\nrequest = \"off\"")
            .file("token", value(1));
        let gate = setup.runtime(runtime).start().await;
        gate.modern().text("crooked__complain", json!({ "text": text })).await;
        let logs = until("the end", async || {
            let logs = gate.cli(&["server", "logs", "crooked"]).await.stdout;
            logs.contains("the end").then_some(logs)
        })
        .await;
        assert!(logs.contains("see [redacted"), "{runtime}: {logs}");
        assert!(logs.contains("[redacted:private-key]"), "{runtime}: {logs}");
        for secret in [value(1), credential(), "MIIE".to_owned()] {
            assert!(!logs.contains(&secret), "{runtime}: {logs}");
        }
        gate.stop().await;
    }
}

// No entry of the chain asks for that.
#[tokio::test]
async fn old_and_new_values_are_found() {
    let gate = Setup::crooked(AS_FILE).file("token", value(1)).start().await;
    let agent = gate.modern();
    let redacted = "[redacted:vault:crooked/TOKEN]";
    assert_eq!(read(&agent).await, redacted);
    let other = json!({ "text": value(2) });
    assert_eq!(agent.text("crooked__echo", other.clone()).await, value(2));
    write(&gate, 2);
    gate.cli(&["secret", "rotate", "crooked", "--format", "json"]).await.expect(0);
    assert_eq!(read(&agent).await, redacted);
    for n in [1, 2] {
        let code = agent.refused("crooked__echo", json!({ "text": value(n) })).await;
        assert_eq!(code, "secret-found", "{n}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn unreadable_secret_leaves_the_old_value_in_place() {
    let gate = Setup::crooked(AS_FILE).shown().file("token", value(1)).start().await;
    let agent = gate.modern();
    assert_eq!(read(&agent).await, value(1));
    std::fs::remove_file(gate.path("token")).unwrap();
    let failed = gate.cli(&["secret", "rotate", "crooked"]).await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stderr.contains("secret `TOKEN`"), "{failed:?}");
    assert_eq!(read(&agent).await, value(1));
    gate.stop().await;
}

#[tokio::test]
async fn missing_secret_affects_only_its_server_and_can_be_added_later() {
    let gate = Setup::notes()
        .and("[servers.crooked]\ncommand = [\"{crooked}\"]\nruntime = \"sandbox\"")
        .and("env = { GATE = \"{mark}\" }")
        .and(AS_FILE)
        .shown()
        .start()
        .await;
    let agent = gate.modern();
    agent.call("notes__list_notes", json!({})).await.unwrap();
    assert_eq!(agent.refused("crooked__echo", json!({ "text": "x" })).await, "server-unavailable");
    let records = gate.records(&["event = secret-unresolved"]).await;
    assert_eq!(
        (&records[0]["server"], &records[0]["secret"]),
        (&json!("crooked"), &json!("TOKEN"))
    );
    write(&gate, 1);
    let found = until("the server to start", async || {
        let asked = json!({ "name": "TOKEN_FILE", "read": true });
        agent.call("crooked__environment", asked).await.ok()
    })
    .await;
    assert!(found.to_string().contains(&value(1)), "{found}");
    gate.stop().await;
}

#[cfg(feature = "age")]
#[tokio::test]
async fn store_is_written_by_the_command_line_and_read_for_servers() {
    let written =
        Setup::crooked("secrets = { TOKEN = { from = \"age:s.age#app.token\" } }").shown().write();
    let store = written.path("s.age").display().to_string();
    let set = |value: String, name: &'static str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(["secret", "set", name, "--store", &store]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), value.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    assert!(set(format!("{}\n", value(1)), "app.token").status.success());
    assert!(set(value(3), "other").status.success());
    assert_eq!(set(String::new(), "empty").status.code(), Some(2));
    let ls = |names: Value| {
        let written = &written;
        let store = &store;
        async move {
            let listed = written.cli(&["secret", "ls", "--store", store, "--format", "json"]).await;
            assert_eq!(listed.expect(0), json!({ "secrets": names }));
        }
    };
    ls(json!(["app.token", "other"])).await;
    assert_eq!(written.cli(&["secret", "rotate-key", "--store", &store]).await.code, Some(0));
    assert_eq!(written.cli(&["secret", "rm", "other", "--store", &store]).await.code, Some(0));
    assert_eq!(written.cli(&["secret", "rm", "other", "--store", &store]).await.code, Some(1));
    ls(json!(["app.token"])).await;
    let gate = written.start().await;
    let given = gate.modern().text("crooked__environment", json!({ "name": "TOKEN" })).await;
    assert_eq!(given, value(1));
    gate.stop().await;
}
