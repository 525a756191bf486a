//! Trying again, within a deadline.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use google_cloud_gax::backoff_policy::BackoffPolicy;
use google_cloud_gax::exponential_backoff::ExponentialBackoffBuilder;
use google_cloud_gax::retry_state::RetryState;
use tokio::time::{sleep, timeout};

use super::transport::Failure;

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For a whole call: credentials, every page, every retry and the waits between them.
    pub deadline: Duration,
    /// For one exchange, which is then tried anew.
    pub attempt: Duration,
}

impl Limits {
    /// A try is given up after a third of the time, so that one hung connection does not take all of it.
    #[must_use]
    pub fn within(deadline: Duration) -> Self {
        Self { deadline, attempt: deadline / 3 }
    }
}

impl Default for Limits {
    /// 10 seconds for a call.
    fn default() -> Self {
        Self::within(Duration::from_secs(10))
    }
}

const ATTEMPTS: u32 = 5;

/// Makes one call's exchanges, each up to [`ATTEMPTS`] times.
pub(super) struct Retries {
    /// The newest reason to try again: at the deadline it says more than that the time is over.
    last: Mutex<Option<Failure>>,
}

impl Retries {
    pub(super) fn new() -> Self {
        Self { last: Mutex::new(None) }
    }

    /// Runs a whole call. At its deadline the last failure is its answer, or `Slow` where there was none.
    pub(super) async fn until<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match timeout(deadline, call).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.take_last().unwrap_or(Failure::Slow)),
        }
    }

    /// Only for what may be done twice.
    pub(super) async fn idempotent<T, F>(&self, exchange: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        // With jitter, so that a fleet that lost Google together does not come back all at once.
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_delay(Duration::from_millis(200))
            .with_maximum_delay(Duration::from_secs(2))
            .clamp();
        let mut attempt = 0_u32;
        loop {
            attempt += 1;
            match exchange().await {
                Err(failure) if failure.is_transient() && attempt < ATTEMPTS => {
                    self.remember(failure);
                    sleep(backoff.on_failure(&RetryState::new(true).set_attempt_count(attempt))).await;
                }
                outcome => return outcome,
            }
        }
    }

    fn remember(&self, failure: Failure) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    fn take_last(&self) -> Option<Failure> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
