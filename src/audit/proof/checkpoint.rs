//! Checkpoints: signed states of the log (C2SP tlog-checkpoint in a signed note).
//!
//! ```text
//! portcullis/STORE
//! SIZE
//! ROOT, in base64
//! number 17
//! before HASH OF CHECKPOINT 16
//! last HASH OF THE LAST RECORD
//! time 2026-11-21T16:00:00.000000Z
//! next 10000 60
//! digest-key FINGERPRINT
//! store HASH OF store.json
//! verifiers HASH OF audit-verifier
//!
//! — portcullis/STORE SIGNATURE
//! ```
//!
//! `number`, `before` and `next` make missing checkpoints detectable: checkpoints are numbered,
//! each has the hash of its predecessor, and each names the number of records, or seconds with a
//! record, after which another one follows.

use std::{fmt::Write as _, time::Duration};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use signed_note::NoteError;

use super::{
    Companions, Hash,
    key::{NotSigned, Signer, Verifier},
};

/// Condition for the next checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Maximum number of records after the checkpoint.
    pub records: u64,
    /// Maximum time after a record that no checkpoint covers.
    pub time: Duration,
}

/// Content of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Origin: names the store.
    pub origin: String,
    /// Number of records in the tree.
    pub size: u64,
    /// Root of the tree.
    pub root: Hash,
    /// Number of the checkpoint, counted from 0 over the life of the store.
    pub number: u64,
    /// Hash of the preceding checkpoint's text; zeros for the first.
    pub before: Hash,
    /// Hash of the last record; zeros if there is none.
    pub last: Hash,
    /// Time of signing.
    pub time: Timestamp,
    /// Condition for the next checkpoint.
    pub next: Pace,
    /// Fingerprints of the files beside the records.
    pub companions: Companions,
}

/// A checkpoint with its signed note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signed {
    pub checkpoint: Checkpoint,
    /// Whole note, as signed.
    pub note: String,
    /// Hash of the note's text, which the next checkpoint contains.
    pub hash: Hash,
}

/// Reasons why a note is not a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoCheckpoint {
    #[error("it is not a checkpoint of an audit log")]
    Malformed,
    #[error("another key has signed it")]
    OtherKey,
    #[error("its signature is wrong: it was changed, or made by somebody else")]
    Forged,
    #[error("it is of another store")]
    OtherStore,
}

impl Checkpoint {
    fn text(&self) -> Option<String> {
        let Self { origin, size, root, number, before, last, time, next, companions } = self;
        let mut more = String::new();
        let (records, seconds) = (next.records, next.time.as_secs());
        let Companions { digest_key, manifest, verifiers } = companions;
        write!(
            more,
            "number {number}\nbefore {before}\nlast {last}\ntime {time:.6}\nnext {records} \
             {seconds}\ndigest-key {digest_key}\nstore {manifest}\nverifiers {verifiers}\n"
        )
        .ok()?;
        let root = tlog_tiles::Hash(root.0);
        let text = tlog_tiles::Checkpoint::new(origin, *size, root, &more).ok()?.to_bytes();
        String::from_utf8(text).ok()
    }

    fn parse(text: &str) -> Option<Self> {
        let head = tlog_tiles::Checkpoint::from_bytes(text.as_bytes()).ok()?;
        let mut lines = head.extension().lines();
        let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
        let number = value("number")?.parse().ok()?;
        let before = value("before")?.parse().ok()?;
        let last = value("last")?.parse().ok()?;
        let time = value("time")?.parse().ok()?;
        let (records, seconds) = value("next")?.split_once(' ')?;
        let time_until = Duration::from_secs(seconds.parse().ok()?);
        let companions = Companions {
            digest_key: value("digest-key")?.parse().ok()?,
            manifest: value("store")?.parse().ok()?,
            verifiers: value("verifiers")?.parse().ok()?,
        };
        let checkpoint = Self {
            origin: head.origin().to_owned(),
            size: head.size(),
            root: Hash(head.hash().0),
            number,
            before,
            last,
            time,
            next: Pace { records: records.parse().ok()?, time: time_until },
            companions,
        };
        // Only the canonical form is accepted.
        (checkpoint.text().as_deref() == Some(text)).then_some(checkpoint)
    }

    /// Signs the checkpoint.
    ///
    /// # Errors
    /// If its origin is invalid.
    pub fn sign(self, signer: &Signer) -> Result<Signed, NoteError> {
        let text = self.text().ok_or(NoteError::MalformedNote)?;
        Ok(Signed { checkpoint: self, note: signer.sign(&text)?, hash: hash(&text) })
    }
}

impl Signed {
    /// Parses a note that this key signed.
    ///
    /// # Errors
    /// [`NoCheckpoint`] with the reason.
    pub fn open(note: &str, verifier: &Verifier) -> Result<Self, NoCheckpoint> {
        let text = verifier.open(note).map_err(|fault| match fault {
            NotSigned::Malformed => NoCheckpoint::Malformed,
            NotSigned::Forged => NoCheckpoint::Forged,
            NotSigned::OtherKey => match text_of(note).and_then(Checkpoint::parse) {
                Some(other) if other.origin != verifier.name() => NoCheckpoint::OtherStore,
                Some(_) => NoCheckpoint::OtherKey,
                None => NoCheckpoint::Malformed,
            },
        })?;
        let checkpoint = Checkpoint::parse(&text).ok_or(NoCheckpoint::Malformed)?;
        if checkpoint.origin != verifier.name() {
            return Err(NoCheckpoint::OtherStore);
        }
        Ok(Self { checkpoint, note: note.to_owned(), hash: hash(&text) })
    }

    /// Parses a note without checking its signature.
    pub fn unchecked(note: &str) -> Option<Self> {
        let text = text_of(note)?;
        let checkpoint = Checkpoint::parse(text)?;
        Some(Self { checkpoint, note: note.to_owned(), hash: hash(text) })
    }
}

/// Signed part of a note.
fn text_of(note: &str) -> Option<&str> {
    note.find("\n\n").and_then(|end| note.get(..=end))
}

fn hash(text: &str) -> Hash {
    Hash(Sha256::digest(text).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            origin: "portcullis/ab".into(),
            size: 12,
            root: Hash([0xab; 32]),
            number: 3,
            before: Hash([1; 32]),
            last: Hash([2; 32]),
            time: Timestamp::UNIX_EPOCH,
            next: Pace { records: 10_000, time: Duration::from_secs(60) },
            companions: Companions {
                digest_key: Hash([3; 32]),
                manifest: Hash([4; 32]),
                verifiers: Hash([5; 32]),
            },
        }
    }

    #[test]
    fn checkpoint_has_the_documented_form() {
        let signed = checkpoint().sign(&Signer::for_tests("ab", 1)).unwrap();
        let hex = |byte: &str| byte.repeat(32);
        let (one, two) = (hex("01"), hex("02"));
        let (three, four, five) = (hex("03"), hex("04"), hex("05"));
        let text = format!(
            "portcullis/ab\n12\nq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=\nnumber 3\nbefore \
             {one}\nlast {two}\ntime 1970-01-01T00:00:00.000000Z\nnext 10000 60\n\
             digest-key {three}\nstore {four}\nverifiers {five}\n"
        );
        assert_eq!(text_of(&signed.note), Some(text.as_str()));
        assert!(signed.note.starts_with(&format!("{text}\n\u{2014} portcullis/ab ")));
        assert_eq!(signed.hash, hash(&text));
    }

    #[test]
    fn only_checkpoints_of_this_store_and_key_are_opened() {
        let signer = Signer::for_tests("ab", 1);
        let signed = checkpoint().sign(&signer).unwrap();
        let open = |note: &str| Signed::open(note, signer.verifier());
        assert_eq!(open(&signed.note), Ok(signed.clone()));
        let forged = checkpoint().sign(&Signer::for_tests("ab", 2)).unwrap();
        assert_eq!(open(&forged.note), Err(NoCheckpoint::OtherKey));
        let other = Checkpoint { origin: "portcullis/cd".into(), ..checkpoint() };
        let other = other.sign(&Signer::for_tests("cd", 1)).unwrap();
        assert_eq!(open(&other.note), Err(NoCheckpoint::OtherStore));
        for (from, to) in [("number 3", "number 4"), ("\n12\n", "\n13\n"), ("06Z", "05Z")] {
            let changed = signed.note.replacen(from, to, 1);
            if changed != signed.note {
                assert_eq!(open(&changed), Err(NoCheckpoint::Forged), "{to}");
            }
        }
        // Signed notes that are not checkpoints.
        for text in ["portcullis/ab\n12\n", "hello\n", "portcullis/ab/dropped\n1\n2\n"] {
            let note = signer.sign(text).unwrap();
            assert_eq!(open(&note), Err(NoCheckpoint::Malformed), "{text}");
        }
        let spelled = text_of(&signed.note).unwrap().replace("number 3", "number 03");
        assert_eq!(open(&signer.sign(&spelled).unwrap()), Err(NoCheckpoint::Malformed));
    }

    #[test]
    fn every_flipped_bit_of_a_note_is_detected() {
        let signer = Signer::for_tests("ab", 1);
        let signed = checkpoint().sign(&signer).unwrap();
        for at in 0..signed.note.len() {
            for bit in 0..8 {
                let mut bytes = signed.note.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let Ok(note) = String::from_utf8(bytes) else { continue };
                assert!(Signed::open(&note, signer.verifier()).is_err(), "bit {bit} of byte {at}");
            }
        }
    }
}
