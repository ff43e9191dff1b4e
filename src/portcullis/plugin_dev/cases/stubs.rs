//! Environment of a plugin in a case: a fixed time, fixed random bytes, and replies from the case.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;

use super::file::Reply;
use portcullis_plugin_host::{HostServices, StubResponse};
use portcullis_policy_tools::NOON;

/// Stand-in for the proxy.
#[derive(Default)]
pub struct StubServices(Mutex<StubState>);

#[derive(Default)]
struct StubState {
    now: Option<jiff::Timestamp>,
    replies: VecDeque<Reply>,
    counts: BTreeMap<String, u64>,
    lines: Vec<String>,
    random: u8,
}

/// Effects of a plugin besides its verdict.
pub struct SideEffects {
    pub counts: BTreeMap<String, u64>,
    pub lines: Vec<String>,
}

impl StubServices {
    /// Sets the time and the replies for the next message.
    pub fn prepare(&self, now: Option<jiff::Timestamp>, replies: Vec<Reply>) {
        let mut state = self.0.lock();
        state.now = now;
        state.replies = replies.into();
    }

    /// Returns the effects since the previous call.
    pub fn take(&self) -> SideEffects {
        let mut state = self.0.lock();
        SideEffects {
            counts: std::mem::take(&mut state.counts),
            lines: std::mem::take(&mut state.lines),
        }
    }
}

impl HostServices for StubServices {
    fn count(&self, _: &str, name: &str, by: u64) {
        let mut state = self.0.lock();
        let count = state.counts.entry(name.to_owned()).or_default();
        *count = count.saturating_add(by);
    }

    fn may_reach(&self, _: &str, _: &str, _: u16) -> Result<(), String> {
        Ok(())
    }

    fn now(&self) -> u64 {
        let now = self.0.lock().now.unwrap_or(NOON);
        u64::try_from(now.as_millisecond()).unwrap_or_default()
    }

    fn random(&self, bytes: &mut [u8]) -> bool {
        let next = &mut self.0.lock().random;
        for byte in bytes {
            // A permutation of all byte values, so that the bytes look random.
            *next = next.wrapping_mul(197).wrapping_add(91);
            *byte = *next;
        }
        true
    }

    fn log(&self, _: &str, level: tracing::Level, line: &str) {
        self.0.lock().lines.push(format!("{} {line}", level.as_str().to_lowercase()));
    }

    fn answer(&self, url: &str) -> Option<Result<StubResponse, String>> {
        let mut state = self.0.lock();
        let Some(reply) = state.replies.pop_front_if(|reply| reply.url == url) else {
            return Some(Err("no answer to this is written in the case".into()));
        };
        Some(Ok(StubResponse {
            status: reply.status,
            headers: reply.headers.into_iter().collect(),
            body: reply.body.into_bytes(),
        }))
    }
}
