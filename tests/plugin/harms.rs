//! Hostile plugins, each with one attack: those of `tests/plugins/harms`, and modules that no
//! compiler generates. Each is refused on load, or faults; it has no other effect.

use std::time::Duration;

use miette::Diagnostic as _;

use super::*;

/// Long enough for a busy machine, short enough to wait for.
fn settings() -> EntrySettings {
    EntrySettings { deadline_ms: Some(2_000), ..EntrySettings::default() }
}

/// Those that let all pass but a message that asks for their harm.
const HONEST: [&str; 10] = [
    "crumbs",
    "hoard",
    "flood-log",
    "flood-log-wide",
    "flood-state",
    "flood-metrics",
    "flood-random",
    "late",
    "long-error",
    "forged-words",
];

/// What those ask for that ask for something.
fn granted(name: &str) -> Config {
    let grants = json!({
        "log": true, "clock": true, "random": true, "metrics": true, "state": "1MiB",
    });
    let entry = json!({ "path": built(name), "allow-unpinned": true, "grants": grants });
    serde_json::from_value(entry).expect("a legal entry")
}

async fn asked(name: &str) -> Result<Verdict, Fault> {
    let plugin =
        load(&granted(name), &settings()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let harm = call("any", json!({ "do": format!("harm:{name}") }), None);
    let said = plugin.inspect(&harm, Phase::Request).await;
    // Whatever it did, it is asked again as if it had not.
    let again = plugin.inspect(&call("any", json!({}), None), Phase::Request).await;
    if HONEST.contains(&name) {
        assert_eq!(again, Ok(Verdict::pass()), "after {name}");
    }
    said
}

fn refused(config: &Config) -> String {
    let error = load(config, &settings()).err().expect("it is not loaded");
    let told = error.to_string();
    assert!(told.len() < 4096, "short words: {told}");
    error.code().expect("every one has a code").to_string()
}

#[test]
fn invalid_components_are_not_loaded() {
    for (name, code) in [
        ("spin-describe", "plugin-describe"),
        ("panic-describe", "plugin-describe"),
        ("spin-start", "plugin-start"),
        ("spinning-begin", "plugin-describe"),
        ("spinning-allocator", "plugin-start"),
        ("lying-allocator", "plugin-start"),
        ("re-entrant", "plugin-start"),
        ("large-table", "plugin-invalid"),
        ("many-memories", "plugin-invalid"),
        ("memory64", "plugin-invalid"),
        ("shared-memory", "plugin-invalid"),
        ("wasi-everything", "plugin-import-foreign"),
        ("other-version", "plugin-import-foreign"),
    ] {
        assert_eq!(refused(&granted(name)), code, "{name}");
    }
}

/// A section of a component: its id, its size and its content.
fn section(id: u8, content: &[u8]) -> Vec<u8> {
    let mut section = vec![id];
    section.extend(leb128(content.len()));
    section.extend(content);
    section
}

fn leb128(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

#[test]
fn components_that_overload_the_loader_are_not_loaded() {
    const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
    const MODULE: &[u8] = b"\0asm\x01\0\0\0";
    let many = |count: usize, one: &[u8]| [leb128(count), one.repeat(count)].concat();
    // Each within the one before.
    let nested =
        (0..2_000).fold(COMPONENT.to_vec(), |inner, _| [COMPONENT, &section(4, &inner)].concat());
    // Records of the record before twice: the type doubles sixty times.
    let mut doubling = vec![0x72, 1, 1, b'a', 0x7f];
    for before in 0..60_u8 {
        doubling.extend([0x72, 2, 1, b'a', before, 1, b'b', before]);
    }
    let files: [(&str, Vec<u8>); 7] = [
        ("types", section(7, &many(1_100_000, &[0x40, 0, 1, 0]))),
        ("modules", section(1, MODULE).repeat(20_000)),
        ("nested", section(4, &nested)),
        ("doubling", section(7, &[leb128(61), doubling].concat())),
        ("cut", section(7, &many(1_000, &[0x40, 0, 1, 0]))[..100].to_vec()),
        ("count", section(7, &leb128(u32::MAX as usize))),
        ("custom", section(0, &[0xff; 64])),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    for (name, sections) in files {
        let path = folder.path().join(name).with_extension("wasm");
        std::fs::write(&path, [COMPONENT, &sections].concat()).expect("written");
        let entry = json!({ "path": path, "allow-unpinned": true });
        let config = serde_json::from_value(entry).expect("a legal entry");
        let code = refused(&config);
        assert!(["plugin-invalid", "plugin-world"].contains(&code.as_str()), "{name}: {code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_verdicts_are_faults() {
    for (name, told) in [
        ("invalid-utf8", "utf-8"),
        ("far-pointer", "out of bounds"),
        ("far-string", "out of bounds"),
        ("endless-list", "out of bounds"),
        ("empty-labels", "exceeds twice the message"),
        ("wrong-case", "discriminant"),
        ("crooked-pointer", "not aligned"),
        ("spinning-farewell", "did not finish within 2s"),
        ("table-growth", "did not finish within 2s"),
        ("large-memory", "did not finish within 2s"),
    ] {
        let Fault(text) = asked(name).await.expect_err(name);
        assert!(text.contains(told), "{name}: {text}");
        assert!(text.len() < 512, "{name}: a short fault");
    }
    // The parts of the message lie on each other, which only hurts itself: its verdict is a sound one.
    assert_eq!(asked("one-place-allocator").await, Ok(Verdict::pass()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_resources_of_a_plugin_are_limited() {
    for (name, told) in [
        ("crumbs", "more than its 64 MiB of memory"),
        ("hoard", "it failed: 50331648"),
        ("flood-log", "did not finish within 2s"),
        ("flood-log-wide", "its output exceeds twice the message"),
        ("flood-state", "did not finish within 2s"),
        ("flood-metrics", "did not finish within 2s"),
        ("flood-random", "it requested more than 4096 random bytes"),
        ("late", "did not finish within 2s"),
        ("long-error", "it failed: x"),
        ("forged-words", "not a legal"),
    ] {
        let Fault(text) = asked(name).await.expect_err(name);
        assert!(text.contains(told), "{name}: {text}");
        assert!(text.len() < 512, "{name}: a short fault");
        assert!(!text.contains(['\n', '\0', '\u{1b}']), "{name}: one line");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_state_survives_a_message() {
    let plugin = load(&granted("statics"), &settings()).expect("it loads");
    let harm = |text: &str| call("any", json!({ "do": ["harm:statics", text] }), None);
    // After five in a row it would not be asked for a while.
    for _ in 0..5 {
        let Fault(text) =
            plugin.inspect(&harm("another's"), Phase::Request).await.expect_err("a fault");
        assert_eq!(text, "it failed: kept 1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugin_that_starts_only_once_faults_afterwards() {
    let plugin = load(&granted("start-once"), &settings()).expect("it loads");
    // Instances that were made ahead of messages may be of the first beginning.
    for _ in 0..8 {
        let _ = ask(&plugin, "any").await;
    }
    ask(&plugin, "any").await.expect_err("a fault");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_taken_before_messages_does_not_starve_other_plugins() {
    let hoards: Vec<_> =
        (0..4).map(|_| Arc::new(load(&granted("hoard"), &settings()).expect("it loads"))).collect();
    let noop = load(&config("noop"), &settings()).expect("it loads");
    let asked: Vec<_> = (hoards.iter().cycle().take(64).cloned())
        .map(|plugin| tokio::spawn(async move { ask(&plugin, "any").await.is_ok() }))
        .collect();
    for _ in 0..20 {
        let said = tokio::time::timeout(Duration::from_secs(60), ask(&noop, "any")).await;
        assert_eq!(said.expect("in time"), Ok(Verdict::pass()));
    }
    for hoarded in asked {
        hoarded.await.expect("no panic");
    }
}
