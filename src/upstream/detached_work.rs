//! Work that outlives its caller.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::call_error::CallError;

/// Number of callers that may wait for a start or a list.
const MAX_WAITING: usize = 256;

/// Runs work that outlives its caller: a client that gives up must not undo a start, or a list,
/// that others wait for.
pub(super) struct DetachedWork(Arc<Semaphore>);

impl Default for DetachedWork {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_WAITING)))
    }
}

impl DetachedWork {
    /// Does work on its own task, and waits for the result.
    ///
    /// # Errors
    /// Those of the work, and [`CallError::Overloaded`] at the limit.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, CallError>> + Send + 'static,
    ) -> Result<T, CallError> {
        let full = |_| CallError::Overloaded { what: "calls that wait for it", most: MAX_WAITING };
        let permit = self.0.clone().try_acquire_owned().map_err(full)?;
        tokio::spawn(async move {
            let _permit = permit;
            work.await
        })
        .await
        .unwrap_or_else(|_| Err(CallError::Misbehaved("the work for it ended early".into())))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_continues_without_its_caller() {
        let detached = DetachedWork::default();
        let (go, wait) = oneshot::channel::<()>();
        let (done, result) = oneshot::channel();
        let work = detached.run(async move {
            let _ = wait.await;
            let _ = done.send(7);
            Ok(())
        });
        // The caller gives up after the first poll.
        assert!(work.now_or_never().is_none());
        go.send(()).unwrap();
        assert_eq!(result.await, Ok(7));
    }

    #[tokio::test]
    async fn waiting_work_is_limited() {
        let detached = DetachedWork::default();
        let never = || detached.run(std::future::pending::<Result<(), CallError>>());
        for _ in 0..MAX_WAITING {
            assert!(never().now_or_never().is_none());
        }
        let full = CallError::Overloaded { what: "calls that wait for it", most: MAX_WAITING };
        assert_eq!(never().await, Err(full));
    }
}
