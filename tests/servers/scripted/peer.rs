//! What the server says to what it is told, whatever carries the words.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{tasks::Tasks, tools};

/// The revisions, oldest first. As texts, they sort by age.
pub const REVISIONS: [&str; 5] =
    ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"];
pub const MODERN: &str = "2026-07-28";

pub const META_REVISION: &str = "io.modelcontextprotocol/protocolVersion";
pub const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
pub const META_SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
const META_SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
const META_LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
pub const TASKS: &str = "io.modelcontextprotocol/tasks";

/// How long the server waits for anything at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes messages to the other side.
pub type Out = mpsc::UnboundedSender<Value>;

/// What all connections of this process share.
pub struct World {
    pub revision: &'static str,
    /// Marks of the calls of `wait` that have begun, and of those that were cancelled.
    pub begun: watch::Sender<HashSet<String>>,
    pub cancelled: watch::Sender<HashSet<String>>,
    pub tasks: Tasks,
    connections: Mutex<Vec<Weak<Connection>>>,
    listeners: Mutex<Vec<Listener>>,
}

/// A `subscriptions/listen` that is open.
struct Listener {
    id: Value,
    filter: Value,
    out: Out,
}

impl World {
    pub fn new(revision: &str) -> Option<Arc<Self>> {
        let revision = REVISIONS.into_iter().find(|known| *known == revision)?;
        Some(Arc::new(Self {
            revision,
            begun: watch::Sender::default(),
            cancelled: watch::Sender::default(),
            tasks: Tasks::default(),
            connections: Mutex::default(),
            listeners: Mutex::default(),
        }))
    }

    pub fn modern(&self) -> bool {
        self.revision == MODERN
    }

    /// Tells those who asked for it, and nobody else.
    pub fn tell(&self, method: &str, uri: Option<&str>) {
        let params = uri.map_or(json!({}), |uri| json!({ "uri": uri }));
        for connection in lock(&self.connections).iter().filter_map(Weak::upgrade) {
            let wanted = uri.is_none_or(|uri| lock(&connection.watched).contains(uri));
            if wanted && connection.ready.load(Ordering::Acquire) {
                let _ = connection.general.send(notification(method, params.clone()));
            }
        }
        let member = match method {
            "notifications/tools/list_changed" => "toolsListChanged",
            _ => "resourceSubscriptions",
        };
        for listener in lock(&self.listeners).iter() {
            let filter = &listener.filter[member];
            let wanted = match uri {
                Some(uri) => filter.as_array().is_some_and(|uris| uris.iter().any(|u| u == uri)),
                None => filter == true,
            };
            if wanted {
                let mut params = params.clone();
                params["_meta"] = json!({ META_SUBSCRIPTION: listener.id });
                let _ = listener.out.send(notification(method, params));
            }
        }
    }
}

/// One client as the server sees it. A modern one leaves nothing behind here.
pub struct Connection {
    pub world: Arc<World>,
    /// For what belongs to no request.
    pub general: Out,
    capabilities: Mutex<Value>,
    ready: AtomicBool,
    level: Mutex<Option<String>>,
    watched: Mutex<HashSet<String>>,
    asked: Mutex<HashMap<u64, oneshot::Sender<Value>>>,
    next: AtomicU64,
    running: Mutex<HashMap<String, CancellationToken>>,
}

/// One request that is being worked on.
pub struct Request {
    pub connection: Arc<Connection>,
    pub id: Value,
    pub method: String,
    pub params: Value,
    pub out: Out,
    pub gone: CancellationToken,
}

/// An error's code and message.
pub type Failure = (i64, String);

impl Connection {
    pub fn new(world: Arc<World>, general: Out) -> Arc<Self> {
        let connection = Arc::new(Self {
            world: world.clone(),
            general,
            capabilities: Mutex::default(),
            ready: AtomicBool::new(false),
            level: Mutex::default(),
            watched: Mutex::default(),
            asked: Mutex::default(),
            next: AtomicU64::new(1),
            running: Mutex::default(),
        });
        lock(&world.connections).push(Arc::downgrade(&connection));
        connection
    }

    /// Deals with one message. What belongs to it goes to `out`; `gone` tells that nobody waits
    /// for the answer any more.
    pub async fn handle(self: Arc<Self>, message: Value, out: Out, gone: CancellationToken) {
        let id = message["id"].clone();
        let Some(method) = message["method"].as_str() else {
            let waiting = id.as_u64().and_then(|id| lock(&self.asked).remove(&id));
            match waiting {
                Some(waiting) => drop(waiting.send(message)),
                None => eprintln!("an answer to nothing: {message}"),
            }
            return;
        };
        if message.get("id").is_none() {
            self.notified(method, &message["params"]);
            return;
        }
        lock(&self.running).insert(id.to_string(), gone.clone());
        let request = Request {
            connection: self.clone(),
            id: id.clone(),
            method: method.to_owned(),
            params: message["params"].clone(),
            out: out.clone(),
            gone: gone.clone(),
        };
        let answer = request.answer().await;
        lock(&self.running).remove(&id.to_string());
        if gone.is_cancelled() {
            return;
        }
        let _ = out.send(match answer {
            Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
            Err((code, message)) => error(&id, code, &message),
        });
    }

    fn notified(&self, method: &str, params: &Value) {
        match method {
            "notifications/initialized" => self.ready.store(true, Ordering::Release),
            "notifications/cancelled" => {
                if let Some(gone) = lock(&self.running).get(&params["requestId"].to_string()) {
                    gone.cancel();
                }
            }
            "notifications/roots/list_changed" if !self.world.modern() => {}
            other => eprintln!("a notification that nobody knows: {other}"),
        }
    }
}

impl Request {
    fn world(&self) -> &World {
        &self.connection.world
    }

    async fn answer(&self) -> Result<Value, Failure> {
        if !self.world().modern() {
            return self.legacy().await;
        }
        self.modern_members()?;
        let mut result = match self.method.as_str() {
            "server/discover" => tools::discover(),
            "subscriptions/listen" => return self.listen().await,
            _ => self.serve().await?,
        };
        if result.get("resultType").is_none() {
            result["resultType"] = "complete".into();
        }
        if matches!(
            self.method.as_str(),
            "server/discover"
                | "tools/list"
                | "prompts/list"
                | "resources/list"
                | "resources/templates/list"
                | "resources/read"
        ) {
            result["ttlMs"] = 0.into();
            result["cacheScope"] = "private".into();
        }
        Ok(result)
    }

    async fn legacy(&self) -> Result<Value, Failure> {
        let connection = &self.connection;
        match self.method.as_str() {
            "initialize" => {
                *lock(&connection.capabilities) = self.params["capabilities"].clone();
                return Ok(tools::greeting(self.world().revision));
            }
            "ping" => return Ok(json!({})),
            "server/discover" => return Err(unknown("server/discover")),
            _ if !connection.ready.load(Ordering::Acquire) => {
                return Err((-32600, format!("{} before the handshake", self.method)));
            }
            _ => {}
        }
        self.legacy_members()?;
        match self.method.as_str() {
            "logging/setLevel" => {
                *lock(&connection.level) = self.params["level"].as_str().map(str::to_owned);
                Ok(json!({}))
            }
            "resources/subscribe" => {
                lock(&connection.watched).insert(self.text("uri")?);
                Ok(json!({}))
            }
            "resources/unsubscribe" => {
                lock(&connection.watched).remove(&self.text("uri")?);
                Ok(json!({}))
            }
            _ => self.serve().await,
        }
    }

    /// What all revisions have.
    async fn serve(&self) -> Result<Value, Failure> {
        match self.method.as_str() {
            "tools/list" => Ok(tools::list(self.world().revision)),
            "tools/call" => self.call().await,
            "prompts/list" => Ok(tools::prompts()),
            "prompts/get" => tools::prompt(&self.params),
            "resources/list" => Ok(tools::resources()),
            "resources/templates/list" => Ok(tools::templates()),
            "resources/read" => tools::read(&self.params, self.world().modern()),
            "completion/complete" => tools::complete(&self.params),
            "tasks/get" | "tasks/result" | "tasks/list" | "tasks/cancel" | "tasks/update" => {
                self.world().tasks.answer(self)
            }
            other => Err(unknown(other)),
        }
    }

    /// A member of `params` that must be a text.
    pub fn text(&self, name: &str) -> Result<String, Failure> {
        let text = self.params[name].as_str();
        text.map(str::to_owned).ok_or_else(|| (-32602, format!("`{name}` is missing")))
    }

    /// A text among the arguments of a call.
    pub fn argument(&self, name: &str) -> Result<String, Failure> {
        let text = self.params["arguments"][name].as_str();
        text.map(str::to_owned).ok_or_else(|| (-32602, format!("argument `{name}` is missing")))
    }

    fn modern_members(&self) -> Result<(), Failure> {
        let meta = &self.params["_meta"];
        if meta[META_REVISION] != MODERN {
            return Err((-32602, format!("{}: `_meta` has no {META_REVISION}", self.method)));
        }
        if !meta[META_CAPABILITIES].is_object() {
            return Err((-32602, format!("{}: `_meta` has no {META_CAPABILITIES}", self.method)));
        }
        Ok(())
    }

    /// What belongs to 2026-07-28 has no business here.
    fn legacy_members(&self) -> Result<(), Failure> {
        let meta = self.params["_meta"].as_object();
        let strange = meta.into_iter().flatten().map(|(key, _)| key).find(|key| {
            key.starts_with("io.modelcontextprotocol/") && !key.ends_with("/related-task")
        });
        if let Some(key) = strange {
            return Err((-32600, format!("{}: `_meta` has {key}", self.method)));
        }
        for member in ["inputResponses", "requestState"] {
            if self.params.get(member).is_some() {
                return Err((-32600, format!("{} has {member}", self.method)));
            }
        }
        if self.params.get("task").is_some() && self.world().revision < "2025-11-25" {
            return Err((-32600, format!("{} has `task`", self.method)));
        }
        Ok(())
    }

    /// What the client says that it can do.
    pub fn capabilities(&self) -> Value {
        if self.world().modern() {
            return self.params["_meta"][META_CAPABILITIES].clone();
        }
        lock(&self.connection.capabilities).clone()
    }

    /// The severity from which the client wants to hear log messages, if at all.
    pub fn log_level(&self) -> Option<String> {
        if self.world().modern() {
            return self.params["_meta"][META_LOG_LEVEL].as_str().map(str::to_owned);
        }
        lock(&self.connection.level).clone()
    }

    /// Says something that belongs to this request.
    pub fn say(&self, method: &str, params: Value) {
        let _ = self.out.send(notification(method, params));
    }

    /// Asks the client, in the words of a legacy revision.
    ///
    /// # Errors
    /// The client's error, or that nothing came.
    pub async fn ask(&self, method: &str, params: Value) -> Result<Value, Failure> {
        let id = self.connection.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.connection.asked).insert(id, sender);
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let _ = self.out.send(request);
        match tokio::time::timeout(PATIENCE, receiver).await {
            Ok(Ok(message)) if message.get("result").is_some() => Ok(message["result"].clone()),
            Ok(Ok(message)) => Err((-32603, format!("{method}: the client said {message}"))),
            _ => Err((-32603, format!("{method}: the client did not answer"))),
        }
    }

    async fn listen(&self) -> Result<Value, Failure> {
        let filter = &self.params["notifications"];
        if !filter.is_object() {
            return Err((-32602, "`notifications` is missing".into()));
        }
        let listener =
            Listener { id: self.id.clone(), filter: filter.clone(), out: self.out.clone() };
        let mut acknowledged = json!({ "notifications": filter });
        acknowledged["_meta"] = json!({ META_SUBSCRIPTION: self.id });
        {
            let mut listeners = lock(&self.world().listeners);
            self.say("notifications/subscriptions/acknowledged", acknowledged);
            listeners.push(listener);
        }
        self.gone.cancelled().await;
        let mut listeners = lock(&self.world().listeners);
        listeners.retain(|l| !(l.id == self.id && l.out.same_channel(&self.out)));
        Ok(json!({}))
    }

    /// Waits until `marks` has this mark.
    pub async fn await_mark(
        &self,
        marks: &watch::Sender<HashSet<String>>,
        mark: &str,
    ) -> Result<(), Failure> {
        let mut marks = marks.subscribe();
        let there = marks.wait_for(|marks| marks.contains(mark));
        match tokio::time::timeout(PATIENCE, there).await {
            Ok(_) => Ok(()),
            Err(_) => Err((-32603, format!("waited in vain for {mark}"))),
        }
    }
}

pub fn unknown(method: &str) -> Failure {
    (-32601, format!("no such method: {method}"))
}

pub fn error(id: &Value, code: i64, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
}

fn notification(method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "method": method, "params": params })
}

/// The lock; what panicked before is not this one's business.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
