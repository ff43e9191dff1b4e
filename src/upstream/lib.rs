//! Servers: how one is started, spoken to, watched and ended.
//!
//! INVARIANT: what a server does (hang, die, flood, lie) ends at its own calls: every queue to and
//! from it is bounded, every wait has a deadline, and its failure is a [`Failure`] of that call.

mod asked;
mod batch;
mod board;
mod breaker;
mod clock;
pub mod config;
mod definitions;
mod drain;
mod ear;
mod engines;
mod errands;
mod event;
mod greeting;
mod hands;
mod health;
mod http;
pub mod images;
mod instance;
mod known;
mod launcher;
mod leftovers;
mod link;
mod listen;
mod log;
mod party;
mod pipe;

mod running;
mod server;
mod signed;
mod spare;
mod start;
mod upkeep;
mod watch;

pub use clock::{Clock, Paused};
pub use definitions::{Items, List, Notices, Offer};
pub use engines::Engines;
pub use event::{By, Event, Handing, Launching, NotCleared, Program, Pulling, Review, Started};
pub use greeting::{Greeting, claims};
pub use hands::{Handed, HandedSecret, Hands, Holder, Learn, NotHanded, Read, Reread, Whose};
pub use images::{Images, Pinned};
pub use instance::Instance;
pub use known::{KNOWN_FOLDER, kept_tools};
pub use launcher::{Launcher, Place};
pub use leftovers::Leftovers;
pub use link::{Call, Failure, Heard, Link, Reply, Said};
pub use log::Scrub;
pub use party::{Party, PartyKey};
pub use running::Running;
pub use server::{InstanceStatus, Rehanded, Restarted, Server, Status};
pub use signed::{Signatures, SignedBy};
