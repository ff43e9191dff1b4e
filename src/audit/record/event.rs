//! Events of the proxy, in records of kind `event`: version 1, as in `v1`.

mod approvals;
mod category;
mod content;
mod egress;
mod images;
mod people;
mod proxy;
mod refusals;
mod secrets;
mod servers;
mod store;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use approvals::*;
pub(crate) use category::{Category, Class, Severity};
pub(super) use content::Content;
pub use egress::*;
pub use images::*;
pub use people::*;
pub use proxy::*;
pub use refusals::*;
pub use secrets::*;
pub use servers::*;
pub use store::*;

use super::shared::Decision::{self, Allowed, Refused};
use category::*;

/// Defines [`Event`] with a line for each event: its struct, its name, its category in exports and,
/// if it is a decision, the decision.
macro_rules! events {
    ($(
        $event:ident = $name:literal, $category:expr $(, |$decided:pat_param| $decision:expr)?;
    )*) => {
        /// Events. `event` has the name.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(tag = "event")]
        pub enum Event {
            $(#[serde(rename = $name)] $event($event),)*
        }

        impl Event {
            /// The value of `event`.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$event(_) => $name,)* }
            }

            /// Category in exports.
            pub(crate) fn category(&self) -> Category {
                match self { $(Self::$event(_) => $category,)* }
            }

            /// The decision, if the event is one.
            pub fn decision(&self) -> Option<Decision> {
                match self {
                    $($(Self::$event($decided) => Some($decision),)?)*
                    _ => None,
                }
            }

            fn content(&self) -> &dyn Content {
                match self { $(Self::$event(event) => event,)* }
            }

            pub(super) fn content_mut(&mut self) -> &mut dyn Content {
                match self { $(Self::$event(event) => event,)* }
            }
        }

        /// The event in words, one line.
        impl fmt::Display for Event {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $(Self::$event(event) => event.fmt(f),)* }
            }
        }

        $(impl From<$event> for Event {
            fn from(event: $event) -> Self {
                Self::$event(event)
            }
        })*
    };
}

use Class::{Api, Authentication, Base, Entity, Error, Lifecycle, Network};
use Severity::{Critical, High, Informational, Low, Medium};

events! {
    ProxyStarted = "proxy-started", usual(Informational, Lifecycle, START);
    ProxyStartFailed = "proxy-start-failed", failure(High, Lifecycle, START);
    ProxyStopped = "proxy-stopped", usual(Informational, Lifecycle, STOP);
    ConfigLoaded = "config-loaded", usual(Informational, Entity, UPDATE);
    ConfigReloaded = "config-reloaded", usual(Low, Entity, UPDATE);
    ConfigRejected = "config-rejected", failure(High, Entity, UPDATE);
    PolicyLoaded = "policy-loaded", usual(Informational, Entity, UPDATE);
    PolicyRejected = "policy-rejected", failure(High, Entity, UPDATE);
    PluginLoaded = "plugin-loaded", usual(Informational, Lifecycle, ENABLE);
    PluginRefused = "plugin-refused", failure(High, Lifecycle, ENABLE);
    PluginHttpSent = "plugin-http-sent", usual(Informational, Base, OTHER);
    ClientSeen = "client-seen", usual(Informational, Authentication, LOGON);
    SessionOpened = "session-opened", usual(Informational, Authentication, OTHER);
    SessionEnded = "session-ended", usual(Informational, Authentication, LOGOFF);
    ServerLaunching = "server-launching", usual(Informational, Lifecycle, START);
    ServerLaunchRefused = "server-launch-refused", failure(Medium, Lifecycle, START), |_| Refused;
    ImageResolved = "image-resolved", usual(Informational, Entity, UPDATE);
    ImageLocked = "image-locked", usual(Low, Entity, UPDATE);
    ImageLockFailed = "image-lock-failed", failure(Medium, Entity, UPDATE);
    ImagePulling = "image-pulling", usual(Informational, Lifecycle, INSTALL);
    ImagePulled = "image-pulled", usual(Informational, Lifecycle, INSTALL);
    ImagePullFailed = "image-pull-failed", failure(Medium, Lifecycle, INSTALL);
    ServerLaunched = "server-launched", usual(Informational, Lifecycle, START);
    ServerLaunchFailed = "server-launch-failed", failure(Medium, Lifecycle, START);
    ServerStopped = "server-stopped", usual(Informational, Lifecycle, STOP);
    OrphansRemoving = "orphans-removing", usual(Informational, Entity, DELETE);
    OrphansRemoved = "orphans-removed", usual(Low, Entity, DELETE);
    EgressOpened = "egress-opened", usual(Informational, Network, OPEN);
    EgressConnecting = "egress-connecting", usual(Informational, Network, OPEN), |_| Allowed;
    EgressClosed = "egress-closed", usual(Informational, Network, CLOSE),
        |EgressClosed { end: EgressEnd::Refused, .. }| Refused;
    SecretsDelivered = "secrets-delivered", usual(Low, Entity, READ);
    SecretUnresolved = "secret-unresolved", failure(High, Entity, READ);
    SecretsStale = "secrets-stale", usual(Medium, Entity, READ);
    MessagesDropped = "messages-dropped", failure(Medium, Error, GENERAL);
    ApprovalRequested = "approval-requested", usual(Low, Api, OTHER);
    ApprovalWebhookFailed = "approval-webhook-failed", failure(Medium, Error, GENERAL);
    ApprovalDecided = "approval-decided", usual(Low, Api, OTHER),
        |decided| if decided.allowed { Allowed } else { Refused };
    ClientAdded = "client-added", usual(Low, Entity, CREATE);
    ClientRemoved = "client-removed", usual(Low, Entity, DELETE);
    AdminAction = "admin-action", usual(Informational, Api, OTHER), |action| action.decision;
    RefusalSummaryOpened = "refusal-summary-opened", failure(High, Error, GENERAL), |_| Refused;
    RefusalsSummarized = "refusals-summarized", failure(High, Error, GENERAL), |_| Refused;
    RecordsLost = "records-lost", failure(Critical, Error, GENERAL);
    RecordsDropped = "records-dropped", failure(Critical, Error, GENERAL);
    SegmentDropped = "segment-dropped", usual(Low, Entity, DELETE);
    KeyRotated = "key-rotated", usual(Low, Entity, UPDATE);
    StoreBackedUp = "store-backed-up", usual(Informational, Entity, READ);
}

impl Event {
    /// Server that the event is about: its field `server`.
    pub fn server(&self) -> Option<&str> {
        self.content().find("server")
    }

    /// Principal that the event is about: its field `principal` or `client`.
    pub fn principal(&self) -> Option<&str> {
        self.content().find("principal").or_else(|| self.content().find("client"))
    }

    /// Session that the event is about: its field `session`.
    pub fn session(&self) -> Option<&str> {
        self.content().find("session")
    }

    /// Common values of the refusals for which the event stands.
    pub fn refusals(&self) -> Option<&RefusalGroup> {
        match self {
            Self::RefusalSummaryOpened(opened) => Some(&opened.group),
            Self::RefusalsSummarized(summarized) => Some(&summarized.group),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{EventRecord, MEMBERS, Transport};

    #[test]
    fn fields_of_nested_structs_are_found_and_limited() {
        let who = ConnectedPrincipal {
            principal: "ci-bot".into(),
            verified: true,
            groups: vec!["automation".into(); MEMBERS + 1],
            key_id: None,
            client_addr: None,
            transport: Transport::Http,
        };
        let (session, revision) = ("s-1".into(), "2025-11-25".into());
        let opened = SessionOpened { session, who, revision, client_info: None };
        let mut opened = EventRecord::now(opened).what;
        let about = (opened.principal(), opened.session(), opened.server());
        assert_eq!(about, (Some("ci-bot"), Some("s-1"), None));
        opened.content_mut().texts(&mut String::clear);
        let Event::SessionOpened(SessionOpened { who, .. }) = &opened else { panic!("{opened}") };
        assert!(who.principal.is_empty() && who.groups == vec![String::new(); MEMBERS]);

        let (name, server) = ("portcullis-1".into(), Some("notes".into()));
        let orphan = Orphan { kind: OrphanKind::Container, name, server, error: None };
        let removing = OrphansRemoving { left: vec![orphan], by: CommandUser::default() };
        assert_eq!(Event::from(removing).server(), None);
    }
}
