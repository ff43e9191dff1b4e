//! A web server of this machine, and egress to it. The sandbox tests use it, too.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use portcullis_egress::{Attempt, Gate, Limits, Outcome, Verdict};
use portcullis_runtime::{process::LaunchSpec, started::Process};

/// How often a program is started that asks for a host at once.
pub const STARTS: usize = 20;

/// Lets through all that is listed, and keeps what it is told.
#[derive(Default)]
pub struct Recorder {
    pub asked: Mutex<Vec<String>>,
    pub told: Mutex<Vec<String>>,
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

    fn report(&self, outcome: Outcome) {
        self.told.lock().unwrap().push(format!("{:?}", outcome.end));
    }
}

/// A web server on this machine's loopback, which answers everything with the request's first line.
pub fn origin() -> u16 {
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

/// Has the way out of a process served.
pub fn serve(mut process: Process, spec: &LaunchSpec, gate: Arc<Recorder>) -> Process {
    let door = process.egress_sockets.take().expect("a door");
    let (listed, limits) = (spec.egress.clone(), Limits::default());
    process.handle = door.serve(&spec.server, listed, limits, gate, process.handle).unwrap();
    process
}
