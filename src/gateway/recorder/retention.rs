//! Retention of the audit log: drops old segments, periodically and on demand.

use std::{sync::Arc, time::Duration};

use crate::{Gateway, builder};
use portcullis_audit::{Audit, Limits, PruneFault, Pruned};
use portcullis_config::Config;

/// Interval between two checks for segments to drop.
const INTERVAL: Duration = Duration::from_secs(60);
/// Time for which another process may have the store locked.
const PATIENCE: Duration = Duration::from_secs(10);

impl Gateway {
    /// Drops the segments that `audit.retention` leaves no room for. With `dry`, only lists them.
    ///
    /// # Errors
    /// [`PruneFault`].
    pub async fn prune(&self, dry: bool) -> Result<Pruned, PruneFault> {
        let undelivered = self.exports.undelivered().map(|(_, seq)| seq);
        prune(&self.audit, &self.config, undelivered, dry).await
    }

    /// Prunes periodically until the proxy stops.
    pub(crate) async fn run_retention(self: Arc<Self>) {
        let retention = &self.config.audit.retention;
        if retention.max_age.is_none() && retention.max_size.is_none() {
            return;
        }
        loop {
            match self.prune(false).await {
                Ok(Pruned { held: Some(held), .. }) => tracing::warn!(
                    held,
                    "audit records older than `audit.retention.max-age` are kept until they are exported"
                ),
                Ok(_) => {}
                Err(fault) => tracing::error!(%fault, "`audit.retention` could not be applied"),
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.closing.cancelled() => return,
            }
        }
    }
}

/// Prunes a log that no running proxy has open.
///
/// # Errors
/// If the log cannot be opened, or as [`Gateway::prune`].
pub async fn prune_offline(config: &Config, dry: bool) -> anyhow::Result<Pruned> {
    let opened = builder::open(config, PATIENCE, None).await;
    let audit = opened.map_err(|fault| anyhow::anyhow!("{fault}: {}", fault.remedy()))?;
    // Only a proxy knows the progress of exports. Without one, their records do not expire by age.
    let undelivered = (!config.audit.export.is_empty()).then_some(0);
    Ok(prune(&audit, config, undelivered, dry).await?)
}

async fn prune(
    audit: &Audit,
    config: &Config,
    undelivered: Option<u64>,
    dry: bool,
) -> Result<Pruned, PruneFault> {
    audit.prune(Limits::from(&config.audit.retention), undelivered, dry).await
}
