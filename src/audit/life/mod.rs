//! The life of a store: what makes it this store (`manifest`), encryption at rest (`cipher`,
//! `keys`), what is missing where calls go on without it (`gap`), what is dropped (`retention`),
//! and copies (`backup`).
//!
//! INVARIANT: no error, `Debug` or log line of this room holds a key or what was encrypted.

mod backup;
mod cipher;
mod gap;
mod keeper;
mod keys;
mod manifest;
mod modes;
mod retention;

pub(in crate::audit) use crate::durable::write as write_durably;
pub(in crate::audit) use backup::is_unfinished;
pub use backup::{Backup, BackupFault};
pub(in crate::audit) use cipher::{Cipher, CipherFault, Key, KeyId};
pub use gap::Missed;
pub(in crate::audit) use gap::{Gap, PROBE};
pub(in crate::audit) use keeper::sweep;
pub use keeper::{Dropped, PruneFault, Pruned, back_up};
pub use keys::{KeyTrouble, Keys};
pub use manifest::is_encrypted;
pub(in crate::audit) use manifest::{FILE as MANIFEST, Manifest, ManifestFault};
pub(in crate::audit) use modes::open_to_others;
pub use retention::{Limits, Why};
