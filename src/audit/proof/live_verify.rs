//! Verification of a log that is open, by who has it open.

use tokio::task::spawn_blocking;

use super::{
    Verifier,
    verify::{self, Fault, Finding, Report, Request, Since},
};
use crate::{Audit, Reader, store::SegmentSet};

/// What is to be verified of a log that is open.
#[derive(Debug, Clone, Default)]
pub struct Verification {
    /// Begin at a checkpoint, and take it as given.
    pub since: Option<Since>,
    /// Verifier keys, instead of the log's own.
    pub keys: Vec<Verifier>,
    /// Hold the indexes against the records, too.
    pub indexes: bool,
}

async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let done = spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Fault::Store(error.to_string())))
}

impl Audit {
    /// Verifies the log. One at a time: it takes all processors that there are.
    ///
    /// # Errors
    /// As [`verify::verify`].
    pub async fn verify(&self, verification: Verification) -> Result<Report, Fault> {
        let turn = self.verifying().clone().lock_owned().await;
        let Verification { since, keys, indexes } = verification;
        let (state, encryption) = self.verified_with();
        let request =
            Request { since, keys, encryption, ..Request::of(self.dir().to_owned(), state) };
        let shelf = self.shelf().clone();
        run(move || {
            // Held to the end of the work, also where nobody waits for it any more.
            let _turn = turn;
            let mut report = verify::verify(&request)?;
            if indexes {
                report.findings.extend(verify::indexes(&shelf.view()));
            }
            Ok(report)
        })
        .await
    }
}

impl Reader {
    /// Holds the indexes against the records.
    ///
    /// # Errors
    /// Where the work itself fails.
    pub async fn check_indexes(&self) -> Result<Vec<Finding>, Fault> {
        let shelf: std::sync::Arc<SegmentSet> = self.shelf().clone();
        run(move || Ok(verify::indexes(&shelf.view()))).await
    }
}
