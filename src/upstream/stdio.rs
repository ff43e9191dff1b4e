//! Stdio transport: one JSON text a line on the server's standard input and output.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, FramedRead};

use super::{
    call_error::CallError,
    message_sink::MessageSink,
    multiplexer::{Cancel, Multiplexer, StreamKind},
    transport::{Call, Reply, ServerTransport},
};
use portcullis_protocol::{
    codec::{Caps, Frame, one_line},
    exchange::{Method, Revision},
};

/// Maximum number of queued messages to a server.
const QUEUE: usize = 64;
/// Longest wait for the sending of a message without a response.
const PATIENCE: Duration = Duration::from_secs(5);

/// Transport over two pipes. Dropping it closes the server's standard input.
pub struct StdioTransport {
    lines: mpsc::Sender<Bytes>,
    board: Arc<Multiplexer>,
}

impl StdioTransport {
    /// A transport over these pipes. Messages without a call go to `ear`.
    pub(super) fn new(
        stdin: impl AsyncWrite + Send + Unpin + 'static,
        stdout: impl AsyncRead + Send + Unpin + 'static,
        caps: Caps,
        ear: MessageSink,
    ) -> Self {
        let (lines, queue) = mpsc::channel(QUEUE);
        let weak = lines.downgrade();
        let out = Arc::new(move |text| {
            let lines = weak.upgrade();
            let sending = async move {
                if let Some(lines) = lines
                    && tokio::time::timeout(PATIENCE, lines.send(text)).await.is_err()
                {
                    tracing::debug!("server does not read its input; message dropped");
                }
            };
            Box::pin(sending) as _
        });
        let board = Arc::new(Multiplexer::new(caps, ear, out));
        tokio::spawn(write(stdin, queue, board.clone()));
        tokio::spawn(read(stdout, board.clone()));
        Self { lines, board }
    }

    async fn send(&self, text: Bytes) -> Result<(), CallError> {
        self.lines.send(text).await.map_err(|_| self.board.unavailable())
    }
}

#[async_trait]
impl ServerTransport for StdioTransport {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        if self.board.dead().is_some() {
            return Err(self.board.unavailable());
        }
        let (begun, text) = self.board.begin(&call);
        // `initialize` cannot be cancelled.
        let cancels = call.method.as_str() != Method::INITIALIZE;
        let mut guard = Cancel { board: &self.board, id: begun.id, cancels: false };
        let work = async {
            self.send(text).await?;
            guard.cancels = cancels;
            begun.answer.await.unwrap_or_else(|_| Err(self.board.unavailable()))
        };
        let reply = call.clock.bound(work).await;
        guard.cancels &= matches!(reply, Err(CallError::Timeout(_)));
        reply
    }

    async fn notify(&self, method: &str, params: Bytes) -> Result<(), CallError> {
        let text = Frame::notification(method, &params);
        tokio::time::timeout(PATIENCE, self.send(text))
            .await
            .unwrap_or(Err(CallError::Timeout(PATIENCE)))
    }

    fn agreed(&self, revision: Revision) {
        self.board.agreed(revision);
    }

    fn dead(&self) -> Option<String> {
        self.board.dead()
    }
}

async fn write(
    mut stdin: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Bytes>,
    board: Arc<Multiplexer>,
) {
    while let Some(text) = queue.recv().await {
        let line = one_line(text);
        let written = async {
            stdin.write_all(&line).await?;
            stdin.write_all(b"\n").await?;
            stdin.flush().await
        };
        if let Err(error) = written.await {
            board.die(format!("its standard input cannot be written: {error}"));
            return;
        }
    }
}

async fn read(stdout: impl AsyncRead + Unpin, board: Arc<Multiplexer>) {
    let most = board.caps.bytes;
    let codec = AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), b"\n".to_vec(), most);
    let mut lines = FramedRead::new(stdout, codec);
    let why = loop {
        match lines.next().await {
            None => break "it ended".to_owned(),
            Some(Err(AnyDelimiterCodecError::Io(error))) => {
                break format!("its standard output cannot be read: {error}");
            }
            Some(Err(AnyDelimiterCodecError::MaxChunkLengthExceeded)) => {
                break format!("it wrote a message of more than {most} bytes");
            }
            Some(Ok(line)) if line.iter().all(u8::is_ascii_whitespace) => {}
            Some(Ok(line)) => board.take(line, StreamKind::Only).await,
        }
    };
    board.die(why);
}

#[cfg(test)]
mod tests;
