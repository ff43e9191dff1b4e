//! A proxy that runs in the background, started for a client that found none.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    process::Command,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use portcullis_config::Loaded;
use portcullis_gateway::admin::Client;

/// Maximum time until a started proxy answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two checks whether it answers.
const PAUSE: Duration = Duration::from_millis(50);
/// Files in the state folder: the log of a proxy in the background, and the lock of the process that
/// starts it.
const LOG: &str = "background.log";
const LOCK: &str = "background.lock";

/// Starts a proxy with the config `path`, unless another process has started one, and waits until
/// it answers. The proxy continues after this process and its terminal.
///
/// # Errors
/// No proxy answers within [`START_TIMEOUT`].
pub async fn start(path: &Path, loaded: &Loaded) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    let path = std::path::absolute(path)?;
    let state_dir = &loaded.config.state_dir;
    let unusable = || format!("cannot make the state folder {}", state_dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir).with_context(unusable)?;
    let lock = own_file(&state_dir.join(LOCK))?;
    // Several clients begin at the same time. The lock is held until this function ends.
    let _lock = spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    if Client::find(&loaded.config).await.is_some() {
        return Ok(());
    }
    let log = state_dir.join(LOG);
    let open = own_file(&log)?;
    let mut child = Command::new(program)
        .args(["run", "--config"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(open)
        // Ctrl-C in the client's terminal is not meant for it.
        .process_group(0)
        .spawn()
        .context("cannot start the proxy")?;
    let end = Instant::now() + START_TIMEOUT;
    loop {
        let ended = child.try_wait()?;
        if Client::find(&loaded.config).await.is_some() {
            return Ok(());
        }
        if let Some(status) = ended {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let begin = text.rfind("\nerror: ").map_or(0, |at| at + 1);
            let why = text.get(begin..).filter(|why| why.starts_with("error: "));
            let why = why.map(str::trim_end).unwrap_or("no error is in the log");
            bail!("the proxy did not start ({status}): {why}\nIts log is {}", log.display());
        }
        if Instant::now() >= end {
            bail!("the proxy does not answer yet: see {}", log.display());
        }
        sleep(PAUSE).await;
    }
}

/// Opens a file of this user for appending.
fn own_file(path: &Path) -> anyhow::Result<File> {
    let open = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    open.with_context(|| format!("cannot write {}", path.display()))
}
