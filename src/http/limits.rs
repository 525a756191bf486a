//! How often a caller may ask: so many requests a second for each identity, and for each address. Who asks more is told when to come back,
//! before anything of the request is looked at.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use governor::clock::Clock as GovernorClock;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use super::problem::Refused;
use crate::access::RateKey;
use crate::clock::Clock;
use crate::model::network;
use crate::telemetry::{self, Turned};

/// What counts as one place that requests come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

pub(super) fn source(address: IpAddr) -> Source {
    Source(network(address))
}

/// The rates that are kept. A rate's burst is what it allows in a second.
pub struct Rates {
    clock: Ticking,
    identities: Option<Keyed<RateKey>>,
    sources: Option<Keyed<Source>>,
}

type Keyed<K> = RateLimiter<K, DashMapStateStore<K>, Ticking, NoOpMiddleware<Duration>>;

impl Rates {
    /// Requests a second; `None` is as many as come.
    #[must_use]
    pub fn new(
        clock: Arc<dyn Clock>,
        requests_per_identity: Option<NonZeroU32>,
        requests_per_address: Option<NonZeroU32>,
    ) -> Self {
        let clock = Ticking(clock);
        Self {
            identities: requests_per_identity.map(|rate| keyed(rate, &clock)),
            sources: requests_per_address.map(|rate| keyed(rate, &clock)),
            clock,
        }
    }

    /// Counts a request of this source.
    pub(super) fn of_source(&self, source: Source) -> Result<(), TooOften> {
        let checked = self.sources.as_ref().map_or(Ok(()), |rates| rates.check_key(&source));
        checked.map_err(|until| self.too_often(Turned::Address, &until))
    }

    /// Counts a request of this identity.
    pub(super) fn of_identity(&self, identity: &RateKey) -> Result<(), TooOften> {
        let checked = self.identities.as_ref().map_or(Ok(()), |rates| rates.check_key(identity));
        checked.map_err(|until| self.too_often(Turned::Identity, &until))
    }

    fn too_often(&self, by: Turned, until: &governor::NotUntil<Duration>) -> TooOften {
        telemetry::turned_away(by);
        TooOften { by, wait: until.wait_time_from(self.clock.now()) }
    }

    /// Forgets who has not asked for a while. Once a second.
    pub fn tick(&self) {
        if let Some(rates) = &self.identities {
            rates.retain_recent();
        }
        if let Some(rates) = &self.sources {
            rates.retain_recent();
        }
    }
}

fn keyed<K: std::hash::Hash + Eq + Clone>(rate: NonZeroU32, clock: &Ticking) -> Keyed<K> {
    RateLimiter::new(Quota::per_second(rate), DashMapStateStore::default(), clock.clone())
}

/// The daemon's clock, as governor reads one.
#[derive(Clone)]
struct Ticking(Arc<dyn Clock>);

impl GovernorClock for Ticking {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic()
    }
}

/// A request too many. It leaves no audit record: it did nothing and was not looked at, and a record for each would let whoever floods the
/// daemon fill its disk. The metric counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooOften {
    by: Turned,
    wait: Duration,
}

impl TooOften {
    /// Whole seconds, of which there is at least one (RFC 9110, section 10.2.3).
    fn seconds(&self) -> u64 {
        self.wait.as_secs() + u64::from(self.wait.subsec_nanos() > 0)
    }
}

impl IntoResponse for TooOften {
    fn into_response(self) -> Response {
        let of = if self.by == Turned::Identity { "this identity" } else { "this address" };
        let detail = format!("more requests of {of} than it may make in a second");
        let mut response = Refused::new(StatusCode::TOO_MANY_REQUESTS, detail).into_response();
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(self.seconds().max(1)));
        response
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::model::Micros;

    #[derive(Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn wall(&self) -> Micros {
            Micros(0)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.load(Ordering::Relaxed))
        }

        fn since_boot(&self) -> Duration {
            self.monotonic()
        }
    }

    fn rates(hand: &Arc<Hand>) -> Rates {
        Rates::new(Arc::clone(hand) as _, NonZeroU32::new(2), NonZeroU32::new(4))
    }

    fn at(address: &str) -> Source {
        source(address.parse().unwrap())
    }

    #[test]
    fn who_asks_too_often_is_told_when_to_come_back_and_nobody_else_is() {
        let hand = Arc::new(Hand::default());
        let rates = rates(&hand);
        for _ in 0..4 {
            rates.of_source(at("192.0.2.1")).unwrap();
        }
        let refused = rates.of_source(at("192.0.2.1")).unwrap_err().into_response();
        assert_eq!((refused.status().as_u16(), &refused.headers()[RETRY_AFTER]), (429, &HeaderValue::from(1)));
        rates.of_source(at("192.0.2.2")).unwrap();
        hand.0.store(250, Ordering::Relaxed);
        rates.of_source(at("192.0.2.1")).unwrap();
        assert!(rates.of_source(at("192.0.2.1")).is_err());
    }

    #[test]
    fn hosts_of_one_ipv6_network_share_a_rate_and_a_mapped_address_is_its_ipv4() {
        assert_eq!(at("2001:db8:1:2:3:4:5:6"), at("2001:db8:1:2::1"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
    }

    #[test]
    fn who_stays_away_is_forgotten() {
        let hand = Arc::new(Hand::default());
        let rates = rates(&hand);
        rates.of_source(at("192.0.2.1")).unwrap();
        rates.tick();
        assert_eq!(rates.sources.as_ref().unwrap().len(), 1);
        hand.0.store(5000, Ordering::Relaxed);
        rates.tick();
        assert!(rates.sources.as_ref().unwrap().is_empty());
    }

    #[test]
    fn without_a_limit_as_many_are_taken_as_come() {
        let rates = Rates::new(Arc::new(Hand::default()), None, None);
        for _ in 0..10_000 {
            rates.of_source(at("192.0.2.1")).unwrap();
        }
    }
}
