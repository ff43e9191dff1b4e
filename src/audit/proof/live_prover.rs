//! Proofs from an open log.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::{
    Proof, Signer, Verifier,
    statement::{consist, include, keep},
};
use crate::{
    query::Archive,
    store::{Fault, SegmentInfo, SegmentSet},
};
use portcullis_protocol::names::DecisionId;

/// Reasons why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProveFault {
    #[error("there is no record of the decision {0}")]
    Unknown(DecisionId),
    #[error("there is no checkpoint of {0} records")]
    NoCheckpoint(u64),
    #[error(
        "no checkpoint covers these records yet, and none could be signed: the running proxy \
         signs them"
    )]
    Unsigned,
    #[error("{0}")]
    Store(String),
}

impl From<Fault> for ProveFault {
    fn from(fault: Fault) -> Self {
        Self::Store(fault.to_string())
    }
}

/// Builds proofs from the store.
#[derive(Clone)]
pub(crate) struct Prover {
    segment_set: Arc<SegmentSet>,
    archive: Archive,
}

impl Prover {
    pub fn new(segment_set: Arc<SegmentSet>, archive: Archive) -> Self {
        Self { segment_set, archive }
    }

    /// The store's own verifier keys. Checkers of a proof use their own key.
    fn keys(&self) -> Result<Vec<Verifier>, ProveFault> {
        let dir = self.segment_set.dir();
        crate::proof::key::read_verifiers(dir).map_err(|error| {
            ProveFault::Store(format!("the verifier key in {}: {error}", dir.display()))
        })
    }

    /// Proves that the records of a decision are in the log. `None` if no checkpoint covers all of
    /// them yet.
    pub async fn include(&self, id: DecisionId) -> Result<Option<Proof>, ProveFault> {
        let page = self.archive.show(id).await.map_err(|e| ProveFault::Store(e.to_string()))?;
        if page.lines.is_empty() {
            return Err(match page.unreadable.into_iter().next() {
                Some(what) => ProveFault::Store(what),
                None => ProveFault::Unknown(id),
            });
        }
        let seqs: Vec<u64> = page.lines.iter().map(|line| line.seq().0).collect();
        self.work(move |prover| {
            let view = prover.segment_set.view();
            let mut lines = Vec::new();
            for seq in seqs {
                lines.extend(view.lines(seq, 1)?);
            }
            Ok(include(prover.segment_set.dir(), &prover.keys()?, &view, &lines)?)
        })
        .await
    }

    /// Proves that the log with `from` records is a prefix of the log with `to` records.
    pub async fn consist(&self, from: u64, to: u64) -> Result<Proof, ProveFault> {
        self.work(move |prover| {
            let view = prover.segment_set.view();
            consist(prover.segment_set.dir(), &prover.keys()?, &view, (from, to)).map_err(|fault| {
                match fault {
                    Ok(size) => ProveFault::NoCheckpoint(size),
                    Err(fault) => fault.into(),
                }
            })
        })
        .await
    }

    /// Saves the hashes of a closed segment that proofs need. They are durable when this returns;
    /// then the segment's folder can be removed.
    pub fn keep(&self, signer: &Signer, segment: &SegmentInfo) -> Result<(), Fault> {
        keep(self.segment_set.dir(), signer, &self.segment_set.view(), segment)
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, ProveFault> + Send + 'static,
    ) -> Result<T, ProveFault> {
        let prover = self.clone();
        let done = spawn_blocking(move || work(&prover)).await;
        done.unwrap_or_else(|error| Err(ProveFault::Store(error.to_string())))
    }
}
