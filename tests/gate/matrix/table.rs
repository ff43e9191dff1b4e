//! What came out, as a page of the documentation and as a list of what is wrong.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    Side,
    cells::{Expected, Feature},
};
use crate::support::client::{REVISIONS, Transport, Wrong};

/// One cell of one pair.
pub struct Outcome {
    pub client: Side,
    pub server: Side,
    pub feature: Feature,
    pub done: Result<(), Wrong>,
}

const HEAD: &str = "<!-- Made by the test `every_pair_of_revisions_works_over_every_transport`. Change `tests/gate/matrix`, not this. -->

# Which revisions work together

Each cell is an exchange between a client and a server of these revisions through the proxy. The tests make it over every transport of the two revisions. [Conformance](conformance.md#third-party-servers) has the results with servers that are not part of Portcullis.

";

const FOOT: &str = "
- **✓**: works over every pair of transports.
- **–**: one of the revisions does not have the feature.
- **at once**: both revisions have tasks, but of two kinds that cannot be translated. In 2025-11-25 the client requests a task for a tool that supports it, and a blocking `tasks/result` returns the outcome. In the extension to 2026-07-28 the server decides whether a call becomes a task, and sends its requests in it. So the proxy hides tasks from both sides, and answers the call when it is done.

The tests also make most of these exchanges at one endpoint with all servers. One feature depends on concurrent calls: a server of 2026-07-28 over standard input and output serves all clients at once, and its log messages name no call. They are forwarded if the call that requested them is the only one in flight, and dropped otherwise.

Columns:

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

/// Holds `docs/reference/matrix.md` against what should come out.
///
/// # Panics
/// Where it says something else.
pub fn check_page() {
    portcullis_test_support::check_page("reference/matrix.md", &page());
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
