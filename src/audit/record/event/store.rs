//! Events of the log itself.

use jiff::Timestamp;

use super::content::{Content, content};
use crate::line::Seq;

content! {
    /// Acknowledged records are lost, because their files are damaged. The rest of these files is
    /// in `quarantine`. Later records reuse their `seq`.
    pub struct RecordsLost {
        /// `seq` of the first lost record.
        pub from: Seq,
        /// `seq` after the last lost record.
        pub until: Seq,
        /// Description of the damage.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reason: Option<String>,
    }
    summary(
        "audit records {from} to {} are lost: {}",
        until.0.saturating_sub(1),
        reason.as_deref().unwrap_or("they are gone from the disk")
    );

    /// The store did not accept records, and these numbers of records are missing: records of what
    /// had already happened, and of refusals. With `on-failure = "pass"`, also records of messages
    /// that passed.
    pub struct RecordsDropped {
        #[schemars(with = "String", extend("format" = "date-time"))]
        pub since: Timestamp,
        #[schemars(with = "String", extend("format" = "date-time"))]
        pub until: Timestamp,
        pub intents: u64,
        pub outcomes: u64,
        pub refusals: u64,
        pub events: u64,
    }
    summary(
        "not recorded from {since} to {until}: {intents} intents, {outcomes} outcomes, {refusals} \
         refusals and {events} events"
    );

    /// A segment was dropped by retention, because of its age or the size of the store. Its proof
    /// is kept.
    pub struct SegmentDropped {
        /// `seq` of the first record of the segment; `last` is that of the last one.
        pub first: u64,
        pub last: u64,
        /// Time at which the first record was written; `to` is that of the last one.
        #[schemars(with = "String", extend("format" = "date-time"))]
        pub from: Timestamp,
        #[schemars(with = "String", extend("format" = "date-time"))]
        pub to: Timestamp,
        /// Size of the segment in bytes.
        pub bytes: u64,
        pub reason: String,
    }
    summary("audit records {first} to {last} dropped: {reason}");

    /// From now on, records are encrypted with another key.
    pub struct KeyRotated {
        /// Id of the key, as in `store.json`.
        pub key_id: String,
    }
    summary("audit records are encrypted by key {key_id} now");

    /// A backup of the store was made.
    pub struct StoreBackedUp {
        /// Folder of the backup.
        pub to: String,
        /// `seq` of the first record of the backup; `last` is that of the last one.
        pub first: u64,
        pub last: u64,
    }
    summary("audit records {first} to {last} copied to {to}");
}
