//! Every verb of `portcullis plugin`, with the real program.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod inspect;
mod projects;
mod signing;
mod testing;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// A built plugin. All are built, once, when the first is asked for.
fn built(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let root = Path::new(ROOT);
        let status = Command::new(root.join("plugins/build")).status().unwrap();
        assert!(status.success(), "plugins/build failed");
        root.join("target/plugins")
    });
    folder.join(name).with_extension("wasm")
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("portcullis"));
    // What plugins in Rust are built of is built once for all tests.
    let target = Path::new(ROOT).join("target/guests");
    command.current_dir(folder).args(args).env("CARGO_TARGET_DIR", target);
    command.env_remove("PORTCULLIS_CONFIG").env_remove("NO_COLOR");
    command
}

/// The exit code, standard output and standard error.
fn run(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(folder, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}
