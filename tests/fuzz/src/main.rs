//! The fuzzing engine on one target, which the variable `FUZZ_TARGET` names: see README.md.

#![no_main]

use std::sync::LazyLock;

use fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let chosen = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
    match TARGETS.iter().find(|(name, _)| *name == chosen) {
        Some((_, target)) => *target,
        None => panic!("set FUZZ_TARGET to one of {names:?}"),
    }
});

fuzz_target!(|bytes: &[u8]| CHOSEN(bytes));
