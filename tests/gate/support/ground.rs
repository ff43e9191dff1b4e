//! A container engine of the test, which can be killed, and checks for what it leaves behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Timeout of the engine's answers and of its cleanup.
const PATIENCE: Duration = Duration::from_secs(120);

/// A container engine for one test.
pub struct Ground {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Ground {
    /// Starts an engine.
    ///
    /// # Errors
    /// An error with the log if the engine does not start.
    pub fn start() -> anyhow::Result<Self> {
        ensure!(nix::unistd::Uid::effective().is_root(), "an engine is started by root alone");
        // A short path: the path of a unix socket is limited to 107 characters.
        let dir = tempfile::Builder::new().prefix("portcullis-ground.").tempdir_in("/tmp")?;
        let mut ground = Self { dir, daemon: None };
        ground.begin()?;
        Ok(ground)
    }

    /// Address of the engine's socket.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the daemon, for the first time or again.
    ///
    /// # Errors
    /// An error if the daemon does not answer.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log"))?;
        let _ = fs::remove_file(self.path("pid"));
        self.forget_containerd()?;
        // In its own network namespace: without a bridge, it removes that of the other daemon.
        let daemon = Command::new("unshare")
            .args(["--net", "dockerd", "--data-root"])
            .arg(self.path("data"))
            .arg("--exec-root")
            .arg(self.path("exec"))
            .arg("--pidfile")
            .arg(self.path("pid"))
            .args(["--host", &self.host(), "--bridge", "none", "--iptables=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("`dockerd`")?;
        self.daemon = Some(daemon);
        let end = Instant::now() + PATIENCE;
        while self.docker(&["version"]).is_err() {
            let over = self.daemon.as_mut().is_none_or(|d| !matches!(d.try_wait(), Ok(None)));
            if over || Instant::now() > end {
                let log = fs::read_to_string(self.path("log")).unwrap_or_default();
                let last: Vec<_> = log.lines().rev().take(5).collect();
                bail!("the engine does not start: {last:#?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Removes the pid file of a dead containerd. It dies with its daemon, but if it is not reaped,
    /// the next daemon considers it alive.
    fn forget_containerd(&self) -> anyhow::Result<()> {
        let file = self.path("exec/containerd/containerd.pid");
        let end = Instant::now() + PATIENCE;
        while let Ok(pid) = fs::read_to_string(&file) {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            let state = stat.rsplit_once(") ").map_or("X", |(_, rest)| rest);
            if state.starts_with(['Z', 'X']) {
                fs::remove_file(&file)?;
            }
            ensure!(Instant::now() < end, "containerd outlives its daemon");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills only the daemon: its containers continue as far as they can without it.
    ///
    /// # Errors
    /// An error if the daemon does not run.
    pub fn kill_daemon(&mut self) -> anyhow::Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// Kills the whole engine at once, as a power loss does: the daemon, its containerd, every shim
    /// and every container.
    ///
    /// # Errors
    /// An error if no daemon runs.
    pub fn lose_power(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        self.kill_daemon()?;
        loop {
            let left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "these do not die: {left:?}");
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Standard output of `docker`.
    ///
    /// # Errors
    /// An error if `docker` fails.
    pub fn docker(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("docker").args(["--host", &self.host()]).args(args).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// All containers, running or not.
    ///
    /// # Errors
    /// An error if the engine does not answer.
    pub fn containers(&self) -> anyhow::Result<Vec<String>> {
        let all = self.docker(&["ps", "--all", "--quiet", "--no-trunc"])?;
        Ok(all.lines().map(str::to_owned).collect())
    }

    /// Processes of running containers, seen from the host.
    pub fn servers(&self) -> Vec<i32> {
        let (mut found, shims) = (Vec::new(), self.processes());
        for &shim in &shims {
            if name(shim).is_some_and(|name| name.starts_with("containerd-shim")) {
                found.extend(below(shim));
            }
        }
        found
    }

    /// All processes of the engine: those with its folders as arguments, and their descendants.
    fn processes(&self) -> Vec<i32> {
        let own = self.dir.path().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for pid in pids() {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&own) && name(pid).is_some_and(is_engines) {
                found.push(pid);
                found.extend(below(pid));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Remains of containers: containers, shims, mounts, namespaces, cgroups.
    ///
    /// # Errors
    /// An error if the engine does not answer.
    pub fn left(&self) -> anyhow::Result<Vec<String>> {
        let mut left: Vec<String> =
            self.containers()?.iter().map(|id| format!("container {id}")).collect();
        for (kind, args) in [
            ("network", &["network", "ls", "--quiet", "--filter", "type=custom"][..]),
            ("volume", &["volume", "ls", "--quiet"]),
        ] {
            left.extend(self.docker(args)?.lines().map(|id| format!("{kind} {id}")));
        }
        for pid in self.processes() {
            if name(pid).is_some_and(|name| name.starts_with("containerd-shim")) {
                left.push(format!("shim {pid}"));
            }
        }
        let own = self.dir.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            let of_container = ["/overlay2/", "/containers/", "/vfs/", "/netns/"];
            // The engine itself keeps its namespace, and a layer that it was making when killed.
            // Neither belongs to a container, and only the engine could remove them.
            let engines = mount.ends_with("/netns/default") || mount.ends_with("-init/merged");
            let ours = of_container.iter().any(|part| mount.contains(part));
            if mount.starts_with(&own) && ours && !engines {
                left.push(format!("mount {mount}"));
            }
        }
        Ok(left)
    }

    /// Waits until no remains are left.
    ///
    /// # Errors
    /// An error if remains stay.
    #[allow(dead_code, reason = "the bench has this file, too")]
    pub fn wait_until_bare(&self) -> anyhow::Result<()> {
        self.wait_until_bare_but(|_| false).map(drop)
    }

    /// Waits until only tolerated remains are left, and returns them.
    ///
    /// # Errors
    /// An error if other remains stay.
    pub fn wait_until_bare_but(
        &self,
        tolerated: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Vec<String>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = self.left()?;
            if left.iter().all(|left| tolerated(left)) {
                return Ok(left);
            }
            ensure!(Instant::now() < end, "left over: {left:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let pid = i32::try_from(daemon.id()).unwrap_or_default();
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end && matches!(daemon.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // Mounts that a killed daemon left would keep the folder.
        let own = self.dir.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mount in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if mount.starts_with(&own) {
                let _ = Command::new("umount").args(["-l", mount]).status();
            }
        }
    }
}

/// All processes of this machine.
pub fn pids() -> Vec<i32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The descendants of a process.
fn below(pid: i32) -> Vec<i32> {
    let (mut found, mut at) = (vec![pid], 0);
    while let Some(&pid) = found.get(at) {
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        at += 1;
    }
    found.remove(0);
    found
}

fn name(pid: i32) -> Option<String> {
    let name = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm")).ok()?;
    Some(name.trim().to_owned())
}

fn is_engines(name: String) -> bool {
    name.starts_with("containerd") || name.starts_with("dockerd")
}
