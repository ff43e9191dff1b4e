//! What policies ask for beside their decision, where it is the proxy that must do it: counts what
//! `@rate` permits, and carries the labels of `@label` from one message to the next. What changes
//! messages is done in the chain, by the policy interceptor.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock as _};
use parking_lot::Mutex;

use super::{
    Caller, Proxy,
    way::{Passage, begin},
};
use crate::{
    exchange::{Exchange, Method},
    identity::PrincipalKind,
    obligations::Rate,
    refusal::{Code, Refusal},
};

/// How long a client without a session carries labels after it was last given one.
const CARRIED: Duration = Duration::from_secs(60 * 60);
/// Rules whose counts are kept. Those of policies that were replaced are among them.
const COUNTED: usize = 1_024;

/// What clients without a session carry. Clients are the config's, so memory is bounded by it.
#[derive(Default)]
pub(super) struct Labels(Mutex<HashMap<PrincipalKind, (BTreeSet<String>, Instant)>>);

impl Labels {
    /// What a client carries.
    pub fn of(&self, client: &PrincipalKind) -> BTreeSet<String> {
        match self.0.lock().get(client) {
            Some((labels, given)) if given.elapsed() < CARRIED => labels.clone(),
            _ => BTreeSet::new(),
        }
    }

    fn give(&self, client: &PrincipalKind, labels: &BTreeSet<String>) {
        let mut carried = self.0.lock();
        let (all, given) =
            carried.entry(client.clone()).or_insert_with(|| (BTreeSet::new(), Instant::now()));
        if given.elapsed() >= CARRIED {
            all.clear();
        }
        all.extend(labels.iter().cloned());
        *given = Instant::now();
    }
}

type Count = Arc<DefaultKeyedRateLimiter<PrincipalKind>>;

/// What was permitted lately under `@rate`, by rule and principal.
#[derive(Default)]
pub(super) struct Rates(Mutex<HashMap<(String, Rate), Count>>);

impl Rates {
    /// Counts one more; where that is too many, when it is worth coming back.
    fn count(&self, rule: &str, rate: Rate, who: &PrincipalKind) -> Result<(), Duration> {
        let count = self.counts(rule, rate);
        count.check_key(who).map_err(|late| late.wait_time_from(count.clock().now()))
    }

    fn counts(&self, rule: &str, rate: Rate) -> Count {
        let mut all = self.0.lock();
        if let Some(count) = all.get(&(rule.to_owned(), rate)) {
            return count.clone();
        }
        if all.len() >= COUNTED {
            // Whose counts have run out is no different from one that was never counted.
            all.retain(|_, count| {
                count.retain_recent();
                !count.is_empty()
            });
        }
        // So many within a window is one each window's so-manieth part, and all of them at once.
        let each = rate.window / rate.calls.get();
        let quota = Quota::with_period(each.max(Duration::from_nanos(1)));
        let quota = quota.unwrap_or_else(|| Quota::per_second(rate.calls));
        let count = Arc::new(RateLimiter::keyed(quota.allow_burst(rate.calls)));
        all.insert((rule.to_owned(), rate), Arc::clone(&count));
        count
    }
}

impl Proxy {
    /// Does what the policies that let an exchange pass ask for before it leaves.
    ///
    /// # Errors
    /// A [`Refusal`] where it cannot be done.
    pub(super) async fn fulfil(
        &self,
        exchange: &Exchange,
        passage: &mut Passage,
    ) -> Result<(), Refusal> {
        for rule in &passage.trail.rules {
            let Some(rate) = rule.obligations.rate else { continue };
            if let Err(wait) = self.rates.count(&rule.id, rate, &exchange.principal.kind) {
                return Err(Refusal::new(Code::RateLimited, "a rate limit of policy is spent")
                    .rule(rule.clone())
                    .retry_after(wait));
            }
        }
        self.approved(exchange, passage).await?;
        self.carry_on(exchange);
        Ok(())
    }

    /// A message as an exchange that is about nothing yet, with the labels that its client carries.
    pub(super) fn begin(
        &self,
        caller: &Caller,
        method: &Method,
        notification: bool,
        params: Option<Bytes>,
    ) -> Exchange {
        let mut exchange = begin(caller, method, notification, params);
        exchange.labels = match &caller.session {
            Some(session) => session.labels(),
            None => self.labels.of(&caller.principal.kind),
        };
        exchange
    }

    /// Has the client carry the labels of a message that may leave, for those that come after it.
    fn carry_on(&self, exchange: &Exchange) {
        let session = exchange.session.as_ref().and_then(|id| self.sessions.get(id));
        for obligations in &exchange.obligations {
            if obligations.labels.is_empty() {
                continue;
            }
            match &session {
                Some(session) => session.label(&obligations.labels),
                None => self.labels.give(&exchange.principal.kind, &obligations.labels),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(rates.count("a", rate(2), &ann).is_ok());
        assert!(rates.count("a", rate(2), &ann).is_ok());
        let wait = rates.count("a", rate(2), &ann).unwrap_err();
        assert!(wait > Duration::from_secs(1700) && wait <= Duration::from_secs(1800), "{wait:?}");
        assert!(rates.count("a", rate(2), &bob).is_ok());
        assert!(rates.count("b", rate(2), &ann).is_ok());
        // The rule says another rate now.
        assert!(rates.count("a", rate(3), &ann).is_ok());
    }

    #[test]
    fn labels_stay_with_whom_they_were_given() {
        let labels = Labels::default();
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        labels.give(&client("ann"), &of(&["a"]));
        labels.give(&client("ann"), &of(&["b"]));
        assert_eq!(labels.of(&client("ann")), of(&["a", "b"]));
        assert_eq!(labels.of(&client("bob")), of(&[]));
    }
}
