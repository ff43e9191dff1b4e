//! Debian's docker-registry, started by a test.

#![allow(dead_code)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

/// Time limit for the registry to listen.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Access to a registry.
#[derive(Default)]
pub struct Door {
    /// Required user and password.
    pub login: Option<(String, String)>,
    /// Whether it uses TLS, with a certificate of a test authority.
    pub tls: bool,
}

/// Registry on this machine with separate storage. Ends on drop.
pub struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Registry {
    pub fn start(door: &Door) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let mut config = format!(
            "version: 0.1\nlog: {{ level: info }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  \
             delete: {{ enabled: true }}\nhttp:\n  addr: 127.0.0.1:0\n",
            path("storage").display()
        );
        if door.tls {
            certificates(folder.path());
            config.push_str(&format!(
                "  tls: {{ certificate: {}, key: {} }}\n",
                path("server.pem").display(),
                path("server.key").display()
            ));
        }
        if let Some((user, password)) = &door.login {
            fs::write(path("htpasswd"), format!("{user}:{}\n", bcrypt(password))).expect("written");
            config.push_str(&format!(
                "auth:\n  htpasswd: {{ realm: test, path: {} }}\n",
                path("htpasswd").display()
            ));
        }
        fs::write(path("config.yml"), config).expect("written");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(path("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed: tests/setup/packages");
        let log = child.stderr.take().expect("its log");
        let (sender, receiver) = mpsc::channel();
        // Read to its end, so that the registry never blocks on it.
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut lines = Vec::new();
        let port = loop {
            let line = receiver
                .recv_timeout(START_TIMEOUT)
                .unwrap_or_else(|_| panic!("docker-registry does not start: {lines:#?}"));
            let port = line
                .split_once("listening on 127.0.0.1:")
                .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
            lines.push(line);
            if let Some(port) = port {
                break port.parse().expect("a port");
            }
        };
        Self { child, folder, port }
    }

    /// Host in the form of references.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Certificate of its authority.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// File in which it stores a blob.
    pub fn blob(&self, hex: &str) -> PathBuf {
        let below = format!("storage/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        self.folder.path().join(below)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// New password.
pub fn password() -> String {
    let mut bytes = [0; 12];
    let mut random = fs::File::open("/dev/urandom").expect("random bytes");
    std::io::Read::read_exact(&mut random, &mut bytes).expect("random bytes");
    hex::encode(bytes)
}

/// Docker config with that login, in a temporary folder.
pub fn docker_config(host: &str, user: &str, password: &str) -> tempfile::TempDir {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    let folder = tempfile::tempdir().expect("a folder");
    let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let config = serde_json::json!({ "auths": { host: { "auth": auth } } });
    fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    folder
}

/// With perl, which every Debian has: the only kind of hash that the registry accepts.
fn bcrypt(password: &str) -> String {
    let salt = "$2b$05$abcdefghijklmnopqrstuu";
    let made = Command::new("perl")
        .args(["-e", "print crypt($ARGV[0], $ARGV[1])", password, salt])
        .output()
        .expect("perl");
    let hash = String::from_utf8(made.stdout).expect("text");
    assert!(hash.starts_with("$2b$"), "{hash}");
    hash
}

fn certificates(folder: &Path) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "authority of a test");
    let key = rcgen::KeyPair::generate().expect("a key");
    let ca = rcgen::CertifiedIssuer::self_signed(params, key).expect("an authority");
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let params = rcgen::CertificateParams::new(names).expect("parameters");
    let server = params.signed_by(&key, &ca).expect("signed");
    fs::write(folder.join("ca.pem"), ca.pem()).expect("written");
    fs::write(folder.join("server.pem"), server.pem()).expect("written");
    fs::write(folder.join("server.key"), key.serialize_pem()).expect("written");
}
