//! Compares queries with a scan of all records.

use std::{
    collections::{BTreeMap, HashSet},
    sync::LazyLock,
};

use portcullis_audit::{
    Aggregates, Audit, By, Column, CountRequest, Counting, DecisionContext, Intent, Order, Outcome,
    Query, Refused, StatsRequest, record::ServerStopped,
};
use portcullis_protocol::{
    exchange::{Effect, Exchange, Finding, Method, Phase},
    names::DecisionId,
    refusal::{Code, Refusal, Rule},
};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::select,
    test_runner::{Config, TestRunner},
};
use serde_json::Value;

use crate::common::{exchange, find, open, query};

/// Enough for two whole blocks of the index and one that grows.
const CALLS: usize = 4600;
const CLIENTS: &[&str] = &["ci-bot", "dev", "cy"];
const SERVERS: &[&str] = &["notes", "github"];
const TOOLS: &[&str] = &["read", "write", "read_all", "a\u{0}b"];
const METHODS: &[&str] = &[Method::TOOLS_CALL, Method::TOOLS_LIST, "x/unknown"];
const CODES: &[Code] = &[Code::PolicyDenied, Code::RateLimited];

/// One of some values, by a number that looks random and is the same in each run.
fn pick<T: Copy>(of: &[T], at: usize, salt: usize) -> T {
    of[(at.wrapping_mul(2_654_435_761).wrapping_add(salt * 40_503) >> 7) % of.len()]
}

fn made(at: usize) -> Exchange {
    let mut exchange = exchange(pick(CLIENTS, at, 1), pick(SERVERS, at, 2), pick(TOOLS, at, 3));
    exchange.method = Method::new(pick(METHODS, at, 4));
    if at.is_multiple_of(3) {
        exchange.labels.insert(pick(&["pii", "prod"], at, 5).into());
    }
    if at.is_multiple_of(5) {
        exchange.client_addr = Some(([10, 0, (at % 256) as u8, 1], 4000).into());
    }
    if at.is_multiple_of(7) {
        exchange.trace = Some(format!("{:032x}", at / 70));
    }
    exchange
}

async fn write(audit: &Audit, at: usize) {
    let exchange = made(at);
    let finding = Finding {
        interceptor: "secrets".into(),
        phase: Phase::Request,
        rule: Rule::named("entropy"),
        message: "a token at /arguments/path".into(),
        effect: Effect::Reported,
    };
    let rule = Rule::named(pick(&["r-1", "r-2"], at, 6));
    let ruling = DecisionContext {
        rules: std::slice::from_ref(&rule),
        findings: if at.is_multiple_of(4) { std::slice::from_ref(&finding) } else { &[] },
        policy_revision: Some("7f3a"),
        ..DecisionContext::default()
    };
    match at % 11 {
        0 | 1 => {
            let refusal = Refusal::new(pick(CODES, at, 7), "not allowed").rule(rule.clone());
            audit.refused(Refused::of(&exchange, &refusal, ruling, audit.key())).await.unwrap();
        }
        // A call that was under way when the proxy died.
        2 => audit.intent(Intent::of(&exchange, ruling, audit.key())).await.unwrap(),
        3 => {
            let server = pick(SERVERS, at, 2).into();
            let what = ServerStopped {
                launch: DecisionId::next(),
                server,
                place: "sandbox pid 42".into(),
                principal: None,
                reason: "nobody used it".into(),
                exit_code: Some(0),
                exit_reason: None,
            };
            audit.record_event(what).await.unwrap();
        }
        _ => {
            audit.intent(Intent::of(&exchange, ruling, audit.key())).await.unwrap();
            let conclusion = portcullis_audit::Conclusion::Delivered;
            let mut outcome = Outcome::of(&exchange, ruling, conclusion, None, audit.key());
            outcome.timing.total_us = (at * at % 1_000_000) as u64;
            outcome.timing.server_us = (at.is_multiple_of(2)).then_some((at % 5000) as u64);
            audit.outcome(outcome).await.unwrap();
        }
    }
}

/// A log, and all its records as JSON.
struct Log {
    audit: Audit,
    all: Vec<Value>,
    _dir: tempfile::TempDir,
}

async fn log() -> Log {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    for some in (0..CALLS).collect::<Vec<_>>().chunks(256) {
        futures_util::future::join_all(some.iter().map(|at| write(&audit, *at))).await;
    }
    let everything = Query { order: Order::OldestFirst, ..query("") };
    let all = find(&audit, everything).await;
    let all = all.iter().map(|entry| serde_json::to_value(entry).unwrap()).collect();
    Log { audit, all, _dir: dir }
}

/// A condition as text, and what it means of a record's JSON.
#[derive(Clone)]
enum Asked {
    One(String, std::sync::Arc<dyn Fn(&Value) -> bool + Send + Sync>),
    Not(Box<Asked>),
    All(Vec<Asked>),
    Any(Vec<Asked>),
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

impl Asked {
    fn text(&self) -> String {
        let join = |parts: &[Asked], word: &str| {
            let parts: Vec<_> = parts.iter().map(|part| format!("({})", part.text())).collect();
            parts.join(word)
        };
        match self {
            Self::One(text, _) => text.clone(),
            Self::Not(part) => format!("not ({})", part.text()),
            Self::All(parts) => join(parts, " and "),
            Self::Any(parts) => join(parts, " or "),
        }
    }

    fn holds(&self, record: &Value) -> bool {
        match self {
            Self::One(_, holds) => holds(record),
            Self::Not(part) => !part.holds(record),
            Self::All(parts) => parts.iter().all(|part| part.holds(record)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(record)),
        }
    }
}

fn one(text: String, holds: impl Fn(&Value) -> bool + Send + Sync + 'static) -> Asked {
    Asked::One(text, std::sync::Arc::new(holds))
}

/// The text at a JSON pointer.
fn at<'a>(record: &'a Value, pointer: &str) -> Option<&'a str> {
    record.pointer(pointer).and_then(Value::as_str)
}

/// Fields with one text: name, pointer, values that occur and some that don't.
static TEXTS: LazyLock<Vec<(&str, &str, Vec<&str>)>> = LazyLock::new(|| {
    vec![
        ("client", "/principal", vec!["ci-bot", "dev", "nobody"]),
        ("server", "/server", vec!["notes", "github"]),
        ("tool", "/target/tool", vec!["read", "read_all", "a\u{0}b", "none"]),
        ("target", "/target/tool", vec!["read", "write"]),
        ("method", "/method", vec!["tools/call", "x/unknown"]),
        ("code", "/refusal/code", vec!["policy-denied", "rate-limited"]),
        ("event", "/event", vec!["server-stopped"]),
        ("trace", "/trace", vec!["00000000000000000000000000000003"]),
        ("policy", "/policy_revision", vec!["7f3a", "0"]),
    ]
});

/// The ids of the rules of a record.
fn rules(record: &Value) -> Vec<&str> {
    let list = |name: &str| record[name].as_array().cloned().unwrap_or_default().len();
    let rules = (0..list("rules")).filter_map(|n| at(record, &format!("/rules/{n}/id")));
    let found = (0..list("findings")).filter_map(|n| at(record, &format!("/findings/{n}/rule/id")));
    rules.chain(found).collect()
}

fn leaves() -> impl Strategy<Value = Asked> {
    let texts = (select(&**TEXTS), any::<proptest::sample::Index>(), 0..5_u8).prop_map(
        |((name, pointer, values), which, how)| {
            let value = *which.get(&values);
            let first: String = value.chars().take(2).collect();
            match how {
                0 | 1 => one(
                    format!(
                        "{name} = {}",
                        Value::from(value).to_string().replace("\\u0000", "\\0")
                    ),
                    move |record| at(record, pointer) == Some(value),
                ),
                2 => one(format!("{name} ~ \"{}*\"", first.replace('\0', "\\0")), move |record| {
                    at(record, pointer).is_some_and(|text| text.starts_with(&first))
                }),
                3 => one(format!("{name} contains \"E\""), move |record| {
                    at(record, pointer).is_some_and(|text| text.to_lowercase().contains('e'))
                }),
                _ => one(format!("has {name}"), move |record| at(record, pointer).is_some()),
            }
        },
    );
    let words = prop_oneof![
        select(&["intent", "outcome", "refused", "event"][..]).prop_map(|kind| {
            one(format!("kind = {kind}"), move |record| at(record, "/record") == Some(kind))
        }),
        select(&["allowed", "refused", "failed"][..]).prop_map(|word| {
            one(format!("decision = {word}"), move |record| at(record, "/decision") == Some(word))
        }),
        select(&["r-1", "r-2", "entropy", "r-9"][..]).prop_map(|rule| {
            one(format!("rule = {rule}"), move |record| rules(record).contains(&rule))
        }),
        select(&["pii", "prod"][..]).prop_map(|label| {
            one(format!("label = {label}"), move |record| {
                record["labels"].as_array().is_some_and(|labels| labels.contains(&label.into()))
            })
        }),
        Just(one("code in (rate-limited, x) or has event".into(), |record| {
            at(record, "/refusal/code") == Some("rate-limited") || at(record, "/event").is_some()
        })),
        Just(one("addr = 10.0.128.0/17".into(), |record| {
            let address = at(record, "/client_addr").and_then(|addr| addr.strip_prefix("10.0."));
            let third = address.and_then(|rest| rest.split('.').next()?.parse::<u8>().ok());
            third.is_some_and(|third| third >= 128)
        })),
        Just(one("finding contains TOKEN".into(), |record| record["findings"].is_array())),
        Just(one("text contains rate-lim".into(), |record| record
            .to_string()
            .contains("rate-lim"))),
    ];
    let numbers = prop_oneof![
        (0..1_000_000_u64).prop_map(|most| {
            one(format!("total > {most}us"), move |record| {
                record["total_us"].as_u64().is_some_and(|total| total > most)
            })
        }),
        (0..5000_u64).prop_map(|most| {
            one(format!("upstream <= {most}us"), move |record| {
                record["server_us"].as_u64().is_some_and(|time| time <= most)
            })
        }),
        (0..12_000_u64).prop_map(|seq| {
            one(format!("seq >= {seq}"), move |record| record["seq"].as_u64() >= Some(seq))
        }),
        (0..100_u64).prop_map(|bytes| {
            one(format!("request > {bytes}"), move |record| {
                record["request"]["bytes"].as_u64().is_some_and(|size| size > bytes)
            })
        }),
    ];
    prop_oneof![3 => texts, 3 => words, 2 => numbers]
}

/// A condition, in which `TIME` stands for the time of some record.
fn asked() -> impl Strategy<Value = (Asked, Option<(bool, usize)>)> {
    let tree = leaves().prop_recursive(3, 12, 3, |part| {
        prop_oneof![
            vec(part.clone(), 2..4).prop_map(Asked::All),
            vec(part.clone(), 2..4).prop_map(Asked::Any),
            part.prop_map(|part| Asked::Not(Box::new(part))),
        ]
    });
    (tree, proptest::option::of((any::<bool>(), 0..CALLS)))
}

/// With a bound of time, taken from the log.
fn timed(log: &Log, (asked, time): (Asked, Option<(bool, usize)>)) -> Asked {
    let Some((since, which)) = time else { return asked };
    let time: jiff::Timestamp =
        at(&log.all[which % log.all.len()], "/recorded").unwrap().parse().unwrap();
    let of = |record: &Value| at(record, "/recorded").unwrap().parse::<jiff::Timestamp>().unwrap();
    let bound = match since {
        true => one(format!("time >= {time}"), move |record| of(record) >= time),
        false => one(format!("time < {time}"), move |record| of(record) < time),
    };
    Asked::All(vec![bound, asked])
}

fn run<S: Strategy>(cases: u32, strategy: S, holds: impl AsyncFn(&Log, S::Value)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log = runtime.block_on(log());
    let config = Config { cases, ..Config::with_source_file(file!()) };
    TestRunner::new(config)
        .run(&strategy, |value| {
            runtime.block_on(holds(&log, value));
            Ok(())
        })
        .unwrap();
}

#[test]
fn query_agrees_with_a_scan_of_all_records() {
    run(50, (asked(), any::<bool>(), 1..1000_usize), async |log, (asked, newest, limit)| {
        let asked = timed(log, asked);
        let mut wanted: Vec<_> =
            log.all.iter().filter(|record| asked.holds(record)).map(|r| r["seq"].clone()).collect();
        let order = if newest { Order::NewestFirst } else { Order::OldestFirst };
        if newest {
            wanted.reverse();
        }
        let asked = Query { order, limit: Some(limit), ..query(&asked.text()) };
        let found = find(&log.audit, asked.clone()).await;
        let found: Vec<_> = found.iter().map(|entry| Value::from(entry.seq.0)).collect();
        assert_eq!(found, wanted, "{}", asked.filter);
    });
}

#[test]
fn counts_and_summaries_agree_with_the_records() {
    const BY: &[&[Column]] = &[
        &[],
        &[Column::Client],
        &[Column::Client, Column::Tool],
        &[Column::Code],
        &[Column::Rule, Column::Decision],
        &[Column::Label],
        &[Column::Day, Column::Kind],
        &[Column::Addr],
    ];
    run(25, (asked(), select(BY)), async |log, (asked, by)| {
        let asked = timed(log, asked);
        let filter = query(&asked.text()).filter;
        let intents = filter.asks_for_intents();
        let mut wanted = BTreeMap::<Vec<Option<String>>, u64>::new();
        let mut decisions = BTreeMap::<String, u64>::new();
        let entries = find(&log.audit, Query { order: Order::OldestFirst, ..query("") }).await;
        for (record, entry) in log.all.iter().zip(&entries) {
            let is_intent = at(record, "/record") == Some("intent");
            if !asked.holds(record) {
                continue;
            }
            let is_event = at(record, "/record") == Some("event");
            if let Some(decision) = at(record, "/decision").filter(|_| !is_intent && !is_event) {
                *decisions.entry(decision.to_owned()).or_default() += 1;
            }
            if is_intent && !intents {
                continue;
            }
            let mut groups = vec![Vec::new()];
            for column in by {
                let mut values: Vec<_> =
                    column.values(entry).into_iter().map(|v| Some(v.into_owned())).collect();
                if values.is_empty() {
                    values.push(None);
                }
                let longer = |group: &Vec<Option<String>>| {
                    let group = group.clone();
                    let with = values
                        .iter()
                        .map(move |value| group.iter().chain([value]).cloned().collect::<Vec<_>>());
                    with.collect::<Vec<_>>()
                };
                groups = groups.iter().flat_map(longer).collect();
            }
            for group in groups {
                *wanted.entry(group).or_default() += 1;
            }
        }
        let by = By::try_from(by.to_vec()).unwrap();
        let mut request = CountRequest { filter: filter.clone(), by, ..CountRequest::default() };
        let mut counting = Counting::default();
        loop {
            let counted = log.audit.archive().count(request.clone()).await.unwrap();
            request.after = counted.next;
            counting.take(counted);
            if request.after.is_none() {
                break;
            }
        }
        let (groups, others) = counting.finish();
        let found: BTreeMap<_, _> = groups.into_iter().map(|g| (g.values, g.count)).collect();
        assert_eq!((found, others), (wanted, 0), "{filter}");

        let mut request = StatsRequest { filter: filter.clone(), after: None };
        let mut tally = Aggregates::default();
        loop {
            let summed = log.audit.archive().stats(request.clone()).await.unwrap();
            tally.merge(&summed.tally);
            request.after = summed.next;
            if summed.next.is_none() {
                break;
            }
        }
        let found: BTreeMap<_, _> = ["allowed", "refused", "failed", "cancelled"]
            .into_iter()
            .map(|word| (word.to_owned(), tally.decisions().get(&word.to_owned()).all))
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(found, decisions, "{filter}");
    });
}

#[tokio::test]
async fn intent_without_outcome_is_shown() {
    let log = log().await;
    let shown = find(&log.audit, Query { intents: false, ..query("") }).await;
    let of = |kind: &'static str| log.all.iter().filter(move |r| at(r, "/record") == Some(kind));
    let answered: HashSet<_> = of("outcome").map(|outcome| outcome["id"].clone()).collect();
    let is_hidden = |r: &&Value| at(r, "/record") == Some("intent") && answered.contains(&r["id"]);
    let rest = log.all.iter().rev().filter(|record| !is_hidden(record));
    let wanted: Vec<_> = rest.map(|record| record["seq"].clone()).collect();
    let shown: Vec<_> = shown.iter().map(|entry| Value::from(entry.seq.0)).collect();
    assert_eq!(shown, wanted);
    // What only an intent has finds intents.
    let found = find(&log.audit, Query { intents: false, ..query("kind = intent") }).await;
    assert_eq!(found.len(), of("intent").count());
}
