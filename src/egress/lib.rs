//! The proxy end through which a confined program reaches the hosts that its operator lists, and
//! no other: HTTP `CONNECT`, plain HTTP, SOCKS5, and connections that were made to a listed host as
//! if it were there. It knows neither who decides nor who records: that comes in by a [`Gate`].
//!
//! Invariants:
//! - Nothing leaves for a program before its gate allowed it, not even the question for an address.
//! - A connection is made to the very address that was checked. One that is not everybody's is
//!   refused, unless the operator wrote that address down.
//! - Where TLS is spoken, the server name in the clear is the host that was allowed, and there is no
//!   other one encrypted beside it, nor in a second beginning that the server asks for. No byte goes
//!   out before that was seen.
//! - A connection ends when its gate no longer allows it.
//! - Whatever the program sends, every attempt is told of once, every wait has a deadline, and every
//!   buffer a bound.

mod address;
mod client_hello;
mod connect;
mod destination;
mod gate;
mod hello_retry;
mod http;
mod limits;
mod refusal;
mod resolve;
mod serve;
mod socks;
mod tunnel;

pub use address::{is_metadata, is_public};
pub use destination::{
    Destination, Destinations, Host, IllegalDestination, IllegalHost, Pattern, Twice, Wire,
};
pub use gate::{Attempt, End, Forbidden, Gate, Grounds, Outcome, Protocol, Verdict};
pub use limits::Limits;
pub use refusal::Refusal;
pub use resolve::{Resolver, System};
pub use serve::{Egress, Listener};
