//! Records as a gateway of fifty clients writes them.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use portcullis_audit::{Audit, Conclusion, DecisionContext, Intent, Options, Outcome, Refused};
use portcullis_protocol::{
    exchange::{Direction, Exchange, Method, Payload, Revision, Target, Transport},
    identity::{Principal, PrincipalKind},
    names::DecisionId,
    refusal::{Code, Refusal, Rule},
};
use serde_json::json;

/// Clients that there are.
const CLIENTS: u64 = 50;
/// Calls that are under way at once while a store is filled.
const WAYS: u64 = 256;
const DAY: i64 = 86_400;

/// Days in the past, the last of which is yesterday.
pub struct Calendar {
    first: Timestamp,
    days: u32,
}

impl Calendar {
    pub fn new(days: u32) -> Self {
        let today = Timestamp::now().as_second() / DAY * DAY;
        let first = today - i64::from(days) * DAY;
        Self { first: Timestamp::from_second(first).unwrap_or(Timestamp::UNIX_EPOCH), days }
    }

    /// When so many of all records are written.
    fn at(&self, done: u64, all: u64) -> Timestamp {
        let days = i64::from(self.days) * DAY * 1_000_000;
        let micros = i128::from(days) * i128::from(done) / i128::from(all.max(1));
        self.first + SignedDuration::from_micros(i64::try_from(micros).unwrap_or(days))
    }
}

/// The name of a client.
fn client(number: u64) -> String {
    format!("client-{:02}", number % CLIENTS)
}

/// A spread of numbers that is the same in every run.
fn scatter(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A call of some client to some tool.
fn call(number: u64) -> anyhow::Result<Exchange> {
    let random = scatter(number);
    let server = format!("server-{}", random % 7);
    let tool = format!("tool_{}", random / 7 % 23);
    let path = format!("/srv/projects/{}/file-{}.md", random % 97, random % 9973);
    let arguments =
        json!({ "path": path, "lines": random % 1000, "follow": random.is_multiple_of(2) });
    let principal = Principal {
        kind: PrincipalKind::Client(client(random / 161).parse()?),
        groups: vec!["readers".parse()?],
        verified: true,
        key: None,
    };
    Ok(Exchange {
        id: DecisionId::next(),
        at: Timestamp::now(),
        started: Instant::now(),
        principal: Arc::new(principal),
        direction: Direction::ClientToServer,
        method: Method::new(Method::TOOLS_CALL),
        notification: false,
        transport: Transport::Http,
        client_addr: Some(([10, 1, (random % 5) as u8, (random % 250) as u8], 40_000).into()),
        session: None,
        session_calls: 0,
        revision: Revision::LATEST_MODERN,
        server: Some(server.parse()?),
        target: Target::Tool { name: tool.clone(), tool: None },
        request: Payload::from(json!({ "name": tool, "arguments": arguments })),
        response: None,
        labels: BTreeSet::new(),
        obligations: Default::default(),
        trace: Some(format!("{:016x}{:016x}", scatter(number), scatter(random))),
    })
}

fn rule(id: &str, line: u32) -> Rule {
    Rule {
        id: id.into(),
        file: Some("policies/groups.cedar".into()),
        line: Some(line),
        reason: Some("Readers look and do not touch".into()),
        obligations: Default::default(),
    }
}

fn allowed() -> DecisionContext<'static> {
    static RULES: LazyLock<[Rule; 1]> = LazyLock::new(|| [rule("readers-may-read", 12)]);
    DecisionContext { rules: &*RULES, ..DecisionContext::default() }
}

/// Each intent once the one before is durable; what each took.
pub async fn one_after_the_other(audit: &Audit, calls: u64) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for number in 0..calls {
        let call = call(number)?;
        let began = Instant::now();
        audit.intent(Intent::of(&call, allowed(), audit.key())).await?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Intents of many producers, each once its own before is durable; how many, and in what time.
pub async fn at_once(
    audit: &Audit,
    producers: usize,
    time: Duration,
) -> anyhow::Result<(u64, Duration)> {
    let began = Instant::now();
    let producers = (0..producers).map(|producer| {
        let audit = audit.clone();
        let all = tokio::spawn(async move {
            let mut number = 0;
            while began.elapsed() < time {
                let call = call(number * 1_000 + producer as u64)?;
                audit.intent(Intent::of(&call, allowed(), audit.key())).await?;
                number += 1;
            }
            anyhow::Ok(number)
        });
        async { all.await? }
    });
    let written: Vec<u64> = try_join_all(producers).await?;
    Ok((written.iter().sum(), began.elapsed()))
}

/// Fills a store: calls with intent and outcome, one in twenty refused.
pub fn fill(dir: &Path, records: u64, calendar: &Calendar) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let written = Arc::new(AtomicU64::new(0));
    let (first, days) = (calendar.first, calendar.days);
    let counted = written.clone();
    let clock =
        move || Calendar { first, days }.at(counted.load(Ordering::Relaxed).min(records), records);
    let options =
        Options { deadline: super::PATIENCE, clock: Arc::new(clock), ..Options::default() };
    let audit = Audit::open_with(dir, options)?;
    runtime.block_on(async {
        let ways = (0..WAYS).map(|_| {
            let (audit, written) = (audit.clone(), written.clone());
            let all = tokio::spawn(async move {
                loop {
                    let number = written.load(Ordering::Relaxed);
                    if number >= records {
                        return anyhow::Ok(());
                    }
                    if number % 1_000_000 < 2 {
                        eprintln!("{number} of {records} records");
                    }
                    let number = scatter(number);
                    let mut call = call(number)?;
                    if number.is_multiple_of(20) {
                        written.fetch_add(1, Ordering::Relaxed);
                        call.target = Target::Tool { name: "delete_all".into(), tool: None };
                        let refusal = Refusal::new(Code::PolicyDenied, "not allowed")
                            .rule(rule("nothing-is-deleted", 31));
                        let refused =
                            Refused::of(&call, &refusal, DecisionContext::default(), audit.key());
                        audit.refused(refused).await?;
                        continue;
                    }
                    written.fetch_add(2, Ordering::Relaxed);
                    audit.intent(Intent::of(&call, allowed(), audit.key())).await?;
                    let done = Conclusion::Delivered;
                    let outcome = Outcome::of(&call, allowed(), done, None, audit.key());
                    audit.outcome(outcome).await?;
                }
            });
            async { all.await? }
        });
        try_join_all(ways).await.map(drop)
    })
}
