use std::{
    ffi::OsString,
    os::unix::{fs::symlink, net::UnixListener},
};

use nix::{mount::MsFlags, sched::CloneFlags};

use super::*;
use crate::config;

fn mount(source: impl Into<PathBuf>, writable: bool) -> Mount {
    Mount { source: source.into(), target: "/data".into(), writable }
}

fn refusal(mount: Mount, places: &Places) -> Option<String> {
    places.check(&mount).err().map(|failure| failure.what)
}

#[test]
fn folders_of_the_host_that_no_server_gets() {
    let places = Places::of_host();
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
        assert!(refusal(mount(source, false), &places).is_some(), "{source}");
    }
    assert_eq!(refusal(mount("/usr/share", false), &places), None);
    assert!(refusal(mount("/usr/share", true), &places).is_some());
}

#[test]
fn links_are_resolved_before_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::of_host();
    for (name, to) in [("a", "/etc"), ("b", "/"), ("c", "/var/run"), ("d", "/proc/self/root")] {
        let link = folder.path().join(name);
        symlink(to, &link).unwrap();
        let why = refusal(mount(&link, false), &places).unwrap();
        assert!(why.contains("which is /"), "{why}");
    }
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    symlink(&data, folder.path().join("link")).unwrap();
    let checked = places.check(&mount(folder.path().join("link"), true)).unwrap();
    assert_eq!(checked, fs::canonicalize(&data).unwrap());
}

#[test]
fn credentials_sockets_and_the_engine_are_refused_wherever_they_are() {
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
        // Whoever makes it has what is looked for there.
        (".netrc", home.join("later/netrc")),
        ("plain/.aws", home.join("plain/empty")),
    ] {
        symlink(to, home.join(link)).unwrap();
    }
    fs::create_dir(home.join("later")).unwrap();
    for theirs in [false, true] {
        let places = match theirs {
            false => Places { home: Some(home.clone()), ..Places::default() },
            true => Places { homes: vec![home.clone()], ..Places::default() },
        };
        let places = places.with_engine([home.join("engine")]);
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
            // By its name alone.
            ("plain/.aws", true),
            ("plain/empty", false),
            ("plain/.config", false),
            // Homes of others are not looked into for what is outside of them.
            ("../../far", !theirs),
            ("../../far/gnupg", !theirs),
        ] {
            let why = refusal(mount(home.join(within), false), &places);
            assert_eq!(why.is_some(), refused, "{within}, another's: {theirs}: {why:?}");
        }
        // It has a link of such a name in it.
        assert!(refusal(mount(home.join("plain"), false), &places).is_some());
    }
}

#[test]
fn a_home_is_one_by_its_link_too() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    fs::create_dir_all(folder.join("data/me/notes")).unwrap();
    fs::create_dir(folder.join("home")).unwrap();
    symlink(folder.join("data/me"), folder.join("home/me")).unwrap();
    let places = Places { homes: vec![folder.join("home/me")], ..Places::default() };
    for (source, refused) in [
        ("home", true),
        ("home/me", true),
        ("data", true),
        ("data/me", true),
        ("data/me/notes", false),
    ] {
        let why = refusal(mount(folder.join(source), true), &places);
        assert_eq!(why.is_some(), refused, "{source}: {why:?}");
    }
}

#[test]
fn what_is_the_proxys_own_is_no_servers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    let at = |name: &str| folder.join(name);
    for within in [
        "real/conf.d",
        "proxy/policies/old",
        "proxy/profiles",
        "proxy/state/known",
        "proxy/notes/sub",
        "proxy/secret",
        "proxy/age",
        "proxy/keys",
        "proxy/tools/lib",
        "records",
        "handed-on",
        "door",
        "hold",
        "kept/token",
        "later/x",
        "shared/policy",
        "shared/profile",
        "dangling",
        "vault",
        "way",
        "secret-ids",
        "login",
        "authority",
        "bin/sub",
        "plain",
    ] {
        fs::create_dir_all(at(within)).unwrap();
    }
    fs::write(at("proxy/secret/token"), "").unwrap();
    for (to, link) in [
        ("real/conf.d", "proxy/more"),
        ("proxy", "alias"),
        ("proxy/state", "proxy/notes/state"),
        // On the way to a secret is a folder that has only a link in it.
        ("kept", "hold/link"),
        // What it leads to is not there yet.
        ("later/x/token", "dangling/token"),
        ("shared/policy/team.cedar", "proxy/policies/team.cedar"),
        ("shared/profile/dev.toml", "proxy/profiles/dev.toml"),
    ] {
        symlink(at(to), at(link)).unwrap();
    }
    let text = "state-dir = 'state'\n\
        policy.paths = ['policies', 'more']\n\
        audit.dir = '../records'\n\
        admin.socket = '../door/admin.sock'\n\
        signers.acme.key = 'keys/acme.pem'\n\
        [[audit.export]]\nname = 'on'\nto = 'file:../handed-on/audit.jsonl'\n\
        [servers.a]\ncommand = ['/bin/true']\n\
        secrets.ONE.from = 'file:secret/token'\n\
        secrets.TWO.from = 'age:age/store#TWO'\n\
        secrets.THREE.from = 'file:../hold/link/token'\n\
        secrets.FOUR.from = 'file:../dangling/token'\n\
        [servers.b]\ncommand = ['./tools/b']\n\
        [servers.c]\nimage = 'c@sha256:0000000000000000000000000000000000000000000000000000000000000000'\n\
        command = ['../plain/c']\n";
    let loaded = config::parse(&at("proxy/portcullis.toml"), text).unwrap();
    fs::write(at("proxy/portcullis.toml"), text).unwrap();
    // Some of the environment are relative to the working folder.
    let up = "../".repeat(std::env::current_dir().unwrap().components().count() - 1);
    let relative = |name: &str| format!("{up}{}", &at(name).to_str().unwrap()[1..]);
    symlink(at("secret-ids"), at("way/vault")).unwrap();
    let path = format!("/usr/bin:{}", at("bin").display());
    let env = |name: &str| {
        Some(OsString::from(match name {
            "VAULT_TOKEN_FILE" => relative("vault/token"),
            "VAULT_SECRET_ID_FILE" => relative("way/vault/secret-id"),
            "VAULT_CACERT" => relative("authority/ca.pem"),
            "DOCKER_CONFIG" => relative("login"),
            "PATH" => path.clone(),
            _ => return None,
        }))
    };
    let places = Places::default().with_own(Arc::new(own::own(&loaded, &env)));
    // Whether it is refused for reading, and for writing.
    for (source, read, write) in [
        ("", true, true),
        ("proxy", true, true),
        ("alias", true, true),
        ("proxy/portcullis.toml", true, true),
        ("proxy/state", true, true),
        ("proxy/state/known", true, true),
        ("proxy/notes/state", true, true),
        ("proxy/policies", true, true),
        ("proxy/profiles", true, true),
        ("proxy/policies/old", true, true),
        ("real", true, true),
        ("real/conf.d", true, true),
        ("records", true, true),
        ("handed-on", true, true),
        ("door", true, true),
        ("proxy/secret", true, true),
        ("proxy/secret/token", true, true),
        ("proxy/age", true, true),
        ("hold", true, true),
        ("kept", true, true),
        ("kept/token", true, true),
        ("dangling", true, true),
        ("later", true, true),
        ("later/x", true, true),
        ("shared", true, true),
        ("shared/policy", true, true),
        ("shared/profile", true, true),
        ("vault", true, true),
        ("way", true, true),
        ("secret-ids", true, true),
        ("login", true, true),
        ("authority", false, true),
        ("bin", false, true),
        ("bin/sub", false, true),
        ("proxy/tools", false, true),
        ("proxy/tools/lib", false, false),
        ("proxy/keys", false, true),
        ("proxy/notes", false, false),
        ("proxy/notes/sub", false, false),
        ("alias/notes", false, false),
        ("plain", false, false),
    ] {
        for (writable, refused) in [(false, read), (true, write)] {
            let why = refusal(mount(at(source), writable), &places);
            assert_eq!(why.is_some(), refused, "{source}, writable: {writable}: {why:?}");
        }
    }
    let failure = places.check(&mount(at("proxy"), false)).unwrap_err();
    assert!(failure.what.contains("the proxy's config, "), "{failure:?}");
    assert!(failure.remedy.is_some_and(|remedy| remedy.contains("`state-dir`")));
}

#[test]
fn variables_that_are_empty_name_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let loaded = config::parse(&folder.path().join("portcullis.toml"), "").unwrap();
    let named = own::own(&loaded, &|_| Some(OsString::new()));
    let none = own::own(&loaded, &|_| None);
    assert_eq!(named, none);
    let here = std::env::current_dir().unwrap();
    let nowhere = Places::default().with_own(Arc::new(named));
    assert!(nowhere.shows(&Chain::of(&here.join("tests")), true).is_none());
}

#[test]
fn links_out_of_the_folders_of_policies_and_profiles_are_those_of_now() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    for within in ["proxy", "shared"] {
        fs::create_dir(folder.join(within)).unwrap();
    }
    let loaded = config::parse(&folder.join("proxy/portcullis.toml"), "").unwrap();
    let places = Places::default().with_own(OwnPlaces::of(&loaded).now());
    let shared = || refusal(mount(folder.join("shared"), false), &places);
    for (within, link) in [("policies", "team.cedar"), ("profiles", "dev.toml")] {
        assert_eq!(shared(), None);
        let within = folder.join("proxy").join(within);
        fs::create_dir(&within).unwrap();
        assert_eq!(shared(), None);
        symlink(folder.join("shared").join(link), within.join(link)).unwrap();
        assert!(shared().is_some(), "{link}");
        fs::remove_file(within.join(link)).unwrap();
        // Where it can't be listed, nobody knows.
        fs::remove_dir(&within).unwrap();
        symlink(&within, &within).unwrap();
        let why = shared().unwrap();
        assert!(why.contains("can't be seen"), "{why}");
        fs::remove_file(&within).unwrap();
    }
}

#[test]
fn folders_of_the_host_are_known_by_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mounted = |from: &str, to: &Path| {
        fs::create_dir(to).unwrap();
        nix::mount::mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    };
    // For this thread alone, and its end is theirs.
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
                let why = refusal(mount(at(name), writable), &Places::default());
                assert!(why.is_some(), "{from}");
            }
            assert_eq!(refusal(mount(at("usr"), false), &Places::default()), None);
        });
    });
}

#[test]
fn mounts_of_a_config_are_told_by_their_lines() {
    let path = Path::new("/folder/portcullis.toml");
    let text = "[servers.a]\ncommand = ['/bin/true']\nmounts = ['/usr/share:/a', '/etc:/b']\n\
        [servers.b]\nimage = 'b'\npod-socket = '/x/socket'\nmounts = ['/etc:/b']\n";
    let loaded = config::parse(path, text).unwrap();
    let refused = Places::default().refused_of(&loaded);
    let [finding] = refused.as_slice() else { panic!("{refused:?}") };
    assert_eq!(finding.position(), Some((3, 28)), "{finding:?}");
    // For what is the proxy's own alone, as far as it is there.
    let own = |text: &str| {
        let loaded = config::parse(path, text).unwrap();
        Places::default().with_own(OwnPlaces::of(&loaded).now())
    };
    assert!(own("").showing_of(&loaded).is_empty());
    let showing = own("state-dir = '/etc/ssl'").showing_of(&loaded);
    assert_eq!(showing.iter().map(config::Finding::position).collect::<Vec<_>>(), [Some((3, 28))]);
}

#[test]
fn the_config_that_is_followed_counts_beside_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portcullis.toml");
    let with = |dir: &str| config::parse(&path, &format!("state-dir = '{dir}'")).unwrap();
    let own = OwnPlaces::of(&with("one"));
    own.follow(own.with(&with("two")));
    own.follow(own.with(&with("three")));
    let places = Places::default().with_own(own.now());
    for (name, refused) in [("one", true), ("two", false), ("three", true)] {
        fs::create_dir(folder.path().join(name)).unwrap();
        let why = refusal(mount(folder.path().join(name), false), &places);
        assert_eq!(why.is_some(), refused, "{name}: {why:?}");
    }
}
