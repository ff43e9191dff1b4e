//! Encryption at rest: XChaCha20-Poly1305 with keys that are derived from the operator's key for
//! one store only.
//!
//! Sealed bytes are `key id (8) | nonce (24, random) | ciphertext | tag (16)`. The id is that of
//! the derived key: it identifies one of several keys and does not link two stores.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use portcullis_vault::Secret;

const KEY: usize = 32;
const ID: usize = 8;
const NONCE: usize = 24;
const TAG: usize = 16;

/// Bytes that sealing adds.
const OVERHEAD: usize = ID + NONCE + TAG;

/// Key of the operator: 32 random bytes. Zeroized on drop.
#[derive(Clone)]
pub(crate) struct Key(Zeroizing<[u8; KEY]>);

/// Id of a key, which reveals nothing about the key: 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct KeyId([u8; ID]);

/// Reasons why sealing or opening fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CipherFault {
    /// The operator's text is not a key.
    #[error(
        "a key of the audit log is 32 random bytes, as 64 hex digits or in base64: make one with \
         `openssl rand -hex 32`"
    )]
    NoKey,
    /// The same key is given twice.
    #[error("the key {0} of the audit log is given twice: give each key once")]
    Twice(KeyId),
    /// The data needs a key that is not given.
    #[error(
        "the audit log needs the key {0}: give it as `audit.encryption.key`, or, where a newer one \
         is in use, among `audit.encryption.old-keys`"
    )]
    Needs(KeyId),
    /// The bytes were changed or moved.
    #[error("encrypted bytes of the audit log were changed, moved or damaged")]
    Forged,
    /// Too short for sealed bytes.
    #[error("encrypted bytes of the audit log are cut short")]
    Short,
    #[error("the operating system gives no random bytes")]
    Random,
    #[error("the cipher failed")]
    Cipher,
}

impl Key {
    /// Parses a key. Passphrases are rejected: anyone with the files could guess them.
    pub(crate) fn parse(secret: &Secret) -> Result<Self, CipherFault> {
        let text = secret.expose().trim();
        let mut key = Zeroizing::new([0; KEY]);
        if hex::decode_to_slice(text, &mut *key).is_ok() {
            return Ok(Self(key));
        }
        // Room for more than a key, to detect texts that are too long.
        let mut room = Zeroizing::new([0; KEY + 16]);
        match STANDARD.decode_slice(text, &mut *room) {
            Ok(KEY) => {
                key.copy_from_slice(&room[..KEY]);
                Ok(Self(key))
            }
            _ => Err(CipherFault::NoKey),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl TryFrom<String> for KeyId {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut id = [0; ID];
        hex::decode_to_slice(text, &mut id).map(|()| Self(id))
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.to_string()
    }
}

/// Seals with one key and opens with several.
#[derive(Clone)]
pub(crate) struct Cipher {
    current: (KeyId, XChaCha20Poly1305),
    old: Vec<(KeyId, XChaCha20Poly1305)>,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher").field("current", &self.current.0).finish_non_exhaustive()
    }
}

impl Cipher {
    /// Cipher of the store with this id: `key` seals, `old` keys open older data.
    pub(crate) fn new(store: &str, key: &Key, old: &[Key]) -> Result<Self, CipherFault> {
        let current = derive(store, key)?;
        let old = old.iter().map(|key| derive(store, key)).collect::<Result<Vec<_>, _>>()?;
        let mut seen = vec![current.0];
        for (id, _) in &old {
            if seen.contains(id) {
                return Err(CipherFault::Twice(*id));
            }
            seen.push(*id);
        }
        Ok(Self { current, old })
    }

    /// Id of the key that seals.
    pub(crate) fn id(&self) -> KeyId {
        self.current.0
    }

    /// Whether the cipher has this key.
    pub(crate) fn has(&self, id: KeyId) -> bool {
        self.find(id).is_some()
    }

    /// Seals `plain`. Opening needs the same `aad`, which names the type and position of the bytes,
    /// so that sealed bytes cannot be exchanged.
    pub(crate) fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, CipherFault> {
        let (id, cipher) = &self.current;
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(|_| CipherFault::Random)?;
        let sealed = cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad })
            .map_err(|_| CipherFault::Cipher)?;
        let mut output = Vec::with_capacity(plain.len() + OVERHEAD);
        output.extend_from_slice(&id.0);
        output.extend_from_slice(&nonce);
        output.extend_from_slice(&sealed);
        Ok(output)
    }

    /// Opens bytes that were sealed with this `aad`.
    pub(crate) fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, CipherFault> {
        let id = Self::needs(sealed).ok_or(CipherFault::Short)?;
        let (nonce, text) = sealed[ID..].split_first_chunk::<NONCE>().ok_or(CipherFault::Short)?;
        self.find(id)
            .ok_or(CipherFault::Needs(id))?
            .decrypt(&XNonce::from(*nonce), Payload { msg: text, aad })
            .map_err(|_| CipherFault::Forged)
    }

    /// Id of the key that sealed these bytes; `None` if they are too short.
    pub(crate) fn needs(sealed: &[u8]) -> Option<KeyId> {
        sealed.first_chunk().filter(|_| sealed.len() >= OVERHEAD).map(|id| KeyId(*id))
    }

    fn find(&self, id: KeyId) -> Option<&XChaCha20Poly1305> {
        std::iter::once(&self.current)
            .chain(&self.old)
            .find(|(other, _)| *other == id)
            .map(|(_, cipher)| cipher)
    }
}

/// Derives the key of one store, and its id. The operator's own key seals nothing.
fn derive(store: &str, key: &Key) -> Result<(KeyId, XChaCha20Poly1305), CipherFault> {
    let derivation = Hkdf::<Sha256>::new(Some(store.as_bytes()), &*key.0);
    let (mut id, mut own) = ([0; ID], Zeroizing::new([0; KEY]));
    derivation.expand(b"portcullis audit 1 key id", &mut id).map_err(|_| CipherFault::Cipher)?;
    derivation.expand(b"portcullis audit 1 seal", &mut *own).map_err(|_| CipherFault::Cipher)?;
    // The cipher zeroizes its copy of the key on drop.
    Ok((KeyId(id), XChaCha20Poly1305::new((&*own).into())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> Key {
        Key(Zeroizing::new([byte; KEY]))
    }

    fn cipher(store: &str, current: u8, old: &[u8]) -> Cipher {
        let old: Vec<Key> = old.iter().map(|byte| key(*byte)).collect();
        Cipher::new(store, &key(current), &old).unwrap()
    }

    #[test]
    fn ciphertext_opens_and_contains_no_plaintext() {
        let cipher = cipher("a", 1, &[]);
        for plain in [&b""[..], b"x", b"who did what through which tool", &[0; 5000]] {
            let sealed = cipher.seal(b"here", plain).unwrap();
            assert_eq!(cipher.open(b"here", &sealed).unwrap(), plain);
            assert_ne!(sealed, cipher.seal(b"here", plain).unwrap());
            assert!(plain.len() < 2 || sealed.windows(plain.len()).all(|part| part != plain));
        }
    }

    #[test]
    fn other_positions_keys_and_stores_do_not_open() {
        let sealed = cipher("a", 1, &[]).seal(b"here", b"plain").unwrap();
        let id = cipher("a", 1, &[]).id();
        assert_eq!(cipher("a", 1, &[]).open(b"there", &sealed), Err(CipherFault::Forged));
        // Another key, and the same key in another store: each error names the required key.
        assert_eq!(cipher("a", 2, &[]).open(b"here", &sealed), Err(CipherFault::Needs(id)));
        assert_eq!(cipher("b", 1, &[]).open(b"here", &sealed), Err(CipherFault::Needs(id)));
        assert_eq!(cipher("a", 1, &[]).open(b"here", &sealed[..30]), Err(CipherFault::Short));
        let words = CipherFault::Needs(id).to_string();
        assert!(words.contains(&id.to_string()) && words.contains("audit.encryption.key"));
    }

    #[test]
    fn rotated_cipher_opens_data_of_the_old_key() {
        let before = cipher("a", 1, &[]);
        let sealed = before.seal(b"", b"plain").unwrap();
        let after = cipher("a", 2, &[1]);
        assert_eq!(after.open(b"", &sealed).unwrap(), b"plain");
        assert!(after.has(before.id()) && after.id() != before.id());
        let newer = after.seal(b"", b"more").unwrap();
        assert_eq!(before.open(b"", &newer), Err(CipherFault::Needs(after.id())));
        let twice = Cipher::new("a", &key(1), &[key(2), key(1)]).unwrap_err();
        assert_eq!(twice, CipherFault::Twice(before.id()));
    }

    #[test]
    fn only_keys_of_32_bytes_are_parsed() {
        let parse = |text: &str| Key::parse(&Secret::new(text.to_owned()));
        let hex = "0a".repeat(32);
        for text in [hex.clone(), hex.to_uppercase(), format!("{hex}\n"), STANDARD.encode([10; 32])]
        {
            assert_eq!(*parse(&text).unwrap().0, [10; 32], "{text}");
        }
        let passphrase = ["correct horse", " battery staple"].concat();
        for text in ["", &hex[..62], &format!("{hex}0a"), &passphrase, &STANDARD.encode([1; 33])] {
            let error = parse(text).unwrap_err();
            assert!(text.is_empty() || !format!("{error} {error:?}").contains(text), "{error}");
        }
        assert_eq!(format!("{:?} {:?}", key(1), cipher("a", 1, &[])).matches('…').count(), 1);
    }

    #[test]
    fn key_ids_are_serialized_as_hex() {
        let id = cipher("a", 1, &[]).id();
        let text = serde_json::to_string(&id).unwrap();
        assert_eq!(text.len(), 18);
        assert_eq!(serde_json::from_str::<KeyId>(&text).unwrap(), id);
        assert!(serde_json::from_str::<KeyId>("\"00\"").is_err());
    }

    proptest! {
        #[test]
        fn flipped_bit_is_refused(
            plain in proptest::collection::vec(any::<u8>(), 0..60),
            at in any::<proptest::sample::Index>(),
            bit in 0..8u8,
        ) {
            let cipher = cipher("a", 1, &[]);
            let mut sealed = cipher.seal(b"here", &plain).unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(cipher.open(b"here", &sealed).is_err());
            sealed[at] ^= 1 << bit;
            prop_assert_eq!(cipher.open(b"here", &sealed).unwrap(), plain);
        }
    }
}
