//! Accessors of all kinds of records.

use jiff::Timestamp;

use super::{
    Decision, Event, RefusalGroup, Rule,
    v1::{Call, DecisionBasis, KeptBody, Kind, Record, Refusal, Target, Timing},
};
use portcullis_protocol::names::DecisionId;

impl DecisionBasis {
    /// Rules that decided. Excludes permits of a message that was refused, or failed, for another
    /// reason.
    pub fn deciding(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| !rule.overruled)
    }

    /// Rules that decided or found something.
    pub fn decisive(&self) -> impl Iterator<Item = &Rule> {
        self.deciding().chain(self.findings.iter().map(|finding| &finding.rule))
    }
}

impl Record {
    /// Kind of the record.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Intent(_) => Kind::Intent,
            Self::Outcome(_) => Kind::Outcome,
            Self::Refused(_) => Kind::Refused,
            Self::Event(_) => Kind::Event,
        }
    }

    /// Id of the decision, or of the event.
    pub fn id(&self) -> DecisionId {
        match self {
            Self::Intent(intent) => intent.call.id,
            Self::Outcome(outcome) => outcome.call.id,
            Self::Refused(refused) => refused.call.id,
            Self::Event(event) => event.id,
        }
    }

    /// Time at which the message arrived or the event happened.
    pub fn at(&self) -> Timestamp {
        match self {
            Self::Intent(intent) => intent.call.at,
            Self::Outcome(outcome) => outcome.call.at,
            Self::Refused(refused) => refused.call.at,
            Self::Event(event) => event.at,
        }
    }

    /// The message. `None` for an event.
    pub fn call(&self) -> Option<&Call> {
        match self {
            Self::Intent(intent) => Some(&intent.call),
            Self::Outcome(outcome) => Some(&outcome.call),
            Self::Refused(refused) => Some(&refused.call),
            Self::Event(_) => None,
        }
    }

    /// The decision, if the record has one.
    pub fn decision(&self) -> Option<Decision> {
        match self {
            Self::Intent(intent) => Some(intent.decision),
            Self::Outcome(outcome) => Some(outcome.decision),
            Self::Refused(refused) => Some(refused.decision),
            Self::Event(event) => event.what.decision(),
        }
    }

    /// Refusal or failure of the message.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Outcome(outcome) => outcome.refusal.as_ref(),
            Self::Refused(refused) => Some(&refused.refusal),
            Self::Intent(_) | Self::Event(_) => None,
        }
    }

    /// Code of the refusal or failure, or of the refusals that an event stands for.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Event(event) => Some(&event.what.refusals()?.code),
            _ => Some(&self.refusal()?.code),
        }
    }

    /// Refusals without their own records that the record stands for.
    pub fn refusals(&self) -> Option<&RefusalGroup> {
        match self {
            Self::Event(event) => event.what.refusals(),
            _ => None,
        }
    }

    /// Number of refusals without their own records that the record counts.
    pub fn summarized(&self) -> Option<u64> {
        match self {
            Self::Event(event) => match &event.what {
                Event::RefusalsSummarized(summarized) => Some(summarized.count),
                _ => None,
            },
            _ => None,
        }
    }

    /// Grounds of the decision. `None` for an event.
    pub fn grounds(&self) -> Option<&DecisionBasis> {
        match self {
            Self::Intent(intent) => Some(&intent.grounds),
            Self::Outcome(outcome) => Some(&outcome.grounds),
            Self::Refused(refused) => Some(&refused.grounds),
            Self::Event(_) => None,
        }
    }

    /// Durations, if the message ended.
    pub fn timing(&self) -> Option<&Timing> {
        match self {
            Self::Outcome(outcome) => Some(&outcome.timing),
            Self::Refused(refused) => Some(&refused.timing),
            Self::Intent(_) | Self::Event(_) => None,
        }
    }

    /// Arguments or result that a policy keeps.
    pub fn kept_body(&self) -> Option<&KeptBody> {
        match self {
            Self::Intent(intent) => intent.arguments.as_ref(),
            Self::Outcome(outcome) => outcome.result.as_ref(),
            Self::Refused(refused) => refused.arguments.as_ref(),
            Self::Event(_) => None,
        }
    }

    /// Name of the event: the value of `event`.
    pub fn event(&self) -> Option<&'static str> {
        match self {
            Self::Event(event) => Some(event.what.name()),
            _ => None,
        }
    }

    /// Principal that the record is about.
    pub fn principal(&self) -> Option<&str> {
        match self {
            Self::Event(event) => event.what.principal(),
            _ => self.call()?.principal.as_deref(),
        }
    }

    /// First characters of the session id that the record is about.
    pub fn session(&self) -> Option<&str> {
        match self {
            Self::Event(event) => event.what.session(),
            _ => self.call()?.session.as_deref(),
        }
    }

    /// Server that the record is about.
    pub fn server(&self) -> Option<&str> {
        match self {
            Self::Event(event) => event.what.server(),
            _ => self.call()?.server.as_deref(),
        }
    }

    /// Tool that the record is about.
    pub fn tool(&self) -> Option<&str> {
        match self.call()?.target.as_ref()? {
            Target::Tool(name) => Some(name),
            Target::Prompt(_) | Target::Resource(_) => None,
        }
    }

    /// Tool, prompt or resource that the record is about.
    pub fn target(&self) -> Option<&str> {
        match self.call()?.target.as_ref()? {
            Target::Tool(name) | Target::Prompt(name) | Target::Resource(name) => Some(name),
        }
    }
}
