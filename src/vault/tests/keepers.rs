//! Secret stores: Debian's programs, and stand-ins for programs that are not available.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::{fs, process::Command, time::Duration};

use support::{Outcome, fetch, fetcher, script, value};

/// `docker-credential-NAME` in a temporary folder, as a shell script.
fn helper(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    script(&dir.path().join("docker-credential-fake"), text);
    dir
}

fn path_with(dir: &tempfile::TempDir) -> String {
    format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap())
}

#[test]
fn credential_helper_gets_the_url_and_returns_its_secret() {
    let dir = helper(
        r#"[ "$1" = get ] || exit 3
read -r url
[ "$url" = https://x.example/v1/ ] || { echo 'credentials not found in native keychain'; exit 1; }
printf '{"ServerURL":"%s","Username":"me","Secret":"%s"}\n' "$url" "$VALUE""#,
    );
    let value = value("2\\n\\\"x");
    let env = [("PATH", path_with(&dir)), ("VALUE", value.clone())];
    let found = fetch("docker-credential:fake/https://x.example/v1/", &env);
    assert_eq!(found, Outcome::Value(value.replace("\\n", "\n").replace("\\\"", "\"")));
    fetch("docker-credential:fake/https://y.example", &env).failed("has no credentials for this");
    fetch("docker-credential:none-such/https://x.example", &env).failed("is not in PATH");
}

#[test]
fn output_of_a_broken_helper_is_not_repeated() {
    let value = value("2");
    for (text, what) in [
        ("echo $VALUE; echo $VALUE >&2; exit 1", "exit code 1"),
        ("echo $VALUE", "does not follow the protocol"),
        ("echo \"{\\\"Secret\\\":\\\"\\\",\\\"x\\\":\\\"$VALUE\\\"}\"", "is empty"),
        ("yes $VALUE", "more than 64 KiB"),
        ("echo $VALUE; kill -9 $$", "ended by a signal"),
    ] {
        let dir = helper(text);
        let env = [("PATH", path_with(&dir)), ("VALUE", value.clone())];
        let error = fetch("docker-credential:fake/u", &env).failed(what);
        assert!(!error.contains(&value), "{error}");
    }
}

#[test]
fn hanging_helper_is_killed_with_its_children() {
    let dir = helper("echo $$ > \"$0.pid\"; sleep 1000 & echo $! >> \"$0.pid\"; wait");
    let env = [("PATH", path_with(&dir))];
    fetch("docker-credential:fake/u", &env).failed("after 20 s");
    let pids = fs::read_to_string(dir.path().join("docker-credential-fake.pid")).unwrap();
    assert_eq!(pids.lines().count(), 2);
    for pid in pids.lines() {
        support::until(Duration::from_secs(10), || {
            // A killed process may still wait to be reaped.
            match fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")),
                Err(_) => true,
            }
        });
    }
}

#[test]
fn docker_pass_is_asked_for_one_secret() {
    // A stand-in, because the plugin needs Docker's own packages. It answers as the plugin's source
    // does.
    let dir = tempfile::tempdir().unwrap();
    script(
        &dir.path().join("docker"),
        r#"[ "$*" = "pass get --reveal app/token" ] || exit 1
printf 'ID: app/token\nValue: %s\n' "$VALUE""#,
    );
    let value = value("2\nand more\n");
    let env = [("PATH", path_with(&dir)), ("VALUE", value.clone())];
    assert_eq!(fetch("docker-pass:app/token", &env), Outcome::Value(value.clone()));
    fetch("docker-pass:app/other", &env).failed("`docker pass` failed with exit code 1");
    script(&dir.path().join("docker"), "echo $VALUE");
    let error = fetch("docker-pass:app/token", &env).failed("answered in an unknown format");
    assert!(!error.contains("hunter"), "{error}");
}

#[test]
fn debians_pass_helper_returns_its_secret() {
    let dir = tempfile::Builder::new().prefix("p").tempdir_in("/tmp").unwrap();
    let home = dir.path().to_str().unwrap().to_owned();
    let env = [
        ("GNUPGHOME", format!("{home}/gpg")),
        ("PASSWORD_STORE_DIR", format!("{home}/store")),
        ("HOME", home.clone()),
        ("VALUE", value("2")),
        ("FETCH", fetcher()),
    ];
    let done = Command::new("bash")
        .args([
            "-euc",
            r#"mkdir -m 700 "$GNUPGHOME"
trap 'gpgconf --kill all' EXIT
gpg --batch --quiet --pinentry-mode loopback --passphrase '' --quick-gen-key nobody@x.example >&2
pass init nobody@x.example >&2
printf '{"ServerURL":"https://x.example","Username":"me","Secret":"%s"}' "$VALUE" |
    docker-credential-pass store
"$FETCH" docker-credential:pass/https://x.example
"$FETCH" docker-credential:pass/https://y.example || true"#,
        ])
        .envs(env)
        .output()
        .unwrap();
    let (out, error) =
        (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(out.starts_with(&format!("{}\n", value("2"))), "{out}{error}");
    // This helper prints nothing for an unknown server.
    assert!(
        out.contains("the secret of `docker-credential:pass/https://y.example` is empty"),
        "{out}"
    );
}

#[test]
fn desktop_keyring_item_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let done = Command::new("dbus-run-session")
        .args([
            "--",
            "bash",
            "-euc",
            r#"eval "$(printf pw | gnome-keyring-daemon --unlock --components=secrets 2>/dev/null)"
printf '%s' "$VALUE" | secret-tool store --label=test service "https://x.example/a" username me
"$FETCH" keyring:https://x.example/a/me
"$FETCH" keyring:https://x.example/a/you || true
"$FETCH" docker-credential:secretservice/https://z.example || true"#,
        ])
        .env("HOME", dir.path())
        .env("XDG_RUNTIME_DIR", dir.path())
        .env("XDG_DATA_HOME", dir.path())
        .env("VALUE", value("2\nand more"))
        .env("FETCH", fetcher())
        .output()
        .unwrap();
    let (out, error) =
        (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(out.starts_with(&format!("{}\n", value("2\nand more"))), "{out}{error}");
    assert!(out.contains("does not have this item"), "{out}{error}");
    assert!(out.contains("has no credentials for this server"), "{out}{error}");
}

#[test]
fn keyring_that_does_not_run_is_reported() {
    let env = [("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent".to_owned())];
    fetch("keyring:a/b", &env).failed("does not run in this session");
}

#[test]
fn kernel_keys_are_read_unless_expired_or_revoked() {
    let done = Command::new("keyctl")
        .args([
            "session",
            "-",
            "bash",
            "-euc",
            r#"printf '%s' "$VALUE" | keyctl padd user portcullis:test @s >&2
"$FETCH" keyctl:portcullis:test
"$FETCH" keyctl:portcullis:other || true
keyctl revoke "$(keyctl search @s user portcullis:test)" >&2
"$FETCH" keyctl:portcullis:test || true"#,
        ])
        .env("VALUE", value("2"))
        .env("FETCH", fetcher())
        .output()
        .unwrap();
    let (out, error) =
        (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(out.starts_with(&format!("{}\n", value("2"))), "{out}{error}");
    assert!(out.contains("does not have this key"), "{out}{error}");
    assert!(out.contains("was revoked"), "{out}{error}");
}
