//! The access of a sandboxed server.

use std::fs;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::{
    harness::{launch, probe, probe_server, python, run, secret, spec, tree},
    is_root,
};

#[tokio::test]
async fn server_has_only_the_access_of_the_profile() {
    let found = probe(|_| {}).await;
    assert_eq!(found["ids"], json!([65534, 65534, 65534, 65534]));
    assert_eq!(found["capabilities"], json!(["0000000000000000"]));
    assert_eq!(found["no_new_privs"], "1");
    assert_eq!(found["seccomp"], "2");
    assert_eq!(found["hostname"], "probe");
    assert_eq!(found["processes"], json!([1, 2]));
    assert_eq!(found["interfaces"], json!(["lo"]));
    assert_ne!(found["parent"], "ok");
    assert_eq!(found["descriptors"], json!([0, 1, 2]));
    for (path, outcome) in found["read"].as_object().unwrap() {
        assert_ne!(outcome, "ok", "read {path}");
    }
    for (path, outcome) in found["write"].as_object().unwrap() {
        let allowed = path.starts_with("/tmp/") || path.starts_with("/dev/shm/");
        assert_eq!(outcome == "ok", allowed, "write {path}: {outcome}");
    }
    assert_eq!(found["execute"]["/tmp/x.sh"], "Permission denied");
    let root: Vec<_> =
        found["root"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let known = [
        "bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "nix", "proc", "sbin", "tmp", "usr",
    ];
    assert!(root.iter().all(|name| known.contains(name)), "{root:?}");
    assert_eq!(
        found["sockets"],
        json!({
            "unix": "ok", "inet": "ok", "inet6": "ok", "route": "ok",
            "audit": "Operation not permitted", "packet": "Operation not permitted",
            "vsock": "Operation not permitted", "alg": "Operation not permitted",
        })
    );
    assert_eq!(found["connect"]["host"], "Connection refused");
    assert_eq!(found["connect"]["abroad"], "Network is unreachable");
    assert_eq!(found["connect"]["itself"], "ok");
    for (call, outcome) in found["calls"].as_object().unwrap() {
        assert_eq!(outcome, "Function not implemented", "{call}");
    }
    // The launcher's own processes count among them.
    let own = if is_root() { 1 } else { 2 };
    assert_eq!(
        found["limits"],
        json!({ "NOFILE": 1024, "CORE": 0, "NPROC": 128 + own, "DATA": 1 << 30 })
    );
    assert_eq!(found["processors"], 1);
}

/// The MCP server of the container tests finds no more in the sandbox.
#[tokio::test]
async fn probe_finds_only_what_the_profile_allows() {
    let probe = probe_server().display().to_string();
    let run = run(&spec(&[&probe, "--print"])).await;
    assert_eq!(run.exit.code, 0, "{run:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    let of = |name: &str| report[name].as_object().unwrap();
    assert_eq!((&report["uid"], &report["gid"]), (&json!(65534), &json!(65534)));
    for (set, held) in of("capabilities") {
        assert_eq!(*held, json!([]), "{set}");
    }
    assert_eq!((&report["no_new_privs"], &report["seccomp"]), (&json!(true), &json!(2)));
    assert_eq!(report["writable"], json!(["/dev/shm", "/tmp"]));
    assert_eq!(report["exec_from_tmp"], "EACCES");
    assert_eq!(report["interfaces"], json!([]));
    for (address, outcome) in of("connects") {
        let expected = if address.starts_with("127.") { "ECONNREFUSED" } else { "ENETUNREACH" };
        assert_eq!(outcome, expected, "{address}");
    }
    let open = of("sockets").iter().filter(|(_, outcome)| *outcome == "ok");
    let open: Vec<_> = open.map(|(family, _)| family.as_str()).collect();
    assert_eq!(open, ["inet", "inet-udp", "inet6", "netlink-route", "unix"]);
    for (call, outcome) in of("calls") {
        assert_eq!(outcome, "ENOSYS", "{call}");
    }
    for (file, outcome) in of("proc_writes") {
        assert_ne!(outcome, "ok", "{file}");
    }
    assert_eq!(report["host_files"], json!([]));
    assert_eq!(report["processes"].as_array().unwrap().len(), 2);
    let names: Vec<_> = of("env").keys().map(String::as_str).collect();
    assert_eq!(names, ["HOME", "PATH"]);
}

#[tokio::test]
async fn environment_contains_only_configured_variables() {
    let value = ["hunter", "2"].concat();
    let found = probe(|spec| {
        spec.env = vec![("PLAIN".into(), "text".into()), ("TOKEN".into(), "overridden".into())];
        spec.secrets = vec![secret("TOKEN", &value)];
    })
    .await;
    let environment = found["environment"].as_object().unwrap();
    // Python adds the last two itself.
    let names = environment.keys().filter(|name| !["LC_CTYPE", "LANG"].contains(&name.as_str()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["HOME", "PATH", "PLAIN", "TOKEN"]);
    assert_eq!(environment["TOKEN"], value);
    assert_eq!(environment["HOME"], "/tmp");
    assert!(!found["arguments"].to_string().contains(&value));
}

#[tokio::test]
async fn secret_is_not_in_arguments_or_the_launchers_environment() {
    let value = ["hunter", "2"].concat();
    let mut spec = python("import sys; print('up', flush=True); sys.stdin.read()");
    spec.secrets = vec![secret("TOKEN", &value)];
    let mut process = launch(&spec).await.unwrap();
    let mut up = [0; 3];
    process.stdout.read_exact(&mut up).await.unwrap();
    let tree = tree(&process);
    assert_eq!(tree.len(), 3, "launcher, first process, program");
    for pid in &tree {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!String::from_utf8_lossy(&arguments).contains(&value));
    }
    for pid in &tree[..2] {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&environment).contains(&value));
    }
}

#[tokio::test]
async fn deviations_change_only_their_setting() {
    let found = probe(|spec| spec.hardening.network = true).await;
    assert_eq!(found["connect"]["host"], "ok");
    assert_eq!(found["write"]["/x"], "Read-only file system");
    let found = probe(|spec| spec.hardening.writable_root = true).await;
    assert_eq!(found["write"]["/x"], "ok");
    assert_ne!(found["write"]["/usr/x"], "ok");
    assert_ne!(found["connect"]["host"], "ok");
    let found = probe(|spec| spec.hardening.user = Some("1234:2345".into())).await;
    assert_eq!(found["ids"], json!([1234, 1234, 2345, 2345]));
    assert_eq!(found["capabilities"], json!(["0000000000000000"]));
}
