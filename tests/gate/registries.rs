//! Plugins of a registry: Debian's docker-registry and the real program.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use crate::support::{
    docker_registry::{Door, Registry, docker_config, password},
    gate::{Ended, Setup, Written},
    target,
};

fn built(name: &str) -> Vec<u8> {
    std::fs::read(target(&format!("plugins/{name}.wasm"))).unwrap()
}

fn entry(reference: &str, more: &str) -> String {
    format!("[[interceptors]]\nuse = \"plugin\"\nname = \"mine\"\noci = \"{reference}\"\n{more}\n")
}

/// Pushes the plugin in this file, and tells the reference to write.
async fn push(written: &Written, file: &str, tagged: &str) -> Value {
    let file = written.path(file);
    let reference = format!("oci://{tagged}");
    let args = ["plugin", "push", file.to_str().unwrap(), &reference, "--format", "json"];
    written.cli(&args).await.expect(0)
}

fn with(written: &Written, body: &str) {
    let config = "state-dir = \"state\"\n[listen]\nhttp = \"127.0.0.1:0\"\nanonymous = true\n";
    let servers = "[servers.notes]\ncommand = [\"portcullis\", \"example-server\", \"notes\"]\n\
                   runtime = \"sandbox\"\n";
    std::fs::write(written.path("portcullis.toml"), format!("{config}{servers}{body}")).unwrap();
}

fn told(ended: &Ended, code: i32) -> String {
    assert_eq!(ended.code, Some(code), "{ended:#?}");
    // As wide as a terminal or not, the words are the same.
    let text = format!("{}\n{}", ended.stdout, ended.stderr);
    text.replace(['│', '╰', '├', '─', '╭', '·'], " ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::test]
async fn cached_plugin_starts_without_its_registry() {
    let registry = Registry::start(&Door::default());
    let written = Setup::notes().file("plugin.wasm", built("noop")).write();
    let tagged = format!("{}/acme/noop:0.1.0", registry.host());
    let pushed = push(&written, "plugin.wasm", &tagged).await;
    assert_eq!(pushed["signed"], false);
    let pinned = pushed["oci"].as_str().unwrap().to_owned();
    assert!(pinned.starts_with(&format!("{tagged}@sha256:")), "{pinned}");

    // A tag alone is refused, with the line to write.
    with(&written, &entry(&tagged, ""));
    let refused = told(&written.cli(&["check"]).await, 11);
    assert!(refused.contains("is not pinned"), "{refused}");
    assert!(
        refused.replace(' ', "").contains(&format!("oci=\"{pinned}\"").replace(' ', "")),
        "{refused}"
    );

    with(&written, &entry(&pinned, ""));
    // That policies permit too much is found, and nothing of the plugin.
    let found = told(&written.cli(&["check"]).await, 11);
    assert!(!found.contains("plugin"), "{found}");
    let store = written.path("state/plugins/oci/sha256");
    assert!(!store.exists(), "what is looked at is not kept");
    let gate = written.start().await;
    let agent = gate.modern();
    agent.text("notes__add_note", json!({ "name": "a", "text": "b" })).await;
    let loaded = gate.records(&["event = plugin-loaded"]).await;
    assert_eq!(loaded[0]["file"], format!("oci://{pinned}"));
    assert_eq!(
        (&loaded[0]["pinned"], &loaded[0]["digest"]),
        (&json!(true), &json!(format!("sha256:{}", pushed["sha256"].as_str().unwrap())))
    );
    let written = gate.stop().await;
    drop(registry);

    // Without the registry.
    let gate = written.start().await;
    assert_eq!(gate.records(&["event = plugin-loaded"]).await.len(), 2);
    let written = gate.stop().await;

    // What is kept was changed.
    let kept = store.join(pushed["sha256"].as_str().unwrap());
    let mut bytes = std::fs::read(&kept).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&kept, bytes).unwrap();
    let refused = told(&written.cli(&["run"]).await, 1);
    assert!(refused.contains("was changed"), "{refused}");
    let records = written.records(&["event = plugin-refused"]).await;
    assert!(records[0]["reason"].as_str().unwrap().contains("was changed"), "{records:#?}");
    assert_eq!(records[0]["file"], format!("oci://{pinned}"));

    // Not there, and not to be had.
    std::fs::remove_file(&kept).unwrap();
    let refused = told(&written.cli(&["run"]).await, 1);
    assert!(refused.contains("does not answer"), "{refused}");
}

#[tokio::test]
async fn signed_plugin_is_pulled_with_login_and_own_authority() {
    let (user, word) = ("tester", password());
    let registry = Registry::start(&Door { login: Some((user.into(), word.clone())), tls: true });
    let login = docker_config(&registry.host(), user, &word);
    let written = Setup::notes()
        .env("DOCKER_CONFIG", login.path().to_str().unwrap())
        .file("plugin.wasm", built("noop"))
        .write();
    let trusts = format!("[registries]\nca-file = \"{}\"\n", registry.authority().display());
    with(&written, &trusts);
    let path = |name: &str| written.path(name).to_str().unwrap().to_owned();
    let key = async |name: &str| {
        let args = ["plugin", "key", &path(name), "--name", name, "--format", "json"];
        let ended = written.cli(&args).await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        let line = ended.stdout.split('"').find(|word| word.starts_with(&format!("{name}+")));
        line.unwrap().to_owned()
    };
    let (ours, theirs) = (key("ours").await, key("theirs").await);
    told(&written.cli(&["plugin", "sign", &path("plugin.wasm"), "--key", &path("ours")]).await, 0);

    let tagged = format!("{}/acme/noop:0.1.0", registry.host());
    let pushed = push(&written, "plugin.wasm", &tagged).await;
    assert_eq!(pushed["signed"], true);
    let pinned = pushed["oci"].as_str().unwrap().to_owned();

    let meant = format!("oci://{tagged}");
    let looked = ["plugin", "inspect", &meant, "--no-cost", "--format", "json"];
    let looked = written.cli(&looked).await.expect(0);
    assert_eq!((&looked["name"], &looked["sha256"]), (&json!("noop"), &pushed["sha256"]));
    assert!(looked["config"].as_str().unwrap().contains(&format!("oci = \"{pinned}\"")));
    let verify = async |key: &str| written.cli(&["plugin", "verify", &meant, "--key", key]).await;
    assert!(told(&verify(&ours).await, 0).contains("noop 0.1.0 holds"));
    assert!(told(&verify(&theirs).await, 11).contains("it is signed with another key"));

    with(&written, &format!("{trusts}{}", entry(&pinned, &format!("signed-by = [\"{theirs}\"]"))));
    let refused = told(&written.cli(&["check"]).await, 11);
    assert!(refused.contains("it is signed with another key"), "{refused}");
    with(&written, &format!("{trusts}{}", entry(&pinned, &format!("signed-by = [\"{ours}\"]"))));
    let gate = written.start().await;
    let loaded = gate.records(&["event = plugin-loaded"]).await;
    assert_eq!(loaded[0]["signed_by"], "ours");
    let log = gate.log().join("\n");
    // As it was typed, and as it goes over the wire.
    let sent = BASE64_STANDARD.encode(format!("{user}:{word}"));
    assert!(!log.contains(&word) && !log.contains(&sent), "{log}");
    gate.stop().await;
}

#[tokio::test]
async fn silent_registry_does_not_block_the_start() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = silent.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Ok(connection) = silent.accept().await {
            all.push(connection);
        }
    });
    let pinned = format!("{host}/acme/noop@sha256:{}", "0".repeat(64));
    let more = "[registries]\ndeadline-s = 1\n";
    let written = Setup::notes().and(&entry(&pinned, "")).and(more).write();
    let refused = told(&written.cli(&["run"]).await, 1);
    assert!(refused.contains("did not finish within"), "{refused}");
    accepting.abort();
}
