//! A registry that gives its servers in pages, over HTTP.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use super::*;

/// Text of a path whose answer is cut.
const CUT: &str = "cut";

/// Answers each path with its text, and other paths with 404.
struct Pages {
    origin: String,
    texts: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Pages {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let texts = Arc::<Mutex<BTreeMap<String, String>>>::default();
        let served = texts.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
                let path = first.split(' ').nth(1).unwrap();
                let answer = match served.lock().unwrap().get(path) {
                    Some(text) if text == CUT => {
                        "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"servers\":[".to_owned()
                    }
                    Some(text) => format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                        text.len()
                    ),
                    None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: \
                             close\r\n\r\n"
                        .to_owned(),
                };
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self { origin, texts }
    }

    fn put(&self, path: &str, servers: &[&str], cursor: Option<&str>) {
        let servers: Vec<Value> = servers
            .iter()
            .map(|name| {
                json!({ "server": { "name": name, "version": "1.0.0", "description": "A server",
                    "remotes": [{ "type": "streamable-http", "url": "https://far.example.com/mcp" }] },
                    "_meta": {} })
            })
            .collect();
        let text = json!({ "servers": servers, "metadata": { "nextCursor": cursor } }).to_string();
        self.texts.lock().unwrap().insert(path.to_owned(), text);
    }
}

#[test]
fn all_pages_of_a_registry_are_searched_offline() {
    let pages = Pages::start();
    pages.put("/v0/servers?limit=2", &["com.a/time", "com.a/fetch"], Some("com.a/fetch:1.0.0"));
    let second = "/v0/servers?limit=2&cursor=com.a%2Ffetch%3A1.0.0";
    pages.put(second, &["com.b/git", "com.b/db"], Some("last"));
    pages.put("/v0/servers?limit=2&cursor=last", &["com.c/search"], None);
    let dir = folder();
    let dir = dir.path();
    let url = format!("{}/v0/servers?limit=2", pages.origin);
    ok(dir, &["catalog", "add", "official", &url]);
    drop(std::mem::take(&mut *pages.texts.lock().unwrap()));
    let found = ok(dir, &["server", "search"]);
    for name in ["com.a/time", "com.a/fetch", "com.b/git", "com.b/db", "com.c/search"] {
        assert!(found.contains(name), "{found}");
    }
    assert!(ok(dir, &["server", "search", "com.c"]).contains("com.c/search"));
    ok(dir, &["add", "official/com.c/search"]);
    assert!(config(dir).contains("[servers.search]"), "{}", config(dir));
}

#[test]
fn registry_with_broken_pages_is_not_added() {
    let pages = Pages::start();
    let dir = folder();
    let dir = dir.path();
    let url = format!("{}/v0/servers", pages.origin);
    let refused = |why: &str| {
        let (code, out, err) = run(dir, &["catalog", "add", "official", &url]);
        assert_eq!(code, 1, "{out}{err}");
        assert!(err.contains(why), "{why}: {err}");
        assert!(!dir.join("portcullis.lock").exists());
    };
    refused("it answers 404");
    pages.texts.lock().unwrap().insert("/v0/servers".to_owned(), CUT.to_owned());
    refused("cannot fetch");
    // The next page is missing, is no page, or leads back.
    pages.put("/v0/servers", &["com.a/time"], Some("x"));
    refused("it answers 404");
    let next = "/v0/servers?cursor=x";
    pages.texts.lock().unwrap().insert(next.to_owned(), "<html>".to_owned());
    refused("has no list of servers");
    pages.put(next, &["com.a/fetch"], Some("x"));
    refused("repeats a cursor");
}
