//! Resources that clients want to hear of.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;

use super::{
    instance::{Instance, Running},
    link::{Call, Failure, Reply},
};
use crate::exchange::Method;

/// Resources of one instance that can be watched at once.
const MOST: usize = 1_000;

/// How long a server that was started again may take to take each again.
const RENEWAL: Duration = Duration::from_secs(30);

/// What is watched on one instance, and by how many.
#[derive(Default)]
pub(super) struct Watched {
    uris: Mutex<BTreeMap<String, usize>>,
    /// One change at a time, so that the server is told of changes in their order.
    changing: tokio::sync::Mutex<()>,
}

impl Watched {
    pub fn is_empty(&self) -> bool {
        self.uris.lock().is_empty()
    }

    /// Tells an instance that was just started, perhaps once more, what is watched.
    pub fn begin(&self, running: &Arc<Running>) {
        let uris: Vec<_> = self.uris.lock().keys().cloned().collect();
        if uris.is_empty() {
            return;
        }
        let running = running.clone();
        tokio::spawn(async move {
            for uri in uris {
                let call = change(Method::SUBSCRIBE, &uri, RENEWAL);
                if !matches!(running.link.call(call).await, Ok(Reply::Result(_))) {
                    tracing::warn!(
                        "a server that was started again takes no subscription to a resource that it had taken"
                    );
                }
            }
        });
    }
}

impl Instance {
    /// Asks the server to tell of changes of a resource, starting it if need be. It is told again
    /// whenever it is started, until each that watches has [`unwatch`](Self::unwatch)ed. What
    /// it tells is [`Heard`](super::Heard).
    ///
    /// # Errors
    /// A [`Failure`] where the server did not answer. Its refusal is a [`Reply::Error`].
    pub async fn watch(self: &Arc<Self>, uri: &str) -> Result<Reply, Failure> {
        let running = self.running().await?;
        let change = change(Method::SUBSCRIBE, uri, self.call_timeout());
        let clock = change.clock.clone();
        let work = async {
            let _one_at_a_time = self.watched.changing.lock().await;
            {
                let mut uris = self.watched.uris.lock();
                if let Some(watching) = uris.get_mut(uri) {
                    *watching += 1;
                    return Ok(Reply::Result(Bytes::from_static(b"{}")));
                }
                if uris.len() >= MOST {
                    return Err(Failure::Overloaded { what: "watched resources", most: MOST });
                }
            }
            let reply = self.call(&running, change).await?;
            if let Reply::Result(_) = reply {
                *self.watched.uris.lock().entry(uri.to_owned()).or_default() += 1;
            }
            Ok(reply)
        };
        clock.bound(work).await
    }

    /// One that watched does so no longer. After the last, the server is told, if it runs.
    ///
    /// # Errors
    /// A [`Failure`] where the server did not answer; the resource is no longer watched all the
    /// same.
    pub async fn unwatch(self: &Arc<Self>, uri: &str) -> Result<(), Failure> {
        let change = change(Method::UNSUBSCRIBE, uri, self.call_timeout());
        let clock = change.clock.clone();
        let work = async {
            let _one_at_a_time = self.watched.changing.lock().await;
            {
                let mut uris = self.watched.uris.lock();
                match uris.get_mut(uri) {
                    None => return Ok(()),
                    Some(watching) if *watching > 1 => {
                        *watching -= 1;
                        return Ok(());
                    }
                    Some(_) => drop(uris.remove(uri)),
                }
            }
            match self.peek() {
                Some(running) => self.call(&running, change).await.map(drop),
                None => Ok(()),
            }
        };
        clock.bound(work).await
    }
}

fn change(method: &str, uri: &str, limit: Duration) -> Call {
    Call::own(method, Some(json!({ "uri": uri }).to_string().into()), limit)
}
