//! Checks a loaded image while it streams: it must have the form that Portcullis writes.
//!
//! A general archive can name any number of images and move any tag. Portcullis's archives have
//! three files in a fixed order: the configuration, the list of images (one, with a name prefix of
//! Portcullis), and its layer.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use serde::Deserialize;

use crate::{
    PACKED,
    body::BoxError,
    refusal::{Code, Refusal},
};

const BLOCK: usize = 512;
/// Size limit in bytes of the two small files.
const MAX_SMALL_FILE_BYTES: u64 = 256 << 10;

/// Body that fails as soon as it is not such an archive.
pub struct Archive {
    body: Incoming,
    reader: Reader,
}

impl Archive {
    pub fn new(body: Incoming, most: u64) -> Self {
        Self { body, reader: Reader::new(most) }
    }
}

impl Body for Archive {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => {
                    let end = self.reader.end();
                    return Poll::Ready(end.err().map(|refusal| Err(refusal.into())));
                }
            };
            // Trailers are ignored.
            let Ok(data) = frame.into_data() else { continue };
            let passed = self.reader.take(&data).map(|()| Frame::data(data));
            return Poll::Ready(Some(passed.map_err(Into::into)));
        }
    }
}

/// Expected next part.
#[derive(Debug)]
enum Next {
    Header,
    /// Of the file with this index: the remaining content, then the remaining padding.
    Content {
        file: usize,
        remaining: u64,
        padding: u64,
    },
    Zeros,
}

struct Reader {
    next: Next,
    /// Header or small file that is being read.
    partial: Vec<u8>,
    files: Vec<String>,
    /// Layer by the list.
    layer: String,
    remaining: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

fn refuse<T>(why: &str) -> Result<T, Refusal> {
    Err(Refusal::new(
        Code::Image,
        format!(
            "the archive is not an image packed by Portcullis: \
        {why}"
        ),
    ))
}

impl Reader {
    fn new(most: u64) -> Self {
        Self {
            next: Next::Header,
            partial: Vec::new(),
            files: Vec::new(),
            layer: String::new(),
            remaining: most,
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        self.remaining = match self.remaining.checked_sub(bytes.len() as u64) {
            Some(remaining) => remaining,
            None => {
                return Err(Refusal::new(Code::Limit, "the image is too big (see --image-mib)"));
            }
        };
        while !bytes.is_empty() {
            match &mut self.next {
                Next::Header => {
                    let (now, rest) = bytes.split_at(bytes.len().min(BLOCK - self.partial.len()));
                    self.partial.extend_from_slice(now);
                    bytes = rest;
                    if self.partial.len() == BLOCK {
                        let header = std::mem::take(&mut self.partial);
                        self.next = self.header(&header)?;
                    }
                }
                Next::Content { file, remaining, padding } => {
                    let part = usize::try_from(*remaining).unwrap_or(usize::MAX).min(bytes.len());
                    let (now, rest) = bytes.split_at(part);
                    if *file < 2 {
                        self.partial.extend_from_slice(now);
                    }
                    *remaining -= now.len() as u64;
                    let skip = if *remaining == 0 {
                        usize::try_from(*padding).unwrap_or(0).min(rest.len())
                    } else {
                        0
                    };
                    *padding -= skip as u64;
                    bytes = rest.get(skip..).unwrap_or_default();
                    if *remaining == 0 && *padding == 0 {
                        let file = *file;
                        self.next = Next::Header;
                        self.file(file)?;
                    }
                }
                Next::Zeros => {
                    if bytes.iter().any(|byte| *byte != 0) {
                        return refuse("there is data after its end");
                    }
                    bytes = &[];
                }
            }
        }
        Ok(())
    }

    fn header(&mut self, header: &[u8]) -> Result<Next, Refusal> {
        if header.iter().all(|byte| *byte == 0) {
            return if self.files.len() == 3 {
                Ok(Next::Zeros)
            } else {
                refuse("a file is missing")
            };
        }
        let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default();
        // By tar(5). Everything that changes the meaning of a name or a size is refused: long
        // names, prefixes, links, sparse files, sizes that are not octal numbers.
        let octal = |text: &[u8]| {
            let end = text.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(text.len());
            let (digits, rest) = text.split_at(end);
            let plain = digits.iter().all(|b| matches!(b, b'0'..=b'7'))
                && rest.iter().all(|b| matches!(b, 0 | b' '));
            let digits = std::str::from_utf8(digits).ok().filter(|_| plain)?;
            u64::from_str_radix(digits, 8).ok()
        };
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum();
        if octal(field(148, 156)) != Some(sum) {
            return refuse("a header is invalid");
        }
        if field(156, 157) != b"0" || field(257, 265) != b"ustar  \0" {
            return refuse("a file is not a regular file");
        }
        if field(157, 257).iter().chain(field(345, 512)).any(|byte| *byte != 0) {
            return refuse("a header has fields that a regular file does not need");
        }
        let name = field(0, 100);
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        let (name, rest) = name.split_at(end);
        let Some(name) = std::str::from_utf8(name).ok().filter(|_| rest.iter().all(|b| *b == 0))
        else {
            return refuse("a file has an invalid name");
        };
        let Some(size) = octal(field(124, 136)) else {
            return refuse(
                "a file has an invalid \
            size",
            );
        };
        let file = self.files.len();
        let hex = |text: &str| {
            text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let expected = match file {
            0 => name.strip_suffix(".json").is_some_and(hex),
            1 => name == "manifest.json",
            2 => name == self.layer && name.strip_suffix("/layer.tar").is_some_and(hex),
            _ => false,
        };
        if !expected {
            return refuse("a file has an unexpected name or position");
        }
        if file < 2 && (size == 0 || size > MAX_SMALL_FILE_BYTES) {
            return refuse("its configuration is empty or too long");
        }
        self.files.push(name.to_owned());
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        if size == 0 && padding == 0 {
            return refuse("its layer is empty");
        }
        Ok(Next::Content { file, remaining: size, padding })
    }

    /// Processes a completely read file.
    fn file(&mut self, file: usize) -> Result<(), Refusal> {
        let content = std::mem::take(&mut self.partial);
        if file != 1 {
            return Ok(());
        }
        let images = portcullis_foundation::json::read(&content).ok();
        let images = images.and_then(|value| serde_json::from_value::<Vec<Entry>>(value).ok());
        let Some([image]) = images.as_deref() else {
            return refuse(
                "it does not have exactly one \
            image",
            );
        };
        let tagged = matches!(image.repo_tags.as_slice(), [tag] if is_packed(tag));
        if !tagged {
            return refuse("it gives the image another name");
        }
        let [layer] = image.layers.as_slice() else {
            return refuse(
                "it does not have exactly one \
            layer",
            );
        };
        if Some(&image.config) != self.files.first() {
            return refuse("its list names other files");
        }
        self.layer.clone_from(layer);
        Ok(())
    }

    fn end(&self) -> Result<(), Refusal> {
        match self.next {
            Next::Zeros => Ok(()),
            _ => refuse("it is truncated"),
        }
    }
}

fn is_packed(tag: &str) -> bool {
    let word = |text: &str, more: &[u8]| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(&b))
    };
    tag.strip_prefix(PACKED)
        .and_then(|rest| rest.split_once(':'))
        .is_some_and(|(name, digest)| word(name, b"-") && word(digest, b""))
}

#[cfg(test)]
mod tests;
