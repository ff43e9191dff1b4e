//! A query finds what a look at every record finds.

use std::time::Duration;

use portcullis::{
    audit::{
        Audit, Filter, Order, PAGE_MAX,
        record::{Decision, Entry, Happening, Kind, Stopped},
    },
    exchange::Method,
    refusal::Code,
};
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::select,
    test_runner::{Config, TestRunner},
};

use crate::common::{exchange, intent, open, outcome, refuse};

const CLIENTS: &[&str] = &["ci-bot", "dev"];
const SERVERS: &[&str] = &["notes", "github"];
const TOOLS: &[&str] = &["read", "write", "a\u{0}b"];
const METHODS: &[&str] = &[Method::TOOLS_CALL, Method::TOOLS_LIST, "x/unknown"];
const CODES: &[Code] = &[Code::PolicyDenied, Code::RateLimited];

#[derive(Debug, Clone)]
struct Call {
    client: &'static str,
    server: &'static str,
    tool: &'static str,
    method: &'static str,
    ends: Ends,
}

#[derive(Debug, Clone)]
enum Ends {
    Refused(Code),
    Pending,
    Done,
    /// An event of the server instead of a call.
    Event,
}

fn calls() -> impl Strategy<Value = Call> {
    let ends = prop_oneof![
        select(CODES).prop_map(Ends::Refused),
        Just(Ends::Pending),
        Just(Ends::Done),
        Just(Ends::Event),
    ];
    (select(CLIENTS), select(SERVERS), select(TOOLS), select(METHODS), ends).prop_map(
        |(client, server, tool, method, ends)| Call { client, server, tool, method, ends },
    )
}

async fn write(audit: &Audit, call: &Call) {
    let mut exchange = exchange(call.client, call.server, call.tool);
    exchange.method = Method::new(call.method);
    match call.ends {
        Ends::Refused(code) => refuse(audit, &exchange, code).await.unwrap(),
        Ends::Pending => intent(audit, &exchange).await.unwrap(),
        Ends::Done => {
            intent(audit, &exchange).await.unwrap();
            outcome(audit, &exchange).await.unwrap();
        }
        Ends::Event => {
            let what = Happening::ServerStopped(Stopped {
                server: call.server.into(),
                ..Stopped::default()
            });
            audit.event(what).await.unwrap();
        }
    }
}

/// A filter but for the times and the id, which are chosen among the records by their place.
#[derive(Debug, Clone)]
struct Asked {
    filter: Filter,
    since: Option<usize>,
    until: Option<usize>,
    id: Option<usize>,
}

fn filters() -> impl Strategy<Value = Asked> {
    let texts = (
        option::of(select(CLIENTS)),
        option::of(select(SERVERS)),
        option::of(select(TOOLS)),
        option::of(select(METHODS)),
        option::of(select(CODES)),
    );
    let kinds = (
        option::of(select(&[Decision::Allowed, Decision::Refused, Decision::Failed][..])),
        option::of(select(&[Kind::Intent, Kind::Outcome, Kind::Refused, Kind::Event][..])),
        any::<bool>(),
        any::<bool>(),
    );
    let place = || option::weighted(0.3, 0..100_usize);
    (texts, kinds, (place(), place(), place()), 1..9_usize).prop_map(
        |((client, server, tool, method, code), kinds, (since, until, id), limit)| {
            let (decision, kind, intents, newest) = kinds;
            let filter = Filter {
                client: client.map(str::to_owned),
                server: server.map(str::to_owned),
                tool: tool.map(str::to_owned),
                method: method.map(str::to_owned),
                code: code.map(|code| code.as_str().to_owned()),
                decision,
                kind,
                intents,
                order: if newest { Order::NewestFirst } else { Order::OldestFirst },
                limit: Some(limit),
                ..Filter::default()
            };
            Asked { filter, since, until, id }
        },
    )
}

fn text<'a>(value: &'a serde_json::Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(serde_json::Value::as_str)
}

/// The filter once more, over the JSON of all records.
fn naive(all: &[Entry], filter: &Filter) -> Vec<Entry> {
    let json: Vec<_> = all.iter().map(|entry| serde_json::to_value(entry).unwrap()).collect();
    let mut found = Vec::new();
    for (entry, value) in all.iter().zip(&json) {
        let is = |pointer: &str, wanted: Option<&str>| {
            wanted.is_none_or(|wanted| text(value, pointer) == Some(wanted))
        };
        let kind = filter.kind.map(|kind| serde_json::to_value(kind).unwrap());
        let decision = filter.decision.map(|decision| serde_json::to_value(decision).unwrap());
        let id = filter.id.map(|id| id.to_string());
        let done = json
            .iter()
            .any(|other| text(other, "/record") == Some("outcome") && other["id"] == value["id"]);
        let hidden = !filter.intents
            && filter.kind.is_none()
            && text(value, "/record") == Some("intent")
            && done;
        let wanted = is("/principal", filter.client.as_deref())
            && is("/server", filter.server.as_deref())
            && is("/target/tool", filter.tool.as_deref())
            && is("/method", filter.method.as_deref())
            && is("/refusal/code", filter.code.as_deref())
            && is("/id", id.as_deref())
            && is("/record", kind.as_ref().and_then(|kind| kind.as_str()))
            && is("/decision", decision.as_ref().and_then(|decision| decision.as_str()))
            && filter.since.is_none_or(|since| entry.recorded >= since)
            && filter.until.is_none_or(|until| entry.recorded < until);
        if wanted && !hidden {
            found.push(entry.clone());
        }
    }
    if filter.order == Order::NewestFirst {
        found.reverse();
    }
    found
}

async fn walk(audit: &Audit, mut filter: Filter) -> Vec<Entry> {
    let mut found = Vec::new();
    loop {
        let page = audit.archive().query(filter.clone()).await.unwrap();
        assert!(page.entries.len() <= filter.limit.unwrap());
        assert_eq!(page.unreadable, Vec::<String>::new());
        found.extend(page.entries);
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return found,
        }
    }
}

async fn holds(calls: &[Call], asked: &[Asked]) {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    for call in calls {
        write(&audit, call).await;
    }
    let everything = Filter {
        intents: true,
        order: Order::OldestFirst,
        limit: Some(PAGE_MAX),
        ..Filter::default()
    };
    let all = walk(&audit, everything).await;
    for Asked { filter, since, until, id } in asked {
        let at = |place: &Option<usize>| place.map(|place| &all[place % all.len()]);
        let filter = Filter {
            since: at(since).map(|entry| entry.recorded),
            // Between two microseconds too.
            until: at(until).map(|entry| entry.recorded + Duration::from_nanos(500)),
            id: at(id).map(|entry| entry.record.id()),
            ..filter.clone()
        };
        assert_eq!(walk(&audit, filter.clone()).await, naive(&all, &filter), "{filter:?}");
    }
}

#[test]
fn a_query_finds_what_a_look_at_every_record_finds() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner =
        TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    runner
        .run(&(vec(calls(), 1..40), vec(filters(), 20)), |(calls, asked)| {
            runtime.block_on(holds(&calls, &asked));
            Ok(())
        })
        .unwrap();
}
