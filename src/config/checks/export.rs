//! Checks the export streams of audit records.

use std::{collections::HashMap, path::Path};

use http::HeaderName;

use super::Checker;
use crate::{finding::Code, schema_check::brief};
use portcullis_audit::{
    Filter,
    config::{Destination, Export},
    export::Target,
};
use portcullis_foundation::json_pointer::child;
use portcullis_vault::Source;

pub(super) fn check(checker: &mut Checker<'_>, exports: &[Export]) {
    let mut names = HashMap::new();
    let mut stdout = None;
    for (at, export) in exports.iter().enumerate() {
        let at = child("/audit/export", at);
        if let Some(other) = names.insert(export.name.as_str(), at.clone()) {
            let message = format!(
                "two exports are called `{}` (line {})",
                export.name,
                checker.line_of(&child(&other, "name"))
            );
            checker.conflict(
                &child(&at, "name"),
                message,
                "give each a distinct name, which its cursor in the store has",
            );
        }
        filter(checker, &child(&at, "filter"), export);
        let target = target(checker, &at, export);
        headers(checker, &at, export, target.as_ref());
        if let Some(target) = target {
            of_target(checker, &at, export, &target);
            if matches!(target, Target::Stdout)
                && let Some(other) = stdout.replace(at.clone())
            {
                let message = format!(
                    "two exports write to standard output (line {})",
                    checker.line_of(&other)
                );
                checker.conflict(
                    &child(&at, "to"),
                    message,
                    "keep one, or send the other to a \
                    file",
                );
            }
        }
    }
}

fn filter(checker: &mut Checker<'_>, at: &str, export: &Export) {
    match export.filter.as_deref().map(str::parse::<Filter>) {
        Some(Err(illegal)) => checker.bad(
            at,
            format!("this is not a filter: {illegal}"),
            "docs/reference/audit-queries.md describes filters; `portcullis audit query` accepts \
            the same",
        ),
        Some(Ok(filter)) if filter.uses_time() => checker.bad(
            at,
            "a time has no meaning for a stream: it would be relative to the proxy's start",
            "remove it; `begin = \"now\"` skips existing records",
        ),
        _ => {}
    }
}

/// Target, if the file itself contains it.
fn target(checker: &mut Checker<'_>, at: &str, export: &Export) -> Option<Target> {
    let at = child(at, "to");
    let text = match &export.to {
        Destination::Plain(text) => text,
        Destination::Secret(secret) => {
            if let Err(error) = Source::try_from(secret) {
                let at = child(&at, "from");
                checker.add(checker.document.at_value(&at, Code::BadValue, error.to_string()));
            }
            return None;
        }
    };
    match Target::parse(text, Path::new("/")) {
        Ok(target) if target.has_credentials() => {
            let finding = checker
                .document
                .at_key(&at, Code::LiteralSecret, "this URL contains credentials")
                .help("put the whole URL into a secret: `to = { from = \"env:NAME\" }`");
            checker.add(finding);
            None
        }
        Ok(target) => Some(target),
        Err(illegal) => {
            checker.add(checker.document.at_value(&at, Code::BadValue, illegal.to_string()));
            None
        }
    }
}

fn of_target(checker: &mut Checker<'_>, at: &str, export: &Export, target: &Target) {
    if target.is_open() {
        let finding = checker
            .document
            .at_key(&child(at, "to"), Code::Unsafe, "records cross the network without encryption")
            .warning()
            .help("use `https`, `syslog+tls` or PostgreSQL's `sslmode=require`, if the target can");
        checker.add(finding);
    }
    if let Some(format) = export.format
        && !target.formats().contains(&format)
    {
        let formats: Vec<String> = target.formats().iter().map(|f| format!("`{f}`")).collect();
        let help = match formats.as_slice() {
            [] => "remove it: PostgreSQL has columns".to_owned(),
            formats => format!("known here: {}", formats.join(", ")),
        };
        checker.conflict(
            &child(at, "format"),
            format!("`{format}` cannot be streamed to {}", kind(target)),
            &help,
        );
    }
    if export.ca_file.is_some() && !target.takes_ca() {
        checker.conflict(
            &child(at, "ca-file"),
            format!("`ca-file` has no meaning for {}", kind(target)),
            "remove it: the connection does not use TLS",
        );
    }
}

fn kind(target: &Target) -> &'static str {
    match target {
        Target::File(_) => "a file",
        Target::Stdout => "standard output",
        Target::Http(_) => "an HTTP endpoint",
        Target::Otlp(_) => "a receiver of OTLP",
        Target::Stream { .. } | Target::Udp { .. } => "syslog",
        Target::Unix(_) => "a local socket",
        Target::Postgres(_) => "PostgreSQL",
    }
}

fn headers(checker: &mut Checker<'_>, at: &str, export: &Export, target: Option<&Target>) {
    let at = child(at, "headers");
    if let Some(target) = target
        && !export.headers.is_empty()
        && !target.takes_headers()
    {
        checker.conflict(
            &at,
            format!("`headers` has no meaning for {}", kind(target)),
            "remove it",
        );
    }
    for (name, secret) in &export.headers {
        let at = child(&at, name);
        if HeaderName::try_from(name).is_err() {
            let message = format!("`{}` is not a header name", brief(name));
            checker.add(checker.document.at_key(&at, Code::BadValue, message));
        }
        if let Err(error) = Source::try_from(secret) {
            let at = child(&at, "from");
            checker.add(checker.document.at_value(&at, Code::BadValue, error.to_string()));
        }
    }
}
