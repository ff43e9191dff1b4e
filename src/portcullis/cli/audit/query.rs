//! `portcullis audit query`: prints records, chosen fields of them, or counts.

use serde_json::{Map, Value};

use super::{Source, conclude, entries, filter_args::FilterArgs, print, render};
use crate::cli::{Context, Exit, Usage};
use portcullis_audit::{
    By, Column, CountRequest, Counting, Group, Line, Order, PAGE_MAX, Page, Query, Seq,
    record::Entry,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: FilterArgs,
    /// Maximum number of records or groups to show
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// Start after this record: the number at the end of the previous query
    #[arg(long, value_name = "SEQ")]
    after: Option<Seq>,
    /// Show the oldest records first
    #[arg(long)]
    oldest_first: bool,
    /// Show these fields: `time,client,tool,code`; `help` lists them all
    #[arg(long, value_name = "FIELDS", value_delimiter = ',')]
    fields: Vec<String>,
    /// Count records by these fields: `client,tool`
    #[arg(
        long,
        value_name = "FIELDS",
        value_delimiter = ',',
        conflicts_with_all = ["fields", "after", "oldest_first"]
    )]
    group: Vec<String>,
    /// Print only the number of records
    #[arg(long, conflicts_with_all = ["fields", "group", "after", "oldest_first"])]
    count: bool,
}

/// Parsed options of a query.
pub(super) enum QueryOptions {
    Records { query: Query, fields: Vec<Column>, limit: usize },
    Counts { request: CountRequest, limit: usize },
    Help,
}

fn columns(names: &[String]) -> Result<Vec<Column>, Usage> {
    let column = |name: &String| name.trim().parse().map_err(|e| Usage(format!("{e}")));
    names.iter().map(column).collect()
}

impl Args {
    /// Parses the options.
    pub fn read(self) -> anyhow::Result<QueryOptions> {
        if self.fields.iter().any(|name| name == "help") {
            return Ok(QueryOptions::Help);
        }
        let limit = self.limit;
        if self.count || !self.group.is_empty() {
            let by = By::try_from(columns(&self.group)?).map_err(|e| Usage(e.to_string()))?;
            let Query { filter, intents, .. } = self.which.query()?;
            let request = CountRequest { filter, by, intents, after: None };
            return Ok(QueryOptions::Counts { request, limit });
        }
        let fields = columns(&self.fields)?;
        let order = if self.oldest_first { Order::OldestFirst } else { Order::NewestFirst };
        let query = Query { order, after: self.after, ..self.which.query()? };
        Ok(QueryOptions::Records { query, fields, limit })
    }
}

pub(super) async fn run(
    source: &Source,
    ctx: &Context,
    options: QueryOptions,
) -> anyhow::Result<Exit> {
    match options {
        QueryOptions::Records { query, fields, limit } => {
            records(source, ctx, query, &fields, limit).await
        }
        QueryOptions::Counts { request, limit } => counts(source, ctx, request, limit).await,
        QueryOptions::Help => help(ctx),
    }
}

fn help(ctx: &Context) -> anyhow::Result<Exit> {
    let row =
        |column: &Column| [column.name(), column.about(), column.example()].map(str::to_owned);
    ctx.table(&["FIELD", "WHAT IT IS", "EXAMPLE"], Column::ALL.iter().map(row))?;
    Ok(Exit::Ok)
}

async fn records(
    source: &Source,
    ctx: &Context,
    mut query: Query,
    fields: &[Column],
    limit: usize,
) -> anyhow::Result<Exit> {
    let mut found = Page::default();
    let mut shown = 0;
    let progress = ctx.progress("searching the audit log");
    loop {
        query.limit = Some((limit - shown).clamp(1, PAGE_MAX));
        let page = source.query(&query).await?;
        shown += page.lines.len();
        found.unreadable.extend(page.unreadable);
        found.next = page.next;
        query.after = page.next;
        // A table needs all cells for its column widths; JSON is printed page by page.
        if ctx.is_json() {
            show(ctx, &page.lines, fields)?;
        } else {
            found.lines.extend(page.lines);
        }
        if found.next.is_none() || shown >= limit {
            break;
        }
    }
    drop(progress);
    if !ctx.is_json() {
        show(ctx, &found.lines, fields)?;
    }
    if shown == 0 && query.filter.uses_bodies() {
        ctx.note("records have arguments and results only where a policy has `@keep`");
    }
    if let Some(next) = found.next {
        ctx.note(format_args!("there are more: --after {next}"));
    }
    Ok(conclude(ctx, &found.unreadable))
}

fn show(ctx: &Context, lines: &[Line], fields: &[Column]) -> anyhow::Result<()> {
    if fields.is_empty() || (lines.is_empty() && !ctx.is_json()) {
        return print(ctx, lines);
    }
    let entries = entries(lines)?;
    if ctx.is_json() {
        for entry in &entries {
            let members = fields.iter().map(|field| (field.name().to_owned(), field.json(entry)));
            ctx.json_line(&members.collect::<Map<_, _>>())?;
        }
        return Ok(());
    }
    let header: Vec<String> = fields.iter().map(|field| field.name().to_uppercase()).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let cells = |entry: &Entry| -> Vec<String> {
        fields.iter().map(|field| render::cell(*field, entry)).collect()
    };
    ctx.table(&header, entries.iter().map(cells))?;
    Ok(())
}

async fn counts(
    source: &Source,
    ctx: &Context,
    mut request: CountRequest,
    limit: usize,
) -> anyhow::Result<Exit> {
    let mut counting = Counting::default();
    let mut unreadable = Vec::new();
    let progress = ctx.progress("counting in the audit log");
    loop {
        let counted = source.count(&request).await?;
        request.after = counted.next;
        unreadable.extend(counted.unreadable.iter().cloned());
        counting.take(counted);
        if request.after.is_none() {
            break;
        }
    }
    drop(progress);
    let (mut groups, mut others) = counting.finish();
    groups.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.values.cmp(&b.values)));
    let total = groups.iter().map(|group| group.count).sum::<u64>() + others;
    let rest = groups.split_off(limit.min(groups.len()));
    others += rest.iter().map(|group| group.count).sum::<u64>();
    let by = request.by.columns();
    if ctx.is_json() {
        print_json(ctx, by, &groups, total)?;
    } else if by.is_empty() {
        ctx.line(total)?;
    } else if groups.is_empty() {
        ctx.note("no records");
    } else {
        print_groups(ctx, by, groups)?;
    }
    if others > 0 {
        ctx.note(format_args!("and {others} records in other groups: --limit shows more"));
    }
    Ok(conclude(ctx, &unreadable))
}

fn print_json(ctx: &Context, by: &[Column], groups: &[Group], total: u64) -> anyhow::Result<()> {
    if by.is_empty() {
        ctx.json_line(&serde_json::json!({ "count": total }))?;
    }
    for group in groups.iter().filter(|_| !by.is_empty()) {
        let names = by.iter().map(|column| column.name().to_owned());
        let values = group.values.iter().map(|value| Value::from(value.clone()));
        let mut members: Map<String, Value> = names.zip(values).collect();
        members.insert("count".into(), group.count.into());
        ctx.json_line(&members)?;
    }
    Ok(())
}

fn print_groups(ctx: &Context, by: &[Column], groups: Vec<Group>) -> anyhow::Result<()> {
    let mut header = vec!["COUNT".to_owned()];
    header.extend(by.iter().map(|column| column.name().to_uppercase()));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let most = groups.first().map_or(1, |group| group.count.to_string().len());
    let rows = groups.into_iter().map(|group| {
        let mut row = vec![format!("{:>most$}", group.count)];
        row.extend(group.values.into_iter().map(|value| value.unwrap_or_else(|| "-".into())));
        row
    });
    ctx.table(&header, rows)?;
    Ok(())
}
