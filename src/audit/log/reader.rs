//! The reader for a store without a running proxy.

use std::{fmt, ops::Deref, path::Path, sync::Arc, time::Duration};

use super::open::{broken, identify, lock};
use crate::{
    digest::DigestKey,
    maintenance::Keys,
    proof::{Proof, ProveFault, Prover},
    query::Archive,
    store::{IndexTrust, Lock, Mode, Opening, SegmentSet},
    unavailable::Unavailable,
};
use portcullis_protocol::names::DecisionId;

/// A store that is open for reading only, without a running proxy.
pub struct Reader {
    id: String,
    archive: Archive,
    segment_set: Arc<SegmentSet>,
    _lock: Lock,
}

impl Reader {
    /// Opens the store in `dir`, waiting at most `deadline` for its lock. Creates no files.
    ///
    /// # Errors
    /// [`Unavailable::Missing`] if there is no store; otherwise as for [`Audit::open`](crate::Audit::open).
    pub fn open(dir: &Path, deadline: Duration, keys: Option<&Keys>) -> Result<Self, Unavailable> {
        if !dir.join("segments").is_dir() {
            return Err(Unavailable::Missing { dir: dir.to_owned() });
        }
        let held = lock(dir, deadline)?;
        let (manifest, cipher) = identify(dir, keys)?;
        let key = DigestKey::for_reading(dir, cipher.as_deref()).map_err(broken(dir))?;
        // The reader signs nothing, so it does not need the tree before the first record.
        let (mode, trust, dropped) = (Mode::Read, IndexTrust::Believe, &|_| None);
        let opening = Opening { key, cipher, mode, trust, earlier_damage: None, dropped };
        let opened = SegmentSet::open(dir, opening)
            .map_err(|fault| Unavailable::of(fault, dir.to_owned(), 0))?;
        let segment_set = opened.segment_set;
        let archive = Archive::new(segment_set.clone());
        Ok(Self { id: manifest.id, archive, segment_set, _lock: held })
    }

    /// Id of the store: the name of its hash chain.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn segment_set(&self) -> &Arc<SegmentSet> {
        &self.segment_set
    }

    fn prover(&self) -> Prover {
        Prover::new(self.segment_set.clone(), self.archive.clone())
    }

    /// Proves that the records of a decision are in the log. `None` if no checkpoint has them.
    ///
    /// # Errors
    /// [`ProveFault`], if there is no proof.
    pub async fn prove(&self, id: DecisionId) -> Result<Option<Proof>, ProveFault> {
        self.prover().include(id).await
    }

    /// As [`Audit::consistency`](crate::Audit::consistency).
    ///
    /// # Errors
    /// [`ProveFault`], if there is no proof.
    pub async fn consistency(&self, from: u64, to: u64) -> Result<Proof, ProveFault> {
        self.prover().consist(from, to).await
    }
}

impl Deref for Reader {
    type Target = Archive;

    fn deref(&self) -> &Archive {
        &self.archive
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
