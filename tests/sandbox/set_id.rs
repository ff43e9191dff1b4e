//! Programs with set-ID bits in writable mounts, and the reaction of real programs to their
//! refusal.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    harness::{installed, mount, probe_server, python, run, spec},
    set_id_calls::{CALLS, assert_all_refused, folder},
};

/// The files in and below a folder that have a set-ID bit, and are no folders.
fn set_id_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            found.extend(set_id_files(&path));
        } else if metadata.permissions().mode() & 0o6000 != 0 {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn setuid_bit_cannot_be_set_in_a_writable_mount() {
    let folder = folder();
    let mut spec = python(
        r#"
import os, shutil
shutil.copy("/usr/bin/id", "/rw/x")
for mode in [0o6755, 0o4755, 0o2755]:
    try: os.chmod("/rw/x", mode); print("changed")
    except OSError as error: print(os.strerror(error.errno))
os.chmod("/rw/x", 0o755)"#,
    );
    spec.mounts = vec![mount(folder.path(), "/rw", true)];
    let ran = run(&spec).await;
    assert_eq!(ran.stdout, "Operation not permitted\n".repeat(3), "{ran:?}");
    assert_eq!(fs::metadata(folder.path().join("x")).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[tokio::test]
async fn setuid_bit_cannot_be_set_by_any_call() {
    let folder = folder();
    let probe = probe_server().display().to_string();
    let mut spec = spec(&[&[probe.as_str(), "--attempts"], &CALLS[..], &["folder=/rw"]].concat());
    spec.mounts = vec![mount(folder.path(), "/rw", true)];
    let ran = run(&spec).await;
    assert_eq!(ran.exit.code, 0, "{ran:?}");
    assert_all_refused(&ran.stdout);
    assert_eq!(set_id_files(folder.path()), Vec::<PathBuf>::new());
}

/// What programs that copy and unpack find: a program and a folder with set-ID bits, alone and in
/// archives, and packages of npm and Python without any.
fn inputs() -> TempDir {
    let inputs = tempfile::tempdir().unwrap();
    let script = r#"
        set -e
        umask 022
        mkdir -p tree/shared package demo-1.0.dist-info
        cp /bin/true tree/program
        chmod 6755 tree/program
        chmod 2755 tree/shared
        echo text > tree/shared/file
        tar -cf tree.tar tree
        echo '{"name":"demo","version":"1.0.0","bin":"./demo.js"}' > package/package.json
        echo '#!/usr/bin/env node' > package/demo.js
        chmod 755 package/demo.js
        tar -czf demo.tgz package
        echo 'x = 1' > demo.py
        printf 'Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n' > demo-1.0.dist-info/METADATA
        printf 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n' > demo-1.0.dist-info/WHEEL
        printf 'demo.py,,\ndemo-1.0.dist-info/METADATA,,\ndemo-1.0.dist-info/WHEEL,,\ndemo-1.0.dist-info/RECORD,,\n' > demo-1.0.dist-info/RECORD
        python3 -m zipfile -c demo-1.0-py3-none-any.whl demo.py demo-1.0.dist-info
        chmod 755 .
    "#;
    let made = Command::new("sh").args(["-c", script]).current_dir(inputs.path()).status().unwrap();
    assert!(made.success());
    inputs
}

async fn shell(inputs: &TempDir, folder: &TempDir, line: &str) -> (i64, String) {
    let script = format!("umask 022; cd /rw && {line}");
    let mut spec = spec(&["/bin/sh", "-c", &script]);
    spec.mounts = vec![mount(inputs.path(), "/in", false), mount(folder.path(), "/rw", true)];
    let ran = run(&spec).await;
    (ran.exit.code, ran.stdout + &ran.stderr)
}

#[tokio::test]
async fn copy_and_unpack_programs_tolerate_the_refusal() {
    let (inputs, folder) = (inputs(), folder());
    for line in [
        "cp /in/tree/program plain",
        "cp -r /in/tree tree-r",
        "cp -p /in/tree/shared/file kept",
        "cp -rp /in/package package-p",
        "install -m 755 /in/tree/program installed",
        "mkdir -m 755 made",
        "tar -xf /in/tree.tar",
        "tar -xpf /in/demo.tgz",
        "git init -q repo && cd repo && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m a",
        "git clone -q repo clone",
        "python3 -c 'import tarfile; tarfile.open(\"/in/tree.tar\").extractall(\"unpacked\")'",
        "python3 -m venv --without-pip venv",
        "python3 -m pip install -q --no-index --target site /in/demo-*.whl",
    ] {
        let (code, said) = shell(&inputs, &folder, line).await;
        assert_eq!(code, 0, "{line}: {said}");
    }
    if installed("npm").is_some() {
        let line = "mkdir app && cd app && npm install --offline --no-audit --no-fund /in/demo.tgz";
        let (code, said) = shell(&inputs, &folder, line).await;
        assert_eq!((code, said.contains("EPERM")), (0, false), "{said}");
    }
    // Who asks for the bits themselves is refused.
    for line in ["tar -xpf /in/tree.tar", "chmod g+s made", "git init -q --shared shared"] {
        let (code, said) = shell(&inputs, &folder, line).await;
        assert_ne!(code, 0, "{line}: {said}");
    }
    assert_eq!(set_id_files(folder.path()), Vec::<PathBuf>::new());
}

/// New folders in a setgid folder get the bit from the kernel.
#[tokio::test]
async fn setgid_folder_stays_usable() {
    let (inputs, folder) = (inputs(), folder());
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o2777)).unwrap();
    let line = "cd shared && mkdir -p a/b && echo x > a/b/c && cp -r a d && git init -q repo";
    let (code, said) = shell(&inputs, &folder, line).await;
    assert_eq!(code, 0, "{said}");
    assert_ne!(fs::metadata(shared.join("a/b")).unwrap().permissions().mode() & 0o2000, 0);
    assert_eq!(set_id_files(folder.path()), Vec::<PathBuf>::new());
}
