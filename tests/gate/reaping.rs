//! `server cleanup` removes what a killed proxy left, and keeps what a running one has. Each test
//! has its own engine and its own folder for secrets, since every starting proxy reaps, too.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
};

use crate::support::{
    agent::Agent,
    gate::{Gate, Setup, Written},
    ground::Ground,
    portcullis, until,
};

/// An engine, and a folder in memory.
struct Place {
    ground: Ground,
    memory: TempDir,
}

impl Place {
    async fn new() -> Self {
        let ground = tokio::task::spawn_blocking(Ground::start).await.unwrap().unwrap();
        Self { ground, memory: memory() }
    }

    /// A server with a secret in a file, by the engine at `host`.
    fn setup(&self, host: &str, command: &str) -> Setup {
        Setup::new(&format!(
            r#"
            [servers.subject]
            command = {command}
            runtime = "container"
            env = {{ GATE = "{{mark}}" }}
            secrets = {{ TOKEN = {{ from = "file:token", as = "file" }} }}
            start-timeout-s = 120
            [engine]
            host = {host:?}
            "#
        ))
        .file("token", "not much of a secret")
        .env("RUNTIME_DIRECTORY", self.memory.path().to_str().unwrap())
    }

    /// A proxy with a server that serves.
    async fn living(&self, host: &str) -> Gate {
        let gate = self.setup(host, r#"["{crooked}"]"#).start().await;
        echoes(&gate).await;
        gate
    }

    /// A proxy that was killed beside its server, which takes no notice.
    async fn killed(&self, host: &str) -> (Written, Vec<String>) {
        let before = self.containers();
        let gate = self.setup(host, r#"["/bin/sleep", "3600"]"#).start().await;
        let url = gate.url("/mcp");
        let waiting = tokio::spawn(async move {
            let agent = Agent::modern(&url, None);
            agent.call("subject__anything", json!({})).await
        });
        let running = || self.ground.docker(&["ps", "--quiet", "--no-trunc"]).unwrap();
        let left = until("the server to run", async || {
            let ids = running().lines().map(str::to_owned).collect::<Vec<_>>();
            let new: Vec<_> = ids.into_iter().filter(|id| !before.contains(id)).collect();
            (!new.is_empty()).then_some(new)
        });
        let left = left.await;
        let written = gate.kill_9().await;
        waiting.abort();
        (written, left)
    }

    fn containers(&self) -> Vec<String> {
        self.ground.containers().unwrap()
    }

    fn folders(&self) -> Vec<PathBuf> {
        folders_in(&self.memory)
    }
}

async fn echoes(gate: &Gate) {
    let agent = gate.modern();
    let echo = json!({ "text": "x" });
    until("an answer", async || agent.call("subject__echo", echo.clone()).await.ok()).await;
}

/// What was told of containers and secrets. Control groups are the machine's, and other tests leave some.
fn told(rows: &Value, what: &str) -> Vec<String> {
    let rows = rows.as_array().unwrap().iter();
    let rows = rows.filter(|row| row["what"] == what && row["kind"] != "control-group");
    let mut kinds: Vec<_> = rows.map(|row| row["kind"].as_str().unwrap().to_owned()).collect();
    kinds.sort_unstable();
    kinds
}

const REAP: &[&str] = &["server", "cleanup", "--format", "json"];
const REMOVING: &str = "event = orphans-removing";
const REMOVED: &str = "event = orphans-removed";

#[tokio::test(flavor = "multi_thread")]
async fn reap_removes_only_orphans() {
    let place = Place::new().await;
    let host = place.ground.host();
    let living = place.living(&host).await;
    let (own, own_folders) = (place.containers(), place.folders());
    assert_eq!((own.len(), own_folders.len()), (1, 1));
    let (dead, left) = place.killed(&host).await;
    let all = place.containers();
    assert_eq!(left.len(), 1);
    assert_eq!(place.folders().len(), 2);

    let dry = dead.cli(&[REAP, &["--dry-run"]].concat()).await.expect(0);
    assert_eq!(told(&dry, "would-remove"), ["container", "secrets"]);
    assert_eq!(told(&dry, "stays"), ["container"]);
    assert_eq!((place.containers(), place.folders().len()), (all, 2));

    let done = dead.cli(REAP).await.expect(0);
    assert_eq!(told(&done, "removed"), ["container", "secrets"]);
    assert_eq!(told(&done, "stays"), ["container"]);
    assert_eq!((place.containers(), place.folders()), (own.clone(), own_folders.clone()));
    echoes(&living).await;
    let name = done.as_array().unwrap().iter().find(|row| row["kind"] == "container").unwrap();
    for event in [REMOVING, REMOVED] {
        let recorded = &dead.records(&[event]).await[0];
        let left = recorded["left"].as_array().unwrap();
        let container = left.iter().find(|left| left["kind"] == "container").unwrap();
        assert_eq!((&container["name"], &container["server"]), (&name["name"], &json!("subject")));
        assert_eq!(recorded["uid"], nix::unistd::getuid().as_raw());
    }

    let again = dead.cli(REAP).await.expect(0);
    assert_eq!(told(&again, "removed"), Vec::<String>::new());
    let text = dead.cli(&["server", "cleanup"]).await;
    assert!(
        text.stdout.contains("stays") && text.stderr.contains("proxies that live"),
        "{text:#?}"
    );

    // By the config of a proxy that runs, it is that proxy's to record, be the file as broken as it may.
    let (_dead, _) = place.killed(&host).await;
    let whole = living.config();
    living.put(&format!("{whole}\n[servers.half\n"));
    let done = living.cli(REAP).await.expect(0);
    assert_eq!(told(&done, "removed"), ["container", "secrets"]);
    living.put(&whole);
    for event in [REMOVING, REMOVED] {
        assert_eq!(living.records(&[event]).await.len(), 1);
    }
    assert_eq!((place.containers(), place.folders()), (own, own_folders));
    living.stop().await;
    place.ground.wait_until_bare().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn reap_works_without_an_engine_but_not_without_records() {
    let mut place = Place::new().await;
    let (dead, _) = place.killed(&place.ground.host()).await;
    place.ground.kill_daemon().unwrap();
    let ended = dead.cli(REAP).await;
    let done = ended.expect(1);
    assert_eq!(told(&done, "removed"), ["secrets"]);
    assert!(
        ended.stderr.contains("Containers were not looked for: no container engine"),
        "{ended:#?}"
    );
    assert_eq!(dead.records(&[REMOVED]).await.len(), 1);
    place.ground.begin().unwrap();
    let (dead, left) = place.killed(&place.ground.host()).await;
    let whole = dead.config();
    let there = || place.containers().iter().any(|id| left.contains(id));

    // What can't be recorded is not removed.
    let audit = "[audit]\ndir = \"token\"\n";
    for (broken, why) in [(audit, "so it is not done"), ("[servers.half\n", "--unrecorded")] {
        dead.put(&format!("{whole}\n{broken}"));
        let ended = dead.cli(REAP).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:#?}");
        assert!(ended.stderr.contains(why), "{ended:#?}");
        assert!(there());
    }
    let dry = dead.cli(&[REAP, &["--dry-run"]].concat()).await.expect(0);
    assert_eq!(told(&dry, "would-remove"), ["container", "secrets"]);
    // An engine that can't be read is not another one.
    dead.put(&whole.replace("[engine]", "[engine"));
    let ended = dead.cli(&[REAP, &["--unrecorded"]].concat()).await;
    assert_eq!(told(&ended.expect(1), "removed"), ["secrets"]);
    assert!(ended.stderr.contains("`engine.host`") && there(), "{ended:#?}");
    dead.put(&format!("{whole}\n[servers.half\n"));
    let done = dead.cli(&[REAP, &["--unrecorded"]].concat()).await.expect(0);
    assert_eq!(told(&done, "removed"), ["container"]);
    assert!(!there());
    dead.put(&whole);
    assert_eq!(dead.records(&[REMOVED]).await, [json!(null); 0]);
    place.ground.wait_until_bare().unwrap();
}

/// A config without an engine, and folders that look like those of proxies that were killed.
fn bare(memory: &TempDir, folders: usize) -> Written {
    for number in 0..folders {
        let folder = memory.path().join(format!("portcullis-secrets-{number}"));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
        fs::write(folder.join("TOKEN"), "not much of a secret").unwrap();
    }
    Setup::notes()
        .env("RUNTIME_DIRECTORY", memory.path().to_str().unwrap())
        .env("DOCKER_HOST", "unix:///nowhere")
        .write()
}

fn memory() -> TempDir {
    tempfile::Builder::new().prefix("gate.").tempdir_in("/dev/shm").unwrap()
}

fn folders_in(memory: &TempDir) -> Vec<PathBuf> {
    let entries = fs::read_dir(memory.path()).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn many_removals_are_all_recorded() {
    let memory = memory();
    let written = bare(&memory, 70);
    let done = written.cli(REAP).await.expect(0);
    assert_eq!(told(&done, "removed").len(), 70);
    assert_eq!(folders_in(&memory), Vec::<PathBuf>::new());
    for event in [REMOVING, REMOVED] {
        let recorded = written.records(&[event]).await;
        let left = recorded.iter().flat_map(|record| record["left"].as_array().unwrap());
        let secrets = left.filter(|left| left["kind"] == "secrets").count();
        assert!(recorded.len() > 1 && secrets == 70, "{recorded:#?}");
    }
    // No record is cut to what it can hold.
    let gate = written.start().await;
    let socket = gate.path("state/admin.sock");
    let http = reqwest::Client::builder().no_proxy().unix_socket(socket).build().unwrap();
    for (many, status) in [(65, 413), (64, 200)] {
        let left = vec![json!({ "kind": "secrets", "name": "x" }); many];
        let asked = json!({ "left": left, "done": false });
        let answer = http.post("http://portcullis/v1/leftovers").json(&asked).send().await.unwrap();
        assert_eq!(answer.status(), status);
    }
    let recorded = gate.records(&[REMOVING]).await;
    let recorded = recorded.iter().filter(|record| record["left"][0]["name"] == "x");
    assert_eq!(recorded.count(), 1);
    gate.stop().await;
}

/// A stand-in for the proxy records the first event and not the second.
#[tokio::test]
async fn unrecorded_removal_is_a_failure() {
    let memory = memory();
    let written = bare(&memory, 1);
    fs::create_dir(written.path("state")).unwrap();
    let door = UnixListener::bind(written.path("state/admin.sock")).unwrap();
    let proxy = tokio::spawn(async move {
        let mut asked = Vec::new();
        while asked.len() < 2 {
            let (mut stream, _) = door.accept().await.unwrap();
            let mut text = String::new();
            let mut buffer = [0; 4096];
            // Whoever only looks whether somebody answers says nothing.
            while !text.ends_with('}') {
                let read = stream.read(&mut buffer).await.unwrap();
                if read == 0 {
                    break;
                }
                text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
            if text.is_empty() {
                continue;
            }
            let status = if asked.is_empty() { "200 OK" } else { "503 Service Unavailable" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\nnull");
            stream.write_all(answer.as_bytes()).await.unwrap();
            asked.push(text);
        }
        asked
    });
    let ended = written.cli(REAP).await;
    let done = ended.expect(1);
    assert_eq!(told(&done, "removed"), ["secrets"]);
    assert!(ended.stderr.contains("is not recorded"), "{ended:#?}");
    let asked = proxy.await.unwrap();
    assert!(
        asked[0].contains("\"done\":false") && asked[1].contains("\"done\":true"),
        "{asked:#?}"
    );
}

/// The control groups of a proxy.
fn groups_of(pid: i32) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                let ours = name.starts_with("portcullis_") && name.contains(&format!("_{pid}_"));
                if ours { &mut found } else { &mut folders }.push(entry.path());
            }
        }
    }
    found
}

/// Control groups that a test made.
struct Groups(Vec<PathBuf>);

impl Drop for Groups {
    fn drop(&mut self) {
        for group in self.0.iter().rev() {
            let _ = fs::remove_dir(group);
        }
    }
}

#[tokio::test]
async fn orphaned_control_groups_are_removed_unless_in_use() {
    let memory = memory();
    let gate = bare(&memory, 0).start().await;
    gate.modern().text("notes__list_notes", json!({})).await;
    let groups = groups_of(gate.pid());
    let Some(group) = groups.first() else {
        assert!(!nix::unistd::geteuid().is_root(), "root makes control groups");
        return;
    };
    // Whom it names is dead soon.
    let above = group.parent().unwrap().join(format!("gate-reaping-{}", std::process::id()));
    let (others, busy) = (above.join("others"), above.join("busy"));
    let [strange, full] = [&others, &busy].map(|folder| folder.join(group.file_name().unwrap()));
    let made = Groups(vec![above, others, busy, strange.clone(), full.clone()]);
    made.0.iter().for_each(|group| fs::create_dir(group).unwrap());
    std::os::unix::fs::chown(&strange, Some(65534), None).unwrap();
    let mut member = Command::new("sleep").arg("3600").spawn().unwrap();
    fs::write(full.join("cgroup.procs"), member.id().to_string()).unwrap();
    let dead = gate.kill_9().await;

    let rows = dead.cli(REAP).await.expect(1);
    let of = |rows: &Value, group: &Path| {
        let name = json!(group);
        rows.as_array().unwrap().iter().find(|row| row["name"] == name).cloned()
    };
    assert!(groups.iter().all(|group| !group.exists()), "{rows:#?}");
    assert!(of(&rows, &strange).is_none() && strange.exists());
    let row = of(&rows, &full).unwrap();
    let why = row["error"].as_str().unwrap();
    assert!(row["what"] == "failed" && why.contains(&member.id().to_string()), "{row:#?}");
    let recorded = &dead.records(&[REMOVED]).await[0];
    let left = of(&recorded["left"], &full).unwrap();
    assert_eq!(left["error"], why);

    member.kill().unwrap();
    member.wait().unwrap();
    let mut told = None;
    // What another test starts may be faster, but not every time.
    for _ in 0..50 {
        let rows = dead.cli(REAP).await.expect(0);
        assert!(!full.exists() && strange.exists());
        told = of(&rows, &full);
        if told.is_some() {
            break;
        }
        fs::create_dir(&full).unwrap();
    }
    assert_eq!(told.unwrap()["what"], "removed");
}

/// A guard before the engine. It is killed when this is dropped.
struct Guard(Child);

impl Guard {
    async fn start(engine: &str, listen: &Path) -> Self {
        let listen = format!("unix:{}", listen.display());
        let command = |more: &[&str]| {
            let mut command = Command::new(portcullis());
            command.args(["guard", "--listen", &listen]).args(more);
            command
        };
        let child = command(&["--engine", engine, "--allow", "pack", "--owner", "reaping"])
            .args(["--mount", "/dev/shm"])
            .spawn()
            .unwrap();
        let guard = Self(child);
        until("the guard", async || {
            let asked = command(&["--check"]).output().unwrap();
            asked.status.success().then_some(())
        })
        .await;
        guard
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reap_works_through_the_guard() {
    let place = Place::new().await;
    // Not where the guard lets folders be mounted from.
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("guard.sock");
    let guard = Guard::start(&place.ground.host(), &socket).await;
    let host = format!("unix://{}", socket.display());
    let living = place.living(&host).await;
    let own = place.containers();
    let (dead, _) = place.killed(&host).await;
    // The guard itself ends it after a while; this does at once.
    let done = dead.cli(REAP).await.expect(0);
    assert_eq!(told(&done, "stays"), ["container"]);
    assert_eq!(place.containers(), own);
    echoes(&living).await;
    living.stop().await;
    drop(guard);
    place.ground.wait_until_bare().unwrap();
}
