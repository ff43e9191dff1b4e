//! What servers do and say on their own.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    Caller, Gateway,
    builder::reap,
    client::ClientContext,
    launch_events,
    pipeline::{RequestState, begin},
    server_requests::ReplyRoute,
    startup_events,
    tasks::place,
};
use crate::session::Session;
use portcullis_audit::record::{DropReason, Dropped, Event, Stopped, bare_uri};
use portcullis_chain::{Party, Weight, in_turns};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{Frame, Id, Object},
    exchange::{Direction, Method, Phase, Revision, Transport},
    identity::{Principal, PrincipalKind},
    names::ServerName,
    refusal::{Code, Refusal},
};
use portcullis_upstream::{
    Instance, InstanceKey, InstanceStatus, Placement, Running, Server, ServerEvent, ServerMessage,
    Started, UnroutedMessage,
};

/// How often idle servers and sessions are looked for, and usage is read.
const SWEEP: Duration = Duration::from_secs(2);

impl Gateway {
    /// Hears what one server says, which is known by its name and its number, until it is gone.
    pub(super) async fn receive_server_messages(
        self: Arc<Self>,
        (name, number): (ServerName, u64),
        mut heard: mpsc::Receiver<UnroutedMessage>,
    ) {
        while let Some(heard) = heard.recv().await {
            let weight = heard.said.params().map_or(Weight::NONE, Weight::of);
            let work = self.on_server_message((&name, number), heard);
            in_turns(Party::Server(name.clone()), weight, work).await;
        }
    }

    /// Looks for an engine for as long as servers need one that is not there. Once it is, what earlier
    /// proxies left there is removed, and lists have the servers that were missing for want of it.
    pub(super) async fn await_engine(self: Arc<Self>) {
        let needed = || {
            let servers = self.router.servers(&View::All);
            let in_container = |server: &Arc<Server>| {
                matches!(self.launcher.place(&server.settings), Placement::Container { .. })
            };
            servers.iter().any(in_container)
        };
        let engine = tokio::select! {
            engine = self.launcher.engine.wait(needed) => engine,
            () = self.closing.cancelled() => return,
        };
        tracing::info!(engine = %engine.version(), "container engine is available");
        reap(&engine, &self.launcher.instance).await;
        for server in self.router.servers(&View::All) {
            server.try_again().await;
        }
        self.router.ask_again();
    }

    /// Records what becomes of one server until it is gone.
    pub(super) async fn record(
        self: Arc<Self>,
        server: ServerName,
        mut events: mpsc::Receiver<ServerEvent>,
    ) {
        while let Some(event) = events.recv().await {
            match event {
                // Who waited may have given up.
                ServerEvent::Flush(done) => drop(done.send(())),
                ServerEvent::Launching(launching, cleared) => {
                    let _ = cleared.send(self.authorize_launch(&server, &launching).await);
                }
                event => {
                    if let Some(happening) = self.happened(&server, event) {
                        self.audit.record_best_effort(happening).await;
                    }
                }
            }
        }
    }

    /// What became of a server, for the log, the metrics and the record.
    fn happened(&self, name: &ServerName, event: ServerEvent) -> Option<Event> {
        let server = name.to_string();
        Some(match event {
            ServerEvent::Launching(..) | ServerEvent::Flush(_) => return None,
            ServerEvent::Unwell => {
                self.metrics.server_unwell(name);
                return None;
            }
            ServerEvent::Started(started) => {
                let Started { place, process, revision, took, .. } = &*started;
                tracing::info!(
                    %server, place = place.kind(), why = place.why(), process, %revision,
                    took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                    "server started"
                );
                self.metrics.server_started();
                Event::ServerLaunched(Box::new(launch_events::launched(name, *started)))
            }
            ServerEvent::NotStarted { launch, place, party, why } => {
                let why = self.shown(&why);
                tracing::warn!(%server, why, "server did not start");
                let principal = party.as_ref().map(PrincipalKind::name);
                let kind = launch_events::kind(&place);
                Event::ServerLaunchFailed { launch, server, kind, principal, reason: why }
            }
            ServerEvent::Ended { launch, process, party, why, exit } => {
                let why = self.shown(&why);
                tracing::info!(%server, why, "server ended");
                self.metrics.server_ended(name);
                let (exit_code, exit_reason) = exit.map(|exit| (exit.code, exit.reason)).unzip();
                Event::ServerStopped(Stopped {
                    launch,
                    server,
                    place: bare_uri(&process),
                    principal: party.as_ref().map(PrincipalKind::name),
                    reason: why,
                    exit_code,
                    exit_reason: exit_reason.flatten(),
                })
            }
            ServerEvent::Unread { not, kept } => {
                let why = self.shown(&not.failure.what);
                tracing::warn!(%server, why, kept, "a secret could not be read again");
                let mut happening = startup_events::no_secret(name, &not, kept);
                if let Event::SecretUnresolved { reason, .. } = &mut happening {
                    *reason = why;
                }
                happening
            }
            ServerEvent::Outdated { launch, party, secrets } => {
                let principal = party.as_ref().map(PrincipalKind::name);
                tracing::warn!(
                    %server, client = principal, secrets = secrets.join(", "),
                    "changed secrets of a running server take effect at its next start (`portcullis server restart`)"
                );
                Event::SecretsStale { launch, server, principal, secrets }
            }
            ServerEvent::Pulled(pulling) => launch_events::pulled(name, *pulling),
            ServerEvent::Lost { count } => {
                tracing::warn!(%server, count, "server messages dropped");
                let reason = DropReason::Flood;
                Event::MessagesDropped(Dropped { server, principal: None, reason, count })
            }
        })
    }

    /// Takes what a server says that belongs to no call: requests and messages to the session for
    /// which alone it runs, changes to all who are to hear of them. Everything else has no client
    /// to go to, and is refused.
    async fn on_server_message(
        self: &Arc<Self>,
        (server, number): (&ServerName, u64),
        heard: UnroutedMessage,
    ) {
        let UnroutedMessage { party, mut said } = heard;
        if let Some(party) = &party
            && !is_change(said.method())
        {
            said = match self.under_way.tell(number, party, said) {
                Some(said) => said,
                None => return,
            };
        }
        // One that is in the config no more is heard for the calls alone that it still has.
        let now = self.router.server(server).filter(|now| now.number == number);
        let is_there = now.is_some();
        let session = match &party {
            Some(InstanceKey::Session(id)) if is_there => self.sessions.get(id),
            _ => None,
        };
        match said {
            // Clients were told of all its lists when it went.
            ServerMessage::Notification { method, .. } if !is_there && is_change(&method) => {}
            ServerMessage::Request { id, method, params, answer } => match session {
                // Each is on record, so a flood of them is bounded as refusals are.
                Some(session)
                    if session.is_heard() && self.refusals.admits(server, party.as_ref()) =>
                {
                    let way = ReplyRoute {
                        server: server.clone(),
                        instance: now.and_then(|server| running(&server, &party)),
                        out: None,
                        clock: None,
                        over: session.ended().clone(),
                    };
                    self.forward_to_client(
                        ClientContext::at(&session),
                        way,
                        (id, method, params),
                        answer,
                    );
                }
                _ => {
                    let text = self.refuse_server(server, Some(&id), &method, params).await;
                    let _ = answer.send(text);
                }
            },
            ServerMessage::Notification { method, params } => {
                let handed_on = is_there
                    && self.hand_on(server, &party, session, &method, params.clone()).await;
                if !handed_on {
                    self.refuse_server(server, None, &method, params).await;
                }
            }
        }
    }

    /// Hands a notification on; whether there was anybody for it.
    async fn hand_on(
        &self,
        server: &ServerName,
        party: &Option<InstanceKey>,
        session: Option<Arc<Session>>,
        method: &Method,
        params: Option<Bytes>,
    ) -> bool {
        let change = is_change(method);
        // What each hearer is sent is on record, so a flood of it is bounded as refusals are.
        let taken = match (change, &session) {
            (true, _) => self.refusals.admits_change(server, party.as_ref()),
            (false, Some(_)) => self.refusals.admits(server, party.as_ref()),
            (false, None) => true,
        };
        if !taken {
            self.refusals.dropped(server, Code::RateLimited.as_str());
            return true;
        }
        if change {
            return self.tell_of_change(server, party.as_ref(), method, params).await;
        }
        let sessions = match (session, method.as_str()) {
            (Some(session), _) => vec![session],
            (None, Method::TASK_STATUS) => {
                let id = params.clone().and_then(|params| Object::parse(params).ok());
                let id = id.and_then(|params| params.string("taskId")).unwrap_or_default();
                let at = self.router.server(server).and_then(|s| place(&s, party.clone()));
                let owner = at.and_then(|at| self.task_log.owner(at, &id));
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
        let mut told = false;
        for session in sessions.into_iter().filter(|session| session.is_heard()) {
            let guest = ClientContext::at(&session);
            told = true;
            if let Some(text) = self.notice_to(&guest, server, method, params.clone()).await {
                session.tell(text);
            }
        }
        told
    }

    pub(super) async fn refuse_server(
        &self,
        server: &ServerName,
        id: Option<&Id>,
        method: &Method,
        params: Option<Bytes>,
    ) -> Bytes {
        let refusal =
            Refusal::new(Code::MethodUnknown, "no client is connected that can answer this");
        if let Some(summary) = self.refusals.of_server(server, refusal.code.as_str()) {
            // What is not recorded one by one need not be looked at, either: it goes nowhere.
            self.metrics.refusal(refusal.code);
            if id.is_some() {
                summary.on_record(&self.audit).await;
            }
            return Frame::error(id, refusal.to_rpc_error(summary.id).to_string().as_bytes());
        }
        // A server is shared, so its question belongs to no client in particular.
        let nobody = Principal {
            kind: PrincipalKind::Anonymous,
            groups: Vec::new(),
            verified: false,
            key: None,
        };
        let caller = Caller {
            principal: Arc::new(nobody),
            transport: Transport::Stdio,
            client_addr: None,
            view: View::One(server.clone()),
            session: None,
            calls: None,
            revision: Revision::LATEST_LEGACY,
            headers: None,
        };
        let mut question = begin(&caller, method, id.is_none(), params);
        question.direction = Direction::ServerToClient;
        question.server = Some(server.clone());
        let mut passage = RequestState::default();
        let passed = self.chain.pass(&mut question, Phase::Request, &mut passage.trail).await;
        let refusal = match passed {
            Err(refusal) => refusal,
            Ok(()) => refusal,
        };
        self.record_refusal(&question, &passage, &refusal).await;
        self.metrics.refusal(refusal.code);
        Frame::error(id, refusal.to_rpc_error(question.id).to_string().as_bytes())
    }

    /// Ends what is idle and reads what servers use, until the proxy stops.
    pub(super) async fn sweep(self: Arc<Self>) {
        let mut tick = tokio::time::interval(SWEEP);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.closing.cancelled() => return,
            }
            self.summarize_refusals(false).await;
            self.tell_of_drops().await;
            self.sessions.sweep();
            self.parked.sweep();
            self.returning.look();
            self.metrics.sessions(self.sessions.count());
            // All at once: one that is slow to end keeps none of the others.
            let servers = self.router.servers(&View::All);
            futures_util::future::join_all(servers.iter().map(|server| server.sweep())).await;
        }
    }

    /// Reads what the running servers use and what was recorded, for the metrics.
    pub async fn read_usage(&self) {
        self.metrics.audit_records(self.audit.written());
        let (gap, missed) = self.audit.missed();
        self.metrics.audit_missed(missed, gap.is_some());
        self.metrics.audit_unsigned(self.audit.checkpoints().failing.is_some());
        self.exports.measure();
        for server in self.router.servers(&View::All) {
            let usage: Vec<_> = server
                .status()
                .await
                .instances
                .iter()
                .filter_map(|instance| {
                    let usage = instance.usage?;
                    let cpu = Duration::try_from_secs_f64(usage.cpu_seconds).unwrap_or_default();
                    Some((instance.number, usage.memory, cpu))
                })
                .collect();
            self.metrics.server_usage(&server.name, &usage);
        }
    }

    /// What an operator should know of a server's lists.
    fn notices(&self, server: &ServerName) -> Vec<String> {
        let notices = self.router.notices(server);
        notices.into_iter().map(|notice| self.shown(&notice)).collect()
    }

    /// The state of all servers, as JSON for the admin API.
    pub async fn server_states(&self) -> Vec<serde_json::Value> {
        let servers = self.router.servers(&View::All);
        let states = servers.iter().map(|server| async {
            let status = server.status().await;
            let usage = || status.instances.iter().filter_map(|one| one.usage);
            let instances: Vec<_> = status.instances.iter().map(told_of).collect();
            json!({
                "name": server.name,
                "state": status.state,
                "health": status.health,
                "place": status.place.kind(),
                "why": status.place.why(),
                "process": status.process,
                "revision": status.revision,
                "active": status.active,
                "failure": status.failure.map(|why| self.shown(&why)),
                "instances": instances,
                "warm": status.warm,
                "dropped": status.lost,
                "unwell": status.unwell,
                "memoryBytes": sum(usage().map(|usage| usage.memory)),
                "cpuSeconds": sum(usage().map(|usage| usage.cpu_seconds)),
                "notices": self.notices(&server.name),
            })
        });
        futures_util::future::join_all(states).await
    }
}

fn told_of(instance: &InstanceStatus) -> serde_json::Value {
    json!({
        "number": instance.number,
        "client": instance.principal.as_ref().map(PrincipalKind::name),
        "process": instance.process,
        "active": instance.active,
        "leaving": instance.leaving,
        "answeredMs": instance.health.map(|took| took.as_secs_f64() * 1e3),
        "upSeconds": instance.up.as_secs(),
        "memoryBytes": instance.usage.map(|usage| usage.memory),
        "cpuSeconds": instance.usage.map(|usage| usage.cpu_seconds),
    })
}

/// A sum, unless there is nothing of which it could be one.
fn sum<T: std::iter::Sum>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values = values.peekable();
    values.peek()?;
    Some(values.sum())
}

/// Whether a notification tells of a change, which many may want to hear of.
fn is_change(method: &Method) -> bool {
    [Method::TOOLS_CHANGED, Method::PROMPTS_CHANGED, Method::RESOURCES_CHANGED, Method::UPDATED]
        .contains(&method.as_str())
}

/// The instance of a server that runs for a party.
fn running(
    server: &Arc<Server>,
    party: &Option<InstanceKey>,
) -> Option<(Arc<Instance>, Arc<Running>)> {
    let instance = match party {
        Some(key) => server.owned(key)?,
        None => server.shared().clone(),
    };
    let running = instance.peek()?;
    Some((instance, running))
}
