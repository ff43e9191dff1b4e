//! Set of the instances of one server, and the choice of an instance for each client.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    call_error::CallError,
    instance::Instance,
    instance_key::{InstanceKey, InstanceOwner},
    secret_set::SecretScope,
    server_shared::ServerShared,
    warm_pool::WarmPool,
};
use crate::config::Sharing;
use portcullis_protocol::identity::PrincipalKind;

/// Divisor of the limit of dedicated instances for the share of one principal.
const PRINCIPAL_SHARE: usize = 4;
/// Pause after the failed start of a replica.
const REPLICA_PAUSE: Duration = Duration::from_secs(10);

/// Instances of one server: the shared ones, their replicas, and the dedicated ones.
pub(super) struct InstanceSet {
    server: Arc<ServerShared>,
    pool: Arc<WarmPool>,
    shared: SharedInstances,
    /// Those of clients before 2026-07-28, if the server speaks both eras.
    legacy: SharedInstances,
    /// Dedicated instances; `None` after the end of the server.
    dedicated: Mutex<Option<HashMap<InstanceKey, Arc<Instance>>>>,
}

/// An instance that several clients share, and its replicas.
struct SharedInstances {
    first: Arc<Instance>,
    /// Further shared instances, for calls only.
    replicas: Vec<Arc<Instance>>,
    /// Time before which no replica starts.
    replicas_paused: Arc<Mutex<Option<Instant>>>,
}

impl SharedInstances {
    fn new(server: &Arc<ServerShared>, pool: &Arc<WarmPool>, legacy: bool) -> Self {
        let instance =
            |first| Arc::new(Instance::shared(server.clone(), pool.clone(), legacy, first));
        Self {
            first: instance(true),
            replicas: (1..server.settings.replicas).map(|_| instance(false)).collect(),
            replicas_paused: Arc::default(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Instance>> {
        std::iter::once(&self.first).chain(&self.replicas)
    }

    /// The instance with the fewest calls. If all running ones are busy, another replica starts in
    /// the background.
    fn least_busy(&self) -> Arc<Instance> {
        let runs = |instance: &&Arc<Instance>| instance.peek().is_some();
        let Some(least) = self.all().filter(runs).min_by_key(|instance| instance.active()) else {
            return self.first.clone();
        };
        let is_paused = self.replicas_paused.lock().is_some_and(|until| Instant::now() < until);
        if least.active() > 0
            && !is_paused
            && let Some(next) = self.replicas.iter().find(|instance| !runs(instance)).cloned()
        {
            let paused = self.replicas_paused.clone();
            tokio::spawn(async move {
                if let Err(failure) = next.running().await {
                    // Each attempt is recorded, and the next call would make another one.
                    *paused.lock() = Some(Instant::now() + REPLICA_PAUSE);
                    tracing::debug!(%failure, "another instance did not start");
                }
            });
        }
        least.clone()
    }
}

impl InstanceSet {
    pub fn new(server: Arc<ServerShared>, pool: Arc<WarmPool>) -> Self {
        Self {
            shared: SharedInstances::new(&server, &pool, false),
            legacy: SharedInstances::new(&server, &pool, true),
            dedicated: Mutex::new(Some(HashMap::new())),
            server,
            pool,
        }
    }

    /// The shared instance. It serves lists, and calls of clients without server requests.
    pub fn shared(&self) -> &Arc<Instance> {
        &self.shared.first
    }

    /// The shared instance of clients before 2026-07-28 of a server of both eras.
    pub fn legacy(&self) -> &Arc<Instance> {
        &self.legacy.first
    }

    /// Of a shared instance and its replicas, the one with the fewest calls. Any other instance has
    /// no replicas.
    pub fn least_busy(&self, instance: &Arc<Instance>) -> Arc<Instance> {
        let group = [&self.shared, &self.legacy];
        let group = group.into_iter().find(|group| Arc::ptr_eq(&group.first, instance));
        group.map_or_else(|| instance.clone(), SharedInstances::least_busy)
    }

    /// The instance for a client: a dedicated one, or the shared one if the config says so or the
    /// server's revision has no server requests.
    ///
    /// # Errors
    /// [`CallError::NoSecret`] if a secret differs by client and has no value for this one;
    /// [`CallError::Overloaded`] at the limit of dedicated instances, of all or of this principal;
    /// [`CallError::Unavailable`] if the client was removed.
    pub fn own(&self, party: &InstanceOwner) -> Result<Arc<Instance>, CallError> {
        let eras = *self.server.eras.read();
        let is_modern = eras.is_some_and(|eras| eras.is_modern_for(party.revision));
        let settings = &self.server.settings;
        let sharing = settings.sharing;
        if sharing == Sharing::Shared || is_modern && !sharing.keeps_apart() {
            return Ok(self.shared.first.clone());
        }
        let launcher = &self.server.launcher;
        launcher.broker.has(&self.server.name, settings, &party.principal)?;
        let mut dedicated = self.dedicated.lock();
        // Under the lock: a removal first marks the client, and then removes its instances.
        if launcher.dismissed.has(party) {
            return Err(CallError::Unavailable("its client was removed".into()));
        }
        let Some(dedicated) = dedicated.as_mut() else {
            self.server.ensure_active()?;
            return Err(CallError::Unavailable("the proxy is shutting down".into()));
        };
        if let Some(instance) = dedicated.get(&party.key) {
            instance.touch();
            return Ok(instance.clone());
        }
        let most = settings.instances;
        let is_same = |owner: &InstanceOwner| owner.principal == party.principal;
        let of_principal =
            dedicated.values().filter(|own| own.owner().is_some_and(is_same)).count();
        if dedicated.len() >= most || of_principal >= most.div_ceil(PRINCIPAL_SHARE) {
            return Err(CallError::Overloaded { what: "instances for single clients", most });
        }
        let (server, pool) = (self.server.clone(), self.pool.clone());
        let instance = Arc::new(Instance::new(server, pool, Some(party.clone())));
        dedicated.insert(party.key.clone(), instance.clone());
        Ok(instance)
    }

    /// The instance with this key, if there is one.
    pub fn owned(&self, key: &InstanceKey) -> Option<Arc<Instance>> {
        if !key.is_dedicated() {
            return Some(self.legacy.first.clone());
        }
        self.dedicated.lock().as_ref()?.get(key).cloned()
    }

    /// Removes the dedicated instance of a client.
    pub fn remove(&self, key: &InstanceKey) -> Option<Arc<Instance>> {
        self.dedicated.lock().as_mut()?.remove(key)
    }

    /// Removes the dedicated instances of a client with this key.
    pub fn remove_client(&self, client: &PrincipalKind, key: &str) -> Vec<Arc<Instance>> {
        let is_its = |own: &Instance| {
            own.owner().is_some_and(|owner| {
                owner.principal == *client && owner.holder.as_deref() == Some(key)
            })
        };
        let mut dedicated = self.dedicated.lock();
        let gone = dedicated.iter_mut().flat_map(|own| own.extract_if(|_, own| is_its(own)));
        gone.map(|(_, own)| own).collect()
    }

    /// Removes the dedicated instances that are stopped and idle.
    pub fn remove_idle(&self) {
        if let Some(dedicated) = self.dedicated.lock().as_mut() {
            // A caller that just got an instance is about to use it.
            dedicated.retain(|_, own| Arc::strong_count(own) > 1 || !own.is_disposable());
        }
    }

    /// All instances.
    pub fn all(&self) -> Vec<Arc<Instance>> {
        let dedicated = self.dedicated.lock();
        let dedicated = dedicated.iter().flat_map(HashMap::values);
        dedicated.chain(self.legacy.all()).chain(self.shared.all()).cloned().collect()
    }

    /// All instances with secrets of these scopes.
    pub fn with_secrets(&self, scopes: &BTreeSet<SecretScope>) -> Vec<Arc<Instance>> {
        let mut all = self.all();
        all.retain(|instance| scopes.contains(instance.scope()));
        all
    }

    /// All instances. No dedicated instance is created after this.
    pub fn close(&self) -> Vec<Arc<Instance>> {
        let dedicated = self.dedicated.lock().take().unwrap_or_default();
        let shared = self.legacy.all().chain(self.shared.all());
        dedicated.into_values().chain(shared.cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{config, handshake::Eras, server_shared::tests::shared};
    use portcullis_protocol::{exchange::Revision, names::SessionId};

    fn instances(settings: config::Server) -> InstanceSet {
        let (server, _events) = shared(settings);
        InstanceSet::new(server.clone(), WarmPool::new(server))
    }

    fn party(session: usize, client: &str) -> InstanceOwner {
        InstanceOwner {
            key: InstanceKey::Session(SessionId::presented(&session.to_string())),
            principal: PrincipalKind::Client(client.parse().unwrap()),
            holder: None,
            revision: Revision::LATEST_LEGACY,
            capabilities: Bytes::from_static(br#"{"roots":{}}"#),
        }
    }

    #[tokio::test]
    async fn clients_have_dedicated_instances_up_to_a_share() {
        let server = instances(config::Server { instances: 6, ..Default::default() });
        let first = server.own(&party(0, "a")).unwrap();
        assert_eq!(first.party(), Some(&party(0, "a").key));
        assert!(Arc::ptr_eq(&first, &server.own(&party(0, "a")).unwrap()));
        assert!(!Arc::ptr_eq(&first, server.shared()));
        server.own(&party(1, "a")).unwrap();
        let refused = |party| match server.own(&party) {
            Err(failure) => failure,
            Ok(_) => panic!("one too many"),
        };
        let full = CallError::Overloaded { what: "instances for single clients", most: 6 };
        assert_eq!(refused(party(2, "a")), full);
        for (session, client) in [(3, "b"), (4, "b"), (5, "c"), (6, "c")] {
            server.own(&party(session, client)).unwrap();
        }
        assert_eq!(refused(party(7, "d")), full);

        // A removed instance frees its slot, and does not start again.
        server.remove(&party(0, "a").key).unwrap().close("its client is gone").await;
        assert!(server.owned(&party(0, "a").key).is_none());
        assert!(matches!(first.running().await, Err(CallError::Unavailable(_))));
        server.own(&party(7, "d")).unwrap();
        // With the shared instance, and that of legacy clients.
        assert_eq!(server.close().len(), 8);
        assert_eq!(server.all().len(), 2);
        assert!(matches!(refused(party(7, "d")), CallError::Unavailable(_)));
    }

    #[tokio::test]
    async fn unused_instances_are_removed() {
        let settings = config::Server { idle_stop_s: 1, ..Default::default() };
        let server = instances(settings);
        let held = server.own(&party(0, "a")).unwrap();
        drop(server.own(&party(1, "a")).unwrap());
        // An instance in use stays; the other one goes after the idle time.
        let swept = async {
            while server.owned(&party(1, "a").key).is_some() {
                server.remove_idle();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), swept).await.unwrap();
        assert!(Arc::ptr_eq(&held, &server.owned(&party(0, "a").key).unwrap()));
    }

    #[test]
    fn instance_is_shared_by_config_or_era() {
        let shared = config::Server { sharing: Sharing::Shared, ..Default::default() };
        let servers = [instances(shared), instances(config::Server::default())];
        *servers[1].server.eras.write() = Some(Eras::Modern);
        for server in servers {
            let own = server.own(&party(0, "a")).unwrap();
            assert!(Arc::ptr_eq(&own, server.shared()));
        }
    }
}
