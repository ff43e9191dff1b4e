//! `docs/reference/escapes.md` is generated from the table. `PORTCULLIS_WRITE_DOCS=1` writes it.

use std::fmt::Write as _;

use super::table::{Control, ROWS, Refusal};

const HEAD: &str = include_str!("head.md");

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str(
        "| attempt | what it tries | in a container | in the sandbox | where it succeeds |\n\
         |---|---|---|---|---|\n",
    );
    let refused = |(outcome, by): Refusal| {
        format!("{by} ({})", outcome.split('|').next().unwrap_or_default())
    };
    for row in ROWS {
        let works = match row.control {
            Control::Works(with) => with.words().to_owned(),
            Control::Or(with, _) => format!("{}, if the host can", with.words()),
            Control::Nowhere(why) => format!("nowhere: {why}"),
        };
        let (container, sandbox) = (refused(row.container), refused(row.sandbox));
        writeln!(page, "| `{}` | {} | {container} | {sandbox} | {works} |", row.name, row.tries)
            .unwrap();
    }
    page
}

#[test]
fn page_lists_every_attempt() {
    portcullis_test_support::check_page("reference/escapes.md", &page());
}
