//! Containers created through the guard, and their lifetime: each lives as long as a client is
//! attached to it. A lease lasts until the container is removed, however long that takes.

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
    create::NamespaceHold,
    engine::Engine,
    label,
    peer::Peer,
    refusal::{Code, Refusal},
};
use portcullis_foundation::backoff::Backoff;

/// Time limit from a container's creation to its attachment.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for the proxy to remove it by itself.
const GRACE_PERIOD: Duration = Duration::from_secs(20);
/// Pauses between failed removals.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// Time for the engine to complete a creation that it did not answer in time.
const LOST_CREATION_TIMEOUT: Duration = Duration::from_secs(600);
/// Time limit for all removals at the guard's end: less than an init system waits before it kills.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(8);

/// All containers of this guard that may exist.
#[derive(Clone)]
pub struct Leases {
    engine: Engine,
    by_id: Arc<Mutex<HashMap<String, Arc<Lease>>>>,
    free: Arc<Semaphore>,
    most: u32,
    ending: Arc<AtomicBool>,
}

/// One container.
pub struct Lease {
    pub id: String,
    container: LeasedContainer,
    /// Whether a container has joined the namespace that it holds.
    joined: AtomicBool,
    attached: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

/// Data of a container.
pub struct LeasedContainer {
    pub name: String,
    /// Host folders, with whether they are writable.
    pub mounts: Vec<(PathBuf, bool)>,
    /// What it holds.
    pub holds: Option<NamespaceHold>,
    /// Client that created it.
    pub by: Peer,
}

impl Leases {
    pub fn new(engine: Engine, most: u32) -> Self {
        let free = Arc::new(Semaphore::new(most as usize));
        Self { engine, by_id: Arc::default(), free, most, ending: Arc::default() }
    }

    /// Permit for one more container.
    pub fn permit(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        if self.ending.load(Ordering::Acquire) {
            return Err(Refusal::new(Code::Limit, "the guard is shutting down"));
        }
        self.free.clone().try_acquire_owned().map_err(|_| {
            Refusal::new(Code::Limit, "the limit of containers is reached (see --containers)")
        })
    }

    /// Adds a lease for a container that was just created.
    pub fn hold(&self, id: String, container: LeasedContainer, permit: OwnedSemaphorePermit) {
        let lease = Lease {
            id: id.clone(),
            container,
            joined: AtomicBool::default(),
            attached: AtomicBool::default(),
            _permit: permit,
        };
        {
            let mut by_id = self.by_id.lock();
            // The engine gives a name to only one container at a time, so the earlier one no longer
            // exists.
            by_id.retain(|_, other| other.container.name != lease.container.name);
            by_id.insert(id.clone(), Arc::new(lease));
        }
        let leases = self.clone();
        tokio::spawn(async move {
            if !leases.ending.load(Ordering::Acquire) {
                sleep(ATTACH_TIMEOUT).await;
            }
            let idle = |lease: Arc<Lease>| !lease.attached.load(Ordering::Acquire);
            if leases.find(&id).is_some_and(idle) {
                leases.end(&id, "no client attached to it").await;
            }
        });
    }

    /// Keeps the permit of a container whose creation the engine did not answer: it may exist, or
    /// be created later. Removes it if its labels identify it.
    pub fn lost(&self, name: String, guard: String, permit: OwnedSemaphorePermit) {
        let leases = self.clone();
        tokio::spawn(async move {
            let given_up = tokio::time::Instant::now() + LOST_CREATION_TIMEOUT;
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
            drop(permit);
        });
    }

    /// Removes the container with that name, if this guard created it.
    async fn recover(&self, name: &str, guard: &str) -> Result<Removal, Refusal> {
        let target = format!("/containers/{name}/json");
        let (status, inspected) = self.engine.ask(Method::GET, &target, Vec::new()).await?;
        let labelled = |key: &str, value: &str| {
            let labels = inspected.pointer("/Config/Labels").and_then(Value::as_object);
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

    /// Lease of a container by id or name.
    pub fn find(&self, container: &str) -> Option<Arc<Lease>> {
        let by_id = self.by_id.lock();
        let named = || by_id.values().find(|lease| lease.container.name == container);
        by_id.get(container).or_else(named).cloned()
    }

    /// Joins the container that holds exactly this and was created by the same client, once.
    pub fn join(&self, container: &str, holding: &NamespaceHold, by: Peer) -> Option<Joining> {
        let is_for = |lease: &Arc<Lease>| {
            lease.container.holds.as_ref() == Some(holding) && lease.container.by == by
        };
        let lease = self.find(container).filter(is_for)?;
        (!lease.joined.swap(true, Ordering::AcqRel))
            .then_some(Joining { lease, is_committed: false })
    }

    /// Removes the lease of a container that no longer exists.
    pub fn drop(&self, id: &str) {
        self.by_id.lock().remove(id);
    }

    /// Attaches to a container, once, as Portcullis does. A second client would see the first one's
    /// data.
    pub fn attach(&self, id: &str) -> Result<Attachment, Refusal> {
        let lease = self.find(id);
        if lease.is_none_or(|lease| lease.attached.swap(true, Ordering::AcqRel)) {
            let why = "a client is or was already attached to it";
            return Err(Refusal::new(Code::Call, why));
        }
        Ok(Attachment { leases: self.clone(), id: id.to_owned() })
    }

    /// Removes all containers, including those being created. No container is created afterwards.
    pub async fn end_all(&self) {
        self.ending.store(true, Ordering::Release);
        let ids: Vec<String> = self.by_id.lock().keys().cloned().collect();
        for id in ids {
            let leases = self.clone();
            tokio::spawn(async move { leases.end(&id, "the guard shuts down").await });
        }
        // Existing containers and those being created have a permit.
        if timeout(SHUTDOWN_TIMEOUT, self.free.acquire_many(self.most)).await.is_err() {
            let left = self.by_id.lock().len();
            tracing::error!(left, "containers remain: the guard's next start removes them");
        }
    }

    /// Removes a container, and retries until it succeeds. The permit is held until then.
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
    /// Host folders, with whether they are writable.
    pub fn mounts(&self) -> &[(PathBuf, bool)] {
        &self.container.mounts
    }
}

/// Reservation of a joined container by one that is being created. Undone on drop unless kept.
pub struct Joining {
    lease: Arc<Lease>,
    is_committed: bool,
}

impl Joining {
    /// Id of the joined container.
    pub fn id(&self) -> &str {
        &self.lease.id
    }

    /// The container exists, or may be created later.
    pub fn keep(&mut self) {
        self.is_committed = true;
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        if !self.is_committed {
            self.lease.joined.store(false, Ordering::Release);
        }
    }
}

/// Attachment to a container. After its end, for any reason, the container ends soon.
pub struct Attachment {
    leases: Leases,
    id: String,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let (leases, id) = (self.leases.clone(), std::mem::take(&mut self.id));
        // Without an async runtime, the guard itself has ended.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            sleep(GRACE_PERIOD).await;
            if leases.find(&id).is_some() {
                leases.end(&id, "no client is attached to it any more").await;
            }
        });
    }
}

/// Result of a removal.
#[derive(Debug, PartialEq, Eq)]
pub enum Removal {
    Done,
    /// It did not exist.
    Absent,
    /// The engine is already removing it, which may fail.
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

    fn held(name: &str, holds: Option<NamespaceHold>) -> LeasedContainer {
        LeasedContainer { name: name.to_owned(), mounts: Vec::new(), holds, by: peer(1) }
    }

    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    /// Accepts a request, whose answer the caller sends.
    async fn next_request(engine: &UnixListener) -> UnixStream {
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
    async fn failed_removal_is_retried_with_the_lease_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("engine.sock");
        let engine = UnixListener::bind(&socket).expect("a socket");
        let leases = Leases::new(Engine::new(socket), 1);
        let permit = leases.permit().expect("a permit");
        leases.hold("a".to_owned(), held("n", None), permit);
        let ending = leases.clone();
        let ending = tokio::spawn(async move { ending.end("a", "a test").await });
        let story = async {
            for status in ["500 x", "409 x"] {
                answer(next_request(&engine).await, status).await;
            }
            let third = next_request(&engine).await;
            assert!(leases.find("a").is_some() && leases.permit().is_err());
            answer(third, "404 x").await;
            ending.await.expect("no panic");
        };
        timeout(TEST_TIMEOUT, story).await.expect("three requests");
        assert!(leases.find("a").is_none() && leases.permit().is_ok());
    }

    #[tokio::test]
    async fn container_of_an_unanswered_creation_is_removed_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("engine.sock");
        let engine = UnixListener::bind(&socket).expect("a socket");
        let leases = Leases::new(Engine::new(socket), 1);
        let permit = leases.permit().expect("a permit");
        leases.lost("a".to_owned(), "g".to_owned(), permit);
        let of = |guard: &str| {
            let labels = serde_json::json!({label::GUARD: guard, label::CONTAINER: "a"});
            serde_json::json!({"Config": {"Labels": labels}}).to_string()
        };
        let story = async {
            // Does not exist yet; belongs to another owner and is skipped; exists.
            for (status, body) in
                [("404 x", String::new()), ("200 x", of("other")), ("200 x", of("g"))]
            {
                assert!(leases.permit().is_err());
                let question = asked_for(&engine, "GET /containers/a/json").await;
                answer_with(question, status, &body).await;
            }
            answer(next_request(&engine).await, "204 x").await;
            while leases.permit().is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(TEST_TIMEOUT, story).await.expect("to be removed");
    }

    #[tokio::test]
    async fn held_network_is_joined_once_by_its_container() {
        let folder = tempfile::tempdir().expect("a folder");
        let leases = Leases::new(Engine::new(folder.path().join("engine.sock")), 2);
        let holding = |by: &str| NamespaceHold { by: by.to_owned(), of: Default::default() };
        let hold = |id: &str, holds| {
            let permit = leases.permit().expect("a permit");
            leases.hold(id.to_owned(), held(&format!("n-{id}"), holds), permit);
        };
        hold("a", Some(holding("x")));
        hold("b", None);
        let join = |container: &str, by: &str, pid| leases.join(container, &holding(by), peer(pid));
        for (container, by, pid) in
            [("a", "y", 1), ("b", "x", 1), ("c", "x", 1), ("", "x", 1), ("a", "x", 2)]
        {
            assert!(join(container, by, pid).is_none(), "{container} {by} {pid}");
        }
        // A failed creation undoes it.
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
    async fn container_created_during_shutdown_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("engine.sock");
        let engine = UnixListener::bind(&socket).expect("a socket");
        let leases = Leases::new(Engine::new(socket), 2);
        let permit = leases.permit().expect("a permit");
        let end = leases.clone();
        let end = tokio::spawn(async move { end.end_all().await });
        while leases.permit().is_ok() {
            tokio::task::yield_now().await;
        }
        leases.hold("a".to_owned(), held("n", None), permit);
        let story = async {
            answer(next_request(&engine).await, "204 x").await;
            end.await.expect("no panic");
        };
        timeout(TEST_TIMEOUT, story).await.expect("a request");
        assert!(leases.find("a").is_none());
    }
}
