//! `docs/reference/codes.md` is generated from the table of codes.

use std::fmt::Write as _;

use super::Code;

const INTRODUCTION: &str = include_str!("docs.md");
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/codes.md");

#[test]
fn docs_reference_codes_md_is_up_to_date() {
    let text = document();
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        std::fs::write(PATH, &text).unwrap();
    }
    let written = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(
        written == text,
        "docs/reference/codes.md differs from the table of codes: run this test with \
         PORTCULLIS_WRITE_DOCS=1"
    );
}

fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    text.push_str("\n| code | JSON-RPC code | HTTP status | meaning |\n|---|---|---|---|\n");
    for code in Code::ALL {
        let meaning = code.meaning();
        assert!(!meaning.contains('|'), "{code}: a table cell cannot have `|`");
        let _ = writeln!(text, "| `{code}` | {} | {} | {meaning} |", code.rpc(), code.http());
    }
    text
}
