//! Finds secrets in messages: in every string and key of requests, results, errors and lists. By
//! default refuses a request that contains one, with `secret-found`, and redacts it in a response.
//!
//! Two kinds are found: formats that a rule knows (`secrets/rules.toml`), and the values of secrets
//! that the proxy delivers to servers. Strings are scanned decoded, not as JSON text: an escaped
//! letter hides nothing, nor does one in JSON within a string (`layers`), nor an encoding such as
//! base64 (`encodings`). A redaction changes the string concerned and leaves every other byte
//! unchanged.
//!
//! In stored or displayed text, values that only their name marks as secret are redacted, too
//! (`names`, `redactor`). Not in messages, because tools need them.
//!
//! INVARIANTS: neither a verdict nor an error contains a secret or a part of one. The size of the
//! payload bounds the work and the memory of a scan: what would need more is a fault.

mod assigned;
mod baseline;
mod calls;
mod documents;
mod encodings;
mod files;
mod gitleaks;
mod handles;
mod json_strings;
mod layers;
mod named;
mod names;
mod pattern;
mod payload;
mod prefilter;
mod redactor;
mod rules;
mod scan;
mod split;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    calls::Beginnings,
    files::RuleFiles,
    handles::{Handles, Owner, may_have_handles},
    payload::Report,
    scan::Scanner,
};
pub use self::{
    redactor::{Redacted, Scrubber, Unredacted},
    rules::{Group, IllegalRules, Severity},
};
use portcullis_chain::{Decision, Fault, Hooks, Interceptor, Verdict, off_workers};
use portcullis_foundation::fair_semaphore::FairSemaphore;
use portcullis_protocol::{
    exchange::{Direction, Effect, Exchange, Finding, Method, Phase},
    identity::PrincipalKind,
    names::nearest,
    obligations::{Obligations, SecretTreatment},
    refusal::{Code, Refusal, Rule},
};
use portcullis_vault::Secret;

/// Settings of `secrets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Action for a secret in a request, unless `rules` has one for its rule.
    pub request: Action,
    /// Action for a secret in a response, unless `rules` has one for its rule.
    pub response: Action,
    /// Actions for the secrets of single rules, by rule id, for requests and responses. `vault`
    /// stands for all secrets that the proxy delivers to servers.
    pub rules: BTreeMap<String, Action>,
    /// Actions for the secrets of rules by severity, for requests and responses, unless `rules` or
    /// the rule itself has one.
    pub severities: BTreeMap<Severity, Action>,
    /// Actions for the groups of rules that are off by default, for requests and responses, unless
    /// `rules` has one for their rule: `cards` and `personal`.
    pub groups: BTreeMap<Group, Action>,
    /// Rule files of gitleaks (`gitleaks.toml`), in addition to the built-in rules. The ids of their
    /// rules begin with `gitleaks:`.
    pub gitleaks: Vec<PathBuf>,
    /// Baselines of detect-secrets: texts that are not secrets, except those of the `vault`.
    pub baselines: Vec<PathBuf>,
    /// Whether a redacted secret of a response becomes a handle (`[secret:RULE:DIGITS]`). In the
    /// arguments of a later call of the same client to the same server, the handle becomes the
    /// secret again.
    pub handles: bool,
    /// Maximum size in bytes of a scanned message. A larger message is a fault.
    pub max_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            request: Action::Refuse,
            response: Action::Redact,
            rules: BTreeMap::new(),
            severities: BTreeMap::new(),
            groups: BTreeMap::new(),
            gitleaks: Vec::new(),
            baselines: Vec::new(),
            handles: false,
            max_bytes: 64 << 20,
        }
    }
}

impl Config {
    /// Whether a rule is in use.
    fn has(&self, rule: &rules::Rule) -> bool {
        let of_group = |group| self.groups.get(&group).copied().unwrap_or(Action::Off);
        let action = self.rules.get(&rule.id).copied();
        action.or_else(|| rule.optional.map(of_group)) != Some(Action::Off)
    }
}

/// Action for a secret, in the order of strictness.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Do not search for the secret.
    Off,
    /// Let the message pass, with a finding.
    Report,
    /// Replace the secret with `[redacted:RULE]`. In an object's key: refuse the message.
    Redact,
    /// Refuse the message with `secret-found`.
    Refuse,
}

impl From<SecretTreatment> for Action {
    fn from(treatment: SecretTreatment) -> Self {
        match treatment {
            SecretTreatment::Allow => Self::Off,
            SecretTreatment::Report => Self::Report,
            SecretTreatment::Redact => Self::Redact,
            SecretTreatment::Refuse => Self::Refuse,
        }
    }
}

/// A secret that the proxy delivers to a server or a plugin.
#[derive(Debug, Clone)]
pub struct Known {
    /// Server, or entry of the plugin.
    pub holder: String,
    /// Name under which it is delivered.
    pub name: String,
    /// Client whose own value it is.
    pub client: Option<String>,
    pub value: Secret,
}

impl Known {
    /// `vault:HOLDER/NAME`, of characters that need no escape anywhere.
    fn id(&self) -> String {
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '_' }
        };
        let all = |text: &str| text.chars().map(plain).collect::<String>();
        format!("{VAULT}:{}/{}", all(&self.holder), all(&self.name))
    }
}

/// Invalid settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("`rules.{id}`: unknown rule{hint}", hint = did_you_mean(.near))]
    UnknownRule { id: String, near: Vec<String> },
    #[error("`max-bytes` is 0, which would make every message a fault")]
    NoBytes,
    #[error(transparent)]
    Rules(#[from] IllegalRules),
}

fn did_you_mean(near: &[String]) -> String {
    near.first().map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

/// Id that stands for all known secrets.
const VAULT: &str = "vault";
/// Minimum length in bytes of a known secret that is searched; shorter ones occur in any text.
const MIN_KNOWN_BYTES: usize = 8;
/// Size in bytes up to which a payload is scanned inline, without a separate thread.
const MAX_INLINE_BYTES: usize = 32 << 10;
/// Limit of simultaneous scans of large payloads.
const MAX_CONCURRENT: usize = 2;

/// Interceptor that finds secrets.
pub struct Secrets {
    name: String,
    hooks: Hooks,
    config: Config,
    files: RuleFiles,
    /// Secrets that clients got as handles, if the settings permit handles.
    handles: Option<Arc<Handles>>,
    /// Ends of messages that the next message of the session can continue.
    beginnings: Beginnings,
    tables: ArcSwap<Tables>,
    /// Secrets delivered to servers and plugins in this run.
    registered: Mutex<Vec<Known>>,
    scanning: FairSemaphore<PrincipalKind>,
}

/// Limit of the searched values of one secret of one client, or of all; the newest are kept. Older
/// replaced values are no longer valid.
const MAX_VALUES: usize = 8;

/// Adds values to the known ones, the newest last. An added value never displaces another added
/// one. Returns whether any is new.
fn add(registered: &mut Vec<Known>, more: &[Known]) -> bool {
    let mut news = false;
    for one in more {
        let same = |other: &Known| {
            other.holder == one.holder && other.name == one.name && other.client == one.client
        };
        if let Some(at) =
            registered.iter().position(|other| same(other) && other.value == one.value)
        {
            let again = registered.remove(at);
            registered.push(again);
            continue;
        }
        news = true;
        let is_added = |other: &Known| more.iter().any(|one| same(one) && one.value == other.value);
        if registered.iter().filter(|other| same(other)).count() >= MAX_VALUES
            && let Some(oldest) =
                registered.iter().position(|other| same(other) && !is_added(other))
        {
            registered.remove(oldest);
        }
        registered.push(one.clone());
    }
    news
}

/// Values without duplicates.
fn once(registered: &[Known]) -> Vec<Known> {
    let mut all = Vec::new();
    add(&mut all, registered);
    all
}

/// State of a scanning thread.
struct Tables {
    scanner: Scanner,
    /// Actions by the scanner's ids.
    request: Vec<Action>,
    response: Vec<Action>,
}

impl Secrets {
    /// Interceptor with this name in records, and the values that servers get. Reads the files of the
    /// settings.
    ///
    /// # Errors
    /// Settings for a rule that does not exist, or with which nothing could be scanned; a file that
    /// is not valid.
    pub fn new(
        name: impl Into<String>,
        config: &Config,
        registered: &[Known],
    ) -> Result<Self, Invalid> {
        if config.max_bytes == 0 {
            return Err(Invalid::NoBytes);
        }
        let registered = once(registered);
        let files = RuleFiles::read(config)?;
        Ok(Self {
            name: name.into(),
            hooks: Hooks::every(&[Phase::Request, Phase::Response]),
            tables: ArcSwap::from_pointee(Tables::new(config, &files, &registered)?),
            files,
            handles: config.handles.then(|| Arc::new(Handles::new())),
            config: config.clone(),
            beginnings: Beginnings::default(),
            registered: Mutex::new(registered),
            scanning: FairSemaphore::new(MAX_CONCURRENT),
        })
    }

    /// Also searches these values from now on. Of older ones the newest are kept, so values in use
    /// must be among these. Blocks for a while.
    ///
    /// # Errors
    /// Values with which nothing could be scanned; then nothing changes.
    pub fn learn(&self, more: &[Known]) -> Result<(), Invalid> {
        let mut registered = self.registered.lock();
        let mut all = registered.clone();
        if add(&mut all, more) {
            self.tables.store(Arc::new(Tables::new(&self.config, &self.files, &all)?));
        }
        *registered = all;
        Ok(())
    }

    fn finding(&self, phase: Phase, rule: Rule, message: String, effect: Effect) -> Finding {
        Finding { interceptor: self.name.clone(), phase, rule, message, effect }
    }

    /// Verdict on a message with these findings.
    fn verdict(&self, tables: &Tables, phase: Phase, report: Report) -> Verdict {
        let mut verdict = Verdict::pass();
        for found in &report.found {
            let what = if found.is_key { "the key at" } else { "the string at" };
            let effect = match found.action {
                Action::Refuse => Effect::Refused,
                Action::Redact if !report.refuse => Effect::Redacted,
                _ => Effect::Reported,
            };
            let place = if found.place.is_empty() { "the top" } else { &found.place };
            let message = format!("a secret in {what} {place}");
            verdict.findings.push(self.finding(phase, tables.rule(found.id), message, effect));
        }
        if report.more > 0 {
            let message = format!("{} more secrets", report.more);
            verdict.findings.push(self.finding(
                phase,
                Rule::named(self.name.clone()),
                message,
                Effect::Reported,
            ));
        }
        if report.refuse {
            let side = match phase {
                Phase::Request => "the request",
                Phase::Response => "the answer",
            };
            let mut refusal = Refusal::new(
                Code::SecretFound,
                format!("{side} contains a secret, which the `secrets` interceptor blocks"),
            );
            let refused = report.found.iter().filter(|found| found.action == Action::Refuse);
            let ids: BTreeSet<_> = refused.map(|found| found.id).collect();
            for id in ids {
                refusal = refusal.rule(tables.rule(id));
            }
            verdict.decision = Decision::Refuse(refusal);
        } else if let Some(redacted) = report.redacted {
            verdict.decision = Decision::Replace(redacted);
        }
        verdict
    }
}

impl Tables {
    fn new(config: &Config, files: &RuleFiles, registered: &[Known]) -> Result<Self, Invalid> {
        let members = rules::Rule::of_members();
        let optional = rules::optional()?;
        let all = rules::built_in()?.iter().chain([&members]).chain(optional).chain(&files.rules);
        let all: Vec<_> = all.collect();
        for id in config.rules.keys() {
            let ids = || all.iter().map(|rule| rule.id.as_str()).chain([VAULT]);
            if !ids().any(|known| known == id) {
                return Err(Invalid::UnknownRule { id: id.clone(), near: nearest(id, ids()) });
            }
        }
        let is_off = |id: &str| config.rules.get(id) == Some(&Action::Off);
        let rules = all.into_iter().filter(|rule| config.has(rule)).cloned().collect();
        let mut exact = Vec::new();
        for secret in registered.iter().filter(|_| !is_off(VAULT)) {
            if secret.value.expose().len() >= MIN_KNOWN_BYTES {
                let value = secret.value.expose();
                exact.push((secret.id(), value.to_owned()));
                exact.extend(encodings::encoded(value).into_iter().map(|text| (secret.id(), text)));
            } else {
                tracing::warn!(
                    holder = secret.holder,
                    secret = %secret.name,
                    "messages are not scanned for a secret of fewer than {MIN_KNOWN_BYTES} bytes"
                );
            }
        }
        let exact: Vec<_> = exact.iter().map(|(id, text)| (id.clone(), text.as_str())).collect();
        let scanner = Scanner::new(rules, &exact)?.without(files.baseline.clone());
        let table = |phase: Phase, default: Action| -> Vec<Action> {
            let ids = scanner.ids.iter().enumerate();
            ids.map(|(i, id)| {
                let key = if scanner.is_known(i) { VAULT } else { id };
                let of_group = || config.groups.get(&scanner.group(i)?).copied();
                let own = config.rules.get(key).copied();
                let own = own.or_else(of_group).or(scanner.action(i));
                let by_severity = || config.severities.get(&scanner.severity(i)).copied();
                // Tools get passwords as arguments.
                let default = match (phase, key == rules::MEMBER) {
                    (Phase::Request, true) => default.min(Action::Report),
                    _ => default,
                };
                own.or_else(|| by_severity().filter(|_| key != VAULT)).unwrap_or(default)
            })
            .collect()
        };
        let request = table(Phase::Request, config.request);
        let response = table(Phase::Response, config.response);
        Ok(Self { scanner, request, response })
    }

    /// One of the scanner's rules, as named in records.
    fn rule(&self, id: usize) -> Rule {
        let scanner = &self.scanner;
        Rule {
            reason: scanner.description(id).map(str::to_owned),
            ..Rule::named(scanner.ids.get(id).map_or("", String::as_str))
        }
    }

    /// Actions by the scanner's ids: of policies, otherwise of the settings.
    fn actions(&self, phase: Phase, decided: &[Arc<Obligations>]) -> Cow<'_, [Action]> {
        let default = match phase {
            Phase::Request => &self.request,
            Phase::Response => &self.response,
        };
        let of_policies = decided.iter().flat_map(|one| &one.secrets);
        let of_policies: Vec<_> =
            of_policies.filter(|one| one.phase.is_none_or(|of| of == phase)).collect();
        if of_policies.is_empty() {
            return Cow::Borrowed(default);
        }
        let strictest = |rule: Option<&str>| {
            let actions = of_policies.iter().filter(|one| one.rule.as_deref() == rule);
            actions.map(|one| one.treatment).max().map(Action::from)
        };
        let of_all = strictest(None);
        let ids = self.scanner.ids.iter().zip(default).enumerate();
        ids.map(|(i, (id, default))| match self.scanner.is_known(i) {
            true => strictest(Some(VAULT)).unwrap_or(*default),
            false => strictest(Some(id)).or(of_all).unwrap_or(*default),
        })
        .collect()
    }

    fn inspect(
        &self,
        phase: Phase,
        raw: &[u8],
        decided: &[Arc<Obligations>],
        handles: Option<&(Arc<Handles>, Owner)>,
        before: &[u8],
    ) -> Result<Inspected, Fault> {
        let actions = self.actions(phase, decided);
        let fault = |error: payload::Unscanned| Fault(error.to_string());
        // A server has its own known secrets, and others must not get them.
        let make = handles.map(|(handles, owner)| {
            move |id: usize, secret: &str| {
                if self.scanner.is_known(id) { None } else { handles.keep(owner, secret) }
            }
        });
        let make = make.as_ref().filter(|_| phase == Phase::Response);
        let make = make.map(|make| make as &payload::MakeHandle<'_>);
        let inspected = payload::inspect(&self.scanner, &actions, raw, make, before);
        let (report, beginning) = inspected.map_err(fault)?;
        let resolved = match handles {
            Some((handles, owner)) if phase == Phase::Request && may_have_handles(raw) => {
                let raw = report.redacted.as_deref().unwrap_or(raw);
                let resolve = |text: &[u8]| handles.in_text(owner, text);
                payload::resolve_handles(&self.scanner, raw, resolve).map_err(fault)?
            }
            _ => None,
        };
        Ok(Inspected { report, resolved, beginning })
    }
}

/// Result of the inspection of a message.
#[derive(Debug, Default)]
struct Inspected {
    report: Report,
    /// The message with the values of its handles.
    resolved: Option<Bytes>,
    /// End of the message that may be the beginning of a secret.
    beginning: Option<String>,
}

#[async_trait]
impl Interceptor for Secrets {
    fn name(&self) -> &str {
        &self.name
    }

    fn wants(&self, method: &Method, phase: Phase) -> bool {
        self.hooks.wants(method, phase)
    }

    async fn inspect(&self, exchange: &Exchange, phase: Phase) -> Result<Verdict, Fault> {
        if phase == Phase::Response && exchange.response.is_none() {
            return Ok(Verdict::pass());
        }
        let tables = self.tables.load_full();
        let raw = exchange.payload(phase).raw();
        if raw.len() > self.config.max_bytes {
            return Err(Fault(format!(
                "the message has {} bytes; `max-bytes` is {}",
                raw.len(),
                self.config.max_bytes
            )));
        }
        // Only what a server answers a client gets handles, and only a client's request uses them.
        let is_of_client = exchange.direction == Direction::ClientToServer;
        let handles = self.handles.clone().filter(|_| is_of_client);
        let handles = handles.and_then(|handles| Some((handles, Owner::of(exchange)?)));
        let conversation = calls::conversation(exchange, phase);
        let before = conversation.as_ref().and_then(|of| self.beginnings.take(of));
        let before = before.as_ref().map_or("", Secret::expose);
        let inspected = if raw.len() <= MAX_INLINE_BYTES {
            let decided = &exchange.obligations;
            tables.inspect(phase, raw, decided, handles.as_ref(), before.as_bytes())?
        } else {
            let closed = |_| Fault("the proxy is shutting down".into());
            let turn = self.scanning.next(&exchange.principal.kind).await.map_err(closed)?;
            let (tables, raw) = (tables.clone(), raw.clone());
            let decided = exchange.obligations.clone();
            let before = Secret::new(before.to_owned());
            let scan = move || {
                // Held by the thread: after a call's deadline, its scan still runs.
                let _turn = turn;
                let before = before.expose().as_bytes();
                tables.inspect(phase, &raw, &decided, handles.as_ref(), before)
            };
            off_workers(scan).await.map_err(|_| Fault("the scan did not finish".into()))??
        };
        if let Some((of, beginning)) = conversation.zip(inspected.beginning) {
            self.beginnings.keep(of, beginning);
        }
        let mut verdict = self.verdict(&tables, phase, inspected.report);
        if let Some(resolved) = inspected.resolved
            && !matches!(verdict.decision, Decision::Refuse(_))
        {
            let message = "handles of secrets were replaced by the secrets".to_owned();
            let rule = Rule::named(self.name.clone());
            verdict.findings.push(self.finding(phase, rule, message, Effect::Replaced));
            verdict.decision = Decision::Replace(resolved);
        }
        Ok(verdict)
    }
}

#[cfg(test)]
mod templates;
#[cfg(test)]
mod tests;
