//! Standard input and output: one client, the local user, one JSON text a line.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::{
    codec::{AnyDelimiterCodec, AnyDelimiterCodecError, FramedRead},
    sync::CancellationToken,
};

use super::http::greeted;
use crate::{
    codec::{Frame, Id, Kind, Object, era::META_CAPABILITIES, era::META_REVISION, one_line},
    exchange::{Method, Revision, Transport},
    identity::Principal,
    proxy::{Caller, Proxy},
    refusal::{Code, Refusal},
    router::View,
    session::{Calls, Session},
};

/// Answers that may wait for a client that does not read. When they do, no more is read of it.
const OUTBOX: usize = 64;
/// Messages of the client under way at once.
const UNDER_WAY: usize = 256;

/// Serves one client until its input ends or the proxy stops.
pub async fn serve(
    proxy: Arc<Proxy>,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin + Send + 'static,
) {
    let (outbox, lines) = mpsc::channel(OUTBOX);
    let writer = tokio::spawn(write(output, lines));
    let closing = proxy.closing().clone();
    let mut client = Client {
        principal: Principal::local(),
        caps: proxy.request_caps(),
        proxy,
        outbox,
        session: None,
        calls: Arc::default(),
        tasks: JoinSet::new(),
        gone: CancellationToken::new(),
    };
    let codec =
        AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), b"\n".to_vec(), client.caps.bytes);
    let mut lines = FramedRead::new(input, codec);
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            () = closing.cancelled() => break,
        };
        match line {
            None | Some(Err(AnyDelimiterCodecError::Io(_))) => break,
            Some(Err(AnyDelimiterCodecError::MaxChunkLengthExceeded)) => {
                let flaw = crate::codec::Flaw::TooLarge(client.caps.bytes);
                client.turn_away(flaw.into(), None, None).await;
            }
            Some(Ok(line)) if line.iter().all(u8::is_ascii_whitespace) => {}
            Some(Ok(line)) => client.take(line).await,
        }
    }
    // What is under way may still be answered.
    let drained = async { while client.tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(super::DRAIN, drained).await;
    client.gone.cancel();
    if let Some(session) = client.session.take() {
        client.proxy.sessions.close(&session.id);
    }
    drop(client);
    let _ = tokio::time::timeout(Duration::from_secs(2), writer).await;
}

struct Client {
    principal: Arc<Principal>,
    caps: crate::codec::Caps,
    proxy: Arc<Proxy>,
    outbox: mpsc::Sender<Bytes>,
    session: Option<Arc<Session>>,
    /// What is under way without a session.
    calls: Arc<Calls>,
    tasks: JoinSet<()>,
    gone: CancellationToken,
}

impl Client {
    async fn take(&mut self, line: Bytes) {
        while self.tasks.len() >= UNDER_WAY {
            self.tasks.join_next().await;
        }
        while self.tasks.try_join_next().is_some() {}
        let frame = match Frame::parse(line.clone(), self.caps) {
            Ok(frame) => frame,
            Err(flaw) => return self.turn_away(flaw.into(), Some(&line), None).await,
        };
        let (id, greeting) = match &frame.kind {
            Kind::Request { id, method, .. } => {
                (Some(id.clone()), method.as_str() == Method::INITIALIZE)
            }
            _ => (None, false),
        };
        let revision = match self.revision(&frame) {
            Ok(revision) => revision,
            Err(refusal) => return self.turn_away(refusal, Some(&line), id.as_ref()).await,
        };
        let session = self.session.clone().filter(|_| !revision.is_modern() && !greeting);
        let caller = Caller {
            principal: self.principal.clone(),
            transport: Transport::Stdio,
            client_addr: None,
            view: View::All,
            calls: Some(match &session {
                Some(session) => session.calls.clone(),
                None => self.calls.clone(),
            }),
            session,
            revision,
            headers: None,
        };
        let place = match self.proxy.enter(&self.principal) {
            Ok(place) => place,
            Err(refusal) => return self.turn_away(refusal, Some(&line), id.as_ref()).await,
        };
        let mut ticket = self.proxy.take(caller, frame, place);
        if greeting {
            // Everything after it is said in its session.
            if let Ok(answered) = ticket.answer.await {
                if let Some(session) = answered.session {
                    self.listen(&session);
                    if let Some(old) = self.session.replace(session) {
                        self.proxy.sessions.close(&old.id);
                    }
                }
                if let Some(text) = answered.text {
                    let _ = self.outbox.send(text).await;
                }
            }
            return;
        }
        let (outbox, gone, asked) = (self.outbox.clone(), self.gone.clone(), id.is_some());
        self.tasks.spawn(async move {
            let _cancel = ticket.cancel;
            while let Some(notice) = ticket.notices.recv().await {
                let _ = outbox.send(notice).await;
            }
            tokio::select! {
                answered = ticket.answer => {
                    // Here, unlike over HTTP, nothing tells a refused notification from an answer.
                    if asked && let Some(text) = answered.ok().and_then(|answered| answered.text) {
                        let _ = outbox.send(text).await;
                    }
                }
                () = gone.cancelled() => {}
            }
        });
    }

    /// The revision in which a message speaks.
    fn revision(&self, frame: &Frame) -> Result<Revision, Refusal> {
        let (Kind::Request { method, params, .. } | Kind::Notification { method, params }) =
            &frame.kind
        else {
            return Ok(self.session.as_ref().map_or(Revision::LATEST_LEGACY, |s| s.revision));
        };
        let params = params.clone().and_then(|params| Object::parse(params).ok());
        if method.as_str() == Method::INITIALIZE {
            return Ok(greeted(params.as_ref()));
        }
        let meta = params.and_then(|params| params.object("_meta"));
        if let Some(claimed) = meta.as_ref().and_then(|meta| meta.string(META_REVISION)) {
            let revision = Revision::parse(&claimed)
                .filter(|revision| revision.is_modern())
                .ok_or_else(|| super::http::unsupported(&claimed))?;
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
        match &self.session {
            Some(session) => Ok(session.revision),
            None => Err(Refusal::new(
                Code::InvalidRequest,
                "begin with `initialize`, or speak 2026-07-28 (`_meta`)",
            )),
        }
    }

    /// Hands on what the session hears beside answers.
    fn listen(&mut self, session: &Session) {
        let (mut messages, outbox) = (session.listen(), self.outbox.clone());
        let gone = self.gone.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    message = messages.recv() => match message {
                        Some(text) => drop(outbox.send(text).await),
                        None => return,
                    },
                    () = gone.cancelled() => return,
                }
            }
        });
    }

    async fn turn_away(&self, refusal: Refusal, message: Option<&[u8]>, id: Option<&Id>) {
        let principal = Some(&*self.principal);
        let text =
            self.proxy.turn_away(&refusal, Transport::Stdio, None, principal, message, id).await;
        let _ = self.outbox.send(text).await;
    }
}

async fn write(mut output: impl AsyncWrite + Unpin, mut lines: mpsc::Receiver<Bytes>) {
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
