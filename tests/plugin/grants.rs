//! Granted and missing host functions.

use miette::Diagnostic as _;
use portcullis_chain::{Decision, Mode};
use portcullis_plugin_host::States;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

fn settings() -> EntrySettings {
    EntrySettings { deadline_ms: Some(20_000), ..EntrySettings::default() }
}

/// The probe, speaking to this port, in a file of its own.
pub(super) fn probe(folder: &Path, port: u16, grants: Value) -> Config {
    let port = format!("{port:05}");
    let (placeholder, host) = (&b"localhost:54321"[..], format!("localhost:{port}"));
    let mut bytes = std::fs::read(built("probe")).expect("built");
    let at = bytes.windows(placeholder.len()).position(|part| part == placeholder);
    let at = at.expect("the placeholder");
    bytes[at..at + placeholder.len()].copy_from_slice(host.as_bytes());
    let path = folder.join("probe.wasm");
    std::fs::write(&path, bytes).expect("written");
    let entry = json!({ "path": path, "allow-unpinned": true, "grants": grants });
    serde_json::from_value(entry).expect("a legal entry")
}

/// A value that nothing else is.
fn value() -> String {
    ["correct", "horse", "battery"].join("-")
}

/// All that the probe asks for; it may speak to the port on this machine.
pub(super) fn all(folder: &Path, port: u16) -> Value {
    std::fs::write(folder.join("token"), value()).expect("written");
    json!({
        "log": true, "clock": true, "random": true, "metrics": true, "state": "100KiB",
        "http": [format!("http://localhost:{port}=127.0.0.1")],
        "secrets": { "TOKEN": { "from": format!("file:{}", folder.join("token").display()) } },
    })
}

/// What is around the plugin in these tests.
#[derive(Default)]
pub(super) struct Around {
    counted: parking_lot::Mutex<Vec<(String, u64)>>,
    lines: parking_lot::Mutex<Vec<String>>,
    withdrawn: parking_lot::Mutex<Vec<(String, Vec<String>)>>,
    forbidden: bool,
}

impl HostServices for Around {
    fn count(&self, plugin: &str, name: &str, by: u64) {
        assert_eq!(plugin, "plugin");
        self.counted.lock().push((name.to_owned(), by));
    }

    fn log(&self, _: &str, _: tracing::Level, line: &str) {
        self.lines.lock().push(line.to_owned());
    }

    fn withdrawn(&self, _: &str, exchange: &str, requests: Vec<String>) {
        self.withdrawn.lock().push((exchange.to_owned(), requests));
    }

    fn may_reach(&self, _: &str, host: &str, _: u16) -> Result<(), String> {
        assert_eq!(host, "localhost");
        if self.forbidden { Err("policy does not permit it".into()) } else { Ok(()) }
    }
}

pub(super) fn loaded(config: &Config, around: Arc<Around>) -> Result<Plugin, LoadError> {
    loaded_as(config, &settings(), PluginHost { services: around, ..PluginHost::bare() })
}

fn loaded_as(
    config: &Config,
    settings: &EntrySettings,
    plugin_host: PluginHost,
) -> Result<Plugin, LoadError> {
    let secrets = config.secrets(Path::new(".")).expect("secrets");
    Plugin::load(config, settings, Path::new("."), secrets, &plugin_host)
}

/// What the probe refuses with.
pub(super) async fn got(plugin: &Plugin, wanted: &str) -> String {
    let verdict = ask(plugin, wanted).await.expect("a verdict");
    let Decision::Refuse(refusal) = verdict.decision else { panic!("refused: {verdict:?}") };
    refusal.message
}

#[tokio::test]
async fn granted_functions_work() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = probe(folder.path(), 1, all(folder.path(), 1));
    config.config.insert("a".into(), 1.into());
    let around = Arc::new(Around::default());
    let plugin = loaded(&config, around.clone()).expect("it loads");

    assert_eq!(got(&plugin, "config").await, r#"{"a":1}"#);
    let exchange = got(&plugin, "exchange").await;
    assert!(exchange.parse::<DecisionId>().is_ok(), "{exchange}");
    let clock = got(&plugin, "clock").await;
    let (now, forward) = clock.split_once(' ').expect("two");
    assert!(now.parse::<i64>().expect("a number") > 1_700_000_000_000 && forward == "true");
    assert_eq!(got(&plugin, "random").await, "16 true");
    let Fault(much) = ask(&plugin, "random-much").await.expect_err("a fault");
    assert!(much.contains("4096 random bytes"), "{much}");
    assert_eq!(got(&plugin, "secrets").await, format!("{} None", value().len()));

    // Values outlive messages; each message is another instance.
    assert_eq!(got(&plugin, "add").await, "Ok(1)");
    assert_eq!(got(&plugin, "add").await, "Ok(2)");
    let full = got(&plugin, "fill").await;
    assert!(full.ends_with("Error::Full") && full.starts_with("9"), "{full}");

    assert_eq!(ask(&plugin, "count").await, Ok(Verdict::pass()));
    let counted = around.counted.lock();
    assert_eq!(counted.len(), 32);
    assert_eq!(counted[1], ("n1".to_owned(), 2));
}

#[tokio::test]
async fn plugin_output_contains_no_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = probe(folder.path(), 1, all(folder.path(), 1));
    let plugin = loaded(&config, Arc::default()).expect("it loads");
    for wanted in ["leak", "leak-replace", "leak-label", "leak-error"] {
        let said = format!("{:?}", ask(&plugin, wanted).await);
        assert!(!said.contains(&value()), "{wanted}: {said}");
        assert!(said.contains("redacted") || said.contains("a secret"), "{wanted}: {said}");
    }
    let mut config = probe(folder.path(), 1, all(folder.path(), 1));
    config.config.insert("never".into(), true.into());
    let never = loaded(&config, Arc::default()).err().expect("it does not begin");
    assert_eq!(never.code().expect("a code").to_string(), "plugin-start");
    assert_eq!(
        never.to_string(),
        "the plugin `probe` does not start with its `config`: no: [redacted]"
    );
}

#[tokio::test]
async fn missing_grants_are_reported_with_their_config_lines() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = probe(folder.path(), 8080, json!({}));
    let unusable = load(&config, &settings()).err().expect("it is not loaded");
    assert_eq!(unusable.code().expect("a code").to_string(), "plugin-import-ungranted");
    let help = unusable.help().expect("help").to_string();
    insta::assert_snapshot!(help, @r#"
    write under its entry
    [interceptors.grants]
    log = true
    clock = true
    random = true
    state = "1MiB"
    metrics = true
    http = ["http://localhost:8080"]
    secrets = { TOKEN = { from = "env:TOKEN" } }
    "#);

    let mut most = all(folder.path(), 8080);
    most.as_object_mut().expect("an object").remove("http");
    let config = probe(folder.path(), 8080, most);
    let unusable = load(&config, &settings()).err().expect("it is not loaded");
    assert!(
        unusable
            .to_string()
            .ends_with("requires `http`, the host `http://localhost:8080`, which is not granted")
    );
    let help = unusable.help().expect("help").to_string();
    assert_eq!(help, "write into its `[interceptors.grants]`\nhttp = [\"http://localhost:8080\"]");
}

/// A server on this machine that answers every request so (with nothing: never), and tells of it.
pub(super) async fn server(
    answer: &'static str,
) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (told, heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let mut read = Vec::new();
                while !read.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => read.push(byte),
                        Err(_) => return,
                    }
                }
                let _ = told.send(String::from_utf8_lossy(&read).into_owned());
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (port, heard)
}

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_reaches_only_granted_hosts() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, mut heard) = server(HELLO).await;
    let config = probe(folder.path(), port, all(folder.path(), port));
    let plugin = loaded(&config, Arc::default()).expect("it loads");

    let verdict = ask(&plugin, "get http://HOST/a?b").await.expect("a verdict");
    let Decision::Refuse(refusal) = &verdict.decision else { panic!("refused") };
    assert_eq!(refusal.message, "Ok(\"200 hello\")");
    assert_eq!(verdict.findings.len(), 1);
    assert_eq!(verdict.findings[0].message, format!("GET http://localhost:{port} 200"));
    assert_eq!(verdict.findings[0].rule.id, "probe/@http");
    let request = heard.recv().await.expect("a request");
    assert!(request.starts_with("GET /a?b HTTP/1.1\r\n") && request.contains("x-probe: 1"));

    for (url, told) in [
        ("http://127.0.0.1:PORT/", "is not granted"),
        ("http://localhost:1/", "is not granted"),
        // Granted in clear text, and not otherwise: nor the other way round.
        ("https://localhost:PORT/", "is not granted"),
        ("http://HOST.:80/", "Invalid"),
        ("file:///etc/passwd", "Invalid"),
    ] {
        let url = url.replace("PORT", &port.to_string());
        let said = got(&plugin, &format!("get {url}")).await;
        assert!(said.contains(told), "{url}: {said}");
    }
    assert_eq!(got(&plugin, "get-often http://HOST/").await, "16");
    // What it did before it failed is told with the fault.
    let Fault(fault) = ask(&plugin, "get-and-trap http://HOST/").await.expect_err("a fault");
    assert!(fault.contains(&format!("(HTTP before: GET http://localhost:{port} 200)")), "{fault}");

    let around = Arc::new(Around { forbidden: true, ..Around::default() });
    let forbidden = loaded(&config, around).expect("it loads");
    while heard.try_recv().is_ok() {}
    assert!(got(&forbidden, "get http://HOST/").await.contains("policy does not permit it"));
    assert!(heard.try_recv().is_err(), "nobody was asked");

    let mut config = config;
    config.config.insert("reach".into(), true.into());
    let early = loaded(&config, Arc::default()).err().expect("not before `inspect`").to_string();
    assert!(early.contains("available in `inspect` only"), "{early}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_follows_no_redirects_and_times_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let moved = "HTTP/1.1 302 Found\r\nlocation: http://localhost:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let (port, _heard) = server(moved).await;
    let config = probe(folder.path(), port, all(folder.path(), port));
    let plugin = loaded(&config, Arc::default()).expect("it loads");
    assert_eq!(got(&plugin, "get http://HOST/").await, "Ok(\"302 \")");

    let huge = "HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\nconnection: close\r\n\r\n";
    let large = Box::leak(format!("{huge}{}", "x".repeat(2_000_000)).into_boxed_str());
    let (port, _heard) = server(large).await;
    let config = probe(folder.path(), port, all(folder.path(), port));
    let plugin = loaded(&config, Arc::default()).expect("it loads");
    assert!(got(&plugin, "get http://HOST/").await.contains("TooLarge"));

    // One that never answers: the plugin gives it up while a verdict is possible.
    let (port, mut heard) = server("").await;
    let config = probe(folder.path(), port, all(folder.path(), port));
    let quick = EntrySettings { deadline_ms: Some(10_000), ..EntrySettings::default() };
    let plugin_host = PluginHost { services: Arc::new(Around::default()), ..PluginHost::bare() };
    let secrets = config.secrets(Path::new(".")).expect("secrets");
    let plugin =
        Plugin::load(&config, &quick, Path::new("."), secrets, &plugin_host).expect("it loads");
    let tarpit = ask(&plugin, "get http://HOST/").await;
    heard.recv().await.expect("a request");
    let told = format!("{tarpit:?}");
    assert!(told.contains("timed out"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_refuses_names_with_private_addresses() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, mut heard) = server(HELLO).await;
    let mut grants = all(folder.path(), port);
    grants["http"] = json!([format!("http://localhost:{port}")]);
    let config = probe(folder.path(), port, grants);
    let plugin = loaded(&config, Arc::default()).expect("it loads");
    let said = got(&plugin, "get http://HOST/").await;
    assert!(said.contains("no public address"), "{said}");
    assert!(heard.try_recv().is_err(), "nobody was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugin_in_audit_mode_stores_and_sends_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, mut heard) = server(HELLO).await;
    let states = States::at(folder.path().join("state"));
    states.open().expect("a store");
    let mut config = probe(folder.path(), port, all(folder.path(), port));
    let entry = |mode| EntrySettings { mode, ..settings() };
    let plugin_host = || PluginHost {
        services: Arc::new(Around::default()),
        states: Some(states.clone()),
        ..PluginHost::bare()
    };
    let enforced = loaded_as(&config, &entry(Mode::Enforce), plugin_host()).expect("it loads");
    let tried = loaded_as(&config, &entry(Mode::Audit), plugin_host()).expect("it loads");
    assert_eq!(got(&enforced, "add").await, "Ok(1)");
    for expected in ["Ok(1)", "Ok(2)", "Ok(3)"] {
        assert_eq!(got(&tried, "add").await, expected, "values of its own");
    }
    assert_eq!(got(&enforced, "add").await, "Ok(2)");

    let verdict = ask(&tried, "get http://HOST/").await.expect("a verdict");
    let Decision::Refuse(refusal) = &verdict.decision else { panic!("refused") };
    assert!(refusal.message.contains("audit mode"), "{}", refusal.message);
    let told = format!("GET http://localhost:{port} not sent, on trial");
    assert_eq!(verdict.findings[0].message, told);
    assert!(heard.try_recv().is_err(), "nobody was asked");

    config.audit_http = true;
    let sending = loaded_as(&config, &entry(Mode::Audit), plugin_host()).expect("it loads");
    assert_eq!(got(&sending, "get http://HOST/").await, "Ok(\"200 hello\")");
    assert_eq!(got(&sending, "add").await, "Ok(1)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_withdrawn_message_are_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, mut heard) = server("").await;
    let config = probe(folder.path(), port, all(folder.path(), port));
    let around = Arc::new(Around::default());
    let plugin = Arc::new(loaded(&config, around.clone()).expect("it loads"));
    let exchange = call("get http://HOST/", json!({}), None);
    let id = exchange.id.to_string();
    let asked = tokio::spawn({
        let plugin = plugin.clone();
        async move { plugin.inspect(&exchange, Phase::Request).await }
    });
    heard.recv().await.expect("a request");
    asked.abort();
    let told = async {
        while around.withdrawn.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), told).await.expect("it is told");
    let requests = vec![format!("GET http://localhost:{port} unanswered")];
    assert_eq!(*around.withdrawn.lock(), [(id, requests)]);
    // One that has its verdict tells of its requests itself.
    assert!(got(&plugin, "get http://localhost:1/").await.contains("not granted"));
    assert_eq!(around.withdrawn.lock().len(), 1);
}

#[tokio::test]
async fn log_lines_of_the_start_count_for_the_first_message() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = probe(folder.path(), 1, all(folder.path(), 1));
    config.config.insert("talk".into(), true.into());
    let around = Arc::new(Around::default());
    let plugin = loaded(&config, around.clone()).expect("it loads");
    around.lines.lock().clear();
    // Nothing is ready: the instance begins with this message.
    assert_eq!(ask(&plugin, "talk").await, Ok(Verdict::pass()));
    assert!(!around.lines.lock().iter().any(|line| line == "talking"));
}

#[tokio::test]
async fn other_trap_is_not_reported_as_out_of_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = probe(folder.path(), 1, all(folder.path(), 1));
    let plugin = loaded(&config, Arc::default()).expect("it loads");
    let Fault(told) = ask(&plugin, "starve-and-trap").await.expect_err("a fault");
    assert!(told.starts_with("it trapped"), "{told}");
}
