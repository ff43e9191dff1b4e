//! Keys of signed notes (C2SP signed-note, Ed25519): what signs a text, and what it is checked with.

use std::{fmt, str::FromStr};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use ed25519_dalek::SigningKey;
use signed_note::{
    Note, NoteError, StandardSigner, StandardVerifier, Verifier as _, VerifierList, key_id,
    new_ed25519_verifier_key,
};
use zeroize::Zeroizing;

/// C2SP's number for Ed25519.
const ED25519: u8 = 1;
/// What the text of a signing key begins with.
pub const PRIVATE: &str = "PRIVATE+KEY+";

/// Signs notes in one name.
pub struct Signer {
    signer: StandardSigner,
    verifier: Verifier,
    text: Zeroizing<String>,
}

/// A name that no key can have: it is empty, or has white space or a plus sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` can't name a key")]
pub struct IllegalName(pub String);

/// Text that is no signing key. What it was is not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no signing key")]
pub struct IllegalSigner;

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signer").field(&self.verifier).finish()
    }
}

impl Signer {
    /// The key of this seed, under this name.
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

    /// The key that this text is: `PRIVATE+KEY+NAME+HASH+BASE64`.
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
        // With another hash it would be a key of another name.
        if *signer.text == text { Ok(signer) } else { Err(IllegalSigner) }
    }

    /// The key as text, which is secret.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What its signatures are checked with.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// The note of this text with the signature.
    ///
    /// # Errors
    /// Where a note can't hold the text.
    pub fn sign(&self, text: &str) -> Result<String, NoteError> {
        self.add_to(Note::new(text.as_bytes(), &[])?)
    }

    /// The note with this signature more.
    ///
    /// # Errors
    /// Where it is no note.
    pub fn sign_too(&self, note: &str) -> Result<String, NoteError> {
        self.add_to(Note::from_bytes(note.as_bytes())?)
    }

    fn add_to(&self, mut note: Note) -> Result<String, NoteError> {
        note.add_sigs(&[&self.signer])?;
        String::from_utf8(note.to_bytes()).map_err(|_| NoteError::MalformedNote)
    }
}

/// A key that signed notes are checked with, as text `NAME+HASH+BASE64` (C2SP signed-note).
#[derive(Clone)]
pub struct Verifier {
    text: String,
    key: StandardVerifier,
}

impl Verifier {
    /// The name of the key: what it signs is in this name.
    pub fn name(&self) -> &str {
        self.key.name()
    }

    /// The text of a note, if this key has signed it. Signatures of others do not matter.
    pub fn open(&self, note: &str) -> Result<String, NotSigned> {
        let parsed = Note::from_bytes(note.as_bytes()).map_err(|_| NotSigned::Malformed)?;
        let known = VerifierList::new(vec![Box::new(self.key.clone())]);
        parsed.verify(&known).map_err(|error| match error {
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

/// Text that is no verifier key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no verifier key, NAME+HASH+BASE64: `portcullis audit key` prints that of an audit log, \
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

/// Why a note is not taken for what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSigned {
    #[error("it is no signed note")]
    Malformed,
    #[error("another key has signed it")]
    OtherKey,
    #[error("its signature is wrong")]
    Forged,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(name: &str, seed: u8) -> Signer {
        Signer::of(name, &[seed; 32]).unwrap()
    }

    #[test]
    fn only_what_the_key_signed_is_opened() {
        let signs = signer("a", 1);
        let verifier: Verifier = signs.verifier().to_string().parse().unwrap();
        assert_eq!(verifier.name(), "a");
        let note = signs.sign("one\ntwo\n").unwrap();
        assert_eq!(verifier.open(&note).unwrap(), "one\ntwo\n");
        assert_eq!(verifier.open(&note.replace("two", "too")), Err(NotSigned::Forged));
        assert_eq!(verifier.open("one\ntwo\n"), Err(NotSigned::Malformed));
        // The same key under another name, and another key under the same name.
        for other in [signer("b", 1), signer("a", 2)] {
            assert_eq!(other.verifier().open(&note), Err(NotSigned::OtherKey));
        }
        // Another may sign it too.
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
        let again = sign(text, &[signs], both).unwrap();
        assert_eq!(Some(again.as_str()), both);
        let other = sign("three\n", &[signer("c", 4)], both).unwrap();
        assert_eq!(open(&other, &keys), Ok(("three\n".to_owned(), vec![&keys[0]])));
    }

    #[test]
    fn a_signing_key_is_read_as_it_was_written() {
        let made = signer("a", 1);
        assert_eq!(Signer::parse(made.text()).unwrap().verifier(), made.verifier());
        let renamed = made.text().replace("+a+", "+b+");
        let cut = &made.text()[..made.text().len() - 4];
        for wrong in ["", "a", &renamed, cut, &made.verifier().to_string()] {
            assert_eq!(Signer::parse(wrong).err(), Some(IllegalSigner), "{wrong}");
        }
        assert!(!format!("{made:?}").contains(PRIVATE));
        for name in ["", "a b", "a+b"] {
            assert!(Signer::of(name, &[1; 32]).is_err(), "{name}");
        }
    }
}
