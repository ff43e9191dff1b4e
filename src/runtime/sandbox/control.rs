//! Our end of the connection to whoever starts a program, and holds it: the orders that go there, and
//! the end of the program that comes from there.

use std::{io, os::fd::OwnedFd, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    net::unix::{OwnedWriteHalf, pipe},
    sync::{Mutex, mpsc, watch},
    time::timeout,
};

use super::protocol::USAGE;
use crate::process::{Exit, Handle, Origin, Process, Usage};

/// The time that an order may take to be sent.
const SENT: Duration = Duration::from_secs(5);
/// The time that the answer to `USAGE` may take.
const MEASURED: Duration = Duration::from_secs(2);

/// Our end. Dropping it ends the connection, and so the program.
pub(super) struct Control {
    end: watch::Receiver<Option<Exit>>,
    /// Where orders go, until that is let go of, and the answers to `USAGE`.
    orders: Mutex<Option<(OwnedWriteHalf, mpsc::Receiver<Usage>)>>,
    _held: mpsc::Sender<()>,
}

/// The end of whoever reads what comes from there.
pub(super) struct Watching {
    measured: mpsc::Sender<Usage>,
    dropped: mpsc::Receiver<()>,
    ended: watch::Sender<Option<Exit>>,
}

impl Watching {
    /// Hands on an answer to `USAGE`. Nobody waits for it any more where there is no room.
    pub(super) fn measured(&self, usage: Usage) {
        let _ = self.measured.try_send(usage);
    }

    /// Waits until the other end is dropped.
    pub(super) async fn dropped(&mut self) {
        let _ = self.dropped.recv().await;
    }

    /// Tells of the program's end.
    pub(super) fn ended(self, exit: Exit) {
        self.ended.send_replace(Some(exit));
    }
}

impl Control {
    /// A new one, over which orders are written there.
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
            exit.unwrap_or(Exit { code: -1, reason: Some("its supervisor is gone".into()) })
        })
    }

    /// Sends an order. What has ended takes none.
    pub(super) async fn order(&self, order: u8) {
        if let Some((write, _)) = self.orders.lock().await.as_mut() {
            let _ = send(write, order).await;
        }
    }

    /// Ends the connection.
    pub(super) async fn let_go(&self) {
        drop(self.orders.lock().await.take());
    }

    /// Asks what the program uses.
    pub(super) async fn usage(&self) -> Option<Usage> {
        let mut orders = self.orders.lock().await;
        let (write, usage) = orders.as_mut()?;
        // An answer that came too late for an earlier question.
        while usage.try_recv().is_ok() {}
        send(write, USAGE).await?;
        timeout(MEASURED, usage.recv()).await.ok().flatten()
    }
}

async fn send(write: &mut OwnedWriteHalf, order: u8) -> Option<()> {
    use tokio::io::AsyncWriteExt as _;
    timeout(SENT, write.write_all(&[order])).await.ok()?.ok()
}

/// A process with our ends of its streams.
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
        door: None,
    })
}
