//! The pull that an instance waits for before it starts.

use std::time::Instant;

use tokio::sync::watch;

use super::{
    call_error::CallError,
    images::{ImageError, Pull, progress_text},
};
use portcullis_runtime::process::LaunchFailure;

/// The pull that an instance waits for before it starts.
#[derive(Default)]
pub(super) struct ImagePull(watch::Sender<Option<Pull>>);

impl ImagePull {
    /// Replaces the pull.
    pub fn set(&self, pull: Pull) {
        self.0.send_replace(Some(pull));
    }

    /// The pull, until it ends.
    pub fn current(&self) -> Option<Pull> {
        self.0.borrow().clone().filter(is_active)
    }

    /// Waits for the end of the pull, at most until `until`.
    ///
    /// # Errors
    /// [`CallError::Pulling`] if the pull is still running, or the failure of the pull.
    pub async fn finished(&self, until: Instant) -> Result<(), CallError> {
        let Some(pull) = self.current() else { return Ok(()) };
        match tokio::time::timeout_at(until.into(), pull.end.clone()).await {
            Ok(ended) => ended.map(drop).map_err(CallError::from),
            Err(_) => Err(CallError::from(&pull)),
        }
    }

    /// Waits until `until`, and after that for an active pull. Returns the error for a caller that
    /// has waited too long.
    pub async fn overdue(&self, until: Instant) -> CallError {
        tokio::time::sleep_until(until.into()).await;
        let mut pull = self.0.subscribe();
        let pulling = |pull: &Option<Pull>| pull.as_ref().is_some_and(is_active);
        match pull.wait_for(pulling).await.ok().as_deref() {
            Some(Some(pull)) => CallError::from(pull),
            // The sender is in `self`, so it is open.
            _ => CallError::Pulling(String::new()),
        }
    }
}

fn is_active(pull: &Pull) -> bool {
    pull.end.peek().is_none()
}

impl From<&Pull> for CallError {
    fn from(pull: &Pull) -> Self {
        Self::Pulling(progress_text(*pull.progress.borrow()))
    }
}

impl From<ImageError> for CallError {
    fn from(failed: ImageError) -> Self {
        LaunchFailure::from(failed).into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;
    use crate::images::Pulled;

    fn pull() -> (Pull, oneshot::Sender<Result<Pulled, ImageError>>) {
        let (done, end) = oneshot::channel::<Result<Pulled, ImageError>>();
        let end = async move { end.await.unwrap() }.boxed().shared();
        (Pull { progress: watch::channel(Default::default()).1, end }, done)
    }

    #[tokio::test]
    async fn pull_is_awaited_until_it_ends_or_times_out() {
        let waiting = ImagePull::default();
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(100));
        assert_eq!(waiting.finished(later).await, Ok(()));
        assert!(waiting.overdue(now).now_or_never().is_none());

        let (first, done) = pull();
        waiting.set(first);
        let pulling = CallError::Pulling("asking the registry".into());
        assert!(waiting.current().is_some());
        assert_eq!(waiting.finished(now).await, Err(pulling.clone()));
        assert_eq!(waiting.overdue(now).await, pulling);
        let failed = ImageError { what: "no".into(), remedy: "see".into() };
        done.send(Err(failed)).unwrap();
        assert_eq!(waiting.finished(later).await, Err(CallError::Unavailable("no (see)".into())));
        assert!(waiting.current().is_none());
    }
}
