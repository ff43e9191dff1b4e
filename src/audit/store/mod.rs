//! Where records are kept: plain files that are the log, and an index that can be made of them.
//!
//! - A record is a line ([`Line`](super::line::Line)), a commit a [`frame`] of lines in the file
//!   of commits of its [`block`]. One thread ([`writer`]) commits, with one sync of the disk for
//!   all who wait; another ([`sealer`]) packs whole blocks into their [`segment`], a folder for
//!   each day. Whoever drops a folder drops a day: that is retention.
//! - sled 0.34 holds the [`index`] alone. Its flush does not sync, some stores do not open after an
//!   abrupt stop, and deletes give no space back: none of that touches a record, and an index that
//!   is damaged is thrown away and made again.
//! - `store.lock` is held by the one process that writes the store. `head` names the last
//!   acknowledged record, so that a loss is seen, told and put on record.
//! - A [`View`] is all that was durable at one moment.

mod bitmap;
mod block;
mod fault;
pub(crate) mod frame;
mod index;
mod index_check;
pub(crate) mod index_terms;
mod lock;
mod sealer;
mod segment;
mod segments;
mod writer;

pub(super) use bitmap::Bits;
pub(super) use block::Block;
pub(super) use fault::Fault;
pub(super) use index_terms::{Facts, Field, decision, kind};
pub(super) use lock::{Lock, Refused as LockRefused};
pub(super) use segment::{Mode, Trust};
pub(super) use segments::{
    Head, Opened, Opening, SegmentInfo, SegmentSet, View, first_segment, private_dir, stamp, time,
};
pub(super) use writer::{Job, Settings, Writer};

/// Most records of a block: places in it fit into 512 bytes of bits.
pub(super) const BLOCK: u64 = 4096;
