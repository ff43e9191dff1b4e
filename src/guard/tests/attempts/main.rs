//! Attempts to circumvent the guard, with raw requests to the guard of a real engine.

mod lifecycle;
mod stand;

use portcullis_guard::{Allow, NAME, label};
use serde_json::json;

use crate::stand::{Stand, body, create, direct, image, lure, name};

#[tokio::test]
async fn foreign_requests_never_reach_the_engine() {
    let stand = Stand::new("calls", &[]).await;
    for (method, target, body) in [
        ("GET", "//v1.41/containers/json", ""),
        ("GET", "/v1.41//containers/json", ""),
        ("GET", "/v1.41/containers//json", ""),
        ("GET", "/v1.41/../v1.41/containers/json", ""),
        ("GET", "/v1.41/./info", ""),
        ("GET", "/v1.41/containers/x/../json", ""),
        ("GET", "/v1.41/%69nfo", ""),
        ("GET", "/v1.41/containers/%2e%2e/info", ""),
        ("GET", "/v1.41/containers%2Fjson", ""),
        ("GET", "/v1.41/info/", ""),
        ("GET", "/v1.41/info%00", ""),
        ("GET", "/v1.41/info;a=b", ""),
        ("GET", "/v1.41\\info", ""),
        ("GET", "http://docker/v1.41/info", ""),
        ("GET", "http:/v1.41/info", ""),
        ("CONNECT", "docker:80", ""),
        ("OPTIONS", "*", ""),
        ("OPTIONS", "/v1.41/info", ""),
        ("TRACE", "/v1.41/info", ""),
        ("HEAD", "/_ping", ""),
        ("GET", "/_ping", ""),
        ("GET", "/events", ""),
        ("POST", "/build?remote=http://a.example/x.tar", ""),
        ("GET", "/v1.24/info", ""),
        ("GET", "/v1.40/info", ""),
        ("GET", "/v1.4100/info", ""),
        ("GET", "/v0/info", ""),
        ("GET", "/v1.41/info?x=1", ""),
        ("GET", "/v1.41/info", "{}"),
        ("POST", "/v1.41/info", ""),
        ("GET", "/v1.41/events", ""),
        ("GET", "/v1.41/system/df", ""),
        ("POST", "/v1.41/auth", "{}"),
        ("POST", "/v1.41/build?remote=http://a.example/x.tar", ""),
        ("POST", "/v1.41/build", ""),
        ("POST", "/v1.41/build/prune", ""),
        ("POST", "/v1.41/session", ""),
        ("POST", "/v1.41/grpc", ""),
        ("POST", "/v1.41/commit?container=x", "{}"),
        ("GET", "/v1.41/images/json", ""),
        ("GET", "/v1.41/images/get?names=debian", ""),
        ("GET", "/v1.41/images/debian/get", ""),
        ("GET", "/v1.41/images/debian/history", ""),
        ("DELETE", "/v1.41/images/debian", ""),
        ("POST", "/v1.41/images/debian/tag?repo=a", ""),
        ("POST", "/v1.41/images/debian/push", ""),
        ("POST", "/v1.41/images/prune", ""),
        ("POST", "/v1.41/images/load", "x"),
        ("POST", "/v1.41/images/create?fromImage=debian&tag=latest", ""),
        ("POST", "/v1.41/images/create?fromSrc=http://a.example/x.tar&repo=a", ""),
        ("POST", "/v1.41/images/create?fromSrc=-", "x"),
        ("GET", "/v1.41/networks", ""),
        ("POST", "/v1.41/networks/create", "{\"Name\":\"x\"}"),
        ("POST", "/v1.41/networks/bridge/connect", "{}"),
        ("GET", "/v1.41/volumes", ""),
        (
            "POST",
            "/v1.41/volumes/create",
            r#"{"Name":"x","Driver":"local","DriverOpts":{"type":"none","o":"bind","device":"/"}}"#,
        ),
        ("POST", "/v1.41/plugins/pull?remote=a", "[]"),
        ("GET", "/v1.41/plugins", ""),
        ("POST", "/v1.41/swarm/init", "{}"),
        ("GET", "/v1.41/swarm", ""),
        ("POST", "/v1.41/services/create", "{}"),
        ("GET", "/v1.41/secrets", ""),
        ("POST", "/v1.41/containers/prune", ""),
        ("GET", "/v1.41/containers/json?filters=%7B%7D&size=1", ""),
        ("GET", "/v1.41/containers/json?limit=1", ""),
        ("POST", "/v1.41/exec/0123/start", "{}"),
        ("POST", "/metrics", ""),
        ("GET", "/debug/pprof/", ""),
    ] {
        let answer = stand.ask(method, target, body).await;
        assert!((400..500).contains(&answer.status), "{method} {target}: {answer:?}");
        assert_ne!(answer.status, 404, "the engine was asked: {method} {target}: {answer:?}");
    }
}

#[tokio::test]
async fn ambiguous_requests_are_refused() {
    let stand = Stand::new("framing", &[]).await;
    let second = "GET /v1.41/containers/json HTTP/1.1\r\nHost: d\r\n\r\n";
    for head in [
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\n",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nContent-Length: 0, 9\r\n\r\n",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nContent-Length: +0\r\n\r\n",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\n\r\nabc",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nUpgrade: tcp\r\nConnection: Upgrade\r\n\r\n",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nConnection: close, Upgrade\r\n\r\n",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nUpgrade: h2c\r\n\r\n",
        "GET /v1.41/version HTTP/1.0\r\nHost: d\r\n\r\n",
        "GET /v1.41/version HTTP/0.9\r\n\r\n",
        "GET /v1.41/version\r\n\r\n",
        "GET /v1.41/ver\0sion HTTP/1.1\r\nHost: d\r\n\r\n",
        "GET /v1.41/version HTTP/1.1\r\nHost: d\r\nA: b\r\n c\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = stand.raw(format!("{head}{second}").as_bytes()).await;
        assert_ne!(answer.status, 200, "{head:?}: {answer:?}");
        assert_eq!(answer.heads().max(1), 1, "{head:?}: {answer:?}");
    }
    let many: String = (0..100).map(|n| format!("X-{n}: y\r\n")).collect();
    let long = format!("X: {}\r\n", "y".repeat(100_000));
    for headers in [many, long] {
        let head = format!("GET /v1.41/version HTTP/1.1\r\nHost: d\r\n{headers}\r\n");
        assert_ne!(stand.raw(head.as_bytes()).await.status, 200);
    }
    // Data after an allowed request on its connection is not read.
    let pipelined = format!("GET /v1.41/version HTTP/1.1\r\nHost: d\r\n\r\n{second}");
    let answer = stand.raw(pipelined.as_bytes()).await;
    assert_eq!((answer.status, answer.heads()), (200, 1), "{answer:?}");
}

#[tokio::test]
async fn containers_of_others_are_not_accessible() {
    let stand = Stand::new("own", &[Allow::Pack]).await;
    let image = image(&stand).await;
    // A container of another owner, as similar as possible.
    let labels = json!({
        label::OWNER: "m b n 1 2", label::INSTANCE: "i", label::SERVER: "notes",
        label::PROFILE: "p", label::GUARD: "another",
    });
    let theirs = json!({"Image": image, "Labels": labels, "HostConfig": {"NetworkMode": "none"}});
    let target = format!("/v1.41/containers/create?name={}", name("theirs"));
    let created = direct("POST", &target, &theirs.to_string()).await;
    let theirs = created.json()["Id"].as_str().unwrap_or_else(|| panic!("{created:?}")).to_owned();
    // And one with the guard's labels and name prefix.
    let lure = lure(&stand, &image, "lure", &name("lure")).await;

    for id in [&theirs, &theirs[..12].to_owned(), &name("theirs"), &lure, &"0".repeat(64)] {
        for (method, tail) in [
            ("GET", "/json"),
            ("POST", "/start"),
            ("POST", "/wait?condition=removed"),
            ("POST", "/kill?signal=SIGKILL"),
            ("GET", "/stats?stream=false"),
            ("DELETE", "?force=true&v=true"),
        ] {
            let answer = stand.ask(method, &format!("/v1.41/containers/{id}{tail}"), "").await;
            assert_eq!(answer.status, 404, "{method} {tail}: {answer:?}");
            assert!(answer.text.contains("guard-container"), "{answer:?}");
        }
        let attach = format!(
            "POST /v1.41/containers/{id}/attach?stream=true&stdin=true HTTP/1.1\r\nHost: d\r\n\
             Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
        );
        assert_eq!(stand.raw(attach.as_bytes()).await.status, 404);
    }

    let created = create(&stand, &image, "ours").await;
    assert_eq!(created.status, 201, "{created:?}");
    let ours = created.json()["Id"].as_str().expect("an id").to_owned();
    for (method, tail, body) in [
        ("POST", "/rename?name=x", ""),
        ("POST", "/update", r#"{"Memory":0}"#),
        ("POST", "/exec", r#"{"Cmd":["sh"],"Privileged":true}"#),
        ("POST", "/start", r#"{"HostConfig":{"Privileged":true}}"#),
        ("POST", "/start?detachKeys=a", ""),
        ("POST", "/restart", ""),
        ("POST", "/stop", ""),
        ("POST", "/pause", ""),
        ("POST", "/resize?h=1&w=1", ""),
        ("POST", "/copy", r#"{"Resource":"/etc"}"#),
        ("GET", "/archive?path=/", ""),
        ("PUT", "/archive?path=/", "x"),
        ("HEAD", "/archive?path=/", ""),
        ("GET", "/export", ""),
        ("GET", "/logs?stdout=1", ""),
        ("GET", "/top", ""),
        ("GET", "/changes", ""),
        ("GET", "/attach/ws?stream=1", ""),
        ("GET", "/json?size=1", ""),
        ("GET", "/stats", "x"),
        ("GET", "/stats?stream=true", ""),
        ("POST", "/kill?signal=SIGUSR1", ""),
        ("POST", "/kill", ""),
        ("POST", "/wait", ""),
        ("POST", "/attach?stream=true", ""),
        ("POST", "/attach?stream=true&logs=true", ""),
        ("POST", "/attach", ""),
    ] {
        let answer = stand.ask(method, &format!("/v1.41/containers/{ours}{tail}"), body).await;
        assert!((400..500).contains(&answer.status), "{method} {tail}: {answer:?}");
        assert_ne!(answer.status, 404, "{method} {tail}: {answer:?}");
    }
    // Lists have only its own containers, whatever the filter.
    for filters in ["", "&filters=%7B%7D", "&filters=%7B%22name%22%3A%5B%22.%22%5D%7D"] {
        let list = stand.ask("GET", &format!("/v1.41/containers/json?all=true{filters}"), "").await;
        let list = list.json();
        let ids: Vec<&str> =
            list.as_array().expect("a list").iter().filter_map(|c| c["Id"].as_str()).collect();
        assert_eq!(ids, [ours.as_str()]);
    }
    // Information about the machine has only the needed fields.
    let info = stand.ask("GET", "/v1.41/info", "").await.json();
    assert!(info["OSType"].is_string() && info["Name"].is_null() && info["HttpProxy"].is_null());

    let removed = stand.ask("DELETE", &format!("/v1.41/containers/{ours}?force=true"), "").await;
    assert_eq!(removed.status, 204, "{removed:?}");
    for id in [theirs, lure] {
        let found = direct("DELETE", &format!("/v1.41/containers/{id}?force=true"), "").await;
        assert_eq!(found.status, 204, "it should be there still: {found:?}");
    }
}

#[tokio::test]
async fn network_is_joined_only_by_the_client_that_holds_it() {
    let mut stand = Stand::still("joins", &[Allow::Pack]);
    let layer = {
        let first = Stand::new("layer", &[Allow::Pack]).await;
        let image = image(&first).await;
        let shown = direct("GET", &format!("/v1.41/images/{image}/json"), "").await.json();
        shown["RootFS"]["Layers"][0].as_str().expect("a layer").to_owned()
    };
    stand.rules.holders = [layer].into();
    stand.start().await;
    let image = image(&stand).await;
    let mut holder = body(&stand.rules, &image);
    holder["Labels"][label::HOLDS] = name("joins").into();
    let target = |tail: &str| format!("/v1.41/containers/create?name={}", name(tail));
    let held = stand.ask("POST", &target("holds"), &holder.to_string()).await;
    let id = held.json()["Id"].as_str().unwrap_or_else(|| panic!("{held:?}")).to_owned();
    let mut joins = body(&stand.rules, &image);
    joins["HostConfig"]["NetworkMode"] = format!("container:{id}").into();
    let text = joins.to_string();

    // Another process that sends the same request.
    let url = format!("http://d{}", target("joins"));
    let socket = stand.socket();
    let request = tokio::process::Command::new("curl")
        .args(["-s", "-m", "60", "-H", "Content-Type: application/json", "-d", &text, &url])
        .arg("--unix-socket")
        .arg(&socket)
        .output();
    let shown = String::from_utf8(request.await.expect("curl").stdout).expect("text");
    assert!(shown.contains("no pause container of this guard holds for it"), "{shown}");

    // A refused request has joined nothing, whether refused for its mounts or its image.
    let mut mounts = joins.clone();
    mounts["HostConfig"]["Mounts"] = json!([{"Type": "bind", "Source": "/etc", "Target": "/x",
        "ReadOnly": true, "BindOptions": {"Propagation": "rprivate", "NonRecursive": true}}]);
    let mut absent = joins.clone();
    absent["Image"] = format!("sha256:{}", "0".repeat(64)).into();
    for (other, status) in [(mounts, 403), (absent, 404)] {
        let refused = stand.ask("POST", &target("joins"), &other.to_string()).await;
        assert_eq!(refused.status, status, "{refused:?}");
    }
    let joined = stand.ask("POST", &target("joins"), &text).await;
    assert_eq!(joined.status, 201, "{joined:?}");
    assert_eq!(stand.ask("POST", &target("joins"), &text).await.status, 403);
    for tail in ["joins", "holds"] {
        let target = format!("/v1.41/containers/{}?force=true&v=true", name(tail));
        assert_eq!(stand.ask("DELETE", &target, "").await.status, 204);
    }
}

#[tokio::test]
async fn refused_creations_leave_no_container() {
    let stand = Stand::new("create", &[Allow::Pack]).await;
    let image = image(&stand).await;
    let whole = body(&stand.rules, &image).to_string();
    let tamper = |from: &str, to: &str| {
        assert!(whole.contains(from), "{from}");
        whole.replacen(from, to, 1)
    };
    for body in [
        tamper("\"Privileged\":false", "\"Privileged\":true"),
        tamper("\"Privileged\":false", "\"Privileged\":false,\"Privileged\":true"),
        tamper("\"Privileged\":false", "\"Privileged\":false,\"privileged\":true"),
        tamper("\"Privileged\":false", "\"Privileged\":false,\"PRIVILEGED\":true"),
        tamper("\"Privileged\":false", "\"Privileged\":false,\"Privi\\u006ceged\":true"),
        tamper("\"Privileged\":false", "\"Privileged\":false,\"Binds\":[\"/:/host\"]"),
        tamper("\"Privileged\":false", "\"Privileged\":false,\"binds\":[\"/:/host\"]"),
        tamper(
            "\"Privileged\":false",
            "\"Privileged\":false,\"Devices\":[{\"PathOnHost\":\"/dev/sda\"}]",
        ),
        tamper("\"Privileged\":false", "\"Privileged\":false,\"PidMode\":\"host\""),
        tamper("\"Privileged\":false", "\"Privileged\":false,\"UsernsMode\":\"host\""),
        tamper("\"Privileged\":false", "\"Privileged\":false,\"VolumesFrom\":[\"x\"]"),
        tamper("\"Privileged\":false", "\"Privileged\":false,\"Unknown\":1"),
        tamper("\"Env\":[]", "\"Env\":[],\"Volumes\":{\"/x\":{}}"),
        tamper("\"Env\":[]", "\"Env\":[],\"hostConfig\":{\"Privileged\":true}"),
        tamper("\"NetworkMode\":\"none\"", "\"NetworkMode\":\"host\""),
        tamper("\"NetworkMode\":\"none\"", "\"NetworkMode\":\"bridge\""),
        tamper("\"IpcMode\":\"private\"", "\"IpcMode\":\"host\""),
        tamper("\"CapDrop\":[\"ALL\"]", "\"CapDrop\":[\"ALL\"],\"CapAdd\":[\"SYS_ADMIN\"]"),
        tamper("\"PidsLimit\":64", "\"PidsLimit\":0"),
        tamper("\"Memory\":67108864", "\"Memory\":0"),
        tamper("seccomp=", "seccomp=unconfined,"),
        tamper("\"User\":\"65534:65534\"", "\"User\":\"0:0\""),
        tamper(&image, "debian:latest"),
        tamper(
            "\"Mounts\":[]",
            "\"Mounts\":[{\"Type\":\"bind\",\"Source\":\"/\",\"Target\":\"/h\",\"ReadOnly\":true,\"BindOptions\":{\"Propagation\":\"rprivate\",\"NonRecursive\":true}}]",
        ),
        tamper(
            "\"Mounts\":[]",
            "\"Mounts\":[{\"Type\":\"volume\",\"Target\":\"/h\",\"VolumeOptions\":{\"DriverConfig\":{\"Options\":{\"device\":\"/\",\"o\":\"bind\",\"type\":\"none\"}}}}]",
        ),
        tamper(
            "\"dev.portcullis.profile\":\"p\"",
            "\"dev.portcullis.profile\":\"p\",\"dev.portcullis.guard\":\"another\"",
        ),
        tamper("\"dev.portcullis.server\":\"notes\"", "\"dev.portcullis.server\":\"other\""),
        whole[..whole.len() - 1].to_owned(),
        format!("{whole}{whole}"),
        format!("[{whole}]"),
    ] {
        let target = format!("/v1.41/containers/create?name={}", name("loose"));
        let answer = stand.ask("POST", &target, &body).await;
        assert!(matches!(answer.status, 400 | 403), "{body}: {answer:?}");
    }
    for target in [
        "/v1.41/containers/create".to_owned(),
        "/v1.41/containers/create?name=other".to_owned(),
        format!("/v1.41/containers/create?name={NAME}other-1"),
        format!("/v1.41/containers/create?name={}&name=x", name("loose")),
        format!("/v1.41/containers/create?Name={}", name("loose")),
        format!("/v1.41/containers/create?name={}%2f..", name("loose")),
        format!("/v1.41/containers/create?name={}&platform=a%20b", name("loose")),
        format!("/v1.41/containers/create?name={}&x=y", name("loose")),
    ] {
        let answer = stand.ask("POST", &target, &whole).await;
        assert!(matches!(answer.status, 400 | 403), "{target}: {answer:?}");
    }
    let long = format!("{{\"Env\":[\"A={}\"]}}", "x".repeat(5 << 20));
    let target = format!("/v1.41/containers/create?name={}", name("loose"));
    assert!(matches!(stand.ask("POST", &target, &long).await.status, 429));
    let list = stand.ask("GET", "/v1.41/containers/json?all=true", "").await;
    assert_eq!(list.json(), json!([]), "{list:?}");
}
