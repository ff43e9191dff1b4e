//! Client messages that send no request to a server: responses to server requests, notifications,
//! and the level of log messages.

use std::sync::Arc;

use bytes::Bytes;

use super::{ExchangeResponse, Pipeline};
use crate::{
    session::LogLevel,
    stages::{Caller, ClientContext, set_level},
};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{Frame, Id, Kind, Object},
    exchange::{Answer, Exchange, Method, Payload},
    refusal::{Code, Refusal},
};
use portcullis_upstream::{InstanceKey, Server};

impl Pipeline {
    /// Delivers a client's response to a server request. A response without a pending request is
    /// refused.
    pub(super) async fn on_client_response(
        &self,
        caller: &Caller,
        frame: &Frame,
    ) -> ExchangeResponse {
        let settled = match (&frame.kind, &caller.session) {
            (Kind::Result { id, result }, Some(session)) => {
                session.pending_requests.deliver(id, Answer::Result(Payload::new(result.clone())))
            }
            (Kind::Error { id: Some(id), error }, Some(session)) => {
                session.pending_requests.deliver(id, Answer::Error(Payload::new(error.clone())))
            }
            _ => false,
        };
        if settled {
            return ExchangeResponse { text: None, refused: None, error: None, session: None };
        }
        let refusal =
            Refusal::new(Code::InvalidRequest, "response does not match any pending request");
        let client = Some(&*caller.principal);
        let text = self
            .stages
            .recorder
            .reject(&refusal, caller.transport, caller.client_addr, client, Some(frame.raw()), None)
            .await;
        let (refused, error) = (Some(refusal.code), Some(refusal.code.rpc().into()));
        ExchangeResponse { text: Some(text), refused, error, session: None }
    }

    /// Carries out a client's notification.
    pub(super) async fn on_notification(
        &self,
        client: &ClientContext,
        server: Option<&Arc<Server>>,
        exchange: &Exchange,
    ) {
        let params = exchange.request.raw();
        match exchange.method.as_str() {
            Method::CANCELLED => {
                let id = Object::parse(params.clone())
                    .ok()
                    .and_then(|params| params.get("requestId"))
                    .and_then(|id| Id::parse(id).ok());
                if let (Some(calls), Some(id)) = (&client.calls, id) {
                    calls.cancel(&id);
                }
            }
            Method::PROGRESS => {
                if let Some(session) = &client.session {
                    session.pending_requests.progress(params);
                }
            }
            Method::INITIALIZED => {}
            // A change of roots goes to the client's dedicated instances. Other notifications go to
            // the one server of the view, since policy decided on that server.
            method => {
                let servers = match server {
                    // The server of the decision, even if another has its name now.
                    Some(server) => vec![server.clone()],
                    None => self.router.servers(&client.view),
                };
                let instances = servers.iter().filter_map(|server| {
                    let key = client.party_key(server);
                    let is_dedicated = key.as_ref().is_some_and(InstanceKey::is_dedicated);
                    // With separated clients, the shared instance gets no notification.
                    let only_dedicated =
                        method == Method::ROOTS_CHANGED || server.settings.sharing.keeps_apart();
                    match &client.view {
                        _ if only_dedicated && !is_dedicated => None,
                        View::All if method != Method::ROOTS_CHANGED => None,
                        _ => match server.at(key.as_ref()) {
                            None if !only_dedicated => server.at(None),
                            found => found,
                        },
                    }
                });
                for instance in instances {
                    if let Some(running) = instance.peek() {
                        let sent = instance.notify(&running, method, params.clone()).await;
                        if let Err(failure) = sent {
                            tracing::debug!(%failure, "notification to a server failed");
                        }
                    }
                }
            }
        }
    }

    /// Answers `logging/setLevel`: the session gets no less severe messages any more, and its
    /// dedicated instances send none.
    pub(super) async fn set_log_level(
        &self,
        client: &ClientContext,
        exchange: &Exchange,
    ) -> Result<Answer, Refusal> {
        let level = Object::parse(exchange.request.raw().clone())
            .ok()
            .and_then(|params| params.string("level"))
            .and_then(|level| LogLevel::parse(&level))
            .ok_or_else(|| Refusal::new(Code::InvalidParams, "`level` is not an MCP log level"))?;
        let Some(session) = &client.session else {
            return Err(Refusal::new(Code::MethodUnknown, "this method needs a session"));
        };
        session.set_level(level);
        let key = InstanceKey::Session(session.id.clone());
        for server in self.router.servers(&client.view) {
            if let Some(instance) = server.owned(&key)
                && let Some(running) = instance.peek()
                && let Err(failure) = set_level(&instance, &running, level.as_str()).await
            {
                return Err(failure.refusal(&server.name));
            }
        }
        Ok(Answer::Result(Payload::new(Bytes::from_static(b"{}"))))
    }
}
