//! What the index knows of a record: its terms, its times, its sizes.

use serde::{Deserialize, Serialize};

use crate::record::{Decision, Kind, Record, Target};

/// A field with an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub(crate) enum Field {
    Id = 1,
    Trace = 2,
    Session = 3,
    Principal = 4,
    Server = 5,
    /// A tool's name on its server.
    Tool = 6,
    Method = 7,
    Decision = 8,
    Code = 9,
    Kind = 10,
    /// The id of a rule that decided, or that found something.
    Rule = 11,
    Label = 12,
    Event = 13,
    /// A prompt's name or a resource's URI.
    Target = 14,
}

/// What the index knows of a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The values of the indexed fields, each pair once.
    pub terms: Vec<(Field, String)>,
    /// Microseconds from the message's arrival to its end.
    pub total_us: Option<u64>,
    /// Microseconds of it that the server took.
    pub server_us: Option<u64>,
    /// Bytes of the parameters.
    pub request_bytes: Option<u64>,
    /// Bytes of the answer.
    pub response_bytes: Option<u64>,
    /// How many refusals it counts that have no records of their own.
    pub summarized: Option<u64>,
}

/// The text of a decision, as the record has it.
pub(crate) fn decision(decision: Decision) -> &'static str {
    match decision {
        Decision::Allowed => "allowed",
        Decision::Refused => "refused",
        Decision::Failed => "failed",
        Decision::Cancelled => "cancelled",
    }
}

/// The text of a kind, as the record has it.
pub(crate) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Intent => "intent",
        Kind::Outcome => "outcome",
        Kind::Refused => "refused",
        Kind::Event => "event",
    }
}

impl Facts {
    /// The facts of a record.
    pub(crate) fn of(record: &Record) -> Self {
        let mut facts = Self::default();
        facts.add(Field::Id, record.id().to_string());
        facts.add(Field::Kind, kind(record.kind()));
        for (field, value) in [
            (Field::Principal, record.principal()),
            (Field::Session, record.session()),
            (Field::Server, record.server()),
            (Field::Tool, record.tool()),
            (Field::Event, record.event()),
            (Field::Decision, record.decision().map(decision)),
            (Field::Code, record.code()),
        ] {
            value.into_iter().for_each(|value| facts.add(field, value));
        }
        if let Some(call) = record.call() {
            for (field, value) in [(Field::Trace, &call.trace), (Field::Method, &call.method)] {
                value.iter().for_each(|value| facts.add(field, value.as_str()));
            }
            if let Some(Target::Prompt(name) | Target::Resource(name)) = &call.target {
                facts.add(Field::Target, name.as_str());
            }
            call.labels.iter().for_each(|label| facts.add(Field::Label, label.as_str()));
        }
        if let Some(grounds) = record.grounds() {
            grounds.decisive().for_each(|rule| facts.add(Field::Rule, rule.id.as_str()));
        }
        match record {
            Record::Intent(intent) => facts.request_bytes = Some(intent.request.bytes),
            Record::Outcome(outcome) => {
                facts.response_bytes = outcome.response.as_ref().map(|body| body.bytes);
                facts.total_us = Some(outcome.timing.total_us);
                facts.server_us = outcome.timing.server_us;
            }
            Record::Refused(refused) => {
                facts.request_bytes = refused.request.as_ref().map(|body| body.bytes);
            }
            Record::Event(_) => facts.summarized = record.summarized(),
        }
        facts
    }

    /// The first value of a field.
    pub(crate) fn term(&self, field: Field) -> Option<&str> {
        self.terms.iter().find(|(of, _)| *of == field).map(|(_, value)| value.as_str())
    }

    fn add(&mut self, field: Field, value: impl Into<String>) {
        let term = (field, value.into());
        if !self.terms.contains(&term) {
            self.terms.push(term);
        }
    }
}
