//! The life of a store: what makes it this store (`manifest`), and encryption at rest (`cipher`).
//!
//! INVARIANT: no error, `Debug` or log line of this room holds a key or what was encrypted.

mod cipher;
mod keys;
mod manifest;

pub(in crate::audit) use cipher::{Cipher, CipherFault, Key, KeyId};
pub use keys::{KeyTrouble, Keys};
pub(in crate::audit) use manifest::{FORMAT, Manifest, ManifestFault, write_durably};
