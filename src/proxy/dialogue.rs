//! A call under way at a server, with what the server says meanwhile.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::upstream::{Call, Clock, Failure, Instance, Reply, Running, Said};

/// What a server may say that its client has not heard yet.
const SAID: usize = 64;

/// A call under way. Dropping it cancels the call.
pub(super) struct Dialogue {
    said: mpsc::Receiver<Said>,
    reply: AbortOnDropHandle<Result<Reply, Failure>>,
    clock: Clock,
}

/// What comes next.
pub(super) enum Turn {
    Said(Said),
    Over(Result<Reply, Failure>),
}

impl Dialogue {
    /// Makes a call.
    pub fn begin(instance: Arc<Instance>, running: Arc<Running>, mut call: Call) -> Self {
        let (sender, said) = mpsc::channel(SAID);
        call.said = Some(sender);
        let clock = call.clock.clone();
        let reply = tokio::spawn(async move { instance.call(&running, call).await });
        Self { said, reply: AbortOnDropHandle::new(reply), clock }
    }

    /// The next that the server says; its answer is the last. Nothing is lost where this future is
    /// dropped.
    pub async fn next(&mut self) -> Turn {
        tokio::select! {
            biased;
            // The call holds the sender, so all that it was told comes before its answer.
            Some(said) = self.said.recv() => Turn::Said(said),
            reply = &mut self.reply => Turn::Over(reply.unwrap_or_else(|_| {
                Err(Failure::Misbehaved("the work for the call ended early".into()))
            })),
        }
    }

    /// The call's clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}
