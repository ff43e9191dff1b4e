//! Messages in the pipeline, and their responses.

use std::{future::ready, sync::Arc};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Caller, ConcurrencyPermit, ExchangeHandle, ExchangeResponse, ExchangeWork, Gateway};
use portcullis_protocol::{
    codec::{Frame, Id, Kind},
    refusal::Code,
};

/// A message that is being handled, or was rejected.
pub(super) enum InFlight {
    Running(Progress),
    Settled(Answer),
}

/// Result of one message.
pub(super) struct Answer {
    pub answered: ExchangeResponse,
    /// Whether the message required a response.
    pub expects_response: bool,
}

/// Output of messages in flight.
pub(super) enum Output {
    /// A notification or server request for the client.
    Notice(Bytes),
    Answer(Answer),
}

impl InFlight {
    /// Starts handling a message, on a task of its own.
    pub fn take(
        proxy: &Arc<Gateway>,
        caller: Caller,
        frame: Frame,
        call_permit: ConcurrencyPermit,
    ) -> Self {
        let mut progress = Progress::of(proxy, caller, frame, call_permit);
        progress.spawn();
        Self::Running(progress)
    }

    /// Whether a response will follow.
    pub fn expects_response(&self) -> bool {
        match self {
            Self::Running(progress) => progress.id.is_some(),
            Self::Settled(answer) => answer.expects_response,
        }
    }

    /// The client's id of the request.
    pub fn id(&self) -> Option<&Id> {
        match self {
            Self::Running(progress) => progress.id.as_ref(),
            Self::Settled(_) => None,
        }
    }
}

impl Answer {
    /// Whether the client cancelled the request. Then it should get no response.
    pub fn is_cancelled(&self) -> bool {
        self.expects_response && self.answered.refused == Some(Code::Cancelled)
    }

    /// The text for a client that would take a notification's refusal for a response, and does not
    /// expect a response to what it cancelled.
    pub fn text(self) -> Option<Bytes> {
        let expected = self.expects_response && !self.is_cancelled();
        self.answered.text.filter(|_| expected)
    }
}

/// The output of messages in order of arrival, the response to each last. Dropping it cancels the
/// unfinished messages.
pub(super) struct Outputs {
    /// The client's id of the first request.
    pub id: Option<Id>,
    all: SelectAll<BoxStream<'static, Output>>,
    _guards: Vec<DropGuard>,
}

impl Outputs {
    pub fn of(sent: Vec<InFlight>) -> Self {
        let id = sent.first().and_then(InFlight::id).cloned();
        let mut guards = Vec::new();
        let all = stream::select_all(sent.into_iter().map(|sent| match sent {
            InFlight::Settled(answer) => stream::once(ready(Output::Answer(answer))).boxed(),
            InFlight::Running(progress) => {
                guards.push(progress.cancel.clone().drop_guard());
                let next = async |mut progress: Progress| Some((progress.next().await?, progress));
                stream::unfold(progress, next).boxed()
            }
        }));
        Self { id, all, _guards: guards }
    }

    /// The next output. Cancel safe.
    pub async fn next(&mut self) -> Option<Output> {
        self.all.next().await
    }
}

/// A message in the pipeline with its output.
pub(super) struct Progress {
    /// The client's id of the request.
    pub id: Option<Id>,
    pub cancel: CancellationToken,
    notices: mpsc::Receiver<Bytes>,
    work: ExchangeWork,
    /// The response, until it is the next output.
    answer: Option<Answer>,
    over: bool,
}

impl Progress {
    /// Starts handling a message. It advances while [`next`](Self::next) is awaited.
    pub fn of(
        proxy: &Arc<Gateway>,
        caller: Caller,
        frame: Frame,
        call_permit: ConcurrencyPermit,
    ) -> Self {
        let id = match &frame.kind {
            Kind::Request { id, .. } => Some(id.clone()),
            _ => None,
        };
        let ExchangeHandle { notices, work, cancel } = proxy.start(caller, frame, call_permit);
        Self { id, cancel, notices, work, answer: None, over: false }
    }

    /// Moves the handling to a task of its own: it advances while its client reads slowly.
    pub fn spawn(&mut self) {
        self.work.spawn();
    }

    /// The next output; the response is the last. Cancel safe.
    pub async fn next(&mut self) -> Option<Output> {
        if self.over {
            return None;
        }
        if self.answer.is_none() {
            let answered = tokio::select! {
                biased;
                Some(text) = self.notices.recv() => return Some(Output::Notice(text)),
                answered = &mut self.work => answered,
            };
            let expects_response = self.id.is_some();
            self.answer = answered.map(|answered| Answer { answered, expects_response });
        }
        // Notifications from before the response are sent before it. Later ones have no receiver.
        if self.answer.is_some()
            && let Ok(text) = self.notices.try_recv()
        {
            return Some(Output::Notice(text));
        }
        self.over = true;
        self.answer.take().map(Output::Answer)
    }
}
