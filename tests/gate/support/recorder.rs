//! Servers that the tests control: `tests/servers/recorder.rs`.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{
    gate::{Gate, Setup},
    in_time, server,
};

/// A recorder over HTTP, which ends with the test.
pub struct Recorder {
    _child: Child,
    pub url: String,
}

impl Recorder {
    /// Starts a recorder of an era over `http` or `sse`.
    pub async fn start(era: &str, way: &str) -> Self {
        let mut child = Command::new(server("recorder"))
            .args([era, way])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = in_time("its URL", lines.next_line()).await.unwrap().unwrap();
        Self { _child: child, url }
    }
}

/// A proxy before recorders of both eras, over pipes and HTTP. It also serves standard input.
pub async fn gate(more: &str) -> (Gate, [Recorder; 2]) {
    let legacy = Recorder::start("legacy", "http").await;
    let modern = Recorder::start("modern", "http").await;
    let gate = Setup::new(&format!(
        r#"
        [servers.pipe-legacy]
        command = ["{{recorder}}", "legacy"]
        runtime = "sandbox"
        [servers.pipe-modern]
        command = ["{{recorder}}", "modern"]
        runtime = "sandbox"
        [servers.http-legacy]
        url = "{}"
        [servers.http-modern]
        url = "{}"
        {more}
        "#,
        legacy.url, modern.url
    ))
    .write()
    .start_with(&["--stdio"])
    .await;
    (gate, [legacy, modern])
}
