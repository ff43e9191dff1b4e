//! Containers that were created through the guard, and how long each may be there: as long as
//! somebody is attached to it. One is held until it is gone, whatever its removal takes.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::Method;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use crate::{
    create::Holding,
    engine::Engine,
    label,
    peer::Peer,
    refusal::{Code, Refusal},
};
use portcullis_foundation::backoff::Backoff;

/// From its creation until somebody is attached.
const UNATTACHED: Duration = Duration::from_secs(60);
/// For the proxy to remove it by itself.
const GRACE: Duration = Duration::from_secs(20);
/// Pauses between failed removals.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// For the engine to be done with a creation that it did not answer in time.
const LATE: Duration = Duration::from_secs(600);
/// For all to be removed at the guard's end: less than an init waits before it kills.
const ENDING: Duration = Duration::from_secs(8);

/// All containers of this guard's that may be there.
#[derive(Clone)]
pub struct Leases {
    engine: Engine,
    held: Arc<Mutex<HashMap<String, Arc<Lease>>>>,
    free: Arc<Semaphore>,
    most: u32,
    ending: Arc<AtomicBool>,
}

/// One container.
pub struct Lease {
    pub id: String,
    held: Held,
    /// Whether somebody has joined what it holds.
    joined: AtomicBool,
    attached: AtomicBool,
    _place: OwnedSemaphorePermit,
}

/// What is known of a container.
pub struct Held {
    pub name: String,
    /// The folders of the host that it has, with whether it may write.
    pub mounts: Vec<(PathBuf, bool)>,
    /// What it holds.
    pub holds: Option<Holding>,
    /// Who had it created.
    pub by: Peer,
}

impl Leases {
    pub fn new(engine: Engine, most: u32) -> Self {
        let free = Arc::new(Semaphore::new(most as usize));
        Self { engine, held: Arc::default(), free, most, ending: Arc::default() }
    }

    /// Room for one more.
    pub fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        if self.ending.load(Ordering::Acquire) {
            return Err(Refusal::new(Code::Limit, "the guard is ending"));
        }
        self.free.clone().try_acquire_owned().map_err(|_| {
            Refusal::new(Code::Limit, "there are as many containers as may be (see --containers)")
        })
    }

    /// Holds one that was just created.
    pub fn hold(&self, id: String, held: Held, place: OwnedSemaphorePermit) {
        let lease = Lease {
            id: id.clone(),
            held,
            joined: AtomicBool::default(),
            attached: AtomicBool::default(),
            _place: place,
        };
        {
            let mut held = self.held.lock();
            // The engine gives a name to one at a time: the earlier one is gone.
            held.retain(|_, other| other.held.name != lease.held.name);
            held.insert(id.clone(), Arc::new(lease));
        }
        let leases = self.clone();
        tokio::spawn(async move {
            if !leases.ending.load(Ordering::Acquire) {
                sleep(UNATTACHED).await;
            }
            let idle = |lease: Arc<Lease>| !lease.attached.load(Ordering::Acquire);
            if leases.find(&id).is_some_and(idle) {
                leases.end(&id, "nobody attached to it").await;
            }
        });
    }

    /// Keeps the place of one whose creation the engine did not answer: it may be there, or come to be.
    /// It is removed then, where its labels say that it is the one.
    pub fn lost(&self, name: String, guard: String, place: OwnedSemaphorePermit) {
        let leases = self.clone();
        tokio::spawn(async move {
            let given_up = tokio::time::Instant::now() + LATE;
            for pauses in 0.. {
                match leases.recover(&name, &guard).await {
                    Ok(Removal::Done) => {
                        tracing::warn!(container = name, "removed: its creation was not answered");
                        break;
                    }
                    Ok(Removal::Absent) if tokio::time::Instant::now() > given_up => break,
                    Ok(Removal::Absent | Removal::Going) => {}
                    Err(refusal) => {
                        tracing::error!(container = name, "not removed yet: {}", refusal.why);
                    }
                }
                sleep(BACKOFF.pause(pauses)).await;
            }
            drop(place);
        });
    }

    /// Removes the container of that name, if that is what this guard created by it.
    async fn recover(&self, name: &str, guard: &str) -> Result<Removal, Refusal> {
        let target = format!("/containers/{name}/json");
        let (status, told) = self.engine.ask(Method::GET, &target, Vec::new()).await?;
        let labelled = |key: &str, value: &str| {
            let labels = told.pointer("/Config/Labels").and_then(Value::as_object);
            labels.and_then(|labels| labels.get(key)).and_then(Value::as_str) == Some(value)
        };
        match status.as_u16() {
            200 if labelled(label::GUARD, guard) && labelled(label::CONTAINER, name) => {
                remove(&self.engine, name).await
            }
            200 | 404 => Ok(Removal::Absent),
            _ => Err(Refusal::new(Code::Engine, format!("the engine answered {status}"))),
        }
    }

    /// One that was created through this guard, by its id or name.
    pub fn find(&self, container: &str) -> Option<Arc<Lease>> {
        let held = self.held.lock();
        let named = || held.values().find(|lease| lease.held.name == container);
        held.get(container).or_else(named).cloned()
    }

    /// Joins the container that holds exactly that, and was created by the same client: once.
    pub fn join(&self, container: &str, holding: &Holding, by: Peer) -> Option<Joining> {
        let is_for =
            |lease: &Arc<Lease>| lease.held.holds.as_ref() == Some(holding) && lease.held.by == by;
        let lease = self.find(container).filter(is_for)?;
        (!lease.joined.swap(true, Ordering::AcqRel)).then_some(Joining { lease, kept: false })
    }

    /// It is not there any more.
    pub fn drop(&self, id: &str) {
        self.held.lock().remove(id);
    }

    /// Somebody attaches to it: once, as Portcullis does. What a second one would see is the first
    /// one's.
    pub fn attach(&self, id: &str) -> Result<Attachment, Refusal> {
        let lease = self.find(id);
        if lease.is_none_or(|lease| lease.attached.swap(true, Ordering::AcqRel)) {
            let why = "somebody is, or was, attached to it already";
            return Err(Refusal::new(Code::Call, why));
        }
        Ok(Attachment { leases: self.clone(), id: id.to_owned() })
    }

    /// Removes all, and those that are being created. Nothing is created after.
    pub async fn end_all(&self) {
        self.ending.store(true, Ordering::Release);
        let ids: Vec<String> = self.held.lock().keys().cloned().collect();
        for id in ids {
            let leases = self.clone();
            tokio::spawn(async move { leases.end(&id, "the guard ends").await });
        }
        // What is held, and what is being created, has a place.
        if timeout(ENDING, self.free.acquire_many(self.most)).await.is_err() {
            let left = self.held.lock().len();
            tracing::error!(left, "containers are left: the guard's next start removes them");
        }
    }

    /// Removes a container, and tries again until it is gone. It keeps its place until then.
    async fn end(&self, id: &str, why: &str) {
        let short = id.get(..12).unwrap_or(id);
        for pauses in 0.. {
            if self.find(id).is_none() {
                return;
            }
            match remove(&self.engine, id).await {
                Ok(Removal::Done) => {
                    tracing::warn!(container = short, "removed: {why}");
                    return self.drop(id);
                }
                Ok(Removal::Absent) => return self.drop(id),
                Ok(Removal::Going) => {}
                Err(refusal) => {
                    tracing::error!(container = short, "not removed yet ({why}): {}", refusal.why);
                }
            }
            sleep(BACKOFF.pause(pauses)).await;
        }
    }
}

impl Lease {
    /// The folders of the host that it has, with whether it may write.
    pub fn mounts(&self) -> &[(PathBuf, bool)] {
        &self.held.mounts
    }
}

/// That a container which is being created has joined another. It is taken back unless it is kept.
pub struct Joining {
    lease: Arc<Lease>,
    kept: bool,
}

impl Joining {
    /// The id of the one that is joined.
    pub fn id(&self) -> &str {
        &self.lease.id
    }

    /// The container is there, or may come to be.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        if !self.kept {
            self.lease.joined.store(false, Ordering::Release);
        }
    }
}

/// That somebody is attached to a container. However that ends, the container does soon after.
pub struct Attachment {
    leases: Leases,
    id: String,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let (leases, id) = (self.leases.clone(), std::mem::take(&mut self.id));
        // Without a runtime the guard itself has ended.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            sleep(GRACE).await;
            if leases.find(&id).is_some() {
                leases.end(&id, "nobody is attached to it any more").await;
            }
        });
    }
}

/// What the engine says of a removal.
#[derive(Debug, PartialEq, Eq)]
pub enum Removal {
    Done,
    /// It was not there.
    Absent,
    /// The engine removes it already, which may fail.
    Going,
}

/// Removes a container.
pub async fn remove(engine: &Engine, id: &str) -> Result<Removal, Refusal> {
    let target = format!("/containers/{id}?force=true&v=true");
    let (status, _) = engine.ask(Method::DELETE, &target, Vec::new()).await?;
    match status.as_u16() {
        200..=299 => Ok(Removal::Done),
        404 => Ok(Removal::Absent),
        409 => Ok(Removal::Going),
        _ => Err(Refusal::new(Code::Engine, format!("the engine answered {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{UnixListener, UnixStream},
    };

    use super::*;
    use crate::peer::tests::peer;

    fn held(name: &str, holds: Option<Holding>) -> Held {
        Held { name: name.to_owned(), mounts: Vec::new(), holds, by: peer(1) }
    }

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Takes a request, whose answer is up to the caller.
    async fn asked(engine: &UnixListener) -> UnixStream {
        asked_for(engine, "DELETE /containers/a?force=true").await
    }

    async fn asked_for(engine: &UnixListener, what: &str) -> UnixStream {
        let (mut stream, _) = engine.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a request"));
        }
        assert!(head.starts_with(what.as_bytes()), "{head:?}");
        stream
    }

    async fn answer(stream: UnixStream, status: &str) {
        answer_with(stream, status, "").await;
    }

    async fn answer_with(mut stream: UnixStream, status: &str, body: &str) {
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.expect("to answer");
    }

    #[tokio::test]
    async fn a_container_that_cannot_be_removed_is_held_and_tried_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("engine.sock");
        let engine = UnixListener::bind(&socket).expect("a socket");
        let leases = Leases::new(Engine::new(socket), 1);
        let place = leases.place().expect("a place");
        leases.hold("a".to_owned(), held("n", None), place);
        let ending = leases.clone();
        let ending = tokio::spawn(async move { ending.end("a", "it is tried").await });
        let story = async {
            for status in ["500 x", "409 x"] {
                answer(asked(&engine).await, status).await;
            }
            let third = asked(&engine).await;
            assert!(leases.find("a").is_some() && leases.place().is_err());
            answer(third, "404 x").await;
            ending.await.expect("no panic");
        };
        timeout(PATIENCE, story).await.expect("three requests");
        assert!(leases.find("a").is_none() && leases.place().is_ok());
    }

    #[tokio::test]
    async fn a_container_whose_creation_was_not_answered_is_removed_when_it_comes_to_be() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("engine.sock");
        let engine = UnixListener::bind(&socket).expect("a socket");
        let leases = Leases::new(Engine::new(socket), 1);
        let place = leases.place().expect("a place");
        leases.lost("a".to_owned(), "g".to_owned(), place);
        let of = |guard: &str| {
            let labels = serde_json::json!({label::GUARD: guard, label::CONTAINER: "a"});
            serde_json::json!({"Config": {"Labels": labels}}).to_string()
        };
        let story = async {
            // Not there yet; another's, which is let alone; there.
            for (status, body) in
                [("404 x", String::new()), ("200 x", of("other")), ("200 x", of("g"))]
            {
                assert!(leases.place().is_err());
                let question = asked_for(&engine, "GET /containers/a/json").await;
                answer_with(question, status, &body).await;
            }
            answer(asked(&engine).await, "204 x").await;
            while leases.place().is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, story).await.expect("to be removed");
    }

    #[tokio::test]
    async fn what_is_held_is_joined_once_by_whom_it_is_held_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let leases = Leases::new(Engine::new(folder.path().join("engine.sock")), 2);
        let holding = |by: &str| Holding { by: by.to_owned(), of: Default::default() };
        let hold = |id: &str, holds| {
            let place = leases.place().expect("a place");
            leases.hold(id.to_owned(), held(&format!("n-{id}"), holds), place);
        };
        hold("a", Some(holding("x")));
        hold("b", None);
        let join = |container: &str, by: &str, pid| leases.join(container, &holding(by), peer(pid));
        for (container, by, pid) in
            [("a", "y", 1), ("b", "x", 1), ("c", "x", 1), ("", "x", 1), ("a", "x", 2)]
        {
            assert!(join(container, by, pid).is_none(), "{container} {by} {pid}");
        }
        // A creation that failed takes it back.
        let failed = join("n-a", "x", 1).expect("to join");
        assert_eq!(failed.id(), "a");
        assert!(join("a", "x", 1).is_none());
        drop(failed);
        let mut joined = join("a", "x", 1).expect("to join");
        joined.keep();
        drop(joined);
        assert!(join("a", "x", 1).is_none());
    }

    #[tokio::test]
    async fn what_is_created_while_the_guard_ends_is_removed_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("engine.sock");
        let engine = UnixListener::bind(&socket).expect("a socket");
        let leases = Leases::new(Engine::new(socket), 2);
        let place = leases.place().expect("a place");
        let end = leases.clone();
        let end = tokio::spawn(async move { end.end_all().await });
        while leases.place().is_ok() {
            tokio::task::yield_now().await;
        }
        leases.hold("a".to_owned(), held("n", None), place);
        let story = async {
            answer(asked(&engine).await, "204 x").await;
            end.await.expect("no panic");
        };
        timeout(PATIENCE, story).await.expect("a request");
        assert!(leases.find("a").is_none());
    }
}
