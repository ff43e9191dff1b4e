//! Other engines and OCI runtimes: Podman, and gVisor below Docker. Each test starts and ends its
//! own.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use portcullis_runtime::{container::Engine, process::LaunchSpec};
use rmcp::{ServiceExt, model::CallToolRequestParams};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{bash, count, engine, probe, report, run, spec, strings, wait_until_gone};

/// An engine of a test's own.
struct Own {
    process: Child,
    folder: TempDir,
}

impl Own {
    fn folder() -> TempDir {
        // A short path: a unix socket's may have 107 characters.
        tempfile::Builder::new().prefix("pe").tempdir_in("/tmp").unwrap()
    }

    async fn started(folder: TempDir, command: &mut Command) -> (Self, Engine) {
        let log = fs::File::create(folder.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // What it starts ends with it.
        let process = command.process_group(0).spawn();
        let process =
            process.unwrap_or_else(|error| panic!("{command:?} (tests/run installs it): {error}"));
        let mut own = Self { process, folder };
        let host = format!("unix://{}", own.folder.path().join("e.sock").display());
        let answers = async {
            loop {
                match Engine::connect(Some(&host)).await {
                    Ok(engine) => return engine,
                    Err(none) => {
                        let ended = own.process.try_wait().unwrap();
                        assert!(ended.is_none(), "{none}: {}", own.log());
                    }
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let answered = tokio::time::timeout(Duration::from_secs(120), answers).await;
        let engine = answered.expect("an engine that answers");
        (own, engine)
    }

    /// Podman's service, as it is installed, with a storage of its own.
    async fn podman() -> (Self, Engine) {
        let folder = Self::folder();
        let at = |name: &str| folder.path().join(name);
        let mut command = Command::new("podman");
        command.arg("--root").arg(at("root")).arg("--runroot").arg(at("run"));
        // Debian's crun knows no machine that has both versions of control groups.
        command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
        command.args(["--events-backend", "file", "system", "service", "--time", "0"]);
        command.arg(format!("unix://{}", at("e.sock").display()));
        Self::started(folder, &mut command).await
    }

    /// A Docker engine that has gVisor. In a network of its own, so that it leaves the bridges of
    /// others alone.
    async fn docker_with_gvisor() -> (Self, Engine) {
        let folder = Self::folder();
        let at = |name: &str| folder.path().join(name);
        // Without KVM; and with no network but loopback: Debian's runsc takes the network of a newer
        // kernel for the machine's own, and refuses it.
        let runsc = which("runsc");
        let arguments = ["--platform=ptrace", "--network=none"];
        let runtimes =
            json!({ "runtimes": { "runsc": { "path": runsc, "runtimeArgs": arguments } } });
        fs::write(at("daemon.json"), runtimes.to_string()).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--net", "dockerd", "--bridge", "none", "--iptables=false"]);
        command.arg("--config-file").arg(at("daemon.json"));
        command.arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec"));
        command.arg("--pidfile").arg(at("pid"));
        command.arg("--host").arg(format!("unix://{}", at("e.sock").display()));
        Self::started(folder, &mut command).await
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(10).collect();
        lines.join("\n")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.process.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGTERM);
        let _ = self.process.wait();
        // What it has mounted goes with it; what stays would keep its folder from being removed.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let below = below.filter(|place| Path::new(place).starts_with(self.folder.path()));
        for place in below.collect::<Vec<_>>().into_iter().rev() {
            let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn which(program: &str) -> String {
    let folders = ["/usr/bin", "/usr/local/bin", "/usr/sbin"];
    let found = folders.iter().map(|folder| format!("{folder}/{program}"));
    let found = found.into_iter().find(|path| Path::new(path).exists());
    found.unwrap_or_else(|| panic!("{program} is not installed (tests/run does that)"))
}

#[tokio::test]
async fn podman_and_docker_confine_equally() {
    let (_own, podman) = Own::podman().await;
    assert_eq!(podman.version().name, "Podman");
    let here = report(&podman, spec("", &[])).await;
    let there = report(&engine().await, spec("", &[])).await;
    for promise in [
        "uid",
        "gid",
        "capabilities",
        "no_new_privs",
        "seccomp",
        "exec_from_tmp",
        "interfaces",
        "connects",
        "sockets",
        "calls",
        "host_files",
        "limits",
    ] {
        assert_eq!(here[promise], there[promise], "{promise}");
    }
    // Podman makes these two writable; ours are as small as /tmp and hold no programs.
    let known = ["/dev/mqueue", "/dev/shm", "/run", "/tmp", "/var/run", "/var/tmp"];
    let writable = strings(&here["writable"]);
    assert!(writable.iter().all(|place| known.contains(place)), "{writable:?}");
    for (file, outcome) in here["proc_writes"].as_object().unwrap() {
        assert_ne!(outcome, "ok", "{file}");
    }
}

#[tokio::test]
async fn server_under_podman_answers_and_leaves_nothing() {
    let (_own, podman) = Own::podman().await;
    let served = spec(podman.pack(probe()).await.unwrap(), &[]);
    let process = podman.launch(&served).await.unwrap();
    let client = ().serve((process.stdout, process.stdin)).await.unwrap();
    let answer = client.call_tool(CallToolRequestParams::new("probe")).await.unwrap();
    assert_eq!(serde_json::to_value(answer).unwrap()["structuredContent"]["seccomp"], 2);
    client.cancel().await.unwrap();
    process.handle.stop(Duration::from_secs(5)).await;
    wait_until_gone(&podman, &served.instance).await;

    let image = bash(&podman).await;
    let script = spec(image.clone(), &["-c", "read a && echo $a; exit 7"]);
    let process = podman.launch(&script).await.unwrap();
    let ran = crate::support::finish(process, "heard\n").await;
    assert_eq!((ran.stdout.as_str(), ran.exit.code), ("heard\n", 7), "{}", ran.stderr);
    wait_until_gone(&podman, &script.instance).await;

    // One that is let go of.
    let held = spec(image.clone(), &["-c", "read"]);
    drop(podman.launch(&held).await.unwrap());
    wait_until_gone(&podman, &held.instance).await;

    let gvisor = LaunchSpec { runtime: Some("runsc"), ..spec(image, &["-c", "read"]) };
    let refused = podman.launch(&gvisor).await.unwrap_err();
    assert!(refused.what.contains("cannot select an OCI runtime"), "{refused:?}");
    assert!(refused.remedy.unwrap().contains("containers.conf"));
    assert_eq!(count(&podman, &gvisor.instance).await, 0);
}

#[tokio::test]
async fn podman_containers_have_the_same_egress() {
    let (_own, podman) = Own::podman().await;
    crate::egress::assert_only_listed_hosts_are_reachable(&podman).await;
}

#[tokio::test]
async fn configured_gvisor_runs_the_server() {
    let (own, docker) = Own::docker_with_gvisor().await;
    let script = "read v < /proc/version; echo $v; echo x > /f; echo y > /tmp/f && echo $(</tmp/f)";
    let image = bash(&docker).await;
    let gvisor = LaunchSpec { runtime: Some("runsc"), ..spec(image, &["-c", script]) };
    let ran = run(&docker, &gvisor).await;
    // What gVisor says of itself, whatever the machine's kernel is.
    let said: Vec<&str> = ran.stdout.lines().collect();
    assert!(said[0].starts_with("Linux version 4.4.0"), "{ran:?} {}", own.log());
    assert_eq!(said[1..], ["y"], "{ran:?}");
    assert!(ran.stderr.contains("/f: "), "{ran:?}");
    wait_until_gone(&docker, &gvisor.instance).await;
}

#[tokio::test]
async fn engine_without_gvisor_refuses_the_launch() {
    let engine = engine().await;
    let mut gvisor = spec(bash(&engine).await, &["-c", "read"]);
    gvisor.runtime = Some("runsc");
    let refused = engine.launch(&gvisor).await.unwrap_err();
    assert!(
        refused.what.contains(
            "the engine does not have the OCI runtime `runsc`, only \
        "
        ),
        "{refused:?}"
    );
    assert!(refused.remedy.unwrap().contains("daemon.json"));
    assert_eq!(count(&engine, &gvisor.instance).await, 0);
}
