//! What is done for an instance beside calls: it is looked after, asked about, handed new secrets,
//! left idle for a while, and ended.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    breaker::{OpenUntil, STEADY},
    event::{DeliveryMethod, LaunchReview, ServerEvent},
    instance::{Instance, State},
    running::Running,
    server_secrets::{DeliveredSecret, SecretSet},
    transport::CallError,
};

/// How long one may take to end by itself.
const GRACE: Duration = Duration::from_secs(3);
/// Between two tries to replace one that has old secrets, at first and at last.
const RENEWAL: Duration = Duration::from_secs(1);
const LONGEST_RENEWAL: Duration = Duration::from_secs(300);

/// What became of an instance's secrets.
#[derive(Debug, Default)]
pub(super) struct RotationOutcome {
    /// Whether it has new ones on its files.
    pub files: bool,
    /// Those that only its next start hands over.
    pub outdated: Vec<String>,
}

/// Backoff for restarting an instance with stale secrets.
#[derive(Debug, Default)]
pub(super) enum RestartBackoff {
    /// Nothing has failed.
    #[default]
    Settled,
    /// It is tried again then, or later; that long after it was last tried.
    Failed(Instant, Duration),
    /// It is being tried again, so long after it was last tried.
    Tried(Duration),
}

impl Instance {
    /// What follows on an end that nobody asked for, and shows it: it may be started at once, unless
    /// it keeps ending soon after its start and answers nothing in between.
    pub(super) fn fallen(&self, running: &Running, why: &str) -> State {
        let ran = running.process.as_ref().map_or(STEADY, |_| running.since.elapsed());
        match self.breaker.record_failure(ran, why) {
            None => {
                self.show(None, None);
                State::Stopped
            }
            Some(OpenUntil { pause, why }) => {
                self.show(None, Some(why.clone()));
                State::CircuitOpen { until: Instant::now() + pause, why }
            }
        }
    }

    /// Ends it, if it runs, for good.
    pub(super) async fn close(&self, why: &str) {
        // One that is being started is not waited for.
        self.closing.cancel();
        let mut state = self.state.lock().await;
        if let State::Running(running) = std::mem::replace(&mut *state, State::Closed) {
            running.stop(GRACE).await;
            self.show(None, None);
            self.tell_end(&running, why.to_owned()).await;
        }
        drop(state);
        self.end_leaving().await;
        // One that was to take its place ends itself, or has just taken it.
        drop(self.replacing.lock().await);
        self.end_leaving().await;
        self.tell_lost().await;
    }

    /// Ends it if nobody used it for as long as the config says, and notices its death.
    pub(super) async fn sweep(self: &Arc<Self>) {
        self.tell_lost().await;
        self.look_at_health();
        self.renew_again();
        // One that is being started is not idle; do not wait for it.
        let Ok(mut state) = self.state.try_lock() else { return };
        let State::Running(running) = &*state else { return };
        let ends = running.process.is_some() || self.party.is_some();
        let running = running.clone();
        let why = if let Some(why) = running.end() {
            running.stop(Duration::ZERO).await;
            *state = self.fallen(&running, &why);
            why
        } else if ends && self.is_idle() && self.is_free(&running) {
            // First, so that nobody is given what is about to end.
            self.show(None, None);
            running.stop(GRACE).await;
            *state = State::Stopped;
            format!("nobody used it for {} s", self.common.settings.idle_stop_s)
        } else {
            return;
        };
        // Before the next start can be told of.
        self.tell_end(&running, why).await;
        drop(state);
    }

    /// Asks whether what runs may go on, and ends it at once where it may not. One that is being
    /// started is asked about when it has started.
    pub(super) async fn review(&self, review: &dyn LaunchReview) {
        self.review_leaving(review).await;
        self.review_running(review).await;
        // One that takes its place was decided on before, and what it takes the place of may have been
        // neither running nor leaving.
        drop(self.replacing.lock().await);
        self.review_leaving(review).await;
        self.review_running(review).await;
    }

    async fn review_running(&self, review: &dyn LaunchReview) {
        let mut state = self.state.lock().await;
        let State::Running(running) = &*state else { return };
        let Some(refusal) = review.forbids(&self.common.name, &running.cleared).await else {
            return;
        };
        let running = running.clone();
        let why = "policies permit it no longer".to_owned();
        // First, so that whoever waits for an answer hears of that and not of its end.
        let _ = running.revoked.set(refusal);
        self.show(None, Some(why.clone()));
        running.stop(Duration::ZERO).await;
        *state = State::Stopped;
        self.tell_end(&running, why).await;
        drop(state);
    }

    /// Puts the secrets that were last read on the files that it has of them, where they have other
    /// values than it has and policies still permit it. One that is being started, also to take the
    /// place of what runs, is waited for: it may have been handed what was read before.
    ///
    /// # Errors
    /// Why it goes on with what it has.
    pub(super) async fn rehand(
        &self,
        review: &dyn LaunchReview,
    ) -> Result<RotationOutcome, String> {
        let first = self.rehand_running(review).await;
        drop(self.replacing.lock().await);
        // What did not come off the first time has been done by now, or has not either.
        let mut renewed = self.rehand_running(review).await?;
        renewed.files |= first.is_ok_and(|first| first.files);
        Ok(renewed)
    }

    /// Sees that it has what was last read, as [`Server::rehand`](super::Server::rehand) does, for whoever
    /// does not wait for all the others. Where somebody is at it already, they see to that, too.
    ///
    /// # Errors
    /// Why it goes on with what it has.
    pub async fn see_to_secrets(self: &Arc<Self>, review: &dyn LaunchReview) -> Result<(), String> {
        self.handing.ask(());
        while self.handing.is_asked() {
            let Some(mut turn) = self.handing.turn() else { break };
            while turn.take().is_some() {
                // What did not come off is tried again below.
                let _ = self.rehand_running(review).await;
            }
        }
        // Apart, so that what runs has the next values though another is still about to take its place.
        let mut seen_to = Ok(());
        self.renewing.ask(());
        while self.renewing.is_asked() {
            let Some(mut turn) = self.renewing.turn() else { break };
            while turn.take().is_some() {
                drop(self.replacing.lock().await);
                seen_to = match self.rehand_running(review).await {
                    Ok(renewed)
                        if self.common.settings.restart_on_rotation
                            && !renewed.outdated.is_empty() =>
                    {
                        self.renew().await.map_err(|failure| not_anew(&failure))
                    }
                    renewed => renewed.map(drop),
                };
            }
        }
        seen_to
    }

    async fn rehand_running(&self, review: &dyn LaunchReview) -> Result<RotationOutcome, String> {
        let state = self.state.lock().await;
        let State::Running(running) = &*state else { return Ok(RotationOutcome::default()) };
        self.still_there().map_err(|failure| failure.to_string())?;
        // Only now: whoever was here before may have handed over what was read later.
        let handed = self.common.handed(&self.whose()).map_err(|failure| failure.what)?;
        let had = running.handed.lock().clone();
        let held = |secret: &&DeliveredSecret| secret.by != DeliveryMethod::File;
        let names = |secret: &DeliveredSecret| secret.name.clone();
        let mut renewed = RotationOutcome { files: false, outdated: outdated(&handed, running) };
        if Arc::ptr_eq(&had, &handed) {
            return Ok(renewed);
        }
        let (held, files): (Vec<_>, Vec<_>) = handed.unlike(&had).partition(held);
        if let (Some(folder), false) = (&running.folder, files.is_empty()) {
            let (name, cleared) = (&self.common.name, &running.cleared);
            if let Some(refusal) = review.forbids(name, cleared).await {
                return Err(refusal.message);
            }
            let names: Vec<_> = files.iter().map(|secret| names(secret)).collect();
            review.hands_again(name, cleared, &names).await?;
            running.given.add(&handed);
            for secret in files {
                folder.put(&secret.name, &secret.value).map_err(|why| why.to_string())?;
            }
            renewed.files = true;
        }
        *running.handed.lock() = handed.clone();
        if !held.is_empty() && !renewed.outdated.is_empty() {
            let (launch, party) = (running.launch, self.principal());
            let secrets = renewed.outdated.clone();
            self.say(ServerEvent::Outdated { launch, party, secrets }).await;
        }
        Ok(renewed)
    }

    /// Has another take its place where what it has in its environment or in headers has changed since.
    /// Where that fails, it is tried again later.
    ///
    /// # Errors
    /// Why the other one did not start.
    pub(super) async fn renew(self: &Arc<Self>) -> Result<(), CallError> {
        let is_outdated = |running: &Running| {
            let now = self.common.handed(&self.whose());
            now.is_ok_and(|now| !outdated(&now, running).is_empty())
        };
        let replaced = self.replace_where("its secrets changed", is_outdated).await;
        let mut renewal = self.renewal.lock();
        let waited = match *renewal {
            RestartBackoff::Settled => Duration::ZERO,
            RestartBackoff::Failed(_, waited) | RestartBackoff::Tried(waited) => waited,
        };
        *renewal = match &replaced {
            Ok(_) => RestartBackoff::Settled,
            Err(_) => {
                let pause = (waited * 2).clamp(RENEWAL, LONGEST_RENEWAL);
                RestartBackoff::Failed(Instant::now() + pause, pause)
            }
        };
        replaced.map(drop)
    }

    /// Tries that again where it is time.
    fn renew_again(self: &Arc<Self>) {
        {
            let mut renewal = self.renewal.lock();
            match *renewal {
                RestartBackoff::Failed(then, waited) if Instant::now() >= then => {
                    *renewal = RestartBackoff::Tried(waited);
                }
                _ => return,
            }
        }
        let instance = self.clone();
        // On a task of its own: a start takes its time, and others are to be looked after.
        tokio::spawn(async move {
            if let Err(failure) = instance.renew().await {
                let (server, failure) = (&instance.common.name, instance.told(failure));
                tracing::warn!(%server, %failure, "server was not restarted for its new secrets");
            }
        });
    }

    /// Whether nobody has used it for as long as the config says, nor waits for it to tell
    /// something.
    pub(super) fn is_idle(&self) -> bool {
        let idle = Duration::from_secs(self.common.settings.idle_stop_s);
        !idle.is_zero()
            && self.active() == 0
            && self.watched.is_empty()
            && self.last_used.lock().elapsed() >= idle
    }

    /// Whether it has run for long enough that whoever waited for its start has had their turn, and
    /// nothing is under way at it. It takes no calls from then on.
    fn is_free(&self, running: &Running) -> bool {
        if running.since.elapsed() < Duration::from_secs(self.common.settings.idle_stop_s) {
            return false;
        }
        // Closed before that is looked at: who comes at this moment finds it closed, or is seen.
        running.calls.close();
        let free = running.calls.is_empty();
        if !free {
            running.calls.reopen();
        }
        free
    }

    /// Has the next start wait no longer for the last one that failed.
    pub(super) async fn try_again(&self) {
        let mut state = self.state.lock().await;
        if matches!(&*state, State::Failed { .. }) {
            *state = State::Stopped;
        }
    }

    /// Tells of messages that were dropped since it was last told.
    async fn tell_lost(&self) {
        let lost = self.lost.load(Ordering::Relaxed);
        let count = lost.saturating_sub(self.told_lost.swap(lost, Ordering::Relaxed));
        if count > 0 {
            self.say(ServerEvent::Lost { count }).await;
        }
    }
}

/// Of what it should have in its environment or in headers, the names of what it has not.
fn outdated(now: &SecretSet, running: &Running) -> Vec<String> {
    let held = now.unlike(&running.first).filter(|secret| secret.by != DeliveryMethod::File);
    held.map(|secret| secret.name.clone()).collect()
}

/// Why an instance was not restarted for its new secrets.
pub(super) fn not_anew(failure: &CallError) -> String {
    format!("it was not restarted: {failure}")
}
