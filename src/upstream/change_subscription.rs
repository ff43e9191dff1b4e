//! Subscription to the change notifications of a modern server: one `subscriptions/listen` for
//! each running instance, for its lists and for the watched resources.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{
    call_error::CallError,
    deadline::Deadline,
    handshake::Handshake,
    message_sink::MessageSink,
    transport::{Call, Reply, ServerMessage, ServerTransport},
};
use portcullis_foundation::backoff::Backoff;
use portcullis_protocol::{codec::era::own_meta, exchange::Method};

/// Longest wait for the acknowledgement of a subscription.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses before a failed or ended subscription is opened again.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), STEADY);
/// Age from which a subscription that ends does not count as failed.
const STEADY: Duration = Duration::from_secs(60);
/// Maximum number of queued notifications of a subscription.
const QUEUE: usize = 64;

/// Watched resources, each with the number of its watchers.
pub(super) type RequestedResources = BTreeMap<String, usize>;

/// Answer of a server to the last subscription.
#[derive(Debug, Clone, Default)]
pub(super) struct Granted {
    /// The requested resources.
    pub requested: BTreeSet<String>,
    /// The granted resources.
    pub granted: BTreeSet<String>,
    /// Error response or failure, if the subscription was not granted.
    pub instead: Option<Result<Bytes, CallError>>,
}

/// Starts the task that keeps the subscription open until the task or the link ends.
pub(super) fn begin(
    link: Arc<dyn ServerTransport>,
    handshake: &Handshake,
    sink: MessageSink,
    wanted: watch::Receiver<RequestedResources>,
    granted: watch::Sender<Granted>,
) -> AbortOnDropHandle<()> {
    let listener = Listener { lists: lists(handshake), link, sink, wanted, granted };
    AbortOnDropHandle::new(tokio::spawn(listener.run()))
}

/// Filter members of the lists whose changes the server reports (`listChanged`).
fn lists(handshake: &Handshake) -> Vec<&'static str> {
    let has = |capability: &str| {
        let capabilities = &handshake.words.value()["capabilities"];
        capabilities[capability]["listChanged"] == Value::Bool(true)
    };
    [
        ("tools", "toolsListChanged"),
        ("prompts", "promptsListChanged"),
        ("resources", "resourcesListChanged"),
    ]
    .into_iter()
    .filter_map(|(capability, member)| has(capability).then_some(member))
    .collect()
}

struct Listener {
    lists: Vec<&'static str>,
    link: Arc<dyn ServerTransport>,
    sink: MessageSink,
    wanted: watch::Receiver<RequestedResources>,
    granted: watch::Sender<Granted>,
}

/// An open subscription. Dropping it cancels the request.
struct Open {
    pump: AbortOnDropHandle<()>,
}

impl Listener {
    async fn run(mut self) {
        let mut open: Option<Open> = None;
        let mut failed: u32 = 0;
        let mut since = Instant::now();
        while self.link.dead().is_none() {
            let requested: BTreeSet<String> =
                self.wanted.borrow_and_update().keys().cloned().collect();
            if self.lists.is_empty() && requested.is_empty() {
                open = None;
                self.granted.send_replace(Granted::default());
                if self.wanted.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let mut state = Granted { requested: requested.clone(), ..Default::default() };
            match self.open(&requested).await {
                Ok((opened, granted)) => {
                    // The earlier subscription ends only now, so that no change is missed.
                    open = Some(opened);
                    state.granted = granted;
                    since = Instant::now();
                    self.granted.send_replace(state);
                }
                Err(instead) => {
                    let refused = instead.is_ok();
                    state.instead = Some(instead);
                    self.granted.send_replace(state);
                    if refused && open.is_none() {
                        // The server would refuse the same subscription again.
                        if self.wanted.changed().await.is_err() {
                            return;
                        }
                        continue;
                    }
                    failed += 1;
                    if !refused {
                        open = None;
                    }
                }
            }
            let ended = async {
                if let Some(open) = &mut open {
                    let _ = (&mut open.pump).await;
                }
                tokio::time::sleep(BACKOFF.pause(failed)).await;
            };
            tokio::select! {
                () = ended => {
                    open = None;
                    failed = if since.elapsed() > STEADY { 0 } else { failed + 1 };
                    // Changes since then were not reported.
                    self.sink.missed();
                }
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    failed = 0;
                }
            }
        }
    }

    /// Opens a subscription and waits for the grant. Fails with an error response or a failure.
    async fn open(
        &self,
        requested: &BTreeSet<String>,
    ) -> Result<(Open, BTreeSet<String>), Result<Bytes, CallError>> {
        let mut filter: serde_json::Map<String, Value> =
            self.lists.iter().map(|member| ((*member).to_owned(), Value::Bool(true))).collect();
        if !requested.is_empty() {
            filter.insert("resourceSubscriptions".into(), json!(requested));
        }
        let params = json!({ "notifications": filter, "_meta": own_meta() });
        let (sender, messages) = mpsc::channel(QUEUE);
        let mut call = Call::own(Method::LISTEN, Some(params.to_string().into()), PATIENCE);
        call.clock = Deadline::never();
        call.messages = Some(sender);
        let (acknowledge, acknowledged) = oneshot::channel();
        let (link, sink) = (self.link.clone(), self.sink.clone());
        let pump = tokio::spawn(async move {
            let mut acknowledge = Some(acknowledge);
            let reply = tokio::select! {
                biased;
                () = read_messages(messages, &sink, &mut acknowledge) => return,
                reply = link.call(call) => reply,
            };
            if let Some(acknowledge) = acknowledge {
                let _ = acknowledge.send(Err(match reply {
                    Ok(Reply::Error(error)) => Ok(error),
                    Ok(Reply::Result(_)) => {
                        Err(CallError::Misbehaved("it ended a subscription at once".into()))
                    }
                    Err(failure) => Err(failure),
                }));
            }
        });
        let open = Open { pump: AbortOnDropHandle::new(pump) };
        match tokio::time::timeout(PATIENCE, acknowledged).await {
            Ok(Ok(granted)) => granted.map(|granted| (open, granted)),
            Ok(Err(_)) => Err(Err(CallError::Unavailable("its subscription ended".into()))),
            Err(_) => Err(Err(CallError::Timeout(PATIENCE))),
        }
    }
}

type Acknowledge = oneshot::Sender<Result<BTreeSet<String>, Result<Bytes, CallError>>>;

/// Reads the messages of one subscription. Never returns: the end is that of the call.
async fn read_messages(
    mut messages: mpsc::Receiver<ServerMessage>,
    sink: &MessageSink,
    acknowledge: &mut Option<Acknowledge>,
) {
    while let Some(message) = messages.recv().await {
        if let ServerMessage::Notification { method, params } = &message
            && method.as_str() == Method::ACKNOWLEDGED
        {
            if let Some(acknowledge) = acknowledge.take() {
                let _ = acknowledge.send(Ok(resources(params.as_ref())));
            }
        } else if acknowledge.is_some() {
            tracing::debug!("server notification before the subscription was granted");
        } else {
            sink.send(message);
        }
    }
    std::future::pending().await
}

/// The granted resources in an acknowledgement.
fn resources(params: Option<&Bytes>) -> BTreeSet<String> {
    let params = params.and_then(|params| serde_json::from_slice::<Value>(params).ok());
    let uris = params
        .as_ref()
        .and_then(|params| params.pointer("/notifications/resourceSubscriptions")?.as_array());
    uris.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines, duplex};

    use super::*;
    use crate::{UnroutedMessage, stdio::StdioTransport};
    use portcullis_protocol::{
        codec::{Caps, era::META_SUBSCRIPTION},
        exchange::{Payload, Revision},
    };

    struct Server {
        lines: Lines<BufReader<DuplexStream>>,
        stdout: DuplexStream,
    }

    impl Server {
        async fn read(&mut self) -> Value {
            let line = self.lines.next_line();
            let line = tokio::time::timeout(Duration::from_secs(30), line).await.expect("in time");
            serde_json::from_str(&line.unwrap().unwrap()).unwrap()
        }

        /// The next subscription: its id and filter.
        async fn listened(&mut self) -> (Value, Value) {
            let mut message = self.read().await;
            assert_eq!(message["method"], Method::LISTEN, "{message}");
            (message["id"].take(), message["params"]["notifications"].take())
        }

        async fn cancelled(&mut self) -> Value {
            let mut message = self.read().await;
            assert_eq!(message["method"], Method::CANCELLED, "{message}");
            message["params"]["requestId"].take()
        }

        async fn write(&mut self, message: Value) {
            self.stdout.write_all(format!("{message}\n").as_bytes()).await.unwrap();
        }

        async fn send_message(&mut self, id: &Value, method: &str, mut params: Value) {
            params["_meta"] = json!({ META_SUBSCRIPTION: id });
            self.write(json!({ "jsonrpc": "2.0", "method": method, "params": params })).await;
        }
    }

    struct SubscriptionState {
        server: Server,
        unrouted: mpsc::Receiver<UnroutedMessage>,
        wanted: watch::Sender<RequestedResources>,
        granted: watch::Receiver<Granted>,
        listening: AbortOnDropHandle<()>,
    }

    fn bench(capabilities: Value) -> SubscriptionState {
        let (stdin, server_in) = duplex(1 << 14);
        let (stdout, server_out) = duplex(1 << 14);
        let (sink, unrouted) = MessageSink::test(None);
        let caps = Caps { bytes: 1 << 14, depth: 9, nodes: 1_000, keys: 1_000, object_keys: 1_000 };
        let link = Arc::new(StdioTransport::new(stdin, stdout, caps, sink.clone()));
        let words = json!({ "capabilities": capabilities }).to_string();
        let handshake =
            Handshake { revision: Revision::LATEST_MODERN, words: Payload::new(words.into()) };
        let (wanted, granted) = (watch::Sender::default(), watch::Sender::default());
        let server = Server { lines: BufReader::new(server_in).lines(), stdout: server_out };
        let (changes, answers) = (wanted.subscribe(), granted.subscribe());
        let listening = begin(link, &handshake, sink, changes, granted);
        SubscriptionState { server, unrouted, wanted, granted: answers, listening }
    }

    impl SubscriptionState {
        fn want(&self, uris: &[&str]) {
            let wanted = uris.iter().map(|uri| ((*uri).to_owned(), 1)).collect();
            self.wanted.send_replace(wanted);
        }
    }

    async fn answered(granted: &mut watch::Receiver<Granted>, requested: &str) -> Granted {
        let state = granted.wait_for(|state| state.requested.contains(requested));
        tokio::time::timeout(Duration::from_secs(30), state).await.unwrap().unwrap().clone()
    }

    fn set(uris: &[&str]) -> BTreeSet<String> {
        uris.iter().map(|uri| (*uri).to_owned()).collect()
    }

    #[tokio::test]
    async fn one_subscription_covers_the_wanted_resources() {
        let mut bench = bench(json!({ "tools": { "listChanged": true }, "resources": {} }));
        let (first, filter) = bench.server.listened().await;
        assert_eq!(filter, json!({ "toolsListChanged": true }));
        // Notifications before the acknowledgement are dropped.
        let changed = Method::TOOLS_CHANGED;
        bench.server.send_message(&first, changed, json!({ "early": true })).await;
        bench
            .server
            .send_message(&first, Method::ACKNOWLEDGED, json!({ "notifications": filter }))
            .await;
        bench.server.send_message(&first, changed, json!({})).await;
        let UnroutedMessage {
            party: None,
            message: ServerMessage::Notification { method, params },
        } = bench.unrouted.recv().await.unwrap()
        else {
            panic!("no notification")
        };
        // The proxy's subscription id is removed.
        assert_eq!((method.as_str(), params.unwrap()), (changed, Bytes::from_static(b"{}")));

        bench.want(&["a", "b"]);
        let (second, filter) = bench.server.listened().await;
        let both = json!({ "toolsListChanged": true, "resourceSubscriptions": ["a", "b"] });
        assert_eq!(filter, both);
        // The first subscription continues until the second is granted.
        bench.server.send_message(&first, changed, json!({})).await;
        assert!(bench.unrouted.recv().await.is_some());
        let granted = json!({ "notifications": { "resourceSubscriptions": ["b"] } });
        bench.server.send_message(&second, Method::ACKNOWLEDGED, granted).await;
        let state = answered(&mut bench.granted, "a").await;
        assert_eq!((state.requested, state.granted), (set(&["a", "b"]), set(&["b"])));
        assert_eq!(bench.server.cancelled().await, first);
        bench.server.send_message(&second, Method::UPDATED, json!({ "uri": "b" })).await;
        let unrouted = bench.unrouted.recv().await.unwrap();
        assert_eq!(unrouted.message.method().as_str(), Method::UPDATED);

        // A subscription that ends is opened again.
        bench.server.write(json!({ "jsonrpc": "2.0", "id": second, "result": {} })).await;
        let (third, filter) = bench.server.listened().await;
        assert_eq!(filter, both);
        drop(bench.listening);
        assert_eq!(bench.server.cancelled().await, third);
    }

    #[tokio::test]
    async fn refused_subscription_is_not_repeated() {
        let mut bench = bench(json!({ "tools": {} }));
        bench.want(&["a"]);
        let (id, filter) = bench.server.listened().await;
        assert_eq!(filter, json!({ "resourceSubscriptions": ["a"] }));
        let error = json!({ "code": -32601, "message": "no" });
        bench.server.write(json!({ "jsonrpc": "2.0", "id": id, "error": error })).await;
        let state = answered(&mut bench.granted, "a").await;
        assert_eq!(state.instead, Some(Ok(error.to_string().into())));
        // The next subscription has the resources that are wanted at that time.
        bench.want(&[]);
        bench.want(&["b"]);
        assert_eq!(bench.server.listened().await.1, json!({ "resourceSubscriptions": ["b"] }));
        drop(bench.server);
        let state = answered(&mut bench.granted, "b").await;
        assert!(matches!(state.instead, Some(Err(CallError::Unavailable(_)))));
        // The task ends with the link.
        tokio::time::timeout(Duration::from_secs(30), bench.listening).await.unwrap().unwrap();
    }
}
