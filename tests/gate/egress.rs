//! Egress of servers through the proxy: policy, list, record.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{gate::Setup, until};

/// Fetches what it is told to, with the proxy of its environment or past it.
const SERVER: &str = r#"
import json, sys, threading, urllib.error, urllib.request
saying = threading.Lock()
def answer(m):
    out = {'jsonrpc': '2.0', 'id': m['id']}
    if m['method'] == 'initialize':
        out['result'] = {'protocolVersion': m['params']['protocolVersion'], 'capabilities': {'tools': {}},
            'serverInfo': {'name': 'fetcher', 'version': '1'}}
    elif m['method'] == 'tools/list':
        out['result'] = {'tools': [{'name': 'fetch', 'inputSchema': {'type': 'object'}}]}
    elif m['method'] == 'tools/call':
        a = m['params']['arguments']
        handlers = [] if a['proxy'] else [urllib.request.ProxyHandler({})]
        try:
            text = urllib.request.build_opener(*handlers).open(a['url'], timeout=30).read().decode()
        except urllib.error.HTTPError as error:
            text = f'{error.code} {error.read().decode()}'
        except Exception as error:
            text = repr(error)
        out['result'] = {'content': [{'type': 'text', 'text': text}]}
    else:
        out['error'] = {'code': -32601, 'message': 'unknown'}
    with saying:
        print(json.dumps(out), flush=True)
for line in sys.stdin:
    m = json.loads(line)
    if 'id' in m:
        threading.Thread(target=answer, args=(m,), daemon=True).start()
"#;

/// A web server of this machine.
async fn origin() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let _ = stream.read(&mut request).await;
                let answer =
                    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn egress_connections_are_decided_and_recorded() {
    let port = origin().await;
    let policies = format!(
        "@id(\"rest\") permit (principal, action, resource) \
         unless {{ action == Portcullis::Action::\"egress\" }}; \
         @id(\"web\") permit (principal == Portcullis::Server::\"fetcher\", \
         action == Portcullis::Action::\"egress\", resource) \
         when {{ resource.name == \"web.example\" && resource.port == {port} }};"
    );
    let gate = Setup::new(&format!(
        r#"
        [servers.fetcher]
        command = ["/usr/bin/python3", "-I", "-c", '''{SERVER}''']
        runtime = "sandbox"
        era = "legacy"
        env = {{ GATE = "{{mark}}" }}
        egress = ["http://web.example:{port}=127.0.0.1", "http://other.example:{port}=127.0.0.1"]
        "#
    ))
    .policies(&policies)
    .without_launches()
    .start()
    .await;
    let agent = gate.modern();
    let fetch = async |url: String, proxy: bool| {
        agent.text("fetcher__fetch", json!({ "url": url, "proxy": proxy })).await
    };
    for proxy in [true, false] {
        let web = fetch(format!("http://web.example:{port}/"), proxy).await;
        assert_eq!(web, "hello", "{proxy}");
        let other = fetch(format!("http://other.example:{port}/"), proxy).await;
        assert!(other.starts_with("403") && other.contains("policy does not permit"), "{other}");
    }
    let evil = fetch("http://evil.example/".into(), true).await;
    assert!(
        evil.starts_with("403")
            && evil.contains(
                "write `egress = [\"http://evil.example:80\"]` below `[servers.fetcher]`"
            ),
        "{evil}"
    );
    let nowhere = fetch("http://169.254.169.254/".into(), false).await;
    assert!(nowhere.contains("Network is unreachable"), "{nowhere}");

    let launched = gate.records(&["event = server-launching"]).await;
    assert_eq!(launched[0]["deviations"], json!(["egress"]), "{:#}", launched[0]);
    let before = gate.records(&["event = egress-connecting"]).await;
    assert_eq!(before.len(), 2, "{before:#?}");
    for record in &before {
        assert_eq!(record["host"], "web.example");
        assert_eq!(record["rules"][0]["id"], "web");
        assert_eq!(record["launch"], launched[0]["launch"]);
    }
    let after = until("all ends to be on record", async || {
        let after = gate.records(&["event = egress-closed"]).await;
        (after.len() == 5).then_some(after)
    })
    .await;
    let ends = |code: &str| after.iter().filter(|record| record["code"] == code).count();
    assert_eq!((ends("policy"), ends("not-listed")), (2, 1), "{after:#?}");
    let closed: Vec<_> = after.iter().filter(|record| record["end"] != "refused").collect();
    assert_eq!(closed.len(), 2, "{after:#?}");
    for record in closed {
        assert_eq!(record["address"], format!("127.0.0.1:{port}"));
        assert!(record["up"].as_u64() > Some(0) && record["down"].as_u64() > Some(0));
    }
    gate.stop().await;
}

/// The DNS of the proxy's network returns the address, and a server must not learn it.
#[tokio::test]
async fn only_the_log_shows_a_refused_private_address() {
    let mut gate = Setup::new(&format!(
        r#"
        [servers.fetcher]
        command = ["/usr/bin/python3", "-I", "-c", '''{SERVER}''']
        runtime = "sandbox"
        era = "legacy"
        env = {{ GATE = "{{mark}}", NO_PROXY = "", no_proxy = "" }}
        egress = ["http://localhost:80"]
        "#
    ))
    .policies("@id(\"all\") permit (principal, action, resource);")
    .without_launches()
    .start()
    .await;
    let arguments = json!({ "url": "http://localhost/", "proxy": true });
    let told = gate.modern().text("fetcher__fetch", arguments).await;
    assert!(told.starts_with("403") && told.contains("`http://localhost:80=ADDRESS`"), "{told}");
    assert!(!told.contains("127.0.0.1") && !told.contains("::1"), "{told}");
    let line = gate.logged("the refusal", |line| line.contains("private-address")).await;
    assert!(
        line.contains("http://localhost:80=127.0.0.1") || line.contains("http://localhost:80=::1"),
        "{line}"
    );
    assert!(line.contains("below `[servers.fetcher]`"), "{line}");
    gate.stop().await;
}

/// A web server that never comes to an end.
async fn endless() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let _ = stream.read(&mut request).await;
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello";
                let _ = stream.write_all(answer.as_bytes()).await;
                while let Ok(1..) = stream.read(&mut request).await {}
            });
        }
    });
    port
}

#[tokio::test]
async fn newly_forbidden_connection_ends() {
    let port = endless().await;
    let gate = Setup::new(&format!(
        r#"
        [servers.fetcher]
        command = ["/usr/bin/python3", "-I", "-c", '''{SERVER}''']
        runtime = "sandbox"
        era = "legacy"
        env = {{ GATE = "{{mark}}" }}
        egress = ["http://web.example:{port}=127.0.0.1"]
        egress-limits = {{ connections = 1 }}
        "#
    ))
    .policies("@id(\"all\") permit (principal, action, resource);")
    .without_launches()
    .start()
    .await;
    let agent = gate.modern();
    let arguments = json!({ "url": format!("http://web.example:{port}/"), "proxy": false });
    let (said, ()) = tokio::join!(agent.text("fetcher__fetch", arguments.clone()), async {
        until("it to be open", async || {
            (gate.records(&["event = egress-connecting"]).await.len() == 1).then_some(())
        })
        .await;
        let beyond = agent.text("fetcher__fetch", arguments).await;
        assert!(!beyond.starts_with("hello"), "{beyond}");
        until("what is beyond the limit to be on record", async || {
            let all = gate.records(&["event = egress-closed"]).await;
            all.iter().any(|record| record["code"] == "too-many").then_some(())
        })
        .await;
        let forbidden = "@id(\"all\") permit (principal, action, resource); \
             @id(\"closed\") forbid (principal, action == Portcullis::Action::\"egress\", resource);";
        std::fs::write(gate.path("policies/gate.cedar"), forbidden).unwrap();
    });
    assert!(said.contains("IncompleteRead") || said.contains("reset"), "{said}");
    let ended = until("its end to be on record", async || {
        let all = gate.records(&["event = egress-closed"]).await;
        all.into_iter().find(|record| record["end"] != "refused")
    })
    .await;
    assert_eq!((&ended["end"], &ended["code"]), (&json!("revoked"), &json!("policy")), "{ended:#}");
    assert_eq!(ended["rules"][0]["id"], "closed", "{ended:#}");
    let metrics = gate.metrics().await;
    for line in [
        "portcullis_egress_open{server=\"fetcher\"} 0",
        "portcullis_egress_connections_total{server=\"fetcher\",outcome=\"revoked\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    gate.stop().await;
}
