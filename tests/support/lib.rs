//! Values and checks that the tests of several crates share.

#![expect(clippy::unwrap_used, reason = "for tests, whose values are constants")]

use std::{collections::BTreeSet, env, fs, path::Path, sync::Arc, time::Instant};

use serde_json::json;

use portcullis_protocol::{
    exchange::{Direction, Exchange, Method, Payload, Revision, Target, Transport},
    identity::{Principal, PrincipalKind},
    names::DecisionId,
};

/// A tool call, modified by `change`.
pub fn exchange(change: impl FnOnce(&mut Exchange)) -> Exchange {
    let mut exchange = Exchange {
        id: DecisionId::next(),
        at: jiff::Timestamp::now(),
        started: Instant::now(),
        principal: Arc::new(Principal {
            kind: PrincipalKind::Client("ci-bot".parse().unwrap()),
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
        server: Some("notes".parse().unwrap()),
        target: Target::Tool { name: "read".into(), tool: None },
        request: Payload::from(json!({"name": "read", "arguments": {"path": "/a"}})),
        response: None,
        labels: BTreeSet::new(),
        obligations: Default::default(),
        trace: None,
    };
    change(&mut exchange);
    exchange
}

/// Checks that a page of docs, such as `reference/codes.md`, has this generated text. With
/// `PORTCULLIS_WRITE_DOCS`, the page is written first.
///
/// # Panics
/// If the page has another text.
pub fn check_page(page: &str, text: &str) {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs")).join(page);
    if env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/{page} is outdated: run this test with PORTCULLIS_WRITE_DOCS=1");
}

/// As [`check_page`], for the part of a page between two texts.
///
/// # Panics
/// If the page has another part, or lacks one of the texts.
pub fn check_part(page: &str, begin: &str, end: &str, part: &str) {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs")).join(page);
    let text = fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    check_page(page, &format!("{before}{begin}{part}{end}{after}"));
}
