//! The audit log's retention: old segments are dropped while the proxy runs, and on demand.

use std::{sync::Arc, time::Duration};

use crate::{Gateway, builder};
use portcullis_audit::{Audit, Limits, PruneFault, Pruned};
use portcullis_config::Config;

/// How often it is looked whether segments are to be dropped.
const INTERVAL: Duration = Duration::from_secs(60);
/// How long another process may have the store.
const PATIENCE: Duration = Duration::from_secs(10);

impl Gateway {
    /// Drops the segments for which `audit.retention` leaves no room, or only names them.
    ///
    /// # Errors
    /// [`PruneFault`].
    pub async fn prune(&self, dry: bool) -> Result<Pruned, PruneFault> {
        let undelivered = self.exports.undelivered().map(|(_, seq)| seq);
        prune(&self.audit, &self.config, undelivered, dry).await
    }

    /// Does so again and again until the proxy closes.
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

/// The same for a log that no proxy has open.
///
/// # Errors
/// Where the log can't be opened, or as [`Proxy::prune`].
pub async fn prune_offline(config: &Config, dry: bool) -> anyhow::Result<Pruned> {
    let opened = builder::open(config, PATIENCE, None).await;
    let audit = opened.map_err(|fault| anyhow::anyhow!("{fault}: {}", fault.remedy()))?;
    // How far streams are is the proxy's to know: without one, none of their records goes by age.
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
