//! Events and messages of servers that belong to no call.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Servers;
use crate::{
    recorder::{launch_events, startup_events},
    server_requests::ReplyRoute,
    session::Session,
    stages::ClientContext,
    tasks::place,
};
use portcullis_audit::record::{
    DropReason, Event, MessagesDropped, SecretUnresolved, SecretsStale, ServerLaunchFailed,
    ServerStopped, bare_uri,
};
use portcullis_chain::{Party, Weight, in_turns};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::Object, exchange::Method, identity::PrincipalKind, names::ServerName, refusal::Code,
};
use portcullis_upstream::{
    Instance, InstanceKey, Running, Server, ServerEvent, ServerMessage, Started, UnroutedMessage,
};

impl Servers {
    /// Receives the messages of one server, identified by name and number, until it is gone.
    pub(crate) async fn receive_server_messages(
        self: Arc<Self>,
        (name, number): (ServerName, u64),
        mut unrouted: mpsc::Receiver<UnroutedMessage>,
    ) {
        while let Some(unrouted) = unrouted.recv().await {
            let weight = unrouted.message.params().map_or(Weight::NONE, Weight::of);
            let work = self.on_server_message((&name, number), unrouted);
            in_turns(Party::Server(name.clone()), weight, work).await;
        }
    }

    /// Records the events of one server until it is gone.
    pub(crate) async fn record(
        self: Arc<Self>,
        server: ServerName,
        mut events: mpsc::Receiver<ServerEvent>,
    ) {
        while let Some(event) = events.recv().await {
            match event {
                // The receiver may have given up.
                ServerEvent::Flush(done) => drop(done.send(())),
                ServerEvent::Launching(launching, cleared) => {
                    let _ = cleared.send(self.authorize_launch(&server, &launching).await);
                }
                event => {
                    if let Some(happening) = self.happened(&server, event) {
                        self.recorder.audit.record_best_effort(happening).await;
                    }
                }
            }
        }
    }

    /// Logs and counts a server's event. Returns the event for the record.
    fn happened(&self, name: &ServerName, event: ServerEvent) -> Option<Event> {
        let server = name.to_string();
        Some(match event {
            ServerEvent::Launching(..) | ServerEvent::Flush(_) => return None,
            ServerEvent::Unhealthy => {
                self.recorder.metrics.server_unhealthy(name);
                return None;
            }
            ServerEvent::Started(started) => {
                let Started { placement, process, revision, took, .. } = &*started;
                tracing::info!(
                    %server, place = placement.kind(), why = placement.why(), process, %revision,
                    took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                    "server started"
                );
                self.recorder.metrics.server_started();
                launch_events::launched(name, *started).into()
            }
            ServerEvent::NotStarted { launch, placement, party, why } => {
                let why = self.recorder.shown(&why);
                tracing::warn!(%server, why, "server did not start");
                let principal = party.as_ref().map(PrincipalKind::name);
                let kind = launch_events::kind(&placement);
                ServerLaunchFailed { launch, server, kind, principal, reason: why }.into()
            }
            ServerEvent::Ended { launch, process, party, why, exit } => {
                let why = self.recorder.shown(&why);
                tracing::info!(%server, why, "server ended");
                self.recorder.metrics.server_ended(name);
                let (exit_code, exit_reason) = exit.map(|exit| (exit.code, exit.reason)).unzip();
                ServerStopped {
                    launch,
                    server,
                    place: bare_uri(&process),
                    principal: party.as_ref().map(PrincipalKind::name),
                    reason: why,
                    exit_code,
                    exit_reason: exit_reason.flatten(),
                }
                .into()
            }
            ServerEvent::Unread { not, kept } => {
                let why = self.recorder.shown(&not.failure.what);
                tracing::warn!(%server, why, kept, "a secret could not be re-read");
                let unresolved = startup_events::no_secret(name, &not, kept);
                SecretUnresolved { reason: why, ..unresolved }.into()
            }
            ServerEvent::Outdated { launch, party, secrets } => {
                let principal = party.as_ref().map(PrincipalKind::name);
                tracing::warn!(
                    %server, client = principal, secrets = secrets.join(", "),
                    "changed secrets of a running server take effect at its next start (`portcullis server restart`)"
                );
                SecretsStale { launch, server, principal, secrets }.into()
            }
            ServerEvent::Pulled(pulling) => launch_events::pulled(name, *pulling),
            ServerEvent::Lost { count } => {
                tracing::warn!(%server, count, "server messages dropped");
                let reason = DropReason::Flood;
                MessagesDropped { server, principal: None, reason, count }.into()
            }
        })
    }

    /// Handles a server message outside of calls. Requests and messages go to the session that the
    /// instance is dedicated to, and changes to all clients that want them. Everything else has no
    /// receiver and is refused.
    async fn on_server_message(
        &self,
        (server, number): (&ServerName, u64),
        unrouted: UnroutedMessage,
    ) {
        let UnroutedMessage { party, mut message } = unrouted;
        if let Some(party) = &party
            && !is_change(message.method())
        {
            message = match self.in_flight.deliver(number, party, message) {
                Some(message) => message,
                None => return,
            };
        }
        // A server that was removed from the config may only send messages for its remaining calls.
        let now = self.router.server(server).filter(|now| now.number == number);
        let is_there = now.is_some();
        let session = match &party {
            Some(InstanceKey::Session(id)) if is_there => self.sessions.get(id),
            _ => None,
        };
        match message {
            // Clients got change notifications of all its lists when it was removed.
            ServerMessage::Notification { method, .. } if !is_there && is_change(&method) => {}
            ServerMessage::Request { id, method, params, answer } => match session {
                // Each request is recorded, so a flood of them is limited like refusals.
                Some(session)
                    if session.has_reader()
                        && self.recorder.refusals.admits(server, party.as_ref()) =>
                {
                    let route = ReplyRoute {
                        server: server.clone(),
                        instance: now.and_then(|server| running(&server, &party)),
                        out: None,
                        clock: None,
                        over: session.ended().clone(),
                    };
                    self.requests.forward_to_client(
                        ClientContext::at(&session),
                        route,
                        (id, method, params),
                        answer,
                    );
                }
                _ => {
                    let text = self.requests.refuse(server, Some(&id), &method, params).await;
                    let _ = answer.send(text);
                }
            },
            ServerMessage::Notification { method, params } => {
                let forwarded = is_there
                    && self.forward(server, &party, session, &method, params.clone()).await;
                if !forwarded {
                    self.requests.refuse(server, None, &method, params).await;
                }
            }
        }
    }

    /// Forwards a notification. Returns whether there was a receiver.
    async fn forward(
        &self,
        server: &ServerName,
        party: &Option<InstanceKey>,
        session: Option<Arc<Session>>,
        method: &Method,
        params: Option<Bytes>,
    ) -> bool {
        let change = is_change(method);
        // Each notification to a client is recorded, so a flood is limited like refusals.
        let taken = match (change, &session) {
            (true, _) => self.recorder.refusals.admits_change(server, party.as_ref()),
            (false, Some(_)) => self.recorder.refusals.admits(server, party.as_ref()),
            (false, None) => true,
        };
        if !taken {
            self.recorder.refusals.dropped(server, Code::RateLimited.as_str());
            return true;
        }
        if change {
            return self.subscriptions.notify_change(server, party.as_ref(), method, params).await;
        }
        let sessions = match (session, method.as_str()) {
            (Some(session), _) => vec![session],
            (None, Method::TASK_STATUS) => {
                let id = params.clone().and_then(|params| Object::parse(params).ok());
                let id = id.and_then(|params| params.string("taskId")).unwrap_or_default();
                let at = self.router.server(server).and_then(|s| place(&s, party.clone()));
                let owner = at.and_then(|at| self.server_tasks.owner(at, &id));
                let mut sessions = self.sessions.all();
                sessions.retain(|session| {
                    Some(&session.owner().kind) == owner.as_ref()
                        && match session.view() {
                            View::All => true,
                            View::One(name) => name == server,
                        }
                });
                sessions
            }
            (None, _) => return false,
        };
        let mut sent = false;
        for session in sessions.into_iter().filter(|session| session.has_reader()) {
            let client = ClientContext::at(&session);
            sent = true;
            if let Some(text) = self.stages.notice_to(&client, server, method, params.clone()).await
            {
                session.send(text);
            }
        }
        sent
    }
}

/// Whether a notification reports a change, which can concern many clients.
fn is_change(method: &Method) -> bool {
    [Method::TOOLS_CHANGED, Method::PROMPTS_CHANGED, Method::RESOURCES_CHANGED, Method::UPDATED]
        .contains(&method.as_str())
}

/// The running instance of a server for this key.
fn running(
    server: &Arc<Server>,
    party: &Option<InstanceKey>,
) -> Option<(Arc<Instance>, Arc<Running>)> {
    let instance = server.at(party.as_ref())?;
    let running = instance.peek()?;
    Some((instance, running))
}
