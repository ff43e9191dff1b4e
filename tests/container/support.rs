//! What the tests share.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use portcullis_runtime::{
    container::Engine,
    process::{Exit, LaunchSpec},
    started::Process,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

/// The engine of this machine.
pub async fn engine() -> Engine {
    match Engine::connect(None).await {
        Ok(engine) => engine,
        Err(none) => panic!("these tests need a container engine (tests/run starts one): {none}"),
    }
}

/// The engine's API, for looking at it from outside.
pub async fn api() -> bollard::Docker {
    let host = engine().await.version().host.clone();
    let api = bollard::Docker::connect_with_host(&host).expect("an address");
    api.negotiate_version().await.expect("an engine")
}

/// The probe's executable. Cargo has built it, where the tests of the whole workspace run.
pub fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        // This executable is in target/PROFILE/deps.
        let me = std::env::current_exe().expect("a path");
        let probe = me.ancestors().nth(2).expect("the profile's folder").join("probe");
        if !probe.exists() {
            build_probe();
        }
        probe
    })
}

fn build_probe() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--workspace", "--bin", "probe", "--quiet"]);
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    // What cargo tells a test of its package would make dependencies' build scripts run again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|p| text.starts_with(p)) {
            cargo.env_remove(&name);
        }
    }
    let built = cargo.status().expect("cargo");
    assert!(built.success(), "the probe does not build");
}

/// A launch of an image with everything at its default, in an instance of its own.
pub fn spec(image: impl Into<String>, command: &[&str]) -> LaunchSpec {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let instance = format!("test-{}", Uuid::now_v7());
    let bare = LaunchSpec::bare("subject".parse().unwrap(), command, instance);
    LaunchSpec { image: Some(image.into()), ..bare }
}

/// What a process wrote, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    pub exit: Exit,
}

/// Gives a process its input, and lets it run to its end.
pub async fn finish(process: Process, input: &str) -> Ran {
    let Process { mut stdin, mut stdout, mut stderr, handle, .. } = process;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let feed = async {
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let (_, read_out, read_err) =
        tokio::join!(feed, stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
    read_out.expect("standard output");
    read_err.expect("standard error");
    Ran {
        stdout: String::from_utf8_lossy(&out).into_owned(),
        stderr: String::from_utf8_lossy(&err).into_owned(),
        exit: handle.wait().await,
    }
}

/// Launches and lets it run to its end.
pub async fn run(engine: &Engine, spec: &LaunchSpec) -> Ran {
    finish(engine.launch(spec).await.expect("a launch"), "").await
}

/// The probe's report from inside a container of this launch.
pub async fn report(engine: &Engine, mut spec: LaunchSpec) -> Value {
    spec.image = Some(engine.pack(probe()).await.expect("an image of the probe"));
    spec.command = vec!["--print".to_owned()];
    let ran = run(engine, &spec).await;
    serde_json::from_str(&ran.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {} {:?}", ran.stdout, ran.stderr, ran.exit))
}

/// An image that holds bash and nothing else: its builtins are the tools of most tests.
pub async fn bash(engine: &Engine) -> String {
    engine.pack(Path::new("/bin/bash")).await.expect("an image of bash")
}

/// How many containers this instance has on the engine.
pub async fn count(engine: &Engine, instance: &str) -> usize {
    let all = engine.list().await.expect("a list");
    all.into_iter().filter(|container| container.instance == instance).count()
}

/// Waits until the engine has no container of this instance any more.
pub async fn wait_until_gone(engine: &Engine, instance: &str) {
    let gone = async {
        while count(engine, instance).await > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), gone).await.expect("to be removed");
}

/// Every string in an array.
pub fn strings(value: &Value) -> Vec<&str> {
    value.as_array().expect("an array").iter().map(|v| v.as_str().expect("a string")).collect()
}
