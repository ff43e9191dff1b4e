//! Images in a registry, put there without a client of ours.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use sha2::{Digest as _, Sha256};

/// How long an answer may take.
const LATE: Duration = Duration::from_secs(60);

/// Puts an image there whose label would shape how it runs, if anybody let it.
pub fn image(host: &str, name: &str, tag: &str) -> String {
    version(host, name, tag, "1")
}

/// The same, of some version of its own.
pub fn version(host: &str, name: &str, tag: &str, version: &str) -> String {
    let label =
        "title: Search\ncommand: [--evil]\nvolumes: ['/:/host']\nenv: [{name: EVIL, value: x}]\n";
    let config = serde_json::json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": [] },
        "config": { "Labels": { "io.docker.server.metadata": label, "version": version } } });
    let config = config.to_string();
    let blob = digest(config.as_bytes());
    let begun = ask(host, &format!("POST /v2/{name}/blobs/uploads/"), "", b"");
    let to = header(&begun, "location");
    let path = to.split_once(host).map_or(to.as_str(), |(_, path)| path);
    let join = if path.contains('?') { "&" } else { "?" };
    ask(
        host,
        &format!("PUT {path}{join}digest={blob}"),
        "application/octet-stream",
        config.as_bytes(),
    );
    let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob, "size": config.len() }, "layers": [] });
    let manifest = manifest.to_string();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    ask(host, &format!("PUT /v2/{name}/manifests/{tag}"), kind, manifest.as_bytes());
    digest(manifest.as_bytes())
}

fn ask(host: &str, what: &str, kind: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(LATE)).unwrap();
    let head = format!(
        "{what} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        host,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{what}: {answer}");
    answer
}

fn header(answer: &str, name: &str) -> String {
    let line =
        answer.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
    line.and_then(|line| line.split_once(": ")).map(|(_, value)| value.trim().to_owned()).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
