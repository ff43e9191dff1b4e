//! Exchanges and records for the tests.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use portcullis_audit::{
    Archive, Audit, Conclusion, DecisionContext, Intent, Outcome, PAGE_MAX, Query, Refused,
    Unavailable, record::Entry,
};
use portcullis_protocol::{
    exchange::{Direction, Exchange, Method, Payload, Revision, Target, Transport},
    identity::{Principal, PrincipalKind},
    names::DecisionId,
    refusal::{Code, Refusal, Rule},
};
use serde_json::json;

/// Long enough for a loaded machine: no test waits for it to pass.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A query of a filter, intents included.
pub fn query(filter: &str) -> Query {
    let filter = filter.parse().unwrap_or_else(|illegal| panic!("{filter}: {illegal}"));
    Query { filter, intents: true, limit: Some(PAGE_MAX), ..Query::default() }
}

/// All that a query finds.
pub async fn find(audit: &Audit, query: Query) -> Vec<Entry> {
    find_in(audit.archive(), query).await
}

/// All that a query finds in a log that is only read.
pub async fn find_in(archive: &Archive, mut query: Query) -> Vec<Entry> {
    let mut found = Vec::new();
    loop {
        let page = archive.query(query.clone()).await.unwrap();
        assert_eq!(page.unreadable, Vec::<String>::new());
        assert!(page.lines.len() <= query.limit.unwrap());
        found.extend(page.entries().unwrap());
        match page.next {
            Some(next) => query.after = Some(next),
            None => return found,
        }
    }
}

pub fn open(dir: &Path) -> Audit {
    Audit::open(dir, DEADLINE).unwrap()
}

/// A tool call.
pub fn exchange(client: &str, server: &str, tool: &str) -> Exchange {
    Exchange {
        id: DecisionId::next(),
        at: jiff::Timestamp::now(),
        started: Instant::now(),
        principal: Arc::new(Principal {
            kind: PrincipalKind::Client(client.parse().unwrap()),
            groups: Vec::new(),
            verified: true,
            key: None,
        }),
        direction: Direction::ClientToServer,
        method: Method::new(Method::TOOLS_CALL),
        notification: false,
        transport: Transport::Http,
        client_addr: Some(([127, 0, 0, 1], 4000).into()),
        session: None,
        session_calls: 0,
        revision: Revision::LATEST_MODERN,
        server: Some(server.parse().unwrap()),
        target: Target::Tool { name: tool.into(), tool: None },
        request: Payload::from(json!({ "name": tool, "arguments": { "path": "/a" } })),
        response: None,
        labels: BTreeSet::new(),
        obligations: Default::default(),
        trace: None,
    }
}

pub fn call() -> Exchange {
    exchange("ci-bot", "notes", "read")
}

pub async fn intent(audit: &Audit, exchange: &Exchange) -> Result<(), Unavailable> {
    audit.intent(Intent::of(exchange, DecisionContext::default(), audit.key())).await
}

pub async fn outcome(audit: &Audit, exchange: &Exchange) -> Result<(), Unavailable> {
    let conclusion = Conclusion::Delivered;
    let outcome = Outcome::of(exchange, DecisionContext::default(), conclusion, None, audit.key());
    audit.outcome(outcome).await
}

pub async fn refuse(audit: &Audit, exchange: &Exchange, code: Code) -> Result<(), Unavailable> {
    let rule = Rule {
        id: "no-destructive".into(),
        file: Some("policies/github.cedar".into()),
        line: Some(9),
        reason: Some("Nothing is deleted by a machine".into()),
        obligations: Default::default(),
    };
    let refusal = Refusal::new(code, "not allowed").rule(rule);
    audit.refused(Refused::of(exchange, &refusal, DecisionContext::default(), audit.key())).await
}

/// A folder, copied as a power cut would leave it: sled makes and removes files of its own for a
/// moment after it was closed.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        let copied = match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                copy(&entry.path(), &to);
                continue;
            }
            kind => kind.and_then(|_| fs::copy(entry.path(), to)),
        };
        if let Err(error) = copied {
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{}", entry.path().display());
        }
    }
}
