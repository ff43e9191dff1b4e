//! Checks arguments against a tool's `inputSchema` and structured results against its
//! `outputSchema` (JSON Schema 2020-12, or the draft that `$schema` names).
//!
//! Refuses with `arguments-invalid`, `result-invalid`, and `server-misbehaved` if a tool's schema
//! is unusable. Its texts never contain a value, which may be a secret: only positions, and the
//! schema's own text.
//!
//! A schema is untrusted text of a server. INVARIANTS: nothing is fetched, from a network or a
//! file; patterns run in linear time; the work of one check has a limit that is known before it
//! begins (`complexity`); each definition is compiled once, and the cache is limited (`cache`).

mod cache;
mod compiled;
mod complexity;

use std::{borrow::Cow, panic::AssertUnwindSafe, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, oneshot};

use self::{
    cache::{Cache, Checks},
    compiled::{Check, CheckFailure, Unusable as Reason},
};
use portcullis_chain::{Fault, Hooks, Interceptor, Verdict, off_workers};
use portcullis_foundation::fair_semaphore::FairSemaphore;
use portcullis_protocol::{
    exchange::{Answer, Definition, Effect, Exchange, Finding, Method, Payload, Phase, Target},
    identity::PrincipalKind,
    refusal::{Code, Refusal, Rule},
};

/// Settings of `schema`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Check arguments against `inputSchema`.
    pub arguments: bool,
    /// Check structured results against `outputSchema`.
    pub results: bool,
    /// Handling of calls of a tool whose schema is missing, invalid, too complex or has external
    /// references.
    pub unusable: Unusable,
}

impl Default for Config {
    fn default() -> Self {
        Self { arguments: true, results: true, unusable: Unusable::Refuse }
    }
}

/// Handling of a call without a usable schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unusable {
    /// Refuse with `server-misbehaved`.
    #[default]
    Refuse,
    /// Let the call pass unchecked, with a finding.
    Pass,
}

/// Invalid settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error(
        "`arguments` and `results` are both false: enable one of them, or remove `schema` from \
        the chain"
    )]
    Nothing,
}

/// Size in bytes up to which a payload is checked inline, without a separate thread.
const MAX_INLINE_BYTES: usize = 64 << 10;
/// Units of work up to which a payload is checked inline.
const MAX_INLINE_WORK: u64 = 100_000;
/// Limit of simultaneous compilations and checks of large payloads.
const MAX_CONCURRENT: usize = 2;
/// Stack of a compiling thread: compilation recurses with the length of a chain of references.
const COMPILE_STACK_BYTES: usize = 256 << 20;
/// Limit in bytes of a server's text in messages.
const MAX_TEXT_BYTES: usize = 200;

/// Interceptor that checks schemas.
pub struct Schema {
    name: String,
    hooks: Hooks,
    unusable: Unusable,
    cache: Arc<Mutex<Cache>>,
    compiling: Arc<Semaphore>,
    checking: FairSemaphore<PrincipalKind>,
}

impl Schema {
    /// Interceptor with this name in records.
    ///
    /// # Errors
    /// Settings that check nothing.
    pub fn new(name: impl Into<String>, config: &Config) -> Result<Self, Invalid> {
        if !config.arguments && !config.results {
            return Err(Invalid::Nothing);
        }
        let on = |phase, wanted: bool| {
            if wanted { Hooks::on(&[Method::TOOLS_CALL], phase) } else { Hooks::default() }
        };
        Ok(Self {
            name: name.into(),
            hooks: on(Phase::Request, config.arguments).and(on(Phase::Response, config.results)),
            unusable: config.unusable,
            cache: Arc::default(),
            compiling: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            checking: FairSemaphore::new(MAX_CONCURRENT),
        })
    }

    /// Compiled schemas of a tool.
    async fn checks(&self, tool: &Arc<Definition>) -> Result<Arc<Checks>, Fault> {
        if let Some(checks) = self.cache.lock().recognise(tool) {
            return Ok(checks);
        }
        let key = cache::key(tool);
        if let Some(checks) = self.cache.lock().find(tool, &key) {
            return Ok(checks);
        }
        let permit = Arc::clone(&self.compiling).acquire_owned().await.map_err(closed)?;
        if let Some(checks) = self.cache.lock().find(tool, &key) {
            return Ok(checks);
        }
        let (cache, tool) = (Arc::clone(&self.cache), Arc::clone(tool));
        // The compilation holds the permit and stores its result, even if this call has stopped
        // waiting: a schema that takes longer than a deadline is still compiled only once.
        on_large_stack(move || {
            let _permit = permit;
            let checks = Checks::of(&tool);
            cache.lock().keep(&tool, key, checks)
        })
        .await
    }

    /// Checks one side of a call, inline if that is quick.
    async fn check(
        &self,
        checks: &Arc<Checks>,
        side: Side,
        payload: &Payload,
        who: &PrincipalKind,
    ) -> Result<Result<(), CheckFailure>, Fault> {
        let Some(check) = side.of(checks) else { return Ok(Ok(())) };
        if payload.raw().len() <= MAX_INLINE_BYTES {
            let value = side.part(parsed(payload)?);
            let work = value.as_ref().map_or(Some(0), |value| check.work(value));
            if work.is_none_or(|work| work <= MAX_INLINE_WORK) {
                return Ok(side.verdict(check, value.as_deref()));
            }
        }
        let turn = self.checking.next(who).await.map_err(closed)?;
        let (checks, raw) = (Arc::clone(checks), payload.raw().clone());
        let judge = move || {
            // Held by the thread: after a call's deadline, its check still runs.
            let _turn = turn;
            side.judge(&checks, raw)
        };
        off_workers(judge).await.map_err(|_| Fault("the check did not finish".into()))?
    }

    fn finding(&self, phase: Phase, message: String) -> Finding {
        Finding {
            interceptor: self.name.clone(),
            phase,
            rule: Rule::named(self.name.clone()),
            message,
            effect: Effect::Reported,
        }
    }

    /// Verdict for an unusable schema of a tool.
    fn unusable(&self, phase: Phase, side: Side, reason: &Reason) -> Verdict {
        let detail = format!("the tool's {} {reason}", side.keyword());
        match self.unusable {
            Unusable::Pass => Verdict::pass().finding(self.finding(phase, detail)),
            Unusable::Refuse => Verdict::refuse(
                Refusal::new(
                    Code::ServerMisbehaved,
                    format!("the server's {} for this tool is unusable", side.keyword()),
                )
                .rule(Rule::named(self.name.clone()))
                .detail(detail),
            ),
        }
    }

    fn refuse(&self, side: Side, failure: CheckFailure) -> Verdict {
        let (code, what) = side.words();
        let words = match failure {
            CheckFailure::Invalid(words) => format!("{what} do not fit the tool's schema: {words}"),
            CheckFailure::Costly => {
                format!("{what} are too large or too deep to check against the tool's schema")
            }
        };
        Verdict::refuse(Refusal::new(code, words).rule(Rule::named(self.name.clone())))
    }
}

#[async_trait]
impl Interceptor for Schema {
    fn name(&self) -> &str {
        &self.name
    }

    fn wants(&self, method: &Method, phase: Phase) -> bool {
        self.hooks.wants(method, phase)
    }

    async fn inspect(&self, exchange: &Exchange, phase: Phase) -> Result<Verdict, Fault> {
        // The router refuses unknown tools, with the names that this client may see.
        let Target::Tool { tool: Some(tool), .. } = &exchange.target else {
            return Ok(Verdict::pass());
        };
        let (side, payload) = match (phase, &exchange.response) {
            (Phase::Request, _) => (Side::Arguments, &exchange.request),
            (Phase::Response, Some(Answer::Result(payload))) => (Side::Result, payload),
            (Phase::Response, _) => return Ok(Verdict::pass()),
        };
        let checks = self.checks(tool).await?;
        if let Some(reason) = side.unusable(&checks) {
            return Ok(self.unusable(phase, side, reason));
        }
        Ok(match self.check(&checks, side, payload, &exchange.principal.kind).await? {
            Ok(()) => Verdict::pass(),
            Err(failure) => self.refuse(side, failure),
        })
    }
}

/// Checked side of a call, with its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Arguments,
    Result,
}

impl Side {
    fn of(self, checks: &Checks) -> Option<&Check> {
        match self {
            Self::Arguments => checks.input.as_ref().ok(),
            Self::Result => checks.output.as_ref()?.as_ref().ok(),
        }
    }

    fn unusable(self, checks: &Checks) -> Option<&Reason> {
        match self {
            Self::Arguments => checks.input.as_ref().err(),
            Self::Result => checks.output.as_ref()?.as_ref().err(),
        }
    }

    fn keyword(self) -> &'static str {
        match self {
            Self::Arguments => "inputSchema",
            Self::Result => "outputSchema",
        }
    }

    fn words(self) -> (Code, &'static str) {
        match self {
            Self::Arguments => (Code::ArgumentsInvalid, "the arguments"),
            Self::Result => (Code::ResultInvalid, "the results"),
        }
    }

    /// Value to check; `None` if the payload need not have one.
    fn part(self, payload: &Value) -> Option<Cow<'_, Value>> {
        match self {
            // Absent arguments count as empty, as in calls of tools without parameters.
            Self::Arguments => Some(
                payload
                    .get("arguments")
                    .map_or_else(|| Cow::Owned(Value::Object(Map::new())), Cow::Borrowed),
            ),
            Self::Result => {
                let interim = payload
                    .get("resultType")
                    .and_then(Value::as_str)
                    .is_some_and(|kind| kind != "complete");
                let failed = payload.get("isError") == Some(&Value::Bool(true));
                // An error, and a response that is not yet the result, need no structured content.
                (!interim && !failed).then(|| {
                    Cow::Borrowed(payload.get("structuredContent").unwrap_or(&Value::Null))
                })
            }
        }
    }

    fn verdict(self, check: &Check, value: Option<&Value>) -> Result<(), CheckFailure> {
        match (self, value) {
            (_, None) => Ok(()),
            (Self::Arguments, Some(value)) if !value.is_object() => {
                Err(CheckFailure::Invalid("they are not an object".into()))
            }
            (Self::Result, Some(Value::Null)) => check
                .check(&Value::Null)
                .map_err(|_| CheckFailure::Invalid("`structuredContent` is absent".into())),
            (_, Some(value)) => check.check(value),
        }
    }

    /// The whole check on a separate thread.
    fn judge(self, checks: &Checks, raw: Bytes) -> Result<Result<(), CheckFailure>, Fault> {
        let Some(check) = self.of(checks) else { return Ok(Ok(())) };
        let payload = Payload::new(raw);
        Ok(self.verdict(check, self.part(parsed(&payload)?).as_deref()))
    }
}

/// Value of a payload. Text that cannot be parsed must not count as absent.
fn parsed(payload: &Payload) -> Result<&Value, Fault> {
    match payload.value() {
        Value::Null if !matches!(payload.raw().trim_ascii(), b"" | b"null") => {
            Err(Fault("the payload is nested too deep to be parsed".into()))
        }
        value => Ok(value),
    }
}

/// Compiles on a thread with a large stack, of which the system provides only the used part.
async fn on_large_stack<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    let (done, outcome) = oneshot::channel();
    let work = move || {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
        let _ = done.send(outcome);
    };
    std::thread::Builder::new()
        .name("schema-compile".into())
        .stack_size(COMPILE_STACK_BYTES)
        .spawn(work)
        .map_err(|error| Fault(format!("no thread to compile a schema on: {error}")))?;
    match outcome.await {
        Ok(Ok(outcome)) => Ok(outcome),
        _ => Err(Fault("a schema could not be compiled".into())),
    }
}

fn closed(_: tokio::sync::AcquireError) -> Fault {
    Fault("the proxy is shutting down".into())
}

/// Shortened text of a server, without control characters.
fn short(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() >= MAX_TEXT_BYTES {
            out.push('…');
            break;
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}

#[cfg(test)]
mod tests;
