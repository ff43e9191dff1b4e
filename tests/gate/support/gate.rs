//! A running proxy.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::watch,
};

use super::{PERMIT_ALL, agent::Agent, in_time, new_mark, portcullis, root, server};

/// A config, before anything runs.
pub struct Setup {
    body: String,
    listen: String,
    policies: String,
    anonymous: bool,
    launches: bool,
    env: Vec<(String, String)>,
    mark: String,
    folder: TempDir,
}

/// Permits starts of servers, in addition to the test's policies.
const MACHINE: &str = "@id(\"machine\")\npermit (principal, action in Portcullis::Action::\"from_proxy\", resource)\nwhen { resource.name != \"\" };\n";

impl Setup {
    /// A config with this body after `state-dir` and `[listen]`. In it `{mark}`, `{crooked}`,
    /// `{lister}`, `{one-era}`, `{recorder}`, `{scripted}` and `{folder}` are replaced. Unless the test says
    /// otherwise, clients need no key and policies permit everything.
    pub fn new(body: &str) -> Self {
        Self {
            body: body.into(),
            listen: String::new(),
            policies: PERMIT_ALL.into(),
            anonymous: true,
            launches: true,
            env: Vec::new(),
            mark: new_mark(),
            folder: tempfile::Builder::new().prefix("gate.").tempdir().unwrap(),
        }
    }

    /// A config with the notes server in the sandbox, which starts fastest.
    pub fn notes() -> Self {
        Self::new(
            r#"
            [servers.notes]
            command = ["portcullis", "example-server", "notes"]
            runtime = "sandbox"
            env = { GATE = "{mark}" }
            "#,
        )
    }

    /// A config with the server that misbehaves on demand.
    pub fn crooked(more: &str) -> Self {
        Self::new(&format!(
            r#"
            [servers.crooked]
            command = ["{{crooked}}"]
            runtime = "sandbox"
            env = {{ GATE = "{{mark}}" }}
            {more}
            "#
        ))
    }

    /// As [`Self::crooked`], and the server delays methods as [`Written::hold`] says.
    pub fn holding(more: &str) -> Self {
        let setup = Self::new(&format!(
            r#"
            [servers.crooked]
            command = ["{{crooked}}"]
            runtime = "sandbox"
            era = "legacy"
            env = {{ GATE = "{{mark}}", WAITS = "/waits" }}
            mounts = ["{{folder}}/waits:/waits"]
            {more}
            "#
        ));
        setup.file("waits/nothing", "")
    }

    /// A config with the server that sends every server request, in the eras that it speaks.
    pub fn everything(era: &str) -> Self {
        Self::new(&format!(
            r#"
            [servers.everything]
            command = ["{{everything}}", "--era", "{era}"]
            runtime = "sandbox"
            env = {{ GATE = "{{mark}}" }}
            "#
        ))
    }

    /// The quickstart's files, on a free port.
    pub fn quickstart() -> Written {
        let folder = tempfile::Builder::new().prefix("gate.").tempdir().unwrap();
        let from = root().join("examples/quickstart");
        let config = std::fs::read_to_string(from.join("portcullis.toml")).unwrap();
        assert!(config.contains("127.0.0.1:8811"));
        let config = config.replace("127.0.0.1:8811", "127.0.0.1:0");
        std::fs::write(folder.path().join("portcullis.toml"), config).unwrap();
        std::fs::create_dir(folder.path().join("policies")).unwrap();
        for policy in std::fs::read_dir(from.join("policies")).unwrap() {
            let policy = policy.unwrap();
            let to = folder.path().join("policies").join(policy.file_name());
            std::fs::copy(policy.path(), to).unwrap();
        }
        Written { env: Vec::new(), mark: new_mark(), folder }
    }

    /// Disables the redaction of secrets in responses, so that a test sees them.
    pub fn shown(mut self) -> Self {
        self.body.insert_str(0, "[[interceptors]]\nuse = \"secrets\"\nresponse = \"off\"\n");
        self
    }

    /// Disables an interceptor that is on by default, for tests of the stages after it.
    pub fn without(mut self, interceptor: &str) -> Self {
        let entry = format!("[[interceptors]]\nuse = \"{interceptor}\"\nmode = \"off\"\n");
        self.body.insert_str(0, &entry);
        self
    }

    /// Sets a runtime other than the sandbox.
    pub fn runtime(mut self, runtime: &str) -> Self {
        self.body = self.body.replace("\"sandbox\"", &format!("\"{runtime}\""));
        self
    }

    /// Adds text to the config.
    pub fn and(mut self, body: &str) -> Self {
        self.body.push('\n');
        self.body.push_str(body);
        self
    }

    /// Adds lines to `[listen]`.
    pub fn listen(mut self, lines: &str) -> Self {
        self.listen.push_str(lines);
        self.listen.push('\n');
        self
    }

    pub fn policies(mut self, text: &str) -> Self {
        self.policies = text.into();
        self
    }

    /// Permits only the starts that the test's policies permit.
    pub fn without_launches(mut self) -> Self {
        self.launches = false;
        self
    }

    /// Requires keys of all clients.
    pub fn keyed(mut self) -> Self {
        self.anonymous = false;
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Adds a file beside the config.
    pub fn file(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// Writes the files. Starts nothing.
    pub fn write(self) -> Written {
        let folder = self.folder.path();
        let mut body =
            self.body.replace("{mark}", &self.mark).replace("{folder}", folder.to_str().unwrap());
        for name in ["crooked", "everything", "lister", "one-era", "recorder", "scripted"] {
            let here = format!("{{{name}}}");
            if body.contains(&here) {
                body = body.replace(&here, server(name).to_str().unwrap());
            }
        }
        let config = format!(
            "state-dir = \"state\"\n[listen]\nhttp = \"127.0.0.1:0\"\nanonymous = {}\n{}\n{body}\n",
            self.anonymous, self.listen
        );
        std::fs::write(folder.join("portcullis.toml"), config).unwrap();
        std::fs::create_dir_all(folder.join("policies")).unwrap();
        std::fs::write(folder.join("policies/gate.cedar"), &self.policies).unwrap();
        if self.launches {
            std::fs::write(folder.join("policies/machine.cedar"), MACHINE).unwrap();
        }
        Written { env: self.env, mark: self.mark, folder: self.folder }
    }

    /// Writes the files, starts the proxy, and waits until it is ready.
    pub async fn start(self) -> Gate {
        self.write().start().await
    }
}

/// A config on disk.
pub struct Written {
    env: Vec<(String, String)>,
    pub mark: String,
    folder: TempDir,
}

impl Written {
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The present text of the config.
    pub fn config(&self) -> String {
        std::fs::read_to_string(self.path("portcullis.toml")).unwrap()
    }

    /// Replaces the config file atomically, as editors do.
    pub fn put(&self, text: &str) {
        std::fs::write(self.path("next.toml"), text).unwrap();
        std::fs::rename(self.path("next.toml"), self.path("portcullis.toml")).unwrap();
    }

    /// Makes servers delay their answers to a method until it is released.
    pub fn hold(&self, method: &str) {
        std::fs::write(self.path("waits").join(method.replace('/', "-")), "").unwrap();
    }

    pub fn let_go(&self, method: &str) {
        std::fs::remove_file(self.path("waits").join(method.replace('/', "-"))).unwrap();
    }

    /// Waits until a server delays a method.
    pub async fn held(&self, server: &str, method: &str) {
        let line = format!("holds {method}");
        super::until(&line, async || {
            self.cli(&["server", "logs", server]).await.stdout.contains(&line).then_some(())
        })
        .await;
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(portcullis());
        command
            .args(args)
            .arg("--config")
            .arg(self.path("portcullis.toml"))
            .env_remove("PORTCULLIS_LOG")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            // Ends the process if the test panics.
            .kill_on_drop(true);
        command
    }

    /// Adds an environment variable.
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs a command to its end.
    pub async fn cli(&self, args: &[&str]) -> Ended {
        let mut command = self.command(args);
        command.stdin(Stdio::null());
        let output = in_time(&format!("`portcullis {args:?}`"), command.output()).await.unwrap();
        Ended::from(output)
    }

    /// Adds a client with the command line, and returns its key.
    pub async fn add_client(&self, name: &str, groups: &[&str]) -> String {
        let mut args = vec!["client", "add", name, "--format", "json"];
        for group in groups {
            args.extend(["--group", *group]);
        }
        let ended = self.cli(&args).await;
        ended.expect(0)["key"].as_str().expect("a key").to_owned()
    }

    /// Records that `portcullis audit query` finds in the audit log, in the order of its
    /// output.
    pub async fn records(&self, filter: &[&str]) -> Vec<Value> {
        let args =
            [&["audit", "query", "--format", "json", "--intents", "--limit", "1000"], filter]
                .concat();
        let ended = self.cli(&args).await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        serde_json::Deserializer::from_str(&ended.stdout)
            .into_iter::<Value>()
            .map(Result::unwrap)
            .flat_map(|value| match value {
                Value::Array(records) => records,
                record => vec![record],
            })
            .collect()
    }

    /// Starts `run` and waits until it is ready.
    pub async fn start(self) -> Gate {
        self.start_with(&[]).await
    }

    /// Starts `run` with more arguments and waits until it is ready.
    pub async fn start_with(self, args: &[&str]) -> Gate {
        let mut command = self.command(&[&["run"], args].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (lines, log) = watch::channel(Vec::new());
        let stderr = child.stderr.take().unwrap();
        tokio::spawn(async move {
            let mut stderr = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = stderr.next_line().await {
                lines.send_modify(|lines| lines.push(line));
            }
        });
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let mut gate = Gate {
            written: self,
            child,
            stdin,
            stdout,
            log: Log(log),
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let listening = gate.logged("the proxy to listen", |line| {
            line.contains("\"listening\"") || line.contains(" listening address=")
        });
        let line = listening.await;
        let address = match serde_json::from_str::<Value>(&line) {
            Ok(line) => find(&line, "address").expect("an address").to_owned(),
            Err(_) => line.split("address=").nth(1).unwrap().split(' ').next().unwrap().to_owned(),
        };
        gate.addr = address.parse().unwrap();
        let ready = super::until("the proxy to be ready", async || {
            let answer = reqwest_client().get(gate.url("/readyz")).send().await.ok()?;
            answer.status().is_success().then_some(())
        });
        ready.await;
        gate
    }
}

/// The first text with this name, at any depth.
fn find<'v>(value: &'v Value, name: &str) -> Option<&'v str> {
    match value {
        Value::Object(members) => members
            .get(name)
            .and_then(Value::as_str)
            .or_else(|| members.values().find_map(|value| find(value, name))),
        _ => None,
    }
}

/// An HTTP client that ignores proxies of the environment.
pub fn reqwest_client() -> reqwest::Client {
    reqwest_builder().build().unwrap()
}

fn reqwest_builder() -> reqwest::ClientBuilder {
    static PROVIDER: std::sync::Once = std::sync::Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder().no_proxy()
}

/// Result of a program.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ended {
    /// Its JSON output. Asserts this exit code.
    pub fn expect(&self, code: i32) -> Value {
        assert_eq!(self.code, Some(code), "{self:#?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }
}

/// A running proxy. Dropping it kills it: the next proxy removes the orphans of its servers.
pub struct Gate {
    written: Written,
    child: Child,
    pub stdin: Option<ChildStdin>,
    pub stdout: Option<ChildStdout>,
    log: Log,
    pub addr: SocketAddr,
}

/// Standard error of the proxy, printed if the test fails.
struct Log(watch::Receiver<Vec<String>>);

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.0.borrow();
            let last = lines.len().saturating_sub(40);
            eprintln!("the proxy's log ended with:\n{}", lines[last..].join("\n"));
        }
    }
}

impl std::ops::Deref for Gate {
    type Target = Written;

    fn deref(&self) -> &Written {
        &self.written
    }
}

impl Gate {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// `/metrics` from the local socket, read as its owner.
    pub async fn metrics(&self) -> String {
        let http = reqwest_builder().unix_socket(self.path("state/admin.sock"));
        let reply = http.build().unwrap().get("http://localhost/metrics").send();
        in_time("metrics", async { reply.await.unwrap().text().await.unwrap() }).await
    }

    /// A client without a key, after the legacy handshake with the endpoint of all servers.
    pub async fn legacy(&self) -> Agent {
        Agent::legacy(&self.url("/mcp"), None).await.expect("a session")
    }

    /// A client of revision 2026-07-28 without a key, for the endpoint of all servers.
    pub fn modern(&self) -> Agent {
        Agent::modern(&self.url("/mcp"), None)
    }

    /// All lines of the log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.0.borrow().clone()
    }

    /// Waits for a line in the log.
    pub async fn logged(&mut self, what: &str, matches: impl Fn(&str) -> bool) -> String {
        let seen = self.log.0.wait_for(|lines| lines.iter().any(|line| matches(line)));
        let found = match tokio::time::timeout(super::PATIENCE, seen).await {
            Ok(Ok(lines)) => lines.iter().find(|line| matches(line)).cloned(),
            // The log ends with the proxy.
            Ok(Err(_)) => None,
            Err(_) => None,
        };
        found.unwrap_or_else(|| panic!("waited in vain for {what}: {:#?}", self.log()))
    }

    pub fn pid(&self) -> i32 {
        self.child.id().expect("a proxy that runs").try_into().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for the end of the proxy, which must have been requested elsewhere.
    pub async fn ended(&mut self) -> ExitStatus {
        in_time("the proxy's end", self.child.wait()).await.unwrap()
    }

    /// Stops the proxy as an operator does, without orphans.
    pub async fn stop(mut self) -> Written {
        self.signal(Signal::SIGTERM);
        let status = self.ended().await;
        assert_eq!(status.code(), Some(0), "{:#?}", self.log());
        assert!(crate::support::marked(&self.mark).is_empty(), "processes left behind");
        self.written
    }

    /// Kills the proxy with SIGKILL.
    pub async fn kill_9(mut self) -> Written {
        self.child.kill().await.unwrap();
        self.written
    }
}

/// The folder, for files that a test changes while the proxy runs.
impl AsRef<Path> for Written {
    fn as_ref(&self) -> &Path {
        self.folder.path()
    }
}
