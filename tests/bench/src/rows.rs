//! What is measured: the echo server alone, and behind proxies with more and more of the chain.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{cpu, load::Endpoint};

/// Where policies are, from this crate.
const POLICIES: [&str; 2] = ["../../policies", "policies"];
/// How long a process may take to be there, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

const LIMIT: &str = r#"
[[interceptors]]
use = "rate-limit"
limits = [{ per = ["client", "tool"], calls = 100000000, window = "1m" }]
"#;
const CHECKS: &str = r#"
[[interceptors]]
use = "schema"

[[interceptors]]
use = "secrets"
"#;
/// Policy and audit alone.
const OFF: &str = r#"
[[interceptors]]
use = "rate-limit"
mode = "off"

[[interceptors]]
use = "schema"
mode = "off"

[[interceptors]]
use = "secrets"
mode = "off"
"#;

/// One way to the tool.
pub struct Row {
    pub name: &'static str,
    pub endpoint: Endpoint,
    /// The proxy, where there is one.
    pub proxy: Option<u32>,
    /// The server and whatever it runs in.
    pub servers: Vec<u32>,
}

/// The proxy to measure: the one that is named, else `portcullis` beside this program.
///
/// # Errors
/// Where it was not built.
pub fn proxy(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let beside = || anyhow::Ok(std::env::current_exe()?.with_file_name("portcullis"));
    let binary = named.map_or_else(beside, |named| Ok(named.to_owned()))?;
    ensure!(
        binary.is_file(),
        "{} is not there: `cargo build --workspace --bins` makes it (with `--release`, where this was)",
        binary.display()
    );
    Ok(binary)
}

/// Processes that end with this.
#[derive(Default)]
pub struct Processes(Vec<Child>);

impl Processes {
    /// Kills all, with no time to clear up.
    pub fn kill(&mut self) {
        for mut child in self.0.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            if let Ok(pid) = i32::try_from(child.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
        for child in &mut self.0 {
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts all rows whose names are wanted (all, where none is).
///
/// # Errors
/// Where a process does not start, with what it logged.
pub fn start(
    binary: &Path,
    plugin: Option<&Path>,
    scratch: &Path,
    wanted: &[String],
    processes: &mut Processes,
) -> anyhow::Result<Vec<Row>> {
    let this = std::env::current_exe()?;
    let (pid, port) = server(processes)?;
    let remote = format!("url = \"http://127.0.0.1:{port}/mcp\"\n");
    let local = format!("command = [{this:?}, \"stdio\"]\nruntime = \"sandbox\"\n");
    let full = format!("{LIMIT}{CHECKS}");
    let mut proxies = vec![
        ("policy+audit", &remote, OFF.to_owned()),
        ("full chain", &remote, full.clone()),
        ("full chain, stdio", &local, full.clone()),
    ];
    if let Some(plugin) = plugin {
        let entry = format!(
            "\n[[interceptors]]\nuse = \"plugin\"\npath = {plugin:?}\nallow-unpinned = true\n"
        );
        proxies.insert(2, ("full chain + plugin", &remote, format!("{full}{entry}")));
    }

    let endpoint = Endpoint { port, path: "/mcp".into(), key: None };
    let mut rows = vec![Row { name: "direct", endpoint, proxy: None, servers: vec![pid] }];
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    for (at, (name, server, chain)) in proxies.into_iter().enumerate() {
        if wants(name) {
            let dir = scratch.join(at.to_string());
            let servers = if std::ptr::eq(server, &remote) { vec![pid] } else { Vec::new() };
            let mut prepared = Prepared::new(binary, &dir, server, &chain)?;
            let endpoint = prepared.client("bench")?;
            let proxy = prepared.run(processes).with_context(|| name.to_owned())?;
            rows.push(Row { name, endpoint, proxy: Some(proxy), servers });
        }
    }
    Ok(rows)
}

/// What is in front of the echo server over HTTP, with these entries after the full chain.
///
/// # Errors
/// Where the server does not start, or the files cannot be written.
pub fn prepare(
    binary: &Path,
    dir: &Path,
    entries: &str,
    processes: &mut Processes,
) -> anyhow::Result<Prepared> {
    let (_, port) = server(processes)?;
    let remote = format!("url = \"http://127.0.0.1:{port}/mcp\"\n");
    Prepared::new(binary, dir, &remote, &format!("{LIMIT}{CHECKS}{entries}"))
}

/// As [`prepare`], before the echo server over standard input and output, in the local sandbox.
///
/// # Errors
/// Where the files cannot be written.
pub fn prepare_stdio(binary: &Path, dir: &Path) -> anyhow::Result<Prepared> {
    let this = std::env::current_exe()?;
    let local = format!("command = [{this:?}, \"stdio\"]\nruntime = \"sandbox\"\n");
    Prepared::new(binary, dir, &local, &format!("{LIMIT}{CHECKS}"))
}

/// The echo server over HTTP: its process and its port.
pub fn server(processes: &mut Processes) -> anyhow::Result<(u32, u16)> {
    let this = std::env::current_exe()?;
    let mut server =
        Command::new(this).arg("serve").stdout(Stdio::piped()).spawn().context("the server")?;
    let out = server.stdout.take().context("the server's output")?;
    let pid = server.id();
    processes.0.push(server);
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    Ok((pid, line.trim().parse().context("the server's port")?))
}

/// The files of a proxy that does not run yet.
pub struct Prepared {
    binary: PathBuf,
    dir: PathBuf,
    config: PathBuf,
    port: u16,
}

impl Prepared {
    fn new(binary: &Path, dir: &Path, server: &str, chain: &str) -> anyhow::Result<Self> {
        fs::create_dir(dir)?;
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let own = dir.join("own.cedar");
        // What plugins are granted is theirs only where policy permits it.
        fs::write(&own, "permit (principal is Portcullis::Plugin, action, resource);\n")?;
        let mut policies: Vec<PathBuf> = POLICIES.iter().map(|path| here.join(path)).collect();
        if chain.contains("[interceptors.grants]") {
            policies.push(own);
        }
        // Free a moment ago; the proxy says so if it no longer is.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = dir.join("portcullis.toml");
        let text = format!(
            "[listen]\nhttp = \"127.0.0.1:{port}\"\n\n[policy]\npaths = {policies:?}\n\n\
             [servers.echo]\n{server}{chain}"
        );
        fs::write(&config, text)?;
        Ok(Self { binary: binary.to_owned(), dir: dir.to_owned(), config, port })
    }

    /// The files of a proxy that serves everybody, with these servers, and permits everything. Nothing
    /// is in its chain but policy and audit.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn open(binary: &Path, dir: &Path, servers: &str) -> anyhow::Result<Self> {
        fs::create_dir(dir)?;
        fs::write(dir.join("all.cedar"), "@id(\"all\")\npermit (principal, action, resource);\n")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = dir.join("portcullis.toml");
        let text = format!(
            "[listen]\nhttp = \"127.0.0.1:{port}\"\nanonymous = true\n\n\
             [policy]\npaths = [\"all.cedar\"]\n\n{servers}\n{OFF}"
        );
        fs::write(&config, text)?;
        Ok(Self { binary: binary.to_owned(), dir: dir.to_owned(), config, port })
    }

    /// The way of anybody to one server.
    pub fn to(&self, server: &str) -> Endpoint {
        Endpoint { port: self.port, path: format!("/servers/{server}/mcp").into(), key: None }
    }

    /// The way of a client of that name to the server, with a key of its own.
    ///
    /// # Errors
    /// Where there can be no such client.
    pub fn client(&mut self, name: &str) -> anyhow::Result<Endpoint> {
        // The readers of the policies may call what calls itself read-only.
        let added = Command::new(&self.binary)
            .args(["client", "add", name, "--group", "readers", "-c"])
            .arg(&self.config)
            .output()
            .with_context(|| format!("running {}", self.binary.display()))?;
        ensure!(added.status.success(), "{name}: {}", String::from_utf8_lossy(&added.stderr));
        let key = String::from_utf8(added.stdout)?.trim().to_owned();
        Ok(Endpoint { port: self.port, path: "/servers/echo/mcp".into(), key: Some(key) })
    }

    /// Starts the proxy and waits until it can be asked; its process.
    ///
    /// # Errors
    /// Where it does not start, with what it logged.
    pub fn run(&self, processes: &mut Processes) -> anyhow::Result<u32> {
        self.run_in(Command::new(&self.binary), PATIENCE, processes)
    }

    /// As [`Self::run`], in a tool that runs the program at the end of its command in its own
    /// process.
    ///
    /// # Errors
    /// As for [`Self::run`].
    pub fn run_under(
        &self,
        mut tool: Command,
        patience: Duration,
        processes: &mut Processes,
    ) -> anyhow::Result<u32> {
        tool.arg(&self.binary);
        self.run_in(tool, patience, processes)
    }

    fn run_in(
        &self,
        mut command: Command,
        patience: Duration,
        processes: &mut Processes,
    ) -> anyhow::Result<u32> {
        let log = self.dir.join("log");
        let proxy = command
            .args(["run", "-c"])
            .arg(&self.config)
            // So that folders of secrets are where they are looked for.
            .env_remove("RUNTIME_DIRECTORY")
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("running {}", command.get_program().display()))?;
        let pid = proxy.id();
        processes.0.push(proxy);
        let end = Instant::now() + patience;
        while !self.is_ready() {
            let over = processes.0.last_mut().is_none_or(|p| !matches!(p.try_wait(), Ok(None)));
            if over || Instant::now() > end {
                bail!("the proxy is not there:\n{}", fs::read_to_string(&log)?);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(pid)
    }

    fn is_ready(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let host = format!("127.0.0.1:{}", self.port);
            let request =
                format!("GET /readyz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line.contains(" 200 "))
        };
        ask().unwrap_or(false)
    }
}

impl Row {
    /// Looks for the server that a proxy started with the first call.
    pub fn find_server(&mut self) {
        if let Some(proxy) = self.proxy
            && self.servers.is_empty()
        {
            self.servers = cpu::descendants(proxy);
        }
    }
}
