//! Messages in the pipeline, and their responses.

use std::{future::ready, sync::Arc};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;

use crate::{Caller, ConcurrencyPermit, ExchangeHandle, ExchangeResponse, Gateway};
use portcullis_protocol::{
    codec::{Frame, Id, Kind},
    refusal::Code,
};

/// A message that is being handled, or was rejected.
pub(super) enum InFlight {
    Running { handle: ExchangeHandle, id: Option<Id> },
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
    /// Starts handling a message.
    pub fn take(
        proxy: &Arc<Gateway>,
        caller: Caller,
        frame: Frame,
        call_permit: ConcurrencyPermit,
    ) -> Self {
        let id = match &frame.kind {
            Kind::Request { id, .. } => Some(id.clone()),
            _ => None,
        };
        Self::Running { handle: proxy.start(caller, frame, call_permit), id }
    }

    /// Whether a response will follow.
    pub fn expects_response(&self) -> bool {
        match self {
            Self::Running { id, .. } => id.is_some(),
            Self::Settled(answer) => answer.expects_response,
        }
    }

    /// The client's id of the request.
    pub fn id(&self) -> Option<&Id> {
        match self {
            Self::Running { id, .. } => id.as_ref(),
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

/// The output of messages in order of arrival, the response to each last, and guards that cancel
/// unfinished messages.
pub(super) fn pieces(
    sent: Vec<InFlight>,
) -> (SelectAll<BoxStream<'static, Output>>, Vec<DropGuard>) {
    let mut guards = Vec::new();
    let pieces = stream::select_all(sent.into_iter().map(|sent| match sent {
        InFlight::Settled(answer) => stream::once(ready(Output::Answer(answer))).boxed(),
        InFlight::Running { handle: ExchangeHandle { notices, response, cancel }, id } => {
            guards.push(cancel);
            let expects_response = id.is_some();
            stream::unfold(
                Progress::Running { notices, answer: response, expects_response },
                Progress::next,
            )
            .boxed()
        }
    }));
    (pieces, guards)
}

/// Progress of a message.
enum Progress {
    Running {
        notices: mpsc::Receiver<Bytes>,
        answer: oneshot::Receiver<ExchangeResponse>,
        expects_response: bool,
    },
    /// Notifications from before the response are sent before it. Later ones on the same channel
    /// have no receiver.
    Ending {
        notices: mpsc::Receiver<Bytes>,
        answer: Answer,
    },
    Over,
}

impl Progress {
    async fn next(self) -> Option<(Output, Self)> {
        let (mut notices, answer) = match self {
            Self::Running { mut notices, mut answer, expects_response } => {
                let answered = tokio::select! {
                    biased;
                    Some(text) = notices.recv() => {
                        let running = Self::Running { notices, answer, expects_response };
                        return Some((Output::Notice(text), running));
                    }
                    answered = &mut answer => answered.ok()?,
                };
                (notices, Answer { answered, expects_response })
            }
            Self::Ending { notices, answer } => (notices, answer),
            Self::Over => return None,
        };
        Some(match notices.try_recv() {
            Ok(text) => (Output::Notice(text), Self::Ending { notices, answer }),
            Err(_) => (Output::Answer(answer), Self::Over),
        })
    }
}
