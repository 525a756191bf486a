//! Log lines that strangers can cause: so many a second and no more, and how many were left out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;

const EACH: Duration = Duration::from_secs(1);
const MOST: u32 = 5;

pub(super) struct Quiet {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    began: Duration,
    written: u32,
    left_out: u64,
}

impl Quiet {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    pub(super) fn warn(&self, line: impl FnOnce()) {
        if let Some(left_out) = self.may_write() {
            line();
            if left_out > 0 {
                tracing::warn!("{left_out} more JWTs were refused without a line of their own");
            }
        }
    }

    /// How many lines were left out before this one, where it may be written.
    fn may_write(&self) -> Option<u64> {
        let now = self.clock.monotonic();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(state.began) >= EACH {
            *state = State { began: now, written: 0, left_out: state.left_out };
        }
        if state.written >= MOST {
            state.left_out += 1;
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Hand;
    use super::*;

    #[test]
    fn a_flood_writes_five_lines_a_second_and_says_how_many_it_left_out() {
        let hand = Arc::new(Hand::default());
        let quiet = Quiet::new(Arc::clone(&hand) as _);
        let lines = |times: u32| (0..times).filter_map(|_| quiet.may_write()).collect::<Vec<_>>();
        assert_eq!(lines(1000), [0; 5]);
        hand.pass(Duration::from_millis(999));
        assert_eq!(lines(1), Vec::<u64>::new());
        hand.pass(Duration::from_millis(1));
        assert_eq!(lines(2), [996, 0]);
    }
}
