//! Checks the docs: every command, config, policy, filter, case file, program, link and name in the
//! Markdown of the tree passes the code that would read it.
//!
//! A block that cannot be checked gives the reason in its info string:
//! ```` ```text no-check: REASON ````. Run with `-- --nocapture` to see the number of checks of each
//! kind.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod blocks;
mod commands;
mod configs;
mod links;
mod names;
mod outputs;
mod pages;
mod plugins;
mod policies;

use std::collections::BTreeMap;

/// What a walk over the pages found, and how much of what it checked.
#[derive(Default)]
struct Report {
    wrong: Vec<String>,
    checked: BTreeMap<String, usize>,
}

impl Report {
    /// Counts a check of this kind, and keeps what is wrong with the thing at `place`.
    fn check(&mut self, kind: &str, place: &str, outcome: Result<(), String>) {
        *self.checked.entry(kind.to_owned()).or_default() += 1;
        if let Err(why) = outcome {
            self.wrong.push(format!("{place}: {why}"));
        }
    }

    /// Prints the counts, and panics where something is wrong.
    fn conclude(self) {
        for (kind, count) in &self.checked {
            println!("{count:5} {kind}");
        }
        assert!(self.wrong.is_empty(), "{} wrong:\n{}", self.wrong.len(), self.wrong.join("\n"));
    }
}

#[test]
fn every_block_is_valid_for_its_parser() {
    let mut report = Report::default();
    for page in pages::all() {
        for block in &page.blocks {
            blocks::check(&mut report, &page, block);
        }
    }
    report.conclude();
}

#[test]
fn every_name_in_the_text_exists() {
    let names = names::Names::of_the_tree();
    let mut report = Report::default();
    for page in pages::all() {
        for span in &page.spans {
            let place = page.place(span.line);
            let (kind, outcome) = names.check(&page, &span.text);
            report.check(kind, &place, outcome.map_err(|why| format!("`{}`: {why}", span.text)));
        }
    }
    report.conclude();
}

#[test]
fn every_link_resolves() {
    let pages = pages::all();
    let mut report = Report::default();
    for page in &pages {
        for link in &page.links {
            let (kind, outcome) = links::check(page, &pages, &link.text);
            let outcome = outcome.map_err(|why| format!("`{}`: {why}", link.text));
            report.check(kind, &page.place(link.line), outcome);
        }
    }
    report.conclude();
}
