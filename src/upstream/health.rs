//! Whether a running instance still answers, where the config has it asked.
//!
//! INVARIANT: to be asked is no use of an instance. It keeps no idle one alive, and neither does it
//! take a call's place.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Deadline,
    event::ServerEvent,
    instance::{Instance, State},
    running::Running,
    transport::Call,
};
use portcullis_protocol::{codec::era::own_meta, exchange::Method};

/// What is known of one instance's health.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Health {
    /// When it was last asked, and is again only after a while.
    asked: Option<Instant>,
    /// Whether an answer is waited for.
    waits: bool,
    /// How long its last answer took.
    pub took: Option<Duration>,
}

/// An answer that takes longer is worth a word: it may be the last question.
const LATE: Duration = Duration::from_secs(2);

impl Health {
    /// Whether an answer is long in coming.
    pub fn is_late(&self) -> bool {
        self.waits && self.asked.is_some_and(|asked| asked.elapsed() >= LATE)
    }
}

impl Instance {
    /// Asks it whether it is well, once it is time: on a task of its own, since it may not answer.
    pub(super) fn look_at_health(self: &Arc<Self>) {
        let every = Duration::from_secs(self.common.settings.health_s);
        let Some(running) = self.peek().filter(|_| !every.is_zero()) else { return };
        {
            let mut health = self.health.lock();
            let last = health.asked.unwrap_or(running.since).max(running.since);
            if health.waits || last.elapsed() < every {
                return;
            }
            (health.asked, health.waits) = (Some(Instant::now()), true);
        }
        let instance = self.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            let well = instance.is_well(&running).await;
            {
                let mut health = instance.health.lock();
                health.waits = false;
                health.took = well.then(|| began.elapsed());
            }
            if !well {
                instance.end_unwell(&running).await;
            }
        });
    }

    /// Whether it answers anything at all, or has ended, which others notice.
    async fn is_well(&self, running: &Running) -> bool {
        let patience = Duration::from_secs(self.common.settings.health_timeout_s);
        let before = self.begun.load(Ordering::SeqCst);
        // Revision 2026-07-28 has no `ping`; what any of its servers can say is what it is.
        let (method, params) = match running.greeting.revision.is_modern() {
            true => (Method::DISCOVER, json!({ "_meta": own_meta() })),
            false => (Method::PING, json!({})),
        };
        let mut call = Call::own(method, Some(params.to_string().into()), patience);
        call.clock = Deadline::never();
        let answer = running.link.call(call);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                answer = &mut answer => return answer.is_ok() || running.end().is_some(),
                () = tokio::time::sleep(patience) => {}
            }
            // One that does one thing at a time answers once it is done with what it was asked
            // before, and that has a deadline of its own.
            if !self.under_way.lock().iter().any(|call| *call < before) {
                return false;
            }
        }
    }

    /// Ends one that does not answer; another is started in its place, unless nobody needs it.
    async fn end_unwell(self: &Arc<Self>, running: &Arc<Running>) {
        let seconds = self.common.settings.health_timeout_s;
        let why = format!("it did not answer within {seconds} s whether it is well (`health-s`)");
        {
            let mut state = self.state.lock().await;
            match &*state {
                State::Running(now) if Arc::ptr_eq(now, running) => {}
                // It was ended or replaced meanwhile.
                _ => return,
            }
            self.common.unwell.fetch_add(1, Ordering::Relaxed);
            self.say(ServerEvent::Unwell).await;
            running.stop(Duration::ZERO).await;
            *state = self.fallen(running, &why);
            self.tell_end(running, why).await;
        }
        if !self.is_idle()
            && let Err(failure) = self.running().await
        {
            tracing::debug!(%failure, "the next instance did not start");
        }
    }
}
