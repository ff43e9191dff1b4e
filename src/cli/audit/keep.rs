//! `portcullis audit backup`.

use std::path::PathBuf;

use super::{
    super::{Context, Exit},
    place::{PATIENCE, Place, absolute},
};
use crate::{
    admin::{BackupRequest, Role},
    audit::{self, Backup},
};

#[derive(Debug, clap::Args)]
pub(super) struct BackupArgs {
    /// An empty folder, or one with an earlier backup of this log
    #[arg(value_name = "DIR")]
    to: PathBuf,
}

/// Copies the log, through the running proxy where there is one.
pub(super) async fn backup(place: &Place, ctx: &Context, args: BackupArgs) -> anyhow::Result<Exit> {
    let to = absolute(&args.to)?;
    let progress = ctx.progress("copying the audit log");
    let backup: Backup = match place {
        Place::Proxy(client) => {
            client.post_json_slowly("/v1/audit/backup", &BackupRequest { to }).await?
        }
        Place::Files(files) => {
            files.permit(Role::Operator)?;
            audit::back_up(&files.store, to, PATIENCE).await?
        }
    };
    drop(progress);
    if ctx.is_json() {
        ctx.json(&backup)?;
        return Ok(Exit::Ok);
    }
    let to = backup.to.display();
    let Backup { copied, kept, bytes, .. } = backup;
    match backup.last {
        Some(last) => ctx.line(format_args!("{to} has the log up to record {last}"))?,
        None => ctx.line(format_args!("{to} has the log, which has no records"))?,
    }
    ctx.note(format_args!(
        "{bytes} bytes of {copied} segments copied, {kept} segments were there; the key that signs \
         checkpoints is not in it"
    ));
    Ok(Exit::Ok)
}
