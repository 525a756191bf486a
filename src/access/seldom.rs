//! What anybody can have written into the log, and so is written seldom.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const EVERY: Duration = Duration::from_mins(1);

/// When something was said last.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<Option<Duration>>);

impl Seldom {
    /// Whether it may be said again, at this time of a clock that only goes on; if so, it is taken for said.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = said.is_none_or(|at| now.saturating_sub(at) >= EVERY);
        if is_due {
            *said = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_once_and_then_once_a_minute() {
        let seldom = Seldom::default();
        let due = [0, 1, 59, 60, 61, 119, 120].map(|second| seldom.is_due(Duration::from_secs(second)));
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }
}
