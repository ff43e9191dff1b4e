//! A running instance: its connection, its process, and their end.

use std::{
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::SetOnce;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{
    call_error::CallError, discovery::Definitions, event::LaunchRequest, handshake::Handshake,
    message_sink::MessageSink, placement::Placement, secret_set::SecretSet,
    transport::ServerTransport,
};
use portcullis_protocol::refusal::Refusal;
use portcullis_runtime::process::{Exit, Handle, Origin};
use portcullis_vault::Folder;

/// Next unique number of a running instance or a server.
pub(super) static NUMBERS: AtomicU64 = AtomicU64::new(1);
/// Additional time for a forced end of a process.
const FORCE: Duration = Duration::from_secs(5);

/// A started instance.
pub struct Running {
    /// Unique number among all instances that ever ran.
    pub number: u64,
    pub(super) link: Arc<dyn ServerTransport>,
    pub(super) sink: MessageSink,
    /// Task that keeps the subscription to changes open.
    pub(super) listening: Mutex<Option<AbortOnDropHandle<()>>>,
    pub handshake: Arc<Handshake>,
    pub(super) definitions: Arc<Definitions>,
    pub(super) process: Option<Arc<dyn Handle>>,
    pub(super) exit: Arc<OnceLock<Exit>>,
    pub placement: Placement,
    /// The program that runs, and its deviations.
    pub origin: Origin,
    pub since: Instant,
    /// Log level that was last requested from the server.
    pub level: Mutex<Option<&'static str>>,
    /// The launch that policies permitted.
    pub(super) cleared: Arc<LaunchRequest>,
    /// Secrets at the start of the process.
    pub(super) first: Arc<SecretSet>,
    /// All delivered secrets, including those at the start.
    pub(super) secret_history: SecretHistory,
    /// Secrets that were delivered last. On files, they replaced those at the start.
    pub(super) secrets: Mutex<Arc<SecretSet>>,
    /// Folder of the secrets that are delivered as files. Removed with the instance.
    pub(super) folder: Option<Folder>,
    /// Calls in flight. Closed when another process takes further calls.
    pub(super) calls: TaskTracker,
    /// Refusal of the policies that ended the instance.
    pub(super) revoked: SetOnce<Box<Refusal>>,
}

/// Secrets that were delivered to a process: those at its start, which it may have in its
/// environment, and the newest of those that were written to its files.
#[derive(Debug, Clone)]
pub(super) struct SecretHistory(Arc<Mutex<Vec<Arc<SecretSet>>>>);

impl SecretHistory {
    /// Maximum number of kept sets. A process that has read this many newer sets has no older ones.
    const MOST: usize = 16;

    pub fn new(first: Arc<SecretSet>) -> Self {
        Self(Arc::new(Mutex::new(vec![first])))
    }

    /// Records secrets that are about to be delivered.
    pub fn add(&self, secrets: &Arc<SecretSet>) {
        let mut all = self.0.lock();
        if all.len() >= Self::MOST {
            all.remove(1);
        }
        all.push(secrets.clone());
    }

    /// All recorded secrets.
    pub fn all(&self) -> Vec<Arc<SecretSet>> {
        self.0.lock().clone()
    }
}

impl Running {
    /// Reason of the end, with the exit status; `None` while the instance runs.
    pub(super) fn end(&self) -> Option<String> {
        let why = self.link.dead()?;
        Some(match self.exit.get() {
            Some(exit) => format!("{why} with {exit}"),
            None => why,
        })
    }

    /// Result of `work`, or [`CallError::Forbidden`] when policies end the instance.
    pub(super) async fn unless_revoked<T>(
        &self,
        work: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        tokio::select! {
            biased;
            refusal = self.revoked.wait() => Err(CallError::Forbidden(refusal.clone())),
            done = work => done,
        }
    }

    /// Closes the instance for calls, unless it has some or is younger than `age`. Returns success.
    pub(super) fn close_unused(&self, age: Duration) -> bool {
        if self.since.elapsed() < age {
            return false;
        }
        // Closed before the check: a caller that comes now sees it closed, or is counted.
        self.calls.close();
        let is_unused = self.calls.is_empty();
        if !is_unused {
            self.calls.reopen();
        }
        is_unused
    }

    /// Ends the process, if it is local. The state keeps it until its end: if a caller gives up
    /// halfway, the next caller finishes this.
    pub(super) async fn stop(&self, grace: Duration) {
        drop(self.listening.lock().take());
        if !grace.is_zero() {
            self.link.leave().await;
        }
        if let Some(process) = &self.process {
            end(process.as_ref(), grace).await;
        }
    }
}

/// Ends a process. Waits for a bounded time; dropping the handle removes the rest.
pub(super) async fn end(process: &dyn Handle, grace: Duration) {
    if tokio::time::timeout(grace + FORCE, process.stop(grace)).await.is_err() {
        tracing::warn!(process = process.describe(), "server process did not exit in time");
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;
    use futures_util::future::BoxFuture;
    use portcullis_protocol::{
        exchange::{Payload, Revision},
        names::DecisionId,
    };
    use portcullis_runtime::process::Usage;

    use super::*;
    use crate::{
        event::LaunchRequest,
        placement::Program,
        transport::{Call, Reply},
    };

    /// A server that answers every call with `{}`, or no call.
    struct Fake {
        answers: bool,
    }

    #[async_trait::async_trait]
    impl ServerTransport for Fake {
        async fn call(&self, _: Call) -> Result<Reply, CallError> {
            match self.answers {
                true => Ok(Reply::Result(Bytes::from_static(b"{}"))),
                false => std::future::pending().await,
            }
        }

        async fn notify(&self, _: &str, _: Bytes) -> Result<(), CallError> {
            Ok(())
        }

        fn agreed(&self, _: Revision) {}

        fn dead(&self) -> Option<String> {
            None
        }
    }

    #[async_trait::async_trait]
    impl Handle for Fake {
        fn describe(&self) -> String {
            "fake".into()
        }

        fn wait(&self) -> BoxFuture<'static, Exit> {
            Box::pin(async { Exit { code: 0, reason: None } })
        }

        async fn stop(&self, _: Duration) {}

        async fn usage(&self) -> Option<Usage> {
            None
        }
    }

    /// A process that ends when it is asked to.
    pub fn handle() -> Arc<dyn Handle> {
        Arc::new(Fake { answers: true })
    }

    /// A permitted launch.
    pub fn cleared() -> Arc<LaunchRequest> {
        Arc::new(LaunchRequest {
            launch: DecisionId::next(),
            placement: Placement::Sandbox { why: "test".into() },
            program: Program {
                name: "test".into(),
                digest: None,
                deviations: Vec::new(),
                signed: Default::default(),
            },
            party: None,
            connecting: None,
            deliveries: Vec::new(),
            resolved: None,
        })
    }

    /// An instance that answers every call, with a process or without.
    pub fn running(has_process: bool) -> Running {
        fake(has_process, true)
    }

    /// An instance that answers no call.
    pub fn silent() -> Running {
        fake(true, false)
    }

    fn fake(has_process: bool, answers: bool) -> Running {
        let (sink, _) = MessageSink::test(None);
        let words = Bytes::from_static(br#"{"capabilities":{}}"#);
        let first = Arc::new(SecretSet::default());
        Running {
            number: NUMBERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            link: Arc::new(Fake { answers }),
            sink,
            listening: Mutex::default(),
            handshake: Arc::new(Handshake {
                revision: Revision::LATEST_LEGACY,
                words: Payload::new(words),
            }),
            definitions: Arc::default(),
            process: has_process.then(handle),
            exit: Arc::default(),
            placement: Placement::Sandbox { why: "test".into() },
            origin: Origin::default(),
            since: Instant::now(),
            level: Mutex::default(),
            cleared: cleared(),
            secret_history: SecretHistory::new(first.clone()),
            secrets: Mutex::new(first.clone()),
            first,
            folder: None,
            calls: TaskTracker::new(),
            revoked: SetOnce::new(),
        }
    }

    #[test]
    fn history_keeps_first_and_newest_secrets() {
        let all: Vec<_> = (0..40).map(|_| Arc::new(SecretSet::default())).collect();
        let history = SecretHistory::new(all[0].clone());
        all[1..].iter().for_each(|secrets| history.add(secrets));
        let stored = history.all();
        assert_eq!(stored.len(), SecretHistory::MOST);
        assert!(Arc::ptr_eq(&stored[0], &all[0]));
        let newest = all[all.len() - SecretHistory::MOST + 1..].iter();
        assert!(stored[1..].iter().zip(newest).all(|(stored, new)| Arc::ptr_eq(stored, new)));
    }

    #[tokio::test]
    async fn process_with_calls_is_not_closed_as_unused() {
        let running = running(true);
        assert!(!running.close_unused(Duration::from_secs(100)) && !running.calls.is_closed());
        let call = running.calls.token();
        assert!(!running.close_unused(Duration::ZERO) && !running.calls.is_closed());
        drop(call);
        assert!(running.close_unused(Duration::ZERO) && running.calls.is_closed());
    }
}
