//! Bytes to messages and back: one strict parse, raw slices from then on.
//!
//! INVARIANT: a parser that reads a message differently from us must not exist. So everything on
//! which parsers are known to differ (a key twice, bad UTF-8, lone surrogates, numbers out of
//! range) is refused here, and what goes on is the text that was read here.

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

/// The text on one line, as standard input and event streams need it. Line breaks in JSON stand
/// only between values: those inside strings are escaped.
pub fn one_line(text: bytes::Bytes) -> bytes::Bytes {
    if !text.iter().any(|b| matches!(b, b'\n' | b'\r')) {
        return text;
    }
    text.iter().map(|&b| if matches!(b, b'\n' | b'\r') { b' ' } else { b }).collect()
}
