//! What each event of a record is in other vocabularies.

use super::Severity;

/// OCSF's classes for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// 6002: a program starts, stops, changes.
    Lifecycle,
    /// 6008: a program fails at something.
    Error,
    /// 6003: somebody calls an interface.
    Api,
    /// 3002: somebody comes in or leaves.
    Authentication,
    /// 3004: something that is administered is used or changes.
    Entity,
    /// 4001: a connection.
    Network,
    /// 0: what no class is for.
    Base,
}

/// One event's part in other vocabularies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meaning {
    pub severity: Severity,
    pub class: Class,
    /// The class's activity, with its name there; 99 is named by the event.
    pub activity: (u8, &'static str),
    pub failed: bool,
}

const fn meaning(severity: Severity, class: Class, activity: (u8, &'static str)) -> Meaning {
    Meaning { severity, class, activity, failed: false }
}

const fn failure(severity: Severity, class: Class, activity: (u8, &'static str)) -> Meaning {
    Meaning { severity, class, activity, failed: true }
}

use Class::{Api, Authentication, Base, Entity, Error, Lifecycle, Network};
use Severity::{Critical, High, Informational, Low, Medium};

const INSTALL: (u8, &str) = (1, "Install");
const START: (u8, &str) = (3, "Start");
const STOP: (u8, &str) = (4, "Stop");
const ENABLE: (u8, &str) = (6, "Enable");
const GENERAL: (u8, &str) = (1, "General Error");
const CREATE: (u8, &str) = (1, "Create");
const READ: (u8, &str) = (2, "Read");
const UPDATE: (u8, &str) = (3, "Update");
const DELETE: (u8, &str) = (4, "Delete");
const LOGON: (u8, &str) = (1, "Logon");
const LOGOFF: (u8, &str) = (2, "Logoff");
const OPEN: (u8, &str) = (1, "Open");
const CLOSE: (u8, &str) = (2, "Close");
const OTHER: (u8, &str) = (99, "");

/// By the events' names. A test holds it to the published schema.
const EVENTS: &[(&str, Meaning)] = &[
    ("proxy-started", meaning(Informational, Lifecycle, START)),
    ("proxy-start-failed", failure(High, Lifecycle, START)),
    ("proxy-stopped", meaning(Informational, Lifecycle, STOP)),
    ("config-loaded", meaning(Informational, Entity, UPDATE)),
    ("config-reloaded", meaning(Low, Entity, UPDATE)),
    ("config-rejected", failure(High, Entity, UPDATE)),
    ("policy-loaded", meaning(Informational, Entity, UPDATE)),
    ("policy-rejected", failure(High, Entity, UPDATE)),
    ("plugin-loaded", meaning(Informational, Lifecycle, ENABLE)),
    ("plugin-refused", failure(High, Lifecycle, ENABLE)),
    ("plugin-http-sent", meaning(Informational, Base, OTHER)),
    ("client-seen", meaning(Informational, Authentication, LOGON)),
    ("session-opened", meaning(Informational, Authentication, OTHER)),
    ("session-ended", meaning(Informational, Authentication, LOGOFF)),
    ("server-launching", meaning(Informational, Lifecycle, START)),
    ("server-launch-refused", failure(Medium, Lifecycle, START)),
    ("image-resolved", meaning(Informational, Entity, UPDATE)),
    ("image-locked", meaning(Low, Entity, UPDATE)),
    ("image-lock-failed", failure(Medium, Entity, UPDATE)),
    ("image-pulling", meaning(Informational, Lifecycle, INSTALL)),
    ("image-pulled", meaning(Informational, Lifecycle, INSTALL)),
    ("image-pull-failed", failure(Medium, Lifecycle, INSTALL)),
    ("server-launched", meaning(Informational, Lifecycle, START)),
    ("server-launch-failed", failure(Medium, Lifecycle, START)),
    ("server-stopped", meaning(Informational, Lifecycle, STOP)),
    ("orphans-removing", meaning(Informational, Entity, DELETE)),
    ("orphans-removed", meaning(Low, Entity, DELETE)),
    ("egress-opened", meaning(Informational, Network, OPEN)),
    ("egress-connecting", meaning(Informational, Network, OPEN)),
    ("egress-closed", meaning(Informational, Network, CLOSE)),
    ("secrets-delivered", meaning(Low, Entity, READ)),
    ("secret-unresolved", failure(High, Entity, READ)),
    ("secrets-stale", meaning(Medium, Entity, READ)),
    ("messages-dropped", failure(Medium, Error, GENERAL)),
    ("approval-requested", meaning(Low, Api, OTHER)),
    ("approval-webhook-failed", failure(Medium, Error, GENERAL)),
    ("approval-decided", meaning(Low, Api, OTHER)),
    ("client-added", meaning(Low, Entity, CREATE)),
    ("client-removed", meaning(Low, Entity, DELETE)),
    ("admin-action", meaning(Informational, Api, OTHER)),
    ("refusal-summary-opened", failure(High, Error, GENERAL)),
    ("refusals-summarized", failure(High, Error, GENERAL)),
    ("records-dropped", failure(Critical, Error, GENERAL)),
    ("segment-dropped", meaning(Low, Entity, DELETE)),
    ("key-rotated", meaning(Low, Entity, UPDATE)),
    ("store-backed-up", meaning(Informational, Entity, READ)),
    ("records-lost", failure(Critical, Error, GENERAL)),
    ("segment-quarantined", failure(Critical, Error, GENERAL)),
];

/// What that event is; of one that is not in the table, that it is one.
pub(super) fn of(event: &str) -> Meaning {
    EVENTS
        .iter()
        .find(|(name, _)| *name == event)
        .map_or(meaning(Informational, Base, OTHER), |(_, meaning)| *meaning)
}

#[cfg(test)]
pub(super) fn is_known(event: &str) -> bool {
    EVENTS.iter().any(|(name, _)| *name == event)
}
