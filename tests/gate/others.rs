//! Other people's servers behind the proxy: in a container, in the sandbox, over HTTP.

use serde_json::json;

use crate::support::{
    engine::{containers, servers_image},
    gate::Setup,
    target,
};

/// A repository with one commit.
fn repository() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("poem.txt"), "roses are red\n").unwrap();
    let git = |args: &[&str]| {
        let mut git = std::process::Command::new("git");
        git.args(["-c", "user.name=tester", "-c", "user.email=tester@example.org"]);
        let status = git.args(args).current_dir(folder.path()).output().unwrap();
        assert!(status.status.success(), "{status:?}");
    };
    git(&["init", "--quiet", "--initial-branch=main"]);
    git(&["add", "poem.txt"]);
    git(&["commit", "--quiet", "--message=a poem"]);
    // The server's user is nobody.
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), everybody).unwrap();
    folder
}

#[tokio::test]
async fn the_git_server_in_a_container() {
    let repository = repository();
    let gate = Setup::new(&format!(
        r#"
        [servers.git]
        image = "{}"
        command = ["python3", "-m", "mcp_server_git", "--repository", "/repo"]
        mounts = ["{}:/repo"]
        env = {{ GATE = "{{mark}}" }}
        "#,
        servers_image(),
        repository.path().display(),
    ))
    .and("[[interceptors]]\nuse = \"schema\"")
    .start()
    .await;
    for agent in [gate.legacy().await, gate.modern()] {
        let log = agent.text("git__git_log", json!({ "repo_path": "/repo" })).await;
        assert!(log.contains("a poem"), "{log}");
        let status = agent.text("git__git_status", json!({ "repo_path": "/repo" })).await;
        assert!(status.contains("nothing to commit"), "{status}");
    }
    let agent = gate.legacy().await;
    assert_eq!(agent.refused("git__git_log", json!({ "repo_path": 7 })).await, "arguments-invalid");
    // The repository is mounted read-only.
    let branch = json!({ "repo_path": "/repo", "branch_name": "more" });
    let refused = agent.call("git__git_create_branch", branch).await;
    assert!(refused.is_err() || refused.as_ref().unwrap()["isError"] == true, "{refused:#?}");
    assert_eq!(containers(&gate.mark).len(), 1);
    let written = gate.stop().await;
    assert!(containers(&written.mark).is_empty());
}

#[tokio::test]
async fn the_filesystem_server_in_a_container() {
    let repository = repository();
    let gate = Setup::new(&format!(
        r#"
        [servers.files]
        image = "{}"
        command = ["node", "/opt/node/node_modules/@modelcontextprotocol/server-filesystem/dist/index.js", "/files"]
        mounts = ["{}:/files"]
        env = {{ GATE = "{{mark}}" }}
        "#,
        servers_image(),
        repository.path().display(),
    ))
    .and("[[interceptors]]\nuse = \"schema\"")
    .start()
    .await;
    let agent = gate.legacy().await;
    let poem = agent.text("files__read_text_file", json!({ "path": "/files/poem.txt" })).await;
    assert_eq!(poem, "roses are red\n");
    let outside =
        agent.call("files__read_text_file", json!({ "path": "/etc/passwd" })).await.unwrap();
    assert_eq!(outside["isError"], true, "{outside:#}");
    let write = json!({ "path": "/files/poem.txt", "content": "violets" });
    let written = agent.call("files__write_file", write).await.unwrap();
    assert_eq!(written["isError"], true, "{written:#}");
    gate.stop().await;
}

#[tokio::test]
async fn the_everything_server_in_the_sandbox() {
    let modules = target("tests/servers/node");
    let gate = Setup::new(&format!(
        r#"
        [servers.everything]
        command = ["node", "/opt/node/node_modules/@modelcontextprotocol/server-everything/dist/index.js"]
        runtime = "sandbox"
        mounts = ["{}:/opt/node"]
        env = {{ GATE = "{{mark}}" }}
        "#,
        modules.display(),
    ))
    .and("[[interceptors]]\nuse = \"schema\"\n[[interceptors]]\nuse = \"secrets\"")
    .start()
    .await;
    for agent in [gate.legacy().await, gate.modern()] {
        assert!(!agent.names("tools/list").await.is_empty());
        let echo = agent.text("everything__echo", json!({ "message": "hello" })).await;
        assert!(echo.contains("hello"), "{echo}");
        let sum = agent.text("everything__get-sum", json!({ "a": 2, "b": 40 })).await;
        assert!(sum.contains("42"), "{sum}");
        assert!(!agent.names("prompts/list").await.is_empty());
        assert!(!agent.names("resources/list").await.is_empty());
        let weather = json!({ "location": "New York" });
        let weather = agent.call("everything__get-structured-content", weather).await.unwrap();
        assert!(weather["structuredContent"].is_object(), "{weather:#}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn progress_reaches_the_one_who_asked_for_it() {
    let modules = target("tests/servers/node");
    let gate = Setup::new(&format!(
        r#"
        [servers.everything]
        command = ["node", "/opt/node/node_modules/@modelcontextprotocol/server-everything/dist/index.js"]
        runtime = "sandbox"
        mounts = ["{}:/opt/node"]
        "#,
        modules.display(),
    ))
    .start()
    .await;
    let agent = gate.legacy().await;
    let params = json!({
        "name": "everything__trigger-long-running-operation",
        "arguments": { "duration": 1, "steps": 4 },
        "_meta": { "progressToken": "mine" },
    });
    let request = json!({ "jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": params });
    let answered = agent.send(request).await;
    let (notices, answers): (Vec<_>, Vec<_>) =
        answered.messages.into_iter().partition(|message| message["method"].is_string());
    assert_eq!(answers.len(), 1, "{answers:#?}");
    assert_eq!(answers[0]["id"], "a");
    let progress: Vec<_> =
        notices.iter().filter(|n| n["method"] == "notifications/progress").collect();
    assert!(!progress.is_empty(), "{notices:#?}");
    for notice in progress {
        assert_eq!(notice["params"]["progressToken"], "mine");
    }
    gate.stop().await;
}
