//! Records as text for people. The contents of cells and lines are escaped when they are printed.

use crate::cli::escape;
use portcullis_audit::{
    Column, Type,
    record::{
        AnswerKind, Call, Decision, DecisionBasis, Direction, Entry, KeptBody, Record, Rule,
        Target, Transport,
    },
};

pub(super) const HEADER: [&str; 7] = ["TIME", "DECISION", "CODE", "CLIENT", "WHAT", "TOOK", "ID"];
/// Minimum widths of the columns if records are printed one by one.
const WIDTHS: [usize; 6] = [24, 9, 17, 12, 40, 8];

/// Cells of a record.
pub(super) fn row(entry: &Entry) -> [String; 7] {
    let record = &entry.record;
    let call = record.call();
    let took = match record {
        Record::Outcome(outcome) => millis(outcome.timing.total_us),
        Record::Refused(refused) => millis(refused.timing.total_us),
        Record::Intent(_) | Record::Event(_) => String::new(),
    };
    [
        format!("{:.3}", entry.recorded),
        word(record).to_owned(),
        record.code().unwrap_or_default().to_owned(),
        call.and_then(|call| call.principal.clone())
            .or_else(|| record.refusals()?.principal.clone())
            .unwrap_or_default(),
        match record {
            Record::Event(event) => event.what.to_string(),
            _ => call.map(what).unwrap_or_default(),
        },
        took,
        record.id().to_string(),
    ]
}

/// Text of a record in a column.
pub(super) fn cell(column: Column, entry: &Entry) -> String {
    match (column, column.ty()) {
        (Column::Time, _) => format!("{:.3}", entry.recorded),
        (_, Type::Duration) => column.number(entry).map(millis).unwrap_or_default(),
        _ => column.values(entry).join(", "),
    }
}

/// A record as one line with columns.
pub(super) fn line(entry: &Entry) -> String {
    let cells = row(entry);
    let padded = cells.iter().zip(WIDTHS.into_iter().chain([0])).map(|(cell, width)| {
        let shown = escape(cell);
        format!("{shown:width$}")
    });
    padded.collect::<Vec<_>>().join("  ")
}

fn word(record: &Record) -> &'static str {
    match (record, record.decision()) {
        (Record::Intent(_), _) => "intent",
        (_, Some(Decision::Allowed)) => "allowed",
        (_, Some(Decision::Refused)) => "refused",
        (_, Some(Decision::Failed)) => "failed",
        (_, Some(Decision::Cancelled)) => "cancelled",
        (_, None) => "event",
    }
}

fn millis(micros: u64) -> String {
    format!("{}.{:01} ms", micros / 1000, micros % 1000 / 100)
}

/// Method and its target: `tools/call notes/read`.
fn what(call: &Call) -> String {
    let method = call.method.as_deref().unwrap_or("(unreadable message)");
    let server = call.server.as_deref();
    let target = call.target.as_ref().map(|target| match target {
        Target::Tool(name) | Target::Prompt(name) | Target::Resource(name) => name.as_str(),
    });
    let about = match (server, target) {
        (Some(server), Some(target)) => format!(" {server}/{target}"),
        (Some(one), None) | (None, Some(one)) => format!(" {one}"),
        (None, None) => String::new(),
    };
    format!("{method}{about}")
}

/// Lines about a decision: labels and texts, each pair once.
#[derive(Default)]
struct Lines(Vec<(&'static str, String)>);

impl Lines {
    fn add(&mut self, label: &'static str, text: impl Into<String>) {
        let line = (label, text.into());
        if !self.0.contains(&line) {
            self.0.push(line);
        }
    }

    fn call(&mut self, call: &Call) {
        self.add("arrived", call.at.to_string());
        let transport = match call.transport {
            Transport::Http => "HTTP",
            Transport::Unix => "the local socket",
            Transport::Stdio => "standard input",
            Transport::Cli => "the command line",
        };
        let verified = if call.verified { "" } else { " (not verified)" };
        let from = call.client_addr.map(|addr| format!(" from {addr}")).unwrap_or_default();
        let session = call
            .session
            .as_ref()
            .map(|session| format!(", session {session}…"))
            .unwrap_or_default();
        let client = call.principal.as_deref().unwrap_or("(nobody identified)");
        self.add("client", format!("{client}{verified}{from} over {transport}{session}"));
        if !call.groups.is_empty() {
            self.add("groups", call.groups.join(", "));
        }
        if let Some(key) = &call.key_id {
            self.add("key", format!("{key}…"));
        }
        let kind = if call.notification { " (notification)" } else { "" };
        let from_server = match call.direction {
            Direction::ClientToServer => "",
            Direction::ServerToClient => " (from the server)",
        };
        self.add("message", format!("{}{kind}{from_server}", what(call)));
        if let Some(image) = &call.image {
            self.add("image", image);
        }
        if let Some(pin) = &call.pin {
            self.add("pin", pin);
        }
        if let Some(revision) = &call.revision {
            self.add("revision", revision);
        }
        if let Some(trace) = &call.trace {
            self.add("trace", trace);
        }
        if !call.labels.is_empty() {
            self.add("labels", call.labels.iter().cloned().collect::<Vec<_>>().join(", "));
        }
    }

    fn grounds(&mut self, grounds: &DecisionBasis) {
        for rule in &grounds.rules {
            let overruled = if rule.overruled { "  (permitted it)" } else { "" };
            self.add("rule", format!("{}{overruled}", place(rule)));
            if let Some(reason) = &rule.reason {
                self.add("", reason);
            }
        }
        for finding in &grounds.findings {
            self.add(
                "finding",
                format!(
                    "{} ({}, {}): {}",
                    finding.interceptor, finding.phase, finding.effect, finding.message
                ),
            );
            self.add("", format!("by {}", place(&finding.rule)));
        }
        if let Some(revision) = &grounds.policy_revision {
            self.add("policies", format!("revision {revision}"));
        }
        if grounds.omitted > 0 {
            self.add("omitted", format!("{} details, to keep the record small", grounds.omitted));
        }
    }
}

/// Position of a stage in the order of the pipeline.
fn turn(stage: &str) -> usize {
    const TURNS: [&str; 6] = ["parse", "route", "request/", "intent", "server", "response/"];
    TURNS.iter().position(|turn| stage.starts_with(turn)).unwrap_or(TURNS.len())
}

/// Kept part of a body.
fn kept_body(kept_body: &KeptBody) -> String {
    let Some(body) = &kept_body.body else {
        return format!(
            "(not kept: {})",
            kept_body.failure.as_deref().unwrap_or("nothing is left")
        );
    };
    let redacted = match kept_body.redacted {
        0 => String::new(),
        count => format!(" ({count} secrets taken out)"),
    };
    format!("{body}{redacted}{}", if kept_body.cut { " (cut)" } else { "" })
}

/// Rule and its position: `"ID"  FILE:LINE`.
fn place(rule: &Rule) -> String {
    match (&rule.file, rule.line) {
        (Some(file), Some(line)) => format!("\"{}\"  {file}:{line}", rule.id),
        (Some(file), None) => format!("\"{}\"  {file}", rule.id),
        (None, _) => format!("\"{}\"", rule.id),
    }
}

/// All records of a decision, as lines.
pub(super) fn decision(entries: &[Entry]) -> Vec<String> {
    let mut lines = Lines::default();
    for Entry { record, .. } in entries {
        if let Some(call) = record.call() {
            lines.call(call);
        }
        if let Some(refusal) = record.refusal() {
            lines.add("response", &refusal.message);
            if let Some(detail) = &refusal.detail {
                lines.add("detail", detail);
            }
        }
        if let Some(grounds) = record.grounds() {
            lines.grounds(grounds);
        }
        let (request, shape) = match record {
            Record::Intent(intent) => (Some(&intent.request), Some(&intent.shape)),
            Record::Refused(refused) => (refused.request.as_ref(), Some(&refused.shape)),
            Record::Outcome(outcome) => (None, Some(&outcome.shape)),
            Record::Event(_) => (None, None),
        };
        let part = if let Record::Outcome(_) = record { "result" } else { "argument" };
        if let Some(body) = request {
            lines.add("request", format!("{} bytes, {}", body.bytes, body.digest));
        }
        for (pointer, kind) in shape.into_iter().flatten() {
            lines.add(part, format!("{pointer}: {kind}"));
        }
        if let Some(body) = record.kept_body() {
            lines.add("kept", format!("{part}: {}", kept_body(body)));
        }
        match record {
            Record::Outcome(outcome) => {
                if let Some(body) = &outcome.response {
                    let kind = match outcome.answer {
                        Some(AnswerKind::Error) => "error",
                        Some(AnswerKind::Result) | None => "result",
                    };
                    lines.add("response", format!("{kind}, {} bytes, {}", body.bytes, body.digest));
                }
                let server = outcome
                    .timing
                    .server_us
                    .map(|micros| format!(", {} of it in the server", millis(micros)))
                    .unwrap_or_default();
                lines.add("took", format!("{}{server}", millis(outcome.timing.total_us)));
            }
            Record::Event(event) => lines.add("event", event.what.to_string()),
            Record::Intent(_) | Record::Refused(_) => {}
        }
        let stages = record.timing().into_iter().flat_map(|timing| &timing.stages_us);
        let mut stages: Vec<_> = stages.collect();
        stages.sort_by_key(|(stage, _)| turn(stage));
        for (stage, micros) in stages {
            lines.add("", format!("{} in {stage}", millis(*micros)));
        }
    }
    for entry in entries {
        let word = word(&entry.record);
        lines.add("recorded", format!("{}, {word}, record {}", entry.recorded, entry.seq));
    }
    let mut text = Vec::new();
    if let Some(Entry { record, .. }) = entries.last() {
        let code = record.code().map(|code| format!(" {code}")).unwrap_or_default();
        let verdict = match record {
            Record::Intent(_) => "allowed, and no outcome is on record",
            _ => word(record),
        };
        text.push(format!("{} {verdict}{code}", record.id()));
    }
    text.extend(lines.0.into_iter().map(|(label, value)| format!("  {label:9} {value}")));
    text
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use portcullis_test_support::exchange;

    use super::*;
    use portcullis_audit::{Conclusion, DecisionContext, DigestKey, Intent, Outcome, Refused};
    use portcullis_protocol::{
        exchange::Exchange,
        names::DecisionId,
        refusal::{self, Code, Refusal},
    };

    fn entry(record: impl Into<Record>) -> Entry {
        Entry {
            v: 1,
            seq: portcullis_audit::Seq(7),
            recorded: Timestamp::from_microsecond(1_795_248_000_123_456).unwrap(),
            prev: portcullis_audit::proof::Hash::ZERO,
            record: record.into(),
        }
    }

    fn fixed(change: impl FnOnce(&mut Exchange)) -> Exchange {
        exchange(|exchange| {
            exchange.id = DecisionId::from_bytes([1; 16]);
            exchange.at = Timestamp::from_second(1_795_248_000).unwrap();
            change(exchange);
        })
    }

    fn by_rule() -> Refusal {
        Refusal::new(Code::PolicyDenied, "not allowed").detail("for the operator").rule(
            refusal::Rule {
                id: "no-destructive".into(),
                file: Some("policies/github.cedar".into()),
                line: Some(9),
                reason: Some("Machines delete nothing".into()),
                obligations: Default::default(),
            },
        )
    }

    #[test]
    fn refusal_shows_its_rule_with_file_and_line() {
        let key = DigestKey::from_bytes(&[7; 32]);
        let finding = portcullis_protocol::exchange::Finding {
            interceptor: "secrets".into(),
            phase: portcullis_protocol::exchange::Phase::Request,
            rule: refusal::Rule::named("entropy"),
            message: "a token at /arguments/path".into(),
            effect: portcullis_protocol::exchange::Effect::Reported,
        };
        let ruling = DecisionContext {
            findings: std::slice::from_ref(&finding),
            policy_revision: Some("7f3a"),
            ..DecisionContext::default()
        };
        let mut record = Refused::of(&fixed(|_| {}), &by_rule(), ruling, &key);
        record.timing.total_us = 0;
        let text = decision(&[entry(record)]).join("\n");
        insta::with_settings!({filters => vec![
            ("hmac-sha256:[0-9a-f]{64}", "hmac-sha256:[digest]"),
            ("/#[0-9a-f]{8}", "/#[key]"),
        ]}, {
            insta::assert_snapshot!(text, @r#"
            01010101-0101-0101-0101-010101010101 refused policy-denied
              arrived   2026-11-21T08:00:00Z
              client    ci-bot from 127.0.0.1:4000 over HTTP
              message   tools/call notes/read
              revision  2026-07-28
              response  not allowed
              detail    for the operator
              rule      "no-destructive"  policies/github.cedar:9
                        Machines delete nothing
              finding   secrets (request, reported): a token at /arguments/path
                        by "entropy"
              policies  revision 7f3a
              request   41 bytes, hmac-sha256:[digest]
              argument  /#[key]: string
              recorded  2026-11-21T08:00:00.123456Z, refused, record 7
            "#);
        });
    }

    #[test]
    fn intent_and_outcome_are_shown_as_one_decision() {
        let key = DigestKey::from_bytes(&[7; 32]);
        let exchange = fixed(|exchange| {
            exchange.session =
                Some(portcullis_protocol::names::SessionId::presented("0123456789abcdef"));
        });
        let intent = Intent::of(&exchange, DecisionContext::default(), &key);
        assert_eq!(
            decision(&[entry(intent.clone())])[0],
            "01010101-0101-0101-0101-010101010101 allowed, and no outcome is on record"
        );
        let mut outcome =
            Outcome::of(&exchange, DecisionContext::default(), Conclusion::Delivered, None, &key);
        outcome.timing = portcullis_audit::record::Timing {
            total_us: 12_345,
            server_us: Some(9_000),
            ..Default::default()
        };
        let text = decision(&[entry(intent), entry(outcome)]);
        assert_eq!(text[0], "01010101-0101-0101-0101-010101010101 allowed");
        let client = "  client    ci-bot from 127.0.0.1:4000 over HTTP, session 01234567…";
        assert_eq!(text.iter().filter(|line| *line == client).count(), 1, "{text:#?}");
        assert!(text.contains(&"  took      12.3 ms, 9.0 ms of it in the server".to_owned()));
    }

    #[test]
    fn hostile_name_cannot_control_the_terminal() {
        let evil = "re\u{1b}[2Jad\r\n\u{202e}x";
        let exchange = fixed(|exchange| {
            exchange.target =
                portcullis_protocol::exchange::Target::Tool { name: evil.into(), tool: None };
            exchange.method = portcullis_protocol::exchange::Method::new(evil);
        });
        let record = Refused::of(
            &exchange,
            &by_rule(),
            DecisionContext::default(),
            &DigestKey::from_bytes(&[7; 32]),
        );
        let line = line(&entry(record));
        assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
        assert!(line.contains(r"notes/re\u{1b}[2Jad\r\n\u{202e}x"), "{line}");
    }
}
