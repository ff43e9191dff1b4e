//! The docs say what the code does.

use std::fmt::Write as _;

use super::{Column, Filter, plan};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/audit-queries.md");

fn table() -> String {
    let mut text = "| field | what it is | compared with | index | example |\n".to_owned();
    text.push_str("|---|---|---|---|---|\n");
    for column in Column::ALL {
        let index = if plan::is_indexed(*column) { "yes" } else { "" };
        let (about, signs, example) = (column.about(), column.ty().signs(), column.example());
        let _ = writeln!(text, "| `{column}` | {about} | {signs} | {index} | `{example}` |");
    }
    text
}

#[test]
fn the_fields_are_documented() {
    let docs = std::fs::read_to_string(DOCS).unwrap();
    let (begin, end) = ("<!-- fields -->\n", "<!-- /fields -->");
    let (head, rest) = docs.split_once(begin).unwrap();
    let (written, tail) = rest.split_once(end).unwrap();
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        std::fs::write(DOCS, format!("{head}{begin}{}{end}{tail}", table())).unwrap();
    } else {
        assert_eq!(written, table(), "run this test with PORTCULLIS_WRITE_DOCS=1");
    }
}

#[test]
fn the_filters_of_the_docs_are_filters() {
    let docs = std::fs::read_to_string(DOCS).unwrap();
    let mut filters = 0;
    for block in docs.split("```filter\n").skip(1) {
        for line in block.split("```").next().unwrap().lines() {
            let filter: Filter = line.parse().unwrap_or_else(|wrong| panic!("{line}: {wrong}"));
            assert_eq!(filter.to_string().parse(), Ok(filter), "{line}");
            filters += 1;
        }
    }
    assert!(filters > 5);
}
