//! The proxy through which a confined program reaches the hosts that its operator lists, and no
//! others: HTTP `CONNECT`, plain HTTP, SOCKS5, and connections to a stand-in address of a listed
//! host. It does not know who decides and who records: the caller provides a [`Gate`].
//!
//! # Invariants
//! - Nothing leaves for a program before its gate allowed it, DNS queries included.
//! - A connection goes to exactly the address that was checked. An address that is not public is
//!   refused, unless the operator wrote that address down.
//! - Where TLS is spoken, the server name in clear text is the allowed host, and there is no
//!   other, encrypted name beside it or in a second `ClientHello` that the server requests. No
//!   byte leaves before that was checked.
//! - A connection ends when its gate no longer allows it.
//! - Whatever the program sends, every attempt is reported once, every wait has a deadline, and
//!   every buffer a bound.

mod address;
mod client_hello;
mod connect;
mod destination;
mod direction;
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
    Destination, Destinations, DuplicateDestination, Host, IllegalDestination, IllegalHost,
    Pattern, Wire,
};
pub use gate::{Attempt, End, Forbidden, Gate, GateContext, Outcome, Protocol, Verdict};
pub use limits::Limits;
pub use refusal::Refusal;
pub use resolve::{Resolver, System};
pub use serve::{Egress, Listener};
