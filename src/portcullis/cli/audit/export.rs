//! `portcullis audit export`: writes records of the log in one of the formats, oldest first.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

use anyhow::Context as _;

use super::{Source, conclude, filter_args::FilterArgs};
use crate::cli::{Context, Exit};
use portcullis_audit::{
    Order, PAGE_MAX, Query,
    export::{Format, Item, Origin, Writer},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: FilterArgs,
    /// Output format of the records
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Jsonl)]
    format_out: Format,
    /// Write to this new file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Parsed options of an export.
pub(super) struct ExportOptions {
    query: Query,
    format: Format,
    output: Option<PathBuf>,
}

impl Args {
    /// Parses the options.
    pub fn read(self) -> anyhow::Result<ExportOptions> {
        let query = Query {
            // An export is complete: it includes all intents.
            intents: true,
            order: Order::OldestFirst,
            limit: Some(PAGE_MAX),
            ..self.which.query()?
        };
        Ok(ExportOptions { query, format: self.format_out, output: self.output })
    }
}

pub(super) async fn run(
    source: &Source,
    ctx: &Context,
    options: ExportOptions,
) -> anyhow::Result<Exit> {
    let ExportOptions { mut query, format, output } = options;
    let origin = Origin::here(source.id().await?);
    let out: Box<dyn Write + Send> = match &output {
        Some(path) => Box::new(create(path)?),
        None => Box::new(io::stdout()),
    };
    let mut writer = Writer::new(format, origin, BufWriter::new(out))?;
    let progress = ctx.progress("exporting the audit log");
    let mut unreadable = Vec::new();
    loop {
        let page = source.query(&query).await?;
        let items: Result<Vec<Item>, String> = page.lines.iter().map(Item::of).collect();
        // The write blocks, but delays no other task: none runs here.
        writer.write(items.map_err(anyhow::Error::msg)?)?;
        unreadable.extend(page.unreadable);
        query.after = page.next;
        if page.next.is_none() {
            break;
        }
    }
    writer.finish()?;
    drop(progress);
    Ok(conclude(ctx, &unreadable))
}

/// Creates a file that only its owner may access; fails if it exists.
fn create(path: &std::path::Path) -> anyhow::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(|| {
        match path.exists() {
            true => format!("{} exists already: name another file, or remove it", path.display()),
            false => format!("cannot make {}", path.display()),
        }
    })
}
