//! Files that mean harm, and files that nobody meant.

mod support;

use portcullis_catalog::{
    MAX_BYTES, Options, describe, enabled, parse, read, settings, tool_lists,
};
use proptest::prelude::*;
use support::fixture;

fn refused(text: &str) -> String {
    match parse(text) {
        Ok(node) => panic!("taken: {node:?}"),
        Err(problem) => {
            assert!(problem.place.is_some() || text.len() > MAX_BYTES, "{problem:?}");
            problem.text
        }
    }
}

#[test]
fn what_is_too_much_or_said_twice_is_refused() {
    assert!(refused(&" ".repeat(MAX_BYTES + 1)).contains("MiB"));
    assert!(refused(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))).contains("JSON"));
    assert!(refused(&format!("a: {}{}", "[".repeat(1000), "]".repeat(1000))).contains("YAML"));
    assert!(refused(&format!("{}1{}", "[".repeat(70), "]".repeat(70))).contains("deeper"));
    assert!(refused("a: 1\na: 2\n").contains("stands twice"));
    assert!(refused(r#"{"a": 1, "\u0061": 2}"#).contains("stands twice"));
    assert!(refused("a: &x 1\nb: *x\n").contains("aliases"));
    assert!(refused("a: !!python/object x\n").contains("tag"));
    assert!(refused("a: 1\n---\nb: 2\n").contains("second document"));
    assert!(refused("? [a]\n: 1\n").contains("plain text"));
    assert!(refused("").contains("empty"));
    assert!(refused("{'a': 1}").contains("JSON"));
    assert!(refused("[a]\nb = = 1\n").contains("TOML"));
    let many = format!("[{}]", "1,".repeat(1_100_000));
    assert!(refused(&many).contains("values"));
}

#[test]
fn an_alias_bomb_is_refused_at_its_first_alias() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        text +=
            &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 9].join(", "));
    }
    assert!(refused(&text).contains("aliases"));
}

#[test]
fn places_are_those_of_the_file() {
    let problem = parse("a:\n  b: 1\n  b: 2\n").unwrap_err();
    assert_eq!(problem.place.map(|p| (p.line, p.column)), Some((3, 3)));
    let problem = parse("{\n  \"é\": 1, \"é\": 2\n}").unwrap_err();
    assert_eq!(problem.place.map(|p| (p.line, p.column)), Some((2, 11)));
}

/// Everything that reads.
fn all(text: &str) {
    let options = Options::default();
    if let Ok(found) = read(text, &options) {
        for entry in &found.servers {
            if let Ok(server) = &entry.server {
                assert!(portcullis_catalog::is_legal(&server.name), "{:?}", server.name);
            }
        }
    }
    let _ = (enabled(text), settings(text), tool_lists(text), describe(text));
}

/// Fixtures with pieces taken out, doubled and put elsewhere.
fn mangled() -> impl Strategy<Value = String> {
    let names = [
        "catalog.yaml",
        "profile.yaml",
        "artifact.json",
        "server.json",
        "claude.json",
        "vscode.json",
        "codex.toml",
        "submission.yaml",
        "goose.yaml",
        "opencode.json",
        "zed.json",
        "tools.yaml",
    ];
    let texts: Vec<String> = names.iter().map(|name| fixture(name)).collect();
    let cut = (any::<prop::sample::Index>(), 0usize..40, any::<prop::sample::Index>(), 0u8..4);
    (prop::sample::select(texts), prop::collection::vec(cut, 1..6)).prop_map(|(mut text, cuts)| {
        for (at, length, to, kind) in cuts {
            let bounds: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            if bounds.is_empty() {
                break;
            }
            let start = bounds[at.index(bounds.len())];
            let end = bounds.iter().copied().find(|b| *b >= start + length).unwrap_or(text.len());
            let piece = text[start..end].to_owned();
            match kind {
                0 => text.replace_range(start..end, ""),
                1 => text.insert_str(bounds[to.index(bounds.len())], &piece),
                2 => text.replace_range(start..end, "null"),
                _ => text.replace_range(start..end, "{{x|or:[-v,\u{202e}]}}"),
            }
        }
        text
    })
}

proptest! {
    #[test]
    fn nothing_panics_on_any_text(text in ".{0,200}") {
        all(&text);
    }

    #[test]
    fn nothing_panics_on_structure(text in "([{}\\[\\]:,\"'&*!|>%@`#?=\n -]|a|b|1|registry|servers|name|type){0,80}") {
        all(&text);
    }

    #[test]
    fn nothing_panics_on_mangled_files(text in mangled()) {
        all(&text);
    }
}
