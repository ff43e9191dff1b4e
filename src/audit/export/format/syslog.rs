//! Syslog messages (RFC 5424). The target does the framing.

use std::fmt::Write as _;

use super::{super::Item, Fault, Format, Origin, decision_word, kind_word, severity};

/// Facility "log audit", RFC 5424, table 1.
const FACILITY: u8 = 13;
/// Enterprise number of RFC 5612, for software without a number of its own.
const SD_ID: &str = "portcullis@32473";

/// Writes one message. `payload` is the format of its text: the canonical line or another format
/// with one line per record.
pub(super) fn message(
    item: &Item,
    origin: &Origin,
    payload: Format,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let record = &item.record;
    let mut text = String::with_capacity(256);
    let priority = FACILITY * 8 + severity(item).syslog();
    let _ = write!(text, "<{priority}>1 {:.6} ", item.recorded);
    word(&mut text, origin.host.as_deref().unwrap_or("-"), 255);
    text.push_str("portcullis ");
    let _ = write!(text, "{} ", origin.pid);
    let id = record.event().unwrap_or(kind_word(record.kind()));
    word(&mut text, id, 32);
    let _ = write!(text, "[{SD_ID}");
    param(&mut text, "log", &origin.log);
    param(&mut text, "seq", &item.seq.to_string());
    param(&mut text, "hash", &item.hash.to_string());
    param(&mut text, "prev", &item.prev.to_string());
    param(&mut text, "id", &record.id().to_string());
    if let Some(principal) = record.principal() {
        param(&mut text, "principal", principal);
    }
    if let Some(method) = record.call().and_then(|call| call.method.as_deref()) {
        param(&mut text, "method", method);
    }
    if let Some(server) = record.server() {
        param(&mut text, "server", server);
    }
    if let Some(tool) = record.tool() {
        param(&mut text, "tool", tool);
    }
    if let Some(decision) = record.decision() {
        param(&mut text, "decision", decision_word(decision));
    }
    if let Some(code) = record.code() {
        param(&mut text, "code", code);
    }
    text.push_str("] ");
    out.extend_from_slice(text.as_bytes());
    // MSG-ANY: no byte order mark, which would keep many readers from seeing the JSON.
    super::one(payload, item, origin, out)
}

/// Appends a header field: printable ASCII without spaces, of at most `most` bytes.
fn word(text: &mut String, value: &str, most: usize) {
    let legal = value.chars().filter(char::is_ascii_graphic).take(most);
    let before = text.len();
    text.extend(legal);
    if text.len() == before {
        text.push('-');
    }
    text.push(' ');
}

/// Appends ` name="value"`: escapes `"`, `\` and `]` (section 6.3.3), replaces control characters.
fn param(text: &mut String, name: &str, value: &str) {
    let _ = write!(text, " {name}=\"");
    for c in value.chars() {
        match c {
            '"' | '\\' | ']' => text.extend(['\\', c]),
            c if c.is_control() => text.push('\u{fffd}'),
            c => text.push(c),
        }
    }
    text.push('"');
}
