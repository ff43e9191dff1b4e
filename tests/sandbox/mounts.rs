//! Mounts of host folders.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use portcullis_runtime::mount::Mount;

use crate::harness::{launch, mount, python, run};

#[tokio::test]
async fn writable_mounts_forbid_executables() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(folder.path().join("there"), "seen").unwrap();
    let text = r##"
import os, json
def tried(action):
    try: action(); return "ok"
    except OSError as error: return os.strerror(error.errno)
def program(path):
    open(path, "w").write("#!/bin/sh\n"); os.chmod(path, 0o755)
    pid = os.fork()
    if not pid:
        try: os.execv(path, [path])
        except OSError as error: os._exit(error.errno)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps([
    open("/ro/there").read(),
    tried(lambda: open("/ro/new", "w")),
    tried(lambda: open("/rw/new", "w")),
    program("/rw/program"),
]))"##;
    let mut spec = python(text);
    spec.mounts = vec![mount(folder.path(), "/ro", false), mount(folder.path(), "/rw", true)];
    let found = run(&spec).await;
    assert_eq!(found.stdout.trim(), r#"["seen", "Read-only file system", "ok", 13]"#, "{found:?}");
    assert!(folder.path().join("new").exists());
    spec.hardening.exec_tmp = true;
    assert!(run(&spec).await.stdout.contains(r#""ok", 0]"#));
}

#[tokio::test]
async fn mounts_of_secrets_and_host_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    fs::create_dir_all(folder.join("home/.ssh")).unwrap();
    fs::create_dir_all(folder.join("fine")).unwrap();
    symlink("/etc", folder.join("link")).unwrap();
    let socket = folder.join("engine.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    for (source, target, writable, refused) in [
        (path("fine"), "/data", true, false),
        ("/usr/share".into(), "/share", false, false),
        ("/".into(), "/host", false, true),
        ("/etc".into(), "/data", false, true),
        ("/proc".into(), "/data", false, true),
        ("/proc/1".into(), "/data", false, true),
        ("/sys".into(), "/data", false, true),
        ("/dev".into(), "/data", false, true),
        ("/run".into(), "/data", false, true),
        ("/var".into(), "/data", false, true),
        ("/home".into(), "/data", false, true),
        ("/usr/share".into(), "/share", true, true),
        (path("home"), "/data", false, true),
        (path("home/.ssh"), "/data", false, true),
        (path("link"), "/data", false, true),
        ("/tmp".into(), "/data", false, true),
        (path("engine.sock"), "/engine.sock", false, true),
        (path("absent"), "/data", false, true),
        (path("fine"), "/", false, true),
        (path("fine"), "/usr/data", false, true),
        (path("fine"), "/proc/data", false, true),
        (path("fine"), "/etc", false, true),
        (path("fine"), "/tmp", false, true),
        (path("fine"), "data", false, true),
        (path("fine"), "/data/../usr", false, true),
    ] {
        let mut spec = python("");
        spec.mounts.push(Mount { source: source.clone().into(), target: target.into(), writable });
        match launch(&spec).await {
            Ok(_) => assert!(!refused, "{source}:{target}"),
            Err(failure) => {
                assert!(refused && failure.remedy.is_some(), "{source}:{target}: {failure:?}");
            }
        }
    }
}

#[tokio::test]
async fn link_in_a_mount_cannot_redirect_another_mount() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    fs::create_dir_all(folder.join("outer")).unwrap();
    fs::create_dir_all(folder.join("inner")).unwrap();
    symlink("/etc", folder.join("outer/place")).unwrap();
    let mut spec = python("");
    spec.mounts = vec![
        mount(&folder.join("outer"), "/data", true),
        mount(&folder.join("inner"), "/data/place", false),
    ];
    let failure = launch(&spec).await.unwrap_err();
    assert!(failure.what.contains("/data/place"), "{failure:?}");
}

/// Where the mounts are that another user has made.
const BELOW: &str = "SANDBOX_TEST_BELOW";

#[tokio::test]
async fn nested_mounts_are_hidden() {
    let Some(folder) = std::env::var_os(BELOW) else {
        if crate::is_root() {
            below_as_root_and_as_an_ordinary_user();
        }
        return;
    };
    let folder = std::path::PathBuf::from(folder);
    let text = r##"
import json, os
def tried(action):
    try: return action()
    except OSError as error: return os.strerror(error.errno)
print(json.dumps([
    sorted(os.listdir("/data")),
    open("/data/shown").read(),
    tried(lambda: os.listdir("/data/a b")),
    tried(lambda: open("/data/a b/new", "w") and "written"),
    tried(lambda: open("/data/file").read()),
    tried(lambda: os.listdir("/data/deep/inner")),
    tried(lambda: os.listdir("/data/own")),
]))"##;
    let mut spec = python(text);
    spec.mounts =
        vec![mount(&folder, "/data", true), mount(&folder.join("own"), "/data/own", false)];
    let found = run(&spec).await;
    let found: serde_json::Value = serde_json::from_str(&found.stdout).expect(&found.stderr);
    assert_eq!(found[0], serde_json::json!(["a b", "deep", "file", "own", "shown"]), "{found}");
    assert_eq!(found[1], "shown", "{found}");
    assert_eq!(found[2], serde_json::json!([]), "{found}");
    assert_eq!(
        found[3],
        if crate::is_root() { "Permission denied" } else { "Read-only file system" }
    );
    // The file below, which is empty, or nothing at all.
    assert_eq!(found[4], if crate::is_root() { "" } else { "Permission denied" }, "{found}");
    assert_eq!(found[5], serde_json::json!([]), "{found}");
    assert_eq!(found[6], serde_json::json!(["hidden"]), "{found}");
}

/// In a mount namespace of its own, so that nothing of it is left.
fn below_as_root_and_as_an_ordinary_user() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let script = r#"
        set -e
        cd "$SANDBOX_TEST_BELOW"
        printf shown > shown
        : > file
        mkdir deep
        printf hidden > deep/elsewhere
        mkdir "a b" own
        mount -t tmpfs none "a b"
        printf x > "a b/hidden"
        mkdir "a b/deeper"
        mount -t tmpfs none "a b/deeper"
        mount -t tmpfs none own
        printf x > own/hidden
        mkdir deep/inner
        mount -t tmpfs none deep/inner
        mount -t tmpfs none deep/inner
        printf x > deep/inner/hidden
        mount --bind deep/elsewhere file
        exec "$@""#;
    let name = "mounts::nested_mounts_are_hidden";
    let user = crate::USER.to_string();
    let as_user = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"];
    for changed in [&[][..], &as_user] {
        fs::remove_dir_all(folder.path()).unwrap();
        fs::create_dir(folder.path()).unwrap();
        let output = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .args(changed)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(BELOW, fs::canonicalize(folder.path()).unwrap())
            .env_remove("HOME")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("1 passed"), "{text}");
    }
}
