//! Where records are kept: a row of segments, each a sled store in a folder of its own for one
//! day, of which the newest is written by one thread.
//!
//! - `store.lock` is held by the one process that uses the store.
//! - A segment that does not open is moved to `quarantine/` and a new one begun: sled 0.34 has
//!   open reports of stores that do not open after an abrupt stop, and no record of today is
//!   worth refusing all calls of tomorrow.
//! - sled opens a log with damage in its middle without a word, cut off at the damage. Each segment
//!   has a mark of its last acknowledged record, so that such a loss is seen, told and put on
//!   record.
//! - Whoever drops a segment's folder drops a day: that is retention.

pub(super) mod facts;
mod keys;
mod lock;
mod segment;
mod shelf;
mod writer;

pub(super) use keys::{Field, Span, decision, kind};
pub(super) use lock::{Lock, Refused as LockRefused};
pub use segment::Order;
pub(super) use segment::{Fault, Loss, Segment};
pub(super) use shelf::{Shelf, private_dir, stamp, time};
pub(super) use writer::{Job, Settings, Writer};
