//! What came out, as a page of the documentation and as a list of what is wrong.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    Side,
    cells::{Expected, Feature},
};
use crate::support::{
    client::{REVISIONS, Transport, Wrong},
    root,
};

/// One cell of one pair.
pub struct Outcome {
    pub client: Side,
    pub server: Side,
    pub feature: Feature,
    pub done: Result<(), Wrong>,
}

const HEAD: &str = "<!-- Made by the test `every_revision_reaches_every_other_over_every_transport`. Change `tests/gate/matrix`, not this. -->

# Which revisions work together

Each cell is an exchange between a client of one revision and a server of another, through the proxy, that the tests make over every transport that the two revisions have.

";

const FOOT: &str = "
- **✓**: it works over every pair of these transports.
- **–**: one of the two revisions does not have it.
- **at once**: both have tasks, but of two kinds that cannot be translated. In 2025-11-25 the client asks for a task, on a tool that says it can be one, and a blocking `tasks/result` has the outcome; in the extension to 2026-07-28 the server decides whether a call becomes a task, and asks its questions in it. So neither side is told that the other has tasks, and the call is answered when it is done.

The tests make most of these exchanges behind one endpoint with all servers, too. One thing depends on what else is under way: a server of 2026-07-28 over standard input and output serves all clients at once, and its log messages name no call. They are handed on where the call that asked for them is the only one under way, and dropped where it is not.

What the columns mean:

| column | exchange |
|---|---|
";

/// Holds what came out against what should have.
///
/// # Panics
/// Where a cell failed.
pub fn check_cells(outcomes: &[Outcome]) {
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.done.is_err()).collect();
    if !failed.is_empty() {
        panic!("{} of {} cells failed:\n{}", failed.len(), outcomes.len(), failures(&failed));
    }
}

/// Holds `docs/matrix.md` against what should come out.
///
/// # Panics
/// Where it says something else.
pub fn check_page() {
    let page = page();
    let path = root().join("docs/matrix.md");
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == page,
        "docs/matrix.md is not what came out: run this test with PORTCULLIS_WRITE_DOCS=1"
    );
}

/// The failures: those that say the same are one.
fn failures(failed: &[&Outcome]) -> String {
    let names = regex::Regex::new(
        r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|127\.0\.0\.1:\d+|r?20\d\d-\d\d-\d\d",
    )
    .unwrap();
    let mut alike: BTreeMap<(&str, String), Vec<String>> = BTreeMap::new();
    for Outcome { client, server, feature, done } in failed {
        let Err(wrong) = done else { continue };
        let wrong: String = names.replace_all(wrong, "…").chars().take(300).collect();
        let pair = format!(
            "{} {} → {} {}",
            client.revision, client.transport, server.revision, server.transport
        );
        alike.entry((feature.name(), wrong)).or_default().push(pair);
    }
    let mut text = String::new();
    for ((feature, wrong), pairs) in alike {
        let _ = writeln!(text, "{feature}, {} times: {wrong}", pairs.len());
        for pair in pairs.iter().take(4) {
            let _ = writeln!(text, "    {pair}");
        }
    }
    text
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("| revision | transports |\n|---|---|\n");
    for revision in REVISIONS {
        let [first, second] = Transport::of(revision);
        let _ = writeln!(page, "| {revision} | {first}, {second} |");
    }
    let columns: Vec<_> = Feature::ALL.iter().map(|feature| feature.name()).collect();
    let _ = writeln!(page, "\n| client | server | {} |", columns.join(" | "));
    let _ = writeln!(page, "|---|---|{}", "---|".repeat(columns.len()));
    for client in REVISIONS {
        for server in REVISIONS {
            let cells = Feature::ALL.map(|feature| match feature.expected(client, server) {
                Expected::Works => "✓",
                Expected::Absent => "–",
                Expected::Impossible => "at once",
            });
            let _ = writeln!(page, "| {client} | {server} | {} |", cells.join(" | "));
        }
    }
    page.push_str(FOOT);
    for feature in Feature::ALL {
        let _ = writeln!(page, "| {} | {} |", feature.name(), feature.meaning());
    }
    page
}
