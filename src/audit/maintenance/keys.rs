//! The operator's keys, fetched where the config says that they are.

use super::{Cipher, CipherFault, Key, Manifest};
use crate::config::Encryption;
use portcullis_vault::SecretRef;
use portcullis_vault::{Source, Unresolved};

/// The keys of an audit log: one for new records, and those of old ones.
#[derive(Debug, Clone)]
pub struct Keys {
    current: Key,
    old: Vec<Key>,
}

/// Why a key does not resolve.
#[derive(Debug, thiserror::Error)]
pub enum KeyTrouble {
    /// Its secret could not be fetched.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    /// It is no key, or one that is given twice.
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
    /// The key that does not resolve, as a JSON pointer from the top of the config, and why.
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

    /// The cipher of one store.
    pub(crate) fn cipher(&self, manifest: &Manifest) -> Result<Cipher, CipherFault> {
        Cipher::new(&manifest.id, &self.current, &self.old)
    }
}

fn fetch(reference: &SecretRef) -> Result<Key, KeyTrouble> {
    Ok(Key::parse(&Source::try_from(reference)?.resolve()?)?)
}
