//! Header values of 2026-07-28: what is encoded decodes to itself, travels as HTTP has it, and what
//! decodes is what a plain decoder reads.

use http::{HeaderMap, HeaderName, HeaderValue};
use portcullis_protocol::codec::{
    era::header_text,
    headers::{PARAM, Repeated, decoded},
};

pub fn target(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };

    let header = header_text(text);
    assert_eq!(decoded(&header).as_deref(), Some(text), "another value comes out");
    let sent = HeaderValue::try_from(header.as_str()).expect("a legal header");
    let seen = sent.to_str().expect("visible ASCII");
    assert_eq!(seen.trim(), header, "white space is lost on the way");

    let read = decoded(text);
    assert_eq!(read.as_deref(), plain(text).as_deref(), "read differently");
    if let Some(value) = read {
        assert_eq!(decoded(&header_text(&value)), Some(value));
    }

    if let Some((schema, arguments)) = text.split_once('\0') {
        repeated(schema, arguments);
    }
}

/// What a schema has repeated is what is found right, and nothing else is.
fn repeated(schema: &str, arguments: &str) {
    let Ok(schema) = serde_json::from_str(schema) else { return };
    let Ok(repeated) = Repeated::of(&schema) else { return };
    let arguments: Option<serde_json::Map<_, _>> = serde_json::from_str(arguments).ok();
    let arguments = arguments.as_ref();
    let mut headers = HeaderMap::new();
    for (name, value) in repeated.headers(arguments) {
        let name = HeaderName::try_from(name).expect("a legal name");
        assert!(name.as_str().starts_with(PARAM) && repeated.has(&name));
        let value = HeaderValue::try_from(value).expect("a legal value");
        assert!(headers.insert(name, value).is_none(), "a header twice");
    }
    assert_eq!(repeated.check(&headers, arguments), Ok(()));
    for name in headers.keys() {
        let mut fewer = headers.clone();
        fewer.remove(name);
        assert!(repeated.check(&fewer, arguments).is_err(), "one that is missing passes");
        let mut other = headers.clone();
        other.insert(name, HeaderValue::from_static("another"));
        let same = decoded(headers[name].to_str().expect("text")).as_deref() == Some("another");
        assert_eq!(repeated.check(&other, arguments).is_ok(), same, "another value passes");
        let mut twice = headers.clone();
        twice.append(name, headers[name].clone());
        assert!(repeated.check(&twice, arguments).is_err(), "one that stands twice passes");
    }
}

/// The same, as plain as can be.
fn plain(text: &str) -> Option<String> {
    const HEAD: &str = "=?base64?";
    if text.len() < HEAD.len() + 2 || !text.starts_with(HEAD) || !text.ends_with("?=") {
        return Some(text.to_owned());
    }
    String::from_utf8(base64(&text.as_bytes()[HEAD.len()..text.len() - 2])?).ok()
}

/// RFC 4648, section 4, with all of its padding, and nothing in the bits that it leaves over.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bits = Vec::new();
    for byte in &text[..text.len() - padding] {
        let digit = DIGITS.iter().position(|known| known == byte)?;
        bits.extend((0..6).rev().map(|bit| digit >> bit & 1));
    }
    let spare = bits.split_off(bits.len() / 8 * 8);
    if spare.contains(&1) {
        return None;
    }
    Some(
        bits.chunks(8)
            .map(|byte| byte.iter().fold(0, |all, bit| all << 1 | u8::try_from(*bit).unwrap_or(0)))
            .collect(),
    )
}
