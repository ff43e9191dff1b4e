//! Files, standard output, and datagrams.

use std::{fs, io::Write as _, os::unix::fs::MetadataExt as _, path::Path};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{UdpSocket, UnixDatagram},
};

use super::{arrives, by_seq, calls, exporting, stored};
use crate::support::{in_time, until};

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn file_contains_every_record_after_kills_and_rotations() {
    let to_file = "[[audit.export]]\nname = \"file\"\nto = \"file:out/audit.jsonl\"\n";
    let mut written = exporting(to_file).file("out/.keep", "").write();
    let (file, rotated) = (written.path("out/audit.jsonl"), written.path("out/audit.jsonl.1"));
    for _ in 0..2 {
        let gate = written.start().await;
        calls(&gate, 20).await;
        until("a part of it", async || (!text(&file).is_empty()).then_some(())).await;
        written = gate.kill_9().await;
        // As an abrupt stop can leave it: a line that was begun.
        let mut open = fs::OpenOptions::new().append(true).open(&file).unwrap();
        open.write_all(b"{\"v\":1,\"seq\":7,\"rec").unwrap();
    }
    let gate = written.start().await;
    // After the first batch of this run: until then the file is not open.
    let before = text(&file).len();
    calls(&gate, 1).await;
    until("more of it", async || (text(&file).len() > before).then_some(())).await;
    fs::rename(&file, &rotated).unwrap();
    calls(&gate, 5).await;
    until("the file after the rotation", async || (!text(&file).is_empty()).then_some(())).await;
    arrives(&gate, async || by_seq((text(&rotated) + &text(&file)).lines())).await;
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let written = gate.stop().await;
    assert_eq!(by_seq((text(&rotated) + &text(&file)).lines()), stored(&written).await);
}

#[tokio::test]
async fn csv_file_has_one_header() {
    let export = "[[audit.export]]\nname = \"csv\"\nto = \"file:a.csv\"\nformat = \"csv\"\n";
    let gate = exporting(export).start().await;
    calls(&gate, 3).await;
    let gate = gate.kill_9().await.start().await;
    calls(&gate, 3).await;
    let written = gate.stop().await;
    let mut reader = csv::Reader::from_path(written.path("a.csv")).unwrap();
    let at = reader.headers().unwrap().iter().position(|name| name == "line").unwrap();
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(by_seq(rows.iter().map(|row| &row[at])), stored(&written).await);
}

#[tokio::test]
async fn standard_output_gets_every_record_and_excludes_stdio_clients() {
    let export = "[[audit.export]]\nname = \"out\"\nto = \"stdout\"\n";
    let mut gate = exporting(export).start().await;
    let mut lines = BufReader::new(gate.stdout.take().unwrap()).lines();
    calls(&gate, 3).await;
    let wanted = stored(&gate).await;
    let mut got = Vec::new();
    while got.len() < wanted.len() {
        got.push(in_time("a record", lines.next_line()).await.unwrap().unwrap());
    }
    assert!(by_seq(got.iter().map(String::as_str)).into_iter().take(wanted.len()).eq(wanted));
    drop(lines);
    let written = gate.stop().await;
    let refused = written.cli(&["run", "--stdio"]).await;
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("standard output is the client's"), "{refused:#?}");
}

/// The record that a message of RFC 5424 holds.
fn payload(message: &[u8]) -> String {
    let message = std::str::from_utf8(message).unwrap();
    assert!(message.starts_with('<'), "{message}");
    message.split_once("\"] ").unwrap().1.to_owned()
}

#[tokio::test]
async fn each_datagram_contains_one_record() {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let setup = exporting(&format!(
        "[[audit.export]]\nname = \"udp\"\nto = \"syslog+udp://{}\"\n\
         [[audit.export]]\nname = \"unix\"\nto = \"unix:log.sock\"\n",
        udp.local_addr().unwrap()
    ));
    let written = setup.write();
    let unix = UnixDatagram::bind(written.path("log.sock")).unwrap();
    let gate = written.start().await;
    calls(&gate, 3).await;
    let wanted = stored(&gate).await;
    let mut buffer = vec![0; 65_536];
    let (mut by_udp, mut by_unix) = (Vec::new(), Vec::new());
    while by_udp.len() < wanted.len() {
        let length = in_time("a datagram", udp.recv(&mut buffer)).await.unwrap();
        by_udp.push(payload(&buffer[..length]));
    }
    while by_unix.len() < wanted.len() {
        let length = in_time("a datagram", unix.recv(&mut buffer)).await.unwrap();
        by_unix.push(payload(&buffer[..length]));
    }
    for got in [by_udp, by_unix] {
        let got = by_seq(got.iter().map(String::as_str));
        assert!(wanted.iter().all(|(seq, line)| got.get(seq).is_none_or(|got| got == line)));
        assert_eq!(got.len(), wanted.len());
    }
    // Nobody drains the socket at the end, and the proxy ends all the same.
    drop(unix);
    assert_stop_writes_the_cursor(gate).await;
}

async fn assert_stop_writes_the_cursor(gate: crate::support::gate::Gate) {
    let written = gate.stop().await;
    assert!(written.path("state/audit/exports/unix.cursor").exists());
}
