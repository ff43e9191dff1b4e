//! `docs/operate/audit-export.md` is generated from the table of columns, so it lists all of them.

use std::fmt::Write as _;

use portcullis_test_support::check_part;

use super::super::super::{
    format::columns::{COLUMNS, Kind},
    target::table,
};

#[test]
fn docs_audit_export_md_is_up_to_date() {
    let page = "operate/audit-export.md";
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
    let begin = "| column | type | |\n|---|---|---|\n";
    check_part(page, begin, "\n**PostgreSQL**", &columns);
    check_part(page, "```sql\n", "```\n", &format!("{};\n", table()));
}
