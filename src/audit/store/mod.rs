//! Storage of records: plain files that are the log, and an index that can be rebuilt from them.
//!
//! - A record is a line ([`Line`](super::line::Line)), a commit a [`frame`] of lines in the commit
//!   file of its [`block`]. One thread ([`writer`]) commits, with one sync of the disk for all
//!   waiting records; another ([`sealer`]) packs whole blocks into their [`segment`], a folder for
//!   each day. Retention drops a day by removing its folder.
//! - sled 0.34 holds only the [`index`]. Its flush does not sync, some stores do not open after an
//!   abrupt stop, and deletes do not free space: none of that affects a record, and a damaged index
//!   is discarded and rebuilt.
//! - The one process that writes the store holds `store.lock`. `head` names the last acknowledged
//!   record, so that a loss is detected, logged and recorded.
//! - A [`View`] is the durable state at one moment.

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
mod view_block;
mod writer;

pub(super) use bitmap::Bits;
pub(super) use fault::Fault;
pub(super) use index_terms::{Facts, Field, decision, kind};
pub(super) use lock::{Lock, Refused as LockRefused};
pub(super) use segment::{IndexTrust, Mode};
pub(super) use segments::{
    Head, Opened, Opening, SegmentInfo, SegmentSet, View, first_segment, private_dir, stamp, time,
};
pub(super) use view_block::Block;
pub(super) use writer::{Job, Settings, Writer};

/// Maximum number of records of a block: a set of its positions fits into 512 bytes.
pub(super) const BLOCK: u64 = 4096;
