//! The audit log: the decision about every message, on disk before the message leaves.
//!
//! `record` has the types of records, `log` writes them, `store` keeps them, `proof` signs and
//! verifies them, `query` finds and counts them, `export` delivers them to other systems, and
//! `maintenance` has keys, retention and backups.
//!
//! # Invariants
//! - An *intent* is durable before a call leaves, and its *outcome* follows. A message that is
//!   refused before it leaves has one *refused* record. All of them carry the decision id.
//! - What cannot be recorded is not done: a store that is full, slow, in use or broken returns
//!   [`Unavailable`], and the caller refuses.
//! - No record holds a secret. No record holds an argument's value or a result unless a policy has
//!   `@keep`: texts are kept as size and keyed digest, arguments and results as their shape.

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
pub use log::{Audit, Clock, Options, Reader, Scrub, Tail, Tailed};
pub use maintenance::{
    Backup, BackupFault, Dropped, KeyTrouble, Keys, Limits, MissedRecords, PruneFault, Pruned,
    RetentionReason, back_up, is_encrypted,
};
pub use query::{
    Aggregates, Archive, By, Column, Count, CountRequest, Counted, Counting, Counts, Filter,
    GROUP_MAX, Group, IllegalColumn, IllegalFilter, IllegalGroup, Order, PAGE, PAGE_MAX, Page,
    Query, StatsRequest, Summed, Timeline, Times, Type, summary,
};
pub use record::{Arrival, Conclusion, DecisionContext, Intent, Outcome, Refused};
pub use store::frame::{BODY_MAX as FRAME_MAX, BadFrame, Frame, frames};
pub use unavailable::Unavailable;
