//! Compares container and sandbox with one probe. `docs/concepts/isolation.md` has the generated
//! table. `PORTCULLIS_WRITE_DOCS=1` writes it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use portcullis_runtime::{mount::Mount, process::LaunchSpec, sandbox};
use serde_json::Value;

use crate::support::{bash, engine, finish, probe, report, spec, strings};

const BEGIN: &str = "<!-- by tests/container/parity.rs -->\n";
const END: &str = "<!-- end -->";

#[tokio::test]
async fn documented_table_matches_the_probe_in_both_runtimes() {
    let container = report(&engine().await, spec("", &[])).await;
    let command = vec![probe().display().to_string(), "--print".to_owned()];
    let launch = LaunchSpec { image: None, command, ..spec("", &[]) };
    let portcullis = Path::new(env!("CARGO_BIN_EXE_portcullis"));
    let ran = finish(sandbox::launch_by(portcullis, &launch).await.unwrap(), "").await;
    let sandbox: Value =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));

    let mut table = String::from("| | container | sandbox |\n|---|---|---|\n");
    for (promise, find) in PROMISES {
        table += &format!("| {promise} | {} | {} |\n", find(&container), find(&sandbox));
    }
    portcullis_test_support::check_part("concepts/isolation.md", BEGIN, END, &table);
}

/// Unmounts, whatever becomes of the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test]
async fn nested_mounts_are_hidden_in_both_runtimes() {
    let engine = engine().await;
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let none = None::<&str>;
    mount(Some("none"), &inner, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let mounted = Mounted(inner.clone());
    fs::write(inner.join("hidden"), "").unwrap();
    fs::write(folder.path().join("shown"), "").unwrap();
    let script = "shopt -s nullglob; echo /data/* /data/inner/*";
    let mut contained = spec(bash(&engine).await, &["-c", script]);
    let source = fs::canonicalize(folder.path()).unwrap();
    let mount = |source, target: &str| Mount { source, target: target.into(), writable: false };
    contained.mounts = vec![mount(source, "/data")];
    let command = ["/bin/bash", "-c", script].map(str::to_owned).into();
    let mut sandboxed = LaunchSpec { image: None, command, ..contained.clone() };
    let portcullis = Path::new(env!("CARGO_BIN_EXE_portcullis"));
    // Where it is mounted by a line of its own, it is seen.
    for seen in ["/data/inner /data/shown", "/data/inner /data/shown /data/inner/hidden"] {
        let ran = finish(engine.launch(&contained).await.unwrap(), "").await;
        assert_eq!(ran.stdout.trim(), seen, "{ran:?}");
        let ran = finish(sandbox::launch_by(portcullis, &sandboxed).await.unwrap(), "").await;
        assert_eq!(ran.stdout.trim(), seen, "{ran:?}");
        for spec in [&mut contained, &mut sandboxed] {
            spec.mounts.push(mount(inner.clone(), "/data/inner"));
        }
    }
    drop(mounted);
}

type Find = fn(&Value) -> String;

const PROMISES: [(&str, Find); 14] = [
    ("user and group", |found| format!("{}:{}", found["uid"], found["gid"])),
    ("capabilities, in all five sets", |found| {
        let sets = found["capabilities"].as_object().unwrap().values();
        list(sets.flat_map(strings).map(str::to_owned))
    }),
    ("new privileges by a program", |found| no(found["no_new_privs"] == true)),
    ("system calls without a filter", |found| no(found["seccomp"] == 2)),
    ("of 36 calls that reach beyond a process, those let through to the kernel", |found| {
        let calls = found["calls"].as_object().unwrap();
        assert_eq!(calls.len(), 36);
        let refused = |outcome: &Value| outcome == "EPERM" || outcome == "ENOSYS";
        list(calls.iter().filter(|(_, outcome)| !refused(outcome)).map(|(name, _)| name.clone()))
    }),
    ("kinds of sockets", |found| {
        let sockets = found["sockets"].as_object().unwrap();
        list(sockets.iter().filter(|(_, made)| **made == "ok").map(|(family, _)| family.clone()))
    }),
    ("network interfaces beside loopback", |found| {
        list(strings(&found["interfaces"]).into_iter().map(str::to_owned))
    }),
    ("folders that it can write to", |found| {
        list(strings(&found["writable"]).into_iter().map(str::to_owned))
    }),
    ("programs executed from /tmp", |found| no(found["exec_from_tmp"] == "EACCES")),
    ("settings of the machine opened below /proc", |found| {
        let opened = found["proc_writes"].as_object().unwrap().iter();
        list(opened.filter(|(_, outcome)| **outcome == "ok").map(|(file, _)| file.clone()))
    }),
    ("files of the machine's own that are seen", |found| {
        list(strings(&found["host_files"]).into_iter().map(str::to_owned))
    }),
    ("processes that it sees", |found| strings(&found["processes"]).len().to_string()),
    ("open files of a process", |found| found["limits"]["open_files"].as_str().unwrap().to_owned()),
    ("bytes of a core dump", |found| found["limits"]["core"].as_str().unwrap().to_owned()),
];

fn list(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn no(held: bool) -> String {
    if held { "no" } else { "YES" }.to_owned()
}
