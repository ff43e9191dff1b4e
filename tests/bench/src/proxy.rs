//! The processes of a measurement: echo servers, floors, nginx and proxies.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::load::Endpoint;

/// How long a process may take to start or to end.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const RATE_LIMIT: &str = r#"
[[interceptors]]
use = "rate-limit"
limits = [{ per = ["client", "tool"], calls = 100000000, window = "1m" }]
"#;
pub const SCHEMA: &str = "\n[[interceptors]]\nuse = \"schema\"\n";
pub const SECRETS: &str = "\n[[interceptors]]\nuse = \"secrets\"\n";

/// A chain of some of the interceptors `rate-limit`, `schema` and `secrets`, beside policy and audit.
pub fn chain(entries: &[&str]) -> String {
    let mut text = entries.concat();
    for name in ["rate-limit", "schema", "secrets"] {
        if !text.contains(&format!("\"{name}\"")) {
            let _ = write!(text, "\n[[interceptors]]\nuse = \"{name}\"\nmode = \"off\"\n");
        }
    }
    text
}

/// All of them.
pub fn full_chain() -> String {
    chain(&[RATE_LIMIT, SCHEMA, SECRETS])
}

/// Finds the proxy to measure: the file that is named, else `portcullis` beside this program.
///
/// # Errors
/// If the file does not exist.
pub fn binary(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let beside = || anyhow::Ok(std::env::current_exe()?.with_file_name("portcullis"));
    let binary = named.map_or_else(beside, |named| Ok(std::path::absolute(named)?))?;
    ensure!(
        binary.is_file(),
        "{} does not exist. Build it with `cargo build`, with `--release` for a release build, or \
         name another file with `--binary`",
        binary.display()
    );
    Ok(binary)
}

/// A folder beside this program that is removed at the end. Not in /tmp, which may be memory: audit
/// records go to a disk.
///
/// # Errors
/// If it cannot be made.
pub fn scratch() -> anyhow::Result<tempfile::TempDir> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("this program is in no folder")?;
    Ok(tempfile::Builder::new().prefix("bench-").tempdir_in(folder)?)
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

/// Starts this program in another role, which prints its port.
///
/// # Errors
/// If it does not start.
pub fn own(args: &[&str], processes: &mut Processes) -> anyhow::Result<(u32, u16)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(args);
    listening(command, processes)
}

/// Starts a program that prints its port.
///
/// # Errors
/// If it does not start.
pub fn listening(mut command: Command, processes: &mut Processes) -> anyhow::Result<(u32, u16)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take().context("the program has no output")?;
    let pid = child.id();
    processes.0.push(child);
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    Ok((pid, line.trim().parse().with_context(|| format!("{command:?} printed no port"))?))
}

/// Starts the echo server over HTTP: its process and its port.
///
/// # Errors
/// If it does not start.
pub fn server(processes: &mut Processes) -> anyhow::Result<(u32, u16)> {
    own(&["serve"], processes)
}

/// Starts nginx before a server, which passes each request on; none if nginx is not installed.
///
/// # Errors
/// If it does not start.
pub fn nginx(
    dir: &Path,
    upstream: u16,
    processes: &mut Processes,
) -> anyhow::Result<Option<(u32, u16)>> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
    let Some(program) =
        std::env::split_paths(&path).map(|dir| dir.join("nginx")).find(|path| path.is_file())
    else {
        return Ok(None);
    };
    fs::create_dir(dir)?;
    let port = free_port()?;
    let config = dir.join("nginx.conf");
    fs::write(
        &config,
        format!(
            "daemon off;\nworker_processes 2;\npid {0}/pid;\nerror_log {0}/log;\n\
             events {{ worker_connections 1024; }}\nhttp {{\n  access_log off;\n  \
             client_max_body_size 0;\n  client_body_buffer_size 2m;\n  \
             client_body_temp_path {0}/body;\n  proxy_temp_path {0}/proxy;\n  \
             fastcgi_temp_path {0}/a;\n  uwsgi_temp_path {0}/b;\n  scgi_temp_path {0}/c;\n  \
             proxy_buffers 16 128k;\n  proxy_buffer_size 128k;\n  proxy_busy_buffers_size 256k;\n  \
             keepalive_requests 1000000000;\n  \
             upstream echo {{ server 127.0.0.1:{upstream}; keepalive 256; \
             keepalive_requests 1000000000; }}\n  \
             server {{\n    listen 127.0.0.1:{port};\n    location / {{\n      \
             proxy_pass http://echo;\n      proxy_http_version 1.1;\n      \
             proxy_set_header Connection \"\";\n    }}\n  }}\n}}\n",
            dir.display()
        ),
    )?;
    let mut command = Command::new(program);
    command.arg("-c").arg(&config).arg("-p").arg(dir).stdin(Stdio::null());
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let pid = child.id();
    processes.0.push(child);
    let end = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(Instant::now() < end, "nginx does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Some((pid, port)))
}

/// A port that was free a moment ago; a program that cannot take it reports that. It is below the
/// ports that Linux gives to connections, which may be many.
fn free_port() -> anyhow::Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id().wrapping_mul(37) % u32::from(COUNT))?;
    for _ in 0..COUNT {
        let at = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + own.wrapping_add(at) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port from {FIRST} on is free")
}

/// Calls in flight at one server. By default 64, and 64 more wait.
const CONCURRENT: usize = 256;

/// The entry of an echo server over HTTP.
pub fn remote(name: &str, port: u16) -> String {
    let url = format!("http://127.0.0.1:{port}/mcp");
    format!("[servers.{name}]\nurl = \"{url}\"\nconcurrent = {CONCURRENT}\n")
}

/// The entry of an echo server over standard input and output, in the local sandbox.
///
/// # Errors
/// If the path of this program is unknown.
pub fn local(name: &str) -> anyhow::Result<String> {
    let this = std::env::current_exe()?;
    Ok(format!(
        "[servers.{name}]\ncommand = [{this:?}, \"stdio\"]\nruntime = \"sandbox\"\n\
         concurrent = {CONCURRENT}\n"
    ))
}

/// What a proxy is configured with.
#[derive(Default)]
pub struct Setup {
    /// Entries of servers.
    pub servers: String,
    /// Entries of interceptors.
    pub chain: String,
    /// Policies beside the ten that every proxy has.
    pub policies: String,
    /// Further sections.
    pub more: String,
}

/// The files of a proxy that does not run yet.
pub struct Prepared {
    binary: PathBuf,
    dir: PathBuf,
    config: PathBuf,
    port: u16,
}

impl Prepared {
    /// Writes the files.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn new(binary: &Path, dir: &Path, setup: &Setup) -> anyhow::Result<Self> {
        fs::create_dir(dir)?;
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let own = dir.join("own.cedar");
        fs::write(&own, &setup.policies)?;
        let mut policies = vec![here.join("../../policies"), here.join("policies")];
        if !setup.policies.is_empty() {
            policies.push(own);
        }
        Self::write(binary, dir, "", &policies, setup)
    }

    /// The files of a proxy that serves everybody and permits everything. Its chain is policy and
    /// audit.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn open(binary: &Path, dir: &Path, servers: &str) -> anyhow::Result<Self> {
        fs::create_dir(dir)?;
        let all = dir.join("all.cedar");
        fs::write(&all, "@id(\"all\")\npermit (principal, action, resource);\n")?;
        let setup = Setup { servers: servers.into(), chain: chain(&[]), ..Setup::default() };
        Self::write(binary, dir, "anonymous = true\n", &[all], &setup)
    }

    /// The files of a proxy with the full chain and these entries after it, and an echo server that
    /// runs.
    ///
    /// # Errors
    /// If the server does not start or the files cannot be written.
    pub fn with_plugins(
        binary: &Path,
        dir: &Path,
        entries: &str,
        processes: &mut Processes,
    ) -> anyhow::Result<Self> {
        let (_, port) = server(processes)?;
        let setup = Setup {
            servers: remote("echo", port),
            chain: full_chain() + entries,
            // A grant also needs a policy.
            policies: "permit (principal is Portcullis::Plugin, action, resource);\n".into(),
            ..Setup::default()
        };
        Self::new(binary, dir, &setup)
    }

    fn write(
        binary: &Path,
        dir: &Path,
        listen: &str,
        policies: &[PathBuf],
        setup: &Setup,
    ) -> anyhow::Result<Self> {
        let port = free_port()?;
        let config = dir.join("portcullis.toml");
        let text = format!(
            "[listen]\nhttp = \"127.0.0.1:{port}\"\n{listen}\n[policy]\npaths = {policies:?}\n\n\
             {}\n{}\n{}",
            setup.more, setup.servers, setup.chain
        );
        fs::write(&config, text)?;
        Ok(Self { binary: binary.to_owned(), dir: dir.to_owned(), config, port })
    }

    /// The endpoint of a server for clients without a key.
    pub fn to(&self, server: &str) -> Endpoint {
        Endpoint { port: self.port, path: format!("/servers/{server}/mcp").into(), key: None }
    }

    /// The endpoint of the server `echo` for a new client with a key.
    ///
    /// # Errors
    /// If the client cannot be added.
    pub fn client(&mut self, name: &str) -> anyhow::Result<Endpoint> {
        // Readers may call tools that declare themselves read-only.
        let added = Command::new(&self.binary)
            .args(["client", "add", name, "--group", "readers", "-c"])
            .arg(&self.config)
            .output()
            .with_context(|| format!("running {}", self.binary.display()))?;
        ensure!(added.status.success(), "{name}: {}", String::from_utf8_lossy(&added.stderr));
        let key = String::from_utf8(added.stdout)?.trim().to_owned();
        Ok(Endpoint { key: Some(key), ..self.to("echo") })
    }

    /// Starts the proxy and waits until it is ready; its process.
    ///
    /// # Errors
    /// If it does not start, with its log.
    pub fn run(&self, processes: &mut Processes) -> anyhow::Result<u32> {
        self.run_in(Command::new(&self.binary), PATIENCE, processes)
    }

    /// Like [`Self::run`], under a tool that runs the program at the end of its command in its own
    /// process.
    ///
    /// # Errors
    /// Like [`Self::run`].
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
            // Folders of secrets are then where `bench-components kills` expects them.
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
                bail!("the proxy does not start:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(pid)
    }

    /// What the proxy logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
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
