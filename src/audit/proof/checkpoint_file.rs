//! The file `checkpoints` of a store, for writing.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::{
    Verifier,
    checkpoint::Signed,
    note_file::{self, Tail},
    verify::CHECKPOINTS,
};

/// Bytes at the end of the file that are first searched for the newest checkpoint.
const RECENT: u64 = 64 << 10;

/// The file, open for appending.
#[derive(Debug)]
pub(super) struct CheckpointFile {
    file: File,
    length: u64,
    newest: Option<Signed>,
}

impl CheckpointFile {
    /// Opens the file of the store in `dir`, or creates it. Removes an incomplete last note, which
    /// an interrupted write left. Other damage is left unchanged, so that `verify` reports it.
    pub fn open(dir: &Path, keys: &[Verifier]) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(dir.join(CHECKPOINTS))?;
        File::open(dir)?.sync_all()?;
        let length = file.metadata()?.len();
        let mut ledger = Self { file: file.try_clone()?, length, newest: None };
        for begin in [length.saturating_sub(RECENT), 0] {
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(begin))?;
            (&file).take(length - begin).read_to_end(&mut bytes)?;
            let found = note_file::split(&bytes);
            ledger.newest = newest(&found.notes, keys);
            if ledger.newest.is_none() && begin > 0 {
                continue;
            }
            match found.tail {
                Tail::Torn(at) => ledger.cut(begin + at as u64)?,
                Tail::Damaged(_) => ledger.put(b"\n\n")?,
                Tail::None if !bytes.is_empty() && !bytes.ends_with(b"\n\n") => {
                    ledger.put(b"\n")?
                }
                Tail::None => {}
            }
            break;
        }
        Ok(ledger)
    }

    /// The last written checkpoint.
    pub fn newest(&self) -> Option<&Signed> {
        self.newest.as_ref()
    }

    /// Appends a checkpoint. Durable when it returns `Ok`; an error leaves the file unchanged.
    pub fn append(&mut self, signed: Signed) -> io::Result<()> {
        self.put(format!("{}\n", signed.note).as_bytes())?;
        self.newest = Some(signed);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self
            .file
            .seek(SeekFrom::Start(self.length))
            .and_then(|_| self.file.write_all(bytes))
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => self.length += bytes.len() as u64,
            // Otherwise its remains would precede the next checkpoint.
            Err(_) => self.file.set_len(self.length)?,
        }
        written
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        self.file.sync_all()?;
        self.length = length;
        Ok(())
    }
}

/// The last note that one of the keys signed, or else the last one that parses: the next checkpoint
/// continues its number.
fn newest(notes: &[(usize, &[u8])], keys: &[Verifier]) -> Option<Signed> {
    let texts = || notes.iter().rev().filter_map(|(_, note)| std::str::from_utf8(note).ok());
    let signed = |note: &str| keys.iter().find_map(|key| Signed::open(note, key).ok());
    texts().find_map(signed).or_else(|| texts().find_map(Signed::unchecked))
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use jiff::Timestamp;

    use super::*;
    use crate::proof::{
        Companions, Hash, Signer,
        checkpoint::{Checkpoint, Pace},
    };

    fn checkpoint(signer: &Signer, number: u64) -> Signed {
        let companions =
            Companions { digest_key: Hash::ZERO, manifest: Hash::ZERO, verifiers: Hash::ZERO };
        let checkpoint = Checkpoint {
            companions,
            origin: signer.origin().into(),
            size: number,
            root: Hash::ZERO,
            number,
            before: Hash::ZERO,
            last: Hash::ZERO,
            time: Timestamp::UNIX_EPOCH,
            next: Pace { records: 1, time: Duration::from_secs(1) },
        };
        checkpoint.sign(signer).unwrap()
    }

    #[test]
    fn reopened_file_continues_after_its_last_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::for_tests("ab", 1);
        let keys = [signer.verifier().clone()];
        let mut ledger = CheckpointFile::open(dir.path(), &keys).unwrap();
        assert_eq!(ledger.newest(), None);
        // More than the part that is searched first.
        let count = 2 * RECENT / checkpoint(&signer, 0).note.len() as u64;
        for number in 0..count {
            ledger.append(checkpoint(&signer, number)).unwrap();
        }
        let newest = checkpoint(&signer, count - 1);
        assert_eq!(CheckpointFile::open(dir.path(), &keys).unwrap().newest(), Some(&newest));
        let path = dir.path().join(CHECKPOINTS);
        let whole = fs::read(&path).unwrap();
        for cut in [1, 2, 30, newest.note.len()] {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let mut ledger = CheckpointFile::open(dir.path(), &keys).unwrap();
            let number = ledger.newest().unwrap().checkpoint.number;
            // A note that only lacks the empty line after it is complete.
            assert_eq!(number, if cut == 1 { count - 1 } else { count - 2 }, "{cut}");
            ledger.append(checkpoint(&signer, number + 1)).unwrap();
            let notes = fs::read(&path).unwrap();
            let notes = note_file::split(&notes);
            assert_eq!(notes.notes.len() as u64, number + 2);
            assert_eq!(notes.tail, Tail::None);
        }
    }

    #[test]
    fn damaged_checkpoint_stays_and_appending_continues() {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::for_tests("ab", 1);
        let keys = [signer.verifier().clone()];
        let mut ledger = CheckpointFile::open(dir.path(), &keys).unwrap();
        ledger.append(checkpoint(&signer, 0)).unwrap();
        ledger.append(checkpoint(&signer, 1)).unwrap();
        let path = dir.path().join(CHECKPOINTS);
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 1] ^= 4;
        fs::write(&path, &bytes).unwrap();
        let mut ledger = CheckpointFile::open(dir.path(), &keys).unwrap();
        assert_eq!(ledger.newest(), Some(&checkpoint(&signer, 0)));
        ledger.append(checkpoint(&signer, 7)).unwrap();
        let after = fs::read(&path).unwrap();
        assert!(after.starts_with(&bytes));
        let found = note_file::split(&after);
        assert_eq!(found.notes.last().unwrap().1, checkpoint(&signer, 7).note.as_bytes());
        // A new key without the old one still continues the numbers.
        let other = [Signer::for_tests("ab", 2).verifier().clone()];
        assert_eq!(
            CheckpointFile::open(dir.path(), &other).unwrap().newest(),
            Some(&checkpoint(&signer, 7))
        );
    }
}
