//! mcp-server-git.

use std::{fs, os::unix::fs::chown, path::Path, process::Command};

use serde_json::json;
use tempfile::TempDir;

use super::{contained, failed, mode, open_folder, stop_without_orphans};
use crate::support::{engine::servers_image, gate::Setup};

/// The person whose repository it is; not the server's user.
const OWNER: u32 = 4321;

fn git(folder: &Path, args: &[&str]) -> String {
    let mut git = Command::new("git");
    git.args(["-c", "user.name=tester", "-c", "user.email=tester@example.org"]);
    git.args(["-c", "safe.directory=*"]);
    let output = git.args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A person's repository with one commit.
fn repository() -> TempDir {
    let folder = open_folder();
    mode(folder.path(), 0o755);
    fs::write(folder.path().join("poem.txt"), "roses are red\n").unwrap();
    git(folder.path(), &["init", "--quiet", "--initial-branch=main"]);
    git(folder.path(), &["add", "poem.txt"]);
    git(folder.path(), &["commit", "--quiet", "--message=a poem"]);
    let all = walk(folder.path());
    for place in all {
        chown(place, Some(OWNER), Some(OWNER)).unwrap();
    }
    folder
}

fn walk(place: &Path) -> Vec<std::path::PathBuf> {
    let mut all = vec![place.to_owned()];
    if place.is_dir() {
        all.extend(fs::read_dir(place).unwrap().flat_map(|entry| walk(&entry.unwrap().path())));
    }
    all
}

fn contained_git(more: &str) -> Setup {
    contained("git", &["python3", "-m", "mcp_server_git", "--repository", "/repo"], more)
}

#[tokio::test]
async fn mounted_repository_is_read() {
    let folder = repository();
    let gate =
        contained_git(&format!("mounts = [\"{}:/repo\"]", folder.path().display())).start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        let log = agent.text("git__git_log", json!({ "repo_path": "/repo" })).await;
        assert!(log.contains("a poem"), "{log}");
        let status = agent.text("git__git_status", json!({ "repo_path": "/repo" })).await;
        assert!(status.contains("nothing to commit"), "{status}");
        let show = json!({ "repo_path": "/repo", "revision": "HEAD" });
        assert!(agent.text("git__git_show", show).await.contains("+roses are red"));
        let outside = failed(&agent, "git__git_log", json!({ "repo_path": "/" })).await;
        assert!(outside.contains("outside"), "{outside}");
    }
    let agent = gate.legacy().await;
    assert_eq!(agent.refused("git__git_log", json!({ "repo_path": 7 })).await, "arguments-invalid");
    let branch = json!({ "repo_path": "/repo", "branch_name": "more" });
    let said = failed(&agent, "git__git_create_branch", branch).await;
    assert!(said.contains("more.lock' could not be obtained"), "{said}");
    stop_without_orphans(gate).await;
}

/// It commits as its owner, and a policy forbids tools that undo work.
#[tokio::test]
async fn mounted_repository_is_written_as_its_owner() {
    let folder = repository();
    let gate = contained_git(&format!(
        r#"
        mounts = ["{}:/repo:rw"]
        env.GIT_AUTHOR_NAME = "Ada"
        env.GIT_AUTHOR_EMAIL = "ada@example.com"
        env.GIT_COMMITTER_NAME = "Ada"
        env.GIT_COMMITTER_EMAIL = "ada@example.com"
        hardening.user = "{OWNER}:{OWNER}"
        "#,
        folder.path().display()
    ))
    .policies(
        r#"
        @id("work") permit (principal, action, resource);
        @id("no-undoing") forbid (principal, action == Portcullis::Action::"call_tool",
            resource == Portcullis::Tool::"git/git_reset");
        "#,
    )
    .start()
    .await;
    let agent = gate.legacy().await;
    fs::write(folder.path().join("poem.txt"), "violets are blue\n").unwrap();
    let diff = agent.text("git__git_diff_unstaged", json!({ "repo_path": "/repo" })).await;
    assert!(diff.contains("+violets are blue"), "{diff}");
    let branch = json!({ "repo_path": "/repo", "branch_name": "more" });
    agent.text("git__git_create_branch", branch.clone()).await;
    agent.text("git__git_checkout", branch).await;
    let add = json!({ "repo_path": "/repo", "files": ["poem.txt"] });
    agent.text("git__git_add", add).await;
    let commit = json!({ "repo_path": "/repo", "message": "another poem" });
    let said = agent.text("git__git_commit", commit).await;
    assert!(said.contains("committed"), "{said}");
    assert_eq!(
        agent.refused("git__git_reset", json!({ "repo_path": "/repo" })).await,
        "policy-denied"
    );
    assert_eq!(git(folder.path(), &["log", "-1", "--format=%s", "more"]).trim(), "another poem");
    stop_without_orphans(gate).await;
}

/// In the sandbox, the server's packages must be visible, too.
#[tokio::test]
async fn repository_is_read_from_the_sandbox() {
    let folder = repository();
    let python = crate::support::target("tests/servers/python");
    let gate = Setup::new(&format!(
        r#"
        [servers.git]
        command = ["/usr/bin/python3", "-m", "mcp_server_git", "--repository", "/repo"]
        runtime = "sandbox"
        mounts = ["{}:/repo", "{}:/opt/python"]
        env = {{ GATE = "{{mark}}", PYTHONPATH = "/opt/python", PYTHONDONTWRITEBYTECODE = "1" }}
        "#,
        folder.path().display(),
        python.display(),
    ))
    .start()
    .await;
    let agent = gate.legacy().await;
    let log = agent.text("git__git_log", json!({ "repo_path": "/repo" })).await;
    assert!(log.contains("a poem"), "{log}");
    gate.stop().await;
}

/// The proxy adds no safe directory if the operator configured git by variables.
#[tokio::test]
async fn configured_git_variables_are_kept() {
    let folder = repository();
    let gate = Setup::new(&format!(
        r#"
        [servers.git]
        image = "{}"
        command = ["python3", "-m", "mcp_server_git", "--repository", "/repo"]
        mounts = ["{}:/repo"]
        env = {{ GATE = "{{mark}}", GIT_CONFIG_COUNT = "0" }}
        "#,
        servers_image(),
        folder.path().display(),
    ))
    .start()
    .await;
    let agent = gate.legacy().await;
    let said = failed(&agent, "git__git_status", json!({ "repo_path": "/repo" })).await;
    assert!(said.contains("dubious ownership"), "{said}");
    gate.stop().await;
}
