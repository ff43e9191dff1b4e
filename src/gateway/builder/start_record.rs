//! Records of a start, also of a failed one.

use super::{GatewayBuilder, Purpose, StartFailure};
use crate::recorder::{
    record_start_failure,
    startup_events::{config, policies, version},
};
use portcullis_audit::{
    Audit, Unavailable,
    record::{PolicyRejected, ProxyStarted},
};
use portcullis_config::Loaded;

impl GatewayBuilder {
    /// Records the start, and returns the policy revision in that record. The proxy accepts
    /// messages only afterwards.
    pub(crate) async fn record(
        &self,
        loaded: &Loaded,
        audit: &Audit,
        purpose: Purpose,
    ) -> Result<portcullis_policy::Revision, Unavailable> {
        let dry_run = purpose == Purpose::DryRun;
        audit.record_event(ProxyStarted { version: version(), dry_run }).await?;
        audit.record_event(config(loaded)).await?;
        let status = self.policies.status().borrow().clone();
        audit.record_event(policies(&status)).await?;
        for plugin in &self.plugins {
            audit.record_event(plugin.clone()).await?;
        }
        Ok(status.revision)
    }
}

impl StartFailure {
    /// Records that the proxy did not start, if the store is available. Otherwise the failure is
    /// only logged.
    pub async fn record(&self, loaded: &Loaded) {
        let (reason, first) = match self {
            // The log itself is unavailable.
            Self::Audit(_) => return,
            Self::Config(found, happened) => {
                let all: Vec<_> = found.iter().map(ToString::to_string).collect();
                (all.join("\n"), happened.clone())
            }
            Self::Policies(diagnostics) => {
                let reason = diagnostics.to_string();
                (reason.clone(), vec![PolicyRejected { reason }.into()])
            }
            other => (other.to_string(), Vec::new()),
        };
        record_start_failure(loaded, first, reason).await;
    }
}
