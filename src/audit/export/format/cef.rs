//! ArcSight's Common Event Format, revision 26: `CEF:0|Portcullis|Portcullis|VERSION|SIGNATURE|
//! NAME|SEVERITY|EXTENSION`.

use std::fmt::Write as _;

use super::{super::Item, Origin, decision_word, kind_word, severity};
use crate::record::{Decision, Direction, Kind, Record, Target, Transport};

/// Writes one record, without a line feed.
pub(super) fn event(item: &Item, origin: &Origin, out: &mut Vec<u8>) {
    let record = &item.record;
    let kind = kind_word(record.kind());
    let event = record.event();
    let call = record.call();
    let refusal = record.refusal();
    // SIEM rules match on the signature: the refusal's code, or else the kind of record.
    let signature = refusal.map(|refusal| refusal.code.as_str()).or(event).unwrap_or(kind);
    let name = match (call.and_then(|call| call.method.as_deref()), event) {
        (Some(method), _) => format!("{method} {kind}"),
        (None, Some(event)) => event.replace('-', " "),
        (None, None) => format!("message {kind}"),
    };
    let mut text = String::with_capacity(512);
    text.push_str("CEF:0|Portcullis|Portcullis|");
    header(&mut text, origin.version);
    header(&mut text, signature);
    header(&mut text, &name);
    let _ = write!(text, "{}|", severity(item).cef());

    let mut pairs = Pairs { text: &mut text, first: true };
    pairs.add("rt", &item.recorded.as_millisecond().to_string());
    pairs.add("start", &item.record.at().as_millisecond().to_string());
    pairs.add("externalId", &record.id().to_string());
    pairs.add("cat", kind);
    if let Some(host) = &origin.host {
        pairs.add("dvchost", host);
    }
    pairs.maybe("suser", record.principal());
    if let Some(call) = call {
        pairs.add("app", "MCP");
        pairs.add(
            "deviceDirection",
            match call.direction {
                Direction::ClientToServer => "0",
                Direction::ServerToClient => "1",
            },
        );
        if let Some(addr) = call.client_addr {
            let ip = addr.ip().to_canonical();
            pairs.add(if ip.is_ipv4() { "src" } else { "c6a2" }, &ip.to_string());
            if ip.is_ipv6() {
                pairs.add("c6a2Label", "Source IPv6 Address");
            }
            pairs.add("spt", &addr.port().to_string());
        }
        pairs.add(
            "proto",
            match call.transport {
                Transport::Http => "TCP",
                Transport::Unix => "UNIX",
                Transport::Stdio => "STDIO",
                Transport::Cli => "CLI",
            },
        );
        pairs.maybe("requestMethod", call.method.as_deref());
        match &call.target {
            Some(Target::Tool(name)) => pairs.labelled("cs1", "tool", name),
            Some(Target::Prompt(name)) => pairs.labelled("cs1", "prompt", name),
            Some(Target::Resource(uri)) => pairs.add("request", uri),
            None => {}
        }
    }
    pairs.maybe("destinationServiceName", record.server());
    if let Some(decision) = record.decision() {
        pairs.add("act", decision_word(decision));
        if record.kind() != Kind::Intent {
            let passed = decision == Decision::Allowed;
            pairs.add("outcome", if passed { "success" } else { "failure" });
        }
    }
    if let Some(refusal) = refusal {
        pairs.add("reason", &refusal.code);
        pairs.add("msg", refusal.detail.as_deref().unwrap_or(&refusal.message));
    }
    if let Some(grounds) = record.grounds() {
        if let Some(rule) = grounds.deciding().next() {
            pairs.labelled("cs2", "rule", &rule.id);
        }
        if let Some(revision) = &grounds.policy_revision {
            pairs.labelled("cs3", "policyRevision", revision);
        }
    }
    if let Some(session) = record.session() {
        pairs.labelled("cs4", "session", session);
    }
    if let Some(call) = call {
        if let Some(trace) = &call.trace {
            pairs.labelled("cs5", "trace", trace);
        }
        if !call.labels.is_empty() {
            let labels: Vec<&str> = call.labels.iter().map(String::as_str).collect();
            pairs.labelled("flexString1", "labels", &labels.join(","));
        }
    }
    pairs.labelled("cs6", "recordHash", &item.hash.to_string());
    pairs.labelled("flexString2", "previousHash", &item.prev.to_string());
    pairs.labelled("cn1", "seq", &item.seq.to_string());
    if let Some(timing) = item.record.timing() {
        pairs.labelled("cn2", "totalMicroseconds", &timing.total_us.to_string());
        if let Some(server) = timing.server_us {
            pairs.labelled("cn3", "serverMicroseconds", &server.to_string());
        }
    }
    if let Some(body) = item.request() {
        pairs.add("in", &body.bytes.to_string());
    }
    if let Some(body) = item.response() {
        pairs.add("out", &body.bytes.to_string());
    }
    if let Some(group) = record.refusals() {
        pairs.add("reason", &group.code);
        pairs.maybe("src", group.network.as_deref().filter(|network| !network.contains(':')));
    }
    if let Some(count) = record.summarized() {
        pairs.add("cnt", &count.to_string());
    }
    if let Record::Event(event) = record {
        pairs.add("msg", &event.what.to_string());
    }
    out.extend_from_slice(text.as_bytes());
}

/// Appends a header field: escapes `|` and `\`, and replaces control characters.
fn header(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '|' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => text.push(' '),
            c => text.push(c),
        }
    }
    text.push('|');
}

struct Pairs<'a> {
    text: &'a mut String,
    first: bool,
}

impl Pairs<'_> {
    /// Appends `key=value`: escapes `=` and `\`, writes line breaks as `\n` and `\r`, and replaces
    /// other control characters, for which the format has no escape.
    fn add(&mut self, key: &str, value: &str) {
        if !self.first {
            self.text.push(' ');
        }
        self.first = false;
        self.text.push_str(key);
        self.text.push('=');
        for c in value.chars() {
            match c {
                '=' | '\\' => self.text.extend(['\\', c]),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                c if c.is_control() => self.text.push('\u{fffd}'),
                c => self.text.push(c),
            }
        }
    }

    fn maybe(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.add(key, value);
        }
    }

    /// Appends a custom field with its label.
    fn labelled(&mut self, key: &str, label: &str, value: &str) {
        self.add(&format!("{key}Label"), label);
        self.add(key, value);
    }
}
