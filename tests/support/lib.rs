//! Values that the tests of several crates share.

#![expect(clippy::unwrap_used, reason = "for tests, whose values are constants")]

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use serde_json::json;

use portcullis_protocol::{
    exchange::{Direction, Exchange, Method, Payload, Revision, Target, Transport},
    identity::{Principal, PrincipalKind},
    names::DecisionId,
};

/// A tool call, with whatever `change` makes of it.
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
