//! `portcullis audit`: reads the audit log, through the running proxy where there is one (it alone
//! can open its store), else from the store itself.

mod keep;
mod place;
mod proof;
mod render;

use anyhow::Context as _;
use jiff::{Span, Timestamp, Zoned, civil::DateTime, tz::TimeZone};
use serde_json::json;

use self::place::{Place, Where, unavailable};
use super::{Context, Exit};
use crate::{
    admin::{Client, TailLine, TailRequest},
    audit::{
        Filter, Order, PAGE_MAX, Page, Reader, Seq,
        record::{Decision, Entry},
    },
    names::DecisionId,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    place: Where,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show the newest records, and follow the log
    Tail {
        /// Go on with records as they are written
        #[arg(short, long)]
        follow: bool,
        /// How many records to begin with
        #[arg(short = 'n', long, default_value_t = 20, value_name = "N")]
        lines: usize,
        #[command(flatten)]
        which: Which,
    },
    /// Search the log
    Query {
        #[command(flatten)]
        which: Which,
        /// How many records to show
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
        /// Begin behind this record: the number that the query before ended with
        #[arg(long, value_name = "SEQ")]
        after: Option<Seq>,
        /// The oldest records first
        #[arg(long)]
        oldest_first: bool,
    },
    /// Show everything on record of one decision, with the rule that decided
    Show {
        /// The decision's id, as the agent was given it
        #[arg(value_name = "ID")]
        decision: DecisionId,
    },
    /// Copy the log, also while the proxy runs, to a folder that can be verified and opened
    Backup(keep::BackupArgs),
    /// Drop the records that `audit.retention` leaves no room for; their proofs stay
    Prune(keep::PruneArgs),
    /// Hold the log's files against each other and against its checkpoints
    Verify(proof::VerifyArgs),
    /// Prove that the records of a decision are in the log, or check such a proof
    Prove(proof::ProveArgs),
    /// Prove that the log at one checkpoint begins with that at another, or check such a proof
    Consistency(proof::ConsistencyArgs),
    /// Have the running proxy sign a checkpoint now
    Checkpoint,
    /// Print the key that checkpoints are checked with
    Key,
}

/// Which records.
#[derive(Debug, Clone, clap::Args)]
struct Which {
    /// The client's name, `local:USER` or `anonymous`
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// The server's name
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// The tool's name on its server
    #[arg(long, value_name = "NAME")]
    tool: Option<String>,
    /// The method, such as `tools/call`
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// What was decided
    #[arg(long, value_enum, value_name = "DECISION")]
    decision: Option<Decision>,
    /// The code of the refusal, such as `policy-denied`
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// From this time on: `2026-11-21T08:00:00Z`, or a while ago: `90m`, `24h`, `7d`
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Up to this time, given like `--since`
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// Show intents also where their outcome is on record
    #[arg(long)]
    intents: bool,
}

impl From<Which> for Filter {
    fn from(which: Which) -> Self {
        let Which { client, server, tool, method, decision, code, since, until, intents } = which;
        Self {
            client,
            server,
            tool,
            method,
            decision,
            code,
            since,
            until,
            intents,
            ..Self::default()
        }
    }
}

/// A time, a local date and time, or a while ago.
fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(ago) = text.parse::<Span>()
        && let Ok(time) = Zoned::now().checked_sub(ago.abs())
    {
        return Ok(time.timestamp());
    }
    if let Ok(local) = text.parse::<DateTime>()
        && let Ok(time) = local.to_zoned(TimeZone::system())
    {
        return Ok(time.timestamp());
    }
    Err("give a time such as 2026-11-21T08:00:00Z, a local date such as 2026-11-21, or a while \
         ago such as 90m, 24h or 7d"
        .into())
}

/// Where records are read.
enum Source {
    Proxy(Client),
    Store(Reader),
}

impl Source {
    async fn open(place: Place) -> anyhow::Result<Self> {
        Ok(match place {
            Place::Proxy(client) => Self::Proxy(client),
            Place::Files(files) => Self::Store(files.read().await?),
        })
    }

    async fn query(&self, filter: &Filter) -> anyhow::Result<Page> {
        Ok(match self {
            Self::Proxy(client) => client.post_json("/v1/audit/query", filter).await?,
            Self::Store(reader) => reader.query(filter.clone()).await.map_err(unavailable)?,
        })
    }

    async fn show(&self, id: DecisionId) -> anyhow::Result<Page> {
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
    let read = async || {
        let _progress = ctx.progress("opening the audit log");
        Source::open(args.place.find(ctx).await?).await
    };
    match args.verb {
        Verb::Verify(verify) => proof::verify(&args.place, ctx, verify).await,
        Verb::Prove(prove) => proof::prove(&args.place, ctx, prove).await,
        Verb::Consistency(which) => proof::consistency(&args.place, ctx, which).await,
        Verb::Checkpoint => proof::checkpoint(&args.place, ctx).await,
        Verb::Key => proof::key(&args.place, ctx),
        Verb::Tail { follow, lines, which } => {
            tail(&read().await?, ctx, which.into(), lines, follow).await
        }
        Verb::Query { which, limit, after, oldest_first } => {
            let order = if oldest_first { Order::OldestFirst } else { Order::NewestFirst };
            let filter = Filter { order, after, ..which.into() };
            query(&read().await?, ctx, filter, limit).await
        }
        Verb::Show { decision } => show(&read().await?, ctx, decision).await,
        Verb::Backup(backup) => keep::backup(&args.place.find(ctx).await?, ctx, backup).await,
        Verb::Prune(prune) => keep::prune(&args.place.find(ctx).await?, ctx, prune).await,
    }
}

/// Says which parts of the store could not be read: what was printed is then not the whole answer.
fn conclude(ctx: &Context, unreadable: &[String]) -> Exit {
    for what in unreadable {
        ctx.note(format_args!("warning: unreadable: {what}"));
    }
    if unreadable.is_empty() { Exit::Ok } else { Exit::Failure }
}

async fn query(
    source: &Source,
    ctx: &Context,
    mut filter: Filter,
    limit: usize,
) -> anyhow::Result<Exit> {
    let mut found = Page::default();
    let progress = ctx.progress("searching the audit log");
    loop {
        filter.limit = Some((limit - found.entries.len()).clamp(1, PAGE_MAX));
        let page = source.query(&filter).await?;
        if ctx.is_json() {
            for entry in &page.entries {
                ctx.json_line(entry)?;
            }
        }
        found.entries.extend(page.entries);
        found.unreadable.extend(page.unreadable);
        found.next = page.next;
        filter.after = page.next;
        if found.next.is_none() || found.entries.len() >= limit {
            break;
        }
    }
    drop(progress);
    if !ctx.is_json() {
        print(ctx, &found.entries)?;
    }
    if let Some(next) = found.next {
        ctx.note(format_args!("there may be more: --after {next}"));
    }
    Ok(conclude(ctx, &found.unreadable))
}

fn print(ctx: &Context, entries: &[Entry]) -> anyhow::Result<()> {
    if entries.is_empty() {
        ctx.note("no records");
    } else {
        ctx.table(&render::HEADER, entries.iter().map(render::row))?;
    }
    Ok(())
}

async fn tail(
    source: &Source,
    ctx: &Context,
    filter: Filter,
    lines: usize,
    follow: bool,
) -> anyhow::Result<Exit> {
    let client = match source {
        Source::Proxy(client) => client,
        Source::Store(reader) => {
            let page = reader.last(filter, lines).await.map_err(unavailable)?;
            for entry in page.entries.iter().filter(|_| ctx.is_json()) {
                ctx.json_line(entry)?;
            }
            if !ctx.is_json() {
                print(ctx, &page.entries)?;
            }
            anyhow::ensure!(!follow, "there is nothing to follow: no proxy runs here");
            return Ok(conclude(ctx, &page.unreadable));
        }
    };
    let request = TailRequest { filter, last: lines, follow };
    let mut stream = client.stream_lines("/v1/audit/tail", &request).await?;
    let mut unreadable = Vec::new();
    while let Some(line) = stream.next_json::<TailLine>().await {
        match line.context("the log can no longer be followed")? {
            TailLine::Entry(entry) if ctx.is_json() => ctx.json_line(&entry)?,
            TailLine::Entry(entry) => ctx.line(render::line(&entry))?,
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
    anyhow::ensure!(!page.entries.is_empty(), "there is no record of the decision {id}");
    if ctx.is_json() {
        ctx.json(&json!({ "id": id, "records": page.entries }))?;
    } else {
        for line in render::decision(&page.entries) {
            ctx.line(line)?;
        }
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_local_or_ago() {
        assert_eq!(
            moment("2026-11-21T08:00:00Z").unwrap(),
            Timestamp::from_second(1_795_248_000).unwrap()
        );
        for ago in ["90m", "24h", "7d", "1h30m", "2 weeks"] {
            assert!(moment(ago).unwrap() < Timestamp::now(), "{ago}");
        }
        assert!(moment("2026-11-21").is_ok() && moment("2026-11-21T08:00").is_ok());
        for nonsense in ["", "yesterday", "5", "1x", "99999999999y"] {
            assert!(moment(nonsense).is_err(), "{nonsense}");
        }
    }
}
