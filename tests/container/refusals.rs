//! Refused launches and their errors.

use std::{os::unix::fs::symlink, path::PathBuf};

use portcullis_runtime::{
    config::{Hardening, Resources},
    mount::Mount,
};
use portcullis_vault::Secret;

use crate::support::{bash, count, engine, spec};

#[tokio::test]
async fn invalid_image_names_are_refused_with_a_remedy() {
    let engine = engine().await;
    let zeros = "0".repeat(64);
    for (image, what, remedy) in [
        ("".to_owned(), "is not an image name: it is empty", "NAME@sha256:DIGEST"),
        ("--privileged".into(), "begins with `-`", "NAME@sha256:DIGEST"),
        ("Not An Image".into(), "is not an image name", "NAME@sha256:DIGEST"),
        ("sha256:123".into(), "an image id is", "NAME@sha256:DIGEST"),
        ("x@sha256:123".into(), "a digest is", "NAME@sha256:DIGEST"),
        ("no-such-image:1".into(), "named by a tag", "NAME@sha256:DIGEST"),
        ("no-such-image".into(), "named by a tag", "NAME@sha256:DIGEST"),
        (format!("sha256:{zeros}"), "is not on this engine", "docker images"),
        (
            format!("example.invalid/x@sha256:{zeros}"),
            "is not on this engine",
            "portcullis server pull",
        ),
    ] {
        let spec = spec(image.clone(), &[]);
        let refused = engine.launch(&spec).await.unwrap_err();
        assert!(refused.what.contains(what), "{image}: {}", refused.what);
        let told = refused.remedy.unwrap_or_default();
        assert!(told.contains(remedy), "{image}: {told}");
        assert_eq!(count(&engine, &spec.instance).await, 0);
    }
    let mut none = spec("", &[]);
    none.image = None;
    assert!(engine.launch(&none).await.unwrap_err().what.contains("no image"));
}

#[tokio::test]
async fn host_folders_are_refused_as_mounts() {
    let engine = engine().await;
    let image = bash(&engine).await;
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("innocent");
    symlink("/var/run", &link).unwrap();
    let socket = PathBuf::from(engine.version().host.trim_start_matches("unix://"));
    for source in [
        socket,
        link,
        "/".into(),
        "/proc".into(),
        "/sys".into(),
        "/etc".into(),
        "/dev".into(),
        "/root".into(),
        "/root/.ssh".into(),
        "/var/run".into(),
        "/var/lib/docker".into(),
        "/home".into(),
        "-v".into(),
        "relative".into(),
        folder.path().join("absent"),
    ] {
        let mut spec = spec(image.clone(), &["-c", "read"]);
        spec.mounts =
            vec![Mount { source: source.clone(), target: "/data".into(), writable: false }];
        let refused = engine.launch(&spec).await.unwrap_err();
        assert!(refused.remedy.is_some(), "{}", refused.what);
        assert_eq!(count(&engine, &spec.instance).await, 0, "{}", source.display());
    }
}

/// A change to a default launch, and words of its refusal.
type Change = (fn(&mut Hardening, &mut Resources), &'static str);

#[tokio::test]
async fn illegal_settings_are_refused() {
    let engine = engine().await;
    let image = bash(&engine).await;
    let changes: [Change; 12] = [
        (|h, _| h.user = Some("root".into()), "not UID:GID"),
        (|h, _| h.user = Some("-1:0".into()), "not UID:GID"),
        (|h, _| h.user = Some("0".into()), "not UID:GID"),
        (|h, _| h.cap_add = vec!["ALL".into()], "not a capability"),
        (|h, _| h.cap_add = vec!["--privileged".into()], "not a capability"),
        (|h, _| h.cap_add = vec!["CAP_CAP_CHOWN".into()], "not a capability"),
        (|_, r| r.memory_mib = 0, "cannot have a memory limit"),
        (|_, r| r.memory_mib = u64::MAX, "cannot have a memory limit"),
        (|_, r| r.cpus = 0.0, "cannot have a limit"),
        (|_, r| r.cpus = f64::NAN, "cannot have a limit"),
        (|_, r| r.cpus = -1.0, "cannot have a limit"),
        (|_, r| r.pids = 0, "cannot have a limit of 0 processes"),
    ];
    for (change, what) in changes {
        let mut spec = spec(image.clone(), &[]);
        change(&mut spec.hardening, &mut spec.resources);
        let refused = engine.launch(&spec).await.unwrap_err();
        assert!(refused.what.contains(what), "{}", refused.what);
    }
}

#[tokio::test]
async fn failed_launch_leaves_nothing_and_shows_no_secret() {
    let engine = engine().await;
    let folder = tempfile::tempdir().unwrap();
    let secret = ["very", "hidden", "value"].concat();
    // A folder over a file: the engine finds out when it starts the container.
    let mut start = spec(bash(&engine).await, &["-c", "read"]);
    start.mounts = vec![Mount {
        source: folder.path().to_owned(),
        target: "/etc/passwd".into(),
        writable: false,
    }];
    // More processors than any machine has: the engine finds out when it creates it.
    let mut create = spec(bash(&engine).await, &["-c", "read"]);
    create.resources.cpus = 1024.0;
    for (mut spec, what) in [(start, "did not start"), (create, "did not create")] {
        spec.secrets = vec![("TOKEN".into(), Secret::new(secret.clone()))];
        let refused = engine.launch(&spec).await.unwrap_err();
        assert!(refused.what.contains(what), "{}", refused.what);
        assert!(!format!("{refused:?}").contains(&secret));
        crate::support::wait_until_gone(&engine, &spec.instance).await;
    }
}
