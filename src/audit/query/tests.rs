//! Checks that the docs match the code.

use std::fmt::Write as _;

use super::{Column, Filter, plan};

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
fn fields_are_documented() {
    let (begin, end) = ("<!-- fields -->\n", "<!-- /fields -->");
    portcullis_test_support::check_part("reference/audit-queries.md", begin, end, &table());
}

#[test]
fn documented_filters_are_parsed() {
    let docs = include_str!("../../../docs/reference/audit-queries.md");
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
