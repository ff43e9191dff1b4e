//! Metadata of a component, its requests for grants, and its cost.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    UserError,
    cases::{Hook, StubServices, granted, hooks},
};
use portcullis_gateway::permits;
use portcullis_plugin_host::{
    Artifact, Compiled, Direction, Grants, Lifetime, Message, Phase, Pin, Plugin, PluginHost,
    Principal, PrincipalKind, Settings, Target,
};
use portcullis_vault::Secret;

/// Sizes of measured texts in bytes.
const SIZES: [usize; 3] = [1 << 10, 10 << 10, 100 << 10];
/// Minimum duration and minimum number of runs of each measurement.
const PATIENCE: Duration = Duration::from_millis(300);
const RUNS: usize = 5;
/// Pause between two messages, so that cleanup after one does not slow the next one.
const PAUSE: Duration = Duration::from_millis(1);
/// Deadline of a measured message. Messages run one after the other, so slow ones may finish.
const DEADLINE: Duration = Duration::from_secs(30);
const MEMORY_MIB: u64 = 64;
/// Content of measured texts: words, as heuristics expect them.
const WORDS: &str = "The committee met on Tuesday and agreed to look at the numbers again. ";

/// Result of an inspection of a component.
#[derive(Debug, Serialize)]
pub struct Inspection {
    pub name: String,
    pub version: String,
    pub description: String,
    pub path: PathBuf,
    pub bytes: usize,
    pub sha256: String,
    pub compile_ms: u64,
    pub lifetime: &'static str,
    /// Whether it runs only once per phase of an exchange, whatever other interceptors replace.
    pub once: bool,
    pub hooks: Vec<Hook>,
    /// Host functions that it imports.
    pub imports: Vec<&'static str>,
    pub hosts: Vec<String>,
    pub secrets: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_schema: Option<Value>,
    /// Entry of a config for it, with all requested grants.
    pub config: String,
    /// Policies that permit these grants.
    pub policies: Vec<String>,
    /// Names of keys in its signatures; only `plugin verify` verifies them.
    pub signatures: Vec<String>,
    pub costs: Vec<Cost>,
    /// Microseconds per KiB beyond the first.
    pub slopes: Vec<Slope>,
    /// Reason why the costs could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmeasured: Option<String>,
}

/// Cost of each KiB of a message beyond the first.
#[derive(Debug, Serialize)]
pub struct Slope {
    pub event: String,
    pub phase: &'static str,
    pub us: f64,
}

/// Cost of messages of one size.
#[derive(Debug, Serialize)]
pub struct Cost {
    pub event: String,
    pub phase: &'static str,
    pub kib: usize,
    pub runs: usize,
    /// Microseconds: the median; `p99_us` is the 99th percentile.
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Inspects a component. The given configuration is for the measurement of costs.
///
/// # Errors
/// The component is not a plugin.
pub async fn inspect(
    found: &Artifact,
    config: Map<String, Value>,
    measure: bool,
) -> Result<Inspection, UserError> {
    let before = Instant::now();
    let compiled = Compiled::of(found, Pin::Any, None)?;
    let (path, _) = found.places();
    let compile_ms = u64::try_from(before.elapsed().as_millis()).unwrap_or(u64::MAX);
    let manifest = compiled.manifest();
    let schema = manifest.config_schema.as_deref();
    let mut inspection = Inspection {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        description: manifest.description.clone(),
        path: path.to_owned(),
        bytes: compiled.size(),
        sha256: compiled.sha256().to_owned(),
        compile_ms,
        lifetime: match manifest.lifetime {
            Lifetime::Message => "message",
            Lifetime::Session => "session",
        },
        once: manifest.once,
        hooks: hooks(&compiled),
        imports: compiled.functions().iter().map(|function| function.as_str()).collect(),
        hosts: manifest.hosts.iter().map(ToString::to_string).collect(),
        secrets: manifest.secrets.clone(),
        config_schema: schema.and_then(|schema| serde_json::from_str(schema).ok()),
        config: match found.named() {
            Some(named) => lines(named, &compiled),
            None => entry(path, &compiled),
        },
        policies: policies(&compiled),
        signatures: signatures(found.note().unwrap_or_default()),
        costs: Vec::new(),
        slopes: Vec::new(),
        unmeasured: None,
    };
    if measure {
        match costs(&compiled, config).await {
            Ok(costs) => {
                let halves = costs.chunk_by(|a, b| a.phase == b.phase);
                inspection.slopes = halves
                    .filter_map(|half| {
                        let Cost { event, phase, .. } = half.first()?;
                        Some(Slope { event: event.clone(), phase, us: slope(half)? })
                    })
                    .collect();
                inspection.costs = costs;
            }
            Err(why) => inspection.unmeasured = Some(why),
        }
    }
    Ok(inspection)
}

/// Lines of a config for a component, with all requested grants.
pub fn entry(path: &Path, compiled: &Compiled) -> String {
    let path = toml::Value::from(path.display().to_string());
    lines(&format!("path = {path}\nsha256 = \"{}\"\n", compiled.sha256()), compiled)
}

/// Lines of a config for a component whose source is given by the lines `named`.
fn lines(named: &str, compiled: &Compiled) -> String {
    let manifest = compiled.manifest();
    let name = &manifest.name;
    let mut lines = format!("[[interceptors]]\nuse = \"plugin\"\nname = \"{name}\"\n{named}");
    let schema = manifest.config_schema.as_deref();
    let schema: Option<Value> = schema.and_then(|schema| serde_json::from_str(schema).ok());
    let required = |schema: &Value| schema.get("required")?.as_array().map(|all| !all.is_empty());
    if let Some(schema) = schema.filter(|schema| required(schema) == Some(true)) {
        let example = example(&schema, "", 0);
        lines += &format!("config = {example}   # an example: write your own values\n");
    }
    if let Some(missing) = compiled.missing(&Grants::default()) {
        lines += &format!("[interceptors.grants]\n{}\n", missing.lines());
    }
    lines
}

/// Levels of an example.
const EXAMPLE_DEPTH: usize = 8;

/// A value for a schema, with the required members only. It has the right types; a pattern or a
/// format may want another text.
fn example(schema: &Value, name: &str, depth: usize) -> toml::Value {
    let first = |key: &str| schema.get(key)?.as_array()?.first();
    let given = schema.get("default").or_else(|| schema.get("const"));
    let given = given.or_else(|| first("examples")).or_else(|| first("enum"));
    if let Some(given) = given.and_then(|given| toml::Value::try_from(given).ok()) {
        return given;
    }
    let least = |key: &str| schema.get(key).and_then(Value::as_i64);
    let kind = schema.get("type").and_then(|kind| kind.as_str().or_else(|| kind.get(0)?.as_str()));
    match kind {
        Some("boolean") => true.into(),
        Some("integer") => least("minimum").unwrap_or(1).into(),
        Some("number") => least("minimum").map_or(1.0, |least| least as f64).into(),
        Some("array") if depth < EXAMPLE_DEPTH => {
            let item = schema.get("items").map(|items| example(items, name, depth + 1));
            item.into_iter().collect::<Vec<_>>().into()
        }
        Some("object") if depth < EXAMPLE_DEPTH => {
            let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
            let members = required.filter_map(Value::as_str).map(|member| {
                let of = schema.pointer("/properties").and_then(|all| all.get(member));
                (member.to_owned(), example(of.unwrap_or(&Value::Null), member, depth + 1))
            });
            members.collect::<toml::Table>().into()
        }
        _ => name.to_uppercase().into(),
    }
}

/// Policies that permit all grants that a component requests.
pub fn policies(compiled: &Compiled) -> Vec<String> {
    let manifest = compiled.manifest();
    permits(&manifest.name, &granted(compiled, manifest.secrets.iter()))
}

fn signatures(note: &str) -> Vec<String> {
    let lines = note.lines().filter_map(|line| line.strip_prefix("\u{2014} "));
    lines.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

async fn costs(compiled: &Compiled, config: Map<String, Value>) -> Result<Vec<Cost>, String> {
    let manifest = compiled.manifest();
    let settings = Settings {
        entry: manifest.name.clone(),
        config,
        memory_mib: MEMORY_MIB,
        fail_open: false,
        trial: None,
        deadline: DEADLINE,
        grants: granted(compiled, manifest.secrets.iter()),
        secrets: manifest
            .secrets
            .iter()
            .map(|name| (name.clone(), Secret::new("a secret of nobody's".into())))
            .collect(),
    };
    let plugin_host =
        PluginHost { services: Arc::new(StubServices::default()), ..PluginHost::bare() };
    let plugin =
        compiled.plugin(settings, &plugin_host).map_err(|unusable| unusable.to_string())?;
    let mut costs = Vec::new();
    for phase in ["request", "response"] {
        // One method per phase: the most frequent one, if the plugin hooks it.
        let all = hooks(compiled);
        let of_phase = || all.iter().filter(|hook| hook.phase == phase);
        let hook = of_phase().find(|hook| matches!(hook.event.as_str(), "tools/call" | "*"));
        let Some(hook) = hook.or_else(|| of_phase().next()) else { continue };
        for size in SIZES {
            costs.push(cost(&plugin, hook, size).await?);
        }
    }
    Ok(costs)
}

async fn cost(plugin: &Plugin, hook: &Hook, size: usize) -> Result<Cost, String> {
    let message = sized(hook, size);
    let mut took = Vec::new();
    let begun = Instant::now();
    // The first messages are not counted, since caches are cold.
    let mut warm = 3;
    while took.len() < RUNS || begun.elapsed() < PATIENCE {
        let message = message.clone();
        let before = Instant::now();
        let verdict = plugin.inspect(message, None).await;
        let elapsed = before.elapsed();
        if let Err(failure) = verdict.verdict {
            return Err(format!("asked about {} KiB, {failure}", size >> 10));
        }
        match warm {
            0 => took.push(elapsed.as_secs_f64() * 1e6),
            _ => warm -= 1,
        }
        tokio::time::sleep(PAUSE).await;
    }
    took.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let last = took.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let place = (last as f64 * part).round() as usize;
        let micros = took.get(place.min(last)).copied().unwrap_or_default();
        (micros * 10.0).round() / 10.0
    };
    Ok(Cost {
        event: hook.event.clone(),
        phase: hook.phase,
        kib: size >> 10,
        runs: took.len(),
        p50_us: at(0.5),
        p99_us: at(0.99),
    })
}

/// Cost of each KiB beyond the first, from the medians of the smallest and the largest size.
fn slope(costs: &[Cost]) -> Option<f64> {
    let (first, last) = (costs.first()?, costs.last()?);
    let kib = u32::try_from(last.kib.checked_sub(first.kib)?).ok().filter(|kib| *kib > 0)?;
    let slope = (last.p50_us - first.p50_us).max(0.0) / f64::from(kib);
    Some((slope * 100.0).round() / 100.0)
}

/// Message with a payload of about `size` bytes.
fn sized(hook: &Hook, size: usize) -> Message {
    let text: String = WORDS.chars().cycle().take(size.saturating_sub(60)).collect();
    let event = match hook.event.as_str() {
        "*" => "tools/call",
        event => event,
    };
    let (target, payload) = match (event, hook.phase) {
        ("tools/call", "request") => (
            Target::Tool("probe".into()),
            json!({ "name": "probe", "arguments": { "text": text } }),
        ),
        ("tools/call", _) => {
            (Target::Tool("probe".into()), json!({ "content": [{ "type": "text", "text": text }] }))
        }
        ("resources/read", "response") => (
            Target::Resource("probe://text".into()),
            json!({ "contents": [{ "uri": "probe://text", "text": text }] }),
        ),
        _ => (Target::None, json!({ "text": text })),
    };
    Message {
        exchange: "00000000-0000-7000-8000-000000000000".into(),
        event: event.to_owned(),
        phase: if hook.phase == "request" { Phase::Request } else { Phase::Response },
        direction: Direction::ClientToServer,
        server: Some("probe".into()),
        target,
        principal: Principal {
            name: "anonymous".into(),
            kind: PrincipalKind::Anonymous,
            groups: Vec::new(),
        },
        labels: Vec::new(),
        session_prefix: None,
        is_error: false,
        payload: payload.to_string(),
    }
}
