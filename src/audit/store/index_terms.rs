//! Index data of a record: terms, times and sizes.

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::record::{Decision, Kind, Record, Target};

/// Indexed field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub(crate) enum Field {
    Id = 1,
    Trace = 2,
    Session = 3,
    Principal = 4,
    Server = 5,
    /// Name of a tool on its server.
    Tool = 6,
    Method = 7,
    Decision = 8,
    Code = 9,
    Kind = 10,
    /// Id of a rule that decided or found something.
    Rule = 11,
    Label = 12,
    Event = 13,
    /// Name of a prompt or URI of a resource.
    Target = 14,
}

/// Terms of a record that most do not exceed.
const USUAL_TERMS: usize = 12;

/// Index data of a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Values of the indexed fields, without duplicate pairs.
    pub terms: Vec<(Field, SmolStr)>,
    /// Microseconds from the arrival of the message to its end.
    pub total_us: Option<u64>,
    /// Microseconds that the server took, a part of the total.
    pub server_us: Option<u64>,
    /// Bytes of the parameters.
    pub request_bytes: Option<u64>,
    /// Bytes of the response.
    pub response_bytes: Option<u64>,
    /// Number of refusals without their own records that the record counts.
    pub summarized: Option<u64>,
}

/// Serialized name of a decision.
pub(crate) fn decision(decision: Decision) -> &'static str {
    match decision {
        Decision::Allowed => "allowed",
        Decision::Refused => "refused",
        Decision::Failed => "failed",
        Decision::Cancelled => "cancelled",
    }
}

/// Serialized name of a kind.
pub(crate) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Intent => "intent",
        Kind::Outcome => "outcome",
        Kind::Refused => "refused",
        Kind::Event => "event",
    }
}

impl Facts {
    /// Index data of a record.
    pub(crate) fn of(record: &Record) -> Self {
        let mut facts = Self { terms: Vec::with_capacity(USUAL_TERMS), ..Self::default() };
        facts.add(Field::Id, &record.id().to_string());
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

    /// First value of a field.
    pub(crate) fn term(&self, field: Field) -> Option<&str> {
        self.terms.iter().find(|(of, _)| *of == field).map(|(_, value)| value.as_str())
    }

    fn add(&mut self, field: Field, value: &str) {
        if !self.terms.iter().any(|(of, term)| *of == field && term == value) {
            self.terms.push((field, SmolStr::new(value)));
        }
    }
}
