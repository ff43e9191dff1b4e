//! The way out of a container that has no network.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use portcullis::{
    container::Engine,
    egress::{Attempt, Gate, Limits, Outcome, Verdict},
    upstream::process::{LaunchSpec, Process},
};
use rmcp::{ServiceExt, model::CallToolRequestParams};
use serde_json::Value;

use crate::support::{Ran, bash, engine, finish, probe, spec, strings, wait_until_gone};

/// Lets through all that is listed, and keeps what it is told.
#[derive(Default)]
struct Recorder {
    asked: Mutex<Vec<String>>,
    told: Mutex<Vec<String>>,
}

#[async_trait]
impl Gate for Recorder {
    async fn decide(&self, attempt: &Attempt) -> Verdict {
        let asked = format!("{}:{} {}", attempt.host, attempt.port, attempt.protocol.as_str());
        self.asked.lock().unwrap().push(asked);
        Verdict::Allow
    }

    async fn changed(&self) {
        std::future::pending().await
    }

    fn still(&self, _: &Attempt) -> Verdict {
        Verdict::Allow
    }

    fn told(&self, outcome: Outcome) {
        self.told.lock().unwrap().push(format!("{:?}", outcome.end));
    }
}

/// A web server on this machine's loopback, which answers everything with the request's first line.
fn origin() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut part = [0; 1024];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(read) if read > 0 => request.extend(&part[..read]),
                    _ => break,
                }
            }
            let line =
                String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\nseen: {line}",
                line.len() + 6
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

/// A launch whose way out is served.
async fn launch(engine: &Engine, spec: &LaunchSpec, gate: Arc<Recorder>) -> Process {
    let mut process = engine.launch(spec).await.unwrap();
    let door = process.door.take().expect("a door");
    process.handle = door
        .serve(&spec.server, spec.egress.clone(), Limits::default(), gate, process.handle)
        .unwrap();
    process
}

/// Runs a script of bash once the way out is there, as servers wait to be greeted.
async fn bash_says(engine: &Engine, gate: Arc<Recorder>, egress: &[String], script: &str) -> Ran {
    let script = format!("read; {script}");
    let mut spec = spec(bash(engine).await, &["-c", &script]);
    spec.egress = egress.iter().map(|text| text.parse().unwrap()).collect();
    finish(launch(engine, &spec, gate).await, "go\n").await
}

/// Prints all that comes of one request.
const ASK: &str = r#"
ask() {
    exec 3<>"/dev/tcp/$1/$2" || return
    printf "$3" >&3
    while IFS= read -r line <&3 || [ -n "$line" ]; do echo "${line%$'\r'}"; line=; done
    exec 3>&-
}
"#;

#[tokio::test]
async fn listed_hosts_are_reached_and_nothing_else() {
    let engine = engine().await;
    let port = origin();
    let gate = Arc::new(Recorder::default());
    let listed = [format!("http://web.example:{port}=127.0.0.1")];
    let script = format!(
        r#"{ASK}
        echo "$HTTP_PROXY $https_proxy"
        proxy=${{HTTP_PROXY#http://}}
        at=${{proxy%:*}} by=${{proxy#*:}}
        ask web.example {port} 'GET /direct HTTP/1.1\r\nHost: web.example:{port}\r\nConnection: close\r\n\r\n'
        echo
        ask $at $by 'GET http://web.example:{port}/proxy HTTP/1.1\r\nHost: web.example:{port}\r\nConnection: close\r\n\r\n'
        echo
        ask $at $by 'CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n'
        for place in evil.example/80 1.1.1.1/443 169.254.169.254/80 172.17.0.1/22 10.0.0.1/80 192.31.196.9/{port}; do
            (exec 4<>/dev/tcp/$place) 2>/dev/null && echo "REACHED $place"
        done
        (exec 4<>/dev/udp/8.8.8.8/53 && printf x >&4) 2>/dev/null && echo "REACHED the DNS"
        echo over
        "#
    );
    let ran = bash_says(&engine, gate.clone(), &listed, &script).await;
    let said = &ran.stdout;
    assert!(
        said.contains("http://192.31.196.1:3128 http://192.31.196.1:3128"),
        "{ran:?}",
        ran = (said, &ran.stderr)
    );
    assert!(said.contains("seen: GET /direct HTTP/1.1"), "{said} {}", ran.stderr);
    assert!(said.contains("seen: GET /proxy HTTP/1.1"), "{said} {}", ran.stderr);
    assert!(said.contains("403 Forbidden"), "{said}");
    assert!(
        said.contains("write `egress = [\"evil.example:443\"]` below `[servers.subject]`"),
        "{said}"
    );
    assert!(!said.contains("REACHED") && said.contains("over"), "{said}");
    let asked = gate.asked.lock().unwrap().clone();
    let http = format!("web.example:{port} http");
    assert_eq!(asked, [http.clone(), http]);
    let told = gate.told.lock().unwrap().clone();
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told.iter().filter(|end| end.contains("NotListed")).count(), 1, "{told:?}");
}

/// A program that trusts in `HTTPS_PROXY`, or knows of no proxy, as it comes from the distribution.
#[tokio::test]
async fn curl_needs_nothing_but_its_list() {
    let engine = engine().await;
    let port = origin();
    let image = engine.pack(Path::new("/usr/bin/curl")).await.unwrap();
    for more in [&[][..], &["--noproxy", "*"]] {
        let gate = Arc::new(Recorder::default());
        // It does not wait to be greeted.
        let patient = ["-sS", "--retry", "30", "--retry-delay", "1", "--retry-all-errors"];
        let url = format!("http://web.example:{port}/x");
        let command: Vec<_> = patient.iter().chain(more).copied().chain([url.as_str()]).collect();
        let mut spec = spec(image.clone(), &command);
        spec.egress = vec![format!("http://web.example:{port}=127.0.0.1").parse().unwrap()];
        let ran = finish(launch(&engine, &spec, gate).await, "").await;
        assert!(ran.stdout.contains("seen: GET /x HTTP/1.1"), "{} {}", ran.stdout, ran.stderr);
    }
}

/// The probe's report, as a server that lives until it is asked.
async fn asked(engine: &Engine, mut spec: LaunchSpec) -> Value {
    spec.image = Some(engine.pack(probe()).await.unwrap());
    let process = engine.launch(&spec).await.unwrap();
    let client = ().serve((process.stdout, process.stdin)).await.unwrap();
    let result = client.call_tool(CallToolRequestParams::new("probe")).await.unwrap();
    client.cancel().await.unwrap();
    process.handle.stop(Duration::from_secs(5)).await;
    serde_json::to_value(result).unwrap()["structuredContent"].clone()
}

#[tokio::test]
async fn the_profile_tells_of_it_and_is_otherwise_the_same() {
    let engine = engine().await;
    let mut listed = spec("", &[]);
    listed.egress = vec!["api.example.com:443".parse().unwrap()];
    let with = asked(&engine, listed.clone()).await;
    let without = asked(&engine, spec("", &[])).await;
    for field in ["capabilities", "seccomp", "calls", "sockets", "interfaces", "writes"] {
        assert_eq!(with[field], without[field], "{field}");
    }
    assert_eq!(strings(&with["interfaces"]), [""; 0]);
    listed.image = None;
    let profile = portcullis::container::Profile::of(&listed);
    let deviations = profile.unwrap().deviations();
    assert_eq!(deviations.len(), 1);
    assert_eq!(deviations[0].to_string(), "Egress: api.example.com:443 (egress)");
}

#[tokio::test]
async fn a_way_that_can_t_be_opened_leaves_no_container() {
    let engine = engine().await;
    let mut spec = spec(bash(&engine).await, &["-c", "read"]);
    spec.egress = vec!["api.example.com:443".parse().unwrap()];
    spec.hardening.network = true;
    let refused = engine.launch(&spec).await.unwrap_err();
    assert!(refused.what.contains("more than its list"), "{}", refused.what);
    wait_until_gone(&engine, &spec.instance).await;
}
