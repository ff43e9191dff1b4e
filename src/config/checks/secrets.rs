//! Warns about `secrets` entries that scan less than the default that they replace.

use super::Checker;
use crate::{Finding, deserialize::Built, finding::Code};
use portcullis_foundation::json_pointer::child;
use portcullis_interceptors::{
    InterceptorEntry, InterceptorKind,
    secrets::{self, Action},
};

pub(super) fn check(checker: &mut Checker<'_>, built: &Built) {
    let longest = built.config.longest_message();
    let mut all = Vec::new();
    for (entry, at) in built.config.interceptors.iter().zip(&built.interceptors) {
        let InterceptorKind::Secrets(secrets) = &entry.kind else { continue };
        if !entry.is_on() {
            // Such an entry is visible in the printed chain.
            continue;
        }
        let gaps = gaps(checker, entry, secrets, at, longest);
        if gaps.is_empty() {
            // It scans everything, whatever others omit.
            return;
        }
        all.extend(gaps);
    }
    checker.findings.extend(all);
}

/// One warning for each setting by which an entry omits something.
fn gaps(
    checker: &Checker<'_>,
    entry: &InterceptorEntry,
    secrets: &secrets::Config,
    at: &str,
    longest: usize,
) -> Vec<Finding> {
    let warning = |pointer: &str, message: String, help: String| {
        let written = checker.document.get(pointer).is_some();
        let place = if written { pointer } else { at };
        checker.document.at_key(place, Code::Unsafe, message).warning().help(help)
    };
    let mut gaps = Vec::new();
    if let Some(events) = &entry.settings.events
        && !events.iter().any(|event| event == "*")
    {
        let message = "other methods are not scanned for secrets".to_owned();
        let help = "remove the key to scan all methods".to_owned();
        gaps.push(warning(&child(at, "events"), message, help));
    }
    let report = "set \"report\" to let them pass with a finding";
    for (key, action, what) in
        [("request", secrets.request, "requests"), ("response", secrets.response, "answers")]
    {
        if action == Action::Off {
            let message = format!("{what} are not scanned for secrets");
            gaps.push(warning(&child(at, key), message, report.to_owned()));
        }
    }
    let off = secrets.rules.iter().filter(|(_, action)| **action == Action::Off);
    for (id, _) in off {
        let message = match id.as_str() {
            "vault" => "secrets delivered to servers are not searched".to_owned(),
            id => format!("secrets of the rule `{id}` are not searched"),
        };
        gaps.push(warning(&child(&child(at, "rules"), id), message, report.to_owned()));
    }
    if secrets.max_bytes < longest {
        let becomes = if entry.settings.fail_open { "pass unseen" } else { "are refused" };
        let message = format!("messages of more than {} bytes {becomes}", secrets.max_bytes);
        let help = format!(
            "set `max-bytes = {longest}`, the largest size that `limits` permits, or lower \
             `limits.request-bytes` and `limits.response-bytes`"
        );
        gaps.push(warning(&child(at, "max-bytes"), message, help));
    }
    gaps
}
