//! What policies ask for beside their decision, where it is the proxy that must do it: counts what
//! `@rate` permits, and carries the labels of `@label`, and those that plugins give to what servers
//! say, from one message to the next. What changes messages is done in the chain, by the policy
//! interceptor.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Caller;
use crate::{
    approval::Approvals,
    recorder::{ExchangeRecord, Recorder},
    session::{Labels, Sessions},
};
use portcullis_interceptors::policy::PolicyGate;
use portcullis_protocol::{
    exchange::Exchange,
    identity::PrincipalKind,
    obligations::Rate,
    refusal::{Code, Refusal, Rule},
};

/// How long a client without a session carries labels after it was last given one.
const CARRIED: Duration = Duration::from_secs(60 * 60);
/// Rules whose counts are kept. Those of policies that were replaced are among them.
const COUNTED: usize = 1_024;

/// What clients without a session carry. Clients are the config's, so memory is bounded by it.
#[derive(Default)]
struct SessionLabels(Mutex<HashMap<PrincipalKind, (Labels, Instant)>>);

impl SessionLabels {
    /// What a client carries.
    pub fn of(&self, client: &PrincipalKind) -> BTreeSet<String> {
        match self.0.lock().get(client) {
            Some((labels, given)) if given.elapsed() < CARRIED => labels.all(),
            _ => BTreeSet::new(),
        }
    }

    /// Gives a client labels, which it then carries for a while; what `give` says.
    fn give(&self, client: &PrincipalKind, give: impl FnOnce(&mut Labels) -> bool) -> bool {
        let mut carried = self.0.lock();
        let (all, given) =
            carried.entry(client.clone()).or_insert_with(|| (Labels::default(), Instant::now()));
        if given.elapsed() >= CARRIED {
            all.clear();
        }
        let taken = give(all);
        // One that has no room for more is not to carry what it has for ever.
        if taken {
            *given = Instant::now();
        }
        taken
    }
}

/// A rule, and the rate that it says.
type Limit = (String, Rate);

/// What was permitted lately under `@rate`, by rule and principal: when the window of each has room
/// for all its calls again (GCRA). No crate's limiter can say whether there is room without taking it,
/// and of several rules none may lose a call that another refuses.
#[derive(Default)]
struct Rates(Mutex<HashMap<Limit, HashMap<PrincipalKind, Instant>>>);

impl Rates {
    /// Counts one more under all limits, or under none: then the place of the first that has no room,
    /// and when it is worth coming back.
    fn take(&self, limits: &[Limit], who: &PrincipalKind) -> Result<(), (usize, Duration)> {
        let now = Instant::now();
        let mut all = self.0.lock();
        Self::look(&all, limits, who, now)?;
        for limit in limits {
            if !all.contains_key(limit) && all.len() >= COUNTED {
                // Whose counts have run out is no different from one that was never counted.
                all.retain(|_, counts| {
                    counts.retain(|_, free| *free > now);
                    !counts.is_empty()
                });
            }
            let free = all.entry(limit.clone()).or_default().entry(who.clone()).or_insert(now);
            *free = (*free).max(now) + each(limit.1);
        }
        Ok(())
    }

    fn look(
        all: &HashMap<Limit, HashMap<PrincipalKind, Instant>>,
        limits: &[Limit],
        who: &PrincipalKind,
        now: Instant,
    ) -> Result<(), (usize, Duration)> {
        for (at, limit) in limits.iter().enumerate() {
            let Some(free) = all.get(limit).and_then(|counts| counts.get(who)) else { continue };
            let (each, calls) = (each(limit.1), limit.1.calls.get());
            let wait = (free.saturating_duration_since(now) + each).saturating_sub(each * calls);
            if !wait.is_zero() {
                return Err((at, wait));
            }
        }
        Ok(())
    }
}

/// So many within a window is one each window's so-manieth part, and all of them at once.
fn each(rate: Rate) -> Duration {
    (rate.window / rate.calls.get()).max(Duration::from_nanos(1))
}

/// Fulfils what policies ask for beside their decision.
pub(crate) struct Obligations {
    rates: Rates,
    labels: SessionLabels,
    sessions: Arc<Sessions>,
    /// Calls that wait for a person.
    pub(super) approvals: Arc<Approvals>,
    pub(super) gate: Arc<PolicyGate>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) closing: CancellationToken,
}

impl Obligations {
    pub fn new(
        sessions: Arc<Sessions>,
        approvals: Arc<Approvals>,
        gate: Arc<PolicyGate>,
        recorder: Arc<Recorder>,
        closing: CancellationToken,
    ) -> Self {
        let (rates, labels) = (Rates::default(), SessionLabels::default());
        Self { rates, labels, sessions, approvals, gate, recorder, closing }
    }

    /// Does what the policies that let an exchange pass ask for before it leaves.
    ///
    /// # Errors
    /// A [`Refusal`] where it cannot be done.
    pub async fn apply(
        &self,
        exchange: &Exchange,
        record: &mut ExchangeRecord,
    ) -> Result<(), Refusal> {
        let rules = record.trail.rules.iter();
        let rated: Vec<_> = rules.filter(|rule| rule.obligations.rate.is_some()).cloned().collect();
        let limits =
            rated.iter().filter_map(|rule| Some((rule.id.clone(), rule.obligations.rate?)));
        let (limits, who): (Vec<_>, _) = (limits.collect(), &exchange.principal.kind);
        let spent = |(at, wait): (usize, Duration)| {
            let refusal = Refusal::new(Code::RateLimited, "a rate limit of the policy is reached");
            rated.get(at).cloned().into_iter().fold(refusal, Refusal::rule).retry_after(wait)
        };
        // What a person is asked about counts, whatever the person says: else nothing would bound how
        // often a client has somebody asked. And what was allowed is not refused for its rate.
        self.rates.take(&limits, who).map_err(spent)?;
        // Before a person is asked: it would be for nothing.
        self.apply_labels(exchange, &record.trail.heard)?;
        self.approved(exchange, record).await?;
        let asked = exchange.obligations.iter().flat_map(|obligations| &obligations.labels);
        self.label(exchange, |labels| {
            asked.for_each(|label| labels.give(label));
            true
        });
        Ok(())
    }

    /// The labels that the client of a message carries.
    pub fn labels(&self, caller: &Caller) -> BTreeSet<String> {
        match &caller.session {
            Some(session) => session.labels.lock().all(),
            None => self.labels.of(&caller.principal.kind),
        }
    }

    /// Has the client carry the labels of what it is about to hear from a server.
    ///
    /// # Errors
    /// A [`Refusal`] where it carries too many of that server already: what was labelled must not go
    /// on as if it were not.
    pub fn apply_labels(
        &self,
        exchange: &Exchange,
        heard: &BTreeMap<String, Rule>,
    ) -> Result<(), Refusal> {
        if heard.is_empty() {
            return Ok(());
        }
        let mut beyond = None;
        self.label(exchange, |labels| {
            beyond = heard.iter().find(|(label, _)| !labels.hear(label, exchange.server.as_ref()));
            beyond.is_none()
        });
        match beyond {
            None => Ok(()),
            Some((label, rule)) => {
                let text = "a check on this message could not be completed";
                let detail = format!(
                    "`{label}` exceeds the number of labels that one server may put on this client"
                );
                Err(Refusal::new(Code::InterceptorFault, text).rule(rule.clone()).detail(detail))
            }
        }
    }

    /// Labels the session of an exchange, or its client where that has none.
    fn label(&self, exchange: &Exchange, give: impl FnOnce(&mut Labels) -> bool) {
        match exchange.session.as_ref().and_then(|id| self.sessions.get(id)) {
            Some(session) => give(&mut session.labels.lock()),
            None => self.labels.give(&exchange.principal.kind, give),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_protocol::names::ServerName;

    fn client(name: &str) -> PrincipalKind {
        PrincipalKind::Client(name.parse().unwrap())
    }

    #[test]
    fn each_principal_and_rule_has_its_own_count() {
        let rates = Rates::default();
        let rate = |calls: u32| Rate {
            calls: calls.try_into().unwrap(),
            window: Duration::from_secs(3600),
        };
        let (ann, bob) = (client("ann"), client("bob"));
        let take = |rule: &str, calls, who| rates.take(&[(rule.to_owned(), rate(calls))], who);
        assert!(take("a", 2, &ann).is_ok());
        assert!(take("a", 2, &ann).is_ok());
        let (at, wait) = take("a", 2, &ann).unwrap_err();
        assert_eq!(at, 0);
        assert!(wait > Duration::from_secs(1700) && wait <= Duration::from_secs(1800), "{wait:?}");
        assert!(take("a", 2, &bob).is_ok());
        assert!(take("b", 2, &ann).is_ok());
        // The rule says another rate now.
        assert!(take("a", 3, &ann).is_ok());
    }

    #[test]
    fn no_rule_counts_what_another_refuses() {
        let rates = Rates::default();
        let limit = |rule: &str, calls: u32| {
            let window = Duration::from_secs(3600);
            (rule.to_owned(), Rate { calls: calls.try_into().unwrap(), window })
        };
        let (wide, narrow) = (limit("wide", 2), limit("narrow", 1));
        let (ann, both) = (client("ann"), [wide.clone(), narrow]);
        assert!(rates.take(&both, &ann).is_ok());
        for _ in 0..3 {
            assert_eq!(rates.take(&both, &ann).unwrap_err().0, 1);
        }
        let wide = [wide];
        assert!(rates.take(&wide, &ann).is_ok());
        assert!(rates.take(&wide, &ann).is_err());
    }

    #[test]
    fn labels_stay_with_whom_they_were_given() {
        let labels = SessionLabels::default();
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let give = |who: &str, label: &str| {
            labels.give(&client(who), |labels| {
                labels.give(label);
                true
            })
        };
        assert!(give("ann", "a") && give("ann", "b"));
        assert_eq!(labels.of(&client("ann")), of(&["a", "b"]));
        assert_eq!(labels.of(&client("bob")), of(&[]));

        // One server's words are not without end, and keep nobody else's away.
        let hear = |label: &str, server: &str| {
            let server: ServerName = server.parse().unwrap();
            labels.give(&client("bob"), |labels| labels.hear(label, Some(&server)))
        };
        let heard = (0..100).filter(|n| hear(&n.to_string(), "hostile")).count();
        assert_eq!(heard, 64);
        assert!(hear("0", "hostile") && hear("100", "other") && give("bob", "a"));
        assert_eq!(labels.of(&client("bob")).len(), 66);
        // Nor are those of all together, in merged lists.
        let merged = |label: &str| labels.give(&client("eve"), |labels| labels.hear(label, None));
        assert_eq!((0..100).filter(|n| merged(&n.to_string())).count(), 64);
    }
}
