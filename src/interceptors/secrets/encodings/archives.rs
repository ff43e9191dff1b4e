//! Archives among decoded bytes: gzip and zlib, also within each other.

use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Cursor, Read},
    ops::Range,
};

use super::{super::scan::Spent, OVERLAP_BYTES, PART_BYTES, runs::Runs};

/// Limit of archives within each other.
const MAX_ARCHIVES: usize = 3;

/// Cost in bytes of opening an archive, whatever it yields.
const UNPACK_BYTES: usize = 1 << 10;

impl Runs<'_, '_> {
    /// Adds the content of an archive, then that of the archive that it begins with, and so on. The
    /// content of the outer one counts too: its text can begin like an archive, or follow one.
    pub(super) fn inflate(
        &mut self,
        raw: &Range<usize>,
        packed: impl Read + Clone,
    ) -> Result<(), Spent> {
        for archives in 1..=MAX_ARCHIVES {
            if !self.unpack(raw, BufReader::new(packed.clone()), archives)? {
                break;
            }
        }
        Ok(())
    }

    /// Adds the content of the last of this many archives within each other. What a broken archive
    /// has before its fault counts. Returns false if there are fewer archives.
    fn unpack(
        &mut self,
        raw: &Range<usize>,
        packed: impl BufRead,
        archives: usize,
    ) -> Result<bool, Spent> {
        let left = Cell::new(self.budget.decoded.inflated);
        let (mut content, missing) = open(Box::new(packed), &left, archives);
        if missing > 0 {
            self.budget.decoded.inflated = left.get();
            return if left.get() == 0 { Err(Spent) } else { Ok(false) };
        }
        let mut part = Vec::new();
        loop {
            let old = part.len();
            let wanted = PART_BYTES - old;
            // A fault leaves the bytes before it.
            let _ = content.by_ref().take(wanted as u64).read_to_end(&mut part);
            let new = part.len() - old;
            self.budget.decoded.inflated = left.get();
            if left.get() == 0 {
                return Err(Spent);
            }
            if new > 0 {
                self.texts(raw, &part)?;
            }
            if new < wanted {
                return Ok(true);
            }
            part.drain(..part.len() - OVERLAP_BYTES);
            self.flush()?;
            left.set(self.budget.decoded.inflated);
        }
    }
}

/// Reader that takes what it reads from a counter. At its end, it fails.
struct Metered<'a, R> {
    inner: R,
    left: &'a Cell<usize>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(out)?;
        let left = self.left.get().saturating_sub(length);
        self.left.set(left);
        if left > 0 || length == 0 { Ok(length) } else { Err(io::ErrorKind::QuotaExceeded.into()) }
    }
}

/// Content of the last of this many archives within each other, and the number of missing ones.
/// Takes the cost of each from a counter.
fn open<'a>(
    mut packed: Box<dyn BufRead + 'a>,
    left: &'a Cell<usize>,
    archives: usize,
) -> (Box<dyn BufRead + 'a>, usize) {
    let mut head = Vec::new();
    // A fault shows again when the rest is read.
    let _ = packed.by_ref().take(3).read_to_end(&mut head);
    let is_gzip = head.first() == Some(&0x1f);
    if archives == 0 || !is_archive(&head) {
        return (Box::new(Cursor::new(head).chain(packed)), archives);
    }
    left.set(left.get().saturating_sub(UNPACK_BYTES));
    let packed = Cursor::new(head).chain(packed);
    let content: Box<dyn Read + 'a> = match is_gzip {
        true => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        false => Box::new(flate2::bufread::ZlibDecoder::new(packed)),
    };
    let content = BufReader::with_capacity(4 << 10, Metered { inner: content, left });
    open(Box::new(content), left, archives - 1)
}

/// Whether bytes begin as gzip or zlib does.
pub(super) fn is_archive(bytes: &[u8]) -> bool {
    matches!(bytes, [0x1f, 0x8b, 8, ..] | [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..])
}
