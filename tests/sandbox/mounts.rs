//! What of the host is shown.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use portcullis::upstream::process::Mount;

use crate::harness::{launch, mount, python, run};

#[tokio::test]
async fn mounts_are_read_only_unless_they_are_writable_and_hold_no_programs_then() {
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
async fn what_holds_secrets_or_the_host_is_not_mounted() {
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
async fn a_link_within_a_mount_leads_no_other_mount_astray() {
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
