//! Witnesses over real sockets get every checkpoint in order, and rejected ones again.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixDatagram, UnixListener},
    path::Path,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use portcullis_audit::{
    Audit, Options,
    proof::{Settings, Witness},
};

use crate::common::{DEADLINE, call, intent};

/// Opens a log in `dir` that tells this witness.
fn open(dir: &Path, witness: &Witness) -> Audit {
    let witnesses = vec![witness.clone()];
    let state = Some(dir.to_owned());
    let checkpoints = Settings { state, records: u64::MAX, time: DEADLINE * 60, witnesses };
    let options = Options { deadline: DEADLINE, checkpoints, ..Options::default() };
    Audit::open_with(&dir.join("audit"), options).unwrap()
}

/// Signs three checkpoints and awaits that the witness has all of them, in order. `next` gives what
/// came: a note, or a message that holds one.
async fn told(witness: Witness, came: Receiver<String>) {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path(), &witness);
    let mut signed = vec![audit.checkpoints().note];
    for _ in 0..2 {
        intent(&audit, &call()).await.unwrap();
        signed.push(audit.checkpoint().await.unwrap().note);
    }
    let mut received = Vec::new();
    while received.len() < signed.len() {
        let message = came.recv_timeout(DEADLINE).expect("a checkpoint");
        let note = match message.split_once("{\"checkpoint\":") {
            Some((head, rest)) => {
                assert!(head.starts_with("<110>1 ") && head.ends_with(" checkpoint - "), "{head}");
                let rest = format!("{{\"checkpoint\":{rest}");
                let logged: serde_json::Value = serde_json::from_str(&rest).unwrap();
                logged["checkpoint"].as_str().unwrap().to_owned()
            }
            None => message,
        };
        // One can come twice.
        if received.last() != Some(&note) {
            received.push(note);
        }
    }
    assert_eq!(received, signed, "{witness}");
    let began = Instant::now();
    let status = loop {
        let status = audit.checkpoints().witnesses.remove(0);
        if status.delivered >= 3 || began.elapsed() > DEADLINE {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(status.delivered >= 3 && status.failing.is_none(), "{status:?}");
}

/// A message on a stream, counted as RFC 6587 says.
fn counted(stream: impl std::io::Read) -> String {
    let mut stream = BufReader::new(stream);
    let mut length = Vec::new();
    stream.read_until(b' ', &mut length).unwrap();
    let length: usize = String::from_utf8(length).unwrap().trim().parse().unwrap();
    let mut message = vec![0; length];
    stream.read_exact(&mut message).unwrap();
    let mut more = Vec::new();
    stream.read_to_end(&mut more).unwrap();
    assert!(more.is_empty(), "more than was counted");
    String::from_utf8(message).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_syslog_gets_octet_counted_messages() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let (send, came) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            if send.send(counted(stream.unwrap())).is_err() {
                return;
            }
        }
    });
    told(Witness::syslog(&address).unwrap(), came).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_syslog_gets_datagrams_or_a_stream() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("datagrams");
    let socket = UnixDatagram::bind(&path).unwrap();
    let (send, came) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length) = socket.recv(&mut buffer) {
            let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
            if send.send(message).is_err() {
                return;
            }
        }
    });
    told(Witness::syslog(&format!("unix://{}", path.display())).unwrap(), came).await;

    let path = dir.path().join("stream");
    let listener = UnixListener::bind(&path).unwrap();
    let (send, came) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            if send.send(counted(stream.unwrap())).is_err() {
                return;
            }
        }
    });
    told(Witness::syslog(&format!("unix://{}", path.display())).unwrap(), came).await;
}

/// Answers a POST with this status, and hands on what was posted.
fn answer(stream: TcpStream, status: &str) -> String {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&lower);
        if line.trim().is_empty() {
            break;
        }
    }
    assert!(head.starts_with("post /checkpoints?of=proxy http/1.1"), "{head}");
    assert!(head.contains("content-type: text/plain; charset=utf-8"), "{head}");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    String::from_utf8(body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_checkpoint_is_sent_to_the_url_again() {
    // As the executable does; another test may have done it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/checkpoints?of=proxy", listener.local_addr().unwrap());
    let (send, came) = mpsc::channel();
    let (refuse, refused) = mpsc::channel();
    thread::spawn(move || {
        for (at, stream) in listener.incoming().enumerate() {
            // The first is turned away, and one in the middle sent elsewhere.
            let status = match at {
                0 => "503 Service Unavailable",
                2 => "302 Found",
                _ => "204 No Content",
            };
            let body = answer(stream.unwrap(), status);
            let sent = if status.starts_with("204") { send.send(body) } else { refuse.send(body) };
            if sent.is_err() {
                return;
            }
        }
    });
    told(Witness::Url(url), came).await;
    assert_eq!(refused.try_iter().count(), 2);
}
