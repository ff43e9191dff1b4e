//! A server that speaks one revision and no other, word for word: `scripted REVISION TRANSPORT`,
//! where the transport is `stdio`, `http` or `sse`. Over HTTP it prints its URL first.
//!
//! It knows nothing of rmcp and takes nothing on trust: what its revision does not have is an
//! error that says so, and so is what its revision requires and a client leaves out. Whoever
//! stands between it and a client of another revision has to get both right.

mod http;
mod peer;
mod tasks;
mod tools;

use std::sync::Arc;

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use peer::{Connection, World};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [revision, transport] = args.as_slice() else {
        anyhow::bail!("scripted REVISION stdio|http|sse");
    };
    let world = World::new(revision).with_context(|| format!("no such revision: {revision}"))?;
    match transport.as_str() {
        "stdio" => stdio(world).await,
        "http" => http::serve(world, http::streamable).await,
        "sse" => http::serve(world, http::sse).await,
        other => anyhow::bail!("no such transport: {other}"),
    }
}

async fn stdio(world: Arc<World>) -> anyhow::Result<()> {
    let (out, mut lines) = mpsc::unbounded_channel();
    let writer = tokio::spawn(async move {
        let mut stdout = tokio::io::stdout();
        while let Some(message) = lines.recv().await {
            let line = format!("{message}\n");
            if stdout.write_all(line.as_bytes()).await.is_err() || stdout.flush().await.is_err() {
                return;
            }
        }
    });
    let connection = Connection::new(world, out.clone());
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = input.next_line().await? {
        let message = match serde_json::from_str(&line) {
            Ok(message) => message,
            Err(error) => peer::error(&serde_json::Value::Null, -32700, &error.to_string()),
        };
        // Each on its own: one that waits holds up no other.
        let handled = connection.clone().handle(message, out.clone(), CancellationToken::new());
        tokio::spawn(handled);
    }
    writer.abort();
    Ok(())
}
