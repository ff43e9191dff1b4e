//! What is recorded: the types of the newest version, how they are made of an exchange, how they
//! become text.

mod build;
mod encode;
mod shape;
pub mod v1;

pub use build::{Arrival, Conclusion, Ruling};
pub use v1::{
    AnswerKind, Body, Call, Cursor, Decision, Direction, Entry, Event, Finding, Grounds, Happening,
    IllegalCursor, Intent, Kind, Outcome, Record, Refusal, Refused, Rule, Shape, Target, Timing,
    Transport,
};

pub(super) use encode::encode;
