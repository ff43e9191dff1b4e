//! A guard in front of a real engine, and raw requests.

use std::{path::PathBuf, time::Duration};

use portcullis_guard::{Allow, Fault, Guard, NAME, PACKED, Rules, label};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

pub fn engine() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock").into()
}

pub struct Stand {
    pub folder: tempfile::TempDir,
    pub rules: Rules,
    pub end: CancellationToken,
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Stand {
    /// Guard with a separate name that allows only these deviations.
    pub async fn new(name: &str, allow: &[Allow]) -> Self {
        let stand = Self::still(name, allow);
        stand.start().await;
        stand
    }

    /// The same before it is started.
    pub fn still(name: &str, allow: &[Allow]) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let mut rules = Rules::new(name, portcullis_syscalls::container_profile(), [192, 31, 196]);
        rules.allow = allow.iter().copied().collect();
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder, rules, end: CancellationToken::new() }
    }

    pub async fn listen(&self) -> Result<Guard, Fault> {
        Guard::listen(self.rules.clone(), engine(), &self.socket(), 0o600).await
    }

    pub async fn start(&self) -> JoinHandle<()> {
        let guard = self.listen().await;
        let guard = guard.expect("these tests need a container engine (tests/run starts one)");
        tokio::spawn(guard.serve(self.end.clone()))
    }

    /// Ends the guard without its shutdown.
    pub async fn kill(&self, guard: JoinHandle<()>) {
        guard.abort();
        assert!(guard.await.expect_err("it ended by itself").is_cancelled());
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("guard.sock")
    }

    pub async fn raw(&self, request: &[u8]) -> Answer {
        raw(&self.socket(), request).await
    }

    pub async fn ask(&self, method: &str, target: &str, body: &str) -> Answer {
        self.raw(request(method, target, body).as_bytes()).await
    }
}

pub fn request(method: &str, target: &str, body: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub text: String,
}

impl Answer {
    pub fn heads(&self) -> usize {
        self.text.lines().filter(|line| line.starts_with("HTTP/1.")).count()
    }

    pub fn json(&self) -> Value {
        let body = self.text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        // The engine's longer answers are chunked.
        let from = body.find(['{', '[']).unwrap_or(0);
        let to = body.rfind(['}', ']']).map_or(0, |at| at + 1);
        serde_json::from_str(body.get(from..to).unwrap_or("")).unwrap_or(Value::Null)
    }
}

pub async fn raw(socket: &std::path::Path, request: &[u8]) -> Answer {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await.expect("a connection");
        // The answer may come before the request was read to its end.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let text = timeout(TEST_TIMEOUT, exchange).await.expect("an answer");
    let status = text.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
    Answer { status, text }
}

/// Request to the engine itself, bypassing the guard.
pub async fn direct(method: &str, target: &str, body: &str) -> Answer {
    raw(&engine(), request(method, target, body).as_bytes()).await
}

/// Id of an image without a program, loaded through the guard.
pub async fn image(stand: &Stand) -> String {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o755);
    header.set_entry_type(tar::EntryType::Directory);
    layer.append_data(&mut header, "tmp", std::io::empty()).expect("a folder");
    let layer = layer.into_inner().expect("a layer");
    let diff = format!("sha256:{}", sha256(&layer));
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/none"]},
        "rootfs": {"type": "layers", "diff_ids": [diff]},
    })
    .to_string();
    let tag = format!("{PACKED}guard-test:0");
    let (config_name, layer_name) =
        (format!("{}.json", sha256(config.as_bytes())), format!("{}/layer.tar", "b".repeat(64)));
    let list = json!([{"Config": config_name, "RepoTags": [tag], "Layers": [layer_name]}]);
    let mut archive = tar::Builder::new(Vec::new());
    let list = list.to_string();
    for (name, content) in [
        (&config_name, config.as_bytes()),
        (&"manifest.json".to_owned(), list.as_bytes()),
        (&layer_name, layer.as_slice()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        archive.append_data(&mut header, name, content).expect("a file");
    }
    let archive = archive.into_inner().expect("an archive");
    let mut bytes = b"POST /v1.41/images/load?quiet=true HTTP/1.1\r\nHost: d\r\n\
        Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        .to_vec();
    for chunk in archive.chunks(700) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    let loaded = stand.raw(&bytes).await;
    assert_eq!(loaded.status, 200, "{loaded:?}");
    let found = stand.ask("GET", &format!("/v1.41/images/{tag}/json"), "").await;
    found.json()["Id"].as_str().unwrap_or_else(|| panic!("{found:?}")).to_owned()
}

/// From `sha256sum`, because the crate does not otherwise need a digest.
fn sha256(bytes: &[u8]) -> String {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };
    let mut sum = Command::new("sha256sum");
    let mut sum = sum.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
    sum.stdin.take().expect("a pipe").write_all(bytes).expect("to write");
    let output = sum.wait_with_output().expect("a sum");
    String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned()
}

/// Request of Portcullis with default settings.
pub fn body(rules: &Rules, image: &str) -> Value {
    json!({
        "Image": image, "Env": [], "User": "65534:65534",
        "AttachStdin": true, "AttachStdout": true, "AttachStderr": true,
        "OpenStdin": true, "StdinOnce": true, "Tty": false, "StopSignal": "SIGTERM",
        "Labels": {
            label::OWNER: "m b n 1 2", label::INSTANCE: "i", label::SERVER: "notes",
            label::PROFILE: "p",
        },
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "Privileged": false, "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true", format!("seccomp={}", rules.seccomp)],
            "ReadonlyRootfs": true,
            "Tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"},
            "Memory": 1 << 26, "MemorySwap": 1 << 26, "NanoCpus": 1_000_000_000, "PidsLimit": 64,
            "NetworkMode": "none", "IpcMode": "private", "CgroupnsMode": "private", "Init": true,
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": true,
            "LogConfig": {"Type": "none", "Config": {}}, "Mounts": [],
        },
    })
}

pub fn name(tail: &str) -> String {
    format!("{NAME}notes-{tail}{}", std::process::id())
}

/// Container created directly at the engine, with all labels that the guard sets.
pub async fn lure(stand: &Stand, image: &str, tail: &str, labelled: &str) -> String {
    let mut lured = body(&stand.rules, image);
    lured["Labels"][label::GUARD] = stand.rules.name.clone().into();
    lured["Labels"][label::CONTAINER] = labelled.into();
    lured["HostConfig"]["AutoRemove"] = false.into();
    let target = format!("/v1.41/containers/create?name={}", name(tail));
    let created = direct("POST", &target, &lured.to_string()).await;
    created.json()["Id"].as_str().unwrap_or_else(|| panic!("{created:?}")).to_owned()
}

/// Whether the engine has it.
pub async fn is_there(tail: &str) -> bool {
    match direct("GET", &format!("/v1.41/containers/{}/json", name(tail)), "").await.status {
        200 => true,
        404 => false,
        status => panic!("the engine answered {status}"),
    }
}

pub async fn create(stand: &Stand, image: &str, tail: &str) -> Answer {
    let target = format!("/v1.41/containers/create?name={}", name(tail));
    stand.ask("POST", &target, &body(&stand.rules, image).to_string()).await
}
