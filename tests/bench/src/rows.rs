//! What is measured: the echo server alone, and behind proxies with more and more of the chain.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
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

/// One way to the tool.
pub struct Row {
    pub name: &'static str,
    pub endpoint: Endpoint,
    /// The proxy, where there is one.
    pub proxy: Option<u32>,
    /// The server and whatever it runs in.
    pub servers: Vec<u32>,
}

/// Processes that end with this.
#[derive(Default)]
pub struct Processes(Vec<Child>);

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
/// Where a process does not start, with the end of what it logged.
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
        ("policy+audit", &remote, String::new()),
        ("full chain", &remote, full.clone()),
        ("full chain, stdio", &local, full.clone()),
    ];
    if let Some(plugin) = plugin {
        let entry = format!(
            "\n[[interceptors]]\nuse = \"plugin\"\npath = {plugin:?}\nallow-unpinned = true\n"
        );
        proxies.insert(2, ("full chain + plugin", &remote, format!("{full}{entry}")));
    }

    let endpoint = Endpoint { port, path: "/mcp", key: None };
    let mut rows = vec![Row { name: "direct", endpoint, proxy: None, servers: vec![pid] }];
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    for (at, (name, server, chain)) in proxies.into_iter().enumerate() {
        if wants(name) {
            let dir = scratch.join(at.to_string());
            let servers = if std::ptr::eq(server, &remote) { vec![pid] } else { Vec::new() };
            rows.push(proxy(binary, &dir, name, server, &chain, servers, processes)?);
        }
    }
    Ok(rows)
}

/// Starts one proxy with these entries after the full chain.
///
/// # Errors
/// As [`start`].
pub fn one(
    binary: &Path,
    scratch: &Path,
    name: &'static str,
    entries: &str,
    processes: &mut Processes,
) -> anyhow::Result<Row> {
    let (pid, port) = server(processes)?;
    let remote = format!("url = \"http://127.0.0.1:{port}/mcp\"\n");
    let chain = format!("{LIMIT}{CHECKS}{entries}");
    proxy(binary, &scratch.join("one"), name, &remote, &chain, vec![pid], processes)
}

/// The echo server over HTTP: its process and its port.
fn server(processes: &mut Processes) -> anyhow::Result<(u32, u16)> {
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

fn proxy(
    binary: &Path,
    dir: &Path,
    name: &'static str,
    server: &str,
    chain: &str,
    servers: Vec<u32>,
    processes: &mut Processes,
) -> anyhow::Result<Row> {
    fs::create_dir(dir)?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let policies: Vec<PathBuf> = POLICIES.iter().map(|path| here.join(path)).collect();
    // Free a moment ago; the proxy says so if it no longer is.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let config = dir.join("portcullis.toml");
    let text = format!(
        "[listen]\nhttp = \"127.0.0.1:{port}\"\n\n[policy]\npaths = {policies:?}\n\n\
         [servers.echo]\n{server}{chain}"
    );
    fs::write(&config, text)?;

    // The readers of the policies may call what calls itself read-only.
    let added = Command::new(binary)
        .args(["client", "add", "bench", "--group", "readers", "-c"])
        .arg(&config)
        .output()
        .with_context(|| format!("running {}", binary.display()))?;
    ensure!(added.status.success(), "{name}: {}", String::from_utf8_lossy(&added.stderr));
    let key = String::from_utf8(added.stdout)?.trim().to_owned();

    let log = dir.join("log");
    let proxy = Command::new(binary)
        .args(["run", "-c"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?)
        .spawn()?;
    let pid = proxy.id();
    processes.0.push(proxy);
    let end = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        let over = processes.0.last_mut().is_none_or(|p| !matches!(p.try_wait(), Ok(None)));
        if over || Instant::now() > end {
            bail!("{name}: the proxy is not there:\n{}", fs::read_to_string(&log)?);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let endpoint = Endpoint { port, path: "/servers/echo/mcp", key: Some(key) };
    Ok(Row { name, endpoint, proxy: Some(pid), servers })
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
