//! Tasks: calls that continue after their response (revision 2025-11-25, and the extension
//! `io.modelcontextprotocol/tasks` of 2026-07-28).
//!
//! INVARIANT: a task belongs only to the client that made it. A server sees all clients as one, so
//! the proxy keeps the owners, those of tasks at remote servers on disk. An unknown task belongs to
//! no client.

mod task_file;

use std::{
    collections::HashMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use tokio::task::JoinHandle;

use crate::{
    router::{Route, Router, selects_once},
    stages::ClientContext,
};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{Object, era::TASKS_EXTENSION, may_have},
    exchange::{Answer, Exchange, Method, Target},
    identity::{Principal, PrincipalKind},
    names::ServerName,
    obligations::Obligations,
    refusal::{Code, Refusal},
};
use portcullis_upstream::{Call, CallError, InstanceKey, ListKind, Reply, Server};
use task_file::{TaskFile, is_stored};

/// Known tasks at once; the second constant is the limit of one principal.
const MOST: usize = 16_384;
const OF_ONE: usize = 1_024;
/// Time for which a task is known after its last use.
const KEPT: Duration = Duration::from_secs(24 * 3_600);
/// Time after which a use of a stored task is written again.
const SAVED_EVERY: Duration = Duration::from_secs(3_600);
/// Largest size of a task's id.
const ID_BYTES: usize = 1_024;
/// Pages that are read of one server's list of tasks.
const PAGES: usize = 16;

/// Process that has a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TaskHost {
    server: ServerName,
    /// Owner of a dedicated instance.
    party: Option<InstanceKey>,
    /// Number among all processes that ever ran, since the next process may assign the same ids. A
    /// remote server counts as one process while its config entry is the same.
    run: u64,
    is_remote: bool,
}

/// A task's process and the server's id of the task.
type Key = (TaskHost, String);

/// Obligations of the policies that permitted the call.
type TaskObligations = Vec<Arc<Obligations>>;

/// Owner of a task. A later client with the same name has another key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    kind: PrincipalKind,
    key: Option<String>,
}

impl Owner {
    fn of(principal: &Principal) -> Self {
        Self { kind: principal.kind.clone(), key: principal.key.clone() }
    }

    fn is(&self, principal: &Principal) -> bool {
        principal.is(&self.kind, self.key.as_deref())
    }
}

/// A known task.
#[derive(Clone)]
struct Task {
    owner: Owner,
    /// Whether a modern client created it. The tasks of the other era have other methods.
    modern: bool,
    /// The tool that was called.
    tool: String,
    /// Obligations of the policies that permitted the call, for its later result.
    obligations: TaskObligations,
    used: Instant,
}

/// All tasks that clients may follow.
pub(crate) struct Tasks {
    router: Arc<Router>,
    registered: Mutex<HashMap<Key, Task>>,
    file: TaskFile,
}

impl Tasks {
    /// The tasks of the earlier proxies of a state folder. Reads a file: call it outside the async
    /// threads.
    pub fn open(router: Arc<Router>, state_dir: &Path) -> Arc<Self> {
        let file = TaskFile::at(state_dir);
        let registered = file.read().unwrap_or_else(|error| {
            tracing::error!(%error, "owners of tasks could not be read: earlier tasks are unknown");
            Vec::new()
        });
        Arc::new(Self { router, registered: Mutex::new(registered.into_iter().collect()), file })
    }

    /// Writes a change to the file, on a task of its own: it does not end with the client's request.
    fn save(self: &Arc<Self>) -> JoinHandle<()> {
        let (tasks, change) = (self.clone(), self.file.change());
        tokio::spawn(async move {
            tasks.file.save(change, || tasks.stored()).await;
        })
    }

    /// The tasks that the file has.
    fn stored(&self) -> Vec<(Key, Task)> {
        let registered = self.registered.lock();
        let stored = registered.iter().filter(|(key, _)| is_stored(key));
        stored.map(|(key, task)| (key.clone(), task.clone())).collect()
    }

    /// Adds a task.
    ///
    /// # Errors
    /// If too many tasks are known, or the id is in use: on its server or, for an owner that sees
    /// `many` servers and identifies tasks only by id, on any of them.
    fn add(&self, key: Key, task: Task, many: bool) -> Result<(), Refusal> {
        if key.1.len() > ID_BYTES {
            let words = "the id of the server's task is too long";
            let detail = format!("it has {} bytes, and the limit is {ID_BYTES}", key.1.len());
            return Err(Refusal::new(Code::ServerMisbehaved, words).detail(detail));
        }
        let mut registered = self.registered.lock();
        let taken = |(other, of): (&Key, &Task)| {
            let (host, own) = (&other.0, &key.0);
            other.1 == key.1
                && if host == own {
                    of.owner != task.owner
                } else {
                    many && host.server != own.server
                        && of.owner == task.owner
                        && (host.party == own.party || host.party.is_none())
                }
        };
        if registered.iter().any(taken) {
            return Err(Refusal::new(
                Code::ServerMisbehaved,
                "the id of the server's task is already in use",
            ));
        }
        if registered.len() >= MOST {
            registered.retain(|_, task| task.used.elapsed() < KEPT);
        }
        // The task that a client has not used for longest gives way if the client has too many.
        let own = || registered.iter().filter(|(_, other)| other.owner == task.owner);
        if own().count() >= OF_ONE {
            let oldest = own().min_by_key(|(_, other)| other.used).map(|(key, _)| key.clone());
            oldest.map(|key| registered.remove(&key));
        }
        if registered.len() >= MOST {
            return Err(Refusal::new(Code::RateLimited, "too many tasks are open"));
        }
        registered.insert(key, task);
        Ok(())
    }

    /// The tool and obligations of a principal's task of this era. Writes its last use to the file
    /// once an hour.
    fn used(
        self: &Arc<Self>,
        owner: &Principal,
        modern: bool,
        key: &Key,
    ) -> Option<(String, TaskObligations)> {
        let (tool, obligations, unused) = self.tool(owner, modern, key)?;
        if unused > SAVED_EVERY && is_stored(key) {
            drop(self.save());
        }
        Some((tool, obligations))
    }

    /// The tool and obligations of a principal's task of this era, and the time since its last use.
    fn tool(
        &self,
        owner: &Principal,
        modern: bool,
        key: &Key,
    ) -> Option<(String, TaskObligations, Duration)> {
        let mut registered = self.registered.lock();
        let own = |task: &&mut Task| task.owner.is(owner) && task.modern == modern;
        let task = registered.get_mut(key).filter(own)?;
        let unused = task.used.elapsed();
        if unused >= KEPT {
            return None;
        }
        // Within an hour, the file's time stays near enough.
        if unused > SAVED_EVERY || !is_stored(key) {
            task.used = Instant::now();
        }
        Some((task.tool.clone(), task.obligations.clone(), unused))
    }

    /// The owner of a task.
    pub fn owner(&self, place: TaskHost, id: &str) -> Option<PrincipalKind> {
        self.registered.lock().get(&(place, id.to_owned())).map(|task| task.owner.kind.clone())
    }

    fn at(&self, owner: &Principal, place: &TaskHost) -> bool {
        self.registered.lock().iter().any(|(key, task)| task.owner.is(owner) && key.0 == *place)
    }

    /// Forgets the tasks of a removed client, since its name may be given to another.
    pub fn forget_owner(self: &Arc<Self>, owner: &PrincipalKind) {
        let mut stored = false;
        self.registered.lock().retain(|key, task| {
            let own = task.owner.kind == *owner;
            stored |= own && is_stored(key);
            !own
        });
        if stored {
            drop(self.save());
        }
    }

    /// Forgets the tasks of ended dedicated instances.
    pub fn forget(&self, party: &InstanceKey) {
        self.registered.lock().retain(|key, _| key.0.party.as_ref() != Some(party));
    }
}

impl Tasks {
    /// The server of a request about a task; `None` for other requests.
    ///
    /// # Errors
    /// A refusal if the task does not belong to this client.
    pub async fn route(
        self: &Arc<Self>,
        client: &ClientContext,
        exchange: &mut Exchange,
    ) -> Result<Option<Route>, Refusal> {
        if !Method::TASK.contains(&exchange.method.as_str()) {
            return Ok(None);
        }
        if client.revision.is_modern() && !client.abilities.extension(TASKS_EXTENSION) {
            let required = json!({ "extensions": { TASKS_EXTENSION: {} } });
            return Err(Refusal::new(
                Code::CapabilityMissing,
                "this method needs a client that declares the tasks extension",
            )
            .data("requiredCapabilities", required));
        }
        let unknown = || Refusal::new(Code::RequestStateInvalid, "the task does not exist");
        let params = Object::parse(exchange.request.raw().clone())?;
        selects_once(&exchange.method, &params)?;
        let id = params
            .string("taskId")
            .ok_or_else(|| Refusal::new(Code::InvalidParams, "`taskId` must be a string"))?;
        let mut found = None;
        for server in self.router.servers(&client.view) {
            // After a restart, the era of the last run selects the instance.
            server.known_eras().await;
            let Some(place) = place(&server, client.party_key(&server)) else { continue };
            let task =
                self.used(&client.principal, client.revision.is_modern(), &(place, id.clone()));
            if let Some((tool, obligations)) = task {
                found = Some((server, tool, obligations));
                break;
            }
        }
        let (server, name, obligations) = found.ok_or_else(unknown)?;
        // The result of the call follows later.
        exchange.obligations = obligations;
        let instance = match server.at(client.party_key(&server).as_ref()) {
            Some(instance) => instance,
            None => {
                let started = client.instance(&server).await;
                started.map_err(|failure| failure.refusal(&server.name))?.0
            }
        };
        let items = instance.items(ListKind::Tools).await;
        let items = items.map_err(|failure| failure.refusal(&server.name))?;
        let tool = items.iter().find(|item| item.name == name).cloned();
        let target = Target::Tool { name, tool };
        Ok(Some(Route { server: Some(server), target, params: None }))
    }

    /// Adds the task that a response creates.
    ///
    /// # Errors
    /// A refusal if the task cannot be followed.
    pub async fn note(
        self: &Arc<Self>,
        client: &ClientContext,
        server: &Server,
        exchange: &Exchange,
        answer: &Answer,
    ) -> Result<(), Refusal> {
        let (Answer::Result(result), Target::Tool { name, .. }) = (answer, &exchange.target) else {
            return Ok(());
        };
        if exchange.method.as_str() != Method::TOOLS_CALL || !may_have(result.raw(), "taskId") {
            return Ok(());
        }
        let Ok(object) = Object::parse(result.raw().clone()) else { return Ok(()) };
        let id = if exchange.revision.is_modern() {
            (object.string("resultType").as_deref() == Some("task"))
                .then(|| object.string("taskId"))
                .flatten()
        } else {
            object.object("task").and_then(|task| task.string("taskId"))
        };
        let Some(id) = id else { return Ok(()) };
        let (tool, obligations) = (name.clone(), exchange.obligations.clone());
        let task = Task {
            owner: Owner::of(&exchange.principal),
            modern: exchange.revision.is_modern(),
            tool,
            obligations,
            used: Instant::now(),
        };
        // If the process has ended since, its tasks are gone.
        let Some(place) = place(server, client.party_key(server)) else { return Ok(()) };
        let key = (place, id);
        let stored = is_stored(&key);
        self.add(key, task, client.view == View::All)?;
        if stored {
            // The client gets the task only after that.
            let _ = self.save().await;
        }
        Ok(())
    }

    /// The result of `tasks/list`: this client's tasks on each server.
    pub async fn list(&self, client: &ClientContext) -> Bytes {
        let mut all = Vec::new();
        for server in self.router.servers(&client.view) {
            let place = place(&server, client.party_key(&server));
            if !place.is_some_and(|place| self.at(&client.principal, &place)) {
                continue;
            }
            match self.tasks_of(client, &server).await {
                Ok(tasks) => all.extend(tasks),
                Err(failure) => {
                    tracing::warn!(server = %server.name, %failure, "server is missing from a merged list of tasks");
                }
            }
        }
        [&b"{\"tasks\":["[..], &all.join(&b","[..]), b"]}"].concat().into()
    }

    async fn tasks_of(
        &self,
        client: &ClientContext,
        server: &Arc<Server>,
    ) -> Result<Vec<Bytes>, CallError> {
        let misbehaved =
            || CallError::Misbehaved("its answer to `tasks/list` is not a list".into());
        let (instance, running) = client.instance(server).await?;
        let Some(place) = place(server, client.party_key(server)) else { return Ok(Vec::new()) };
        let mut own = Vec::new();
        let mut cursor: Option<Bytes> = None;
        for _ in 0..PAGES {
            let params = match &cursor {
                Some(cursor) => [&b"{\"cursor\":"[..], cursor, b"}"].concat().into(),
                None => Bytes::from_static(b"{}"),
            };
            let call = Call::own(Method::TASKS_LIST, Some(params), server.deadline());
            let result = match instance.call(&running, call).await? {
                Reply::Result(result) => Object::parse(result).map_err(|_| misbehaved())?,
                Reply::Error(_) => return Ok(own),
            };
            let list = result.get("tasks").ok_or_else(misbehaved)?;
            let tasks: Vec<&RawValue> = serde_json::from_slice(&list).map_err(|_| misbehaved())?;
            for task in tasks {
                let text = list.slice_ref(task.get().as_bytes());
                let id = Object::parse(text.clone()).ok().and_then(|task| task.string("taskId"));
                let key = id.map(|id| (place.clone(), id));
                if key.is_some_and(|key| {
                    self.tool(&client.principal, client.revision.is_modern(), &key).is_some()
                }) {
                    own.push(text);
                }
            }
            match result.get("nextCursor") {
                Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
                _ => break,
            }
        }
        Ok(own)
    }
}

/// Process of a server's dedicated or shared instance that has tasks; `None` if it is not running.
/// A remote server is not a process of the proxy, so its tasks survive a connection.
pub(crate) fn place(server: &Server, party: Option<InstanceKey>) -> Option<TaskHost> {
    let run = match server.remote {
        Some(entry) => entry,
        None => server.at(party.as_ref())?.peek()?.number,
    };
    Some(TaskHost { server: server.name.clone(), party, run, is_remote: server.remote.is_some() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_protocol::names::SessionId;

    fn owner(name: &str) -> Principal {
        let principal = Principal::client(name.parse().unwrap(), Vec::new());
        Principal { key: Some(format!("key of {name}")), ..principal }
    }

    fn task(name: &str) -> Task {
        Task {
            owner: Owner::of(&owner(name)),
            modern: false,
            tool: "t".to_owned(),
            obligations: Vec::new(),
            used: Instant::now(),
        }
    }

    fn key(server: &str, session: Option<&str>, id: &str) -> Key {
        let party = session.map(|id| InstanceKey::Session(SessionId::presented(id)));
        let server = server.parse().unwrap();
        (TaskHost { server, party, run: 1, is_remote: false }, id.to_owned())
    }

    fn open(state_dir: &Path) -> Arc<Tasks> {
        Tasks::open(Arc::new(Router::new([])), state_dir)
    }

    #[test]
    fn task_belongs_to_the_client_that_created_it() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = open(folder.path());
        for (add, by, fine) in [
            (key("s", None, "1"), "a", true),
            // Again, by the same server for the same client.
            (key("s", None, "1"), "a", true),
            // One id for two clients of one process.
            (key("s", None, "1"), "b", false),
            // A process of another session has its own ids.
            (key("s", Some("x"), "1"), "b", true),
            (key("s", Some("y"), "1"), "b", true),
            // A client that sees both servers could not distinguish them.
            (key("other", None, "1"), "a", false),
            (key("other", Some("x"), "1"), "b", false),
            (key("other", Some("z"), "1"), "b", true),
        ] {
            assert_eq!(tasks.add(add.clone(), task(by), true).is_ok(), fine, "{add:?} {by}");
        }
        // A client that sees one server can distinguish them.
        assert!(tasks.add(key("other", None, "1"), task("a"), false).is_ok());
        assert!(tasks.tool(&owner("a"), false, &key("s", None, "1")).is_some());
        assert!(tasks.tool(&owner("b"), false, &key("s", None, "1")).is_none());
        let (place, id) = key("s", Some("x"), "1");
        assert_eq!(tasks.owner(place.clone(), &id), Some(owner("b").kind));
        tasks.forget(&InstanceKey::Session(SessionId::presented("x")));
        assert_eq!(tasks.owner(place, &id), None);
        // The next process assigns the same ids to other clients.
        let mut next = key("s", None, "1");
        next.0.run = 2;
        tasks.add(next.clone(), task("b"), true).unwrap();
        assert!(tasks.tool(&owner("a"), false, &next).is_none());
        let long = key("s", None, &"x".repeat(ID_BYTES + 1));
        assert!(tasks.add(long, task("a"), true).is_err());
    }

    #[test]
    fn tasks_are_limited_by_client() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = open(folder.path());
        for id in 0..OF_ONE {
            tasks.add(key("s", None, &id.to_string()), task("a"), true).unwrap();
        }
        // One more task, so the oldest is forgotten.
        tasks.add(key("s", None, "x"), task("a"), true).unwrap();
        assert!(tasks.tool(&owner("a"), false, &key("s", None, "0")).is_none());
        assert_eq!(tasks.registered.lock().len(), OF_ONE);
        assert!(tasks.add(key("s", None, "y"), task("b"), true).is_ok());
    }

    #[tokio::test]
    async fn owners_of_tasks_at_remote_servers_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = open(folder.path());
        let at = |mut key: Key| {
            key.0.is_remote = true;
            key
        };
        let remote = at(key("s", None, "remote"));
        let mut dedicated = at(key("s", None, "dedicated"));
        dedicated.0.party = Some(InstanceKey::Client {
            principal: owner("a").kind,
            holder: None,
            capabilities: [7; 32],
        });
        let (local, session) = (key("s", None, "local"), at(key("s", Some("x"), "session")));
        let mut redacts = Obligations::default();
        redacts.take("redact", "result:/a/*").unwrap();
        redacts.take("rate", "1/1m").unwrap();
        for key in [&remote, &dedicated, &local, &session] {
            let task = Task { obligations: vec![Arc::new(redacts.clone())], ..task("a") };
            tasks.add(key.clone(), task, false).unwrap();
        }
        tasks.save().await.unwrap();
        let text = std::fs::read_to_string(folder.path().join("tasks.json")).unwrap();
        assert!(!text.contains("session"), "a session's id is a secret: {text}");

        let again = open(folder.path());
        for (key, registered) in
            [(&remote, true), (&dedicated, true), (&local, false), (&session, false)]
        {
            let found = again.tool(&owner("a"), false, key);
            assert_eq!(found.is_some(), registered, "{key:?}");
            if let Some((tool, obligations, _)) = found {
                assert_eq!((tool.as_str(), &*obligations[0]), ("t", &redacts));
            }
        }
        // Neither for another client, nor for a later client of the same name, nor in the other era.
        let later = Principal { key: Some("another".to_owned()), ..owner("a") };
        for (who, modern) in [(&owner("b"), false), (&later, false), (&owner("a"), true)] {
            assert!(again.tool(who, modern, &remote).is_none());
        }
        // Another entry under the server's name is another server.
        let mut changed = remote.clone();
        changed.0.run = 2;
        assert!(again.tool(&owner("a"), false, &changed).is_none());

        again.forget_owner(&owner("a").kind);
        again.save().await.unwrap();
        assert!(open(folder.path()).tool(&owner("a"), false, &remote).is_none());
        std::fs::write(folder.path().join("tasks.json"), "[{").unwrap();
        assert!(open(folder.path()).registered.lock().is_empty());
    }
}
