//! Obligations of policies that the proxy fulfils itself: it counts the calls that `@rate` permits,
//! and keeps labels between messages, those of `@label` and those that plugins give to server
//! messages. Obligations that change messages are fulfilled in the chain, by the policy
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

/// Time for which a client without a session keeps its labels after the last new one.
const CARRIED: Duration = Duration::from_secs(60 * 60);
/// Rules with counts, including rules of replaced policies.
const COUNTED: usize = 1_024;

/// Labels of clients without a session. The config lists the clients, which bounds the memory.
#[derive(Default)]
struct SessionLabels(Mutex<HashMap<PrincipalKind, (Labels, Instant)>>);

impl SessionLabels {
    /// The labels of a client.
    pub fn of(&self, client: &PrincipalKind) -> BTreeSet<String> {
        match self.0.lock().get(client) {
            Some((labels, given_at)) if given_at.elapsed() < CARRIED => labels.all(),
            _ => BTreeSet::new(),
        }
    }

    /// Adds labels to a client with `give`, for [`CARRIED`]. Returns the result of `give`.
    fn give(&self, client: &PrincipalKind, give: impl FnOnce(&mut Labels) -> bool) -> bool {
        let mut carried = self.0.lock();
        let (all, given_at) =
            carried.entry(client.clone()).or_insert_with(|| (Labels::default(), Instant::now()));
        if given_at.elapsed() >= CARRIED {
            all.clear();
        }
        let taken = give(all);
        // If there is no room for more labels, the expiry stays as it is.
        if taken {
            *given_at = Instant::now();
        }
        taken
    }
}

/// A rule and its rate.
type Limit = (String, Rate);

/// Calls permitted lately under `@rate`, by rule and principal: the time when each window has room
/// for all its calls again (GCRA). Existing limiters cannot check for room without taking it. A
/// call that one rule refuses must not count under the others.
#[derive(Default)]
struct Rates(Mutex<HashMap<Limit, HashMap<PrincipalKind, Instant>>>);

impl Rates {
    /// Counts one call under all limits or under none. The error is the index of the first limit
    /// without room, and the time until it has room.
    fn take(&self, limits: &[Limit], who: &PrincipalKind) -> Result<(), (usize, Duration)> {
        let now = Instant::now();
        let mut all = self.0.lock();
        Self::look(&all, limits, who, now)?;
        for limit in limits {
            if !all.contains_key(limit) && all.len() >= COUNTED {
                // A count that has expired is equal to none.
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

/// Interval of a rate: the window divided by its calls. A burst may use all calls at once.
fn each(rate: Rate) -> Duration {
    (rate.window / rate.calls.get()).max(Duration::from_nanos(1))
}

/// Fulfils the obligations of policies beside their decision.
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

    /// Fulfils the obligations of the policies that permit an exchange, before it leaves.
    ///
    /// # Errors
    /// A [`Refusal`] if an obligation cannot be fulfilled.
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
        // A call counts before its approval, whatever the person decides. This bounds how often a
        // client can request approvals, and an approved call is not refused for its rate.
        self.rates.take(&limits, who).map_err(spent)?;
        // Before a person is asked, since a failure would waste the approval.
        self.apply_labels(exchange, &record.trail.added_labels)?;
        self.approved(exchange, record).await?;
        let requested = exchange.obligations.iter().flat_map(|obligations| &obligations.labels);
        self.label(exchange, |labels| {
            requested.for_each(|label| labels.give(label));
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

    /// Adds the labels of a server message to the client that is about to receive it.
    ///
    /// # Errors
    /// A [`Refusal`] if the client has too many labels of that server already: labelled data must
    /// not pass without its label.
    pub fn apply_labels(
        &self,
        exchange: &Exchange,
        added: &BTreeMap<String, Rule>,
    ) -> Result<(), Refusal> {
        if added.is_empty() {
            return Ok(());
        }
        let mut beyond = None;
        self.label(exchange, |labels| {
            beyond = added
                .iter()
                .find(|(label, _)| !labels.add_from_server(label, exchange.server.as_ref()));
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

    /// Labels the session of an exchange, or its client if there is no session.
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
    fn rates_are_counted_by_principal_and_rule() {
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
        // The rule has another rate now.
        assert!(take("a", 3, &ann).is_ok());
    }

    #[test]
    fn refused_call_is_not_charged_by_other_rules() {
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
    fn labels_belong_to_one_principal() {
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

        // The labels of one server are bounded and take no room from others.
        let add = |label: &str, server: &str| {
            let server: ServerName = server.parse().unwrap();
            labels.give(&client("bob"), |labels| labels.add_from_server(label, Some(&server)))
        };
        let added = (0..100).filter(|n| add(&n.to_string(), "hostile")).count();
        assert_eq!(added, 64);
        assert!(add("0", "hostile") && add("100", "other") && give("bob", "a"));
        assert_eq!(labels.of(&client("bob")).len(), 66);
        // The labels of merged lists are bounded, too.
        let merged =
            |label: &str| labels.give(&client("eve"), |labels| labels.add_from_server(label, None));
        assert_eq!((0..100).filter(|n| merged(&n.to_string())).count(), 64);
    }
}
