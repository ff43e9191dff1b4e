//! Signature of a plugin: a signed note (C2SP signed-note, Ed25519) beside its file.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::Compiled;
use portcullis_foundation::note_key::{self, NotSigned, Signer, Verifier};

/// First line of the signed text.
const FORMAT: &str = "portcullis-plugin-v1";

/// Signed content of a plugin's signature.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Signed {
    pub name: String,
    pub version: String,
    /// Digest of its file, in hex.
    pub sha256: String,
}

/// Reason why a signature does not cover a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    #[error("{0}")]
    Note(#[from] NotSigned),
    #[error("the signed content is not a plugin")]
    Other,
    #[error("the signature covers another file, {name} {version} with the digest {sha256}")]
    File { name: String, version: String, sha256: String },
}

/// Path of the signature of a plugin's file: `FILE.sig`.
pub fn path(component: &Path) -> PathBuf {
    let mut path = OsString::from(component);
    path.push(".sig");
    path.into()
}

impl Signed {
    /// Content to sign for a component.
    pub fn of(compiled: &Compiled) -> Self {
        let manifest = compiled.manifest();
        Self {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            sha256: compiled.sha256().to_owned(),
        }
    }

    fn text(&self) -> String {
        format!("{FORMAT}\n{}\n{}\nsha256:{}\n", self.name, self.version, self.sha256)
    }

    /// Whether a note has this content, with any signer.
    pub fn is_in(&self, note: &str) -> bool {
        note.strip_prefix(self.text().as_str()).is_some_and(|rest| rest.starts_with('\n'))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let has_format = lines.next() == Some(FORMAT);
        let (name, version) = (lines.next()?.to_owned(), lines.next()?.to_owned());
        let sha256 = lines.next()?.strip_prefix("sha256:")?.to_owned();
        (has_format && lines.next().is_none()).then_some(Self { name, version, sha256 })
    }

    /// Note with the signatures of these keys. Signatures of other keys on the same content stay.
    ///
    /// # Errors
    /// If the text is not legal in a note.
    pub fn sign(&self, keys: &[Signer], before: Option<&str>) -> Result<String, Unsigned> {
        let note = note_key::sign(&self.text(), keys, before);
        note.map_err(|_| Unsigned::Note(NotSigned::Malformed))
    }

    /// Signed content about the file with this digest, and the keys that signed it.
    ///
    /// # Errors
    /// If none of these keys did.
    pub fn verify<'a>(
        note: &str,
        sha256: &str,
        keys: &'a [Verifier],
    ) -> Result<(Self, Vec<&'a Verifier>), Unsigned> {
        let (text, by) = note_key::open(note, keys)?;
        let signed = Self::parse(&text).ok_or(Unsigned::Other)?;
        if signed.sha256 != sha256 {
            let Self { name, version, sha256 } = signed;
            return Err(Unsigned::File { name, version, sha256 });
        }
        Ok((signed, by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> Signed {
        Signed { name: "probe".into(), version: "1.0.0".into(), sha256: "ab".repeat(32) }
    }

    fn keys(seeds: &[u8]) -> Vec<Signer> {
        seeds.iter().map(|seed| Signer::of(&format!("k{seed}"), &[*seed; 32]).unwrap()).collect()
    }

    #[test]
    fn signature_covers_one_file() {
        let (signed, keys) = (signed(), keys(&[1, 2, 3]));
        let verifiers: Vec<_> = keys.iter().map(|key| key.verifier().clone()).collect();
        let note = signed.sign(&keys[..1], None).unwrap();
        let (statement, by) = Signed::verify(&note, &signed.sha256, &verifiers).unwrap();
        assert_eq!((statement, by), (signed.clone(), vec![&verifiers[0]]));
        let other = Signed::verify(&note, &"cd".repeat(32), &verifiers).unwrap_err();
        assert!(matches!(other, Unsigned::File { .. }), "{other}");
        let stranger = Signed::verify(&note, &signed.sha256, &verifiers[1..]).unwrap_err();
        assert_eq!(stranger, Unsigned::Note(NotSigned::OtherKey));
        let forged = note.replace("1.0.0", "2.0.0");
        let forged = Signed::verify(&forged, &signed.sha256, &verifiers).unwrap_err();
        assert!(matches!(forged, Unsigned::Note(_)), "{forged}");
        // A bundle's manifest or a checkpoint is not a plugin, with any signer.
        let stray = keys[0].sign("some other text\n").unwrap();
        assert_eq!(Signed::verify(&stray, &signed.sha256, &verifiers), Err(Unsigned::Other));
        assert!(Signed::verify(&note, &signed.sha256, &[]).is_err());
    }

    #[test]
    fn signatures_of_the_same_content_are_combined() {
        let (signed, keys) = (signed(), keys(&[1, 2]));
        let verifiers: Vec<_> = keys.iter().map(|key| key.verifier().clone()).collect();
        let first = signed.sign(&keys[..1], None).unwrap();
        assert_eq!(signed.sign(&keys[..1], Some(&first)).unwrap(), first);
        let both = signed.sign(&keys[1..], Some(&first)).unwrap();
        assert_eq!(Signed::verify(&both, &signed.sha256, &verifiers).unwrap().1.len(), 2);
        assert!(signed.is_in(&both));
        let newer = Signed { sha256: "cd".repeat(32), ..signed };
        assert!(!newer.is_in(&both));
        let note = newer.sign(&keys[1..], Some(&both)).unwrap();
        assert_eq!(Signed::verify(&note, &newer.sha256, &verifiers).unwrap().1, [&verifiers[1]]);
    }
}
