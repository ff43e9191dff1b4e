//! The running proxy: its components and its shutdown.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::{Admission, ConcurrencyPermit},
    approval::Approvals,
    clients::Clients,
    pipeline::{ExchangeHandle, Pipeline},
    recorder::{self, Recorder},
    router::Router,
    server_requests::ServerRequests,
    servers::Servers,
    session::Sessions,
    stages::Caller,
};
use portcullis_audit::{Audit, PruneFault, Pruned, export::Streams};
use portcullis_chain::Party;
use portcullis_config::Config;
use portcullis_foundation::fair_tasks::FairTasks;
use portcullis_protocol::codec::{Caps, Frame};
use portcullis_telemetry::Metrics;
use portcullis_upstream::Launcher;

/// Time for calls in flight to end when the proxy stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to record the last counts when the proxy stops.
const COUNTS_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for exports to deliver the last records when the proxy stops.
const LAST_EXPORT: Duration = Duration::from_secs(5);
/// Interval between checks for idle servers and sessions.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);
/// Interval between two checks for audit segments to drop.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

/// The running proxy.
pub struct Gateway {
    pub config: Arc<Config>,
    pub router: Arc<Router>,
    pub sessions: Arc<Sessions>,
    pub audit: Audit,
    /// The exports of audit records.
    pub exports: Streams,
    pub metrics: Arc<Metrics>,
    pub policies: Arc<portcullis_policy::Engine>,
    pub launcher: Arc<Launcher>,
    /// Calls that wait for approval.
    pub approvals: Arc<Approvals>,
    pub admission: Arc<Admission>,
    pub clients: Arc<Clients>,
    pub servers: Arc<Servers>,
    pub recorder: Arc<Recorder>,
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) server_requests: Arc<ServerRequests>,
    /// Returns freed memory of large messages to the system.
    /// Tasks of clients' connections and messages.
    pub fair_tasks: FairTasks<Party>,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
}

impl Gateway {
    /// The handling of a message, under the permit that its principal acquired for it. It advances
    /// while its work is polled. Dropping the work does not cancel it.
    pub fn start(&self, caller: Caller, frame: Frame, permit: ConcurrencyPermit) -> ExchangeHandle {
        self.pipeline.start(caller, frame, permit)
    }

    /// Limits of a client's message.
    pub fn request_caps(&self) -> Caps {
        self.config.limits.request_caps()
    }

    /// Cancelled when the proxy accepts no more messages.
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// Ends idle servers and sessions until the proxy stops.
    pub(crate) async fn sweep(self: Arc<Self>) {
        let mut tick = tokio::time::interval(SWEEP_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.closing.cancelled() => return,
            }
            self.recorder.summarize_refusals(false).await;
            self.recorder.record_drops().await;
            self.sessions.sweep();
            self.server_requests.suspended.sweep();
            self.metrics.sessions(self.sessions.count());
            self.servers.sweep().await;
        }
    }

    /// Reads the resource usage of running servers and the record counts for the metrics.
    pub async fn read_usage(&self) {
        self.metrics.audit_records(self.audit.written());
        let (gap, missed) = self.audit.missed();
        self.metrics.audit_missed(missed, gap.is_some());
        self.metrics.audit_unsigned(self.audit.checkpoints().failing.is_some());
        self.exports.measure();
        self.servers.read_usage().await;
    }

    /// Drops the segments that `audit.retention` leaves no room for. With `dry`, only lists them.
    ///
    /// # Errors
    /// [`PruneFault`].
    pub async fn prune(&self, dry: bool) -> Result<Pruned, PruneFault> {
        let undelivered = self.exports.undelivered().map(|(_, seq)| seq);
        recorder::prune(&self.audit, &self.config, undelivered, dry).await
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
                () = tokio::time::sleep(RETENTION_INTERVAL) => {}
                () = self.closing.cancelled() => return,
            }
        }
    }

    /// Stops the proxy: refuses new messages, waits for those in flight, and ends the servers.
    pub async fn close(&self, reason: &str) {
        self.closing.cancel();
        self.server_requests.suspended.clear();
        self.tasks.close();
        let began = Instant::now();
        if tokio::time::timeout(DRAIN_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!(under_way = self.tasks.len(), "calls still in flight at shutdown");
        } else {
            tracing::debug!(took = ?began.elapsed(), "all calls ended");
        }
        self.server_requests.suspended.clear();
        self.servers.close().await;
        let counts = async {
            self.recorder.summarize_refusals(true).await;
            self.recorder.record_drops().await;
        };
        if tokio::time::timeout(COUNTS_TIMEOUT, counts).await.is_err() {
            tracing::error!("last counts of refusals and dropped messages not recorded");
        }
        let what = portcullis_audit::record::ProxyStopped { reason: Some(reason.to_owned()) };
        if let Err(error) = self.audit.record_event(what).await {
            tracing::error!(%error, "shutdown could not be recorded");
        }
        self.exports.finish(LAST_EXPORT).await;
    }
}
