//! Bytes to messages and back: one strict parse, raw slices from then on.
//!
//! INVARIANT: a parser that reads a message differently from us must not exist. So everything on
//! which parsers are known to differ (a key twice, bad UTF-8, lone surrogates, numbers out of
//! range) is refused here, and what goes on is the text that was read here.

mod frame;
mod object;
mod strict;

pub use frame::{Frame, Id, Kind};
pub use object::Object;
pub use strict::{Caps, Flaw, check};
