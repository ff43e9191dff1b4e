//! One fenced block, by its language.

use std::collections::BTreeMap;

use crate::{
    Report, commands, configs, outputs,
    pages::{Block, Page},
    plugins, policies,
};

/// Checks a block. One that cannot be checked says why in its info string.
pub fn check(report: &mut Report, page: &Page, block: &Block) {
    let place = page.place(block.line);
    if let Some(reason) = block.info.strip_prefix("no-check") {
        let reason = reason.trim_start_matches(':').trim();
        let outcome = match reason {
            "" => Err("`no-check: REASON` needs the reason".to_owned()),
            _ => Ok(()),
        };
        return report.check(
            &format!("{} blocks with `no-check`", block.language),
            &place,
            outcome,
        );
    }
    let text = &block.text;
    let kind = [block.language.as_str(), block.info.as_str()].join(" ");
    let kind = kind.trim();
    let outcome = match (block.language.as_str(), block.info.as_str()) {
        ("console", "") => return console(report, page, block),
        ("sh", "") => commands::shell(text, commands::Whole::Yes),
        ("toml", "") => configs::check(text),
        ("toml", "plugin-entry") => configs::check_plugin_entry(text),
        ("toml", "profile") => configs::check_profile(text),
        ("cedar", "") => policies::check(text),
        ("yaml", "") => policies::check_cases(page, block),
        ("json", "") => json(text),
        ("filter", "") => text.lines().try_for_each(commands::filter),
        ("ini", "") => unit(text),
        ("sql", "") => outputs::is_the_export_table(page),
        // A test of `outputs` compares it with the real one.
        ("text", "audit-filter") => Ok(()),
        // GitHub draws it.
        ("mermaid", "") => Ok(()),
        ("yaml", "plugin-cases") | ("toml", "cargo") => plugins::is_followed(page),
        ("rust" | "js" | "python" | "c" | "wit", info) if info.starts_with("file=") => {
            plugins::is_followed(page)
        }
        _ => Err("no check reads such a block: give it a language and a kind of \
                  tests/docs/blocks.rs, or `no-check: REASON`"
            .into()),
    };
    let kind = kind.split(" file=").next().unwrap_or_default();
    report.check(&format!("{kind} blocks"), &place, outcome);
}

fn console(report: &mut Report, page: &Page, block: &Block) {
    let shown = commands::of_console(&block.text);
    if shown.is_empty() {
        let why = "a `console` block has no command: begin its lines with `$ `";
        report.check("console blocks", &page.place(block.line), Err(why.into()));
    }
    for shown in shown {
        let outcome = commands::shell(&shown.command, commands::Whole::Yes);
        let outcome = outcome.map_err(|why| format!("`{}`: {why}", shown.command));
        report.check("commands of console blocks", &page.place(block.line + shown.line), outcome);
    }
}

/// JSON; where it configures a client, the command that it starts is one of ours.
fn json(text: &str) -> Result<(), String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let servers = ["mcpServers", "servers"].iter().filter_map(|key| value[key].as_object());
    for server in servers.flatten().map(|(_, server)| server) {
        let words =
            server["args"].as_array().into_iter().flatten().filter_map(|word| word.as_str());
        if server["command"].as_str().is_some_and(|program| program.ends_with("/portcullis")) {
            commands::ours(&words.collect::<Vec<_>>(), commands::Whole::Yes)?;
        }
    }
    Ok(())
}

/// A part of a systemd unit: assignments below sections. A service has a command of ours, and a
/// socket has the default address.
fn unit(text: &str) -> Result<(), String> {
    let assignments: BTreeMap<_, _> =
        text.lines().filter_map(|line| line.split_once('=')).collect();
    if let Some(address) = assignments.get("ListenStream") {
        let default = portcullis_config::Listen::default().http.to_string();
        return (*address == default).then_some(()).ok_or(format!("not {default}"));
    }
    let start = assignments.get("ExecStart").ok_or("it has no `ExecStart`")?;
    commands::shell(start, commands::Whole::Yes)
}
