//! `portcullis server stats`: shows the activity and the resource use of each running instance.

use bytesize::ByteSize;
use jiff::SignedDuration;
use serde_json::Value;

use crate::cli::{Context, Exit};
use portcullis_gateway::admin;
use portcullis_protocol::names::ServerName;

/// Gets the numbers from the running proxy, and shows one server or all.
pub(super) async fn run(
    ctx: &Context,
    proxy: Option<admin::Client>,
    only: Option<&ServerName>,
) -> anyhow::Result<Exit> {
    let Some(proxy) = proxy else {
        anyhow::bail!(
            "no proxy runs with this config, so no server does: start it with `portcullis run`"
        )
    };
    let states: Vec<Value> = proxy.get_json("/v1/servers").await?;
    let states: Vec<_> = states
        .iter()
        .filter(|state| only.is_none_or(|only| state["name"] == only.as_str()))
        .collect();
    if ctx.is_json() {
        let stats: Vec<_> = states.iter().map(|state| stats(state)).collect();
        ctx.json(&stats)?;
        return Ok(Exit::Ok);
    }
    let header =
        ["SERVER", "INSTANCE", "CLIENT", "PROCESS", "CALLS", "UP", "MEMORY", "CPU", "STATE"];
    ctx.table(&header, states.iter().flat_map(|state| rows(state)))?;
    for state in states {
        let name = state["name"].as_str().unwrap_or("");
        if let Some(warm @ 1..) = state["warm"].as_u64() {
            let wait = if warm == 1 { "process waits" } else { "processes wait" };
            ctx.note(format_args!("{name}: {warm} {wait} for a first word (`warm`)."));
        }
        if let Some(unwell @ 1..) = state["unwell"].as_u64() {
            ctx.note(format_args!(
                "{name}: {unwell} did not answer whether they are well and were ended (`health-s`)."
            ));
        }
        if let Some(dropped @ 1..) = state["dropped"].as_u64() {
            ctx.note(format_args!("{name}: {dropped} messages of it did not fit a queue."));
        }
    }
    Ok(Exit::Ok)
}

fn stats(state: &Value) -> Value {
    let keys = ["name", "state", "health", "active", "warm", "dropped", "unwell", "instances"];
    keys.iter()
        .map(|key| ((*key).to_owned(), state[*key].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn rows(state: &Value) -> Vec<Vec<String>> {
    let name = state["name"].as_str().unwrap_or("").to_owned();
    let instances = state["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
    if instances.is_empty() {
        let health = state["health"].as_str().unwrap_or("").to_owned();
        return vec![vec![name, health]];
    }
    let unwell = state["health"] == "unhealthy";
    let row = |instance: &Value| {
        let text = |key: &str| instance[key].as_str().unwrap_or("").to_owned();
        let number = |key: &str| instance[key].as_u64().unwrap_or_default();
        let up = SignedDuration::from_secs(i64::try_from(number("upSeconds")).unwrap_or(i64::MAX));
        let memory = instance["memoryBytes"].as_u64();
        let state = match (instance["leaving"].as_bool(), instance["answeredMs"].as_f64()) {
            (Some(true), _) => "ends with its calls".to_owned(),
            (_, _) if unwell && instance["client"].is_null() => "does not answer".to_owned(),
            (_, Some(ms)) => format!("well, in {ms:.1} ms"),
            _ => String::new(),
        };
        let cpu = instance["cpuSeconds"].as_f64();
        vec![
            name.clone(),
            number("number").to_string(),
            text("client"),
            text("process"),
            number("active").to_string(),
            format!("{up:#}"),
            memory.map(|bytes| ByteSize(bytes).display().iec().to_string()).unwrap_or_default(),
            cpu.map(|seconds| format!("{seconds:.1} s")).unwrap_or_default(),
            state,
        ]
    };
    instances.iter().map(row).collect()
}
