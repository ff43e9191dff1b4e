//! What a container and a sandbox promise, as one probe finds it in both: the table of
//! `docs/isolation.md` is made of it. `PORTCULLIS_WRITE_DOCS=1` writes it anew.

use std::{fs, path::Path};

use portcullis::{sandbox, upstream::process::LaunchSpec};
use serde_json::Value;

use crate::support::{engine, finish, probe, report, spec, strings};

const BEGIN: &str = "<!-- by tests/container/parity.rs -->\n";
const END: &str = "<!-- end -->";

#[tokio::test]
async fn the_table_of_promises_is_what_one_probe_finds_in_both() {
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
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/isolation.md");
    let text = fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the table's place");
    let (written, after) = rest.split_once(END).expect("the table's end");
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        fs::write(&page, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(written, table, "PORTCULLIS_WRITE_DOCS=1 writes the table");
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
