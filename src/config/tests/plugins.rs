use super::*;

#[test]
fn plugin_has_exactly_one_location() {
    let plugin = |lines: &str| findings(&format!("[[interceptors]]\nuse = \"plugin\"\n{lines}\n"));
    let digest = format!("sha256:{}", "0".repeat(64));
    let pinned = format!("oci = \"ghcr.io/acme/a:1@{digest}\"");
    for lines in ["path = \"a.wasm\"", &pinned, "oci = \"ghcr.io/acme/a:1\""] {
        // The registry decides whether a tag alone is refused.
        assert_eq!(plugin(lines), "", "{lines}");
    }
    for (lines, message) in [
        ("", "the location of the plugin is missing"),
        (&*format!("path = \"a.wasm\"\n{pinned}"), "the plugin also has a `path`"),
        (&format!("{pinned}\nallow-unpinned = true"), "is always pinned"),
        (
            "oci = \"acme/a:1\"",
            "`acme/a:1` is not a reference: it must begin with a registry's host",
        ),
        ("oci = \"ghcr.io/acme/a@sha256:12\"", "a digest is `sha256:`"),
    ] {
        let found = plugin(lines);
        assert!(found.contains(message), "{lines}: {found}");
    }
}

#[test]
fn registry_settings_are_used() {
    let text = "[registries]\nca-file = \"ca.pem\"\nplain-http = [\"10.0.0.1:5000\"]\n";
    let registries = parse(Path::new("/etc/p/portcullis.toml"), text).unwrap().config.registries;
    assert_eq!(registries.ca_file.as_deref(), Some(Path::new("/etc/p/ca.pem")));
    assert_eq!(registries.plain_http, ["10.0.0.1:5000"]);
    assert_eq!(registries.deadline_s, 60);
    assert!(findings("[registries]\ndeadline-s = 0\n").contains("this must be at least 1"));
}
