//! Sealed texts that clients store for the proxy (`requestState`, cursors), so that a restart loses
//! none. Only the proxy can read, create or change them.
//!
//! INVARIANT: a text that opens was sealed by this proxy, for the same purpose, bound to the same
//! bytes, and has not expired. Every other text is refused. No error, `Debug` or log line contains
//! the key or the sealed content.

mod key;

use std::{fmt, path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use jiff::Timestamp;
use zeroize::Zeroizing;

pub use key::KeyFault;
use portcullis_foundation::key_file::Key;

/// Limit of the sealed content in bytes. A sealed text is part of a message, and must leave room
/// for the rest.
pub const LARGEST: usize = 256 << 10;

/// Bytes of the nonce. It is random: 24 bytes never repeat.
const NONCE_BYTES: usize = 24;
/// Bytes of the expiry, which precedes the content.
const EXPIRY_BYTES: usize = 8;
/// Bytes of the authentication tag.
const TAG_BYTES: usize = 16;

/// Separates these texts from anything else made with the same key.
const DOMAIN: &[u8] = b"portcullis seal 1";

/// Seals and opens texts with the key of one state folder.
pub struct Seal {
    cipher: XChaCha20Poly1305,
}

/// Failure to seal.
#[derive(Debug, thiserror::Error)]
pub enum Unsealed {
    #[error("more than {LARGEST} bytes cannot be sealed")]
    TooLarge,
    #[error("the operating system provides no random bytes: {0}")]
    Random(getrandom::Error),
    #[error("the cipher failed")]
    Cipher,
}

/// Reason why a text does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It does not have the form of a sealed text.
    #[error("it does not have the form of a sealed text")]
    Malformed,
    /// It was sealed elsewhere, for another purpose or bytes, or changed.
    #[error("it was not sealed by this proxy for this purpose")]
    Forged,
    /// It is valid but has expired.
    #[error("it has expired")]
    Expired,
}

impl Seal {
    /// Seal of a state folder. Creates the folder and its key, `seal.key`, once.
    ///
    /// # Errors
    /// If the key cannot be read or created, or users other than its owner could have read it.
    pub fn load(state_dir: &Path) -> Result<Self, KeyFault> {
        Ok(Self::of(&key::load(state_dir)?))
    }

    fn of(key: &Key) -> Self {
        // The cipher overwrites its copy of the key on drop.
        Self { cipher: XChaCha20Poly1305::new((&**key).into()) }
    }

    /// Seals `plain` for a purpose, bound to bytes that are needed to open it, for `ttl` (rounded
    /// up to seconds). The text is base64url.
    ///
    /// # Errors
    /// [`Unsealed`].
    pub fn seal(
        &self,
        purpose: &str,
        bound: &[u8],
        plain: &[u8],
        ttl: Duration,
    ) -> Result<String, Unsealed> {
        let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
        self.seal_until(purpose, bound, plain, now().saturating_add(seconds))
    }

    fn seal_until(
        &self,
        purpose: &str,
        bound: &[u8],
        plain: &[u8],
        expiry: u64,
    ) -> Result<String, Unsealed> {
        if plain.len() > LARGEST {
            return Err(Unsealed::TooLarge);
        }
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(Unsealed::Random)?;
        let mut inside = Zeroizing::new(Vec::with_capacity(EXPIRY_BYTES + plain.len()));
        inside.extend_from_slice(&expiry.to_be_bytes());
        inside.extend_from_slice(plain);
        let aad = associated(purpose, bound);
        let sealed = self
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: &inside, aad: &aad })
            .map_err(|_| Unsealed::Cipher)?;
        let mut output = Vec::with_capacity(NONCE_BYTES + sealed.len());
        output.extend_from_slice(&nonce);
        output.extend_from_slice(&sealed);
        Ok(URL_SAFE_NO_PAD.encode(output))
    }

    /// Content of a sealed text, if purpose and bound bytes match.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn open(&self, purpose: &str, bound: &[u8], text: &str) -> Result<Vec<u8>, Broken> {
        self.open_at(purpose, bound, text, now())
    }

    fn open_at(
        &self,
        purpose: &str,
        bound: &[u8],
        text: &str,
        now: u64,
    ) -> Result<Vec<u8>, Broken> {
        // Checked before decoding: four characters are three bytes.
        if text.len() > (NONCE_BYTES + EXPIRY_BYTES + LARGEST + TAG_BYTES).div_ceil(3) * 4 {
            return Err(Broken::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Broken::Malformed)?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or(Broken::Malformed)?;
        if sealed.len() < EXPIRY_BYTES + TAG_BYTES {
            return Err(Broken::Malformed);
        }
        let aad = associated(purpose, bound);
        let mut inside = self
            .cipher
            .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &aad })
            .map_err(|_| Broken::Forged)?;
        let (expiry, _) = inside.split_first_chunk::<EXPIRY_BYTES>().ok_or(Broken::Malformed)?;
        // Only after authentication, so that a forged text does not reveal whether it would have
        // expired.
        if now >= u64::from_be_bytes(*expiry) {
            return Err(Broken::Expired);
        }
        inside.drain(..EXPIRY_BYTES);
        Ok(inside)
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(…)")
    }
}

/// Purpose and bound bytes in one text. The purpose's length precedes it, so that no two pairs give
/// the same bytes.
fn associated(purpose: &str, bound: &[u8]) -> Vec<u8> {
    let mut all = Vec::with_capacity(DOMAIN.len() + 8 + purpose.len() + bound.len());
    all.extend_from_slice(DOMAIN);
    all.extend_from_slice(&(purpose.len() as u64).to_be_bytes());
    all.extend_from_slice(purpose.as_bytes());
    all.extend_from_slice(bound);
    all
}

/// Seconds since 1970.
fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn seal(key: u8) -> Seal {
        Seal::of(&Zeroizing::new([key; 32]))
    }

    #[test]
    fn sealed_text_opens() {
        let seal = seal(1);
        for plain in [&b""[..], b"x", &[0; 1000], &vec![7; LARGEST]] {
            let text = seal.seal("state", b"alice", plain, HOUR).unwrap();
            assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            assert_eq!(seal.open("state", b"alice", &text).unwrap(), plain);
        }
        let one = seal.seal("state", b"", b"same", HOUR).unwrap();
        assert_ne!(one, seal.seal("state", b"", b"same", HOUR).unwrap());
        assert!(matches!(
            seal.seal("state", b"", &vec![0; LARGEST + 1], HOUR),
            Err(Unsealed::TooLarge)
        ));
    }

    #[test]
    fn other_texts_do_not_open() {
        let seal = seal(1);
        let text = seal.seal("state", b"alice", b"plain", HOUR).unwrap();
        for (purpose, bound) in
            [("task", &b"alice"[..]), ("state", b"bob"), ("stat", b"ealice"), ("statealice", b"")]
        {
            assert_eq!(seal.open(purpose, bound, &text), Err(Broken::Forged), "{purpose}");
        }
        assert_eq!(
            Seal::of(&Zeroizing::new([2; 32])).open("state", b"alice", &text),
            Err(Broken::Forged)
        );
        let padded = format!("{text}=");
        let longer = format!("{text}AAAA");
        let huge = "A".repeat(3 * LARGEST);
        for (text, broken) in [
            ("", Broken::Malformed),
            ("A", Broken::Malformed),
            ("not base64!", Broken::Malformed),
            (&text[..40], Broken::Malformed),
            // Truncated so that the rest is still base64.
            (&text[..text.len() / 4 * 4], Broken::Forged),
            (&padded, Broken::Malformed),
            (&longer, Broken::Forged),
            (&huge, Broken::Malformed),
        ] {
            assert_eq!(seal.open("state", b"alice", text), Err(broken));
        }
    }

    #[test]
    fn expired_text_does_not_open() {
        let seal = seal(1);
        let text = seal.seal_until("p", b"", b"x", 1000).unwrap();
        for (now, opened) in [
            (0, Ok(b"x".to_vec())),
            (999, Ok(b"x".to_vec())),
            (1000, Err(Broken::Expired)),
            (u64::MAX, Err(Broken::Expired)),
        ] {
            assert_eq!(seal.open_at("p", b"", &text, now), opened, "{now}");
        }
        // A forged text is reported as such at any age.
        assert_eq!(seal.open_at("q", b"", &text, 1000), Err(Broken::Forged));
        let text = seal.seal("p", b"", b"x", Duration::ZERO).unwrap();
        assert_eq!(seal.open("p", b"", &text), Err(Broken::Expired));
        let text = seal.seal("p", b"", b"x", Duration::MAX).unwrap();
        assert!(seal.open("p", b"", &text).is_ok());
        assert_eq!(format!("{seal:?}"), "Seal(…)");
    }

    proptest! {
        #[test]
        fn flipped_bit_is_refused(
            plain in proptest::collection::vec(any::<u8>(), 0..60),
            at in any::<proptest::sample::Index>(),
            bit in 0..8u8,
        ) {
            let seal = seal(1);
            let text = seal.seal("p", b"b", &plain, HOUR).unwrap();
            let mut whole = URL_SAFE_NO_PAD.decode(&text).unwrap();
            let at = at.index(whole.len());
            whole[at] ^= 1 << bit;
            let flipped = URL_SAFE_NO_PAD.encode(whole);
            prop_assert_eq!(seal.open("p", b"b", &flipped), Err(Broken::Forged));
        }

        // Sealed content has exactly one text: no two texts decode to the same bytes.
        #[test]
        fn changed_character_is_refused(
            plain in proptest::collection::vec(any::<u8>(), 0..6),
            at in any::<proptest::sample::Index>(),
            other in any::<char>(),
        ) {
            let seal = seal(1);
            let text = seal.seal("p", b"b", &plain, HOUR).unwrap();
            let mut chars: Vec<char> = text.chars().collect();
            let at = at.index(chars.len());
            prop_assume!(chars[at] != other);
            chars[at] = other;
            let changed: String = chars.into_iter().collect();
            prop_assert!(seal.open("p", b"b", &changed).is_err());
        }

        #[test]
        fn pairs_of_purpose_and_bytes_are_distinct(
            a in ("[ab\0]{0,3}", proptest::collection::vec(0..3u8, 0..10)),
            b in ("[ab\0]{0,3}", proptest::collection::vec(0..3u8, 0..10)),
        ) {
            prop_assert_eq!(a == b, associated(&a.0, &a.1) == associated(&b.0, &b.1));
        }
    }
}
