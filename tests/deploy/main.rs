//! The image and the compose projects of `examples/deploy`, with the real docker-compose.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

#[path = "../../src/oci/tests/support/mod.rs"]
mod docker_registry;
mod kubernetes;
mod project;

use std::{
    io::Write as _,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use project::{Project, curl, output, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(180);
/// As the examples' configs know the proxy; here it has another port.
const HOST: &str = "Host: 127.0.0.1:8811";

/// What an agent says: a call that passes, and one that a policy refuses.
fn talk() -> String {
    let client = json!({"name": "agent", "version": "1"});
    let hello = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client});
    let add = json!({"name": "notes__add_note", "arguments": {"name": "milk", "text": "two"}});
    let delete = json!({"name": "notes__delete_note", "arguments": {"name": "milk"}});
    [
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": add}),
        json!({"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": delete}),
    ]
    .map(|message| message.to_string() + "\n")
    .concat()
}

/// The answers to [`talk`]: what was added, and the refusal.
fn heard(answers: &str) {
    let answers: Vec<Value> =
        answers.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let answer = |id| {
        let found = answers.iter().find(|answer| answer["id"] == id);
        found.unwrap_or_else(|| panic!("no answer to {id}: {answers:?}")).to_string()
    };
    assert!(
        answer(2).contains("\\\"name\\\":\\\"milk\\\"") || answer(2).contains("\"name\":\"milk\"")
    );
    assert!(answer(3).contains("policy-denied"), "{}", answer(3));
}

#[test]
fn agent_reaches_only_the_proxy() {
    let project = Project::new("agent");
    project.compose(&["up", "-d", "portcullis"]);
    project.healthy();
    let key = project.add_client("agent", &[]);
    let answers = project.agent(&key, &talk());
    heard(&answers);
    // The proxy has no rights, nor the engine's socket; the guard has that, and no network.
    let inspected = |service: &str| {
        let id = project.compose(&["ps", "-q", service]);
        let text = output("docker", &["inspect", id.trim()]);
        serde_json::from_str::<Value>(&text).unwrap()[0].clone()
    };
    let (proxy, guard) = (inspected("portcullis"), inspected("guard"));
    for (container, user) in [(&proxy, "65532:65532"), (&guard, "65533:65532")] {
        let host = &container["HostConfig"];
        assert_eq!(host["ReadonlyRootfs"], true);
        assert_eq!(host["CapDrop"], json!(["ALL"]));
        assert_eq!(container["Config"]["User"], user);
    }
    assert!(!proxy["Mounts"].to_string().contains("docker.sock"), "{}", proxy["Mounts"]);
    assert!(guard["Mounts"].to_string().contains("docker.sock"));
    assert_eq!(guard["HostConfig"]["NetworkMode"], "none");
    // The server that was called runs in containers that the guard labelled, one for each era.
    let label = "label=dev.portcullis.guard=agent";
    assert!(!output("docker", &["ps", "-q", "--filter", label]).is_empty());

    // From the agent's network nobody gets to this machine, as from the engine's own.
    assert!(!can_reach_host(&project.network("agents")));
    assert!(can_reach_host("bridge"));

    // A proxy that is killed leaves nothing that its guard does not remove.
    project.compose(&["kill", "-s", "KILL", "portcullis"]);
    until("the server's end", PATIENCE, || {
        output("docker", &["ps", "-aq", "--filter", label]).is_empty().then_some(())
    });
}

/// Whether a container on a network gets to what listens on all addresses of this machine, by the
/// address that the network's gateway has there.
fn can_reach_host(network: &str) -> bool {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let gateway = output(
        "docker",
        &["network", "inspect", "--format", "{{range .IPAM.Config}}{{.Gateway}}{{end}}", network],
    );
    let gateway = match gateway.trim() {
        // The first of the network, which an engine would have given it.
        "" => {
            let format = "{{range .IPAM.Config}}{{.Subnet}}{{end}}";
            let subnet = output("docker", &["network", "inspect", "--format", format, network]);
            let (net, _) = subnet.trim().split_once('/').unwrap();
            format!("{}.1", net.rsplit_once('.').unwrap().0)
        }
        gateway => gateway.to_owned(),
    };
    let url = format!("http://{gateway}:{port}/mcp");
    let agent = ["run", "--rm", "-i", "--network", network, project::image(), "connect", "--url"];
    let mut agent = Command::new("docker")
        .args(agent)
        .arg(url)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    agent.stdin.take().unwrap().write_all(talk().as_bytes()).unwrap();
    let begun = Instant::now();
    loop {
        let ended = agent.try_wait().unwrap().is_some();
        if let Ok((connection, _)) = listener.accept() {
            drop((connection, listener));
            agent.wait().unwrap();
            return true;
        }
        if ended {
            return false;
        }
        assert!(begun.elapsed() < PATIENCE, "the agent does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Calls a tool over REST, with a key.
fn invoke(project: &Project, key: &str, tool: &str) -> String {
    let url = format!("http://127.0.0.1:{}/invoke", project.port);
    let body = json!({"tool": tool, "arguments": {"name": "milk", "text": "b"}}).to_string();
    let bearer = format!("Authorization: Bearer {key}");
    let json = "Content-Type: application/json";
    curl(&["-d", &body, "-H", &bearer, "-H", HOST, "-H", json, &url])
}

#[test]
fn one_proxy_serves_several_servers() {
    let project = Project::new("servers");
    project.compose(&["up", "-d"]);
    project.healthy();
    let reader = project.add_client("reader", &[]);
    let writer = project.add_client("writer", &["--group", "writers"]);
    for (key, tool, passes) in [
        (&reader, "notes__add_note", true),
        (&reader, "journal__add_note", false),
        (&writer, "journal__add_note", true),
        (&writer, "journal__delete_note", false),
    ] {
        let answer = invoke(&project, key, tool);
        assert_eq!(answer.contains("policy-denied"), !passes, "{tool}: {answer}");
        assert_eq!(answer.contains("replaced"), passes, "{tool}: {answer}");
    }
    assert!(invoke(&project, "nobody", "notes__add_note").contains("key"));
}

#[test]
fn every_dashboard_query_has_data() {
    let project = Project::new("monitoring");
    // Grafana is not in Debian; see docs/operate/deploy.md.
    project.compose(&["up", "-d", "portcullis"]);
    project.healthy();
    let key = project.add_client("agent", &[]);
    let scraper = project.add_client("prometheus", &[]);
    std::fs::write(project.prometheus_key(), scraper).unwrap();
    // For its user alone, as the project's first lines say.
    output("chown", &["65534", project.prometheus_key().to_str().unwrap()]);
    output("chmod", &["400", project.prometheus_key().to_str().unwrap()]);
    project.compose(&["up", "-d", "prometheus"]);
    let dashboard = project.folder().join("grafana/dashboards/portcullis.json");
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(dashboard).unwrap()).unwrap();
    let queries: Vec<&str> = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(queries.len() >= 15, "{queries:?}");
    let asks = format!("http://127.0.0.1:{}/api/v1/query", project.prometheus);
    let begun = Instant::now();
    let mut left = queries;
    while !left.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "no data for {left:?}");
        for tool in ["notes__add_note", "notes__delete_note"] {
            invoke(&project, &key, tool);
        }
        left.retain(|query| {
            let query = query.replace("$__rate_interval", "30s");
            let answer = curl(&["-G", "--data-urlencode", &format!("query={query}"), &asks]);
            let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
            assert_ne!(answer["status"], "error", "{query}: {answer}");
            answer["data"]["result"].as_array().is_none_or(Vec::is_empty)
        });
        std::thread::sleep(Duration::from_secs(1));
    }
    // Without that key, or with another client's, metrics are nobody's.
    let metrics = format!("http://127.0.0.1:{}/metrics", project.port);
    assert!(curl(&["-H", HOST, &metrics]).contains("unauthenticated"));
    let bearer = format!("Authorization: Bearer {key}");
    assert!(curl(&["-H", HOST, "-H", &bearer, &metrics]).contains("policy-denied"));
}

#[test]
fn image_contains_the_program_and_no_shell() {
    let image = project::image();
    let listed = output(
        "sh",
        &[
            "-c",
            &format!(
                "id=$(docker create {image}) && docker export $id | tar t; docker rm $id >/dev/null"
            ),
        ],
    );
    assert!(listed.lines().any(|path| Path::new(path) == Path::new("usr/bin/portcullis")));
    for shell in ["bin/sh", "bin/bash", "usr/bin/sh", "usr/bin/apt-get", "bin/busybox"] {
        assert!(!listed.lines().any(|path| path == shell), "{shell}");
    }
    let config = output("docker", &["inspect", "--format", "{{.Config.User}}", image]);
    assert_eq!(config.trim(), "65532:65532");
}
