//! Keys of all clients: those of the config and those of `portcullis client add`. The latter are
//! reloaded when their file changes.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use arc_swap::ArcSwap;
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::{Client, Key, KeyHash, Principal, PrincipalKind, Store, StoreFault};
use crate::names::{ClientName, Group};

/// Where a client is defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// In `portcullis.toml`.
    Config,
    /// By `portcullis client add`.
    Store,
}

/// All keys. Read for every HTTP request, without a lock.
#[derive(Debug)]
pub struct Keyring {
    configured: BTreeMap<ClientName, (KeyHash, Vec<Group>)>,
    store: Store,
    ring: ArcSwap<Ring>,
    /// Receiver of changes. Locked while the keys are loaded.
    listener: Mutex<Option<mpsc::UnboundedSender<Change>>>,
    /// Notified of each reload.
    read: watch::Sender<()>,
}

/// Change of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// A client now has a key.
    Added { client: ClientName, key: String, groups: Vec<Group> },
    /// A client no longer has this key.
    Removed { client: ClientName, key: String },
}

impl Change {
    /// Whether both add or both remove the same key of the same client.
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Added { client, key, .. }, Self::Added { client: whose, key: which, .. })
            | (Self::Removed { client, key }, Self::Removed { client: whose, key: which }) => {
                (client, key) == (whose, which)
            }
            _ => false,
        }
    }

    /// The reverse change.
    pub fn reverse(&self) -> Self {
        match self.clone() {
            Self::Added { client, key, .. } => Self::Removed { client, key },
            Self::Removed { client, key } => Self::Added { client, key, groups: Vec::new() },
        }
    }
}

#[derive(Debug, Default)]
struct Ring {
    by_hash: HashMap<KeyHash, Arc<Principal>>,
    by_name: BTreeMap<ClientName, (Origin, Arc<Principal>)>,
}

/// Watches the file of clients until it is dropped.
#[derive(Debug)]
pub struct Watch {
    _watcher: RecommendedWatcher,
}

impl Keyring {
    /// Keys of the clients of a config, and of its state folder.
    ///
    /// # Errors
    /// If the file of clients is invalid. A proxy must not start with only some of its clients.
    pub fn load(
        clients: &BTreeMap<ClientName, Client>,
        state_dir: &Path,
    ) -> Result<Self, StoreFault> {
        let configured = clients.iter().filter_map(|(name, client)| {
            // The config loader has refused invalid hashes.
            let hash = client.key_hash.parse().ok()?;
            Some((name.clone(), (hash, client.groups.clone())))
        });
        let keyring = Self {
            configured: configured.collect(),
            store: Store::in_state_dir(state_dir),
            ring: ArcSwap::default(),
            listener: Mutex::default(),
            read: watch::Sender::default(),
        };
        keyring.reload()?;
        Ok(keyring)
    }

    /// Reloads the file of clients.
    ///
    /// # Errors
    /// If it is invalid. The previous keys stay.
    pub fn reload(&self) -> Result<(), StoreFault> {
        // One at a time: an older state must not replace a newer one.
        let listener = self.listener.lock();
        let mut ring = Ring::default();
        for (name, (hash, groups)) in &self.configured {
            ring.insert(name, *hash, groups, Origin::Config);
        }
        for (name, stored) in self.store.read()? {
            ring.insert(&name, stored.key_hash, &stored.groups, Origin::Store);
        }
        let ring = Arc::new(ring);
        let before = self.ring.swap(ring.clone());
        if let Some(listener) = &*listener {
            // Before added ones with the same name.
            let removed = before.less(&ring).map(|(client, principal)| Change::Removed {
                client: client.clone(),
                key: principal.key.clone().unwrap_or_default(),
            });
            let added = ring.less(&before).map(|(client, principal)| Change::Added {
                client: client.clone(),
                key: principal.key.clone().unwrap_or_default(),
                groups: principal.groups.clone(),
            });
            // The receiver may have been dropped.
            removed.chain(added).for_each(|change| drop(listener.send(change)));
        }
        self.read.send_replace(());
        Ok(())
    }

    /// Changes from now on, for one receiver. They come from the operator, so the channel is
    /// unbounded.
    pub fn changes(&self) -> mpsc::UnboundedReceiver<Change> {
        let (sender, changes) = mpsc::unbounded_channel();
        *self.listener.lock() = Some(sender);
        changes
    }

    /// Reloads whenever the file of clients changes. An invalid file is logged, and the previous
    /// keys stay.
    ///
    /// # Errors
    /// If the state folder cannot be created or watched.
    pub fn watch(self: &Arc<Self>) -> Result<Watch, StoreFault> {
        self.store.prepare()?;
        let keyring = Arc::downgrade(self);
        let path = self.store.path().to_owned();
        let follow = move |event: notify::Result<Event>| {
            if let Some(keyring) = keyring.upgrade().filter(|_| matters(&event, &path)) {
                match keyring.reload() {
                    Ok(()) => tracing::info!("clients reloaded"),
                    Err(fault) => tracing::error!(
                        "clients changed but the file is invalid; the previous clients stay: \
                        {fault}"
                    ),
                }
            }
        };
        let folder = self.store.path().parent().unwrap_or_else(|| self.store.path());
        let watcher = notify::recommended_watcher(follow)
            .and_then(|mut watcher| {
                watcher.watch(folder, RecursiveMode::NonRecursive).map(|()| watcher)
            })
            .map_err(|source| StoreFault::Watch { path: folder.to_owned(), source })?;
        // For changes between loading and watching.
        self.reload()?;
        Ok(Watch { _watcher: watcher })
    }

    /// Principal of a key.
    pub fn authenticate(&self, key: &Key) -> Option<Arc<Principal>> {
        self.ring.load().by_hash.get(&key.hash()).cloned()
    }

    /// Principal of a client, for the operator who acts on a client's behalf.
    pub fn client(&self, name: &ClientName) -> Option<Arc<Principal>> {
        self.ring.load().by_name.get(name).map(|(_, principal)| Arc::clone(principal))
    }

    /// Whether this principal is unchanged since its connection: a client with that key and those
    /// groups, or not a client.
    pub fn is_unchanged(&self, principal: &Principal) -> bool {
        match &principal.kind {
            PrincipalKind::Client(name) => self.client(name).is_some_and(|now| *now == *principal),
            PrincipalKind::Local { .. } | PrincipalKind::Anonymous => true,
        }
    }

    /// Resolves when this principal has changed.
    pub async fn changed(&self, principal: &Principal) {
        let mut read = self.read.subscribe();
        while self.is_unchanged(principal) {
            // The sender belongs to this value.
            let _ = read.changed().await;
        }
    }

    /// Every client, by name.
    pub fn clients(&self) -> Vec<(ClientName, Origin, Arc<Principal>)> {
        let ring = self.ring.load();
        ring.by_name.iter().map(|(name, (from, who))| (name.clone(), *from, who.clone())).collect()
    }
}

/// Whether an event may concern the file of clients. An error of the watcher may hide such an
/// event.
fn matters(event: &notify::Result<Event>, path: &Path) -> bool {
    event.as_ref().map_or(true, |event| {
        !event.kind.is_access()
            && (event.need_rescan()
                || event.paths.iter().any(|changed| changed.file_name() == path.file_name()))
    })
}

impl Ring {
    /// Clients that the other ring lacks, or has with another key or other groups.
    fn less<'a>(
        &'a self,
        other: &'a Ring,
    ) -> impl Iterator<Item = (&'a ClientName, &'a Arc<Principal>)> {
        self.by_name.iter().filter_map(|(name, (_, principal))| {
            let same = other.by_name.get(name).is_some_and(|(_, theirs)| theirs == principal);
            (!same).then_some((name, principal))
        })
    }

    /// Adds a client, unless its name or key is taken: the config overrides the store.
    fn insert(&mut self, name: &ClientName, hash: KeyHash, groups: &[Group], origin: Origin) {
        if self.by_name.contains_key(name) {
            tracing::warn!(client = %name, "client is in the config and in the store; the config \
                counts");
            return;
        }
        let key = Some(hash.id());
        let principal =
            Arc::new(Principal { key, ..Principal::client(name.clone(), groups.to_vec()) });
        if let Some(other) = self.by_hash.get(&hash) {
            tracing::warn!(client = %name, other = %other.name(), "client has the key of another \
                client; ignored");
            return;
        }
        self.by_hash.insert(hash, Arc::clone(&principal));
        self.by_name.insert(name.clone(), (origin, principal));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, Instant},
    };

    use super::*;
    fn configured(key: &Key, groups: Vec<Group>) -> BTreeMap<ClientName, Client> {
        [(name("a"), Client { key_hash: key.hash().to_string(), groups })].into()
    }

    fn name(name: &str) -> ClientName {
        name.parse().unwrap()
    }

    #[test]
    fn only_keys_of_config_and_store_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let [a, stranger] = [(); 2].map(|()| Key::generate().unwrap());
        let clients = configured(&a, vec!["ops".parse().unwrap()]);
        let b = Store::in_state_dir(dir.path()).add(&name("b"), vec![]).unwrap();
        let keyring = Keyring::load(&clients, dir.path()).unwrap();
        let who = keyring.authenticate(&a).unwrap();
        assert_eq!(who.kind, PrincipalKind::Client(name("a")));
        assert_eq!(who.groups, ["ops".parse().unwrap()]);
        assert!(who.verified);
        assert_eq!(keyring.authenticate(&b).unwrap().name(), "b");
        assert_eq!(keyring.authenticate(&stranger), None);
        assert_eq!(keyring.client(&name("b")).unwrap().name(), "b");
        let all: Vec<_> =
            keyring.clients().into_iter().map(|(name, from, _)| (name, from)).collect();
        assert_eq!(all, [(name("a"), Origin::Config), (name("b"), Origin::Store)]);
    }

    #[test]
    fn config_overrides_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let ours = Key::generate().unwrap();
        let clients = configured(&ours, vec![]);
        let other = Store::in_state_dir(dir.path()).add(&name("a"), vec![]).unwrap();
        let keyring = Keyring::load(&clients, dir.path()).unwrap();
        assert!(keyring.authenticate(&ours).is_some());
        assert_eq!(keyring.authenticate(&other), None);
    }

    #[test]
    fn invalid_file_keeps_the_previous_keys() {
        let dir = tempfile::tempdir().unwrap();
        let clients = BTreeMap::new();
        let store = Store::in_state_dir(dir.path());
        let key = store.add(&name("a"), vec![]).unwrap();
        let keyring = Keyring::load(&clients, dir.path()).unwrap();
        fs::write(store.path(), "[clients").unwrap();
        assert!(keyring.reload().is_err());
        assert!(keyring.authenticate(&key).is_some());
        assert!(Keyring::load(&clients, dir.path()).is_err(), "but a proxy does not start with it");
    }

    #[test]
    fn clients_are_added_and_removed_at_run_time() {
        let dir = tempfile::tempdir().unwrap();
        let clients = BTreeMap::new();
        let keyring = Arc::new(Keyring::load(&clients, dir.path()).unwrap());
        let _watch = keyring.watch().unwrap();
        let store = Store::in_state_dir(dir.path());
        let until = |done: &dyn Fn() -> bool| {
            let started = Instant::now();
            while !done() {
                assert!(started.elapsed() < Duration::from_secs(30), "no change was seen");
                std::thread::yield_now();
            }
        };
        let mut changes = keyring.changes();
        let key = store.add(&name("a"), vec!["ops".parse().unwrap()]).unwrap();
        until(&|| keyring.authenticate(&key).is_some());
        store.remove(&name("a")).unwrap();
        until(&|| keyring.authenticate(&key).is_none());
        let id = key.hash().id();
        let groups = vec!["ops".parse().unwrap()];
        let added = Change::Added { client: name("a"), key: id.clone(), groups };
        assert_eq!(changes.try_recv(), Ok(added));
        assert_eq!(changes.try_recv(), Ok(Change::Removed { client: name("a"), key: id }));
        assert!(changes.try_recv().is_err(), "nothing else has changed");
    }

    #[test]
    fn local_user_is_verified_and_anonymous_is_not() {
        assert!(Principal::local().verified && Principal::local().name().starts_with("local:"));
        assert!(!Principal::anonymous().verified);
    }
}
