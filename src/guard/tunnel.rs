//! Copies the streams of a container in both directions.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{sleep, timeout},
};

/// Time for a client to close its end after the container has closed its own.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between checks whether a silent client is still connected.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
const BUFFER_BYTES: usize = 64 << 10;

/// Copies until the container's streams have ended or the client has disconnected. A slow reader
/// slows the other side down: only one buffer is kept for each direction.
pub async fn run(client: (UnixStream, Bytes), engine: (UnixStream, Bytes)) {
    let (client_read, client_write) = client.0.into_split();
    let (engine_read, engine_write) = engine.0.into_split();
    let inward = inward(client.1, client_read, engine_write);
    let outward = outward(engine.1, engine_read, client_write);
    tokio::pin!(inward, outward);
    tokio::select! {
        () = &mut inward => {}
        () = &mut outward => {
            let _ = timeout(CLOSE_TIMEOUT, inward).await;
        }
    }
}

/// Copies to the container, and ends when the client has disconnected.
async fn inward(first: Bytes, mut client: OwnedReadHalf, mut engine: OwnedWriteHalf) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes: &[u8] = &first;
    loop {
        // A container that does not read must not hide that its client has disconnected.
        tokio::select! {
            biased;
            written = engine.write_all(bytes) => if written.is_err() { break },
            () = gone(&client) => return,
        }
        bytes = match client.read(&mut buffer).await {
            Ok(read @ 1..) => buffer.get(..read).unwrap_or_default(),
            _ => break,
        };
    }
    let _ = engine.shutdown().await;
    // The container reacts to the end of its input. A fully disconnected client will never read the
    // result.
    gone(&client).await;
}

/// Copies all output of the container to the client.
async fn outward(first: Bytes, mut engine: OwnedReadHalf, mut client: OwnedWriteHalf) {
    let mut buffer = vec![0; BUFFER_BYTES];
    if client.write_all(&first).await.is_ok() {
        while let Ok(read @ 1..) = engine.read(&mut buffer).await {
            let Some(bytes) = buffer.get(..read) else { break };
            if client.write_all(bytes).await.is_err() {
                break;
            }
        }
    }
    let _ = client.shutdown().await;
}

/// Resolves when the peer has closed both directions.
async fn gone(peer: &OwnedReadHalf) {
    let both = Interest::READABLE.add(Interest::WRITABLE);
    while let Ok(ready) = peer.as_ref().ready(both).await {
        if ready.is_write_closed() {
            return;
        }
        sleep(CHECK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn disconnect_is_noticed_while_the_container_does_not_read() {
        let (client, far) = UnixStream::pair().expect("a pair");
        let (engine, container) = UnixStream::pair().expect("a pair");
        engine.writable().await.expect("room");
        while engine.try_write(&[0; BUFFER_BYTES]).is_ok() {}
        let input = Bytes::from_static(b"unread input");
        let running = tokio::spawn(run((client, input), (engine, Bytes::new())));
        drop(far);
        timeout(TEST_TIMEOUT, running).await.expect("the tunnel's end").expect("no panic");
        drop(container);
    }

    #[tokio::test]
    async fn slow_client_gets_all_output_of_an_ended_container() {
        let (client, mut far) = UnixStream::pair().expect("a pair");
        let (engine, mut container) = UnixStream::pair().expect("a pair");
        let running = tokio::spawn(run((client, Bytes::new()), (engine, Bytes::new())));
        let payload = vec![7; 4 << 20];
        let sending = tokio::spawn(async move { container.write_all(&payload).await });
        let mut received = Vec::new();
        timeout(TEST_TIMEOUT, far.read_to_end(&mut received))
            .await
            .expect("its end")
            .expect("to read");
        assert_eq!(received.len(), 4 << 20);
        assert!(sending.await.expect("no panic").is_ok());
        drop(far);
        timeout(TEST_TIMEOUT, running).await.expect("the tunnel's end").expect("no panic");
    }
}
