//! Resources that clients want to hear of.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::watch;

use super::{
    change_subscription::{self, Granted, WantedResources},
    instance::Instance,
    running::Running,
    transport::{Call, CallError, Reply},
};
use portcullis_protocol::exchange::Method;

/// Resources of one instance that can be watched at once, by however many. How many each principal
/// may watch is for the proxy to bound: nothing here knows principals.
const MOST: usize = 4_096;
/// How long a server that was started again may take to take each again.
const RENEWAL: Duration = Duration::from_secs(30);

/// What is watched on one instance.
pub(super) struct Watched {
    wanted: watch::Sender<WantedResources>,
    /// What a modern server said to that.
    granted: watch::Sender<Granted>,
    /// A legacy server is told of one change at a time, so that it hears of them in their order.
    changing: tokio::sync::Mutex<()>,
}

impl Default for Watched {
    fn default() -> Self {
        let (wanted, granted) = (watch::Sender::default(), watch::Sender::default());
        Self { wanted, granted, changing: tokio::sync::Mutex::default() }
    }
}

impl Watched {
    pub fn is_empty(&self) -> bool {
        self.wanted.borrow().is_empty()
    }

    /// One more watches. Whether it is the first.
    ///
    /// # Errors
    /// Where too much is watched already.
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
            // What was said of it when it was last watched is no answer to this. Before it is
            // wanted, lest the new answer go with the old.
            self.granted.send_if_modified(|said| {
                said.granted.remove(uri);
                said.asked.remove(uri)
            });
            wanted.insert(uri.to_owned(), 1);
            true
        });
        added
    }

    /// One watches no longer. Whether it was the last.
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

    /// Tells an instance that was just started, perhaps once more, what is watched.
    pub fn begin(&self, running: &Arc<Running>) {
        if running.greeting.revision.is_modern() {
            self.granted.send_replace(Granted::default());
            let listening = change_subscription::begin(
                running.link.clone(),
                &running.greeting,
                running.ear.clone(),
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

    /// What a modern server grants of one resource, once it has said so.
    async fn granted(&self, uri: &str) -> Result<Reply, CallError> {
        let mut granted = self.granted.subscribe();
        let said = granted.wait_for(|granted| granted.asked.contains(uri)).await;
        let Ok(said) = said else { return Err(CallError::Unavailable("it ended".into())) };
        if said.granted.contains(uri) {
            return Ok(Reply::Result(Bytes::from_static(b"{}")));
        }
        match &said.instead {
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

impl Instance {
    /// Asks the server to tell of changes of a resource, starting it if need be. It is told again
    /// whenever it is started, until each that watches has [`unwatch`](Self::unwatch)ed. What
    /// it tells is [`Heard`](super::Heard).
    ///
    /// # Errors
    /// A [`CallError`] where the server did not answer. Its refusal is a [`Reply::Error`].
    pub async fn watch(self: &Arc<Self>, uri: &str) -> Result<Reply, CallError> {
        let running = self.running().await?;
        // Dropped last: nobody else may count on a subscription that is being taken back.
        let mut turn = None;
        let mut watching = Watching { watched: &self.watched, uri, takes_back: false };
        let change = change(Method::SUBSCRIBE, uri, self.call_timeout());
        let clock = change.clock.clone();
        let work = async {
            if running.greeting.revision.is_modern() {
                self.watched.add(uri)?;
                watching.takes_back = true;
                return self.watched.granted(uri).await;
            }
            turn = Some(self.watched.changing.lock().await);
            let first = self.watched.add(uri)?;
            watching.takes_back = true;
            if first {
                self.call(&running, change).await
            } else {
                Ok(Reply::Result(Bytes::from_static(b"{}")))
            }
        };
        let reply = clock.bound(work).await;
        watching.takes_back &= !matches!(reply, Ok(Reply::Result(_)));
        reply
    }

    /// One that watched does so no longer. After the last, the server is told, if it runs.
    ///
    /// # Errors
    /// A [`CallError`] where the server did not answer; the resource is no longer watched all the
    /// same.
    pub async fn unwatch(self: &Arc<Self>, uri: &str) -> Result<(), CallError> {
        let change = change(Method::UNSUBSCRIBE, uri, self.call_timeout());
        let clock = change.clock.clone();
        let turn = clock.bound(async { Ok(self.watched.changing.lock().await) }).await;
        if !self.watched.remove(uri) {
            return Ok(());
        }
        let _one_at_a_time = turn?;
        match self.peek().filter(|running| !running.greeting.revision.is_modern()) {
            Some(running) => self.call(&running, change).await.map(drop),
            // A modern server hears of it by the next subscription.
            None => Ok(()),
        }
    }
}

/// Takes back what was wanted where the server does not grant it, or the caller gives up.
struct Watching<'a> {
    watched: &'a Watched,
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
