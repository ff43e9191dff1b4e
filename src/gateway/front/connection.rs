//! A client that has one connection for everything: standard input and output, and HTTP+SSE
//! (2024-11-05). Messages for the client wait in one bounded outbox.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::mpsc::{self, error::SendTimeoutError},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    batch,
    in_flight::{InFlight, Output, Outputs},
    revision::{negotiate, unsupported},
};
use crate::{
    Caller, ConcurrencyPermit, Gateway,
    session::{Calls, Session},
};
use portcullis_chain::{Party, Weight, in_turns};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{
        Frame, Id, Kind,
        era::{META_CAPABILITIES, META_REVISION},
        is_batch,
    },
    exchange::{Method, Revision, Transport},
    identity::Principal,
    refusal::{Code, Refusal},
};

/// Messages that may wait for a slow client.
const OUTBOX: usize = 64;
/// Time for which they may wait before the client is disconnected.
const PATIENCE: Duration = Duration::from_secs(30);

/// Cause of the end of a session whose connection ended.
pub(super) const ENDED: &str = "the client's connection ended";

/// One client's connection.
pub(super) struct Connection {
    pub proxy: Arc<Gateway>,
    pub principal: Arc<Principal>,
    pub view: View,
    transport: Transport,
    outbox: mpsc::Sender<Bytes>,
    session: Mutex<Option<Arc<Session>>>,
    /// Requests in flight without a session.
    calls: Arc<Calls>,
    tasks: TaskTracker,
    gone: CancellationToken,
}

/// A rejected message and the cause.
pub(super) struct Rejected {
    pub refusal: Refusal,
    pub id: Option<Id>,
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, id: None }
    }
}

impl Connection {
    /// A connection, and the receiver of its outgoing messages.
    pub fn new(
        proxy: Arc<Gateway>,
        principal: Arc<Principal>,
        view: View,
        transport: Transport,
    ) -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let connection = Self {
            proxy,
            principal,
            view,
            transport,
            outbox,
            session: Mutex::default(),
            calls: Arc::default(),
            tasks: TaskTracker::new(),
            gone: CancellationToken::new(),
        };
        (Arc::new(connection), messages)
    }

    /// Handles a message from this address. Its response goes to the outbox. For `initialize`, the
    /// returned task ends when the response is sent; later messages belong to its session.
    ///
    /// # Errors
    /// A refusal if it is not a valid message for this connection.
    pub async fn take(
        self: &Arc<Self>,
        text: Bytes,
        call_permit: ConcurrencyPermit,
        address: Option<SocketAddr>,
    ) -> Result<Option<JoinHandle<()>>, Rejected> {
        let (party, weight) = (Party::Client(self.principal.kind.clone()), Weight::of(&text));
        in_turns(party, weight, self.take_text(text, call_permit, address)).await
    }

    async fn take_text(
        self: &Arc<Self>,
        text: Bytes,
        call_permit: ConcurrencyPermit,
        address: Option<SocketAddr>,
    ) -> Result<Option<JoinHandle<()>>, Rejected> {
        let session = self.session.lock().clone();
        if is_batch(&text)
            && let Some(session) = session.filter(|session| batch::are_taken_in(session))
        {
            return self.take_batch(session, text, call_permit, address).await.map(|()| None);
        }
        let frame = Frame::parse(text, self.proxy.request_caps()).map_err(Refusal::from)?;
        let (id, greets) = match &frame.kind {
            Kind::Request { id, method, .. } => {
                (Some(id.clone()), method.as_str() == Method::INITIALIZE)
            }
            _ => (None, false),
        };
        let revision = match self.revision(&frame) {
            Ok(revision) => revision,
            Err(refusal) => return Err(Rejected { refusal, id }),
        };
        let is_initialize = greets && !revision.is_modern();
        let session = self.session.lock().clone();
        let session = session.filter(|_| !revision.is_modern() && !is_initialize);
        let caller = self.caller(revision, session, address);
        let sent = InFlight::take(&self.proxy, caller, frame, call_permit);
        let task = self.tasks.spawn(self.clone().carry(vec![sent], false));
        Ok(is_initialize.then_some(task))
    }

    async fn take_batch(
        self: &Arc<Self>,
        session: Arc<Session>,
        text: Bytes,
        call_permit: ConcurrencyPermit,
        address: Option<SocketAddr>,
    ) -> Result<(), Rejected> {
        let caller = self.caller(session.revision, Some(session), address);
        let sent = batch::take(&self.proxy, &caller, &text, call_permit).await?;
        self.tasks.spawn(self.clone().carry(sent, true));
        Ok(())
    }

    fn caller(
        &self,
        revision: Revision,
        session: Option<Arc<Session>>,
        address: Option<SocketAddr>,
    ) -> Caller {
        Caller {
            principal: self.principal.clone(),
            transport: self.transport,
            client_addr: address,
            view: self.view.clone(),
            calls: Some(match &session {
                Some(session) => session.calls.clone(),
                None => self.calls.clone(),
            }),
            session,
            revision,
            headers: None,
        }
    }

    /// Sends responses to the outbox; those of a batch together.
    async fn carry(self: Arc<Self>, sent: Vec<InFlight>, batch: bool) {
        // Dropped with this future, it cancels everything that is still running.
        let mut output = Outputs::of(sent);
        let carried = async {
            let mut answers = Vec::new();
            while let Some(next) = output.next().await {
                match next {
                    Output::Notice(text) => self.send_text(text).await,
                    Output::Answer(answer) if batch => answers.push(answer),
                    Output::Answer(answer) => {
                        if let Some(session) = &answer.answered.session {
                            self.begin(session.clone());
                        }
                        if let Some(text) = answer.text() {
                            self.send_text(text).await;
                        }
                    }
                }
            }
            if let Some(text) = batch::join(answers) {
                self.send_text(text).await;
            }
        };
        tokio::select! {
            () = carried => {}
            () = self.gone.cancelled() => {}
        }
    }

    /// Sends a message. A client that does not read for too long is disconnected.
    pub async fn send_text(&self, text: Bytes) {
        let sent = tokio::select! {
            sent = self.outbox.send_timeout(text, PATIENCE) => sent,
            () = self.gone.cancelled() => return,
        };
        match sent {
            Ok(()) => {}
            Err(SendTimeoutError::Timeout(_)) => {
                let client = self.principal.name();
                tracing::warn!(%client, "client reads too slowly; closing the connection");
                self.gone.cancel();
            }
            Err(SendTimeoutError::Closed(_)) => self.gone.cancel(),
        }
    }

    /// Records a refusal of a message without an address. Returns its text.
    pub async fn refuse(&self, away: &Rejected, message: Option<&[u8]>) -> Bytes {
        let principal = Some(&*self.principal);
        let id = away.id.as_ref();
        self.proxy
            .recorder
            .reject(&away.refusal, self.transport, None, principal, message, id)
            .await
    }

    /// Attaches a session: it gets all later messages, and its own messages go to the outbox.
    fn begin(self: &Arc<Self>, session: Arc<Session>) {
        let (mut messages, connection) = (session.listen(), self.clone());
        tokio::spawn(async move {
            let gone = connection.gone.clone();
            let relayed = async {
                while let Some(event) = messages.next().await {
                    connection.send_text(event.text).await;
                }
            };
            tokio::select! {
                () = relayed => {}
                () = gone.cancelled() => {}
            }
        });
        let old = self.session.lock().replace(session.clone());
        if let Some(old) = old {
            self.proxy.sessions.close(&old.id, "the client opened another on its connection");
        }
        if self.gone.is_cancelled() {
            self.end(ENDED);
        }
    }

    /// The revision of a message.
    fn revision(&self, frame: &Frame) -> Result<Revision, Refusal> {
        let session = self.session.lock().clone();
        let (Kind::Request { method, .. } | Kind::Notification { method, .. }) = &frame.kind else {
            return Ok(session.map_or(Revision::LATEST_LEGACY, |session| session.revision));
        };
        let params = frame.params();
        let meta = params.and_then(|params| params.object("_meta"));
        let claimed = meta.as_ref().and_then(|meta| meta.string(META_REVISION));
        if method.as_str() == Method::INITIALIZE && claimed.is_none() {
            return negotiate(params);
        }
        if let Some(claimed) = claimed {
            // HTTP+SSE is older than the stateless revision.
            let revision = Revision::parse(&claimed)
                .filter(|revision| revision.is_modern() && self.transport == Transport::Stdio)
                .ok_or_else(|| unsupported(&claimed))?;
            let capable = meta.and_then(|meta| meta.object(META_CAPABILITIES)).is_some();
            return if capable || matches!(frame.kind, Kind::Notification { .. }) {
                Ok(revision)
            } else {
                Err(Refusal::new(
                    Code::InvalidParams,
                    format!("`_meta` lacks `{META_CAPABILITIES}`"),
                ))
            };
        }
        match session {
            Some(session) => Ok(session.revision),
            None => Err(Refusal::new(
                Code::InvalidRequest,
                "begin with `initialize`, or speak 2026-07-28 (`_meta`)",
            )),
        }
    }

    /// Cancelled when the client is gone or was disconnected.
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Waits a while for requests in flight to end.
    pub async fn drain(&self) {
        self.tasks.close();
        let _ = tokio::time::timeout(super::DRAIN, self.tasks.wait()).await;
    }

    /// Ends the connection, its session and its requests in flight.
    pub fn end(&self, why: &'static str) {
        self.gone.cancel();
        if let Some(session) = self.session.lock().take() {
            self.proxy.sessions.close(&session.id, why);
        }
    }
}
