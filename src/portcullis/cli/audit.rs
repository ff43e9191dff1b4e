//! `portcullis audit`: reads the audit log through the running proxy, which alone can open its
//! store. If no proxy runs, it reads the store itself.

mod audit_source;
mod export;
mod filter_args;
mod maintenance;
mod proof;
mod query;
mod render;
mod stats;

use anyhow::Context as _;
use serde_json::json;

use self::audit_source::{AuditSource, unavailable};
pub(super) use self::{
    audit_source::LogLocation,
    filter_args::{FilterArgs, LANGUAGE},
};
use super::{Context, Exit};
use portcullis_audit::{
    CountRequest, Counted, Line, Page, Query, Reader, StatsRequest, Summed, record::Entry,
};
use portcullis_gateway::admin::{Client, TailLine, TailRequest};
use portcullis_protocol::names::DecisionId;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    location: LogLocation,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show the newest records, or follow the log
    Tail {
        /// Print new records as they are written
        #[arg(short, long, visible_alias = "watch")]
        follow: bool,
        /// Number of records to show first
        #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
        lines: usize,
        #[command(flatten)]
        which: FilterArgs,
    },
    /// Search the log, and count records
    #[command(after_long_help = filter_args::LANGUAGE)]
    Query(query::Args),
    /// Show all records of one decision, with the rule that decided
    Show {
        /// The decision id, as shown to the agent
        #[arg(value_name = "ID")]
        decision: DecisionId,
    },
    /// Export records in a chosen format, oldest first
    #[command(after_long_help = filter_args::LANGUAGE)]
    Export(export::Args),
    /// Copy the log to a folder, also while the proxy runs; the copy can be verified and read
    Backup(maintenance::BackupArgs),
    /// Delete the records beyond `audit.retention`; their proofs stay
    Prune(maintenance::PruneArgs),
    /// Verify the log's files against each other and against its checkpoints
    Verify(proof::VerifyArgs),
    /// Write or check a proof that the records of a decision are in the log
    Prove(proof::ProveArgs),
    /// Write or check a proof that a later checkpoint extends an earlier one
    Consistency(proof::ConsistencyArgs),
    /// Make the running proxy sign a checkpoint now
    Checkpoint,
    /// Print the verifier key of the checkpoints
    Key,
    /// Summarize the log by client, tool, count and duration; default: the last 24 hours
    Stats(stats::Args),
}

/// Source of records.
pub(super) enum Source {
    Proxy(Client),
    Store(Reader),
}

impl Source {
    /// Opens a log.
    pub(super) async fn find(location: &LogLocation, ctx: &Context) -> anyhow::Result<Self> {
        let _progress = ctx.progress("opening the audit log");
        Self::open(location.find(ctx).await?).await
    }

    async fn open(location: AuditSource) -> anyhow::Result<Self> {
        Ok(match location {
            AuditSource::Proxy(client) => Self::Proxy(client),
            AuditSource::Files(files) => Self::Store(files.read().await?),
        })
    }

    /// The log's id.
    async fn id(&self) -> anyhow::Result<String> {
        Ok(match self {
            Self::Proxy(client) => client.get_json("/v1/audit/id").await?,
            Self::Store(reader) => reader.id().to_owned(),
        })
    }

    /// Page of records that match a query.
    pub(super) async fn query(&self, query: &Query) -> anyhow::Result<Page> {
        Ok(match self {
            Self::Proxy(client) => client.post_json("/v1/audit/query", query).await?,
            Self::Store(reader) => reader.query(query.clone()).await.map_err(unavailable)?,
        })
    }

    async fn count(&self, request: &CountRequest) -> anyhow::Result<Counted> {
        Ok(match self {
            Self::Proxy(client) => client.post_json("/v1/audit/count", request).await?,
            Self::Store(reader) => reader.count(request.clone()).await.map_err(unavailable)?,
        })
    }

    async fn stats(&self, request: &StatsRequest) -> anyhow::Result<Summed> {
        Ok(match self {
            Self::Proxy(client) => client.post_json("/v1/audit/stats", request).await?,
            Self::Store(reader) => reader.stats(request.clone()).await.map_err(unavailable)?,
        })
    }

    /// Records of a decision.
    pub(super) async fn show(&self, id: DecisionId) -> anyhow::Result<Page> {
        match self {
            Self::Proxy(client) => match client.get_json(&format!("/v1/audit/show/{id}")).await {
                Err(failure) if failure.is_not_found() => Ok(Page::default()),
                other => Ok(other?),
            },
            Self::Store(reader) => reader.show(id).await.map_err(unavailable),
        }
    }
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let source = async || Source::find(&args.location, ctx).await;
    match args.verb {
        Verb::Verify(verify) => proof::verify(&args.location, ctx, verify).await,
        Verb::Prove(prove) => proof::prove(&args.location, ctx, prove).await,
        Verb::Consistency(which) => proof::consistency(&args.location, ctx, which).await,
        Verb::Checkpoint => proof::checkpoint(&args.location, ctx).await,
        Verb::Key => proof::key(&args.location, ctx),
        Verb::Tail { follow, lines, which } => {
            let query = which.query()?;
            tail(&source().await?, ctx, query, lines, follow).await
        }
        Verb::Query(args) => {
            // Options are parsed first, so that a typing error needs no store.
            let options = args.read()?;
            query::run(&source().await?, ctx, options).await
        }
        Verb::Show { decision } => show(&source().await?, ctx, decision).await,
        Verb::Backup(backup) => {
            maintenance::backup(&args.location.find(ctx).await?, ctx, backup).await
        }
        Verb::Prune(prune) => maintenance::prune(&args.location.find(ctx).await?, ctx, prune).await,
        Verb::Export(args) => {
            let options = args.read()?;
            export::run(&source().await?, ctx, options).await
        }
        Verb::Stats(args) => {
            let options = args.read()?;
            stats::run(&source().await?, ctx, options).await
        }
    }
}

/// Reports the parts of the store that could not be read: the printed result is then incomplete.
pub(super) fn conclude(ctx: &Context, unreadable: &[String]) -> Exit {
    for what in unreadable {
        ctx.note(format_args!("warning: unreadable: {what}"));
    }
    if unreadable.is_empty() { Exit::Ok } else { Exit::Failure }
}

/// Parsed records of lines. A record of a newer version cannot be parsed, only passed on.
fn entries(lines: &[Line]) -> anyhow::Result<Vec<Entry>> {
    lines.iter().map(|line| line.entry().map_err(anyhow::Error::msg)).collect()
}

fn print(ctx: &Context, lines: &[Line]) -> anyhow::Result<()> {
    if ctx.is_json() {
        lines.iter().try_for_each(|line| ctx.canonical(line.json()))?;
    } else if lines.is_empty() {
        ctx.note("no records");
    } else {
        ctx.table(&render::HEADER, entries(lines)?.iter().map(render::row))?;
    }
    Ok(())
}

async fn tail(
    source: &Source,
    ctx: &Context,
    query: Query,
    lines: usize,
    follow: bool,
) -> anyhow::Result<Exit> {
    let client = match source {
        Source::Proxy(client) => client,
        Source::Store(reader) => {
            let page = reader.last(query, lines).await.map_err(unavailable)?;
            print(ctx, &page.lines)?;
            anyhow::ensure!(!follow, "there is nothing to follow: no proxy runs here");
            return Ok(conclude(ctx, &page.unreadable));
        }
    };
    let request = TailRequest { query, last: lines, follow };
    let mut stream = client.stream_lines("/v1/audit/tail", &request).await?;
    let mut unreadable = Vec::new();
    while let Some(line) = stream.next_json::<TailLine>().await {
        match line.context("the log can no longer be followed")? {
            TailLine::Record(line) if ctx.is_json() => ctx.canonical(line.json())?,
            TailLine::Record(line) => {
                ctx.line(render::line(&line.entry().map_err(anyhow::Error::msg)?))?;
            }
            TailLine::Missed(count) => ctx.note(format_args!(
                "warning: {count} records came too fast to be shown: `portcullis audit query` has them"
            )),
            TailLine::Unreadable(what) => unreadable.push(what),
        }
    }
    if follow {
        ctx.note("the proxy stopped");
    }
    Ok(conclude(ctx, &unreadable))
}

async fn show(source: &Source, ctx: &Context, id: DecisionId) -> anyhow::Result<Exit> {
    let page = source.show(id).await?;
    let exit = conclude(ctx, &page.unreadable);
    anyhow::ensure!(!page.lines.is_empty(), "there is no record of the decision {id}");
    if ctx.is_json() {
        ctx.json(&json!({ "id": id, "records": page.lines }))?;
    } else {
        for line in render::decision(&entries(&page.lines)?) {
            ctx.line(line)?;
        }
    }
    Ok(exit)
}
