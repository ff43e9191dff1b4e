//! Replaced plugin files and cached compilations.

use miette::Diagnostic as _;
use portcullis_chain::Decision;
use portcullis_plugin_host::Cache;

use super::*;

#[tokio::test]
async fn changed_file_replaces_the_plugin_after_loading() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plugin.wasm");
    std::fs::copy(built("noop"), &path).expect("copied");
    let config = Config { path: Some(path.clone()), ..config("noop") };
    let plugin = load(&config, &EntrySettings::default()).expect("it loads");
    assert_eq!(plugin.changeable(), Some(path.clone()));
    assert!(plugin.reload_if_changed().expect("the same").is_none());

    std::fs::copy(built("stricter"), &path).expect("copied");
    let before = plugin.now();
    let next = plugin.reload_if_changed().expect("a good one").expect("another");
    assert_eq!(ask(&plugin, "any").await, Ok(Verdict::pass()), "until it is taken");
    plugin.take(next);
    assert_eq!(
        (before.manifest().version.as_str(), plugin.now().manifest().version.as_str()),
        ("0.1.0", "0.2.0")
    );
    let verdict = ask(&plugin, "any").await.expect("a verdict");
    assert!(matches!(verdict.decision, Decision::Refuse(_)), "{verdict:?}");
    // What it hooks is the new one's to say.
    assert!(!plugin.wants(&Method::new(Method::TOOLS_LIST), Phase::Request));

    for (bad, code) in [
        ("liar", "plugin-manifest"),
        ("probe", "plugin-import-ungranted"),
        ("keeper", "plugin-another"),
    ] {
        std::fs::copy(built(bad), &path).expect("copied");
        let refused = plugin.reload_if_changed().err().expect("it is not taken");
        assert_eq!(refused.code().expect("a code").to_string(), code);
        assert_eq!(plugin.now().manifest().version, "0.2.0");
    }
    std::fs::remove_file(&path).expect("removed");
    assert!(plugin.reload_if_changed().is_err());
    assert!(ask(&plugin, "any").await.is_ok());
}

#[test]
fn pinned_file_is_never_reloaded() {
    let mut config = config("noop");
    let sha256 = load(&config, &EntrySettings::default()).expect("it loads");
    config.sha256 = Some(sha256.now().sha256().to_owned());
    let pinned = load(&config, &EntrySettings::default()).expect("it loads");
    assert_eq!(pinned.changeable(), None);
}

#[tokio::test]
async fn cached_plugin_equals_a_compiled_one() {
    let state = tempfile::tempdir().expect("a folder");
    let cached = || {
        let cache = Cache::of(state.path()).map(Arc::new);
        let house = PluginHost { cache, ..PluginHost::bare() };
        let config = config("keeper");
        let settings = EntrySettings::default();
        Plugin::load(&config, &settings, Path::new("."), Default::default(), &house)
            .expect("it loads")
    };
    let entries =
        || std::fs::read_dir(state.path().join("plugins/cache")).expect("a folder").count();
    let (compiled, found) = (cached(), cached());
    assert_eq!(entries(), 1);
    assert_eq!(ask(&compiled, "any").await, ask(&found, "any").await);
}
