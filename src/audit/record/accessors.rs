//! What every kind of record can be asked.

use jiff::Timestamp;

use super::{
    Decision, Event, PolicyInput, RefusalGroup, Rule,
    v1::{Call, Grounds, Kept, Kind, Record, Refusal, Target, Timing},
};
use portcullis_protocol::names::DecisionId;

impl Grounds {
    /// The rules that decided: not those that permitted what was refused, or failed, for another
    /// reason.
    pub fn deciding(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| !rule.overruled)
    }

    /// The rules that decided or found something.
    pub fn decisive(&self) -> impl Iterator<Item = &Rule> {
        self.deciding().chain(self.findings.iter().map(|finding| &finding.rule))
    }
}

impl Record {
    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Intent(_) => Kind::Intent,
            Self::Outcome(_) => Kind::Outcome,
            Self::Refused(_) => Kind::Refused,
            Self::Event(_) => Kind::Event,
        }
    }

    /// The decision's id, or the event's own.
    pub fn id(&self) -> DecisionId {
        match self {
            Self::Intent(intent) => intent.call.id,
            Self::Outcome(outcome) => outcome.call.id,
            Self::Refused(refused) => refused.call.id,
            Self::Event(event) => event.id,
        }
    }

    /// When the message arrived, or the event happened.
    pub fn at(&self) -> Timestamp {
        match self {
            Self::Intent(intent) => intent.call.at,
            Self::Outcome(outcome) => outcome.call.at,
            Self::Refused(refused) => refused.call.at,
            Self::Event(event) => event.at,
        }
    }

    /// The message, except for an event.
    pub fn call(&self) -> Option<&Call> {
        match self {
            Self::Intent(intent) => Some(&intent.call),
            Self::Outcome(outcome) => Some(&outcome.call),
            Self::Refused(refused) => Some(&refused.call),
            Self::Event(_) => None,
        }
    }

    /// What was decided, where something was.
    pub fn decision(&self) -> Option<Decision> {
        match self {
            Self::Intent(intent) => Some(intent.decision),
            Self::Outcome(outcome) => Some(outcome.decision),
            Self::Refused(refused) => Some(refused.decision),
            Self::Event(event) => event.what.decision(),
        }
    }

    /// Why it did not pass.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Outcome(outcome) => outcome.refusal.as_ref(),
            Self::Refused(refused) => Some(&refused.refusal),
            Self::Intent(_) | Self::Event(_) => None,
        }
    }

    /// The code of the refusal or failure, or of the refusals that an event stands for.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Event(event) => Some(&event.what.refusals()?.code),
            _ => Some(&self.refusal()?.code),
        }
    }

    /// The refusals that the record stands for, where they have no records of their own.
    pub fn refusals(&self) -> Option<&RefusalGroup> {
        match self {
            Self::Event(event) => event.what.refusals(),
            _ => None,
        }
    }

    /// How many refusals it counts that have no records of their own.
    pub fn summarized(&self) -> Option<u64> {
        match self {
            Self::Event(event) => match &event.what {
                Event::RefusalsSummarized(summarized) => Some(summarized.count),
                _ => None,
            },
            _ => None,
        }
    }

    /// On what grounds it was decided, except for an event.
    pub fn grounds(&self) -> Option<&Grounds> {
        match self {
            Self::Intent(intent) => Some(&intent.grounds),
            Self::Outcome(outcome) => Some(&outcome.grounds),
            Self::Refused(refused) => Some(&refused.grounds),
            Self::Event(_) => None,
        }
    }

    /// What policies were shown of it, where they were asked.
    pub fn asked(&self) -> Option<&PolicyInput> {
        match self {
            Self::Intent(intent) => intent.asked.as_ref(),
            Self::Refused(refused) => refused.asked.as_ref(),
            Self::Outcome(_) | Self::Event(_) => None,
        }
    }

    /// How long it took, where it came to an end.
    pub fn timing(&self) -> Option<&Timing> {
        match self {
            Self::Outcome(outcome) => Some(&outcome.timing),
            Self::Refused(refused) => Some(&refused.timing),
            Self::Intent(_) | Self::Event(_) => None,
        }
    }

    /// The arguments or the result, where a policy had them kept.
    pub fn kept(&self) -> Option<&Kept> {
        match self {
            Self::Intent(intent) => intent.arguments.as_ref(),
            Self::Outcome(outcome) => outcome.result.as_ref(),
            Self::Refused(refused) => refused.arguments.as_ref(),
            Self::Event(_) => None,
        }
    }

    /// The event's name: the value of `event`.
    pub fn event(&self) -> Option<&'static str> {
        match self {
            Self::Event(event) => Some(event.what.name()),
            _ => None,
        }
    }

    /// The principal that the record is about.
    pub fn principal(&self) -> Option<&str> {
        match self {
            Self::Event(event) => event.what.principal(),
            _ => self.call()?.principal.as_deref(),
        }
    }

    /// The session that the record is about, by its first characters.
    pub fn session(&self) -> Option<&str> {
        match self {
            Self::Event(event) => event.what.session(),
            _ => self.call()?.session.as_deref(),
        }
    }

    /// The server that the record is about.
    pub fn server(&self) -> Option<&str> {
        match self {
            Self::Event(event) => event.what.server(),
            _ => self.call()?.server.as_deref(),
        }
    }

    /// The tool that the record is about.
    pub fn tool(&self) -> Option<&str> {
        match self.call()?.target.as_ref()? {
            Target::Tool(name) => Some(name),
            Target::Prompt(_) | Target::Resource(_) => None,
        }
    }

    /// The tool, prompt or resource that the record is about.
    pub fn target(&self) -> Option<&str> {
        match self.call()?.target.as_ref()? {
            Target::Tool(name) | Target::Prompt(name) | Target::Resource(name) => Some(name),
        }
    }
}
