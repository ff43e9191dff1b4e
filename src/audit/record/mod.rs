//! What is recorded: the types of the newest version, how they are made of an exchange, how they
//! become text.

mod about;
mod access;
mod asked;
mod bounds;
mod build;
#[cfg(test)]
mod docs;
mod encode;
mod happening;
mod kept;
mod launch;
mod reach;
mod shape;
pub mod v1;
mod words;

pub use asked::{Asked, Claimed, Lack};
pub use bounds::{bare_uri, clip_words};
pub use build::{Arrival, Conclusion, MEMBERS, RULES, Ruling, era, micros, rule};
pub use happening::{
    AdminAction, By, ByHand, DropReason, Dropped, Egress, HandedBy, Happening, ImageLockFailed,
    ImageLocked, ImagePullFailed, ImagePulled, ImagePulling, ImageResolved, LaunchRefused,
    Launched, Launching, LeftBehind, PlaceKind, PluginLoaded, RefusalGroup, SecretHanded,
    SecretSource, SessionOpened, Stopped, SummarizedRefusals, Who,
};
pub use launch::{ImageDid, ImageDone, Left, LeftKind, Reaping};
pub use reach::{ReachEnd, Reached, Reaching};
pub use v1::{
    AnswerKind, Body, Call, Decision, Direction, Entry, Era, Event, Finding, Grounds, Intent, Kept,
    Kind, Outcome, Record, Refusal, Refused, Rule, Shape, Target, Timing, Transport, VERSION,
};

pub(super) use encode::encode;
