//! The audit log: what was decided of every message, on disk before the message leaves.
//!
//! - An *intent* is durable before a call leaves; its *outcome* follows. What is refused before it
//!   leaves has one *refused* record. All carry the decision's id.
//! - What can't be recorded is not done: a store that is full, slow, in use or broken says so with
//!   [`Unavailable`], and the caller refuses.
//! - No record holds a secret, and none an argument's value or a result unless a policy says
//!   `@keep`: texts are kept as size and keyed digest, arguments and results as their shape.
//!
//! Records are in `record`, the store in `store`, reading in `query`.

pub mod config;
mod digest;
pub mod export;
mod line;
mod log;
mod maintenance;
pub mod proof;
mod query;
pub mod record;
mod store;
mod unavailable;

pub use digest::DigestKey;
pub use line::{Line, LineHead, Seq};
pub use log::{Audit, Clock, Options, Reader, Scrub, Tail, Tailed, Written};
pub use maintenance::{
    Backup, BackupFault, Dropped, KeyTrouble, Keys, Limits, Missed, PruneFault, Pruned, Why,
    back_up, is_encrypted,
};
pub use query::{
    Aggregates, Archive, By, Column, Count, CountRequest, Counted, Counting, Counts, Filter,
    GROUP_MAX, Group, IllegalColumn, IllegalFilter, IllegalGroup, Order, PAGE, PAGE_MAX, Page,
    Query, StatsRequest, Summed, Timeline, Times, Type, summary,
};
pub use record::{Arrival, Conclusion, Intent, Outcome, Refused, Ruling};
pub use store::frame::{BODY_MAX as FRAME_MAX, BadFrame, Frame, frames};
pub use unavailable::Unavailable;
