//! Subscriptions of clients to changes of resources.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::watch;

use super::{
    call_error::CallError,
    change_subscription::{self, Granted, RequestedResources},
    running::Running,
    transport::{Call, Reply},
};
use portcullis_protocol::exchange::Method;

/// Maximum number of watched resources of one instance. The limits of principals are
/// elsewhere: this module does not know principals.
const MOST: usize = 4_096;
/// Timeout of each subscription that is repeated after a restart.
const RENEWAL: Duration = Duration::from_secs(30);

/// Watched resources of one instance.
pub(super) struct ResourceWatches {
    wanted: watch::Sender<RequestedResources>,
    /// Answer of a modern server.
    granted: watch::Sender<Granted>,
    /// Serializes changes at a legacy server, so that it receives them in order.
    changing: tokio::sync::Mutex<()>,
}

impl Default for ResourceWatches {
    fn default() -> Self {
        let (wanted, granted) = (watch::Sender::default(), watch::Sender::default());
        Self { wanted, granted, changing: tokio::sync::Mutex::default() }
    }
}

impl ResourceWatches {
    pub fn is_empty(&self) -> bool {
        self.wanted.borrow().is_empty()
    }

    /// Adds a watcher. Returns whether it is the resource's first.
    ///
    /// # Errors
    /// [`CallError::Overloaded`] at the limit of watched resources.
    fn add(&self, uri: &str) -> Result<bool, CallError> {
        let mut added = Ok(false);
        self.wanted.send_if_modified(|wanted| {
            if let Some(watching) = wanted.get_mut(uri) {
                *watching += 1;
                return false;
            }
            if wanted.len() >= MOST {
                added = Err(CallError::Overloaded { what: "watched resources", most: MOST });
                return false;
            }
            added = Ok(true);
            // An earlier answer about this resource does not count. Removed before the resource is
            // wanted, so that a new answer is not removed.
            self.granted.send_if_modified(|state| {
                state.granted.remove(uri);
                state.requested.remove(uri)
            });
            wanted.insert(uri.to_owned(), 1);
            true
        });
        added
    }

    /// Removes a watcher. Returns whether it was the resource's last.
    fn remove(&self, uri: &str) -> bool {
        self.wanted.send_if_modified(|wanted| match wanted.get_mut(uri) {
            None => false,
            Some(watching) if *watching > 1 => {
                *watching -= 1;
                false
            }
            Some(_) => wanted.remove(uri).is_some(),
        })
    }

    /// Subscribes an instance after its start to all watched resources.
    pub fn begin(&self, running: &Arc<Running>) {
        if running.handshake.revision.is_modern() {
            self.granted.send_replace(Granted::default());
            let listening = change_subscription::begin(
                running.link.clone(),
                &running.handshake,
                running.sink.clone(),
                self.wanted.subscribe(),
                self.granted.clone(),
            );
            *running.listening.lock() = Some(listening);
            return;
        }
        let uris: Vec<_> = self.wanted.borrow().keys().cloned().collect();
        if uris.is_empty() {
            return;
        }
        let link = running.link.clone();
        let renewing = tokio::spawn(async move {
            for uri in uris {
                let reply = link.call(change(Method::SUBSCRIBE, &uri, RENEWAL)).await;
                if !matches!(reply, Ok(Reply::Result(_))) {
                    tracing::warn!("restarted server rejected an earlier resource subscription");
                }
            }
        });
        *running.listening.lock() = Some(tokio_util::task::AbortOnDropHandle::new(renewing));
    }

    /// Subscribes one client to a resource at a running instance. Each start of the instance
    /// repeats the subscription, until each client has [`unwatch`](Self::unwatch)ed. `call` makes
    /// the request to a legacy server.
    ///
    /// # Errors
    /// A [`CallError`] if the server did not answer. Its refusal is a [`Reply::Error`].
    pub async fn watch<W: Future<Output = Result<Reply, CallError>>>(
        &self,
        running: &Running,
        uri: &str,
        timeout: Duration,
        call: impl FnOnce(Call) -> W,
    ) -> Result<Reply, CallError> {
        // Dropped last: nobody may rely on a subscription while it is removed.
        let mut turn = None;
        let mut watching = Watching { watched: self, uri, takes_back: false };
        let change = change(Method::SUBSCRIBE, uri, timeout);
        let clock = change.clock.clone();
        let work = async {
            if running.handshake.revision.is_modern() {
                self.add(uri)?;
                watching.takes_back = true;
                return self.granted(uri).await;
            }
            turn = Some(self.changing.lock().await);
            let first = self.add(uri)?;
            watching.takes_back = true;
            if first { call(change).await } else { Ok(Reply::Result(Bytes::from_static(b"{}"))) }
        };
        let reply = clock.bound(work).await;
        watching.takes_back &= !matches!(reply, Ok(Reply::Result(_)));
        reply
    }

    /// Ends the subscription of one client. After the last one, `call` informs the server.
    ///
    /// # Errors
    /// A [`CallError`] if the server did not answer. The subscription has ended nevertheless.
    pub async fn unwatch<W: Future<Output = Result<(), CallError>>>(
        &self,
        uri: &str,
        timeout: Duration,
        call: impl FnOnce(Call) -> W,
    ) -> Result<(), CallError> {
        let change = change(Method::UNSUBSCRIBE, uri, timeout);
        let clock = change.clock.clone();
        let turn = clock.bound(async { Ok(self.changing.lock().await) }).await;
        if !self.remove(uri) {
            return Ok(());
        }
        let _one_at_a_time = turn?;
        call(change).await
    }

    /// Waits for a modern server's answer about one resource.
    async fn granted(&self, uri: &str) -> Result<Reply, CallError> {
        let mut granted = self.granted.subscribe();
        let state = granted.wait_for(|granted| granted.requested.contains(uri)).await;
        let Ok(state) = state else { return Err(CallError::Unavailable("it ended".into())) };
        if state.granted.contains(uri) {
            return Ok(Reply::Result(Bytes::from_static(b"{}")));
        }
        match &state.instead {
            Some(instead) => instead.clone().map(Reply::Error),
            None => {
                let error = json!({
                    "code": -32602,
                    "message": "the server does not send updates for this resource",
                });
                Ok(Reply::Error(error.to_string().into()))
            }
        }
    }
}

/// Removes a watcher if the server refuses, or the caller gives up.
struct Watching<'a> {
    watched: &'a ResourceWatches,
    uri: &'a str,
    takes_back: bool,
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        if self.takes_back {
            self.watched.remove(self.uri);
        }
    }
}

fn change(method: &str, uri: &str, limit: Duration) -> Call {
    Call::own(method, Some(json!({ "uri": uri }).to_string().into()), limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::running::tests::running;

    const TIMEOUT: Duration = Duration::from_secs(30);

    async fn unreachable(_: Call) -> Result<Reply, CallError> {
        panic!("the server was called")
    }

    #[tokio::test]
    async fn only_first_and_last_watch_reach_the_server() {
        let (watches, running) = (ResourceWatches::default(), running(true));
        let empty = || Reply::Result(Bytes::from_static(b"{}"));
        let subscription = watches.watch(&running, "a", TIMEOUT, async |call| {
            assert_eq!(call.method.as_str(), Method::SUBSCRIBE);
            Ok(empty())
        });
        assert!(matches!(subscription.await, Ok(Reply::Result(_))));
        let second = watches.watch(&running, "a", TIMEOUT, unreachable);
        assert!(matches!(second.await, Ok(Reply::Result(_))));
        let unasked = async |call| unreachable(call).await.map(drop);
        assert_eq!(watches.unwatch("a", TIMEOUT, unasked).await, Ok(()));
        assert!(!watches.is_empty());
        let failed = CallError::Forgotten;
        let last = watches.unwatch("a", TIMEOUT, async |_| Err(CallError::Forgotten));
        assert_eq!(last.await, Err(failed));
        assert!(watches.is_empty());
    }

    #[tokio::test]
    async fn refused_watch_is_removed() {
        let (watches, running) = (ResourceWatches::default(), running(true));
        let refusal = async |_| Ok(Reply::Error(Bytes::from_static(b"{}")));
        let reply = watches.watch(&running, "a", TIMEOUT, refusal).await;
        assert!(matches!(reply, Ok(Reply::Error(_))) && watches.is_empty());
    }

    #[test]
    fn watches_are_limited() {
        let watches = ResourceWatches::default();
        for n in 0..MOST {
            assert_eq!(watches.add(&n.to_string()), Ok(true));
        }
        let full = CallError::Overloaded { what: "watched resources", most: MOST };
        assert_eq!(watches.add("one more"), Err(full));
        assert_eq!(watches.add("0"), Ok(false));
    }
}
