//! Plugins that are not loaded, and the errors that the operator reads.

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use sha2::{Digest, Sha256};

use super::*;

fn refusal(config: &Config, settings: &EntrySettings) -> LoadError {
    load(config, settings).err().expect("it is not loaded")
}

/// What the operator reads, with what differs between machines left out.
fn told(unusable: &LoadError) -> String {
    let mut text = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::none())
        .with_width(10_000)
        .render_report(&mut text, unusable)
        .expect("text");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    text.replace(root, "…")
}

fn code(unusable: &LoadError) -> String {
    unusable.code().expect("every one has a code").to_string()
}

#[test]
fn plugin_must_match_its_pin() {
    let mut config = config("noop");
    let bytes = std::fs::read(config.place()).expect("built");
    let sha256 = hex::encode(Sha256::digest(bytes));
    config.allow_unpinned = false;

    let unpinned = refusal(&config, &EntrySettings::default());
    assert_eq!(code(&unpinned), "plugin-unpinned");
    assert!(told(&unpinned).contains(&format!("sha256 = \"{sha256}\"")), "it says what to write");

    config.sha256 = Some("0".repeat(64));
    assert_eq!(code(&refusal(&config, &EntrySettings::default())), "plugin-digest-mismatch");
    // A digest binds even where none is required.
    config.allow_unpinned = true;
    assert_eq!(code(&refusal(&config, &EntrySettings::default())), "plugin-digest-mismatch");
    config.sha256 = Some("latest".into());
    assert_eq!(code(&refusal(&config, &EntrySettings::default())), "plugin-digest-illegal");

    for pinned in [sha256.clone(), sha256.to_uppercase(), format!("sha256:{sha256}")] {
        config.sha256 = Some(pinned);
        let plugin = load(&config, &EntrySettings::default()).expect("the pinned one");
        assert_eq!(plugin.now().sha256(), sha256);
    }
}

#[test]
fn false_manifest_is_refused() {
    let liar = refusal(&config("liar"), &EntrySettings::default());
    insta::assert_snapshot!(told(&liar), @r#"
    plugin-manifest

      x the manifest of the plugin `…/target/plugins/liar.wasm` is invalid: `everything at once` is not an MCP method: events are methods such as `tools/call`, or `*`
      help: the plugin's author must correct it
    "#);
}

#[test]
fn missing_description_times_out() {
    let staller = refusal(&config("staller"), &EntrySettings::default());
    insta::assert_snapshot!(told(&staller), @r#"
    plugin-describe

      x the plugin `…/target/plugins/staller.wasm` does not describe itself: it did not finish within 1s
      help: its `describe` must answer within 1s
    "#);
}

#[test]
fn invalid_config_error_shows_position_and_no_value() {
    let mut config = config("redact-pii");
    config.config.insert("marker".into(), json!(4711));
    let misfit = refusal(&config, &EntrySettings::default());
    insta::assert_snapshot!(told(&misfit), @r#"
    plugin-config

      x `config` does not fit the plugin `redact-pii`: `/marker`: the value is not of type "string"
      help: the plugin's schema for it: {"type":"object","properties":{"redact":{"description":"What is replaced in results","type":"array","items":{"enum":["email","phone","iban","card","ip"]},"uniqueItems":true,"default":["email","phone","iban","card"]},"marker":{"description":"Calls whose arguments hold this text are refused","type":"string","minLength":1}},"additionalProperties":false}
    "#);
}

#[test]
fn events_that_exclude_every_hook_are_refused() {
    let settings =
        EntrySettings { events: Some(vec!["tools/list".into()]), ..EntrySettings::default() };
    let idle = refusal(&config("redact-pii"), &settings);
    insta::assert_snapshot!(told(&idle), @r#"
    plugin-no-events

      x `events` exclude all hooks of the plugin `redact-pii`: `prompts/get`, `resources/read`, `tools/call`
      help: name some of these events, or remove `events`
    "#);
}

#[test]
fn impossible_memory_limits_are_refused() {
    for mib in [0, 257, u64::MAX] {
        let config = Config { memory_mib: mib, ..config("noop") };
        assert_eq!(code(&refusal(&config, &EntrySettings::default())), "plugin-memory");
    }
    // Too little for it even to start.
    let tight = Config { memory_mib: 1, ..config("redact-pii") };
    assert_eq!(code(&refusal(&tight, &EntrySettings::default())), "plugin-start");
}
