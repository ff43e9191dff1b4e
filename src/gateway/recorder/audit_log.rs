//! Opens the audit log of a config.

use std::time::Duration;

use portcullis_audit::{Audit, Unavailable, config::OnFailure, proof};
use portcullis_config::Config;

/// Least number of audit log segments within `max-size`.
const SEGMENTS: u64 = 8;

/// Opens the audit log of a config.
pub(crate) async fn open(
    config: &Config,
    deadline: Duration,
    scrub: Option<portcullis_audit::Scrub>,
) -> Result<Audit, Unavailable> {
    let dir = config.audit.dir.clone().unwrap_or_else(|| config.state_dir.join("audit"));
    let unfit = |why: String| Unavailable::Unfit { dir: dir.clone(), why };
    let keys = tokio::task::spawn_blocking({
        let encryption = config.audit.encryption.clone();
        move || encryption.as_ref().map(portcullis_audit::Keys::fetch).transpose()
    });
    let keys = keys.await.map_err(|error| unfit(error.to_string()))?;
    let keys = keys.map_err(|(pointer, trouble)| {
        unfit(format!("`{}`: {trouble}", pointer.trim_start_matches('/').replace('/', ".")))
    })?;
    let pass = config.audit.on_failure == OnFailure::Pass;
    let checkpoints = checkpoints(config);
    let mut options = portcullis_audit::Options {
        deadline,
        scrub,
        keys,
        pass,
        checkpoints,
        ..Default::default()
    };
    if let Some(size) = config.audit.retention.max_size {
        // Segments are small enough that dropping one keeps most of the permitted size.
        options.segment_bytes = options.segment_bytes.min(size.0 / SEGMENTS);
    }
    let opened = tokio::task::spawn_blocking({
        let dir = dir.clone();
        move || Audit::open_with(&dir, options)
    });
    opened.await.unwrap_or_else(|error| Err(Unavailable::Broken { dir, why: error.to_string() }))
}

/// Settings of the audit log's checkpoints from the config.
fn checkpoints(config: &Config) -> proof::Settings {
    let portcullis_audit::config::Checkpoint { records, seconds } = config.audit.checkpoint;
    let witnesses =
        config.audit.witness.iter().filter_map(portcullis_audit::config::Witness::target).collect();
    let time = Duration::from_secs(seconds);
    proof::Settings { state: Some(config.state_dir.clone()), records, time, witnesses }
}
