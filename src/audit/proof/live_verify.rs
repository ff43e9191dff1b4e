//! Verification of an open log by its own process.

use tokio::task::spawn_blocking;

use super::{
    Verifier,
    verify::{self, Fault, Finding, Report, Request, Since},
};
use crate::{Audit, Reader, store::SegmentSet};

/// Options for the verification of an open log.
#[derive(Debug, Clone, Default)]
pub struct Verification {
    /// Checkpoint to begin at. It is trusted.
    pub since: Option<Since>,
    /// Verifier keys, instead of the log's own keys.
    pub keys: Vec<Verifier>,
    /// Whether to compare the indexes with the records too.
    pub indexes: bool,
}

async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let done = spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Fault::Store(error.to_string())))
}

impl Audit {
    /// Verifies the log. Only one verification runs at a time: it uses all processors.
    ///
    /// # Errors
    /// As for [`verify::verify`].
    pub async fn verify(&self, verification: Verification) -> Result<Report, Fault> {
        let turn = self.verifying().clone().lock_owned().await;
        let Verification { since, keys, indexes } = verification;
        let (state, encryption) = self.verified_with();
        let request =
            Request { since, keys, encryption, ..Request::of(self.dir().to_owned(), state) };
        let segment_set = self.segment_set().clone();
        run(move || {
            // Held until the work ends, even if the caller stops waiting.
            let _turn = turn;
            let mut report = verify::verify(&request)?;
            if indexes {
                report.findings.extend(verify::indexes(&segment_set.view()));
            }
            Ok(report)
        })
        .await
    }
}

impl Reader {
    /// Compares the indexes with the records.
    ///
    /// # Errors
    /// If the comparison itself fails.
    pub async fn check_indexes(&self) -> Result<Vec<Finding>, Fault> {
        let segment_set: std::sync::Arc<SegmentSet> = self.segment_set().clone();
        run(move || Ok(verify::indexes(&segment_set.view()))).await
    }
}
