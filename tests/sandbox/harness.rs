//! Launches programs by the real executable's hidden verb.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use portcullis_runtime::{
    mount::Mount,
    process::{Exit, LaunchFailure, LaunchSpec},
    sandbox,
    started::Process,
};
use portcullis_vault::Secret;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const PORTCULLIS: &str = env!("CARGO_BIN_EXE_portcullis");

pub fn spec(command: &[&str]) -> LaunchSpec {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    LaunchSpec::bare("probe".parse().unwrap(), command, "test")
}

/// A Python program, given by its text.
pub fn python(text: &str) -> LaunchSpec {
    spec(&["/usr/bin/python3", "-I", "-c", text])
}

pub fn mount(source: &Path, target: &str, writable: bool) -> Mount {
    Mount { source: fs::canonicalize(source).unwrap(), target: target.into(), writable }
}

pub fn secret(name: &str, value: &str) -> (String, Secret) {
    (name.into(), Secret::new(value.into()))
}

pub async fn launch(spec: &LaunchSpec) -> Result<Process, LaunchFailure> {
    sandbox::launch_by(Path::new(PORTCULLIS), spec).await
}

/// What a program wrote and how it ended.
#[derive(Debug)]
pub struct Run {
    pub stdout: String,
    pub stderr: String,
    pub exit: Exit,
}

/// Runs a program to its end, with `input` as its standard input.
pub async fn run_with(spec: &LaunchSpec, input: &str) -> Run {
    finish(launch(spec).await.unwrap(), input).await
}

/// Gives a process its input, and lets it run to its end.
pub async fn finish(mut process: Process, input: &str) -> Run {
    process.stdin.write_all(input.as_bytes()).await.unwrap();
    drop(process.stdin);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (out, err) = tokio::join!(
        process.stdout.read_to_end(&mut stdout),
        process.stderr.read_to_end(&mut stderr)
    );
    out.and(err).unwrap();
    let exit = process.handle.wait().await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { stdout: text(stdout), stderr: text(stderr), exit }
}

pub async fn run(spec: &LaunchSpec) -> Run {
    run_with(spec, "").await
}

/// Runs the probe with a canary file on the host and a listener on the host's loopback. Returns
/// what it found.
pub async fn probe(change: impl FnOnce(&mut LaunchSpec)) -> Value {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let canary = folder.path().join("canary");
    fs::write(&canary, "canary").unwrap();
    let mut spec = python(include_str!("probe.py"));
    spec.command.extend([canary.display().to_string(), port]);
    change(&mut spec);
    let run = run(&spec).await;
    assert_eq!(run.exit.code, 0, "{run:?}");
    serde_json::from_str(&run.stdout).unwrap()
}

/// The executable of the MCP server that tries what it should not be able to do. Cargo has built it,
/// where the tests of the whole workspace run.
pub fn probe_server() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        // Beside this very executable's folder: target/PROFILE.
        let this = std::env::current_exe().unwrap();
        let server = this.ancestors().nth(2).unwrap().join("probe");
        if !server.exists() {
            let built = Command::new(env!("CARGO"))
                .args(["build", "--workspace", "--bin", "probe", "--quiet"])
                .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
                .status()
                .unwrap();
            assert!(built.success());
        }
        server
    };
    BUILT.get_or_init(build).clone()
}

/// Every process that descends from this one on the host.
pub fn descendants(of: u32) -> Vec<u32> {
    let stat = |pid: u32| -> Option<(String, u32)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
    };
    let pids: Vec<u32> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let mut found = vec![of];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(pids.iter().filter(|pid| stat(**pid).is_some_and(|(_, of)| of == parent)));
        at += 1;
    }
    found.split_off(1)
}

/// The processes of a sandbox: launcher, first process, program, and so on.
pub fn tree(process: &Process) -> Vec<u32> {
    let launcher = process.handle.describe().rsplit(' ').next().unwrap().parse().unwrap();
    [vec![launcher], descendants(launcher)].concat()
}

/// Whether a process is there and more than a status that waits to be read.
pub fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("Z").starts_with(['Z', 'X']))
}

/// Waits until none of these processes lives.
pub async fn gone(pids: &[u32]) {
    for _ in 0..1000 {
        if !pids.iter().any(|pid| lives(*pid)) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("still there: {:?}", pids.iter().filter(|pid| lives(**pid)).collect::<Vec<_>>());
}

/// A program's place, where this machine has it.
pub fn installed(program: &str) -> Option<PathBuf> {
    let place = Path::new("/usr/bin").join(program);
    place.is_file().then_some(place)
}
