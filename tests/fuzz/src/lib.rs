//! What must hold of everything that reads bytes of strangers, whatever the bytes.
//!
//! A target panics where it does not hold. The fuzzing engine (`src/main.rs`) looks for such
//! bytes; `tests/corpora.rs` runs every target over all that the engine has found worth keeping.

mod catalog;
mod egress;
mod era;
mod events;
mod filter;
mod frame;
mod header;
mod log;
mod tree;

/// Holds one room to what it promises.
pub type Target = fn(&[u8]);

/// All targets, by the names of their corpora.
pub const TARGETS: [(&str, Target); 8] = [
    ("frame", frame::target),
    ("events", events::target),
    ("header", header::target),
    ("era", era::target),
    ("log", log::target),
    ("filter", filter::target),
    ("egress", egress::target),
    ("catalog", catalog::target),
];
