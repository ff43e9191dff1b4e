//! `portcullis audit backup` and `portcullis audit prune`.

use std::path::PathBuf;

use super::{
    super::{Context, Exit},
    audit_source::{AuditSource, PATIENCE, absolute},
};
use portcullis_audit::{Backup, Pruned, RetentionReason};
use portcullis_gateway::admin::{BackupRequest, PruneRequest};
use portcullis_protocol::identity::Role;

#[derive(Debug, clap::Args)]
pub(super) struct PruneArgs {
    /// Print the records that would be deleted, without deleting them
    #[arg(long)]
    dry_run: bool,
}

/// Deletes the records beyond `audit.retention`.
pub(super) async fn prune(
    source: &AuditSource,
    ctx: &Context,
    args: PruneArgs,
) -> anyhow::Result<Exit> {
    let PruneArgs { dry_run } = args;
    let progress = ctx.progress("looking for segments to drop");
    let pruned: Pruned = match source {
        AuditSource::Proxy(client) => {
            client.post_json_slowly("/v1/audit/prune", &PruneRequest { dry_run }).await?
        }
        AuditSource::Files(files) => {
            files.permit(Role::Operator)?;
            files.prune(dry_run).await?
        }
    };
    drop(progress);
    if ctx.is_json() {
        ctx.json(&pruned)?;
        return Ok(Exit::Ok);
    }
    for dropped in &pruned.dropped {
        let done = if dry_run { "would drop" } else { "dropped" };
        let why = match dropped.why {
            RetentionReason::Age => "max-age",
            RetentionReason::Size => "max-size",
            RetentionReason::SizeUndelivered => "max-size, NOT YET EXPORTED",
        };
        ctx.line(format_args!(
            "{done} records {} to {} of {} to {} ({} KiB): {why}",
            dropped.first,
            dropped.last,
            dropped.from,
            dropped.to,
            dropped.bytes >> 10
        ))?;
    }
    if pruned.dropped.is_empty() {
        ctx.note("nothing to drop");
    }
    if let Some(held) = pruned.held {
        ctx.note(format_args!(
            "records from {held} on are too old, but a stream has not delivered them yet"
        ));
    }
    ctx.note(format_args!("{} KiB are left", pruned.bytes >> 10));
    Ok(Exit::Ok)
}

#[derive(Debug, clap::Args)]
pub(super) struct BackupArgs {
    /// An empty folder, or a folder with an earlier backup of this log
    #[arg(value_name = "DIR")]
    to: PathBuf,
}

/// Copies the log, through the running proxy if there is one.
pub(super) async fn backup(
    source: &AuditSource,
    ctx: &Context,
    args: BackupArgs,
) -> anyhow::Result<Exit> {
    let to = absolute(&args.to)?;
    let progress = ctx.progress("copying the audit log");
    let backup: Backup = match source {
        AuditSource::Proxy(client) => {
            client.post_json_slowly("/v1/audit/backup", &BackupRequest { to }).await?
        }
        AuditSource::Files(files) => {
            files.permit(Role::Auditor)?;
            portcullis_audit::back_up(&files.store, to, PATIENCE).await?
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
