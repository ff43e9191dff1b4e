//! A log of calls, as a proxy would have left it.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use portcullis_audit::{
    Audit, DecisionContext, Intent, Refused,
    record::{
        DeliveredSecret, DeliveryKind, EgressConnecting, KeptBody, RuntimeKind, SecretSource,
        SecretsDelivered, ServerLaunching,
    },
};
use portcullis_protocol::{
    exchange::{Definition, Direction, Exchange, Method, Payload, Revision, Target, Transport},
    identity::{Principal, PrincipalKind},
    names::DecisionId,
    refusal::{Code, Refusal, Rule},
};
use serde_json::{Value, json};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A call of a tool, as the proxy would have it.
pub struct Called<'a> {
    pub who: &'a str,
    pub tool: &'a str,
    pub args: Value,
    pub read_only: bool,
    pub kept: bool,
    pub allowed: bool,
    /// An annotation of the policy that permitted it, and its text.
    pub under: Option<(&'a str, &'a str)>,
    /// The policy that refused it.
    pub by: Option<&'a str>,
    /// What kept its server from being started, or the call from being asked about.
    pub start: Option<(Code, &'a str)>,
}

impl<'a> Called<'a> {
    pub fn new(who: &'a str, tool: &'a str) -> Self {
        Self {
            who,
            tool,
            args: json!({}),
            read_only: true,
            kept: false,
            allowed: true,
            under: None,
            by: None,
            start: None,
        }
    }

    pub fn refused(self) -> Self {
        Self { allowed: false, ..self }
    }

    pub fn args(self, args: Value) -> Self {
        Self { args, ..self }
    }

    pub fn keeping(self) -> Self {
        Self { kept: true, ..self }
    }

    fn exchange(&self) -> Exchange {
        let kind = match self.who.strip_prefix("local:") {
            Some(user) => PrincipalKind::Local { user: user.into() },
            None => PrincipalKind::Client(self.who.parse().unwrap()),
        };
        let groups = vec!["readers".parse().unwrap()];
        let principal = Principal { kind, groups, verified: true, key: None };
        let definition = json!({
            "name": self.tool,
            "inputSchema": { "properties": { "force": {}, "path": {} } },
            "annotations": { "readOnlyHint": self.read_only },
        });
        let tool =
            Definition::new("notes".parse().unwrap(), self.tool.into(), Payload::from(definition));
        Exchange {
            id: DecisionId::next(),
            at: jiff::Timestamp::now(),
            started: Instant::now(),
            principal: Arc::new(principal),
            direction: Direction::ClientToServer,
            method: Method::new(Method::TOOLS_CALL),
            notification: false,
            transport: Transport::Http,
            client_addr: Some(([127, 0, 0, 1], 4000).into()),
            session: None,
            session_calls: 0,
            revision: Revision::LATEST_MODERN,
            server: Some("notes".parse().unwrap()),
            target: Target::Tool { name: self.tool.into(), tool: Some(Arc::new(tool)) },
            request: Payload::from(json!({ "name": self.tool, "arguments": self.args })),
            response: None,
            labels: BTreeSet::new(),
            obligations: Default::default(),
            trace: None,
        }
    }
}

/// Writes these calls to the log of a folder; their decisions.
pub fn record(folder: &TempDir, calls: &[Called<'_>]) -> Vec<DecisionId> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let audit = Audit::open(&folder.path().join("state/audit"), PATIENCE).unwrap();
        let mut ids = Vec::new();
        for call in calls {
            let exchange = call.exchange();
            ids.push(exchange.id);
            let kept = call.kept.then(|| KeptBody::of(call.args.clone(), 0));
            if let Some((code, detail)) = call.start {
                let refusal = Refusal::new(code, "not to be started").detail(detail);
                let refused =
                    Refused::of(&exchange, &refusal, DecisionContext::default(), audit.key());
                audit.refused(refused).await.unwrap();
            } else if call.allowed {
                let rule = call.under.map(|(name, text)| {
                    let mut rule = Rule::named("permits");
                    Arc::make_mut(&mut rule.obligations).take(name, text).unwrap();
                    rule
                });
                let ruling =
                    DecisionContext { rules: rule.as_slice(), ..DecisionContext::default() };
                let intent = Intent::of(&exchange, ruling, audit.key());
                audit.intent(intent.keeping(kept)).await.unwrap();
            } else {
                let refusal = Refusal::new(Code::PolicyDenied, "not permitted by policy");
                let rule = call.by.map(|id| Rule {
                    file: Some("policies/p.cedar".into()),
                    line: Some(10),
                    reason: Some("nothing is destroyed here".into()),
                    ..Rule::named(id)
                });
                let ruling =
                    DecisionContext { rules: rule.as_slice(), ..DecisionContext::default() };
                let refused = Refused::of(&exchange, &refusal, ruling, audit.key());
                audit.refused(refused.keeping(kept)).await.unwrap();
            }
        }
        drop(audit);
        ids
    })
}

/// Writes the start of a server, its secret and its connection to the log of a folder.
pub fn record_start(folder: &TempDir, server: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let audit = Audit::open(&folder.path().join("state/audit"), PATIENCE).unwrap();
        let (launch, server) = (DecisionId::next(), server.to_owned());
        let started = ServerLaunching {
            launch,
            server: server.clone(),
            kind: RuntimeKind::Sandbox,
            program: "notes-server".into(),
            digest: Some("sha256:00".into()),
            deviations: vec!["egress".into()],
            signers: Vec::new(),
            attested: Vec::new(),
            principal: None,
            rules: Vec::new(),
            policy_revision: "r".into(),
        };
        audit.record_event(started).await.unwrap();
        let secret = DeliveredSecret {
            secret: "TOKEN".into(),
            source: SecretSource::Env,
            by: DeliveryKind::Environment,
            own: false,
        };
        let secrets = vec![secret];
        let delivered =
            SecretsDelivered { launch, server: server.clone(), principal: None, secrets };
        audit.record_event(delivered).await.unwrap();
        let connecting = EgressConnecting {
            launch,
            server,
            principal: None,
            connection: 1,
            host: "api.example.com".into(),
            port: 443,
            protocol: "connect".into(),
            rules: Vec::new(),
            policy_revision: "r".into(),
        };
        audit.record_event(connecting).await.unwrap();
    });
}

/// What a person sees of a log, whatever the decisions' ids.
pub fn look(folder: &TempDir, args: &[&str]) -> String {
    let state = folder.path().join("state");
    let args: Vec<_> =
        args.iter().copied().chain(["--state-dir", state.to_str().unwrap()]).collect();
    let text = shown(&portcullis(folder, &args));
    let id = regex::Regex::new("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{21}").unwrap();
    let text = id.replace_all(&text, "[id]").into_owned();
    let revision = regex::Regex::new(r"\b[0-9a-f]{12}\b").unwrap();
    let text = revision.replace_all(&text, "[revision]").into_owned();
    let day = regex::Regex::new(r"\d{4}-\d\d-\d\d").unwrap();
    day.replace_all(&text, "[day]").into_owned()
}
