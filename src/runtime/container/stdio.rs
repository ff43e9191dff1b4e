//! Standard streams of an attached container.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bollard::{container::LogOutput, errors::Error};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    runtime::Handle,
    sync::mpsc::{self, error::SendTimeoutError},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{
    io::StreamReader,
    sync::{CancellationToken, WaitForCancellationFutureOwned},
};

/// Limit of frames (of at most 32 KiB each) that wait for their reader.
const MAX_QUEUED_FRAMES: usize = 8;
/// Time that unread standard error may delay standard output.
const STDERR_SEND_TIMEOUT: Duration = Duration::from_millis(250);

pub(super) type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, Error>> + Send>>;
pub(super) type Input = Pin<Box<dyn AsyncWrite + Send>>;
type Frames = mpsc::Receiver<Bytes>;

/// Splits the engine's stream into standard output and error. Resolves when the stream has ended.
///
/// A reader of standard output that stops reading blocks the server (back-pressure). Standard error
/// uses the same stream, so it must not block: frames that do not fit are dropped.
pub(super) async fn demultiplex(
    mut output: Output,
    stdout: mpsc::Sender<Bytes>,
    stderr: mpsc::Sender<Bytes>,
) {
    let mut patient = true;
    while let Some(frame) = output.next().await {
        match frame {
            Ok(LogOutput::StdErr { message }) if patient => {
                let sent = stderr.send_timeout(message, STDERR_SEND_TIMEOUT).await;
                patient = !matches!(sent, Err(SendTimeoutError::Timeout(_)));
            }
            Ok(LogOutput::StdErr { message }) => patient = stderr.try_send(message).is_ok(),
            Ok(frame) => {
                // The reader may be gone. The stream is still read until its end.
                let _ = stdout.send(frame.into_bytes()).await;
            }
            // Either way the stream has ended; `wait` reports how the container ended.
            Err(_) => break,
        }
    }
}

/// Both ends of a bounded queue of frames: one for [`demultiplex`], one to read from.
pub(super) fn pipe() -> (mpsc::Sender<Bytes>, Box<dyn AsyncRead + Send + Unpin>) {
    let (sender, frames): (_, Frames) = mpsc::channel(MAX_QUEUED_FRAMES);
    (sender, Box::new(StreamReader::new(ReceiverStream::new(frames).map(Ok::<_, io::Error>))))
}

/// Standard input of the container. Dropping it closes the input, as with a pipe.
///
/// The engine may keep the connection of an ended container open without reading. So a write fails
/// as soon as the container's streams have ended, instead of blocking.
pub(super) struct Stdin {
    input: Option<Input>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stdin {
    /// `ended` is cancelled once the container's streams have ended.
    pub fn new(input: Input, ended: CancellationToken) -> Self {
        Self { input: Some(input), ended: Box::pin(ended.cancelled_owned()) }
    }

    fn inner(&mut self) -> io::Result<Pin<&mut (dyn AsyncWrite + Send + 'static)>> {
        self.input.as_mut().map(Pin::as_mut).ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl AsyncWrite for Stdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.inner()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.inner()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(input) = &mut self.input else { return Poll::Ready(Ok(())) };
        let shut = input.as_mut().poll_shutdown(cx);
        if shut.is_ready() {
            self.input = None;
        }
        shut
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        // The reading half keeps the connection open, so the end of input is sent explicitly.
        if let (Some(mut input), Ok(runtime)) = (self.input.take(), Handle::try_current()) {
            runtime.spawn(async move {
                let _ = input.shutdown().await;
            });
        }
    }
}
