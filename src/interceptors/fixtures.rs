//! Exchanges for the interceptors' tests.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use serde_json::{Value, json};

use portcullis_protocol::{
    exchange::{
        Answer, Definition, Direction, Exchange, Method, Payload, Revision, Target, Transport,
    },
    identity::{Principal, PrincipalKind},
    names::DecisionId,
};

/// Client message without server, target or parameters.
pub(crate) fn message(client: &str, method: &str) -> Exchange {
    Exchange {
        id: DecisionId::next(),
        at: jiff::Timestamp::UNIX_EPOCH,
        started: Instant::now(),
        principal: Arc::new(Principal {
            kind: PrincipalKind::Client(client.parse().unwrap()),
            groups: Vec::new(),
            verified: true,
            key: None,
        }),
        direction: Direction::ClientToServer,
        method: Method::new(method),
        notification: false,
        transport: Transport::Http,
        client_addr: None,
        session: None,
        session_calls: 0,
        revision: Revision::LATEST_MODERN,
        server: None,
        target: Target::None,
        request: Payload::from(json!({})),
        response: None,
        labels: BTreeSet::new(),
        obligations: Default::default(),
        trace: None,
    }
}

/// Tool with that definition.
pub(crate) fn tool(server: &str, name: &str, definition: Value) -> Arc<Definition> {
    let definition = Payload::from(definition);
    Arc::new(Definition::new(server.parse().unwrap(), name.into(), definition))
}

/// Call of a tool.
pub(crate) fn call(client: &str, tool: &Arc<Definition>, arguments: Value) -> Exchange {
    Exchange {
        server: Some(tool.server.clone()),
        target: Target::Tool { name: tool.name.clone(), tool: Some(Arc::clone(tool)) },
        request: Payload::from(json!({ "name": tool.name, "arguments": arguments })),
        ..message(client, Method::TOOLS_CALL)
    }
}

/// The exchange with its result.
pub(crate) fn answered(exchange: Exchange, result: Value) -> Exchange {
    Exchange { response: Some(Answer::Result(Payload::from(result))), ..exchange }
}
