//! `portcullis audit verify`, `prove`, `consistency`, `checkpoint`, `key`.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context as _;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{
    super::{Context, Exit, Usage, signing_keys},
    audit_source::{AuditSource, Folders, LogLocation},
};
use portcullis_audit::proof::{
    Proof, ProofFault, Proven, Status, Verifier, read_verifiers,
    verify::{self, KeySource, Report, Request, Since},
};
use portcullis_gateway::admin::{Client, ConsistencyRequest, ProveRequest, VerifyRequest};
use portcullis_protocol::identity::Role;
use portcullis_protocol::names::DecisionId;

#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// Start at a trusted checkpoint: the newest with at most this number of records, or signed by
    /// this time (`2026-11-21`, `24h`), or one in a file
    #[arg(long, value_name = "SIZE|TIME|FILE")]
    since: Option<Since>,
    /// Verify the query indexes against the records, too
    #[arg(long)]
    indexes: bool,
    /// The verifier key, as printed by `portcullis audit key`, instead of the state folder's
    #[arg(long = "key", value_name = "KEY", value_parser = signing_keys::redacting_parser::<Verifier>())]
    keys: Vec<Verifier>,
    /// A file or syslog with checkpoints that were kept elsewhere. Without it, removal of the
    /// newest checkpoints of a copy (`--store`) cannot be detected
    #[arg(long = "witness", value_name = "FILE")]
    witnesses: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ProveArgs {
    /// The decision id, as shown to the agent
    #[arg(value_name = "ID", required_unless_present = "check", conflicts_with = "check")]
    decision: Option<DecisionId>,
    #[command(flatten)]
    checking: Checking,
}

#[derive(Debug, clap::Args)]
pub(super) struct ConsistencyArgs {
    /// The size of the earlier checkpoint
    #[arg(value_name = "FROM", required_unless_present = "check", conflicts_with = "check")]
    from: Option<u64>,
    /// The size of the later checkpoint
    #[arg(value_name = "TO", required_unless_present = "check", conflicts_with = "check")]
    to: Option<u64>,
    #[command(flatten)]
    checking: Checking,
}

#[derive(Debug, clap::Args)]
struct Checking {
    /// Check this proof instead of writing one; needs no store. `-` is standard input
    #[arg(long, value_name = "FILE", requires = "key")]
    check: Option<PathBuf>,
    /// The verifier key to check with
    #[arg(long, value_name = "KEY", value_parser = signing_keys::redacting_parser::<Verifier>())]
    key: Option<Verifier>,
}

/// Verifies the files of a log against its checkpoints. Reads the files itself if this user can,
/// even while a proxy runs. Only the process that has indexes open can verify them.
pub(super) async fn verify(
    location: &LogLocation,
    ctx: &Context,
    args: VerifyArgs,
) -> anyhow::Result<Exit> {
    let progress = ctx.progress("verifying the audit log");
    let began = Instant::now();
    let report = match ask(location, ctx, &args).await? {
        Some(client) => {
            if !args.witnesses.is_empty() {
                let why = "the running proxy does not read `--witness` files: verify a backup";
                return Err(Usage(why.into()).into());
            }
            let VerifyArgs { since, keys, indexes, .. } = args;
            let keys = keys.iter().map(ToString::to_string).collect();
            let request = VerifyRequest { since, keys, indexes };
            client.post_json_slowly("/v1/audit/verify", &request).await?
        }
        None => read_files(location, ctx, args).await?,
    };
    drop(progress);
    let took = began.elapsed();
    if ctx.is_json() {
        ctx.json(&report)?;
    } else {
        for finding in &report.findings {
            ctx.line(finding)?;
        }
        for note in &report.notes {
            ctx.note(format_args!("note: {note}"));
        }
        if report.omitted > 0 {
            ctx.note(format_args!("{} more findings are not listed", report.omitted));
        }
        ctx.line(summary(&report))?;
        let rate = report.records as f64 / took.as_secs_f64().max(0.001);
        ctx.note(format_args!("{:.1} s, {rate:.0} records a second", took.as_secs_f64()));
    }
    Ok(if report.is_good() { Exit::Ok } else { Exit::Findings })
}

/// Connection to the running proxy if it must verify: for indexes, for a given socket, or for files
/// that this user cannot read.
async fn ask(
    location: &LogLocation,
    ctx: &Context,
    args: &VerifyArgs,
) -> anyhow::Result<Option<Client>> {
    if location.store().is_some() {
        if args.indexes {
            return Err(Usage("a copy has no indexes: omit `--indexes` or `--store`".into()).into());
        }
        return Ok(None);
    }
    let readable = || {
        let files = location.folders(ctx).ok()?.files;
        files.permit(Role::Auditor).ok()?;
        match fs::read_dir(&files.store) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            _ => Some(()),
        }
    };
    if !location.names_socket() && !args.indexes && readable().is_some() {
        return Ok(None);
    }
    Ok(match location.find(ctx).await? {
        AuditSource::Proxy(client) => Some(client),
        AuditSource::Files(_) => None,
    })
}

async fn read_files(
    location: &LogLocation,
    ctx: &Context,
    args: VerifyArgs,
) -> anyhow::Result<Report> {
    let VerifyArgs { since, keys, witnesses, indexes } = args;
    let Folders { state_dir, files } = location.folders(ctx)?;
    // A copy needs only its store and, if it is encrypted, its keys.
    let state = location.store().is_none().then_some(state_dir);
    if state.is_some() {
        files.permit(Role::Auditor)?;
    }
    let (dir, encryption) = (files.store.clone(), files.keys()?);
    let request = Request { keys, witnesses, since, encryption, ..Request::of(dir, state) };
    let mut report = spawn_blocking(move || verify::verify(&request)).await??;
    if indexes {
        let reader = location.folders(ctx)?.files.read().await?;
        report.findings.extend(reader.check_indexes().await?);
    }
    Ok(report)
}

fn summary(report: &Report) -> String {
    let Report { store, first, end, checkpoints, findings, omitted, .. } = report;
    let records = match end.checked_sub(1) {
        Some(last) if first <= &last => format!("records {first} to {last}"),
        _ => "no records".to_owned(),
    };
    let signed = match &report.signed {
        Some(signed) if report.key_source != KeySource::None => {
            format!("signed up to record {} at {:.0}", signed.size.saturating_sub(1), signed.time)
        }
        _ => "no checkpoint holds".to_owned(),
    };
    let verdict = match findings.len() as u64 + omitted {
        0 => "nothing is wrong".to_owned(),
        1 => "1 finding".to_owned(),
        count => format!("{count} findings"),
    };
    format!("store {store}: {verdict}; {records}, {checkpoints} checkpoints, {signed}")
}

/// Proves that the records of a decision are in the log, or checks such a proof.
pub(super) async fn prove(
    location: &LogLocation,
    ctx: &Context,
    args: ProveArgs,
) -> anyhow::Result<Exit> {
    if let Some(id) = args.decision {
        let request = ProveRequest { id };
        let proof = match location.find(ctx).await? {
            AuditSource::Proxy(client) => client.post_json("/v1/audit/prove", &request).await?,
            AuditSource::Files(files) => {
                let reader = files.read().await?;
                reader.prove(id).await?.with_context(|| {
                    format!("no checkpoint has the records of {id} yet: start the proxy once")
                })?
            }
        };
        return print(ctx, &proof);
    }
    check(ctx, args.checking)
}

/// Proves that the log at one checkpoint is the beginning of the log at another, or checks such a
/// proof.
pub(super) async fn consistency(
    location: &LogLocation,
    ctx: &Context,
    args: ConsistencyArgs,
) -> anyhow::Result<Exit> {
    if let (Some(from), Some(to)) = (args.from, args.to) {
        if from > to {
            return Err(Usage(format!("{from} is larger than {to}")).into());
        }
        let request = ConsistencyRequest { from, to };
        let proof = match location.find(ctx).await? {
            AuditSource::Proxy(client) => {
                client.post_json("/v1/audit/consistency", &request).await?
            }
            AuditSource::Files(files) => files.read().await?.consistency(from, to).await?,
        };
        return print(ctx, &proof);
    }
    check(ctx, args.checking)
}

fn print(ctx: &Context, proof: &Proof) -> anyhow::Result<Exit> {
    // A proof is a file for another person: both formats print the same.
    ctx.json(proof)?;
    Ok(Exit::Ok)
}

fn check(ctx: &Context, checking: Checking) -> anyhow::Result<Exit> {
    let (Some(file), Some(key)) = (checking.check, checking.key) else {
        return Err(Usage("give a proof with `--check` and a key with `--key`".into()).into());
    };
    let text = read(&file).with_context(|| format!("`{}` can't be read", file.display()))?;
    let checked = Proof::parse(&text).and_then(|proof| proof.check(&key));
    if ctx.is_json() {
        ctx.json(&match &checked {
            Ok(proven) => json!({ "holds": true, "proven": proven }),
            Err(fault) => json!({ "holds": false, "why": fault.to_string() }),
        })?;
    } else {
        match &checked {
            Ok(proven) => show(ctx, proven)?,
            Err(fault) => ctx.line(format_args!("the proof does not hold: {fault}"))?,
        }
    }
    match checked {
        Ok(_) => Ok(Exit::Ok),
        Err(ProofFault::Malformed(_) | ProofFault::Version(_)) => Ok(Exit::Failure),
        Err(_) => Ok(Exit::Findings),
    }
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    /// Maximum bytes of a proof, far above every valid one.
    const LARGEST: u64 = 64 << 20;
    let mut text = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().take(LARGEST).read_to_end(&mut text)?;
    } else {
        fs::File::open(file)?.take(LARGEST).read_to_end(&mut text)?;
    }
    Ok(text)
}

fn show(ctx: &Context, proven: &Proven) -> std::io::Result<()> {
    match proven {
        Proven::Inclusion { origin, signed, lines } => {
            for line in lines {
                ctx.line(line)?;
            }
            ctx.line(format_args!(
                "the proof holds: in the log {origin} of {} records, signed at {:.0}",
                signed.size, signed.time
            ))
        }
        Proven::Consistency { origin, from, to } => ctx.line(format_args!(
            "the proof holds: the log {origin} of {} records, signed at {:.0}, begins with that of \
             {} records, signed at {:.0}",
            to.size, to.time, from.size, from.time
        )),
    }
}

/// Makes the running proxy sign a checkpoint.
pub(super) async fn checkpoint(location: &LogLocation, ctx: &Context) -> anyhow::Result<Exit> {
    let AuditSource::Proxy(client) = location.find(ctx).await? else {
        anyhow::bail!("no proxy runs here: a running one makes checkpoints, and one when it stops");
    };
    let status: Status = client.post_json("/v1/audit/checkpoint", &json!({})).await?;
    if ctx.is_json() {
        ctx.json(&status)?;
    } else {
        ctx.verbatim(&status.note)?;
    }
    Ok(Exit::Ok)
}

/// Prints the verifier key.
pub(super) fn key(location: &LogLocation, ctx: &Context) -> anyhow::Result<Exit> {
    let Folders { state_dir, files } = location.folders(ctx)?;
    let keys = [&state_dir, &files.store]
        .into_iter()
        .map(|dir| read_verifiers(dir))
        .find(|keys| !matches!(keys, Ok(keys) if keys.is_empty()))
        .transpose()
        .context("the verifier key can't be read")?
        .unwrap_or_default();
    anyhow::ensure!(
        !keys.is_empty(),
        "there is no key yet: it is made when the proxy starts first"
    );
    if ctx.is_json() {
        ctx.json(&keys.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    } else {
        for key in &keys {
            ctx.line(key)?;
        }
    }
    Ok(Exit::Ok)
}
