//! `docs/reference/codes.md` is generated from the table of codes.

use std::fmt::Write as _;

use super::Code;

const INTRODUCTION: &str = include_str!("docs.md");

#[test]
fn docs_reference_codes_md_is_up_to_date() {
    portcullis_test_support::check_page("reference/codes.md", &document());
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
