//! Images of a registry: tags are resolved once, locked, and pulled by digest. The registry is
//! Debian's, the engine the real one.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use portcullis_runtime::container::Engine;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::watch,
};

use crate::support::{
    agent::Agent,
    docker_registry::{Door, Registry, docker_config, password},
    engine::{containers, docker},
    gate::{Ended, Gate, Setup, Written},
    held::Held,
    new_mark, server, until,
};

const CALLS: &str = r#"
    @id("calls")
    permit (principal, action, resource)
    unless { action in Portcullis::Action::"from_proxy" };
"#;

/// An image on the engine that this test made; gone with it.
struct Built(String);

impl Built {
    /// The server that misbehaves on demand, with a layer that no other image has.
    async fn new() -> Self {
        Self::of("crooked", "").await
    }

    /// Another server, with more lines of a Dockerfile.
    async fn of(program: &str, more: &str) -> Self {
        let engine = Engine::connect(None).await.unwrap();
        let base = engine.pack(&server(program)).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let lines = format!("FROM {base}\nCOPY unique /unique\n{more}");
        std::fs::write(folder.path().join("Dockerfile"), lines).unwrap();
        std::fs::write(folder.path().join("unique"), new_mark().repeat(4096)).unwrap();
        let name = format!("gate-images-{}", new_mark());
        docker(&["build", "--quiet", "--tag", &name, folder.path().to_str().unwrap()]);
        Self(name)
    }

    /// Pushes it, and tells its digest there. The engine forgets that it has it by that name.
    fn push(&self, to: &str) -> String {
        self.push_with(to, None)
    }

    fn push_with(&self, to: &str, config: Option<&Path>) -> String {
        docker(&["tag", &self.0, to]);
        let mut push = Command::new("docker");
        if let Some(config) = config {
            push.arg("--config").arg(config);
        }
        let pushed = push.args(["push", "--quiet", to]).output().unwrap();
        assert!(pushed.status.success(), "{pushed:?}");
        let all = docker(&["inspect", "--format", "{{json .RepoDigests}}", to]);
        let all: Vec<String> = serde_json::from_str(&all).unwrap();
        let name = to.rsplit_once(':').unwrap().0;
        let digest = all.iter().find_map(|one| one.strip_prefix(&format!("{name}@"))).unwrap();
        docker(&["rmi", to]);
        digest.to_owned()
    }

    /// Pushes it, and has the engine lose all that it has of it.
    fn move_to(self, to: &str) -> String {
        self.push(to)
    }

    fn id(&self) -> String {
        docker(&["inspect", "--format", "{{.Id}}", &self.0])
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        docker(&["rmi", "--force", &self.0]);
    }
}

/// Images that the engine pulled for a test; gone with it.
struct Pulled(String);

impl Drop for Pulled {
    fn drop(&mut self) {
        let images = docker(&["images", "--no-trunc", "--quiet", "--digests", &self.0]);
        for id in images.lines() {
            let _ = Command::new("docker").args(["rmi", "--force", id]).output();
        }
    }
}

fn setup(image: &str) -> Setup {
    Setup::new(&format!(
        "[servers.crooked]\nimage = \"{image}\"\nenv = {{ GATE = \"{{mark}}\" }}\n"
    ))
}

async fn echo(gate: &Gate) -> Result<Value, Value> {
    gate.modern().call("crooked__echo", json!({ "text": "x" })).await
}

/// The image that the server's container was made from.
fn running(mark: &str) -> String {
    let all = containers(mark);
    assert_eq!(all.len(), 1);
    docker(&["inspect", "--format", "{{.Config.Image}}", &all[0]])
}

async fn records(gate: &Gate, event: &str) -> Vec<Value> {
    gate.records(&[&format!("event = {event}")]).await
}

/// The last such event, once there is one.
async fn recorded(gate: &Gate, event: &str) -> Value {
    until(event, async || records(gate, event).await.into_iter().next()).await
}

/// What a command said to a person, however it was broken into lines.
fn said(ended: &Ended) -> String {
    let text = ended.stderr.replace(['│', '╰', '├', '─', '╭', '·'], " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn lock(written: &Written) -> toml::Table {
    let text = std::fs::read_to_string(written.path("portcullis.lock")).unwrap();
    text.parse().unwrap()
}

#[tokio::test]
async fn tag_is_resolved_once_and_moved_only_by_an_operator() {
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let tag = format!("{repository}:1");
    let first = Built::new().await.move_to(&tag);

    let gate = setup(&tag).start().await;
    echo(&gate).await.unwrap();
    let pinned = format!("{tag}@{first}");
    assert_eq!(running(&gate.mark), pinned);
    let resolved = records(&gate, "image-resolved").await;
    assert_eq!(resolved.len(), 1);
    assert_eq!(
        (&resolved[0]["image"], &resolved[0]["digest"]),
        (&json!(tag), &json!(first)),
        "{resolved:#?}"
    );
    assert_eq!(records(&gate, "server-launching").await[0]["digest"], first.as_str());
    let pulled = recorded(&gate, "image-pulled").await;
    assert_eq!((&pulled["digest"], &pulled["platform"]), (&json!(first), &json!("linux/amd64")));
    assert!(pulled["size"].as_u64().unwrap() > 1000, "{pulled:#}");
    let written = gate.stop().await;
    let locked = &lock(&written)["servers"]["crooked"];
    assert_eq!(locked["image"].as_str(), Some(&*tag));
    assert_eq!(locked["image-digest"].as_str(), Some(&*first));

    // Somebody moves the tag: nothing changes here.
    let second = Built::new().await.move_to(&tag);
    assert_ne!(first, second);
    let gate = written.start_with(&["--locked"]).await;
    echo(&gate).await.unwrap();
    assert_eq!(running(&gate.mark), pinned);
    assert_eq!(records(&gate, "image-resolved").await.len(), 1);
    let written = gate.stop().await;
    let looked = written.cli(&["server", "update", "--dry-run"]).await;
    assert!(looked.stdout.contains(&format!("from {first}")), "{looked:#?}");
    assert!(looked.stdout.contains(&format!("to   {second}")), "{looked:#?}");
    assert_eq!(lock(&written)["servers"]["crooked"]["image-digest"].as_str(), Some(&*first));

    // An operator moves it.
    let moved = written.cli(&["server", "update", "crooked", "--format", "json"]).await.expect(0);
    assert_eq!(
        (&moved[0]["from"], &moved[0]["to"], &moved[0]["what"]),
        (&json!(first), &json!(second), &json!("moved"))
    );
    let gate = written.start().await;
    echo(&gate).await.unwrap();
    assert_eq!(running(&gate.mark), format!("{tag}@{second}"));
    let written = gate.stop().await;

    // Back to the old one is not taken for news.
    let api = format!("http://{}/v2/acme/crooked/manifests", registry.host());
    let client = reqwest::Client::new();
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let old = client.get(format!("{api}/{first}")).header("accept", kind).send().await.unwrap();
    let old = old.bytes().await.unwrap();
    let put = client.put(format!("{api}/1")).header("content-type", kind).body(old).send().await;
    assert!(put.unwrap().status().is_success());
    let refused = written.cli(&["server", "update"]).await;
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("--allow-downgrade"), "{refused:#?}");
    assert_eq!(lock(&written)["servers"]["crooked"]["image-digest"].as_str(), Some(&*second));
    written.cli(&["server", "update", "--allow-downgrade", "--format", "json"]).await.expect(0);

    // The engine has it still; the registry need not be there.
    drop(registry);
    let gate = written.start().await;
    echo(&gate).await.unwrap();
    assert_eq!(running(&gate.mark), pinned);
    let written = gate.stop().await;
    // Without either, the reason is told, and the agent hears no names.
    drop(_pulled);
    let gate = written.start().await;
    let error = echo(&gate).await.unwrap_err();
    assert!(!error.to_string().contains("127.0.0.1"), "{error:#}");
    let failed = records(&gate, "server-launch-failed").await;
    let why = failed[0]["reason"].as_str().unwrap();
    assert!(why.contains("cannot be pulled") && why.contains("does not answer"), "{why}");
    assert_eq!(recorded(&gate, "image-pull-failed").await["digest"], first.as_str());
    gate.stop().await;
}

#[tokio::test]
async fn forbidden_image_is_neither_pulled_nor_locked() {
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let tag = format!("{repository}:1");
    let digest = Built::new().await.move_to(&tag);
    let gate = setup(&tag).policies(CALLS).without_launches().start().await;
    let error = echo(&gate).await.unwrap_err();
    assert_eq!(error["data"]["code"], "policy-denied", "{error:#}");
    assert_eq!(docker(&["images", "--quiet", &repository]), "");
    assert!(!gate.path("portcullis.lock").exists());
    let refused = gate.cli(&["server", "pull", "crooked"]).await;
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("do not permit"), "{refused:#?}");
    assert!(refused.stderr.contains(&digest), "{refused:#?}");
    assert_eq!(docker(&["images", "--quiet", &repository]), "");

    // Bound to the digest.
    let other = format!("sha256:{}", "0".repeat(64));
    let permit = |digest: &str| {
        format!(
            "{CALLS} @id(\"run\") permit (principal, action == Portcullis::Action::\"launch\", resource) \
             when {{ resource has digest && resource.digest == \"{digest}\" }};"
        )
    };
    std::fs::write(gate.path("policies/gate.cedar"), permit(&other)).unwrap();
    assert_eq!(echo(&gate).await.unwrap_err()["data"]["code"], "policy-denied");
    std::fs::write(gate.path("policies/gate.cedar"), permit(&digest)).unwrap();
    until("the start to be permitted", async || echo(&gate).await.ok()).await;
    gate.stop().await;
}

#[tokio::test]
async fn pull_shows_progress_and_platforms() {
    // Some of it is written otherwise in the base64 for URLs, which engines read.
    let wanted = format!("{}~?~~", password());
    let login = Some(("me".to_owned(), wanted.clone()));
    let registry = Registry::start(&Door { login, tls: false });
    let config = docker_config(&registry.host(), "me", &wanted);
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let tag = format!("{repository}:1");
    let built = Built::new().await;
    let id = built.id();
    let digest = built.push_with(&tag, Some(config.path()));
    drop(built);

    let written = setup(&tag).write();
    let locked = written.cli(&["run", "--locked", "--dry-run"]).await;
    assert_eq!(locked.code, Some(1), "{locked:#?}");
    assert!(said(&locked).contains("server lock crooked"), "{locked:#?}");
    let nobody = written.cli(&["server", "pull"]).await;
    assert!(nobody.code == Some(1) && nobody.stderr.contains("login"), "{nobody:#?}");

    let gate = setup(&tag).env("DOCKER_CONFIG", config.path().to_str().unwrap()).write();
    let pulled = gate.cli(&["server", "pull"]).await;
    assert_eq!(pulled.code, Some(0), "{pulled:#?}");
    let told = &pulled.stderr;
    assert!(told.contains(&digest) && told.contains("linux/amd64, "), "{pulled:#?}");
    assert!(pulled.stdout.contains("pulled"), "{pulled:#?}");
    assert_eq!(docker(&["inspect", "--format", "{{.Id}}", &format!("{repository}@{digest}")]), id);
    let again = gate.cli(&["server", "pull"]).await;
    assert!(again.stdout.contains("is there"), "{again:#?}");
    for ended in [&nobody, &pulled, &again] {
        assert!(!format!("{ended:?}").contains(&wanted), "{ended:#?}");
    }

    // One for another machine.
    let open = Registry::start(&Door::default());
    let other = format!("{}/acme/other:1", open.host());
    put_image(&open.host(), "acme/other", "1", "arm64").await;
    let written = setup(&other).write();
    let refused = written.cli(&["server", "pull"]).await;
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(
        refused.stderr.contains("is not available for linux/amd64, only for: linux/arm64"),
        "{refused:#?}"
    );
}

#[tokio::test]
async fn oversized_image_is_not_pulled() {
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let tag = format!("{repository}:1");
    Built::new().await.move_to(&tag);
    let gate = setup(&tag).and("[registries]\nlargest-image-mib = 1").start().await;
    echo(&gate).await.unwrap_err();
    let failed = recorded(&gate, "image-pull-failed").await;
    let why = failed["reason"].as_str().unwrap();
    assert!(why.contains("and 1.0 MB are the most"), "{why}");
    assert_eq!(docker(&["images", "--quiet", &repository]), "");
    gate.stop().await;
}

/// A list of images of which an engine takes another one than the proxy looks at: Docker 28 takes no
/// account of the features of a system that an image asks for.
async fn list(host: &str, name: &str, taken: &str, looked_at: &str) -> String {
    let client = reqwest::Client::new();
    let manifests = format!("http://{host}/v2/{name}/manifests");
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let mut all = Vec::new();
    for (digest, platform) in [
        (taken, json!({ "os": "linux", "architecture": "amd64", "os.features": ["x"] })),
        (looked_at, json!({ "os": "linux", "architecture": "amd64", "variant": "v3" })),
    ] {
        let asked = client.get(format!("{manifests}/{digest}")).header("accept", kind);
        let size = asked.send().await.unwrap().bytes().await.unwrap().len();
        all.push(
            json!({ "mediaType": kind, "digest": digest, "size": size, "platform": platform }),
        );
    }
    let kind = "application/vnd.docker.distribution.manifest.list.v2+json";
    let list = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": all }).to_string();
    let digest = portcullis_oci::Digest::of(list.as_bytes()).to_string();
    let put = client.put(format!("{manifests}/{digest}")).header("content-type", kind).body(list);
    assert!(put.send().await.unwrap().status().is_success());
    digest
}

#[tokio::test]
async fn pulled_image_with_another_digest_never_runs() {
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let taken = Built::new().await.move_to(&format!("{repository}:1"));
    let looked_at = Built::new().await.move_to(&format!("{repository}:2"));
    let digest = list(&registry.host(), "acme/crooked", &taken, &looked_at).await;
    let image = format!("{repository}@{digest}");

    let gate = setup(&image).start().await;
    let refused = async || {
        until("the image to be refused", async || {
            echo(&gate).await.unwrap_err();
            let failed = records(&gate, "server-launch-failed").await;
            failed[0]["reason"].as_str().unwrap().contains("pulled another image").then_some(())
        })
        .await;
        assert_eq!(containers(&gate.mark), Vec::<String>::new());
    };
    refused().await;
    assert_eq!(docker(&["images", "--quiet", &repository]), "");
    refused().await;

    // It came without being looked at, and cannot be removed.
    docker(&["pull", "--quiet", &image]);
    let holds = docker(&["create", &image]);
    std::fs::write(gate.path(&unseen(&image)), "").unwrap();
    refused().await;
    assert_ne!(docker(&["images", "--quiet", &repository]), "");
    refused().await;
    docker(&["rm", &holds]);
    let written = gate.stop().await;

    // A good one is looked at once.
    let good = format!("{repository}@{taken}");
    docker(&["pull", "--quiet", &good]);
    let config = std::fs::read_to_string(written.path("portcullis.toml")).unwrap();
    std::fs::write(written.path("portcullis.toml"), config.replace(&image, &good)).unwrap();
    std::fs::write(written.path(&unseen(&good)), "").unwrap();
    let gate = written.start().await;
    echo(&gate).await.unwrap();
    assert!(!gate.path(&unseen(&good)).exists());
    gate.stop().await;
}

/// Stands before the engine, and answers pulls in its place.
struct Between {
    url: String,
    /// Whether it has the engine pull before it answers, and what it answers.
    answers: Arc<watch::Sender<(bool, &'static str)>>,
    /// How many pulls it has answered.
    answered: Arc<AtomicUsize>,
    _folder: tempfile::TempDir,
}

impl Between {
    async fn new(image: &str) -> Self {
        let engine = Engine::connect(None).await.unwrap();
        let behind = engine.version().host.strip_prefix("unix://").unwrap().to_owned();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let answers = Arc::new(watch::Sender::new((false, "")));
        let answered = Arc::new(AtomicUsize::new(0));
        let (answering, image, count) = (answers.clone(), image.to_owned(), answered.clone());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (answering, image, count) = (answering.clone(), image.clone(), count.clone());
                let behind = behind.clone();
                tokio::spawn(async move {
                    let mut engine = UnixStream::connect(behind).await.unwrap();
                    let (mut asked, mut told) = (vec![0; 1 << 16], vec![0; 1 << 16]);
                    loop {
                        let (to, bytes) = tokio::select! {
                            Ok(n @ 1..) = client.read(&mut asked) => (&mut engine, &asked[..n]),
                            Ok(n @ 1..) = engine.read(&mut told) => (&mut client, &told[..n]),
                            else => return,
                        };
                        let text = String::from_utf8_lossy(bytes);
                        if text.starts_with("POST") && text.contains("/images/create?") {
                            let (pulls, answer) = *answering.borrow();
                            if pulls {
                                tokio::task::block_in_place(|| {
                                    docker(&["pull", "--quiet", &image])
                                });
                            }
                            count.fetch_add(1, Ordering::SeqCst);
                            client.write_all(answer.as_bytes()).await.unwrap();
                            return;
                        }
                        if to.write_all(bytes).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let url = format!("unix://{}", socket.display());
        Self { url, answers, answered, _folder: folder }
    }
}

// The stand-in for the engine must answer while the test waits for `docker`.
#[tokio::test(flavor = "multi_thread")]
async fn image_of_a_failed_pull_is_checked_before_it_runs() {
    const BROKEN: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 55\r\n\
        Connection: close\r\n\r\n{\"errorDetail\":{\"message\":\"broken\"},\"error\":\"broken\"}\r\n";
    const DENIED: &str =
        "HTTP/1.1 500 x\r\nContent-Length: 20\r\nConnection: close\r\n\r\n{\"message\":\"denied\"}";
    const SILENT: &str =
        "HTTP/1.1 502 x\r\nContent-Length: 20\r\nConnection: close\r\n\r\n{\"message\":\"silent\"}";
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let digest = Built::new().await.move_to(&format!("{repository}:1"));
    let image = format!("{repository}@{digest}");
    let between = Between::new(&image).await;
    let gate = setup(&image).env("DOCKER_HOST", &between.url).start().await;
    // Whether it comes before the error, what that is, and whether it may be there now or later.
    let all = [
        (false, BROKEN, false),
        (false, DENIED, false),
        (false, SILENT, true),
        // The engine may be at work on the one before yet.
        (false, DENIED, true),
        (true, BROKEN, true),
    ];
    for (pulls, answer, may_be_there) in all {
        between.answers.send_replace((pulls, answer));
        let before = between.answered.load(Ordering::SeqCst);
        // A server that failed repeatedly is let alone for a while.
        until("another pull", async || {
            echo(&gate).await.unwrap_err();
            (between.answered.load(Ordering::SeqCst) > before).then_some(())
        })
        .await;
        // A call may be told before the pull is over.
        until("the end of all pulls", async || {
            let mut ended = records(&gate, "image-pull-failed").await;
            // Its registry may have been silent.
            ended.retain(|one| one["reason"].as_str().unwrap().contains("the engine did not pull"));
            (ended.len() == between.answered.load(Ordering::SeqCst)).then_some(())
        })
        .await;
        assert_eq!(gate.path(&unseen(&image)).exists(), may_be_there, "{pulls} {answer}");
    }
    // It is there now, and is looked at before it runs.
    echo(&gate).await.unwrap_err();
    assert_eq!(containers(&gate.mark), Vec::<String>::new());
    gate.stop().await;
}

/// The file that is there while an image is pulled.
fn unseen(image: &str) -> String {
    format!("state/unseen-{}", portcullis_oci::Digest::of(image.as_bytes()).hex())
}

#[tokio::test]
async fn start_moves_no_locked_digest() {
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let (one, two) = (format!("{repository}:1"), format!("{repository}:2"));
    let first = Built::new().await.move_to(&one);
    let second = Built::new().await.move_to(&two);
    let locked = |written: &Written| {
        lock(written)["servers"]["crooked"]["image-digest"].as_str().unwrap().to_owned()
    };
    let written = setup(&one).write();
    // Not locked yet.
    let looked = written.cli(&["server", "update", "--dry-run", "--format", "json"]).await;
    assert_eq!(looked.expect(0)[0]["what"], "would-lock");
    assert!(!written.path("portcullis.lock").exists());
    written.cli(&["server", "lock", "--format", "json"]).await.expect(0);
    assert_eq!(locked(&written), first);

    let config = std::fs::read_to_string(written.path("portcullis.toml")).unwrap();
    let names = |image: &str| {
        let changed = config.replace(&one, image);
        std::fs::write(written.path("portcullis.toml"), changed).unwrap();
    };
    let by_digest = format!("{repository}@{second}");
    for image in [&two, &by_digest] {
        names(image);
        let refused = written.cli(&["check"]).await;
        assert_eq!(refused.code, Some(11), "{refused:#?}");
        assert!(refused.stdout.contains("server lock crooked"), "{refused:#?}");
        let looked = written.cli(&["server", "update", "--dry-run", "--format", "json"]).await;
        let looked = &looked.expect(0)[0];
        assert_eq!(
            (&looked["what"], &looked["from"], &looked["to"]),
            (&json!("would-move"), &json!(first), &json!(second))
        );
        assert_eq!(locked(&written), first);
    }
    // Changed while the proxy runs, by another name.
    names(&one);
    let gate = written.start().await;
    let text = std::fs::read_to_string(gate.path("portcullis.lock")).unwrap();
    std::fs::write(gate.path("portcullis.lock"), text.replace(&one, &two)).unwrap();
    echo(&gate).await.unwrap_err();
    let failed = records(&gate, "server-launch-failed").await;
    let why = failed[0]["reason"].as_str().unwrap();
    assert!(why.contains("server lock crooked") && why.contains("server update"), "{why}");
    assert_eq!(docker(&["images", "--quiet", &repository]), "");
    let written = gate.stop().await;
    assert_eq!(lock(&written)["servers"]["crooked"]["image"].as_str(), Some(&*two));
    let moved = written.cli(&["server", "lock", "--format", "json"]).await.expect(0);
    assert_eq!(moved[0]["what"], "locked");
    assert_eq!(locked(&written), first);
}

#[tokio::test]
async fn image_commands_are_recorded() {
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let tag = format!("{repository}:1");
    let first = Built::new().await.move_to(&tag);
    let written = setup(&tag).write();
    // By the command itself, and by the proxy that runs.
    written.cli(&["server", "lock", "--format", "json"]).await.expect(0);
    let gate = written.start().await;
    let second = Built::new().await.move_to(&tag);
    gate.cli(&["server", "update", "--dry-run", "--format", "json"]).await.expect(0);
    gate.cli(&["server", "update", "--format", "json"]).await.expect(0);
    let mut locked = records(&gate, "image-locked").await;
    locked.sort_by_key(|one| one.get("was").is_some());
    let [before, after] = &locked[..] else { panic!("{locked:#?}") };
    let uid = nix::unistd::getuid().as_raw();
    for (one, digest, was) in [(before, &first, Value::Null), (after, &second, json!(first))] {
        assert_eq!(
            (&one["server"], &one["image"], &one["digest"], &one["was"], &one["uid"]),
            (&json!("crooked"), &json!(tag), &json!(digest), &was, &json!(uid)),
            "{one:#}"
        );
    }
    let pulled = gate.cli(&["server", "pull", "--format", "json"]).await.expect(0);
    assert_eq!(pulled[0]["pulled"], true);
    let pulled = &records(&gate, "image-pulled").await[0];
    assert_eq!((&pulled["digest"], &pulled["uid"]), (&json!(second), &json!(uid)), "{pulled:#}");
    assert!(pulled.get("launch").is_none(), "{pulled:#}");
    // A start finds nothing out.
    echo(&gate).await.unwrap();
    assert_eq!(records(&gate, "image-resolved").await, Vec::<Value>::new());
    gate.stop().await;
}

// The stand-in for the registry must answer while the test waits for `docker push`.
#[tokio::test(flavor = "multi_thread")]
async fn concurrently_locked_digest_is_kept() {
    let registry = Registry::start(&Door::default());
    let Held { host, let_go, mut holds } = Held::of(&registry.host(), &["/manifests/1"]).await;
    let tag = format!("{host}/acme/crooked:1");
    let digest = Built::new().await.move_to(&tag);
    let other = format!("sha256:{}", "0".repeat(64));
    let locked =
        format!("version = 1\n[servers.crooked]\nimage = \"{tag}\"\nimage-digest = \"{other}\"\n");
    for verb in ["lock", "pull"] {
        let written = setup(&tag).write();
        let_go.send_replace(false);
        holds.mark_unchanged();
        let args = ["server", verb];
        let meanwhile = async {
            // It has read the lock file by now, and asks the registry.
            holds.changed().await.unwrap();
            std::fs::write(written.path("portcullis.lock"), &locked).unwrap();
            let_go.send_replace(true);
        };
        let (ended, ()) = tokio::join!(written.cli(&args), meanwhile);
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        assert!(ended.stderr.contains("meanwhile"), "{ended:#?}");
        let crooked = &lock(&written)["servers"]["crooked"];
        assert_eq!(crooked["image-digest"].as_str(), Some(&*other));
        failed_to_lock(&written, &digest).await;
        assert_eq!(written.records(&["event = image-pulling"]).await, Vec::<Value>::new());
    }
}

/// Looks whether it is on record that the server's image was to be locked as that, and was not.
async fn failed_to_lock(written: &Written, digest: &str) {
    let events = async |event: &str| written.records(&[&format!("event = {event}")]).await;
    let [locked, failed] =
        [events("image-locked").await, events("image-lock-failed").await].map(|mut all| {
            assert_eq!(all.len(), 1, "{all:#?}");
            all.remove(0)
        });
    for one in [&locked, &failed] {
        assert_eq!((&one["server"], &one["digest"]), (&json!("crooked"), &json!(digest)));
        assert_eq!(one["uid"], nix::unistd::getuid().as_raw());
    }
    assert!(failed["reason"].as_str().unwrap().contains("meanwhile"), "{failed:#}");
}

#[tokio::test]
async fn manual_pull_is_recorded_before_it_begins() {
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let tag = format!("{repository}:1");
    let digest = Built::new().await.move_to(&tag);
    let written = setup(&tag).write();
    written.cli(&["server", "lock", "--format", "json"]).await.expect(0);
    // A store that cannot be opened.
    let (audit, aside) = (written.path("state/audit"), written.path("aside"));
    std::fs::rename(&audit, &aside).unwrap();
    std::fs::write(&audit, "no folder").unwrap();
    let ended = written.cli(&["server", "pull"]).await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("can't be recorded"), "{ended:#?}");
    assert_eq!(docker(&["images", "--quiet", &repository]), "");
    std::fs::remove_file(&audit).unwrap();
    std::fs::rename(&aside, &audit).unwrap();

    let pulled = written.cli(&["server", "pull", "--format", "json"]).await.expect(0);
    assert_eq!(pulled[0]["pulled"], true);
    let [pulling] = &written.records(&["event = image-pulling"]).await[..] else { panic!() };
    assert_eq!((&pulling["server"], &pulling["digest"]), (&json!("crooked"), &json!(digest)));
    // What is there is not pulled.
    let pulled = written.cli(&["server", "pull", "--format", "json"]).await.expect(0);
    assert_eq!(pulled[0]["pulled"], false);
    assert_eq!(written.records(&["event = image-pulling"]).await.len(), 1);
}

// The stand-in for the registry must answer while the test waits for `docker push`.
#[tokio::test(flavor = "multi_thread")]
async fn pull_fails_if_its_result_cannot_be_recorded() {
    let registry = Registry::start(&Door::default());
    let Held { host, let_go, mut holds } = Held::blobs(&registry.host()).await;
    let repository = format!("{host}/acme/crooked");
    let _pulled = Pulled(repository.clone());
    let tag = format!("{repository}:1");
    Built::new().await.move_to(&tag);
    let_go.send_replace(false);
    let written = setup(&tag).write();
    let audit = written.path("state/audit");
    holds.mark_unchanged();
    let meanwhile = async {
        holds.changed().await.unwrap();
        std::fs::rename(&audit, written.path("aside")).unwrap();
        std::fs::write(&audit, "no folder").unwrap();
        let_go.send_replace(true);
    };
    let (ended, ()) = tokio::join!(written.cli(&["server", "pull"]), meanwhile);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("it was pulled, and that can't be recorded"), "{ended:#?}");
}

#[tokio::test]
async fn pull_needs_the_permits_of_the_launch() {
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let tag = format!("{repository}:1");
    Built::new().await.move_to(&tag);
    let launches = |annotation: &str| {
        format!(
            "{annotation} @id(\"launches\")\npermit (principal, action == Portcullis::Action::\"launch\", resource);"
        )
    };
    let written = setup(&tag)
        .and("secrets = { TOKEN = { from = \"env:NOBODY_HAS_IT\" } }")
        .policies(&launches("@approve(\"a person looks\")"))
        .without_launches()
        .write();
    let refused = async |why: &str| {
        let refused = written.cli(&["server", "pull"]).await;
        assert_eq!(refused.code, Some(1), "{refused:#?}");
        assert!(refused.stderr.contains(why), "{refused:#?}");
        assert!(!written.path("portcullis.lock").exists());
        assert_eq!(docker(&["images", "--quiet", &repository]), "");
    };
    refused("`@approve` cannot be met").await;
    // It would not be handed its secret.
    std::fs::write(written.path("policies/gate.cedar"), launches("")).unwrap();
    refused("deliver_secret TOKEN").await;
}

#[tokio::test]
async fn locked_launch_is_decided_by_the_configured_name() {
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let tag = format!("{repository}:1");
    Built::new().await.move_to(&tag);
    let policies = format!(
        "{CALLS} @id(\"not-this\") forbid (principal, action == Portcullis::Action::\"launch\", \
         resource == Portcullis::Program::\"{tag}\");"
    );
    let mut written = setup(&tag).policies(&policies).write();
    written.cli(&["server", "lock", "--format", "json"]).await.expect(0);
    for args in [&[][..], &["--locked"]] {
        let gate = written.start_with(args).await;
        let error = echo(&gate).await.unwrap_err();
        assert_eq!(error["data"]["code"], "policy-denied", "{error:#}");
        written = gate.stop().await;
    }
    // What is not locked any more is not looked up.
    std::fs::write(written.path("policies/gate.cedar"), CALLS).unwrap();
    let gate = written.start_with(&["--locked"]).await;
    std::fs::remove_file(gate.path("portcullis.lock")).unwrap();
    echo(&gate).await.unwrap_err();
    let failed = records(&gate, "server-launch-failed").await;
    assert!(failed[0]["reason"].as_str().unwrap().contains("is not locked"), "{failed:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn changed_image_replaces_the_cached_lists() {
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let tag = format!("{repository}:1");
    Built::new().await.move_to(&tag);
    let gate = setup(&tag).start().await;
    let offered = gate.modern().names("tools/list").await;
    assert!(offered.contains(&"crooked__echo".to_owned()), "{offered:?}");
    let kept = gate.path("state/known/crooked.json");
    until("it to be written down", async || kept.exists().then_some(())).await;
    let written = gate.stop().await;

    let arguments = json!([json!({ "label": "b", "tools": ["other"] }).to_string()]);
    Built::of("lister", &format!("CMD {arguments}\n")).await.move_to(&tag);
    written.cli(&["server", "update", "--format", "json"]).await.expect(0);
    let gate = written.start().await;
    let offered = gate.modern().names("tools/list").await;
    assert_eq!(offered, ["crooked__other"]);
    gate.stop().await;
}

#[tokio::test]
async fn update_reports_a_moved_tag_beside_a_digest() {
    let registry = Registry::start(&Door::default());
    let tag = format!("{}/acme/crooked:1", registry.host());
    let first = Built::new().await.move_to(&tag);
    let image = format!("{tag}@{first}");
    let written = setup(&image).write();
    let kept = written.cli(&["server", "update", "--format", "json"]).await.expect(0);
    assert_eq!(kept[0]["what"], "in-config");
    let second = Built::new().await.move_to(&tag);
    let behind = written.cli(&["server", "update", "--format", "json"]).await.expect(0);
    assert_eq!(
        (&behind[0]["what"], &behind[0]["from"], &behind[0]["to"]),
        (&json!("behind"), &json!(first), &json!(second))
    );
    let told = written.cli(&["server", "update"]).await;
    assert!(told.stdout.contains(&format!("image = \"{tag}@{second}\"")), "{told:#?}");
    assert!(!written.path("portcullis.lock").exists());
}

/// Puts an image without layers into a registry, for a machine of that kind.
async fn put_image(host: &str, name: &str, tag: &str, architecture: &str) {
    let client = reqwest::Client::new();
    let config = json!({ "os": "linux", "architecture": architecture,
        "rootfs": { "type": "layers", "diff_ids": [] } })
    .to_string();
    let digest = portcullis_oci::Digest::of(config.as_bytes());
    let begun =
        client.post(format!("http://{host}/v2/{name}/blobs/uploads/")).send().await.unwrap();
    let to = begun.headers()["location"].to_str().unwrap();
    let mut to = reqwest::Url::parse(&format!("http://{host}")).unwrap().join(to).unwrap();
    to.query_pairs_mut().append_pair("digest", &digest.to_string());
    let put = client.put(to).body(config.clone());
    assert!(put.send().await.unwrap().status().is_success());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "layers": [],
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest,
            "size": config.len() } });
    let to = format!("http://{host}/v2/{name}/manifests/{tag}");
    let put = client.put(to).header("content-type", kind).body(manifest.to_string());
    assert!(put.send().await.unwrap().status().is_success());
}

// The stand-in for the registry must answer while the test waits for `docker push`.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_call_gets_the_progress_and_the_pull_continues() {
    let registry = Registry::start(&Door::default());
    let Held { host, let_go, .. } = Held::blobs(&registry.host()).await;
    let repository = format!("{host}/acme/crooked");
    let _pulled = Pulled(repository.clone());
    let tag = format!("{repository}:1");
    let digest = Built::new().await.move_to(&tag);
    let_go.send_replace(false);

    let gate = setup(&tag)
        .and("start-timeout-s = 4")
        .and("[servers.twin]")
        .and(&format!("image = \"{tag}\"\nstart-timeout-s = 4"))
        .and("[servers.notes]\ncommand = [\"portcullis\", \"example-server\", \"notes\"]")
        .and("runtime = \"sandbox\"")
        .start()
        .await;
    // Nobody else waits for it.
    let agent = gate.modern();
    let (waited, twin, note) = tokio::join!(
        echo(&gate),
        agent.call("twin__echo", json!({ "text": "x" })),
        agent.call("notes__add_note", json!({ "name": "a", "text": "b" })),
    );
    note.unwrap();
    for waited in [waited, twin] {
        let error = waited.unwrap_err();
        assert_eq!(error["data"]["code"], "server-unavailable");
        assert!(error["message"].as_str().unwrap().contains("is being pulled"), "{error:#}");
    }
    let failed = records(&gate, "server-launch-failed").await;
    let why = failed[0]["reason"].as_str().unwrap();
    assert!(why.contains("is still being pulled") && why.contains("continues"), "{why}");
    assert!(records(&gate, "image-pulled").await.is_empty());
    // Who comes meanwhile waits along with all others, and starts nothing of its own.
    let crowd = futures_util::future::join_all((0..8).map(|_| echo(&gate))).await;
    for waited in crowd {
        let error = waited.unwrap_err();
        assert!(error["message"].as_str().unwrap().contains("is being pulled"), "{error:#}");
    }
    assert_eq!(records(&gate, "server-launch-failed").await.len(), failed.len());

    let_go.send_replace(true);
    let pulled = recorded(&gate, "image-pulled").await;
    echo(&gate).await.unwrap();
    agent.call("twin__echo", json!({ "text": "x" })).await.unwrap();
    // Once for both.
    assert_eq!(pulled["digest"], digest.as_str());
    assert_eq!(records(&gate, "image-pulled").await.len(), 1);
    gate.stop().await;
}

// The stand-in for the registry must answer while the test waits for `docker push`.
#[tokio::test(flavor = "multi_thread")]
async fn server_removed_during_its_pull_is_not_started() {
    let call = json!({ "name": "crooked__echo", "arguments": { "text": "x" } });
    // What needs no list is under way at the server before it runs, and keeps it.
    for (path, method, params) in [
        ("/mcp", "tools/call", call),
        ("/servers/crooked/mcp", "resources/read", json!({ "uri": "crooked://x" })),
    ] {
        let registry = Registry::start(&Door::default());
        let Held { host, let_go, .. } = Held::blobs(&registry.host()).await;
        let repository = format!("{host}/acme/crooked");
        let _pulled = Pulled(repository.clone());
        let tag = format!("{repository}:1");
        Built::new().await.move_to(&tag);
        let_go.send_replace(false);
        let more = "start-timeout-s = 600\ncall-timeout-s = 600";
        let mut gate = setup(&tag).and(more).start().await;
        let agent = Agent::modern(&gate.url(path), None);
        let call = tokio::spawn(async move { agent.ask(method, params).await });
        until("the pull", async || {
            let states: Value = gate.cli(&["server", "ls", "--format", "json"]).await.expect(0);
            (states[0]["health"] == "pulling").then_some(())
        })
        .await;
        let config = gate.config();
        gate.put(&config[..config.find("[servers.crooked]").unwrap()]);
        gate.logged("the change", |line| line.contains("config reloaded")).await;
        let_go.send_replace(true);
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error["data"]["code"], "server-unavailable", "{error:#}");
        let pulled = recorded(&gate, "image-pulled").await;
        assert_eq!(pulled["server"], "crooked", "{pulled:#}");
        let failed = recorded(&gate, "server-launch-failed").await;
        let why = failed["reason"].as_str().unwrap();
        assert!(why.contains("was removed from the config"), "{failed:#}");
        assert!(records(&gate, "server-launched").await.is_empty());
        assert!(containers(&gate.mark).is_empty());
        gate.stop().await;
    }
}

// The stand-in for the registry must answer while the test waits for `docker push`.
#[tokio::test(flavor = "multi_thread")]
async fn pull_has_a_deadline() {
    let registry = Registry::start(&Door::default());
    let Held { host, let_go, .. } = Held::blobs(&registry.host()).await;
    let tag = format!("{host}/acme/crooked:1");
    Built::new().await.move_to(&tag);
    let_go.send_replace(false);
    let gate = setup(&tag).and("[registries]\npull-deadline-s = 1").start().await;
    echo(&gate).await.unwrap_err();
    let failed = recorded(&gate, "image-pull-failed").await;
    let why = failed["reason"].as_str().unwrap();
    assert!(why.contains("was not pulled within 1 s"), "{why}");
    let_go.send_replace(true);
    gate.stop().await;
}

#[tokio::test]
async fn local_image_is_locked_by_its_id() {
    let built = Built::new().await;
    let (name, id) = (format!("{}:latest", built.0), built.id());
    let gate = setup(&built.0).start().await;
    echo(&gate).await.unwrap();
    assert_eq!(running(&gate.mark), id);
    let written = gate.stop().await;
    assert_eq!(lock(&written)["servers"]["crooked"]["image-id"].as_str(), Some(&*id));
    // Built anew under the same name.
    let newer = Built::new().await;
    docker(&["tag", &built.0, &format!("{}:old", built.0)]);
    docker(&["tag", &newer.0, &name]);
    let gate = written.start().await;
    echo(&gate).await.unwrap();
    assert_eq!(running(&gate.mark), id);
    let written = gate.stop().await;
    written.cli(&["server", "update", "--format", "json"]).await.expect(0);
    let gate = written.start().await;
    echo(&gate).await.unwrap();
    assert_eq!(running(&gate.mark), newer.id());
    gate.stop().await;
    docker(&["rmi", &format!("{}:old", built.0)]);

    // A name that names no registry is nobody else's.
    let gate = setup(&format!("gate-images-{}", new_mark())).start().await;
    echo(&gate).await.unwrap_err();
    let failed = records(&gate, "server-launch-failed").await;
    let why = failed[0]["reason"].as_str().unwrap();
    assert!(why.contains("names no registry") && why.contains("docker.io/library/"), "{why}");
    gate.stop().await;
}

#[tokio::test]
async fn missing_image_is_requested_again_later() {
    let registry = Registry::start(&Door::default());
    let repository = format!("{}/acme/crooked", registry.host());
    let _pulled = Pulled(repository.clone());
    let tag = format!("{repository}:1");
    let gate = setup(&tag).start().await;
    echo(&gate).await.unwrap_err();
    let failed = records(&gate, "server-launch-failed").await;
    assert!(
        failed[0]["reason"].as_str().unwrap().contains("is not in the registry"),
        "{failed:#?}"
    );
    Built::new().await.move_to(&tag);
    let patient = async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        echo(&gate).await.ok()
    };
    until("the image to be there", patient).await;
    gate.stop().await;
}
