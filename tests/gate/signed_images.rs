//! Images that need a signature: the real registry, the real engine, and test keys.

use std::path::Path;

use portcullis_oci::{Client, Descriptor, Logins, Reference, Settings};
use portcullis_protocol::seal::Seal;
use portcullis_runtime::container::Engine;
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::support::{
    agent::Agent,
    docker_registry::{Door, Registry},
    engine::{containers, docker},
    gate::{Ended, Gate, Setup, Written},
    held::Held,
    in_time,
    sigstore::{
        Asking, ISSUER, SIGN, SIMPLE, SUBJECT, Sigstore, annotated, keyed, payload, push_bundle,
        push_tag, statement,
    },
    until,
};

/// A server, for bash alone.
const SERVER: &str = r#"while IFS= read -r line; do
  [[ $line =~ \"id\":([0-9]+|\"[^\"]*\") ]] || continue
  case $line in
    *'"initialize"'*) result='{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"hello","version":"1"}}' ;;
    *'"tools/list"'*) result='{"tools":[{"name":"hi","inputSchema":{"type":"object"}}]}' ;;
    *) result='{"content":[{"type":"text","text":"hello"}]}' ;;
  esac
  printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "${BASH_REMATCH[1]}" "$result"
done"#;

/// A registry with an image of the server, which the engine has got, too.
struct Place {
    registry: Option<Registry>,
    client: Client,
    tagged: Reference,
    image: Descriptor,
}

impl Place {
    async fn new() -> Self {
        let registry = Registry::start(&Door::default());
        let engine = Engine::connect(None).await.expect("an engine: tests/run starts one");
        let id = engine.pack(Path::new("/bin/bash")).await.expect("an image of bash");
        let name = format!("{}/acme/hello:1", registry.host());
        docker(&["tag", &id, &name]);
        docker(&["push", "--quiet", &name]);
        let settings = Settings { logins: Logins::Nobody, ..Settings::default() };
        let client = Client::new(settings).expect("a client");
        let tagged: Reference = name.parse().expect("a reference");
        let digest = client.resolve(&tagged).await.expect("pushed");
        let pulled = client.manifest(&tagged.pinned(digest)).await.expect("there");
        let kind = "application/vnd.docker.distribution.manifest.v2+json";
        let image = Descriptor::of(kind, &pulled.bytes);
        Self { registry: Some(registry), client, tagged, image }
    }

    /// The image as a config names it.
    fn name(&self) -> String {
        let (host, repository) = (self.tagged.host(), self.tagged.repository());
        format!("{host}/{repository}@{}", self.image.digest)
    }

    fn setup(&self, more: &str, signers: &str) -> Setup {
        let command = json!(["-c", SERVER]);
        Setup::new(&format!(
            "{signers}\n[servers.hello]\nimage = \"{}\"\ncommand = {command}\nera = \"legacy\"\n\
             env = {{ GATE = \"{{mark}}\" }}\n{more}\n",
            self.name()
        ))
    }

    /// Has an older cosign sign the image, or another one.
    async fn tag(&self, key: &KeyPair, payload: &[u8]) {
        let tag = format!("sha256-{}.sig", self.image.digest.hex());
        let layer = (SIMPLE, payload.to_vec(), annotated(key, payload));
        push_tag(&self.client, &self.tagged, &tag, &[layer]).await;
    }

    async fn attest(&self, bundle: &Value) {
        push_bundle(&self.client, &self.tagged, &self.image, bundle).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ =
            std::process::Command::new("docker").args(["rmi", &self.tagged.to_string()]).output();
    }
}

const BY_KEY: &str = "[signers.acme]\nkey = \"acme.pub\"";

async fn refused(gate: &Gate) -> Value {
    gate.modern().call("hello__hi", json!({})).await.unwrap_err()
}

async fn answers(gate: &Gate) {
    let agent = gate.modern();
    let hello =
        until("the server to be started", async || agent.call("hello__hi", json!({})).await.ok());
    assert_eq!(hello.await["content"][0]["text"], "hello");
}

/// What was recorded last of why it was not started.
async fn reason(gate: &Gate) -> String {
    let failed = gate.records(&["event = server-launch-failed"]).await;
    failed[0]["reason"].as_str().unwrap_or_default().to_owned()
}

/// What `server inspect` says of its start.
async fn inspected(gate: &Gate) -> Value {
    let inspected = gate.cli(&["server", "inspect", "hello", "--format", "json"]).await;
    inspected.expect(0)["launch"].clone()
}

fn plain(ended: &Ended, code: i32) -> String {
    assert_eq!(ended.code, Some(code), "{ended:#?}");
    ended.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn image_runs_only_with_a_required_signature() {
    let (mut place, acme, evil) = (Place::new().await, key(), key());
    let gate = place
        .setup("signed-by = [\"acme\"]", BY_KEY)
        .file("acme.pub", acme.public_key_pem())
        .start()
        .await;
    let refusal = refused(&gate).await;
    assert_eq!(refusal["data"]["code"], "server-unavailable", "{refusal:#}");
    let why = reason(&gate).await;
    let config = gate.config();
    let line = config.lines().position(|line| line.starts_with("signed-by")).unwrap() + 1;
    assert!(why.contains("its image is signed by none of `signed-by` ("), "{why}");
    assert!(why.contains(&format!("portcullis.toml:{line}): acme")), "{why}");
    // What is the same may stand on another line by now.
    gate.put(&format!("# Ours.\n{config}"));
    let moved = format!("portcullis.toml:{}): acme", line + 1);
    until("the line of now", async || {
        refused(&gate).await;
        reason(&gate).await.contains(&moved).then_some(())
    })
    .await;
    // What is attested is kept, and is no signature. It is asked again whether there is one.
    let scan = statement(&[place.image.digest], "https://example.com/scan", &json!({}));
    place.attest(&keyed(&acme, &scan)).await;
    until("what is attested to be kept", async || {
        refused(&gate).await;
        gate.path("state/provenance").exists().then_some(())
    })
    .await;
    assert_eq!(gate.records(&["event = server-launching"]).await, Vec::<Value>::new());
    // Policies would let it be started, and it would not be.
    let launch = inspected(&gate).await;
    assert_eq!(
        (&launch["allowed"], &launch["decisions"][0]["allowed"]),
        (&json!(false), &json!(true))
    );
    assert!(launch["unsigned"].as_str().unwrap().contains("signed by none"), "{launch:#}");

    // Signatures of another key, and of another image.
    let said = payload(place.image.digest);
    let other = payload(portcullis_oci::Digest::of(b"other"));
    for (by, payload, why) in [
        (&evil, &said, "`acme`: it was not made with this key"),
        (&acme, &other, "it is of another image"),
    ] {
        place.tag(by, payload).await;
        let found = plain(&gate.cli(&["server", "verify", "hello"]).await, 11);
        assert!(found.contains(why), "{found}");
        assert!(found.contains("none of `signed-by` signed it: acme"), "{found}");
        until("that to be why it is not started", async || {
            refused(&gate).await;
            reason(&gate).await.contains(why).then_some(())
        })
        .await;
    }
    assert_eq!(gate.records(&["event = server-launching"]).await, Vec::<Value>::new());

    place.tag(&acme, &said).await;
    answers(&gate).await;
    let launching = &gate.records(&["event = server-launching"]).await[0];
    assert_eq!(launching["signers"], json!(["acme"]));
    let written = gate.stop().await;

    // Known by now, whether or not the registry answers.
    place.registry = None;
    let gate = written.start().await;
    answers(&gate).await;
    let written = gate.stop().await;

    // Somebody else is trusted by now.
    std::fs::write(written.path("acme.pub"), evil.public_key_pem()).unwrap();
    let gate = written.start().await;
    refused(&gate).await;
    let why = reason(&gate).await;
    assert!(why.contains("it is not known whether its image is signed"), "{why}");
    gate.stop().await;
}

#[tokio::test]
async fn policies_see_signers_and_attestations() {
    let (place, acme, sigstore) = (Place::new().await, key(), Sigstore::new());
    let policies = |when: &str| {
        format!(
            "@id(\"calls\")\npermit (principal, action, resource)\n\
             unless {{ action in Portcullis::Action::\"from_proxy\" }};\n@id(\"signed\")\n\
             permit (principal, action == Portcullis::Action::\"launch\", resource)\nwhen {{ {when} }};\n"
        )
    };
    let signers = format!(
        "{BY_KEY}\n[signers.release]\nissuer = \"{ISSUER}\"\nsubject = \"{SUBJECT}\"\n\
         trusted-root = \"root.json\""
    );
    let scan = "https://example.com/scan/v1";
    let gate = place
        .setup("", &signers)
        .file("acme.pub", acme.public_key_pem())
        .file("root.json", sigstore.root().to_string())
        .policies(&policies("resource.signed"))
        .without_launches()
        .start()
        .await;
    let refusal = refused(&gate).await;
    assert_eq!(refusal["data"]["code"], "policy-denied", "{refusal:#}");
    // What is attested is not a signature.
    let digest = place.image.digest;
    place.attest(&keyed(&acme, &statement(&[digest], scan, &json!({ "ok": true })))).await;
    // Nobody has to have signed it.
    let found = gate.cli(&["server", "verify", "hello", "--format", "json"]).await.expect(0);
    let attested = &found["signed"][0];
    assert_eq!(
        (&attested["signer"], &attested["what"], &attested["predicate"]),
        (&json!("acme"), &json!(scan), &json!({ "ok": true }))
    );
    assert_eq!(refused(&gate).await["data"]["code"], "policy-denied");

    let issued = sigstore.issue(&Asking::default());
    place.attest(&sigstore.bundle(&issued, &statement(&[digest], SIGN, &json!({})))).await;
    let found = gate.cli(&["server", "verify", "hello", "--format", "json"]).await.expect(0);
    assert_eq!((&found["holds"], &found["signed"][1]["subject"]), (&json!(true), &json!(SUBJECT)));
    answers(&gate).await;
    assert_eq!(inspected(&gate).await["allowed"], true);
    let launching = &gate.records(&["event = server-launching"]).await[0];
    assert_eq!(
        (&launching["signers"], &launching["attested"]),
        (&json!(["release"]), &json!([{ "by": "acme", "type": scan }]))
    );
    let written = gate.stop().await;

    // Who attests it, counts too.
    let attested =
        |by: &str| format!(r#"resource.attested.contains({{ by: "{by}", type: "{scan}" }})"#);
    let by_another = format!(r#"resource.signers.contains("acme") || {}"#, attested("release"));
    let mut written = written;
    for (when, starts) in [(by_another, false), (attested("acme"), true)] {
        std::fs::write(written.path("policies/gate.cedar"), policies(&when)).unwrap();
        let gate = written.start().await;
        match starts {
            true => answers(&gate).await,
            false => assert_eq!(refused(&gate).await["data"]["code"], "policy-denied"),
        }
        written = gate.stop().await;
    }
}

/// Has what is kept of signatures be two days older.
fn aged(written: &Written) {
    let (state, purpose) = (written.path("state"), "provenance of an image");
    let seal = Seal::load(&state).unwrap();
    let mut all = std::fs::read_dir(state.join("provenance")).unwrap();
    let file = all.next().unwrap().unwrap();
    let (path, name) = (file.path(), file.file_name());
    let bound = name.to_str().unwrap().as_bytes();
    let text = std::fs::read_to_string(&path).unwrap();
    let mut cached: Value =
        serde_json::from_slice(&seal.open(purpose, bound, &text).unwrap()).unwrap();
    for queried in cached["queried"].as_object_mut().unwrap().values_mut() {
        *queried = (queried.as_u64().unwrap() - 2 * 24 * 60 * 60).into();
    }
    let cached = serde_json::to_vec(&cached).unwrap();
    let day = std::time::Duration::from_secs(24 * 60 * 60);
    std::fs::write(path, seal.seal(purpose, bound, &cached, day).unwrap()).unwrap();
}

#[tokio::test]
async fn cached_signatures_do_not_prevent_a_new_query() {
    let (mut place, acme) = (Place::new().await, key());
    let policies = |when: &str| {
        format!(
            "@id(\"calls\")\npermit (principal, action, resource)\n\
             unless {{ action in Portcullis::Action::\"from_proxy\" }};\n@id(\"signed\")\n\
             permit (principal, action == Portcullis::Action::\"launch\", resource)\nwhen {{ {when} }};\n"
        )
    };
    let scan = "https://example.com/scan/v1";
    place.attest(&keyed(&acme, &statement(&[place.image.digest], scan, &json!({})))).await;
    let gate = place
        .setup("", BY_KEY)
        .file("acme.pub", acme.public_key_pem())
        .policies(&policies("resource.signed"))
        .without_launches()
        .start()
        .await;
    let refusal = refused(&gate).await;
    assert_eq!(refusal["data"]["code"], "policy-denied", "{refusal:#}");
    let kept = gate.path("state/provenance");
    assert!(kept.exists());
    let written = gate.stop().await;

    // The image has been signed since. The cached result is older, so the registry is asked again.
    place.tag(&acme, &payload(place.image.digest)).await;
    let gate = written.start().await;
    answers(&gate).await;
    let written = gate.stop().await;

    // What is attested a day later is found by the first start of then, and what was kept counts still.
    let later = "https://example.com/later/v1";
    place.attest(&keyed(&acme, &statement(&[place.image.digest], later, &json!({})))).await;
    let contains = format!(r#"resource.attested.contains({{ by: "acme", type: "{later}" }})"#);
    let both = policies(&format!("resource.signed && {contains}"));
    std::fs::write(written.path("policies/gate.cedar"), both).unwrap();
    aged(&written);
    let gate = written.start().await;
    gate.modern().call("hello__hi", json!({})).await.unwrap();
    let written = gate.stop().await;

    // Without the registry, for as long as it takes.
    place.registry = None;
    aged(&written);
    let gate = written.start().await;
    gate.modern().call("hello__hi", json!({})).await.unwrap();
    gate.stop().await;
}

#[tokio::test]
async fn invalid_signer_is_found_before_the_start() {
    let place = "[servers.hello]\nimage = \"example.com/acme/hello@sha256:";
    let place = format!("{place}{}\"\nsigned-by = [\"acme\"]\n", "0".repeat(64));
    for (text, why) in [("no key", "it is not a public key in PEM"), ("", "it is not a public key")]
    {
        let written = Setup::new(&format!("{BY_KEY}\n{place}")).file("acme.pub", text).write();
        assert!(told(&written).await.contains(why));
    }
    let written = Setup::new(&format!("{BY_KEY}\n{place}")).write();
    assert!(told(&written).await.contains("acme.pub cannot be read"));
}

/// What `check` says is wrong.
async fn told(written: &Written) -> String {
    let ended = written.cli(&["check"]).await;
    assert_eq!(ended.code, Some(11), "{ended:#?}");
    let text = format!("{}\n{}", ended.stdout, ended.stderr);
    let text = text.replace(['│', '╰', '├', '─', '╭', '·'], " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

// The stand-in for the registry must answer while the test waits for the proxy.
#[tokio::test(flavor = "multi_thread")]
async fn server_removed_during_verification_is_neither_locked_nor_pulled() {
    let (place, acme) = (Place::new().await, key());
    place.tag(&acme, &payload(place.image.digest)).await;
    let Held { host, let_go, mut holds } = Held::of(place.tagged.host(), &[".sig"]).await;
    let name = format!("{host}/{}:1", place.tagged.repository());
    let written = place
        .setup("signed-by = [\"acme\"]", BY_KEY)
        .file("acme.pub", acme.public_key_pem())
        .write();
    written.put(&written.config().replace(&place.name(), &name));
    let mut gate = written.start().await;
    let_go.send_replace(false);
    // What needs no list is under way at the server before it runs, and keeps it.
    let agent = Agent::modern(&gate.url("/servers/hello/mcp"), None);
    let call =
        tokio::spawn(
            async move { agent.ask("resources/read", json!({ "uri": "hello://x" })).await },
        );
    in_time("the registry to be asked", holds.changed()).await.unwrap();
    let config = gate.config();
    gate.put(&config[..config.find("[servers.hello]").unwrap()]);
    gate.logged("the change", |line| line.contains("config reloaded")).await;
    let_go.send_replace(true);
    let error = in_time("the call", call).await.unwrap().unwrap_err();
    assert_eq!(error["data"]["code"], "server-unavailable", "{error:#}");
    let why = until("the failed start", async || {
        let failed = gate.records(&["event = server-launch-failed"]).await;
        Some(failed.first()?["reason"].as_str()?.to_owned())
    })
    .await;
    assert!(why.contains("was removed from the config"), "{why}");
    assert!(!gate.path("portcullis.lock").exists());
    for event in ["image-pulled", "server-launched"] {
        assert_eq!(gate.records(&[&format!("event = {event}")]).await, [Value::Null; 0], "{event}");
    }
    assert_eq!(
        docker(&["images", "--quiet", &format!("{host}/{}", place.tagged.repository())]),
        ""
    );
    assert!(containers(&gate.mark).is_empty());
    gate.stop().await;
}
