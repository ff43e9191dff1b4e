//! Life cycle of a store: its identity (`manifest`), encryption at rest (`cipher`, `keys`), missed
//! records where calls go on (`missed_records`), removal of old segments (`retention`), and copies
//! (`backup`).
//!
//! INVARIANT: no error, `Debug` or log line of this module holds a key or decrypted data.

mod backup;
mod cipher;
mod file_permissions;
mod keys;
mod manifest;
mod missed_records;
mod retention;
mod segment_admin;

pub(crate) use backup::is_unfinished;
pub use backup::{Backup, BackupFault};
pub(crate) use cipher::{Cipher, CipherFault, Key, KeyId};
pub(crate) use file_permissions::open_to_others;
pub use keys::{KeyTrouble, Keys};
pub use manifest::is_encrypted;
pub(crate) use manifest::{FILE as MANIFEST, Manifest, ManifestFault};
pub use missed_records::MissedRecords;
pub(crate) use missed_records::{Gap, PROBE};
pub use retention::{Limits, RetentionReason};
pub(crate) use segment_admin::sweep;
pub use segment_admin::{Dropped, PruneFault, Pruned, back_up};
