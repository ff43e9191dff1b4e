//! What a modern server tells unasked: one `subscriptions/listen` for each running instance, for
//! its lists and for the resources that are watched.

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
    clock::Clock,
    ear::Ear,
    greeting::Greeting,
    link::{Call, Failure, Link, Reply, Said},
};
use crate::{codec::era::own_meta, exchange::Method};

/// How long a server may take to say what it grants.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first and the longest pause before a subscription that failed or ended is opened again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// Notifications of a subscription that may wait.
const QUEUE: usize = 64;

/// Resources, and by how many each is watched.
pub(super) type Wanted = BTreeMap<String, usize>;

/// What a server said to the last subscription.
#[derive(Debug, Clone, Default)]
pub(super) struct Granted {
    /// The resources that it was asked for.
    pub asked: BTreeSet<String>,
    /// Those that it grants.
    pub granted: BTreeSet<String>,
    /// What it said or did instead of granting anything.
    pub instead: Option<Result<Bytes, Failure>>,
}

/// Listens for as long as the task lives and the link does.
pub(super) fn begin(
    link: Arc<dyn Link>,
    greeting: &Greeting,
    ear: Ear,
    wanted: watch::Receiver<Wanted>,
    granted: watch::Sender<Granted>,
) -> AbortOnDropHandle<()> {
    let listener = Listener { lists: lists(greeting), link, ear, wanted, granted };
    AbortOnDropHandle::new(tokio::spawn(listener.run()))
}

/// The members of the filter for the lists of which the server says that it tells.
fn lists(greeting: &Greeting) -> Vec<&'static str> {
    let tells = |capability: &str| {
        let capabilities = &greeting.words.value()["capabilities"];
        capabilities[capability]["listChanged"] == Value::Bool(true)
    };
    [
        ("tools", "toolsListChanged"),
        ("prompts", "promptsListChanged"),
        ("resources", "resourcesListChanged"),
    ]
    .into_iter()
    .filter_map(|(capability, member)| tells(capability).then_some(member))
    .collect()
}

struct Listener {
    lists: Vec<&'static str>,
    link: Arc<dyn Link>,
    ear: Ear,
    wanted: watch::Receiver<Wanted>,
    granted: watch::Sender<Granted>,
}

/// A subscription that is open.
struct Open {
    pump: AbortOnDropHandle<()>,
}

impl Listener {
    async fn run(mut self) {
        let mut open: Option<Open> = None;
        let mut failed: u32 = 0;
        let mut since = Instant::now();
        while self.link.dead().is_none() {
            let asked: BTreeSet<String> = self.wanted.borrow_and_update().keys().cloned().collect();
            if self.lists.is_empty() && asked.is_empty() {
                open = None;
                self.granted.send_replace(Granted::default());
                if self.wanted.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let mut said = Granted { asked: asked.clone(), ..Default::default() };
            match self.open(&asked).await {
                Ok((opened, granted)) => {
                    // The one before ends only now, so that nothing is missed in between.
                    open = Some(opened);
                    said.granted = granted;
                    since = Instant::now();
                    self.granted.send_replace(said);
                }
                Err(instead) => {
                    let refused = instead.is_ok();
                    said.instead = Some(instead);
                    self.granted.send_replace(said);
                    if refused && open.is_none() {
                        // It would say the same again.
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
                match &mut open {
                    Some(open) => drop((&mut open.pump).await),
                    None => {}
                }
                tokio::time::sleep(pause(failed)).await;
            };
            tokio::select! {
                () = ended => {
                    open = None;
                    failed = if since.elapsed() > PAUSES.1 { 0 } else { failed + 1 };
                    // What changed since then, nobody told.
                    self.ear.missed();
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

    /// Opens a subscription and waits for what it grants; or what the server says or does instead.
    async fn open(
        &self,
        asked: &BTreeSet<String>,
    ) -> Result<(Open, BTreeSet<String>), Result<Bytes, Failure>> {
        let mut filter: serde_json::Map<String, Value> =
            self.lists.iter().map(|member| ((*member).to_owned(), Value::Bool(true))).collect();
        if !asked.is_empty() {
            filter.insert("resourceSubscriptions".into(), json!(asked));
        }
        let params = json!({ "notifications": filter, "_meta": own_meta() });
        let (sender, said) = mpsc::channel(QUEUE);
        let mut call = Call::own(Method::LISTEN, Some(params.to_string().into()), PATIENCE);
        call.clock = Clock::never();
        call.said = Some(sender);
        let (acknowledge, acknowledged) = oneshot::channel();
        let (link, ear) = (self.link.clone(), self.ear.clone());
        let pump = tokio::spawn(async move {
            let mut acknowledge = Some(acknowledge);
            let reply = tokio::select! {
                biased;
                () = hear(said, &ear, &mut acknowledge) => return,
                reply = link.call(call) => reply,
            };
            if let Some(acknowledge) = acknowledge {
                let _ = acknowledge.send(Err(match reply {
                    Ok(Reply::Error(error)) => Ok(error),
                    Ok(Reply::Result(_)) => {
                        Err(Failure::Misbehaved("it ended a subscription at once".into()))
                    }
                    Err(failure) => Err(failure),
                }));
            }
        });
        let open = Open { pump: AbortOnDropHandle::new(pump) };
        match tokio::time::timeout(PATIENCE, acknowledged).await {
            Ok(Ok(granted)) => granted.map(|granted| (open, granted)),
            Ok(Err(_)) => Err(Err(Failure::Unavailable("its subscription ended".into()))),
            Err(_) => Err(Err(Failure::Timeout(PATIENCE))),
        }
    }
}

fn pause(failed: u32) -> Duration {
    PAUSES.0.saturating_mul(1 << failed.min(12)).min(PAUSES.1)
}

type Acknowledge = oneshot::Sender<Result<BTreeSet<String>, Result<Bytes, Failure>>>;

/// Hears one subscription for ever: its end is that of its call.
async fn hear(mut said: mpsc::Receiver<Said>, ear: &Ear, acknowledge: &mut Option<Acknowledge>) {
    while let Some(said) = said.recv().await {
        if let Said::Notification { method, params } = &said
            && method.as_str() == Method::ACKNOWLEDGED
        {
            if let Some(acknowledge) = acknowledge.take() {
                let _ = acknowledge.send(Ok(resources(params.as_ref())));
            }
        } else if acknowledge.is_some() {
            tracing::debug!("a server tells before it says what it grants");
        } else {
            ear.tell(said);
        }
    }
    std::future::pending().await
}

/// The resources that an acknowledgement grants.
fn resources(params: Option<&Bytes>) -> BTreeSet<String> {
    let params = params.and_then(|params| serde_json::from_slice::<Value>(params).ok());
    let uris = params
        .as_ref()
        .and_then(|params| params.pointer("/notifications/resourceSubscriptions")?.as_array());
    uris.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
