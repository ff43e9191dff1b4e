//! Proposes a least-privilege policy from recorded calls: only recorded actions, by name.
//!
//! INVARIANT: clients get permits only for what was recorded as allowed. One exception, stated in
//! the policies: a client that used an item of a server may `connect` to it, or lists would not
//! show the item. Calls that passed under an approval, a redaction or a rate are not learned,
//! because a plain permit would be wider. The proxy may also start the servers that were used, with
//! the programs, secrets and hosts that are on record.

mod cases;
mod starts;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{EntityId, EntityTypeName, EntityUid};
use jiff::Timestamp;
use serde::Serialize;

pub use self::starts::START_EVENTS;
use self::starts::Starts;
use super::replay::{Recorded, SkipReason};
use portcullis_audit::record::{Entry, RULES, Record};
use portcullis_policy::{Action, Finding, Target, Verdict};
use portcullis_protocol::claims::Claims;
use portcullis_protocol::identity::PrincipalKind;

/// Maximum number of names; a log with more is unsuitable.
const NAMES: usize = 50_000;

/// Obligations that bound a permit: a plain permit would be wider. Others apply after the decision.
const CONDITIONS: [&str; 3] = ["approve", "redact", "rate"];

/// Collects recorded calls.
#[derive(Default)]
pub struct Learner {
    uses: BTreeMap<Access, BTreeMap<String, Use>>,
    names: usize,
    calls: u64,
    /// Number of allowed calls that are not learned, by reason.
    left_out: BTreeMap<&'static str, u64>,
    /// Number of allowed calls that are not learned because their permit had obligations: by
    /// principal and action, with the obligations.
    obliged: BTreeMap<String, u64>,
    /// Number of refused calls, by target.
    refused: BTreeMap<(Access, String), u64>,
    time: Option<(Timestamp, Timestamp)>,
    /// What the proxy did for each server.
    starts: BTreeMap<String, Starts>,
}

/// The principal, server and action of calls.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Access {
    who: PrincipalIdentity,
    server: Option<String>,
    action: &'static str,
    /// Type of the targets.
    of: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum PrincipalIdentity {
    Client(String),
    Local(String),
    Anonymous,
}

impl PrincipalIdentity {
    fn of(kind: &PrincipalKind) -> Self {
        match kind {
            PrincipalKind::Client(name) => Self::Client(name.to_string()),
            PrincipalKind::Local { user } => Self::Local(user.clone()),
            PrincipalKind::Anonymous => Self::Anonymous,
        }
    }

    /// The name in records and in case files, and the prefix of policy ids.
    fn name(&self) -> String {
        match self {
            Self::Client(name) => name.clone(),
            Self::Local(user) => format!("local:{user}"),
            Self::Anonymous => "anonymous".to_owned(),
        }
    }

    fn uid(&self) -> String {
        match self {
            Self::Client(name) => uid("Client", name),
            Self::Local(user) => uid("Local", user),
            Self::Anonymous => uid("Anonymous", "anonymous"),
        }
    }

    /// The name in case files.
    fn party(&self) -> String {
        match self {
            Self::Client(name) => format!("client:{name}"),
            Self::Local(_) | Self::Anonymous => self.name(),
        }
    }
}

/// Number of calls of one target, and its claims.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    calls: u64,
    claims: Option<Claims>,
}

/// The proposal.
#[derive(Debug, Clone, Serialize)]
pub struct Proposal {
    /// The text of the policy file.
    pub policies: String,
    /// The text of the case file beside it.
    pub cases: String,
    /// Number of recorded calls that it was learned from.
    pub calls: u64,
    /// Number of policies.
    pub rules: usize,
    /// Number of allowed calls that were not learned, by reason: these policies may refuse them.
    pub left_out: BTreeMap<&'static str, u64>,
    /// Number of allowed calls that were not learned because they passed under an obligation, such
    /// as an approval, that these policies would not require: by principal and action.
    pub obliged: BTreeMap<String, u64>,
    /// Number of refused calls that these policies permit: their names did not decide.
    pub refused: u64,
    /// Servers that were used, and whose start is not on record: no policy permits it.
    pub not_started: Vec<String>,
}

impl Learner {
    /// Learns from a record.
    pub fn take(&mut self, entry: &Entry) {
        let allowed = matches!(entry.record, Record::Intent(_));
        let recorded = match Recorded::read(entry) {
            Ok(recorded) => recorded,
            Err(SkipReason::Missing(what)) if allowed => {
                *self.left_out.entry(what).or_default() += 1;
                return;
            }
            Err(_) => return,
        };
        let (access, name) = access(&recorded);
        if recorded.was != Verdict::Allowed {
            if self.refused.len() < NAMES {
                *self.refused.entry((access, name)).or_default() += 1;
            }
            return;
        }
        if let Record::Intent(intent) = &entry.record {
            let rules = &intent.grounds.rules;
            let asks = |name: &&str| rules.iter().any(|r| r.asks.iter().any(|ask| ask == name));
            let obligations: Vec<_> =
                CONDITIONS.iter().filter(|c| asks(c)).map(|c| format!("@{c}")).collect();
            if !obligations.is_empty() {
                let what = access.refusal_text(&name, &obligations.join(", "));
                if self.obliged.contains_key(&what) || self.obliged.len() < NAMES {
                    *self.obliged.entry(what).or_default() += 1;
                } else {
                    *self.left_out.entry("too many names").or_default() += 1;
                }
                return;
            }
            if rules.len() >= RULES && intent.grounds.omitted > 0 {
                *self.left_out.entry("rules").or_default() += 1;
                return;
            }
        }
        let names = self.uses.entry(access).or_default();
        if !names.contains_key(&name) {
            if self.names >= NAMES {
                *self.left_out.entry("too many names").or_default() += 1;
                return;
            }
            self.names += 1;
        }
        let one = names.entry(name).or_default();
        one.calls += 1;
        if let Target::Tool(..) = recorded.target {
            one.claims = Some(recorded.claims);
        }
        self.calls += 1;
        let at = entry.record.at();
        let (first, last) = self.time.unwrap_or((at, at));
        self.time = Some((first.min(at), last.max(at)));
    }

    /// The proposal, for a file of this name.
    ///
    /// # Errors
    /// If the policies cannot be formatted.
    pub fn finish(mut self, file: &str) -> Result<Proposal, Vec<Finding>> {
        self.permit_connect();
        let policies = write::policies(&self);
        let policies = super::format(std::path::Path::new(file), &policies)?;
        let permitted = |(access, name): &(Access, String)| {
            self.uses.get(access).is_some_and(|u| u.contains_key(name))
        };
        let refused =
            self.refused.iter().filter(|(of, _)| permitted(of)).map(|(_, calls)| calls).sum();
        Ok(Proposal {
            policies,
            cases: cases::cases(&self, file),
            calls: self.calls,
            rules: self.uses.len()
                + self.started().map(|(_, starts)| starts.policies()).sum::<usize>(),
            not_started: self.not_started().map(str::to_owned).collect(),
            left_out: self.left_out,
            obliged: self.obliged,
            refused,
        })
    }

    /// Adds permits for `connect`, without which lists would not show what clients may use.
    fn permit_connect(&mut self) {
        let used: BTreeSet<(PrincipalIdentity, String)> = self
            .uses
            .keys()
            .filter(|access| {
                access.of != "Server" && access.of != "Proxy" && !access.is_by_server()
            })
            .filter_map(|access| Some((access.who.clone(), access.server.clone()?)))
            .collect();
        for (who, server) in used {
            let access =
                Access { who, server: None, action: Action::Connect.as_str(), of: "Server" };
            self.uses.entry(access).or_default().entry(server).or_default();
        }
    }

    /// The servers with recorded requests, from or to them.
    fn servers(&self) -> BTreeSet<&str> {
        let greeted =
            self.uses.iter().filter(|(access, _)| access.server.is_none() && access.of == "Server");
        let named = greeted.flat_map(|(_, names)| names.keys().map(String::as_str));
        self.uses.keys().filter_map(|access| access.server.as_deref()).chain(named).collect()
    }

    /// The used servers whose start is on record.
    fn started(&self) -> impl Iterator<Item = (&str, &Starts)> {
        self.servers().into_iter().filter_map(|server| Some((server, self.starts.get(server)?)))
    }

    /// The used servers whose start is not on record.
    fn not_started(&self) -> impl Iterator<Item = &str> {
        self.servers().into_iter().filter(|server| !self.starts.contains_key(*server))
    }

    /// All tools that any principal used, by server.
    fn tools(&self) -> BTreeMap<&str, BTreeMap<&str, Use>> {
        let mut tools: BTreeMap<&str, BTreeMap<&str, Use>> = BTreeMap::new();
        for (access, names) in &self.uses {
            if let ("Tool", Some(server)) = (access.of, &access.server) {
                let names = names.iter().map(|(name, one)| (name.as_str(), *one));
                tools.entry(server).or_default().extend(names);
            }
        }
        tools
    }
}

impl Access {
    fn is_by_server(&self) -> bool {
        self.of == "Method of a server"
    }

    /// Describes a use and its obligations in one line.
    fn refusal_text(&self, name: &str, obligations: &str) -> String {
        let thing = match (&self.server, self.of) {
            (Some(server), _) => format!("{server}/{name}"),
            (None, _) => name.to_owned(),
        };
        let (who, thing) = (self.who.name(), thing.escape_debug().to_string());
        format!("{}: {} {thing} ({obligations})", who.escape_debug(), self.action)
    }

    /// The id of its policy.
    fn id(&self) -> String {
        let who = self.who.name();
        match (&self.server, self.of) {
            (Some(server), "ResourceTemplate") => {
                format!("{who}/{server}/{}-template", self.action)
            }
            (Some(server), _) => format!("{who}/{server}/{}", self.action),
            (None, "Proxy") => format!("{who}/{}", self.action),
            (None, _) => format!("{who}/{}-servers", self.action),
        }
    }
}

/// Principal, action and target name; the server or the method, if the target does not have a name.
fn access(recorded: &Recorded) -> (Access, String) {
    let who = PrincipalIdentity::of(&recorded.principal.kind);
    let action = recorded.action;
    let by_method = matches!(
        action,
        Action::NotifyServer
            | Action::OtherMethod
            | Action::NotifyClient
            | Action::OtherServerMethod
    );
    let (server, of, name) = match &recorded.target {
        Target::Proxy if by_method => (None, "Proxy", recorded.method.clone()),
        Target::Proxy => (None, "Proxy", "portcullis".to_owned()),
        Target::Server(server) if by_method => {
            (Some(server.to_string()), "Server", recorded.method.clone())
        }
        // One policy for all servers.
        Target::Server(server) => (None, "Server", server.to_string()),
        Target::Tool(server, name) => (Some(server.to_string()), "Tool", name.clone()),
        Target::Prompt(server, name) => (Some(server.to_string()), "Prompt", name.clone()),
        Target::Resource(server, uri) => (Some(server.to_string()), "Resource", uri.clone()),
        Target::Template(server, uri) => {
            (Some(server.to_string()), "ResourceTemplate", uri.clone())
        }
        Target::Requester(server) => {
            (Some(server.to_string()), "Method of a server", recorded.method.clone())
        }
    };
    (Access { who, server, action: action.as_str(), of }, name)
}

/// An entity in Cedar's syntax, with its id escaped.
fn uid(kind: &str, id: &str) -> String {
    match format!("Portcullis::{kind}").parse::<EntityTypeName>() {
        Ok(kind) => EntityUid::from_type_name_and_id(kind, EntityId::new(id)).to_string(),
        Err(_) => String::new(),
    }
}
