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

mod documents;
mod encodings;
mod json_strings;
mod layers;
mod named;
mod names;
mod payload;
mod redactor;
mod rules;
mod scan;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{payload::Report, scan::Scanner};
pub use self::{
    redactor::{Redacted, Scrubber, Unredacted},
    rules::IllegalRules,
};
use portcullis_chain::{Decision, Fault, Hooks, Interceptor, Verdict, off_workers};
use portcullis_foundation::fair_semaphore::FairSemaphore;
use portcullis_protocol::{
    exchange::{Effect, Exchange, Finding, Method, Phase},
    identity::PrincipalKind,
    names::nearest,
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
    /// Maximum size in bytes of a scanned message. A larger message is a fault.
    pub max_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            request: Action::Refuse,
            response: Action::Redact,
            rules: BTreeMap::new(),
            max_bytes: 64 << 20,
        }
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
    /// Interceptor with this name in records, and the values that servers get.
    ///
    /// # Errors
    /// Settings for a rule that does not exist, or with which nothing could be scanned.
    pub fn new(
        name: impl Into<String>,
        config: &Config,
        registered: &[Known],
    ) -> Result<Self, Invalid> {
        if config.max_bytes == 0 {
            return Err(Invalid::NoBytes);
        }
        let registered = once(registered);
        Ok(Self {
            name: name.into(),
            hooks: Hooks::every(&[Phase::Request, Phase::Response]),
            tables: ArcSwap::from_pointee(Tables::new(config, &registered)?),
            config: config.clone(),
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
            self.tables.store(Arc::new(Tables::new(&self.config, &all)?));
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
    fn new(config: &Config, registered: &[Known]) -> Result<Self, Invalid> {
        let built_in = rules::built_in()?;
        for id in config.rules.keys() {
            let ids = || built_in.iter().map(|rule| rule.id.as_str()).chain([VAULT]);
            if !ids().any(|known| known == id) {
                return Err(Invalid::UnknownRule { id: id.clone(), near: nearest(id, ids()) });
            }
        }
        let is_off = |id: &str| config.rules.get(id) == Some(&Action::Off);
        let rules = built_in.iter().filter(|rule| !is_off(&rule.id)).cloned().collect();
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
        let scanner = Scanner::new(rules, &exact)?;
        let table = |default: Action| -> Vec<Action> {
            let ids = scanner.ids.iter().enumerate();
            ids.map(|(i, id)| {
                let key = if scanner.is_known(i) { VAULT } else { id };
                config.rules.get(key).copied().or(scanner.action(i)).unwrap_or(default)
            })
            .collect()
        };
        let (request, response) = (table(config.request), table(config.response));
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

    fn inspect(&self, phase: Phase, raw: &[u8]) -> Result<Report, Fault> {
        let actions = match phase {
            Phase::Request => &self.request,
            Phase::Response => &self.response,
        };
        payload::inspect(&self.scanner, actions, raw).map_err(|error| Fault(error.to_string()))
    }
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
        let report = if raw.len() <= MAX_INLINE_BYTES {
            tables.inspect(phase, raw)?
        } else {
            let closed = |_| Fault("the proxy is shutting down".into());
            let turn = self.scanning.next(&exchange.principal.kind).await.map_err(closed)?;
            let (tables, raw) = (tables.clone(), raw.clone());
            let scan = move || {
                // Held by the thread: after a call's deadline, its scan still runs.
                let _turn = turn;
                tables.inspect(phase, &raw)
            };
            off_workers(scan).await.map_err(|_| Fault("the scan did not finish".into()))??
        };
        Ok(self.verdict(&tables, phase, report))
    }
}

#[cfg(test)]
mod templates;
#[cfg(test)]
mod tests;
