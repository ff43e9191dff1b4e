//! OpenTelemetry logs: an `ExportLogsServiceRequest` in the JSON mapping of OTLP, which every
//! receiver over HTTP accepts. Attribute names are those of OpenTelemetry's semantic conventions,
//! or else `portcullis.*`.

use serde::Serialize;

use super::{super::Item, Fault, Origin, decision_word, kind_word, severity};
use crate::record::{Direction, Target, Transport};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    resource_logs: [ResourceLogs<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceLogs<'a> {
    resource: Resource<'a>,
    scope_logs: [ScopeLogs<'a>; 1],
}

#[derive(Serialize)]
struct Resource<'a> {
    attributes: Vec<Attribute<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ScopeLogs<'a> {
    scope: Scope<'a>,
    log_records: Vec<LogRecord<'a>>,
}

#[derive(Serialize)]
struct Scope<'a> {
    name: &'a str,
    version: &'a str,
}

/// Log record. The mapping writes 64-bit numbers as text.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LogRecord<'a> {
    time_unix_nano: String,
    observed_time_unix_nano: String,
    severity_number: u8,
    severity_text: &'static str,
    event_name: String,
    body: AnyValue<'a>,
    attributes: Vec<Attribute<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Attribute<'a> {
    key: &'static str,
    value: AnyValue<'a>,
}

#[derive(Serialize)]
enum AnyValue<'a> {
    #[serde(rename = "stringValue")]
    String(std::borrow::Cow<'a, str>),
    #[serde(rename = "intValue")]
    Int(String),
    #[serde(rename = "boolValue")]
    Bool(bool),
    #[serde(rename = "arrayValue")]
    Array(Values<'a>),
}

#[derive(Serialize)]
struct Values<'a> {
    values: Vec<AnyValue<'a>>,
}

#[derive(Default)]
struct Attributes<'a>(Vec<Attribute<'a>>);

impl<'a> Attributes<'a> {
    fn text(&mut self, key: &'static str, text: impl Into<std::borrow::Cow<'a, str>>) {
        self.0.push(Attribute { key, value: AnyValue::String(text.into()) });
    }

    fn maybe(&mut self, key: &'static str, text: Option<&'a str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn integer(&mut self, key: &'static str, number: impl std::fmt::Display) {
        self.0.push(Attribute { key, value: AnyValue::Int(number.to_string()) });
    }

    fn list(&mut self, key: &'static str, texts: impl Iterator<Item = &'a str>) {
        let values: Vec<_> = texts.map(|text| AnyValue::String(text.into())).collect();
        if !values.is_empty() {
            self.0.push(Attribute { key, value: AnyValue::Array(Values { values }) });
        }
    }
}

/// Writes one request with all records.
pub(super) fn request(items: &[Item], origin: &Origin, out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut resource = Attributes::default();
    resource.text("service.name", "portcullis");
    resource.text("service.version", origin.version);
    resource.text("service.instance.id", origin.log.as_str());
    resource.maybe("host.name", origin.host.as_deref());
    let request = Request {
        resource_logs: [ResourceLogs {
            resource: Resource { attributes: resource.0 },
            scope_logs: [ScopeLogs {
                scope: Scope { name: "portcullis.audit", version: "1" },
                log_records: items.iter().map(record).collect(),
            }],
        }],
    };
    serde_json::to_writer(out, &request).map_err(|error| Fault(format!("OTLP: {error}")))
}

fn record(item: &Item) -> LogRecord<'_> {
    let (severity_number, severity_text) = severity(item).otel();
    let name = item.record.event().unwrap_or(kind_word(item.record.kind()));
    LogRecord {
        time_unix_nano: item.record.at().as_nanosecond().max(0).to_string(),
        observed_time_unix_nano: item.recorded.as_nanosecond().max(0).to_string(),
        severity_number,
        severity_text,
        event_name: format!("portcullis.audit.{name}"),
        body: AnyValue::String(item.text().into()),
        attributes: attributes(item),
        trace_id: item
            .record
            .call()
            .and_then(|call| call.trace.as_deref())
            .filter(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())),
    }
}

fn attributes(item: &Item) -> Vec<Attribute<'_>> {
    let mut all = Attributes::default();
    all.integer("portcullis.seq", item.seq);
    all.text("portcullis.hash", item.hash.to_string());
    all.text("portcullis.prev", item.prev.to_string());
    all.text("portcullis.id", item.record.id().to_string());
    all.text("portcullis.record", kind_word(item.record.kind()));
    all.maybe("portcullis.event", item.record.event());
    all.maybe("portcullis.server", item.record.server());
    if let Some(decision) = item.record.decision() {
        all.text("portcullis.decision", decision_word(decision));
    }
    if let Some(refusal) = item.record.refusal() {
        all.text("error.type", refusal.code.as_str());
        all.text("portcullis.message", refusal.message.as_str());
    }
    if let Some(grounds) = item.record.grounds() {
        all.list("portcullis.rules", grounds.deciding().map(|rule| rule.id.as_str()));
        all.maybe("portcullis.policy_revision", grounds.policy_revision.as_deref());
    }
    if let Some(timing) = item.record.timing() {
        all.integer("portcullis.total_us", timing.total_us);
        if let Some(server) = timing.server_us {
            all.integer("portcullis.server_us", server);
        }
    }
    if let Some(group) = item.record.refusals() {
        all.text("error.type", group.code.as_str());
        all.maybe("client.address", group.network.as_deref());
    }
    if let Some(count) = item.record.summarized() {
        all.integer("portcullis.count", count);
    }
    all.maybe("user.name", item.record.principal());
    // Only a prefix of the session id is recorded, so this is not `mcp.session.id`.
    all.maybe("portcullis.session", item.record.session());
    let Some(call) = item.record.call() else { return all.0 };
    all.0.push(Attribute { key: "portcullis.verified", value: AnyValue::Bool(call.verified) });
    all.maybe("mcp.method.name", call.method.as_deref());
    all.maybe("mcp.protocol.version", call.revision.as_deref());
    all.text(
        "portcullis.direction",
        match call.direction {
            Direction::ClientToServer => "client-to-server",
            Direction::ServerToClient => "server-to-client",
        },
    );
    all.text(
        "network.transport",
        match call.transport {
            Transport::Http => "tcp",
            Transport::Unix => "unix",
            Transport::Stdio | Transport::Cli => "pipe",
        },
    );
    if let Some(addr) = call.client_addr {
        all.text("client.address", addr.ip().to_canonical().to_string());
        all.integer("client.port", addr.port());
    }
    match &call.target {
        Some(Target::Tool(name)) => all.text("gen_ai.tool.name", name.as_str()),
        Some(Target::Prompt(name)) => all.text("gen_ai.prompt.name", name.as_str()),
        Some(Target::Resource(uri)) => all.text("mcp.resource.uri", uri.as_str()),
        None => {}
    }
    all.list("portcullis.groups", call.groups.iter().map(String::as_str));
    all.maybe("portcullis.pin", call.pin.as_deref());
    all.maybe("container.image.id", call.image.as_deref());
    all.list("portcullis.labels", call.labels.iter().map(String::as_str));
    all.0
}
