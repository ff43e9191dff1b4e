//! Keys of signed notes (C2SP signed-note, Ed25519): for signing and for verification.

use std::{fmt, str::FromStr};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ed25519_dalek::SigningKey;
use signed_note::{
    Note, NoteError, StandardSigner, StandardVerifier, Verifier as _, VerifierList, key_id,
    new_ed25519_verifier_key,
};
use zeroize::Zeroizing;

/// C2SP's algorithm number of Ed25519.
const ED25519: u8 = 1;
/// Prefix of a signing key's text.
pub const PRIVATE: &str = "PRIVATE+KEY+";

/// Signs notes under one name.
pub struct Signer {
    signer: StandardSigner,
    verifier: Verifier,
    text: Zeroizing<String>,
}

/// Error for a name that is empty, or contains white space or a plus sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a legal name of a key")]
pub struct IllegalName(pub String);

/// Error for text that is not a signing key. Does not contain the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a signing key")]
pub struct IllegalSigner;

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signer").field(&self.verifier).finish()
    }
}

impl Signer {
    /// Key of this seed with this name.
    ///
    /// # Errors
    /// [`IllegalName`].
    pub fn of(name: &str, seed: &[u8; 32]) -> Result<Self, IllegalName> {
        let illegal = || IllegalName(name.to_owned());
        let public = SigningKey::from_bytes(seed).verifying_key();
        let verifier: Verifier =
            new_ed25519_verifier_key(name, &public).parse().map_err(|_| illegal())?;
        let id = key_id(name, &[&[ED25519], public.as_bytes().as_slice()].concat());
        let secret = Zeroizing::new([&[ED25519], seed.as_slice()].concat());
        let secret = Zeroizing::new(BASE64_STANDARD.encode(&*secret));
        let text = Zeroizing::new(format!("{PRIVATE}{name}+{id:08x}+{}", *secret));
        let signer = StandardSigner::new(&text).map_err(|_| illegal())?;
        Ok(Self { signer, verifier, text })
    }

    /// Key from its text: `PRIVATE+KEY+NAME+HASH+BASE64`.
    ///
    /// # Errors
    /// [`IllegalSigner`].
    pub fn parse(text: &str) -> Result<Self, IllegalSigner> {
        let rest = text.strip_prefix(PRIVATE).ok_or(IllegalSigner)?;
        let (name, rest) = rest.split_once('+').ok_or(IllegalSigner)?;
        let (_, secret) = rest.split_once('+').ok_or(IllegalSigner)?;
        let secret = BASE64_STANDARD.decode(secret).map(Zeroizing::new);
        let seed = match secret.as_ref().map(|secret| secret.split_first()) {
            Ok(Some((&ED25519, seed))) => <&[u8; 32]>::try_from(seed).ok(),
            _ => None,
        };
        let signer = Self::of(name, seed.ok_or(IllegalSigner)?).map_err(|_| IllegalSigner)?;
        // A different hash would mean a key with another name.
        if *signer.text == text { Ok(signer) } else { Err(IllegalSigner) }
    }

    /// The key as text, which is secret.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Key that verifies its signatures.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Note of this text with the signature.
    ///
    /// # Errors
    /// If the text is not legal in a note.
    pub fn sign(&self, text: &str) -> Result<String, NoteError> {
        self.add_to(Note::new(text.as_bytes(), &[])?)
    }

    /// Note with this signature added.
    ///
    /// # Errors
    /// If it is not a note.
    pub fn sign_too(&self, note: &str) -> Result<String, NoteError> {
        self.add_to(Note::from_bytes(note.as_bytes())?)
    }

    fn add_to(&self, mut note: Note) -> Result<String, NoteError> {
        note.add_sigs(&[&self.signer])?;
        String::from_utf8(note.to_bytes()).map_err(|_| NoteError::MalformedNote)
    }
}

/// Key that verifies signed notes, with the text `NAME+HASH+BASE64` (C2SP signed-note).
#[derive(Clone)]
pub struct Verifier {
    text: String,
    key: StandardVerifier,
}

impl Verifier {
    /// Name of the key, which its signatures carry.
    pub fn name(&self) -> &str {
        self.key.name()
    }

    /// Text of a note that this key has signed. Other signatures are ignored.
    pub fn open(&self, note: &str) -> Result<String, NotSigned> {
        let parsed = Note::from_bytes(note.as_bytes()).map_err(|_| NotSigned::Malformed)?;
        let verifiers = VerifierList::new(vec![Box::new(self.key.clone())]);
        parsed.verify(&verifiers).map_err(|error| match error {
            NoteError::UnverifiedNote => NotSigned::OtherKey,
            _ => NotSigned::Forged,
        })?;
        String::from_utf8(parsed.text().to_owned()).map_err(|_| NotSigned::Malformed)
    }
}

/// The note of a text with the signatures of these keys. The signatures of a note of the very same
/// text stay.
///
/// # Errors
/// Where a note can't hold the text, or there is no key.
pub fn sign(text: &str, keys: &[Signer], before: Option<&str>) -> Result<String, NoteError> {
    let is_of_it = |note: &&str| {
        note.strip_prefix(text).is_some_and(|signatures| signatures.starts_with('\n'))
    };
    let before = before.filter(is_of_it).map(str::to_owned);
    let signed = keys.iter().try_fold(before, |note, key| match note {
        Some(note) if key.verifier().open(&note).is_ok() => Ok(Some(note)),
        Some(note) => key.sign_too(&note).map(Some),
        None => key.sign(text).map(Some),
    });
    signed?.ok_or(NoteError::UnverifiedNote)
}

/// The text of a note, and which of these keys have signed it.
///
/// # Errors
/// Where none has. A wrong signature counts more than the absence of one.
pub fn open<'k>(
    note: &str,
    keys: &'k [Verifier],
) -> Result<(String, Vec<&'k Verifier>), NotSigned> {
    let (mut text, mut by, mut why) = (None, Vec::new(), NotSigned::OtherKey);
    for key in keys {
        match key.open(note) {
            Ok(opened) => {
                text = Some(opened);
                by.push(key);
            }
            Err(NotSigned::OtherKey) => {}
            Err(other) => why = other,
        }
    }
    text.map(|text| (text, by)).ok_or(why)
}

impl PartialEq for Verifier {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Error for text that is not a verifier key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a verifier key, NAME+HASH+BASE64: `portcullis audit key` prints that of an audit \
    log, \
     `portcullis policy bundle key` that of bundles, `portcullis plugin key` that of plugins"
)]
pub struct IllegalVerifier;

impl FromStr for Verifier {
    type Err = IllegalVerifier;

    fn from_str(text: &str) -> Result<Self, IllegalVerifier> {
        let key = StandardVerifier::new(text).map_err(|_| IllegalVerifier)?;
        Ok(Self { text: text.to_owned(), key })
    }
}

/// Reason why a note is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSigned {
    #[error("it is not a signed note")]
    Malformed,
    #[error("it is signed with another key")]
    OtherKey,
    #[error("its signature is invalid")]
    Forged,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(name: &str, seed: u8) -> Signer {
        Signer::of(name, &[seed; 32]).unwrap()
    }

    #[test]
    fn only_notes_signed_by_the_key_are_opened() {
        let signs = signer("a", 1);
        let verifier: Verifier = signs.verifier().to_string().parse().unwrap();
        assert_eq!(verifier.name(), "a");
        let note = signs.sign("one\ntwo\n").unwrap();
        assert_eq!(verifier.open(&note).unwrap(), "one\ntwo\n");
        assert_eq!(verifier.open(&note.replace("two", "too")), Err(NotSigned::Forged));
        assert_eq!(verifier.open("one\ntwo\n"), Err(NotSigned::Malformed));
        // The same key with another name, and another key with the same name.
        for other in [signer("b", 1), signer("a", 2)] {
            assert_eq!(other.verifier().open(&note), Err(NotSigned::OtherKey));
        }
        // Another key may sign it too.
        let both = signer("b", 3).sign_too(&note).unwrap();
        assert_eq!(verifier.open(&both).unwrap(), "one\ntwo\n");
        assert_eq!(signer("b", 3).verifier().open(&both).unwrap(), "one\ntwo\n");
        // Of several keys, those count that have signed, and a wrong signature is not a missing one.
        let keys = [signer("c", 4).verifier().clone(), verifier];
        assert_eq!(open(&both, &keys), Ok(("one\ntwo\n".to_owned(), vec![&keys[1]])));
        assert_eq!(open(&both.replace("two", "too"), &keys), Err(NotSigned::Forged));
        assert_eq!(open(&both, &keys[..1]), Err(NotSigned::OtherKey));
        // The signatures of another text do not stay.
        let (text, both) = ("one\ntwo\n", Some(both.as_str()));
        let signed_twice = sign(text, &[signs], both).unwrap();
        assert_eq!(Some(signed_twice.as_str()), both);
        let other = sign("three\n", &[signer("c", 4)], both).unwrap();
        assert_eq!(open(&other, &keys), Ok(("three\n".to_owned(), vec![&keys[0]])));
    }

    #[test]
    fn signing_key_round_trips() {
        let generated = signer("a", 1);
        assert_eq!(Signer::parse(generated.text()).unwrap().verifier(), generated.verifier());
        let renamed = generated.text().replace("+a+", "+b+");
        let cut = &generated.text()[..generated.text().len() - 4];
        for wrong in ["", "a", &renamed, cut, &generated.verifier().to_string()] {
            assert_eq!(Signer::parse(wrong).err(), Some(IllegalSigner), "{wrong}");
        }
        assert!(!format!("{generated:?}").contains(PRIVATE));
        for name in ["", "a b", "a+b"] {
            assert!(Signer::of(name, &[1; 32]).is_err(), "{name}");
        }
    }
}
