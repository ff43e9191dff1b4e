//! Stdio transport: one JSON text a line on the server's standard input and output.

use std::{io, sync::Arc, time::Duration};

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
/// The end of a server whose pipes are closed.
const ENDED: &str = "it ended";
/// Longest wait for the sending of a message without a response.
const PATIENCE: Duration = Duration::from_secs(5);

/// Transport over two pipes. Dropping it closes the server's standard input.
pub struct StdioTransport {
    lines: mpsc::Sender<Bytes>,
    multiplexer: Arc<Multiplexer>,
}

impl StdioTransport {
    /// A transport over these pipes. Messages without a call go to `sink`.
    pub(super) fn new(
        stdin: impl AsyncWrite + Send + Unpin + 'static,
        stdout: impl AsyncRead + Send + Unpin + 'static,
        caps: Caps,
        sink: MessageSink,
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
        let multiplexer = Arc::new(Multiplexer::new(caps, sink, out));
        tokio::spawn(write(stdin, queue, multiplexer.clone()));
        tokio::spawn(read(stdout, multiplexer.clone()));
        Self { lines, multiplexer }
    }

    async fn send(&self, text: Bytes) -> Result<(), CallError> {
        self.lines.send(text).await.map_err(|_| self.multiplexer.unavailable())
    }
}

#[async_trait]
impl ServerTransport for StdioTransport {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        if self.multiplexer.dead().is_some() {
            return Err(self.multiplexer.unavailable());
        }
        let (begun, text) = self.multiplexer.begin(&call);
        // `initialize` cannot be cancelled.
        let cancels = call.method.as_str() != Method::INITIALIZE;
        let mut guard = Cancel { multiplexer: &self.multiplexer, id: begun.id, cancels: false };
        let work = async {
            self.send(text).await?;
            guard.cancels = cancels;
            begun.answer.await.unwrap_or_else(|_| Err(self.multiplexer.unavailable()))
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
        self.multiplexer.agreed(revision);
    }

    fn dead(&self) -> Option<String> {
        self.multiplexer.dead()
    }
}

async fn write(
    mut stdin: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Bytes>,
    multiplexer: Arc<Multiplexer>,
) {
    while let Some(text) = queue.recv().await {
        let line = one_line(text);
        let written = async {
            stdin.write_all(&line).await?;
            stdin.write_all(b"\n").await?;
            stdin.flush().await
        };
        if let Err(error) = written.await {
            multiplexer.die(match error.kind() {
                // Nothing reads it: the same end as that of standard output, which may come later.
                io::ErrorKind::BrokenPipe => ENDED.to_owned(),
                _ => format!("its standard input cannot be written: {error}"),
            });
            return;
        }
    }
}

async fn read(stdout: impl AsyncRead + Unpin, multiplexer: Arc<Multiplexer>) {
    let most = multiplexer.caps.bytes;
    let codec = AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), b"\n".to_vec(), most);
    let mut lines = FramedRead::new(stdout, codec);
    let why = loop {
        match lines.next().await {
            None => break ENDED.to_owned(),
            Some(Err(AnyDelimiterCodecError::Io(error))) => {
                break format!("its standard output cannot be read: {error}");
            }
            Some(Err(AnyDelimiterCodecError::MaxChunkLengthExceeded)) => {
                break format!("it wrote a message of more than {most} bytes");
            }
            Some(Ok(line)) if line.iter().all(u8::is_ascii_whitespace) => {}
            Some(Ok(line)) => multiplexer.take(line, StreamKind::Shared).await,
        }
    };
    multiplexer.die(why);
}

#[cfg(test)]
mod tests;
