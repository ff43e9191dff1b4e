//! Strips the executable of release builds. Cargo ignores `strip` of `[profile.release]` for a
//! package with an entry in `[profile.release.package]`, and this package has one.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CARGO_PROFILE_RELEASE_STRIP");
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    // With Cargo's variable, a profiler finds the symbols.
    if release && env::var_os("CARGO_PROFILE_RELEASE_STRIP").is_none() {
        println!("cargo::rustc-link-arg-bins=-Wl,--strip-all");
    }
}
