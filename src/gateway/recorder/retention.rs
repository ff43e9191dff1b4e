//! Retention of the audit log: drops old segments, periodically and on demand.

use std::time::Duration;

use super::audit_log::open;
use portcullis_audit::{Audit, Limits, PruneFault, Pruned};
use portcullis_config::Config;

/// Time for which another process may have the store locked.
const PATIENCE: Duration = Duration::from_secs(10);

/// Prunes a log that no running proxy has open.
///
/// # Errors
/// If the log cannot be opened, or as [`prune`].
pub async fn prune_offline(config: &Config, dry: bool) -> anyhow::Result<Pruned> {
    let opened = open(config, PATIENCE, None).await;
    let audit = opened.map_err(|fault| anyhow::anyhow!("{fault}: {}", fault.remedy()))?;
    // Only a proxy knows the progress of exports. Without one, their records do not expire by age.
    let undelivered = (!config.audit.export.is_empty()).then_some(0);
    Ok(prune(&audit, config, undelivered, dry).await?)
}

/// Drops the segments that `audit.retention` leaves no room for, except undelivered records. With
/// `dry`, only lists them.
pub(crate) async fn prune(
    audit: &Audit,
    config: &Config,
    undelivered: Option<u64>,
    dry: bool,
) -> Result<Pruned, PruneFault> {
    audit.prune(Limits::from(&config.audit.retention), undelivered, dry).await
}
