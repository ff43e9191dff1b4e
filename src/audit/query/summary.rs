//! Summary of many records for people.

use serde::Serialize;

use super::aggregates::{Aggregates, Count, Counts, Times};

/// A summary of records, as `audit stats` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// All records, intents included.
    pub records: u64,
    /// Decisions: calls that ended, and messages that were refused.
    pub decisions: u64,
    pub allowed: u64,
    pub refused: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Number of events.
    pub events: u64,
    /// Refusals without their own records, which share a decision id, by code. `decisions` does not
    /// include them.
    pub summarized: Top,
    pub clients: Top,
    pub servers: Vec<TimedEntry>,
    pub tools: TimedTop,
    pub methods: Top,
    /// Codes of refusals and failures.
    pub codes: Top,
    /// Rules of refusals.
    pub rules: Top,
    pub latency: Latency,
    /// Decisions by time.
    pub timeline: Vec<Slot>,
    /// Width of a slot in seconds.
    pub slot_seconds: i64,
    /// Bytes of parameters and of responses. Absent if sizes were not summed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Bytes>,
}

/// The most frequent values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Top {
    pub top: Vec<Entry>,
    /// Count of all other values.
    pub others: u64,
}

/// One value with its counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub name: String,
    pub count: u64,
    /// Number of refused ones.
    pub refused: u64,
}

/// The most frequent values, with their times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TimedTop {
    pub top: Vec<TimedEntry>,
    /// Count of all other values.
    pub others: u64,
}

/// A server or a tool, with the times that the server took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TimedEntry {
    #[serde(flatten)]
    pub entry: Entry,
    pub latency: Quantiles,
}

/// Durations of calls.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Latency {
    /// From a message's arrival to its end.
    pub total: Quantiles,
    /// Time that servers took, a part of the total.
    pub servers: Quantiles,
    /// Whether only an evenly spread sample of calls was measured.
    pub sampled: bool,
}

/// Quantiles of durations in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Quantiles {
    /// Number of measured calls.
    pub count: u64,
    pub p50_us: Option<u64>,
    pub p90_us: Option<u64>,
    pub p95_us: Option<u64>,
    pub p99_us: Option<u64>,
    pub max_us: Option<u64>,
}

/// Slot of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// Start of the slot, in seconds since 1970.
    pub at: i64,
    pub count: u64,
    pub refused: u64,
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bytes {
    pub requests: u64,
    pub responses: u64,
}

impl From<&Times> for Quantiles {
    fn from(times: &Times) -> Self {
        Self {
            count: times.count(),
            p50_us: times.quantile(0.5),
            p90_us: times.quantile(0.9),
            p95_us: times.quantile(0.95),
            p99_us: times.quantile(0.99),
            max_us: times.quantile(1.0),
        }
    }
}

fn top<K: Ord + Clone>(counts: &Counts<K>, most: usize, name: impl Fn(&K) -> String) -> Top {
    let (top, others) = counts.top(most);
    let entry = |(key, count): (&K, Count)| Entry {
        name: name(key),
        count: count.all,
        refused: count.refused,
    };
    Top { top: top.into_iter().map(entry).collect(), others: others.all }
}

/// The most frequent values, counting refusals only.
fn refusals(counts: &Counts, most: usize) -> Top {
    let mut all: Vec<Entry> = counts
        .iter()
        .filter(|(_, count)| count.refused > 0)
        .map(|(name, count)| Entry {
            name: name.clone(),
            count: count.refused,
            refused: count.refused,
        })
        .collect();
    all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
    let rest = all.split_off(most.min(all.len()));
    let others = rest.iter().map(|entry| entry.count).sum::<u64>() + counts.others().refused;
    Top { top: all, others }
}

impl Summary {
    /// Summary of aggregates with at most `most` values of each field.
    pub fn of(tally: &Aggregates, most: usize) -> Self {
        let decided = |word: &str| tally.decisions.get(&word.to_owned()).all;
        let kind = |word: &str| tally.kinds.get(&word.to_owned()).all;
        let names = |name: &String| name.clone();
        let servers = top(&tally.servers, most, names).top.into_iter().map(|entry| {
            let times = tally.by_server.get(&entry.name);
            TimedEntry { latency: times.map(Quantiles::from).unwrap_or_default(), entry }
        });
        let (tools, other_tools) = tally.tools.top(most);
        let tools = tools.into_iter().map(|(key, count)| {
            let name = match key {
                (server, tool) if server.is_empty() => tool.clone(),
                (server, tool) => format!("{server}/{tool}"),
            };
            let entry = Entry { name, count: count.all, refused: count.refused };
            let times = tally.by_tool.get(key);
            TimedEntry { latency: times.map(Quantiles::from).unwrap_or_default(), entry }
        });
        let total = Quantiles::from(&tally.total);
        let sampled = total.count < kind("outcome");
        Self {
            records: tally.records,
            decisions: kind("outcome") + kind("refused"),
            allowed: decided("allowed"),
            refused: decided("refused"),
            failed: decided("failed"),
            cancelled: decided("cancelled"),
            events: kind("event"),
            summarized: top(&tally.summarized, most, names),
            clients: top(&tally.principals, most, names),
            servers: servers.collect(),
            tools: TimedTop { top: tools.collect(), others: other_tools.all },
            methods: top(&tally.methods, most, names),
            codes: top(&tally.codes, most, names),
            rules: refusals(&tally.rules, most),
            latency: Latency { total, servers: Quantiles::from(&tally.server), sampled },
            timeline: tally
                .timeline
                .iter()
                .map(|(at, count)| Slot { at, count: count.all, refused: count.refused })
                .collect(),
            slot_seconds: tally.timeline.width(),
            bytes: (!sampled).then_some(Bytes {
                requests: tally.request_bytes,
                responses: tally.response_bytes,
            }),
        }
    }
}
