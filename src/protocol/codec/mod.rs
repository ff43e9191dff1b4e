//! Conversion between bytes and messages: one strict parse, then slices of the text.
//!
//! INVARIANT: no parser may read a message differently than this one. So everything on which
//! parsers are known to differ (duplicate keys, bad UTF-8, lone surrogates, numbers out of range)
//! is refused here, and the text that was parsed here is what is forwarded.

mod batch;
pub mod era;
mod events;
mod frame;
pub mod headers;
mod object;
mod pointer;
mod references;
mod strict;

pub use batch::{elements, is_batch};
pub use events::{Broken, Event, EventReader, TooLarge, events};
pub use frame::{Frame, Id, Kind};
pub use object::{Object, may_have};
pub use pointer::{IllegalPointer, Pointer, items, overwrite, splice};
pub use references::{References, pointed};
pub use strict::{Caps, Counts, Flaw, Text, check, fold};

/// The text on one line, as standard input and event streams require. Line breaks in JSON occur
/// only between values, because they are escaped inside strings.
pub fn one_line(text: bytes::Bytes) -> bytes::Bytes {
    if !text.iter().any(|b| matches!(b, b'\n' | b'\r')) {
        return text;
    }
    text.iter().map(|&b| if matches!(b, b'\n' | b'\r') { b' ' } else { b }).collect()
}
