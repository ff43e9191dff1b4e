//! The proxy's end of the control connection to the process that starts and supervises a program.
//! Orders go out; the end of the program comes back.

use std::{io, os::fd::OwnedFd, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    net::unix::{OwnedWriteHalf, pipe},
    sync::{Mutex, mpsc, watch},
    time::timeout,
};

use super::protocol::USAGE;
use crate::{
    process::{Exit, Handle, Origin, Usage},
    started::Process,
};

/// Time limit for sending an order.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for the answer to `USAGE`.
const USAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// The proxy's end. Dropping it ends the connection, and so the program.
pub(super) struct Control {
    end: watch::Receiver<Option<Exit>>,
    /// Writer of orders until it is closed, and the answers to `USAGE`.
    orders: Mutex<Option<(OwnedWriteHalf, mpsc::Receiver<Usage>)>>,
    _held: mpsc::Sender<()>,
}

/// Counterpart for the task that reads the connection.
pub(super) struct Watching {
    measured: mpsc::Sender<Usage>,
    dropped: mpsc::Receiver<()>,
    ended: watch::Sender<Option<Exit>>,
}

impl Watching {
    /// Delivers an answer to `USAGE`. If the queue is full, nobody waits for it.
    pub(super) fn measured(&self, usage: Usage) {
        let _ = self.measured.try_send(usage);
    }

    /// Waits until the other half is dropped.
    pub(super) async fn dropped(&mut self) {
        let _ = self.dropped.recv().await;
    }

    /// Reports the program's end.
    pub(super) fn ended(self, exit: Exit) {
        self.ended.send_replace(Some(exit));
    }
}

impl Control {
    /// Both halves of a control connection that writes orders to `write`.
    pub(super) fn new(write: OwnedWriteHalf) -> (Self, Watching) {
        let (ended, end) = watch::channel(None);
        let (measured, usage) = mpsc::channel(1);
        let (held, dropped) = mpsc::channel(1);
        let control = Self { end, orders: Mutex::new(Some((write, usage))), _held: held };
        (control, Watching { measured, dropped, ended })
    }

    /// Waits for the program's end.
    pub(super) fn wait(&self) -> BoxFuture<'static, Exit> {
        let mut end = self.end.clone();
        Box::pin(async move {
            let ended = end.wait_for(Option::is_some).await;
            let exit = ended.ok().and_then(|exit| exit.clone());
            exit.unwrap_or(Exit { code: -1, reason: Some("its supervisor has ended".into()) })
        })
    }

    /// Sends an order. Does nothing after the program's end.
    pub(super) async fn order(&self, order: u8) {
        if let Some((write, _)) = self.orders.lock().await.as_mut() {
            let _ = send(write, order).await;
        }
    }

    /// Ends the connection.
    pub(super) async fn disconnect(&self) {
        drop(self.orders.lock().await.take());
    }

    /// Requests the program's resource usage.
    pub(super) async fn usage(&self) -> Option<Usage> {
        let mut orders = self.orders.lock().await;
        let (write, usage) = orders.as_mut()?;
        // Drop late answers to earlier requests.
        while usage.try_recv().is_ok() {}
        send(write, USAGE).await?;
        timeout(USAGE_TIMEOUT, usage.recv()).await.ok().flatten()
    }
}

async fn send(write: &mut OwnedWriteHalf, order: u8) -> Option<()> {
    use tokio::io::AsyncWriteExt as _;
    timeout(SEND_TIMEOUT, write.write_all(&[order])).await.ok()?.ok()
}

/// A process with the proxy's ends of its streams.
pub(super) fn process(
    [stdin, stdout, stderr]: [OwnedFd; 3],
    handle: impl Handle + 'static,
) -> io::Result<Process> {
    Ok(Process {
        stdin: Box::new(pipe::Sender::from_owned_fd(stdin)?),
        stdout: Box::new(pipe::Receiver::from_owned_fd(stdout)?),
        stderr: Box::new(pipe::Receiver::from_owned_fd(stderr)?),
        handle: Box::new(handle),
        origin: Origin::default(),
        egress_sockets: None,
    })
}
