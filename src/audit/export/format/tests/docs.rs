//! `docs/operate/audit-export.md` is generated from the table of columns, so it lists all of them.

use std::fmt::Write as _;

use super::super::super::{
    format::columns::{COLUMNS, Kind},
    target::table,
};

/// What stands in the docs from behind `begin` up to `end`, regenerated.
fn renew(text: &str, begin: &str, end: &str, inner: &str) -> String {
    let (before, rest) = text.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    format!("{before}{begin}{inner}{end}{after}")
}

#[test]
fn docs_audit_export_md_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operate/audit-export.md");
    let written = std::fs::read_to_string(path).unwrap();
    let mut columns = String::new();
    for column in COLUMNS {
        let kind = match column.kind {
            Kind::Text => "text",
            Kind::Integer => "integer",
            Kind::Boolean => "boolean",
            Kind::Time => "time",
        };
        let kind = if column.always { kind.to_owned() } else { format!("{kind}, may be absent") };
        let _ = writeln!(columns, "| `{}` | {kind} | {} |", column.name, column.about);
    }
    let text =
        renew(&written, "| column | type | |\n|---|---|---|\n", "\n**PostgreSQL**", &columns);
    let text = renew(&text, "```sql\n", "```\n", &format!("{};\n", table()));
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap();
    assert!(
        written == text,
        "docs/operate/audit-export.md is not what the columns say: run this test with PORTCULLIS_WRITE_DOCS=1"
    );
}
