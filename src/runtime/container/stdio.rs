//! The three streams of an attached container.

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

/// Frames (of at most 32 KiB each) that wait for their reader.
const QUEUE: usize = 8;
/// How long standard error may hold up standard output when nobody reads it.
const PATIENCE: Duration = Duration::from_millis(250);

pub(super) type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, Error>> + Send>>;
pub(super) type Input = Pin<Box<dyn AsyncWrite + Send>>;
type Frames = mpsc::Receiver<Bytes>;

/// Splits the engine's stream into standard output and error. Resolves when the stream has ended.
///
/// A reader of standard output that stops holds up the server (back-pressure). Standard error comes
/// by the same stream, so a reader of it that stops may not: what does not fit is dropped.
pub(super) async fn demultiplex(
    mut output: Output,
    stdout: mpsc::Sender<Bytes>,
    stderr: mpsc::Sender<Bytes>,
) {
    let mut patient = true;
    while let Some(frame) = output.next().await {
        match frame {
            Ok(LogOutput::StdErr { message }) if patient => {
                let sent = stderr.send_timeout(message, PATIENCE).await;
                patient = !matches!(sent, Err(SendTimeoutError::Timeout(_)));
            }
            Ok(LogOutput::StdErr { message }) => patient = stderr.try_send(message).is_ok(),
            Ok(frame) => {
                // A reader that has gone wants no more; the rest is still read, for its end.
                let _ = stdout.send(frame.into_bytes()).await;
            }
            // The stream's end either way; how the container ended is for `wait` to say.
            Err(_) => break,
        }
    }
}

/// The two ends of a bounded queue of frames: one for [`demultiplex`], one to read from.
pub(super) fn pipe() -> (mpsc::Sender<Bytes>, Box<dyn AsyncRead + Send + Unpin>) {
    let (sender, frames): (_, Frames) = mpsc::channel(QUEUE);
    (sender, Box::new(StreamReader::new(ReceiverStream::new(frames).map(Ok::<_, io::Error>))))
}

/// The container's standard input. Dropping it is its end, as with a pipe.
///
/// The engine may keep the connection of a container that has ended, and read nothing more from
/// it; so a write fails as soon as the container's own streams have ended, instead of waiting.
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
        // The reading half keeps the connection open, so its end has to be said.
        if let (Some(mut input), Ok(runtime)) = (self.input.take(), Handle::try_current()) {
            runtime.spawn(async move {
                let _ = input.shutdown().await;
            });
        }
    }
}
