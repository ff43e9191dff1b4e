//! `portcullis audit stats`: prints a summary of the log.

use jiff::{Timestamp, ToSpan as _, Zoned, tz::TimeZone};

use super::{Source, conclude, filter_args::FilterArgs};
use crate::cli::{Context, Exit};
use portcullis_audit::{
    Aggregates, Filter, StatsRequest,
    summary::{Entry, Quantiles, Slot, Summary, TimedEntry, Top},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: FilterArgs,
    /// Maximum number of rows of each table
    #[arg(long, default_value_t = 10, value_name = "N")]
    top: usize,
}

/// Parsed options of a summary.
pub(super) struct StatsOptions {
    filter: Filter,
    top: usize,
    now: Timestamp,
}

impl Args {
    /// Parses the options.
    pub fn read(self) -> anyhow::Result<StatsOptions> {
        let now = Zoned::now();
        let when = self.which.uses_time();
        let mut filter = self.which.filter()?;
        if !when && !filter.uses_time() {
            filter = filter.and(Filter::since(now.checked_sub(24.hours())?.timestamp()));
        }
        Ok(StatsOptions { filter, top: self.top, now: now.timestamp() })
    }
}

pub(super) async fn run(
    source: &Source,
    ctx: &Context,
    options: StatsOptions,
) -> anyhow::Result<Exit> {
    let mut request = StatsRequest { filter: options.filter, after: None };
    let mut tally = Aggregates::default();
    let mut unreadable = Vec::new();
    let progress = ctx.progress("summing up the audit log");
    loop {
        let summed = source.stats(&request).await?;
        tally.merge(&summed.tally);
        unreadable.extend(summed.unreadable);
        request.after = summed.next;
        if summed.next.is_none() {
            break;
        }
    }
    drop(progress);
    let summary = Summary::of(&tally, options.top);
    if ctx.is_json() {
        let filter = request.filter.to_string();
        ctx.json(&serde_json::json!({ "filter": filter, "summary": summary }))?;
    } else {
        ctx.line(format_args!("{}, up to {:.0}", request.filter, options.now))?;
        print(ctx, &summary)?;
    }
    Ok(conclude(ctx, &unreadable))
}

fn print(ctx: &Context, summary: &Summary) -> anyhow::Result<()> {
    if summary.records == 0 {
        ctx.note("no records");
        return Ok(());
    }
    ctx.line(headline(summary))?;
    if let Some(bytes) = summary.bytes {
        ctx.line(format_args!(
            "{} asked, {} answered",
            size(bytes.requests),
            size(bytes.responses)
        ))?;
    }
    for line in sparklines(&summary.timeline, summary.slot_seconds) {
        ctx.line(line)?;
    }
    times(ctx, summary)?;
    top(ctx, "CLIENT", &summary.clients, true)?;
    top(ctx, "METHOD", &summary.methods, true)?;
    top(ctx, "REFUSED OR FAILED: CODE", &summary.codes, false)?;
    top(ctx, "REFUSED: RULE", &summary.rules, false)?;
    top(ctx, "REFUSED, NOT RECORDED ONE BY ONE: CODE", &summary.summarized, false)
}

fn headline(summary: &Summary) -> String {
    let Summary { decisions, refused, failed, cancelled, events, records, .. } = summary;
    let share = |part: u64| match decisions {
        0 => String::new(),
        all => format!(" ({:.1} %)", part as f64 * 100.0 / *all as f64),
    };
    let mut text = format!("{decisions} decisions: {refused} refused{}", share(*refused));
    for (count, word) in [(*failed, "failed"), (*cancelled, "cancelled")] {
        if count > 0 {
            text.push_str(&format!(", {count} {word}{}", share(count)));
        }
    }
    text.push_str(&format!("; {events} events; {records} records"));
    let summarized = &summary.summarized;
    let left_out = summarized.top.iter().map(|e| e.count).sum::<u64>() + summarized.others;
    if left_out > 0 {
        text.push_str(&format!("; {left_out} more refusals, not recorded one by one"));
    }
    text
}

fn times(ctx: &Context, summary: &Summary) -> anyhow::Result<()> {
    if summary.latency.total.count > 0 {
        ctx.line("")?;
        let row = |name: &str, times: &Quantiles| {
            let mut row = vec![name.to_owned(), times.count.to_string()];
            row.extend(quantiles(times));
            row
        };
        let rows =
            [row("all", &summary.latency.total), row("in servers", &summary.latency.servers)];
        ctx.table(&["CALLS", "COUNT", "P50", "P90", "P95", "P99", "MAX"], rows)?;
        if summary.latency.sampled {
            ctx.note("times are of a sample of the calls");
        }
    }
    timed(ctx, "SERVER", &summary.servers, 0)?;
    timed(ctx, "TOOL", &summary.tools.top, summary.tools.others)
}

/// Prints counts and times of servers or tools.
fn timed(ctx: &Context, title: &str, entries: &[TimedEntry], others: u64) -> anyhow::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    ctx.line("")?;
    let row = |TimedEntry { entry, latency }: &TimedEntry| {
        let mut row = vec![entry.name.clone(), entry.count.to_string(), entry.refused.to_string()];
        row.extend(quantiles(latency));
        row
    };
    let mut rows: Vec<Vec<String>> = entries.iter().map(row).collect();
    if others > 0 {
        rows.push(vec!["(others)".into(), others.to_string()]);
    }
    ctx.table(&[title, "COUNT", "REFUSED", "P50", "P90", "P95", "P99", "MAX"], rows)?;
    Ok(())
}

fn quantiles(times: &Quantiles) -> [String; 5] {
    [times.p50_us, times.p90_us, times.p95_us, times.p99_us, times.max_us]
        .map(|time| time.map(duration).unwrap_or_else(|| "-".into()))
}

fn top(ctx: &Context, title: &str, top: &Top, refused: bool) -> anyhow::Result<()> {
    if top.top.is_empty() {
        return Ok(());
    }
    ctx.line("")?;
    let row = |entry: &Entry| {
        let mut row = vec![entry.name.clone(), entry.count.to_string()];
        row.extend(refused.then(|| entry.refused.to_string()));
        row
    };
    let mut rows: Vec<Vec<String>> = top.top.iter().map(row).collect();
    if top.others > 0 {
        rows.push(vec!["(others)".into(), top.others.to_string()]);
    }
    let header: &[&str] = if refused { &[title, "COUNT", "REFUSED"] } else { &[title, "COUNT"] };
    ctx.table(header, rows)?;
    Ok(())
}

/// Duration with three digits and a unit.
fn duration(micros: u64) -> String {
    let (value, unit) = match micros {
        0..1000 => return format!("{micros} µs"),
        1000..1_000_000 => (micros as f64 / 1e3, "ms"),
        _ => (micros as f64 / 1e6, "s"),
    };
    rounded(value, unit)
}

fn size(bytes: u64) -> String {
    let (value, unit) = match bytes {
        0..1024 => return format!("{bytes} bytes"),
        1024..1_048_576 => (bytes as f64 / 1024.0, "KiB"),
        1_048_576..1_073_741_824 => (bytes as f64 / 1_048_576.0, "MiB"),
        _ => (bytes as f64 / 1_073_741_824.0, "GiB"),
    };
    rounded(value, unit)
}

fn rounded(value: f64, unit: &str) -> String {
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// Maximum characters of a sparkline.
const WIDTH: usize = 60;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Sparklines of decisions and, if there are any, refusals, with the value of a full bar.
fn sparklines(slots: &[Slot], slot_seconds: i64) -> Vec<String> {
    let (Some(first), Some(last)) = (slots.first(), slots.last()) else { return Vec::new() };
    let total = (last.at - first.at) / slot_seconds + 1;
    // Slots per bar, rounded up so that `WIDTH` bars suffice.
    let width = i64::try_from(WIDTH).unwrap_or(i64::MAX);
    let per_bar = (total + width - 1) / width;
    let bars = usize::try_from((total + per_bar - 1) / per_bar).unwrap_or(WIDTH).min(WIDTH);
    let (mut all, mut refused) = (vec![0_u64; bars], vec![0_u64; bars]);
    for slot in slots {
        let bar = usize::try_from((slot.at - first.at) / slot_seconds / per_bar).unwrap_or(0);
        if let (Some(all), Some(refused)) = (all.get_mut(bar), refused.get_mut(bar)) {
            *all += slot.count;
            *refused += slot.refused;
        }
    }
    let minutes = per_bar * slot_seconds / 60;
    let line = |bars: &[u64], what: &str| {
        let most = bars.iter().copied().max().unwrap_or(0);
        let drawn: String = bars.iter().map(|count| bar(*count, most)).collect();
        format!("{drawn}  {what}: up to {most} in {minutes} min")
    };
    let mut lines = vec![line(&all, "decisions")];
    if refused.iter().any(|count| *count > 0) {
        lines.push(line(&refused, "refused"));
    }
    let local = |second: i64| {
        let time = Timestamp::from_second(second).unwrap_or_default();
        time.to_zoned(TimeZone::system()).strftime("%m-%d %H:%M").to_string()
    };
    let (begin, end) = (local(first.at), local(last.at + slot_seconds));
    lines.push(format!("{begin}{end:>width$}", width = bars.saturating_sub(begin.len()).max(12)));
    lines
}

fn bar(count: u64, most: u64) -> char {
    if count == 0 || most == 0 {
        return ' ';
    }
    let step = (u128::from(count) * 8).div_ceil(u128::from(most)).clamp(1, 8) - 1;
    usize::try_from(step).ok().and_then(|step| BARS.get(step)).copied().unwrap_or('█')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_three_digits() {
        for (micros, text) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1000, "1.00 ms"),
            (12_345, "12.3 ms"),
            (123_456, "123 ms"),
            (1_234_567, "1.23 s"),
            (90_000_000, "90.0 s"),
        ] {
            assert_eq!(duration(micros), text);
        }
        assert_eq!([size(12), size(2048), size(5 << 20)], ["12 bytes", "2.00 KiB", "5.00 MiB"]);
    }

    #[test]
    fn sparkline_shows_peaks() {
        let slot = |minute: i64, count, refused| Slot { at: minute * 60, count, refused };
        let drawn = sparklines(&[slot(0, 1, 0), slot(1, 8, 1), slot(3, 4, 0)], 60);
        assert_eq!(drawn[0], "▁█ ▄  decisions: up to 8 in 1 min");
        assert_eq!(drawn[1], " █    refused: up to 1 in 1 min");
        let day: Vec<_> = (0..1440).map(|minute| slot(minute, 1, 0)).collect();
        let drawn = sparklines(&day, 60);
        assert_eq!(drawn[0], format!("{}  decisions: up to 24 in 24 min", "█".repeat(60)));
        assert!(sparklines(&[], 60).is_empty());
        assert_eq!(sparklines(&[slot(7, 3, 0)], 60)[0], "█  decisions: up to 3 in 1 min");
    }
}
