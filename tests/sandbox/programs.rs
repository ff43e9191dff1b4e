//! Programs that run, and failed starts.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::{Command, Stdio},
};

use crate::harness::{PORTCULLIS, installed, launch, mount, python, run, run_with, spec};

const REFUSED: &str = "PORTCULLIS_TEST_REFUSED";

#[tokio::test]
async fn streams_and_exit_code_are_forwarded() {
    let text = "import sys; d = sys.stdin.read(); print(d.upper(), end=''); print('e', file=sys.stderr); sys.exit(7)";
    let input = "abc\n".repeat(100_000);
    let run = run_with(&python(text), &input).await;
    assert_eq!(run.stdout, input.to_uppercase());
    assert_eq!(run.stderr, "e\n");
    assert_eq!((run.exit.code, run.exit.reason), (7, None));
    let killed = run_with(&python("import os; os.kill(os.getpid(), 9)"), "").await;
    assert_eq!(killed.exit.code, 137);
    assert_eq!(killed.exit.reason.as_deref(), Some("ended by SIGKILL"));
}

#[tokio::test]
async fn python_node_and_own_programs_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let version = run(&spec(&["portcullis", "--version"])).await;
    assert!(version.stdout.starts_with("portcullis "), "{version:?}");
    let hello = serde_json::json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18", "capabilities": {},
            "clientInfo": { "name": "test", "version": "0" },
        },
    });
    let notes = spec(&["portcullis", "example-server", "notes"]);
    let notes = run_with(&notes, &format!("{hello}\n")).await;
    assert!(notes.stdout.contains(r#""protocolVersion""#), "{notes:?}");

    let environment = folder.join("venv");
    let made = Command::new("/usr/bin/python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(&environment)
        .status()
        .unwrap();
    assert!(made.success());
    let script = environment.join("bin/server");
    let python = environment.join("bin/python3");
    fs::write(
        &script,
        format!("#!{}\nimport sys, ssl, sqlite3; print(sys.prefix)\n", python.display()),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    // By itself, and by a mount.
    let mut mounted = spec(&[&script.display().to_string()]);
    let alone = run(&mounted).await;
    assert_eq!(alone.stdout.trim(), environment.display().to_string(), "{alone:?}");
    mounted.mounts = vec![mount(&folder, folder.to_str().unwrap(), false)];
    assert_eq!(run(&mounted).await.stdout, alone.stdout);

    if installed("node").is_some() {
        let package = folder.join("node_modules/hello");
        fs::create_dir_all(&package).unwrap();
        fs::create_dir_all(folder.join("node_modules/.bin")).unwrap();
        let text = "#!/usr/bin/env node\nimport os from 'node:os'; console.log('node', os.cpus().length > 0, (await fetch('data:,x')).status)\n";
        fs::write(package.join("index.mjs"), text).unwrap();
        fs::set_permissions(package.join("index.mjs"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("../hello/index.mjs", folder.join("node_modules/.bin/hello")).unwrap();
        let hello = folder.join("node_modules/.bin/hello").display().to_string();
        let found = run(&spec(&[&hello])).await;
        assert_eq!(found.stdout.trim(), "node true 200", "{found:?}");
        let mut inside = spec(&["node", "/app/hello/index.mjs"]);
        inside.mounts = vec![mount(&folder.join("node_modules"), "/app", false)];
        let found = run(&inside).await;
        assert_eq!(found.stdout.trim(), "node true 200", "{found:?}");
    }
}

#[tokio::test]
async fn failed_start_has_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    fs::write(folder.join("not-executable"), "#!/bin/sh\n").unwrap();
    fs::write(folder.join("no-interpreter"), "#!/no/such/interpreter\n").unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    for (command, words) in [
        (vec![], "`command` is missing"),
        (vec!["no-such-program".to_owned()], "`no-such-program`"),
        (vec!["/usr/bin".to_owned()], "`/usr/bin` can't be executed"),
        (vec![file("not-executable")], "not-executable` can't be executed: Permission denied"),
        (vec![file("no-interpreter")], "`/no/such/interpreter`"),
        (vec![file("absent")], "No such file"),
    ] {
        let mut spec = spec(&[]);
        spec.command = command;
        let failure = launch(&spec).await.unwrap_err();
        assert!(failure.what.contains(words), "{failure:?}");
    }
    let mut capable = python("");
    capable.hardening.cap_add = vec!["CAP_NET_ADMIN".into()];
    assert!(launch(&capable).await.unwrap_err().what.contains("cap-add"));
    let mut root = python("");
    root.hardening.user = Some("0:0".into());
    assert!(launch(&root).await.unwrap_err().what.contains("`0:0`"));
    // Somebody who tries the hidden verb.
    let output =
        Command::new(PORTCULLIS).arg("sandbox-exec").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
}

#[tokio::test]
async fn nothing_runs_without_user_namespaces() {
    if std::env::var_os(REFUSED).is_some() {
        let failure = launch(&python("print('ran')")).await.unwrap_err();
        assert!(failure.what.contains("user namespace"), "{failure:?}");
        assert!(failure.remedy.unwrap().contains("user.max_user_namespaces"));
        let folder = tempfile::tempdir().unwrap();
        let (checks, _) =
            crate::doctor::doctor(folder.path(), "[engine]\nhost = \"unix:///none\"\n");
        let (_, status, detail) = checks.iter().find(|(name, ..)| name == "sandbox").unwrap();
        assert!(status == "fail" && detail.contains("user namespace"), "{checks:?}");
        return;
    }
    // The number of namespaces can be limited within one of them, where it harms nobody.
    for (limit, name) in [
        ("0", "programs::nothing_runs_without_user_namespaces"),
        ("100", "confinement::environment_contains_only_configured_variables"),
    ] {
        let this = std::env::current_exe().unwrap();
        let script = format!("echo {limit} > /proc/sys/user/max_user_namespaces && exec \"$@\"");
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "sh", "-c", &script, "sh"])
            .arg(this)
            .args(["--exact", name])
            .env(REFUSED, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("1 passed"), "{text}");
    }
}
