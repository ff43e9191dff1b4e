//! `portcullis doctor` on this machine.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    process::Command,
};

use serde_json::Value;

use crate::harness::PORTCULLIS;

/// Runs it with a config. Returns its checks by name, and the exit code.
pub fn doctor(folder: &Path, config: &str) -> (Vec<(String, String, String)>, i32) {
    let file = folder.join("portcullis.toml");
    fs::write(&file, config).unwrap();
    let output = Command::new(PORTCULLIS)
        .args(["doctor", "--format", "json", "-c"])
        .arg(&file)
        .env("HOME", folder)
        .output()
        .unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let code = output.status.code().unwrap();
    assert_eq!(found["ok"], code == 0);
    let text = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
    let checks = found["checks"].as_array().unwrap().iter().map(|check| {
        assert_eq!(check["status"] == "ok", check["remedy"].is_null(), "{check}");
        (text(check, "name"), text(check, "status"), text(check, "detail"))
    });
    (checks.collect(), code)
}

fn status<'a>(checks: &'a [(String, String, String)], name: &str) -> &'a str {
    checks.iter().find(|(n, ..)| n == name).map_or("absent", |(_, status, _)| status)
}

#[test]
fn doctor_passes_on_a_working_machine() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("policies")).unwrap();
    let policy = "@id(\"all\")\npermit (principal, action, resource);\n";
    fs::write(folder.path().join("policies/all.cedar"), policy).unwrap();
    let (checks, code) = doctor(folder.path(), "[listen]\nhttp = \"127.0.0.1:0\"\n");
    for name in ["kernel", "namespaces", "seccomp", "config", "state", "port"] {
        assert_eq!(status(&checks, name), "ok", "{checks:?}");
    }
    for name in ["policies", "landlock", "engine"] {
        assert!(["ok", "warn"].contains(&status(&checks, name)), "{checks:?}");
    }
    assert_eq!(code, 0);
}

#[test]
fn doctor_reports_problems() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    fs::create_dir(folder.path().join("policies")).unwrap();
    fs::write(folder.path().join("policies/broken.cedar"), "permit (").unwrap();
    fs::write(folder.path().join("state"), "a file").unwrap();
    let config = format!(
        "state-dir = \"state\"\n\
         [listen]\nhttp = \"{}\"\n\
         [engine]\nhost = \"unix:///no/such/engine.sock\"\n\
         [servers.a]\nimage = \"sha256:{}\"\n\
         secrets = {{ TOKEN = {{ from = \"env:PORTCULLIS_TEST_SURELY_UNSET\" }} }}\n",
        taken.local_addr().unwrap(),
        "0".repeat(64),
    );
    let (checks, code) = doctor(folder.path(), &config);
    for name in ["state", "port", "policies", "engine"] {
        assert_eq!(status(&checks, name), "fail", "{checks:?}");
    }
    assert_eq!(status(&checks, "secrets"), "warn", "{checks:?}");
    assert_eq!(code, 11);

    let (checks, code) = doctor(folder.path(), "[listen]\nhtpp = 1\n");
    let (_, status, detail) = checks.iter().find(|(name, ..)| name == "config").unwrap();
    assert!(status == "fail" && detail.contains("portcullis.toml:2:1"), "{checks:?}");
    assert_eq!(code, 11);
}

#[test]
fn doctor_warns_about_engine_access_of_users() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("engine.sock");
    let _engine = UnixListener::bind(&socket).unwrap();
    let config = format!(
        "[listen]\nhttp = \"127.0.0.1:0\"\n[engine]\nhost = \"unix://{}\"\n",
        socket.display()
    );
    for (mode, grade) in [(0o660, "warn"), (0o600, "ok")] {
        fs::set_permissions(&socket, fs::Permissions::from_mode(mode)).unwrap();
        // Root makes its servers another user, so that there is nothing to say.
        let grade = if crate::is_root() { "absent" } else { grade };
        let (checks, _) = doctor(folder.path(), &config);
        assert_eq!(status(&checks, "user"), grade, "{checks:?}");
    }
}
