//! A container engine of one's own, which can be killed; and what must not be left over of it.

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

/// How long the engine may take to answer, and to clear up.
const PATIENCE: Duration = Duration::from_secs(120);

/// An engine that nobody else uses.
pub struct Ground {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Ground {
    /// Starts it.
    ///
    /// # Errors
    /// Where it does not start, with what it logged.
    pub fn start() -> anyhow::Result<Self> {
        ensure!(nix::unistd::Uid::effective().is_root(), "an engine is started by root alone");
        // A short path: a unix socket's may have 107 characters.
        let dir = tempfile::Builder::new().prefix("portcullis-ground.").tempdir_in("/tmp")?;
        let mut ground = Self { dir, daemon: None };
        ground.begin()?;
        Ok(ground)
    }

    /// Its socket's address.
    pub fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the daemon, for the first time or again.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log"))?;
        let _ = fs::remove_file(self.path("pid"));
        self.forget_containerd()?;
        // In a network of its own: a daemon without a bridge removes that of the machine's other one.
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

    /// Takes away the number of a containerd that is dead: it dies with its daemon, but where nobody
    /// reaps it, the next daemon takes it for alive.
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

    /// Kills the daemon alone: its containers run on, as far as they can without it.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn kill_daemon(&mut self) -> anyhow::Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// Kills all of it at once, as when the machine loses its power: the daemon, its containerd, every
    /// shim and every container.
    ///
    /// # Errors
    /// Where no daemon runs.
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

    /// What `docker` prints.
    ///
    /// # Errors
    /// Where it fails.
    pub fn docker(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("docker").args(["--host", &self.host()]).args(args).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// The containers that there are, running or not.
    ///
    /// # Errors
    /// Where the engine does not say.
    pub fn containers(&self) -> anyhow::Result<Vec<String>> {
        let all = self.docker(&["ps", "--all", "--quiet", "--no-trunc"])?;
        Ok(all.lines().map(str::to_owned).collect())
    }

    /// The processes of containers that run, from outside.
    pub fn servers(&self) -> Vec<i32> {
        let (mut found, shims) = (Vec::new(), self.processes());
        for &shim in &shims {
            if name(shim).is_some_and(|name| name.starts_with("containerd-shim")) {
                found.extend(below(shim));
            }
        }
        found
    }

    /// Every process of the engine: those that its folders are named to, and all below them.
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

    /// What is left of containers: themselves, shims, mounts, namespaces, cgroups.
    ///
    /// # Errors
    /// Where the engine does not say.
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
            // The engine's own are its namespace, and a layer that it was making when it was killed:
            // there is no container to either, and nobody but the engine could take them away.
            let engines = mount.ends_with("/netns/default") || mount.ends_with("-init/merged");
            let ours = of_container.iter().any(|part| mount.contains(part));
            if mount.starts_with(&own) && ours && !engines {
                left.push(format!("mount {mount}"));
            }
        }
        Ok(left)
    }

    /// Waits until nothing is left.
    ///
    /// # Errors
    /// Where something stays.
    #[allow(dead_code, reason = "the bench has this file, too")]
    pub fn wait_until_bare(&self) -> anyhow::Result<()> {
        self.wait_until_bare_but(|_| false).map(drop)
    }

    /// Waits until nothing is left but what is tolerated, and tells what that is.
    ///
    /// # Errors
    /// Where something else stays.
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
        // What a daemon that was killed has left mounted would keep the folder.
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
