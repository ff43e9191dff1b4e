//! Strips the executable of release builds. Cargo ignores `strip` of `[profile.release]` for a
//! package that has an entry in `[profile.release.package]`, as this one.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CARGO_PROFILE_RELEASE_STRIP");
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    // The variable of Cargo keeps the symbols for profilers.
    if release && env::var_os("CARGO_PROFILE_RELEASE_STRIP").is_none() {
        println!("cargo::rustc-link-arg-bins=-Wl,--strip-all");
    }
}
