//! The streams of a container, copied both ways.

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

/// For a client to close its end after the container has closed its.
const CLOSING: Duration = Duration::from_secs(10);
/// How often is looked whether a client that says nothing more is still there.
const LOOK: Duration = Duration::from_secs(2);
const BUFFER: usize = 64 << 10;

/// Copies until the container's streams have ended or the client has gone. Who reads slowly is
/// written to slowly, and holds up the other side: nothing is kept here but one buffer each way.
pub async fn run(client: (UnixStream, Bytes), engine: (UnixStream, Bytes)) {
    let (client_read, client_write) = client.0.into_split();
    let (engine_read, engine_write) = engine.0.into_split();
    let inward = inward(client.1, client_read, engine_write);
    let outward = outward(engine.1, engine_read, client_write);
    tokio::pin!(inward, outward);
    tokio::select! {
        () = &mut inward => {}
        () = &mut outward => {
            let _ = timeout(CLOSING, inward).await;
        }
    }
}

/// Copies to the container, and ends once the client has gone.
async fn inward(first: Bytes, mut client: OwnedReadHalf, mut engine: OwnedWriteHalf) {
    let mut buffer = vec![0; BUFFER];
    let mut bytes: &[u8] = &first;
    loop {
        // A container that reads nothing must not hide that its client has gone.
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
    // The end of its input is the container's to act on, but a client that has gone altogether will
    // never read what that comes to.
    gone(&client).await;
}

/// Copies to the client all that the container says.
async fn outward(first: Bytes, mut engine: OwnedReadHalf, mut client: OwnedWriteHalf) {
    let mut buffer = vec![0; BUFFER];
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

/// Resolves once the peer has closed both ways.
async fn gone(peer: &OwnedReadHalf) {
    let both = Interest::READABLE.add(Interest::WRITABLE);
    while let Ok(ready) = peer.as_ref().ready(both).await {
        if ready.is_write_closed() {
            return;
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_client_that_goes_is_noticed_while_the_container_reads_nothing() {
        let (client, far) = UnixStream::pair().expect("a pair");
        let (engine, container) = UnixStream::pair().expect("a pair");
        engine.writable().await.expect("room");
        while engine.try_write(&[0; BUFFER]).is_ok() {}
        let input = Bytes::from_static(b"what nobody reads");
        let running = tokio::spawn(run((client, input), (engine, Bytes::new())));
        drop(far);
        timeout(PATIENCE, running).await.expect("the tunnel's end").expect("no panic");
        drop(container);
    }

    #[tokio::test]
    async fn what_a_container_said_before_it_ended_gets_to_a_slow_client() {
        let (client, mut far) = UnixStream::pair().expect("a pair");
        let (engine, mut container) = UnixStream::pair().expect("a pair");
        let running = tokio::spawn(run((client, Bytes::new()), (engine, Bytes::new())));
        let said = vec![7; 4 << 20];
        let saying = tokio::spawn(async move { container.write_all(&said).await });
        let mut heard = Vec::new();
        timeout(PATIENCE, far.read_to_end(&mut heard)).await.expect("its end").expect("to read");
        assert_eq!(heard.len(), 4 << 20);
        assert!(saying.await.expect("no panic").is_ok());
        drop(far);
        timeout(PATIENCE, running).await.expect("the tunnel's end").expect("no panic");
    }
}
