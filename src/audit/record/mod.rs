//! Records: the types of the newest version, their construction from exchanges, and their encoding.

mod accessors;
#[cfg(test)]
mod docs;
mod encode;
mod event;
mod from_exchange;
mod kept_body;
mod launch;
mod limits;
mod members;
mod policy_input;
mod shape;
mod shared;
pub mod v1;

pub use event::*;
pub use from_exchange::{Arrival, Conclusion, DecisionContext, MEMBERS, RULES, era, micros, rule};
pub use launch::{ImageAction, ImageEvent, OrphanRemoval};
pub use limits::{bare_uri, clip_words};
pub use policy_input::{Claimed, Omission, PolicyInput};
pub use shared::{Decision, Era, Rule, Transport};
pub use v1::{
    AnswerKind, Body, Call, DecisionBasis, Direction, Entry, EventRecord, Finding, Intent,
    KeptBody, Kind, Outcome, Record, Refusal, Refused, Shape, Target, Timing, VERSION,
};

pub(super) use encode::encode;
