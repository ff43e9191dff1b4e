//! Tests of complete policy sets.

mod decisions;
mod diagnostics;
mod docs;
mod plain;
mod reload;
mod shadow;
mod typed_actions;
mod visibility;

use std::{collections::BTreeSet, fs};

use cedar_policy::{Entities, Schema};
use serde_json::{Map, Value};
use tempfile::TempDir;

pub(super) use self::plain::whole;
use super::{about::About, entities::Vocabulary, typed::Typed, *};
use portcullis_protocol::{
    arguments,
    claims::{Attested, Claims},
    exchange::{self, Transport},
    identity::{Principal, PrincipalKind},
    names::ServerName,
};

/// A folder `policies` with these files.
pub(super) fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("policies")).unwrap();
    for (name, text) in files {
        fs::write(folder.path().join("policies").join(name), text).unwrap();
    }
    folder
}

fn try_engine(files: &[(&str, &str)]) -> Result<Engine, Diagnostics> {
    Engine::load(&["policies".into()], folder(files).path())
}

fn engine(policies: &str) -> Engine {
    try_engine(&[("p.cedar", policies)]).unwrap()
}

fn server(name: &str) -> ServerName {
    name.parse().unwrap()
}

fn client(name: &str, groups: &[&str]) -> Principal {
    Principal {
        kind: PrincipalKind::Client(name.parse().unwrap()),
        groups: groups.iter().map(|group| group.parse().unwrap()).collect(),
        verified: true,
        key: None,
    }
}

fn local(user: &str) -> Principal {
    Principal {
        kind: PrincipalKind::Local { user: user.into() },
        groups: Vec::new(),
        verified: true,
        key: None,
    }
}

fn anonymous() -> Principal {
    Principal { kind: PrincipalKind::Anonymous, groups: Vec::new(), verified: false, key: None }
}

pub(super) fn none() -> &'static BTreeSet<String> {
    static NONE: BTreeSet<String> = BTreeSet::new();
    &NONE
}

fn circumstances(method: &str) -> Circumstances<'_> {
    Circumstances {
        method,
        transport: Some(Transport::Http),
        revision: Some(exchange::Revision::LATEST_LEGACY),
        now: "2026-11-21T08:30:00Z".parse().unwrap(),
        source_ip: Some("10.1.2.3".parse().unwrap()),
        session_calls: 3,
        labels: none(),
    }
}

fn args(json: &str) -> Map<String, Value> {
    serde_json::from_str(json).unwrap()
}

fn ids(outcome: &Outcome) -> Vec<&str> {
    outcome.rules.iter().map(|rule| rule.id.as_str()).collect()
}
