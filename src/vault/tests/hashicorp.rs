//! HashiCorp Vault. No package registry has it, so a stand-in speaks its HTTP API over TLS,
//! following the API's documentation: the preflight that distinguishes the versions of the
//! key-value engine, both versions, AppRole, and revoked tokens.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use support::{Outcome, fetch, value};

const TOKEN: &str = "operators-own";
const NAMESPACE: &str = "team/a";

/// Stand-in for Vault in one test.
struct Vault {
    address: String,
    dir: tempfile::TempDir,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Valid tokens.
    tokens: BTreeSet<String>,
    /// Number of tokens issued to roles.
    issued: usize,
    sealed: bool,
}

impl Vault {
    fn start() -> Self {
        let generated = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), generated.cert.pem()).unwrap();
        std::fs::write(dir.path().join("token"), format!("{TOKEN}\n")).unwrap();
        std::fs::write(dir.path().join("secret-id"), "its-secret-id\n").unwrap();
        let key =
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(generated.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![generated.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let state =
            Arc::new(Mutex::new(State { tokens: [TOKEN.to_owned()].into(), ..State::default() }));
        let (config, shared) = (Arc::new(config), state.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, state) = (config.clone(), shared.clone());
                thread::spawn(move || serve(stream, config, &state));
            }
        });
        Self { address, dir, state }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn env(&self, more: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
        let mut env = vec![
            ("VAULT_ADDR", self.address.clone()),
            ("VAULT_CACERT", self.file("ca.pem")),
            ("VAULT_NAMESPACE", NAMESPACE.to_owned()),
        ];
        env.extend_from_slice(more);
        env
    }

    fn by_token(&self) -> Vec<(&'static str, String)> {
        self.env(&[("VAULT_TOKEN_FILE", self.file("token"))])
    }
}

/// Answers one request.
fn serve(stream: TcpStream, config: Arc<ServerConfig>, state: &Mutex<State>) {
    let tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut reader = BufReader::new(tls);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if line.trim().is_empty() => break,
            Ok(_) => head.push(line.trim().to_owned()),
        }
    }
    let header = |name: &str| {
        head.iter().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        })
    };
    let length = header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = String::from_utf8(body).unwrap();
    let (request, _) = head[0].rsplit_once(' ').unwrap();
    let token = header("x-vault-token").unwrap_or_default();
    let (code, answer) = if header("x-vault-namespace").as_deref() == Some(NAMESPACE)
        && header("x-vault-request").as_deref() == Some("true")
    {
        answer(request, &token, &body, &mut state.lock().unwrap())
    } else {
        (404, r#"{"errors":["no handler for route"]}"#.to_owned())
    };
    let mut tls = reader.into_inner();
    let _ = write!(
        tls,
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
        answer.len(),
    );
    tls.conn.send_close_notify();
    let _ = tls.flush();
}

fn answer(request: &str, token: &str, body: &str, state: &mut State) -> (u16, String) {
    let denied = (403, r#"{"errors":["permission denied"]}"#.to_owned());
    if state.sealed {
        return (503, r#"{"errors":["Vault is sealed"]}"#.to_owned());
    }
    if request == "POST /v1/auth/approle/login" {
        let wanted = r#"{"role_id":"its-role","secret_id":"its-secret-id"}"#;
        if body != wanted {
            return (400, r#"{"errors":["invalid role or secret ID"]}"#.to_owned());
        }
        state.issued += 1;
        let issued = format!("given-{}", state.issued);
        state.tokens.insert(issued.clone());
        return (200, format!(r#"{{"auth":{{"client_token":"{issued}","policies":["p"]}}}}"#));
    }
    if !state.tokens.contains(token) {
        return denied;
    }
    let mount = |path: &str, options: &str| {
        (
            200,
            format!(
                r#"{{"request_id":"1","data":{{"path":"{path}","type":"kv","options":{options}}}}}"#
            ),
        )
    };
    let secret = value("2");
    match request {
        "POST /v1/auth/token/revoke-self" => {
            state.tokens.remove(token);
            (204, String::new())
        }
        "GET /v1/sys/internal/ui/mounts/kv/team/app" | "GET /v1/sys/internal/ui/mounts/kv/team" => {
            mount("kv/team/", r#"{"version":"2"}"#)
        }
        "GET /v1/sys/internal/ui/mounts/kv/team/gone" => mount("kv/team/", r#"{"version":"2"}"#),
        "GET /v1/sys/internal/ui/mounts/old/a%20b" => mount("old/", "null"),
        "GET /v1/kv/team/data/app" => (
            200,
            format!(
                r#"{{"data":{{"data":{{"token":"{secret}\u00e9\n","port":5}},"metadata":{{"version":3}}}}}}"#
            ),
        ),
        "GET /v1/old/a%20b" => {
            (200, format!(r#"{{"data":{{"token":"{secret}"}},"lease_duration":1}}"#))
        }
        "GET /v1/kv/team/data/gone" => (404, r#"{"errors":[]}"#.to_owned()),
        _ => denied,
    }
}

#[test]
fn fields_of_both_engine_versions_are_read() {
    let vault = Vault::start();
    let env = vault.by_token();
    let found = fetch("vault:kv/team/app#token", &env);
    assert_eq!(found, Outcome::Value(format!("{}é\n", value("2"))));
    assert_eq!(fetch("vault:old/a b#token", &env), Outcome::Value(value("2")));
    fetch("vault:kv/team/app#none", &env).failed("the secret does not have this field");
    fetch("vault:kv/team/app#port", &env).failed("the field is not text");
    fetch("vault:kv/team/gone#token", &env).failed("Vault has no secret at that path");
    fetch("vault:kv/team#token", &env).failed("is an engine");
    fetch("vault:elsewhere/app#token", &env).failed("do not permit this token to read that path");
    vault.state.lock().unwrap().sealed = true;
    fetch("vault:kv/team/app#token", &env).failed("sealed");
}

#[test]
fn role_logs_in_and_revokes_its_token() {
    let vault = Vault::start();
    let role = |role: &str| {
        vault.env(&[
            ("VAULT_ROLE_ID", role.to_owned()),
            ("VAULT_SECRET_ID_FILE", vault.file("secret-id")),
        ])
    };
    assert_eq!(fetch("vault:old/a b#token", &role("its-role")), Outcome::Value(value("2")));
    fetch("vault:elsewhere/app#token", &role("its-role")).failed("do not permit this token");
    fetch("vault:old/a b#token", &role("other")).failed("refuses the role's login");
    let state = vault.state.lock().unwrap();
    assert_eq!(state.issued, 2);
    assert_eq!(state.tokens, [TOKEN.to_owned()].into());
}

#[test]
fn token_is_sent_to_the_configured_vault_only() {
    let vault = Vault::start();
    let with = |name: &'static str, value: &str| {
        let mut env = vault.by_token();
        env.retain(|(old, _)| *old != name);
        env.push((name, value.to_owned()));
        env
    };
    let reference = "vault:old/a b#token";
    for (env, what) in [
        (with("VAULT_ADDR", ""), "`VAULT_ADDR` is not set"),
        (with("VAULT_ADDR", "localhost"), "`VAULT_ADDR` is not a URL"),
        (with("VAULT_ADDR", "http://vault.example:8200"), "is not https"),
        (with("VAULT_ADDR", "https://127.0.0.1:1"), "Vault cannot be reached"),
        // The system's certificate authorities do not include it.
        (with("VAULT_CACERT", ""), "Vault cannot be reached"),
        (with("VAULT_CACERT", &vault.file("token")), "it contains no certificate"),
        (with("VAULT_TOKEN_FILE", &vault.file("none")), "No such file"),
        (with("VAULT_TOKEN", "wrong"), "do not permit this token to read that path"),
        (with("VAULT_TOKEN", "not\nlegal"), "contains characters that are not legal"),
        (vault.env(&[]), "no credentials"),
    ] {
        let error = fetch(reference, &env).failed(what);
        assert!(!error.contains(TOKEN) && !error.contains("not\\nlegal"), "{error}");
    }
}
