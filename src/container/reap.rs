//! Removing containers that nobody owns any more.

use futures_util::future::join_all;

use super::{Engine, Fault, engine::words, handle::remove, owner::Owner};

impl Engine {
    /// Removes our containers whose owner process is gone, and those of `instance` (which, at the
    /// end of that instance, are all that its handles have not removed yet). Says how many.
    ///
    /// A container without our name and labels, or of an owner that may be alive, is never touched.
    pub async fn reap(&self, instance: &str) -> Result<usize, Fault> {
        let me = &self.facts.owner;
        let orphans = self.list().await?.into_iter().filter(|container| {
            container.instance == instance
                || container.owner.parse().is_ok_and(|owner: Owner| owner.gone(me))
        });
        // Servers first: an engine may keep what another one has joined.
        let (holders, servers): (Vec<_>, Vec<_>) =
            orphans.partition(|container| container.holds.is_some());
        let mut outcomes = Vec::new();
        for some in [servers, holders] {
            let removals = some.into_iter().map(|container| async move {
                remove(&self.docker, &container.id).await.map_err(|error| Fault {
                    asked: "remove an orphaned container",
                    why: format!("{}: {}", container.name, words(&error)),
                })
            });
            outcomes.extend(join_all(removals).await);
        }
        let removed = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        match outcomes.into_iter().find_map(Result::err) {
            Some(fault) => Err(fault),
            None => Ok(removed),
        }
    }
}
