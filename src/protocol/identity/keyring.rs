//! Who holds which key: the clients of the config and those of `portcullis client add`, the
//! latter read again as soon as their file changes.

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

/// Where a client was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// In `portcullis.toml`.
    Config,
    /// By `portcullis client add`.
    Store,
}

/// All keys. Asked for every HTTP request, without a lock.
#[derive(Debug)]
pub struct Keyring {
    configured: BTreeMap<ClientName, (KeyHash, Vec<Group>)>,
    store: Store,
    ring: ArcSwap<Ring>,
    /// Who is told of changes. Held while the keys are read.
    told: Mutex<Option<mpsc::UnboundedSender<Change>>>,
    /// Told of each reading.
    read: watch::Sender<()>,
}

/// What changed among the clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// A client holds a key now.
    Added { client: ClientName, key: String, groups: Vec<Group> },
    /// A client does not hold this key any more.
    Removed { client: ClientName, key: String },
}

impl Change {
    /// Whether it gives the same client the same key as the other, or takes it away as the other.
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Added { client, key, .. }, Self::Added { client: whose, key: which, .. })
            | (Self::Removed { client, key }, Self::Removed { client: whose, key: which }) => {
                (client, key) == (whose, which)
            }
            _ => false,
        }
    }

    /// What undoes it.
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

/// Watches the file of clients as long as it lives.
#[derive(Debug)]
pub struct Watch {
    _watcher: RecommendedWatcher,
}

impl Keyring {
    /// The keys of the clients of a config, and of its state folder.
    ///
    /// # Errors
    /// Where the file of clients is broken. A proxy must not start with half of its clients.
    pub fn load(
        clients: &BTreeMap<ClientName, Client>,
        state_dir: &Path,
    ) -> Result<Self, StoreFault> {
        let configured = clients.iter().filter_map(|(name, client)| {
            // The loader has refused a hash that is none.
            let hash = client.key_hash.parse().ok()?;
            Some((name.clone(), (hash, client.groups.clone())))
        });
        let keyring = Self {
            configured: configured.collect(),
            store: Store::within(state_dir),
            ring: ArcSwap::default(),
            told: Mutex::default(),
            read: watch::Sender::default(),
        };
        keyring.reload()?;
        Ok(keyring)
    }

    /// Reads the file of clients again.
    ///
    /// # Errors
    /// Where it is broken. The keys from before stay.
    pub fn reload(&self) -> Result<(), StoreFault> {
        // One at a time: an older reading must not follow a newer one.
        let told = self.told.lock();
        let mut ring = Ring::default();
        for (name, (hash, groups)) in &self.configured {
            ring.insert(name, *hash, groups, Origin::Config);
        }
        for (name, stored) in self.store.read()? {
            ring.insert(&name, stored.key_hash, &stored.groups, Origin::Store);
        }
        let ring = Arc::new(ring);
        let before = self.ring.swap(ring.clone());
        if let Some(told) = &*told {
            // Before those of the same name that are added.
            let removed = before.less(&ring).map(|(client, principal)| Change::Removed {
                client: client.clone(),
                key: principal.key.clone().unwrap_or_default(),
            });
            let added = ring.less(&before).map(|(client, principal)| Change::Added {
                client: client.clone(),
                key: principal.key.clone().unwrap_or_default(),
                groups: principal.groups.clone(),
            });
            // Who was told may have stopped to listen.
            removed.chain(added).for_each(|change| drop(told.send(change)));
        }
        self.read.send_replace(());
        Ok(())
    }

    /// The changes from now on, for one listener. They are the operator's, so they need no bound.
    pub fn changes(&self) -> mpsc::UnboundedReceiver<Change> {
        let (sender, changes) = mpsc::unbounded_channel();
        *self.told.lock() = Some(sender);
        changes
    }

    /// Reloads whenever the file of clients changes. A broken file is logged, and the keys from
    /// before stay.
    ///
    /// # Errors
    /// Where the state folder can't be made or watched.
    pub fn watch(self: &Arc<Self>) -> Result<Watch, StoreFault> {
        self.store.prepare()?;
        let keyring = Arc::downgrade(self);
        let path = self.store.path().to_owned();
        let follow = move |event: notify::Result<Event>| {
            if let Some(keyring) = keyring.upgrade().filter(|_| matters(&event, &path)) {
                match keyring.reload() {
                    Ok(()) => tracing::info!("clients loaded again"),
                    Err(fault) => tracing::error!(
                        "clients have changed and are not used, those before stay: {fault}"
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
        // What changed between loading and watching.
        self.reload()?;
        Ok(Watch { _watcher: watcher })
    }

    /// Who holds a key.
    pub fn authenticate(&self, key: &Key) -> Option<Arc<Principal>> {
        self.ring.load().by_hash.get(&key.hash()).cloned()
    }

    /// The principal of a client, for the operator who asks on a client's behalf.
    pub fn client(&self, name: &ClientName) -> Option<Arc<Principal>> {
        self.ring.load().by_name.get(name).map(|(_, principal)| Arc::clone(principal))
    }

    /// Whether this principal is what it was when it came in: a client with that key and those groups,
    /// or none of the clients.
    pub fn still_knows(&self, principal: &Principal) -> bool {
        match &principal.kind {
            PrincipalKind::Client(name) => self.client(name).is_some_and(|now| *now == *principal),
            PrincipalKind::Local { .. } | PrincipalKind::Anonymous => true,
        }
    }

    /// Done once it does not know this principal any more.
    pub async fn changed(&self, principal: &Principal) {
        let mut read = self.read.subscribe();
        while self.still_knows(principal) {
            // The sender is this one's own.
            let _ = read.changed().await;
        }
    }

    /// Every client, by name.
    pub fn clients(&self) -> Vec<(ClientName, Origin, Arc<Principal>)> {
        let ring = self.ring.load();
        ring.by_name.iter().map(|(name, (from, who))| (name.clone(), *from, who.clone())).collect()
    }
}

/// Whether an event may be about the file of clients. A fault of the watch may hide one.
fn matters(event: &notify::Result<Event>, path: &Path) -> bool {
    event.as_ref().map_or(true, |event| {
        !event.kind.is_access()
            && (event.need_rescan()
                || event.paths.iter().any(|changed| changed.file_name() == path.file_name()))
    })
}

impl Ring {
    /// The clients that the other has not, or with another key or other groups.
    fn less<'a>(
        &'a self,
        other: &'a Ring,
    ) -> impl Iterator<Item = (&'a ClientName, &'a Arc<Principal>)> {
        self.by_name.iter().filter_map(|(name, (_, principal))| {
            let same = other.by_name.get(name).is_some_and(|(_, theirs)| theirs == principal);
            (!same).then_some((name, principal))
        })
    }

    /// Adds a client, unless its name or key is taken: the config goes before the store.
    fn insert(&mut self, name: &ClientName, hash: KeyHash, groups: &[Group], origin: Origin) {
        if self.by_name.contains_key(name) {
            tracing::warn!(client = %name, "in the config and in the store: the one in the config counts");
            return;
        }
        let key = Some(hash.id());
        let principal =
            Arc::new(Principal { key, ..Principal::client(name.clone(), groups.to_vec()) });
        if let Some(other) = self.by_hash.get(&hash) {
            tracing::warn!(client = %name, other = %other.name(), "has the other's key: left out");
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
    fn keys_of_config_and_store_are_known_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let [a, stranger] = [(); 2].map(|()| Key::generate().unwrap());
        let clients = configured(&a, vec!["ops".parse().unwrap()]);
        let b = Store::within(dir.path()).add(&name("b"), vec![]).unwrap();
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
    fn a_name_in_both_is_the_configs() {
        let dir = tempfile::tempdir().unwrap();
        let ours = Key::generate().unwrap();
        let clients = configured(&ours, vec![]);
        let other = Store::within(dir.path()).add(&name("a"), vec![]).unwrap();
        let keyring = Keyring::load(&clients, dir.path()).unwrap();
        assert!(keyring.authenticate(&ours).is_some());
        assert_eq!(keyring.authenticate(&other), None);
    }

    #[test]
    fn a_broken_file_keeps_the_keys_from_before() {
        let dir = tempfile::tempdir().unwrap();
        let clients = BTreeMap::new();
        let store = Store::within(dir.path());
        let key = store.add(&name("a"), vec![]).unwrap();
        let keyring = Keyring::load(&clients, dir.path()).unwrap();
        fs::write(store.path(), "[clients").unwrap();
        assert!(keyring.reload().is_err());
        assert!(keyring.authenticate(&key).is_some());
        assert!(Keyring::load(&clients, dir.path()).is_err(), "but a proxy does not start with it");
    }

    #[test]
    fn a_client_comes_and_goes_while_the_proxy_runs() {
        let dir = tempfile::tempdir().unwrap();
        let clients = BTreeMap::new();
        let keyring = Arc::new(Keyring::load(&clients, dir.path()).unwrap());
        let _watch = keyring.watch().unwrap();
        let store = Store::within(dir.path());
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
    fn the_local_user_is_verified_and_anonymous_is_not() {
        assert!(Principal::local().verified && Principal::local().name().starts_with("local:"));
        assert!(!Principal::anonymous().verified);
    }
}
