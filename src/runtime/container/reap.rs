//! Removes orphaned containers.

use futures_util::future::join_all;

use super::{Engine, Fault, Running, engine_errors::words, lease::Lease, running};

impl Engine {
    /// Removes Portcullis's containers whose owner process has ended, and those of `instance` (at
    /// the end of that instance, the ones that its handles have not removed yet). Returns their
    /// number.
    ///
    /// Never touches a container without Portcullis's name and labels, or of an owner that may be
    /// alive.
    pub async fn reap(&self, instance: &str) -> Result<usize, Fault> {
        let orphans = self.list().await?.into_iter();
        let orphans = orphans.filter(|one| one.instance == instance || self.is_orphan(one));
        let outcomes = self.remove_containers(orphans.collect()).await;
        let removed = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count();
        match outcomes.into_iter().find_map(|(_, outcome)| outcome.err()) {
            Some(fault) => Err(fault),
            None => Ok(removed),
        }
    }

    /// Whether the process that owns a container has certainly ended.
    pub fn is_orphan(&self, container: &Running) -> bool {
        let owner = container.owner.parse();
        owner.is_ok_and(|owner: Lease| owner.gone(&self.facts.owner))
    }

    /// Ends and removes containers, with the result for each.
    pub async fn remove_containers(&self, all: Vec<Running>) -> Vec<(Running, Result<(), Fault>)> {
        // Servers first, because an engine may refuse to remove a container that another one
        // joined.
        let (holders, servers): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|container| container.holds.is_some());
        let mut outcomes = Vec::new();
        for some in [servers, holders] {
            let removals = some.into_iter().map(|container| async move {
                let removed = running::remove(&self.docker, &container.id).await;
                let removed = removed.map_err(|error| Fault {
                    action: "remove an orphaned container",
                    why: format!("{}: {}", container.name, words(&error)),
                });
                (container, removed)
            });
            outcomes.extend(join_all(removals).await);
        }
        outcomes
    }
}
