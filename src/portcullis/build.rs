//! Options of the linker for release builds.

use std::{env, process::Command};

/// The first release of glibc that applies packed relocations.
const PACKED_RELOCATIONS: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CARGO_PROFILE_RELEASE_STRIP");
    if env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    // Cargo ignores `strip` of `[profile.release]` for a package with an entry in
    // `[profile.release.package]`, and this package has one. With Cargo's variable, a profiler finds
    // the symbols.
    if env::var_os("CARGO_PROFILE_RELEASE_STRIP").is_none() {
        println!("cargo::rustc-link-arg-bins=-Wl,--strip-all");
    }
    // Packed relocations are smaller by 3 MB. The executable then needs glibc 2.36 or newer.
    if env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu")
        && env::var("TARGET") == env::var("HOST")
        && glibc().is_some_and(|version| version >= PACKED_RELOCATIONS)
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The glibc of this machine, if it has one.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
