//! Core dumps of the proxy and of commands, whose memory contains keys and secrets.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{harness::PORTCULLIS, is_root};

/// Starts a program that may leave core dumps, in this very process of the shell.
fn dumping(folder: &Path, program: &[&str]) -> Child {
    Command::new("sh")
        .args(["-c", "ulimit -c unlimited && exec \"$@\"", "sh"])
        .args(program)
        .current_dir(folder)
        .env("HOME", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn core_limit(pid: u32) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    line.split_ascii_whitespace().skip(4).take(2).collect::<Vec<_>>().join(" ")
}

/// Whether a process leaves no core, and shows its memory to no process of its own user.
fn is_protected(pid: u32) -> bool {
    let memory = format!("/proc/{pid}/mem");
    // The files of a process that is not dumpable belong to root, proc(5).
    let of_root = fs::metadata(&memory).unwrap().uid() == 0;
    let hidden = match fs::File::open(&memory) {
        Ok(_) => is_root(),
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    };
    core_limit(pid) == "0 0" && of_root && hidden
}

fn until_protected(pid: u32) {
    for _ in 0..1000 {
        if is_protected(pid) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("the limit is {}", core_limit(pid));
}

#[test]
fn proxy_leaves_no_core_dump() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("policies")).unwrap();
    fs::write(folder.path().join("policies/all.cedar"), "permit (principal, action, resource);\n")
        .unwrap();
    let config = r#"
        state-dir = "state"
        [listen]
        http = "127.0.0.1:0"
        [servers.notes]
        command = ["portcullis", "example-server", "notes"]
        runtime = "sandbox"
    "#;
    fs::write(folder.path().join("portcullis.toml"), config).unwrap();
    let mut proxy = dumping(folder.path(), &[PORTCULLIS, "run", "--stdio"]);
    let mut stdin = proxy.stdin.take().unwrap();
    let mut answers = BufReader::new(proxy.stdout.take().unwrap()).lines();
    let hello = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18", "capabilities": {},
            "clientInfo": { "name": "test", "version": "0" },
        },
    });
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let list = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list" });
    for message in [hello, initialized, list] {
        writeln!(stdin, "{message}").unwrap();
    }
    let listed =
        answers.by_ref().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let listed = listed.into_iter().find(|answer| answer["id"] == 2).unwrap();
    // It starts servers in the sandbox all the same.
    assert!(listed.to_string().contains("read_note"), "{listed}");
    assert!(is_protected(proxy.id()), "{}", core_limit(proxy.id()));
    drop(stdin);
    assert!(proxy.wait().unwrap().success());
}

#[test]
fn command_that_reads_a_secret_leaves_no_core_dump() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = dumping(folder.path(), &[PORTCULLIS, "secret", "set", "NAME"]);
    until_protected(command.id());
    // It reads until the end of its input.
    let value = ["not", "a", "real", "one"].concat();
    command.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
    assert!(command.wait().unwrap().success());
}

/// The control: another program keeps the limit that the tests set.
#[test]
fn other_programs_may_leave_core_dumps() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = dumping(folder.path(), &["sh", "-c", "echo up; read line"]);
    let mut up = String::new();
    BufReader::new(other.stdout.take().unwrap()).read_line(&mut up).unwrap();
    assert_ne!(core_limit(other.id()), "0 0");
    assert!(!is_protected(other.id()));
    drop(other.stdin.take());
    other.wait().unwrap();
}
