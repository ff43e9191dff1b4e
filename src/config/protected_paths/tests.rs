use std::{ffi::OsString, fs, os::unix::fs::symlink};

use portcullis_runtime::ProtectedPaths;

use super::*;
use crate::parse;

fn mount(source: impl Into<PathBuf>, writable: bool) -> Mount {
    Mount { source: source.into(), target: "/data".into(), writable }
}

fn refusal(mount: Mount, mount_policy: &MountPolicy) -> Option<String> {
    mount_policy.check(&mount).err().map(|failure| failure.what)
}

#[test]
fn paths_of_the_proxy_are_refused_for_servers() {
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
        // A folder with only a link is on the path to a secret.
        ("kept", "hold/link"),
        // The link's target does not exist yet.
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
    let loaded = parse(&at("proxy/portcullis.toml"), text).unwrap();
    fs::write(at("proxy/portcullis.toml"), text).unwrap();
    // Some paths of the environment are relative to the working folder.
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
    let mount_policy = MountPolicy::default().with_own(Arc::new(collect(&loaded, &env)));
    // Whether reading is refused, and writing.
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
            let why = refusal(mount(at(source), writable), &mount_policy);
            assert_eq!(why.is_some(), refused, "{source}, writable: {writable}: {why:?}");
        }
    }
    let failure = mount_policy.check(&mount(at("proxy"), false)).unwrap_err();
    assert!(failure.what.contains("the proxy's config, "), "{failure:?}");
    assert!(failure.remedy.is_some_and(|remedy| remedy.contains("`state-dir`")));
}

#[test]
fn empty_variables_protect_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let loaded = parse(&folder.path().join("portcullis.toml"), "").unwrap();
    let named = collect(&loaded, &|_| Some(OsString::new()));
    let none = collect(&loaded, &|_| None);
    assert_eq!(named, none);
    let here = std::env::current_dir().unwrap();
    let nowhere = MountPolicy::default().with_own(Arc::new(named));
    assert!(nowhere.exposes(&mount(here, true)).is_none());
}

#[test]
fn links_in_policy_and_profile_folders_are_followed_as_they_are_now() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    for within in ["proxy", "shared"] {
        fs::create_dir(folder.join(within)).unwrap();
    }
    let loaded = parse(&folder.join("proxy/portcullis.toml"), "").unwrap();
    let mount_policy = MountPolicy::default().with_own(Arc::new(protected_paths(&loaded)));
    let shared = || refusal(mount(folder.join("shared"), false), &mount_policy);
    for (within, link) in [("policies", "team.cedar"), ("profiles", "dev.toml")] {
        assert_eq!(shared(), None);
        let within = folder.join("proxy").join(within);
        fs::create_dir(&within).unwrap();
        assert_eq!(shared(), None);
        symlink(folder.join("shared").join(link), within.join(link)).unwrap();
        assert!(shared().is_some(), "{link}");
        fs::remove_file(within.join(link)).unwrap();
        // If the folder cannot be listed, its links are unknown.
        fs::remove_dir(&within).unwrap();
        symlink(&within, &within).unwrap();
        let why = shared().unwrap();
        assert!(why.contains("cannot be resolved"), "{why}");
        fs::remove_file(&within).unwrap();
    }
}

#[test]
fn refused_mounts_have_their_lines() {
    let path = Path::new("/folder/portcullis.toml");
    let text = "[servers.a]\ncommand = ['/bin/true']\nmounts = ['/usr/share:/a', '/etc:/b']\n\
        [servers.b]\nimage = 'b'\npod-socket = '/x/socket'\nmounts = ['/etc:/b']\n";
    let loaded = parse(path, text).unwrap();
    let refused = refused_mounts(&MountPolicy::default(), &loaded);
    let [finding] = refused.as_slice() else { panic!("{refused:?}") };
    assert_eq!(finding.position(), Some((3, 28)), "{finding:?}");
    // Only for paths of the proxy that exist.
    let own = |text: &str| {
        let loaded = parse(path, text).unwrap();
        MountPolicy::default().with_own(Arc::new(protected_paths(&loaded)))
    };
    assert!(exposing_mounts(&own(""), &loaded).is_empty());
    let showing = exposing_mounts(&own("state-dir = '/etc/ssl'"), &loaded);
    assert_eq!(showing.iter().map(Finding::position).collect::<Vec<_>>(), [Some((3, 28))]);
}

#[test]
fn paths_of_the_first_and_the_present_config_are_protected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("portcullis.toml");
    let with = |dir: &str| parse(&path, &format!("state-dir = '{dir}'")).unwrap();
    let own = ProtectedPaths::new(protected_paths(&with("one")));
    own.follow(own.with(protected_paths(&with("two"))));
    own.follow(own.with(protected_paths(&with("three"))));
    let mount_policy = MountPolicy::default().with_own(own.now());
    for (name, refused) in [("one", true), ("two", false), ("three", true)] {
        fs::create_dir(folder.path().join(name)).unwrap();
        let why = refusal(mount(folder.path().join(name), false), &mount_policy);
        assert_eq!(why.is_some(), refused, "{name}: {why:?}");
    }
}
