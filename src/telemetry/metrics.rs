//! Metrics with the names that users of MCP gateways know, as OpenMetrics text.
//!
//! Label values come from closed sets: methods, transports and outcomes of Portcullis, names of the
//! config, and tools that a server has. All other values become `other`, so that neither a client
//! nor a server can grow the store.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use portcullis_audit::export::Meters;
use portcullis_egress::End;
use portcullis_protocol::{
    exchange::{Definition, Method, Transport},
    identity::{Principal, PrincipalKind},
    names::{ExportName, ServerName},
    refusal::Code,
};

/// Content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Limit of tools with their own label, over all servers.
const MAX_TOOLS: usize = 1_000;
/// Limit in bytes of a tool's name as a label.
const MAX_TOOL_BYTES: usize = 128;
const OTHER: &str = "other";
/// Limit of the counters of one plugin.
const MAX_PLUGIN_NAMES: usize = 32;

/// JSON-RPC error codes with their own label: those of JSON-RPC, MCP and Portcullis.
const ERRORS: &[(i64, &str)] = &[
    (-32700, "-32700"),
    (-32600, "-32600"),
    (-32601, "-32601"),
    (-32602, "-32602"),
    (-32603, "-32603"),
    (-32002, "-32002"),
    (-32001, "-32001"),
    (-32000, "-32000"),
    (-32020, "-32020"),
    (-32021, "-32021"),
    (-32022, "-32022"),
    (-31000, "-31000"),
];

/// Outcome of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A result, or an accepted notification.
    Ok,
    /// An error of a tool: a result with `isError`.
    ToolError,
    /// An error of the server.
    Error,
    /// A refusal of the proxy.
    Refused,
    /// The client disconnected before the answer.
    Cancelled,
}

impl Outcome {
    /// Value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ToolError => "tool-error",
            Self::Error => "error",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Value of a label: a constant, a name of the config, or a tool.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Value {
    Fixed(&'static str),
    Named(Arc<str>),
}

impl EncodeLabelValue for Value {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Self::Fixed(text) => text.encode(encoder),
            Self::Named(text) => text.as_ref().encode(encoder),
        }
    }
}

impl From<&ServerName> for Value {
    fn from(name: &ServerName) -> Self {
        Self::Named(name.as_str().into())
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RequestLabels {
    method: Value,
    transport: Value,
    outcome: Value,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct MethodLabels {
    method: Value,
    transport: Value,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CallLabels {
    server: Value,
    tool: Value,
    client: Value,
    outcome: Value,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ServerLabels {
    server: Value,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct EgressLabels {
    server: Value,
    outcome: Value,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct DirectionLabels {
    server: Value,
    direction: Value,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ExportLabels {
    export: Value,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct EntryLabels {
    plugin: Value,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PluginLabels {
    plugin: Value,
    name: Value,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CodeLabels {
    code: Value,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: Value,
}

type Histograms<S> = Family<S, Histogram>;
type Seconds = Counter<f64, AtomicU64>;

/// 50 µs to 60 s.
const CALL_BUCKETS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 5.0, 60.0,
];
/// 10 µs to 1 s.
const OVERHEAD_BUCKETS: [f64; 14] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025,
    0.05, 0.25, 1.0,
];

/// One finished `tools/call`.
#[derive(Debug, Clone, Copy)]
pub struct ToolCall<'a> {
    pub server: Option<&'a ServerName>,
    /// Tool, if a server has it.
    pub tool: Option<&'a Definition>,
    pub principal: &'a Principal,
    pub outcome: Outcome,
    /// Time from the message's arrival to its answer.
    pub total: Duration,
    /// Time in the server; `None` if the call did not reach it.
    pub in_tool: Option<Duration>,
}

/// All metrics of one proxy. Cheap to share in an `Arc`; no globals.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    active: Gauge,
    durations: Histograms<MethodLabels>,
    tool_calls: Family<CallLabels, Counter>,
    in_tool: Histograms<ServerLabels>,
    overhead: Histogram,
    errors: Family<CodeLabels, Counter>,
    refusals: Family<CodeLabels, Counter>,
    sessions: Gauge,
    running: Gauge,
    memory: Family<ServerLabels, Gauge>,
    cpu: Family<ServerLabels, Seconds>,
    unwell: Family<ServerLabels, Counter>,
    /// Last measured processor time of each server's instances, by instance number.
    cpu_seen: Mutex<HashMap<ServerName, HashMap<u64, Duration>>>,
    audit_records: Counter,
    audit_missed: Counter,
    audit_passing: Gauge,
    audit_unsigned: Gauge,
    exported: Family<ExportLabels, Counter>,
    export_failures: Family<ExportLabels, Counter>,
    export_lost: Family<ExportLabels, Counter>,
    export_lag: Family<ExportLabels, Gauge>,
    reloads: Family<OutcomeLabels, Counter>,
    config_reloads: Family<OutcomeLabels, Counter>,
    plugins: Family<PluginLabels, Counter>,
    /// Number of counters of each plugin.
    plugin_names: Mutex<BTreeMap<String, usize>>,
    plugin_circuits: Family<EntryLabels, Gauge>,
    egress_open: Family<ServerLabels, Gauge>,
    egress: Family<EgressLabels, Counter>,
    egress_bytes: Family<DirectionLabels, Counter>,
    tools_seen: Mutex<HashMap<ServerName, HashSet<Arc<str>>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics with zero counts.
    pub fn new() -> Self {
        let call_histogram: fn() -> Histogram = || Histogram::new(CALL_BUCKETS);
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            active: Gauge::default(),
            durations: Family::new_with_constructor(call_histogram),
            tool_calls: Family::default(),
            in_tool: Family::new_with_constructor(call_histogram),
            overhead: Histogram::new(OVERHEAD_BUCKETS),
            errors: Family::default(),
            refusals: Family::default(),
            sessions: Gauge::default(),
            running: Gauge::default(),
            memory: Family::default(),
            cpu: Family::default(),
            unwell: Family::default(),
            cpu_seen: Mutex::default(),
            audit_records: Counter::default(),
            audit_missed: Counter::default(),
            audit_passing: Gauge::default(),
            audit_unsigned: Gauge::default(),
            exported: Family::default(),
            export_failures: Family::default(),
            export_lost: Family::default(),
            export_lag: Family::default(),
            reloads: Family::default(),
            config_reloads: Family::default(),
            plugins: Family::default(),
            plugin_names: Mutex::default(),
            plugin_circuits: Family::default(),
            egress_open: Family::default(),
            egress: Family::default(),
            egress_bytes: Family::default(),
            tools_seen: Mutex::default(),
        };
        metrics.register();
        metrics
    }

    /// The encoder appends `_total` to counters' names and a full stop to descriptions.
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register(
            "mcp_requests",
            "Messages by method, transport and outcome",
            self.requests.clone(),
        );
        r.register("mcp_requests_active", "Messages in flight", self.active.clone());
        r.register(
            "mcp_request_duration_seconds",
            "Time from a message's arrival to its answer",
            self.durations.clone(),
        );
        r.register(
            "mcp_tool_calls",
            "Tool calls by server, tool, client and outcome",
            self.tool_calls.clone(),
        );
        r.register(
            "mcp_tool_call_duration_seconds",
            "Time that tool calls spend in the server",
            self.in_tool.clone(),
        );
        r.register(
            "portcullis_overhead_seconds",
            "Time that tool calls spend in the gateway, without the server's time",
            self.overhead.clone(),
        );
        r.register(
            "portcullis_egress_open",
            "Open egress connections of a server",
            self.egress_open.clone(),
        );
        r.register(
            "portcullis_egress_connections",
            "Requested egress connections of a server, by outcome: the code of a refusal, or \
            another end",
            self.egress.clone(),
        );
        r.register(
            "portcullis_egress_bytes",
            "Bytes of a server's egress connections: up from it, down to it",
            self.egress_bytes.clone(),
        );
        r.register("mcp_errors", "JSON-RPC errors sent to clients, by code", self.errors.clone());
        r.register("portcullis_refusals", "Refusals by stable code", self.refusals.clone());
        r.register("portcullis_sessions_active", "Legacy sessions", self.sessions.clone());
        r.register(
            "portcullis_servers_running",
            "Running instances of \
            servers",
            self.running.clone(),
        );
        r.register(
            "portcullis_server_memory_bytes",
            "Memory of a running server",
            self.memory.clone(),
        );
        r.register("portcullis_server_cpu_seconds", "Processor time of a server", self.cpu.clone());
        r.register(
            "portcullis_server_unwell",
            "Instances of servers ended after a failed health check",
            self.unwell.clone(),
        );
        r.register("portcullis_audit_records", "Audit records written", self.audit_records.clone());
        r.register(
            "portcullis_audit_missed",
            "Audit records missing from the log, if calls continue without it",
            self.audit_missed.clone(),
        );
        r.register(
            "portcullis_audit_passing",
            "1 while calls continue without an audit record",
            self.audit_passing.clone(),
        );
        r.register(
            "portcullis_audit_unsigned",
            "1 while checkpoints of the audit log cannot be signed",
            self.audit_unsigned.clone(),
        );
        r.register(
            "portcullis_audit_export_records",
            "Audit records delivered, by export",
            self.exported.clone(),
        );
        r.register(
            "portcullis_audit_export_failures",
            "Batches of audit records that could not be delivered, by export",
            self.export_failures.clone(),
        );
        r.register(
            "portcullis_audit_export_lost_records",
            "Audit records dropped before they were delivered, by export",
            self.export_lost.clone(),
        );
        r.register(
            "portcullis_audit_export_lag_records",
            "Audit records waiting for delivery, by export",
            self.export_lag.clone(),
        );
        r.register(
            "portcullis_policy_reloads",
            "Reloads of the policies by outcome",
            self.reloads.clone(),
        );
        r.register(
            "portcullis_config_reloads",
            "Reloads of the config by outcome",
            self.config_reloads.clone(),
        );
        r.register(
            "portcullis_plugin_events",
            "Counters of plugins, by their names",
            self.plugins.clone(),
        );
        r.register(
            "portcullis_plugin_circuits_open",
            "Pairs of caller and server for which a plugin's circuit is open",
            self.plugin_circuits.clone(),
        );
    }

    /// A message arrived. It counts as active until the guard is finished or dropped; dropped, it
    /// counts as cancelled.
    pub fn request(self: &Arc<Self>, method: &Method, transport: Transport) -> ActiveRequest {
        self.active.inc();
        ActiveRequest {
            metrics: Arc::clone(self),
            method: method_label(method),
            transport: transport_label(transport),
            outcome: Outcome::Cancelled,
            began: Instant::now(),
        }
    }

    /// A `tools/call` ended.
    pub fn tool_call(&self, call: ToolCall<'_>) {
        let server = call.server.map_or(Value::Fixed(OTHER), Value::from);
        self.tool_calls
            .get_or_create(&CallLabels {
                server: server.clone(),
                tool: self.tool_label(call.tool),
                client: client_label(call.principal),
                outcome: Value::Fixed(call.outcome.as_str()),
            })
            .inc();
        let in_tool = call.in_tool.unwrap_or_default();
        self.overhead.observe(call.total.saturating_sub(in_tool).as_secs_f64());
        if call.in_tool.is_some() {
            self.in_tool.get_or_create(&ServerLabels { server }).observe(in_tool.as_secs_f64());
        }
    }

    /// A client got a JSON-RPC error from the proxy or a server.
    pub fn error(&self, rpc_code: i64) {
        let code =
            ERRORS.iter().find(|(code, _)| *code == rpc_code).map_or(OTHER, |(_, text)| text);
        self.errors.get_or_create(&CodeLabels { code: Value::Fixed(code) }).inc();
    }

    /// The proxy refused a message.
    pub fn refusal(&self, code: Code) {
        self.refusals.get_or_create(&CodeLabels { code: Value::Fixed(code.as_str()) }).inc();
    }

    /// Current number of legacy sessions.
    pub fn sessions(&self, active: usize) {
        self.sessions.set(i64::try_from(active).unwrap_or(i64::MAX));
    }

    /// An instance of a server started.
    pub fn server_started(&self) {
        self.running.inc();
    }

    /// An instance of a server ended after a failed health check.
    pub fn server_unhealthy(&self, server: &ServerName) {
        self.unwell.get_or_create(&ServerLabels { server: server.into() }).inc();
    }

    /// An instance of a server ended. The usage of the others is measured again; the processor time
    /// of ended instances stays counted.
    pub fn server_ended(&self, server: &ServerName) {
        self.running.dec();
        self.memory.remove(&ServerLabels { server: server.into() });
    }

    /// Usage of a server's running instances: number, memory in bytes, and processor time since the
    /// start of each.
    pub fn server_usage(&self, server: &ServerName, instances: &[(u64, u64, Duration)]) {
        if instances.is_empty() {
            return;
        }
        let labels = ServerLabels { server: server.into() };
        let memory: u64 = instances.iter().map(|(_, memory, _)| memory).sum();
        self.memory.get_or_create(&labels).set(i64::try_from(memory).unwrap_or(i64::MAX));
        let now = instances.iter().map(|(number, _, cpu)| (*number, *cpu)).collect();
        let before = self.cpu_seen.lock().insert(server.clone(), now).unwrap_or_default();
        let more = instances.iter().map(|(number, _, cpu)| {
            cpu.saturating_sub(before.get(number).copied().unwrap_or_default()).as_secs_f64()
        });
        self.cpu.get_or_create(&labels).inc_by(more.sum());
    }

    /// Number of audit records written since the start.
    pub fn audit_records(&self, written: u64) {
        self.audit_records.inner().fetch_max(written, Ordering::Relaxed);
    }

    /// Number of audit records missed since the start, and whether calls continue without them.
    pub fn audit_missed(&self, missed: u64, passing: bool) {
        self.audit_missed.inner().fetch_max(missed, Ordering::Relaxed);
        self.audit_passing.set(i64::from(passing));
    }

    /// Whether checkpoints of the audit log cannot be signed now.
    pub fn audit_unsigned(&self, unsigned: bool) {
        self.audit_unsigned.set(i64::from(unsigned));
    }

    /// Meters of one export stream.
    pub fn export(&self, name: &ExportName) -> Meters {
        let labels = ExportLabels { export: Value::Named(name.as_str().into()) };
        Meters {
            records: self.exported.get_or_create_owned(&labels),
            failures: self.export_failures.get_or_create_owned(&labels),
            lost: self.export_lost.get_or_create_owned(&labels),
            lag: self.export_lag.get_or_create_owned(&labels),
        }
    }

    /// The policies were reloaded: applied, or rejected with the previous set kept.
    pub fn policy_reload(&self, applied: bool) {
        let outcome = Value::Fixed(if applied { "applied" } else { "rejected" });
        self.reloads.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// The config was reloaded: applied, or rejected with the previous one kept.
    pub fn config_reload(&self, applied: bool) {
        let outcome = Value::Fixed(if applied { "applied" } else { "rejected" });
        self.config_reloads.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// A server opened an egress connection.
    pub fn egress_opened(&self, server: &ServerName) {
        self.egress_open.get_or_create(&ServerLabels { server: server.into() }).inc();
    }

    /// Outcome of a requested egress connection.
    pub fn egress_ended(&self, server: &ServerName, outcome: &portcullis_egress::Outcome) {
        let server = Value::from(server);
        if outcome.allowed {
            self.egress_open.get_or_create(&ServerLabels { server: server.clone() }).dec();
        }
        let ended = match &outcome.end {
            End::Refused(refusal) => refusal.code(),
            End::Closed => "closed",
            End::Broken => "broken",
            End::Idle => "idle",
            End::Revoked(_) => "revoked",
            End::Stopped => "stopped",
        };
        let labels = EgressLabels { server: server.clone(), outcome: Value::Fixed(ended) };
        self.egress.get_or_create(&labels).inc();
        for (direction, bytes) in [("up", outcome.up), ("down", outcome.down)] {
            let direction = Value::Fixed(direction);
            let labels = DirectionLabels { server: server.clone(), direction };
            self.egress_bytes.get_or_create(&labels).inc_by(bytes);
        }
    }

    /// A plugin counted something. The config names plugins; the number of counters of each is
    /// limited, also after a plugin is replaced.
    pub fn plugin_counted(&self, plugin: &str, name: &str, by: u64) {
        let labels =
            PluginLabels { plugin: Value::Named(plugin.into()), name: Value::Named(name.into()) };
        if self.plugins.get(&labels).is_none() {
            let mut names = self.plugin_names.lock();
            let names = names.entry(plugin.to_owned()).or_default();
            if *names >= MAX_PLUGIN_NAMES {
                return;
            }
            if self.plugins.get(&labels).is_none() {
                *names += 1;
                drop(self.plugins.get_or_create(&labels));
            }
        }
        // A counter that decreases would be read as restarted.
        let counter = self.plugins.get_or_create(&labels);
        counter.inc_by(by.min(u64::MAX - counter.get()));
    }

    /// A plugin's circuit is open for this number of caller and server pairs.
    pub fn plugin_circuits_open(&self, plugin: &str, between: usize) {
        let labels = EntryLabels { plugin: Value::Named(plugin.into()) };
        let between = i64::try_from(between).unwrap_or(i64::MAX);
        self.plugin_circuits.get_or_create(&labels).set(between);
    }

    /// All metrics as OpenMetrics text, of [`CONTENT_TYPE`].
    ///
    /// # Errors
    /// None in practice: the encoder's own, which writing to a string does not cause.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    fn tool_label(&self, tool: Option<&Definition>) -> Value {
        let Some(tool) = tool.filter(|tool| is_fit(&tool.name)) else {
            return Value::Fixed(OTHER);
        };
        let mut seen = self.tools_seen.lock();
        if let Some(name) = seen.get(&tool.server).and_then(|names| names.get(tool.name.as_str())) {
            return Value::Named(Arc::clone(name));
        }
        if seen.values().map(HashSet::len).sum::<usize>() >= MAX_TOOLS {
            return Value::Fixed(OTHER);
        }
        let name: Arc<str> = tool.name.as_str().into();
        seen.entry(tool.server.clone()).or_default().insert(Arc::clone(&name));
        Value::Named(name)
    }
}

/// Whether a tool's name is short and simple enough for a label. The text format escapes quotes and
/// line feeds, but no other control characters.
fn is_fit(name: &str) -> bool {
    name.len() <= MAX_TOOL_BYTES && !name.chars().any(char::is_control)
}

fn method_label(method: &Method) -> &'static str {
    Method::KNOWN.iter().find(|known| **known == method.as_str()).copied().unwrap_or(OTHER)
}

fn transport_label(transport: Transport) -> &'static str {
    match transport {
        Transport::Http => "http",
        Transport::Unix => "unix",
        Transport::Stdio => "stdio",
        Transport::Cli => "cli",
    }
}

fn client_label(principal: &Principal) -> Value {
    match &principal.kind {
        PrincipalKind::Client(name) => Value::Named(name.as_str().into()),
        PrincipalKind::Local { .. } => Value::Fixed("local"),
        PrincipalKind::Anonymous => Value::Fixed("anonymous"),
    }
}

/// A message in flight.
#[must_use = "a dropped message counts as cancelled"]
pub struct ActiveRequest {
    metrics: Arc<Metrics>,
    method: &'static str,
    transport: &'static str,
    outcome: Outcome,
    began: Instant,
}

impl ActiveRequest {
    /// Sets the outcome of the message.
    pub fn finish(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let (method, transport) = (Value::Fixed(self.method), Value::Fixed(self.transport));
        self.metrics.active.dec();
        self.metrics
            .durations
            .get_or_create(&MethodLabels { method: method.clone(), transport: transport.clone() })
            .observe(self.began.elapsed().as_secs_f64());
        self.metrics
            .requests
            .get_or_create(&RequestLabels {
                method,
                transport,
                outcome: Value::Fixed(self.outcome.as_str()),
            })
            .inc();
    }
}

#[cfg(test)]
mod tests;
