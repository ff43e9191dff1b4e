//! Records that are written while no proxy is running.

use std::{sync::Arc, time::Duration};

use super::{
    audit_log::open,
    client_events::changed,
    startup_events::{config, version},
};
use portcullis_audit::{
    Scrub, Unavailable,
    record::{By, CommandUser, Event, ImageEvent, ProxyStartFailed},
};
use portcullis_config::Loaded;
use portcullis_interceptors::secrets::Scrubber;
use portcullis_protocol::identity::Change;

/// Time to wait for a store that a running proxy may have open.
const PATIENCE: Duration = Duration::from_secs(1);

/// Records the events of a start and then its failure, if the store is available.
pub async fn record_start_failure(loaded: &Loaded, happened: Vec<Event>, reason: String) {
    let last = ProxyStartFailed { version: version(), reason }.into();
    let all = [vec![config(loaded).into()], happened, vec![last]].concat();
    if let Err(error) = record_offline(loaded, all).await {
        tracing::warn!(%error, "failed start of the proxy could not be recorded");
    }
}

/// Records events while no proxy is running.
///
/// # Errors
/// [`Unavailable`], also if a proxy is running after all.
pub async fn record_offline(loaded: &Loaded, all: Vec<Event>) -> Result<(), Unavailable> {
    // No secret was read, so only secrets with a known form can be found.
    let scrub = Scrubber::new(&[])
        .ok()
        .map(|scrubber| -> Scrub { Arc::new(move |text: &mut String| scrubber.scrub(text)) });
    let audit = open(&loaded.config, PATIENCE, scrub).await?;
    for happening in all {
        // No calls happen here, so the record itself is required.
        audit.record_required(happening).await?;
    }
    Ok(())
}

/// Records changes of images while no proxy is running.
///
/// # Errors
/// As [`record_offline`]: then the remaining changes must not be made.
pub async fn record_images_offline(
    loaded: &Loaded,
    all: Vec<ImageEvent>,
    by: CommandUser,
) -> Result<(), Unavailable> {
    record_offline(loaded, all.into_iter().map(|done| done.by(by.clone())).collect()).await
}

/// Records a change of clients before it is made, while no proxy is running.
///
/// # Errors
/// As [`record_offline`]: then the change must not be made.
pub async fn record_client_offline(
    loaded: &Loaded,
    change: Change,
    by: By,
) -> Result<(), Unavailable> {
    record_offline(loaded, vec![changed(change, by)]).await
}
