//! Time as an input. The database stamps rows; this clock serves what has no database at hand: logs, audit files, ages.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::Micros;

/// Where the rest of the program asks for time.
pub trait Clock: Send + Sync {
    /// Wall time, for records that people read.
    fn wall(&self) -> Micros;
    /// Monotonic time since the clock was made, for limits and ages: it never goes backwards when the wall clock is set.
    fn monotonic(&self) -> Duration;
    /// Time since the host was booted, its sleep counted in: what must lapse while a laptop is shut or a guest is paused. The monotonic
    /// clock stands still then.
    fn since_boot(&self) -> Duration;
}

/// The operating system's clocks.
pub struct SystemClock {
    made: Instant,
}

impl SystemClock {
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the operating system's clocks")]
    pub fn new() -> Self {
        Self { made: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the operating system's clocks")]
    fn wall(&self) -> Micros {
        let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        };
        Micros(micros)
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the operating system's clocks")]
    fn monotonic(&self) -> Duration {
        self.made.elapsed()
    }

    fn since_boot(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
        Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
    }
}
