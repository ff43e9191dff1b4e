//! Standard input and output: one client, the local user; one JSON text a line.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, FramedRead};

use super::connection::{Connection, ENDED, Rejected};
use crate::Gateway;
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{Flaw, one_line},
    exchange::Transport,
    identity::Principal,
    refusal::Refusal,
};

/// Time that a message may wait for a permit. Nothing is read meanwhile, so that a fast client's
/// messages wait in the pipe. The time is short, because the next message may be the cancellation
/// that frees a permit.
const PATIENCE: Duration = Duration::from_secs(1);

/// Input of a client.
type Input = Box<dyn AsyncRead + Send + Unpin>;
/// Output to a client.
type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Serves one client until its input ends or the proxy stops.
///
/// The future is boxed so that this crate compiles it, with the optimization for messages.
pub fn serve(proxy: Arc<Gateway>, input: Input, output: Output) -> BoxFuture<'static, ()> {
    Box::pin(read_all(proxy, input, output))
}

async fn read_all(proxy: Arc<Gateway>, input: Input, output: Output) {
    let closing = proxy.closing().clone();
    let bytes = proxy.request_caps().bytes;
    let (client, messages) =
        Connection::new(proxy, Principal::local(), View::All, Transport::Stdio);
    let writer = tokio::spawn(write(output, messages));
    let codec = AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), b"\n".to_vec(), bytes);
    let mut lines = FramedRead::new(input, codec);
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            () = closing.cancelled() => break,
            () = client.gone().cancelled() => break,
        };
        match line {
            None | Some(Err(AnyDelimiterCodecError::Io(_))) => break,
            Some(Err(AnyDelimiterCodecError::MaxChunkLengthExceeded)) => {
                let refusal = Refusal::from(Flaw::TooLarge(bytes));
                client.send_text(client.refuse(&refusal.into(), None).await).await;
            }
            Some(Ok(line)) if line.iter().all(u8::is_ascii_whitespace) => {}
            Some(Ok(line)) => {
                if let Err(away) = take(&client, line.clone()).await {
                    client.send_text(client.refuse(&away, Some(&line)).await).await;
                }
            }
        }
    }
    // Requests in flight may still be answered.
    client.drain().await;
    client.end(ENDED);
    drop(client);
    let _ = tokio::time::timeout(Duration::from_secs(2), writer).await;
}

async fn take(client: &Arc<Connection>, line: Bytes) -> Result<(), Rejected> {
    let call_permit = client.proxy.admission.acquire_within(&client.principal, PATIENCE).await?;
    let line = client.proxy.admission.arrived(&client.principal, line)?;
    if let Some(initialize_task) = client.take(line, call_permit, None).await? {
        // All later messages belong to its session.
        let _ = initialize_task.await;
    }
    Ok(())
}

async fn write(mut output: Output, mut lines: mpsc::Receiver<Bytes>) {
    while let Some(text) = lines.recv().await {
        let line = one_line(text);
        let written = async {
            output.write_all(&line).await?;
            output.write_all(b"\n").await?;
            output.flush().await
        };
        if written.await.is_err() {
            // The client reads no more; its input will end, too.
            return;
        }
    }
}
