use proptest::prelude::*;

use super::*;

/// Parts of configs, valid and invalid.
fn piece() -> impl Strategy<Value = String> {
    let words = [
        "[servers.a]",
        "[servers",
        "[[interceptors]]",
        "use = \"rate-limit\"",
        "use = 1",
        "limits = [{ calls = 1, window = \"1m\" }]",
        "[clients.\"a/b~\"]",
        "key-hash = \"\"",
        "command = [\"\\u0000\"]",
        "image = \"@sha256:\"",
        "url = \"http://\"",
        "env = { a = \"é\" }",
        "secrets.X.from = \"env:X\"",
        "mounts = [\":\"]",
        "prefix = \"__\"",
        "= ",
        "\"",
        "'''",
        "[",
        "]",
        "{",
        "}",
        "\n",
        "\u{202e}",
        "\r",
        "1e999",
        "-0",
        "0x7fffffffffffffff",
        "2026-01-01",
        "a.b.c",
        "listen.http = \"[::]:0\"",
        "listen = 1",
        "state-dir = \"s\"",
        "state-dir =",
        "admin.socket = '/a'",
        "interceptors = 1",
        "servers = []",
        "\u{0}",
    ];
    prop_oneof![proptest::sample::select(words.to_vec()).prop_map(str::to_owned), ".{0,8}"]
}

proptest! {
    #[test]
    fn arbitrary_text_causes_no_panic(text in "(?s).{0,400}") {
        let _ = parse(Path::new("p.toml"), &text);
    }

    #[test]
    fn mixed_parts_cause_no_panic(
        pieces in proptest::collection::vec((piece(), "[\n ]"), 0..40)
    ) {
        let text: String = pieces.into_iter().flat_map(|(piece, gap)| [piece, gap]).collect();
        let place = proxy_location::of_text(Path::new("p.toml"), &text);
        match parse(Path::new("p.toml"), &text) {
            Ok(Loaded { config, .. }) => {
                prop_assert!(place.state_dir.is_none_or(|dir| dir == config.state_dir));
                prop_assert!(place.socket.is_none_or(|at| Some(at) == config.admin.socket));
            }
            Err(Diagnostics(findings)) => {
                prop_assert!(findings.iter().any(|finding| finding.severity == Severity::Error));
                for finding in findings {
                    let mut shown = String::new();
                    miette::GraphicalReportHandler::new()
                        .render_report(&mut shown, &finding)
                        .unwrap();
                }
            }
        }
    }
}
