//! Limits calls per client, server and tool. Refuses with `rate-limited`; the rule is the limit,
//! and the refusal contains the retry time.
//!
//! Each limit is a GCRA (a leaky bucket as a meter, by the governor crate) per key: it holds
//! `burst` calls and refills evenly, `calls` per `window`. All limits of a message are checked
//! before any is charged, in one step. A call that one limit refuses is not charged by the others,
//! so a client that exceeds its limit for one tool does not use up its limit for all tools.
//!
//! INVARIANT: the config and the catalog bound the memory, never a client's input. Names of tools
//! that no server has share one count. At most [`MAX_TOOLS_PER_OWNER`] tools of one client and server
//! have separate counts; further ones share one.

mod state_store;

use std::{collections::BTreeSet, fmt, num::NonZeroU32, str::FromStr, time::Duration};

use async_trait::async_trait;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock, Reference},
    middleware::NoOpMiddleware,
};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::state_store::MAX_TOOLS_PER_OWNER;
use self::state_store::{Key, Owner, Store, Tool};
use portcullis_chain::{Fault, Hook, Hooks, Interceptor, Verdict};
use portcullis_protocol::{
    exchange::{Exchange, Method, Phase, Target},
    refusal::{Code, Refusal, Rule},
};

/// Settings of `rate-limit`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Rate limits. A message must pass every limit that counts its method. Default: 6000 calls,
    /// reads, prompts and completions per client and minute.
    #[serde(default = "default_limits")]
    pub limits: Vec<Limit>,
}

impl Default for Config {
    fn default() -> Self {
        Self { limits: default_limits() }
    }
}

/// Methods that the default limit counts: those that cause work for servers.
const DEFAULT_EVENTS: [&str; 4] =
    [Method::TOOLS_CALL, Method::RESOURCES_READ, Method::PROMPTS_GET, Method::COMPLETE];
/// Default limit for one client: messages per minute, and burst after an idle time. An agent waits
/// for its model between turns, at least half a second, and few make more than ten calls in a turn:
/// 20 a second. Scripts of code-writing agents send bursts of thousands. Five times the first
/// value, and a minute's worth at once, stops neither, but stops a runaway loop.
const DEFAULT_PER_MINUTE: NonZeroU32 = NonZeroU32::new(6_000).unwrap();

fn default_limits() -> Vec<Limit> {
    vec![Limit {
        name: None,
        per: per_client(),
        calls: DEFAULT_PER_MINUTE,
        window: Window(Duration::from_secs(60)),
        burst: None,
        events: DEFAULT_EVENTS.map(str::to_owned).to_vec(),
    }]
}

/// Rate limit.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limit {
    /// Name in refusals and records. Default: made of the settings, such as
    /// `100-per-1m-by-client-tool`.
    #[serde(default)]
    pub name: Option<String>,
    /// Keys of separate counts: per client, per server, per tool, or per combination. Empty: one
    /// count for everything.
    #[serde(default = "per_client")]
    pub per: BTreeSet<Per>,
    /// Maximum number of calls in a window.
    pub calls: NonZeroU32,
    /// Length of the window: a number and one of `ms`, `s`, `m`, `h`, `d`, such as `1m`.
    pub window: Window,
    /// Calls that may come at once after an idle time. Default: `calls`.
    #[serde(default)]
    pub burst: Option<NonZeroU32>,
    /// Methods that count; `*` for all methods.
    #[serde(default = "tool_calls")]
    pub events: Vec<String>,
}

fn per_client() -> BTreeSet<Per> {
    BTreeSet::from([Per::Client])
}

fn tool_calls() -> Vec<String> {
    vec![Method::TOOLS_CALL.to_owned()]
}

/// Key of separate counts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    Client,
    Server,
    Tool,
}

impl Per {
    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Tool => "tool",
        }
    }
}

/// Duration in the config, from 1 ms to 31 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[0-9]+(ms|s|m|h|d)$"))]
pub struct Window(Duration);

/// Error for text that is not a window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a window: write a number and one of ms, s, m, h, d, such as `30s` or `1m`, up to 31d"
)]
pub struct IllegalWindow(String);

const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const MAX_WINDOW_MS: u64 = 31 * 86_400_000;

impl FromStr for Window {
    type Err = IllegalWindow;

    fn from_str(text: &str) -> Result<Self, IllegalWindow> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .and_then(|(_, millis)| number.parse::<u64>().ok()?.checked_mul(*millis))
            .filter(|millis| (1..=MAX_WINDOW_MS).contains(millis))
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| IllegalWindow(text.to_owned()))
    }
}

impl TryFrom<String> for Window {
    type Error = IllegalWindow;

    fn try_from(text: String) -> Result<Self, IllegalWindow> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> String {
        window.to_string()
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (unit, size) =
            UNITS.iter().rev().find(|(_, size)| millis % size == 0).unwrap_or(&UNITS[0]);
        write!(f, "{}{unit}", millis / size)
    }
}

/// Invalid settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("`limits` is empty: set at least one limit, or remove `rate-limit` from the chain")]
    Empty,
    #[error("`limits[{0}].events` is empty: name the methods that count, or remove the key")]
    NoEvents(usize),
    #[error(
        "`limits[{0}]`: {calls} calls per {window} is finer than one per nanosecond",
        calls = .1, window = .2
    )]
    TooFine(usize, NonZeroU32, Window),
    #[error(
        "`limits[{0}].burst` takes more than 10 years to refill: reduce it, or increase `calls`"
    )]
    TooLong(usize),
}

/// Interceptor that limits rates.
pub struct RateLimit<C: Clock = DefaultClock> {
    name: String,
    hooks: Hooks,
    clock: C,
    /// A time not after the start of any limiter's clock.
    start: C::Instant,
    limits: Mutex<Vec<Meter<C>>>,
}

/// Limit with its counts.
struct Meter<C: Clock> {
    rule: String,
    words: String,
    per: BTreeSet<Per>,
    events: Hooks,
    limiter: RateLimiter<Key, Store, C, NoOpMiddleware<C::Instant>>,
    store: Store,
}

impl RateLimit {
    /// Interceptor with this name in records.
    ///
    /// # Errors
    /// If limits are empty or finer than a clock can measure.
    pub fn new(name: impl Into<String>, config: &Config) -> Result<Self, Invalid> {
        Self::with_clock(name, config, DefaultClock::default())
    }
}

impl<C: Clock + Clone> RateLimit<C> {
    /// [`RateLimit::new`] with another clock.
    ///
    /// # Errors
    /// As there.
    pub fn with_clock(name: impl Into<String>, config: &Config, clock: C) -> Result<Self, Invalid> {
        if config.limits.is_empty() {
            return Err(Invalid::Empty);
        }
        let mut limits = Vec::new();
        let mut hooks = Vec::new();
        for (i, limit) in config.limits.iter().enumerate() {
            let meter = Meter::new(i, limit, &clock)?;
            hooks.extend(meter.events.0.iter().cloned());
            limits.push(meter);
        }
        Ok(Self {
            name: name.into(),
            hooks: Hooks(hooks),
            start: clock.now(),
            clock,
            limits: Mutex::new(limits),
        })
    }

    /// Checks every limit that counts this message, and charges all of them or none. Of several
    /// exceeded ones, the refusal names the one that recovers last.
    fn admit(&self, exchange: &Exchange) -> Result<(), Refusal> {
        let now = self.clock.now();
        let elapsed = now.duration_since(self.start);
        // One lock for all limits makes checking and charging one step.
        let limits = self.limits.lock();
        let mut charges = Vec::with_capacity(limits.len());
        let mut spent: Option<(Duration, &Meter<C>)> = None;
        for meter in limits.iter().filter(|m| m.events.wants(&exchange.method, Phase::Request)) {
            let key = meter.store.slot(key(&meter.per, exchange), elapsed);
            match meter.limiter.check_key(&key) {
                Ok(()) => charges.push((meter, key)),
                Err(until) => {
                    let wait = until.wait_time_from(now);
                    if spent.is_none_or(|(longest, _)| wait > longest) {
                        spent = Some((wait, meter));
                    }
                }
            }
        }
        if let Some((wait, meter)) = spent {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            return Err(Refusal::new(
                Code::RateLimited,
                format!("the rate limit of {} is reached; retry in {seconds} s", meter.words),
            )
            .rule(Rule::named(&meter.rule))
            .retry_after(wait));
        }
        for (meter, key) in charges {
            meter.store.charge(key, elapsed);
        }
        Ok(())
    }
}

impl<C: Clock + Clone> Meter<C> {
    fn new(i: usize, limit: &Limit, clock: &C) -> Result<Self, Invalid> {
        if limit.events.is_empty() {
            return Err(Invalid::NoEvents(i));
        }
        let burst = limit.burst.unwrap_or(limit.calls);
        let interval = limit.window.0 / limit.calls.get();
        let too_fine = || Invalid::TooFine(i, limit.calls, limit.window);
        let quota = Quota::with_period(interval).ok_or_else(too_fine)?.allow_burst(burst);
        // governor multiplies the two unchecked.
        if interval.as_secs_f64() * f64::from(burst.get()) > 10.0 * 366.0 * 86_400.0 {
            return Err(Invalid::TooLong(i));
        }
        let mut rule = format!("{}-per-{}", limit.calls, limit.window);
        for (i, per) in limit.per.iter().enumerate() {
            rule.push_str(if i == 0 { "-by-" } else { "-" });
            rule.push_str(per.as_str());
        }
        let store = Store::default();
        Ok(Self {
            rule: limit.name.clone().unwrap_or(rule),
            words: format!("{} calls per {}", limit.calls, limit.window),
            per: limit.per.clone(),
            events: Hooks(vec![Hook { events: limit.events.clone(), phase: Phase::Request }]),
            limiter: RateLimiter::new(quota, store.clone(), clock.clone()),
            store,
        })
    }
}

/// Key of the count for a message.
fn key(per: &BTreeSet<Per>, exchange: &Exchange) -> Key {
    let tool = match &exchange.target {
        Target::Tool { tool: Some(tool), .. } => Tool::Known(tool.name.as_str().into()),
        // A client can invent names of tools that no server has.
        _ => Tool::Other,
    };
    Key {
        owner: Owner {
            client: per.contains(&Per::Client).then(|| exchange.principal.kind.clone()),
            server: exchange.server.clone().filter(|_| {
                // Equally named tools of two servers are different tools.
                per.contains(&Per::Server) || per.contains(&Per::Tool)
            }),
        },
        tool: if per.contains(&Per::Tool) { tool } else { Tool::Other },
    }
}

#[async_trait]
impl<C> Interceptor for RateLimit<C>
where
    C: Clock + Clone + Send + Sync,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn wants(&self, method: &Method, phase: Phase) -> bool {
        self.hooks.wants(method, phase)
    }

    async fn inspect(&self, exchange: &Exchange, phase: Phase) -> Result<Verdict, Fault> {
        Ok(match phase {
            Phase::Request => {
                self.admit(exchange).map_or_else(Verdict::refuse, |()| Verdict::pass())
            }
            Phase::Response => Verdict::pass(),
        })
    }
}

#[cfg(test)]
mod tests;
