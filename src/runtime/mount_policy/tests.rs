use std::os::unix::{fs::symlink, net::UnixListener};

use nix::{mount::MsFlags, sched::CloneFlags};

use super::*;

fn mount(source: impl Into<PathBuf>, writable: bool) -> Mount {
    Mount { source: source.into(), target: "/data".into(), writable }
}

fn refusal(mount: Mount, mount_policy: &MountPolicy) -> Option<String> {
    mount_policy.check(&mount).err().map(|failure| failure.what)
}

#[test]
fn host_system_folders_are_refused() {
    let mount_policy = MountPolicy::of_host();
    for source in [
        "/",
        "/proc",
        "/proc/self",
        "/sys",
        "/dev",
        "/dev/null",
        "/dev/shm",
        "/etc",
        "/etc/ssl",
        "/etc/passwd",
        "/run",
        "/var/run",
        "/var",
        "/var/lib",
        "/root",
        "/home",
        "/boot",
        "/tmp",
        "/var/tmp",
        "-v",
        "relative",
        "",
        "/no/such/folder",
        "/tmp/../etc",
        "/proc/1/root",
        "/usr/../root",
    ] {
        assert!(refusal(mount(source, false), &mount_policy).is_some(), "{source}");
    }
    assert_eq!(refusal(mount("/usr/share", false), &mount_policy), None);
    assert!(refusal(mount("/usr/share", true), &mount_policy).is_some());
}

#[test]
fn links_are_resolved_before_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let mount_policy = MountPolicy::of_host();
    for (name, to) in [("a", "/etc"), ("b", "/"), ("c", "/var/run"), ("d", "/proc/self/root")] {
        let link = folder.path().join(name);
        symlink(to, &link).unwrap();
        let why = refusal(mount(&link, false), &mount_policy).unwrap();
        assert!(why.contains("which is /"), "{why}");
    }
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    symlink(&data, folder.path().join("link")).unwrap();
    let checked = mount_policy.check(&mount(folder.path().join("link"), true)).unwrap();
    assert_eq!(checked, fs::canonicalize(&data).unwrap());
}

#[test]
fn credentials_sockets_and_engine_data_are_refused_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home/me");
    for within in [
        ".ssh",
        "project/.aws",
        ".config/gh",
        ".local/share/docker",
        "plain/empty/.local/share",
        "plain/.config",
        "engine",
        "dotfiles/kube",
    ] {
        fs::create_dir_all(home.join(within)).unwrap();
    }
    let _socket = UnixListener::bind(home.join("plain/agent.sock")).unwrap();
    fs::create_dir_all(folder.path().join("far/gnupg")).unwrap();
    for (link, to) in [
        (".kube", home.join("dotfiles/kube")),
        (".gnupg", folder.path().join("far/gnupg")),
        // A server that created it would find credentials there later.
        (".netrc", home.join("later/netrc")),
        ("plain/.aws", home.join("plain/empty")),
    ] {
        symlink(to, home.join(link)).unwrap();
    }
    fs::create_dir(home.join("later")).unwrap();
    for theirs in [false, true] {
        let mount_policy = match theirs {
            false => MountPolicy { home: Some(home.clone()), ..MountPolicy::default() },
            true => MountPolicy { homes: vec![home.clone()], ..MountPolicy::default() },
        };
        let mount_policy = mount_policy.with_engine([home.join("engine")]);
        for (within, refused) in [
            ("", true),
            ("..", true),
            (".ssh", true),
            ("project", true),
            ("project/.aws", true),
            (".config", true),
            (".config/gh", true),
            (".local", true),
            (".local/share/docker", true),
            ("plain/agent.sock", true),
            ("engine", true),
            ("dotfiles", true),
            ("dotfiles/kube", true),
            ("later", true),
            // Refused by its name only.
            ("plain/.aws", true),
            ("plain/empty", false),
            ("plain/.config", false),
            // Other users' homes are not searched for links to the outside.
            ("../../far", !theirs),
            ("../../far/gnupg", !theirs),
        ] {
            let why = refusal(mount(home.join(within), false), &mount_policy);
            assert_eq!(why.is_some(), refused, "{within}, another's: {theirs}: {why:?}");
        }
        // It contains a link with such a name.
        assert!(refusal(mount(home.join("plain"), false), &mount_policy).is_some());
    }
}

#[test]
fn home_is_recognized_through_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    fs::create_dir_all(folder.join("data/me/notes")).unwrap();
    fs::create_dir(folder.join("home")).unwrap();
    symlink(folder.join("data/me"), folder.join("home/me")).unwrap();
    let mount_policy =
        MountPolicy { homes: vec![folder.join("home/me")], ..MountPolicy::default() };
    for (source, refused) in [
        ("home", true),
        ("home/me", true),
        ("data", true),
        ("data/me", true),
        ("data/me/notes", false),
    ] {
        let why = refusal(mount(folder.join(source), true), &mount_policy);
        assert_eq!(why.is_some(), refused, "{source}: {why:?}");
    }
}

#[test]
fn host_folders_are_recognized_under_other_mounts() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mounted = |from: &str, to: &Path| {
        fs::create_dir(to).unwrap();
        nix::mount::mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    };
    // The mount namespace of this thread only, which ends with it.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if nix::sched::unshare(CloneFlags::CLONE_NEWNS).is_err() {
                eprintln!("only root can mount a folder elsewhere");
                return;
            }
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            for (name, from, writable) in [("usr", "/usr", true), ("tmp", "/var/tmp", false)] {
                mounted(from, &at(name)).unwrap();
                let why = refusal(mount(at(name), writable), &MountPolicy::default());
                assert!(why.is_some(), "{from}");
            }
            assert_eq!(refusal(mount(at("usr"), false), &MountPolicy::default()), None);
        });
    });
}
