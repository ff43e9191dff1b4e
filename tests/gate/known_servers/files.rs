//! server-filesystem.

use std::{
    fs,
    os::unix::fs::{chown, symlink},
};

use serde_json::json;

use super::{contained, failed, mode, open_folder, stop_without_orphans};
use crate::support::gate::Setup;

pub(super) const PROGRAM: &str =
    "/opt/node/node_modules/@modelcontextprotocol/server-filesystem/dist/index.js";

fn files(mounts: &str) -> Setup {
    contained("files", &["node", PROGRAM, "/files"], mounts)
}

#[tokio::test]
async fn files_are_accessible_only_through_a_mount() {
    let folder = open_folder();
    fs::write(folder.path().join("poem.txt"), "roses are red\n").unwrap();
    // The first bytes of a picture are all that its type is told by.
    fs::write(folder.path().join("dot.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    symlink("/etc/passwd", folder.path().join("way-out")).unwrap();
    let gate =
        files(&format!("mounts = [\"{}:/files:rw\"]", folder.path().display())).start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        // A call waits for the server to start; a list does not.
        let poem = json!({ "path": "/files/poem.txt" });
        assert_eq!(agent.text("files__read_text_file", poem).await, "roses are red\n");
        let tools = agent.names("tools/list").await;
        assert!(tools.iter().any(|tool| tool == "files__edit_file"), "{tools:?}");
        let outside = [
            "/etc/passwd",
            "/files/../etc/passwd",
            "/files/way-out",
            "/proc/self/environ",
            "/opt/node/package.json",
        ];
        for path in outside {
            let said = failed(&agent, "files__read_text_file", json!({ "path": path })).await;
            assert!(said.contains("Access denied"), "{path}: {said}");
        }
        let new = json!({ "path": "/files/new.txt", "content": "violets are blue\n" });
        agent.text("files__write_file", new).await;
        let edit = json!({
            "path": "/files/new.txt",
            "edits": [{ "oldText": "blue", "newText": "violet" }],
        });
        agent.text("files__edit_file", edit).await;
        let here = folder.path().join("new.txt");
        assert_eq!(fs::read_to_string(&here).unwrap(), "violets are violet\n");
        agent.text("files__create_directory", json!({ "path": "/files/more" })).await;
        let to = json!({ "source": "/files/new.txt", "destination": "/files/more/moved.txt" });
        agent.text("files__move_file", to).await;
        let listed = agent.text("files__list_directory", json!({ "path": "/files" })).await;
        assert!(listed.contains("[DIR] more") && listed.contains("[FILE] poem.txt"), "{listed}");
        let found = json!({ "path": "/files", "pattern": "**/moved*" });
        let found = agent.text("files__search_files", found).await;
        assert_eq!(found, "/files/more/moved.txt");
        let dot = json!({ "path": "/files/dot.png" });
        let dot = agent.call("files__read_media_file", dot).await.unwrap();
        assert_eq!(dot["content"][0]["mimeType"], "image/png", "{dot:#}");
        fs::remove_dir_all(folder.path().join("more")).unwrap();
    }
    stop_without_orphans(gate).await;
}

#[tokio::test]
async fn read_only_mount_refuses_its_owner_too() {
    let folder = open_folder();
    fs::write(folder.path().join("poem.txt"), "roses are red\n").unwrap();
    let gate = files(&format!("mounts = [\"{}:/files\"]", folder.path().display())).start().await;
    let agent = gate.legacy().await;
    let poem = json!({ "path": "/files/poem.txt" });
    assert_eq!(agent.text("files__read_text_file", poem).await, "roses are red\n");
    for path in ["/files/poem.txt", "/files/new.txt"] {
        let write = json!({ "path": path, "content": "violets" });
        let said = failed(&agent, "files__write_file", write).await;
        assert!(said.contains("EROFS: read-only file system"), "{said}");
    }
    let said = failed(&agent, "files__create_directory", json!({ "path": "/files/more" })).await;
    // Node's own words for it.
    assert!(said.contains("ENOENT: no such file or directory, mkdir"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    stop_without_orphans(gate).await;
}

/// A server can write to a private folder only as the folder's owner.
#[tokio::test]
async fn private_folder_is_written_as_its_owner() {
    let folder = open_folder();
    mode(folder.path(), 0o755);
    chown(folder.path(), Some(4321), Some(4321)).unwrap();
    let mount = format!("mounts = [\"{}:/files:rw\"]", folder.path().display());
    let new = json!({ "path": "/files/new.txt", "content": "mine\n" });

    let gate = files(&mount).start().await;
    let said = failed(&gate.legacy().await, "files__write_file", new.clone()).await;
    assert!(said.contains("EACCES: permission denied"), "{said}");
    stop_without_orphans(gate).await;

    let gate = files(&format!("{mount}\nhardening.user = \"4321:4321\"")).start().await;
    gate.legacy().await.text("files__write_file", new).await;
    let written = fs::metadata(folder.path().join("new.txt")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&written), 4321);
    let launched = gate.records(&["event = server-launching"]).await;
    assert_eq!(launched[0]["deviations"], json!(["hardening.user", "mounts"]), "{launched:#?}");
    stop_without_orphans(gate).await;
}

/// The texts that an agent and its operator read if the folder is not mounted.
#[tokio::test]
async fn missing_mount_shows_the_servers_own_error() {
    let gate = files("").start().await;
    let agent = gate.legacy().await;
    let refused = agent.call("files__read_text_file", json!({ "path": "/files/x" })).await;
    let refused = refused.unwrap_err();
    assert_eq!(crate::support::agent::code_of(&refused), "server-unavailable", "{refused:#}");
    let log = gate.log().join("\n");
    assert!(log.contains("see `portcullis server logs files`"), "{log}");
    let said = gate.cli(&["server", "logs", "files"]).await;
    let said = format!("{}{}", said.stdout, said.stderr);
    assert!(said.contains("None of the specified directories are accessible"), "{said}");
    gate.stop().await;
}
