//! Secrets that an agent or a hostile server encodes do not pass, in either direction.

use std::io::Write as _;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::json;

use crate::support::{credential, gate::Setup};

fn each(text: &str, map: impl Fn(u8) -> String) -> String {
    text.bytes().map(map).collect()
}

fn list(text: &str, separator: &str, map: impl Fn(u8) -> String) -> String {
    text.bytes().map(map).collect::<Vec<_>>().join(separator)
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn base32(text: &str) -> String {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bits: String = each(text, |byte| format!("{byte:08b}"));
    let group = |bits: &[u8]| {
        let bits = format!("{:0<5}", String::from_utf8_lossy(bits));
        char::from(DIGITS[usize::from_str_radix(&bits, 2).unwrap()])
    };
    bits.as_bytes().chunks(5).map(group).collect()
}

/// Encodings of a text, by name.
fn encodings(text: &str) -> Vec<(&'static str, String)> {
    let wide = |byte: u8| char::from_u32(u32::from(byte) + 0xfee0).unwrap().to_string();
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let (first, last) = text.split_at(text.len() / 2);
    vec![
        ("plain", text.to_owned()),
        ("base64", STANDARD.encode(text)),
        ("base64url", URL_SAFE_NO_PAD.encode(format!("~~~{text}"))),
        ("base32", base32(text)),
        ("hex", hex::encode(text)),
        ("hex with colons", list(text, ":", |byte| format!("{byte:02X}"))),
        ("decimal bytes", format!("[{}]", list(text, ", ", |byte| byte.to_string()))),
        ("octal", each(text, |byte| format!("\\{byte:03o}"))),
        ("percent", each(text, |byte| format!("%{byte:02x}"))),
        ("\\x", each(text, |byte| format!("\\x{byte:02x}"))),
        ("\\u", each(text, |byte| format!("\\u{byte:04x}"))),
        ("entities", each(text, |byte| format!("&#{byte};"))),
        ("quoted-printable", each(text, |byte| format!("={byte:02X}"))),
        ("zero-width", each(text, |byte| format!("{}\u{200b}", char::from(byte)))),
        ("soft hyphens", each(text, |byte| format!("{}\u{ad}", char::from(byte)))),
        ("fullwidth", each(text, wide)),
        ("UTF-16", STANDARD.encode(utf16)),
        ("gzip", STANDARD.encode(gzip(text))),
        ("hex of gzip of base64", hex::encode(gzip(&STANDARD.encode(text)))),
        ("base64 of base64", STANDARD.encode(STANDARD.encode(text))),
        ("two lines", format!("{first}\n{last}")),
        ("JSON in JSON", json!(json!({ "a": text }).to_string()).to_string()),
    ]
}

/// Value of a server's secret that no rule knows.
fn own_secret() -> String {
    ["correct", "-horse-", "battery", "-staple-", "42"].concat()
}

const SECRET: &str = "secrets = { TOKEN = { from = \"env:OWN_SECRET\", as = \"env\" } }";

#[tokio::test]
async fn encoded_secret_does_not_reach_a_server() {
    let gate = Setup::crooked(SECRET).env("OWN_SECRET", &own_secret()).start().await;
    let agent = gate.modern();
    // The proxy learns the secret when it delivers it.
    assert_eq!(agent.text("crooked__echo", json!({ "text": "a" })).await, "a");
    for secret in [credential(), own_secret()] {
        for (name, text) in encodings(&secret) {
            let code = agent.refused("crooked__echo", json!({ "text": text })).await;
            assert_eq!(code, "secret-found", "{name}: {text}");
        }
        // Bytes as numbers of JSON, as in Node's buffers.
        let bytes = json!({ "type": "Buffer", "data": secret.as_bytes() });
        let code = agent.refused("crooked__echo", json!({ "text": "a", "x": bytes })).await;
        assert_eq!(code, "secret-found");
    }
    let told = format!("{:?}{:?}", gate.records(&[]).await, gate.log());
    assert!(!told.contains(&credential()) && !told.contains(&own_secret()), "{told}");
    gate.stop().await;
}

#[tokio::test]
async fn encoded_secret_of_a_hostile_server_does_not_reach_an_agent() {
    // What the server echoes stands for what it made up.
    let requests = "[[interceptors]]\nuse = \"secrets\"\nrequest = \"off\"";
    let setup = Setup::crooked(SECRET).env("OWN_SECRET", &own_secret()).and(requests);
    let gate = setup.start().await;
    let agent = gate.modern();
    for (secret, id) in [(credential(), "aws-access-key-id"), (own_secret(), "vault:crooked/TOKEN")]
    {
        for (name, text) in encodings(&secret) {
            let text = format!("(start) | {text} | (end)");
            let answer = agent.text("crooked__echo", json!({ "text": text })).await;
            assert!(answer.contains(&format!("[redacted:{id}]")), "{name}: {answer}");
            assert!(answer.starts_with("(start) | ") && answer.ends_with(" | (end)"), "{answer}");
            assert!(answer.len() < 80, "{name}: {answer}");
        }
    }
    gate.stop().await;
}
