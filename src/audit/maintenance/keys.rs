//! The operator's keys, fetched from the secret references in the config.

use super::{Cipher, CipherFault, Key, Manifest};
use crate::config::Encryption;
use portcullis_vault::SecretRef;
use portcullis_vault::{Source, Unresolved};

/// Keys of an audit log: one for new records, and the keys of older records.
#[derive(Debug, Clone)]
pub struct Keys {
    current: Key,
    old: Vec<Key>,
}

/// Reasons why a key does not resolve.
#[derive(Debug, thiserror::Error)]
pub enum KeyTrouble {
    /// The secret could not be fetched.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    /// The secret is not a key, or a key is given twice.
    #[error("{0}")]
    Unusable(String),
}

impl From<CipherFault> for KeyTrouble {
    fn from(fault: CipherFault) -> Self {
        Self::Unusable(fault.to_string())
    }
}

impl Keys {
    /// Fetches the keys of a loaded config.
    ///
    /// # Errors
    /// JSON pointer in the config of the key that does not resolve, and the reason.
    pub fn fetch(encryption: &Encryption) -> Result<Self, (String, KeyTrouble)> {
        let at = "/audit/encryption";
        let key = |pointer: String, reference: &SecretRef| {
            fetch(reference).map_err(|trouble| (pointer, trouble))
        };
        let current = key(format!("{at}/key"), &encryption.key)?;
        let old = encryption.old_keys.iter().enumerate();
        let old = old
            .map(|(i, reference)| key(format!("{at}/old-keys/{i}"), reference))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { current, old })
    }

    /// Cipher of one store.
    pub(crate) fn cipher(&self, manifest: &Manifest) -> Result<Cipher, CipherFault> {
        Cipher::new(&manifest.id, &self.current, &self.old)
    }
}

fn fetch(reference: &SecretRef) -> Result<Key, KeyTrouble> {
    Ok(Key::parse(&Source::try_from(reference)?.resolve()?)?)
}
