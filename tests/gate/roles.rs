//! Answers of the admin socket to other users of the machine.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    gate::{Ended, Gate, Setup, Written},
    in_time, portcullis,
};

/// Users of this machine, who need not exist.
const AUDITOR: u32 = 54_001;
const OPERATOR: u32 = 54_002;
const STRANGER: u32 = 54_009;
const GROUP: u32 = 54_100;

fn setup() -> Setup {
    Setup::notes().and(&format!(
        r#"
        [admin]
        socket = "{{folder}}/door/admin.sock"
        [admin.roles]
        auditor = ["user:{AUDITOR}", "group:{GROUP}"]
        operator = ["user:{OPERATOR}"]
        "#
    ))
}

/// A proxy whose config everybody can read, so that everybody finds its door.
async fn start() -> Gate {
    let written = setup().write();
    fs::set_permissions(written.path(""), Permissions::from_mode(0o711)).unwrap();
    written.start().await
}

/// Runs a verb as another user. Only root can.
async fn as_user(written: &Written, (uid, gid): (u32, u32), args: &[&str]) -> Ended {
    let mut command = Command::new(portcullis());
    command.args(args).arg("--config").arg(written.path("portcullis.toml"));
    command.uid(uid).gid(gid).current_dir("/").stdin(Stdio::null());
    let run = tokio::task::spawn_blocking(move || command.output());
    Ended::from(in_time(&format!("{args:?}"), run).await.unwrap().unwrap())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// What is on record of the admin socket.
async fn actions(gate: &Gate) -> Vec<Value> {
    let mut records = gate.records(&["--oldest-first"]).await;
    records.retain(|record| record["event"] == "admin-action");
    records
}

#[tokio::test]
async fn roles_allow_only_their_operations_and_refusals_are_recorded() {
    if !is_root() {
        return;
    }
    let gate = start().await;
    gate.modern().call("notes__list_notes", json!({})).await.unwrap();
    let query = ["audit", "query", "--format", "json", "--tool", "list_notes"];

    for who in [(AUDITOR, AUDITOR), (STRANGER, GROUP)] {
        let ended = as_user(&gate, who, &query).await;
        assert_eq!(ended.code, Some(0), "{who:?}: {ended:#?}");
        assert!(ended.stdout.contains("list_notes"), "{who:?}: {ended:#?}");
    }
    for who in [(OPERATOR, OPERATOR), (STRANGER, STRANGER)] {
        let ended = as_user(&gate, who, &query).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{who:?}: {ended:#?}");
        for words in ["role `auditor`", "admin.roles.auditor", &who.0.to_string()] {
            assert!(ended.stderr.contains(words), "{who:?}, {words}: {ended:#?}");
        }
    }
    // Who can't read the files has the proxy verify them.
    for args in [&["audit", "verify"][..], &["audit", "verify", "--indexes", "--since", "0"]] {
        let ended = as_user(&gate, (AUDITOR, AUDITOR), args).await;
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:#?}");
        assert!(ended.stdout.contains("nothing is wrong"), "{args:?}: {ended:#?}");
    }
    let ended = as_user(&gate, (STRANGER, STRANGER), &["audit", "verify"]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("role `auditor`"), "{ended:#?}");
    let ended = as_user(&gate, (OPERATOR, OPERATOR), &["server", "ls"]).await;
    assert!(ended.code == Some(0) && ended.stdout.contains("notes"), "{ended:#?}");
    let ended = as_user(&gate, (AUDITOR, AUDITOR), &["server", "ls"]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("`operator`"), "{ended:#?}");
    // The door leads to no server: whoever calls over it would be taken for the proxy's own user.
    for who in [AUDITOR, OPERATOR, STRANGER] {
        let ended = as_user(&gate, (who, who), &["tools", "ls"]).await;
        assert!(ended.code == Some(1) && ended.stderr.contains("root and"), "{ended:#?}");
    }

    let actions = actions(&gate).await;
    let of = |uid: u32, decision: &str| -> Vec<&Value> {
        let all = actions.iter();
        all.filter(|a| a["uid"] == uid && a["decision"] == decision).collect()
    };
    let read = of(AUDITOR, "allowed");
    assert_eq!(read.len(), 3, "{actions:#?}");
    assert_eq!(read[1]["verb"], "POST /v1/audit/verify");
    assert_eq!(read[0]["verb"], "POST /v1/audit/query");
    let asked = read[0]["target"].as_str().unwrap();
    assert!(asked.contains("list_notes") && !asked.contains("principal"), "{asked}");
    for (uid, times) in [(OPERATOR, 2), (STRANGER, 3)] {
        let refused = of(uid, "refused");
        assert_eq!(refused.len(), times, "{uid}: {actions:#?}");
        assert!(refused.iter().all(|action| action["code"] == "admin-role-missing"));
    }
    assert_eq!(of(AUDITOR, "refused").len(), 2, "{actions:#?}");
    assert!(!of(0, "allowed").is_empty(), "the owner's reads are on record, too");
    gate.stop().await;
}

#[tokio::test]
async fn admin_socket_is_public_and_owner_socket_private() {
    let gate = start().await;
    let mode = |path: &str| fs::metadata(gate.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("state/admin.sock"), mode("state")), (0o600, 0o700));
    assert_eq!((mode("door/admin.sock"), mode("door")), (0o666, 0o755));
    // The owner may use either, and who can't read the config names the door.
    let door = gate.path("door/admin.sock");
    let through = ["audit", "query", "--format", "json", "--socket", door.to_str().unwrap()];
    assert_eq!(gate.cli(&through).await.code, Some(0));
    if is_root() {
        fs::set_permissions(gate.path("portcullis.toml"), Permissions::from_mode(0o600)).unwrap();
        let ended = as_user(&gate, (AUDITOR, AUDITOR), &through).await;
        assert_eq!(ended.code, Some(0), "{ended:#?}");
    }
    let written = gate.stop().await;
    assert!(!written.path("door/admin.sock").exists());
}

#[tokio::test]
async fn replaceable_admin_socket_is_refused() {
    let refused = async |prepare: fn(&Path), words: &str| {
        let written = setup().write();
        fs::create_dir(written.path("door")).unwrap();
        prepare(&written.path("door"));
        let ended = written.cli(&["run"]).await;
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        assert!(ended.stderr.contains(words), "{words}: {ended:#?}");
        written
    };
    let open = |door: &Path| fs::set_permissions(door, Permissions::from_mode(0o1777)).unwrap();
    refused(open, "others can write to").await;
    let file = |door: &Path| fs::write(door.join("admin.sock"), "precious").unwrap();
    let written = refused(file, "no socket").await;
    assert_eq!(fs::read_to_string(written.path("door/admin.sock")).unwrap(), "precious");
    let taken = |door: &Path| {
        let listener = std::os::unix::net::UnixListener::bind(door.join("admin.sock")).unwrap();
        // For as long as the test runs.
        std::mem::forget(listener);
    };
    refused(taken, "another process listens").await;
}
