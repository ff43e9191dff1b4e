//! Orphans: containers, secret files and control groups that killed proxies left on this machine.
//! The tests are those of a starting proxy: containers by the lease in their labels, folders of
//! secrets by their lock, control groups by the lease in their names.
//!
//! INVARIANT: only what certainly belongs to a proxy that has ended is an orphan.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use portcullis_audit::record::{Orphan, OrphanKind};
use portcullis_runtime::{
    container::{self, Running},
    sandbox,
};

/// Longest wait for all control groups that still have processes.
const DYING: Duration = Duration::from_secs(1);

/// Orphans that were found. Search and removal block: they are for commands, not for a proxy with
/// calls in flight.
#[derive(Debug, Default)]
pub struct Orphans {
    engine: Option<container::Engine>,
    orphans: Vec<Running>,
    folders: Vec<PathBuf>,
    groups: Vec<PathBuf>,
    /// Containers of proxies that are not orphans: their proxy runs, or its state is unknown
    /// from here.
    pub stay: Vec<Orphan>,
    /// Reason why containers were not searched.
    pub unseen: Option<String>,
}

impl Orphans {
    /// Searches for orphans. Without an engine, records its error as the reason.
    pub async fn find(engine: Result<container::Engine, String>) -> Self {
        let mut found = Self::default();
        let listed = async {
            let engine = engine?;
            let all = engine.list().await.map_err(|fault| fault.to_string())?;
            Ok::<_, String>((engine, all))
        };
        match listed.await {
            Ok((engine, all)) => {
                let (orphans, stay): (Vec<_>, Vec<_>) =
                    all.into_iter().partition(|one| engine.is_orphan(one));
                found.stay = stay.iter().map(container).collect();
                found.orphans = orphans;
                found.engine = Some(engine);
            }
            Err(why) => found.unseen = Some(why),
        }
        found.folders = portcullis_vault::abandoned();
        found.groups = sandbox::groups_left();
        found
    }

    /// All orphans in the order of removal: secrets first.
    pub fn list(&self) -> Vec<Orphan> {
        let folders = self.folders.iter().map(|path| folder(OrphanKind::Secrets, path));
        let groups = self.groups.iter().map(|path| folder(OrphanKind::ControlGroup, path));
        folders.chain(self.orphans.iter().map(container)).chain(groups).collect()
    }

    /// Removes all orphans. Returns them, each with the error if its removal failed.
    pub async fn remove(self) -> Vec<Orphan> {
        let mut all = self.list();
        let Self { engine, orphans, folders, groups, stay: _, unseen: _ } = self;
        let mut failed = HashMap::new();
        for folder in folders {
            let removed = portcullis_vault::remove_abandoned(&folder);
            failed.extend(removed.err().map(|why| (folder.display().to_string(), why.to_string())));
        }
        if let Some(engine) = engine {
            for (container, removed) in engine.remove_containers(orphans).await {
                failed.extend(removed.err().map(|fault| (container.name, fault.to_string())));
            }
        }
        let end = Instant::now() + DYING;
        for group in groups {
            let removed = sandbox::remove_group(&group, end);
            failed.extend(removed.err().map(|why| (group.display().to_string(), why)));
        }
        for orphan in &mut all {
            orphan.error = failed.remove(&orphan.name);
        }
        all
    }
}

fn folder(kind: OrphanKind, path: &Path) -> Orphan {
    Orphan { kind, name: path.display().to_string(), server: None, error: None }
}

fn container(container: &Running) -> Orphan {
    Orphan {
        kind: match container.holds {
            Some(_) => OrphanKind::NetworkHolder,
            None => OrphanKind::Container,
        },
        name: container.name.clone(),
        server: Some(container.server.clone()),
        error: None,
    }
}
