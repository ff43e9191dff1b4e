//! The sandbox with the real kernel and the real executable. As root, all tests run a second time
//! as an ordinary user.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod confinement;
mod core_dumps;
mod doctor;
mod egress;
#[path = "../container/egress_origin.rs"]
mod egress_origin;
mod escape;
mod harness;
mod lifetime;
mod limits;
mod mounts;
mod programs;
mod set_id;
#[path = "../container/set_id_calls.rs"]
mod set_id_calls;

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    process::Command,
};

/// An ordinary user of this machine, who need not exist.
const USER: u32 = 54321;

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

#[test]
fn all_tests_pass_as_an_ordinary_user() {
    if !is_root() {
        return;
    }
    // What has to be built is built here: another user may write nothing beside it.
    harness::probe_server();
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this)
        .args(["--skip", "all_tests_pass_as_an_ordinary_user"])
        .env_remove("HOME")
        .uid(USER)
        .gid(USER)
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
