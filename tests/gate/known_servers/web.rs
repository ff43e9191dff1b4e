//! mcp-server-fetch.

use serde_json::json;

use super::{contained, failed, stop_without_orphans};
use crate::support::{authority::Authority, until, web::Web};

const PROGRAM: [&str; 3] = ["python3", "-m", "mcp_server_fetch"];

fn page(host: &str, path: &str) -> Option<(&'static str, Vec<u8>)> {
    let text = match (host, path) {
        ("closed.example", "/robots.txt") => "User-agent: *\nDisallow: /",
        ("web.example", "/robots.txt") => "User-agent: *\nDisallow: /private",
        ("web.example", "/hello" | "/private") => {
            return Some((
                "text/html",
                b"<html><head><title>t</title></head><body><article><h1>Hello</h1>\
                  <p>from the <b>web</b></p></article></body></html>"
                    .to_vec(),
            ));
        }
        ("web.example", "/long") => return Some(("text/plain", vec![b'x'; 1 << 20])),
        _ => return None,
    };
    Some(("text/plain", text.into()))
}

#[tokio::test]
async fn listed_hosts_are_fetched_over_http_and_tls() {
    let authority = Authority::of(&["web.example"]);
    let clear = Web::serve("127.0.0.1:0", None, page).await;
    let secure = Web::serve("127.0.0.1:0", Some(&authority), page).await;
    let (http, https) = (clear.address.port(), secure.address.port());
    let folder = super::open_folder();
    std::fs::write(folder.path().join("ca.pem"), &authority.certificate).unwrap();
    let gate = contained(
        "web",
        &PROGRAM,
        &format!(
            r#"
            env.SSL_CERT_FILE = "/ca/ca.pem"
            mounts = ["{}:/ca"]
            egress = [
                "http://web.example:{http}=127.0.0.1",
                "http://closed.example:{http}=127.0.0.1",
                "web.example:{https}=127.0.0.1",
            ]
            "#,
            folder.path().display()
        ),
    )
    .start()
    .await;
    let agent = gate.legacy().await;
    for (scheme, port) in [("http", http), ("https", https)] {
        let url = |path: &str| json!({ "url": format!("{scheme}://web.example:{port}{path}") });
        let hello = agent.text("web__fetch", url("/hello")).await;
        assert!(hello.contains("Hello") && hello.contains("from the"), "{hello}");
        let private = failed(&agent, "web__fetch", url("/private")).await;
        assert!(private.contains("robots.txt"), "{private}");
        let mut long = url("/long");
        long["max_length"] = json!(600_000);
        assert!(agent.text("web__fetch", long).await.len() > 600_000);
    }
    let seen = clear.seen();
    assert!(seen.contains(&"web.example/hello".to_owned()), "{seen:?}");
    assert!(!seen.iter().any(|request| request.ends_with("/private")), "{seen:?}");
    let closed = json!({ "url": format!("http://closed.example:{http}/x") });
    assert!(failed(&agent, "web__fetch", closed).await.contains("robots.txt"));
    // What is not listed is told to the agent by the server, to the operator by the record.
    let other = json!({ "url": "https://other.example/x" });
    let said = failed(&agent, "web__fetch", other).await;
    assert!(said.contains("connection issue"), "{said}");
    let refused = until("the refusal to be on record", async || {
        let all = gate.records(&["event = egress-closed"]).await;
        all.into_iter().find(|record| record["host"] == "other.example")
    })
    .await;
    assert_eq!(refused["code"], "not-listed", "{refused:#}");
    stop_without_orphans(gate).await;
}

/// The server does not trust the host's certificate.
#[tokio::test]
async fn host_with_an_unknown_certificate_is_refused() {
    let authority = Authority::of(&["web.example"]);
    let secure = Web::serve("127.0.0.1:0", Some(&authority), page).await;
    let port = secure.address.port();
    let listed = format!("egress = [\"web.example:{port}=127.0.0.1\"]");
    let gate = contained("web", &PROGRAM, &listed).start().await;
    let agent = gate.legacy().await;
    let url = json!({ "url": format!("https://web.example:{port}/hello") });
    let said = failed(&agent, "web__fetch", url).await;
    assert!(said.contains("connection issue"), "{said}");
    assert!(secure.seen().is_empty());
    stop_without_orphans(gate).await;
}
