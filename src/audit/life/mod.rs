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

pub(crate) use backup::is_unfinished;
pub use backup::{Backup, BackupFault};
pub(crate) use cipher::{Cipher, CipherFault, Key, KeyId};
pub use gap::Missed;
pub(crate) use gap::{Gap, PROBE};
pub(crate) use keeper::sweep;
pub use keeper::{Dropped, PruneFault, Pruned, back_up};
pub use keys::{KeyTrouble, Keys};
pub use manifest::is_encrypted;
pub(crate) use manifest::{FILE as MANIFEST, Manifest, ManifestFault};
pub(crate) use modes::open_to_others;
pub(crate) use portcullis_foundation::atomic_file::write as write_durably;
pub use retention::{Limits, Why};
