//! Reads that wait, answered together: one query for all of them, the way a group commit writes.
//!
//! A query for each request costs more than the row that it fetches, so under load the requests would wait for each other anyway. Here
//! a read goes to the database at once while fewer than [`QUERIES`] are on their way; otherwise it waits, and the next query takes
//! everything that waits along. Nothing is cached, and nothing is stale: the statement that answers a read begins after the read came.
//!
//! Rejected: a task that always runs and takes from a channel (first come, first served: one tenant with a thousand requests is then
//! answered before the next one's single request), and a pause to gather more (a lone read would pay for it).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::{Found, Place, Store, StoreError};
use crate::model::Tenant;

/// Queries under way at once. Two keep the database busy while the answers of one are handed out; more only make smaller queries of the
/// same reads, and take connections from the writes.
const QUERIES: usize = 2;

/// Places in one query: at 64 KiB a value, 4 MiB of answer.
const PLACES: usize = 64;

/// The front of the store for reads of single places.
#[derive(Clone)]
pub struct Reads(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiter>,
    /// Queries under way.
    running: usize,
    /// Queries that were answered, since ever.
    answered: u64,
}

type Answer = oneshot::Sender<Result<Found, StoreError>>;

struct Waiter {
    place: Place,
    answer: Answer,
}

impl Waiter {
    fn parts(self) -> (Place, Answer) {
        (self.place, self.answer)
    }
}

impl Reads {
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(Arc::new(Shared { store, queue: Mutex::default() }))
    }

    /// What lies at a place. One that is dropped meanwhile is left out of the next query.
    ///
    /// # Errors
    /// As [`Store::read`]: the query's, or this place's own; another place's never.
    pub async fn read(&self, place: Place) -> Result<Found, StoreError> {
        let (answer, answered) = oneshot::channel();
        if let Some(turn) = self.0.enter(Waiter { place, answer }) {
            tokio::spawn(turn.run());
        }
        answered.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the query was given up".to_owned())))
    }

    /// How many wait for the next query.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.queue().waiting.len()
    }
}

impl Shared {
    /// The turn to run queries, where one is free.
    fn enter(self: &Arc<Self>, waiter: Waiter) -> Option<Turn> {
        let mut queue = self.queue();
        queue.waiting.push_back(waiter);
        (queue.running < QUERIES).then(|| {
            queue.running += 1;
            Turn { shared: Arc::clone(self), over: false }
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // It guards pushes, takes and a count: a panic cannot leave half a change.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, waiters: Vec<Waiter>) {
        let (places, answers): (Vec<Place>, Vec<Answer>) = waiters.into_iter().map(Waiter::parts).unzip();
        let before = self.queue().answered;
        match self.store.read(&places).await {
            Ok(found) => {
                self.queue().answered += 1;
                answers.into_iter().zip(found).for_each(|(answer, found)| give(answer, found));
            }
            Err(error @ StoreError::Unavailable(_)) => {
                let waiting = self.queue().given_up(before);
                let all = answers.into_iter().chain(waiting.into_iter().map(|waiter| waiter.answer));
                all.for_each(|answer| give(answer, Err(error.clone())));
            }
            // One row that the database itself cannot read fails the query, and must fail only who asked for it.
            Err(_) => self.answer_singly(places, answers).await,
        }
    }

    async fn answer_singly(&self, places: Vec<Place>, answers: Vec<Answer>) {
        let mut away = None;
        for (place, answer) in places.into_iter().zip(answers) {
            let found = match &away {
                Some(error) => Err(StoreError::clone(error)),
                None => self.store.read(std::slice::from_ref(&place)).await.map(|mut found| found.pop()),
            };
            match found {
                Ok(Some(found)) => give(answer, found),
                Ok(None) => drop(answer),
                Err(error) => {
                    away = Some(error.clone()).filter(|error| matches!(error, StoreError::Unavailable(_)));
                    give(answer, Err(error));
                }
            }
        }
    }
}

/// Whoever asked may have gone.
fn give(answer: Answer, found: Result<Found, StoreError>) {
    let _gone = answer.send(found);
}

impl Queue {
    /// Whom a query that failed because the database is away takes along: all who wait, since each would wait as long again for the same
    /// words. Nobody where another query was answered since it began: then a connection broke, and not the database.
    fn given_up(&mut self, answered_before: u64) -> VecDeque<Waiter> {
        if self.answered == answered_before { std::mem::take(&mut self.waiting) } else { VecDeque::new() }
    }

    /// The reads of the next query. Where more wait than one query takes, tenants take turns: the first of each, then the second of
    /// each. Those that are left stay in that order, so that nobody is passed for ever.
    fn next(&mut self) -> Vec<Waiter> {
        self.waiting.retain(|waiter| !waiter.answer.is_closed());
        if self.waiting.len() > PLACES {
            let mut of_tenant: HashMap<Tenant, usize> = HashMap::new();
            let mut ranked: Vec<(usize, Waiter)> = Vec::with_capacity(self.waiting.len());
            for waiter in self.waiting.drain(..) {
                let before = of_tenant.entry(waiter.place.tenant.clone()).or_default();
                ranked.push((*before, waiter));
                *before += 1;
            }
            ranked.sort_by_key(|(before, _)| *before);
            self.waiting.extend(ranked.into_iter().map(|(_, waiter)| waiter));
        }
        let number = self.waiting.len().min(PLACES);
        self.waiting.drain(..number).collect()
    }
}

/// One of the [`QUERIES`].
struct Turn {
    shared: Arc<Shared>,
    /// Whether it was given back.
    over: bool,
}

impl Turn {
    /// Answers what waits until nothing does.
    async fn run(mut self) {
        while let Some(waiters) = self.next() {
            self.shared.answer(waiters).await;
        }
    }

    /// What to read next; where there is nothing the turn is given back, under the lock of the same look: a read that comes later finds
    /// it free.
    fn next(&mut self) -> Option<Vec<Waiter>> {
        let mut queue = self.shared.queue();
        let waiters = queue.next();
        if waiters.is_empty() {
            queue.running -= 1;
            drop(queue);
            self.over = true;
            return None;
        }
        Some(waiters)
    }
}

impl Drop for Turn {
    /// After a panic, or when the runtime ends, nobody may be left waiting for this turn. Those whose answers are dropped are told that the
    /// query was given up.
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut queue = self.shared.queue();
        queue.running -= 1;
        if queue.running == 0 {
            queue.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SecretName;
    use crate::store::Which;

    /// A queue of reads, and those who wait for their answers.
    #[derive(Default)]
    struct Waiting {
        queue: Queue,
        readers: Vec<oneshot::Receiver<Result<Found, StoreError>>>,
    }

    impl Waiting {
        fn come(&mut self, tenant: &str, reads: std::ops::Range<usize>) {
            for number in reads {
                let (answer, reader) = oneshot::channel();
                let name = SecretName::parse(&format!("A_{number}")).unwrap();
                let place = Place { tenant: Tenant::parse(tenant).unwrap(), name, which: Which::Current };
                self.queue.waiting.push_back(Waiter { place, answer });
                self.readers.push(reader);
            }
        }

        fn next(&mut self) -> Vec<String> {
            let waiters = self.queue.next();
            waiters.iter().map(|waiter| format!("{} {}", waiter.place.tenant, waiter.place.name)).collect()
        }
    }

    #[test]
    fn what_waits_goes_along_in_its_order() {
        let mut waiting = Waiting::default();
        waiting.come("alice", 0..2);
        waiting.come("bob", 0..1);
        assert_eq!(waiting.next(), ["alice A_0", "alice A_1", "bob A_0"]);
        assert!(waiting.next().is_empty());
    }

    #[test]
    fn a_tenant_with_a_thousand_reads_holds_no_other_up() {
        let mut waiting = Waiting::default();
        waiting.come("noisy", 0..1000);
        waiting.come("quiet", 0..2);
        let first = waiting.next();
        assert_eq!(first.len(), PLACES);
        assert_eq!(first[..4], ["noisy A_0", "quiet A_0", "noisy A_1", "quiet A_1"]);
        waiting.come("late", 0..1);
        let second = waiting.next();
        assert!(second.contains(&"late A_0".to_owned()), "{second:?}");
        assert!(second.contains(&format!("noisy A_{}", PLACES - 2)), "who came first is not passed: {second:?}");
    }

    #[test]
    fn who_went_away_is_left_out() {
        let mut waiting = Waiting::default();
        waiting.come("alice", 0..3);
        drop(waiting.readers.remove(1));
        assert_eq!(waiting.next(), ["alice A_0", "alice A_2"]);
    }

    #[tokio::test]
    async fn a_query_that_is_given_up_leaves_nobody_waiting_and_its_turn_free() {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::SqliteStore::open(&dir.path().join("a.db")).await.unwrap();
        let reads = Reads::new(Arc::new(store));
        let place = || Place {
            tenant: Tenant::parse("alice").unwrap(),
            name: SecretName::parse("A").unwrap(),
            which: Which::Current,
        };
        let (answer, reader) = oneshot::channel();
        let turn = reads.0.enter(Waiter { place: place(), answer }).unwrap();
        drop(turn);
        assert!(reader.await.is_err());
        assert_eq!(reads.0.queue().running, 0);
        assert_eq!(reads.read(place()).await, Ok(Found::NoTenant));
        assert_eq!(reads.0.queue().running, 0, "a turn is given back when nothing waits");
    }
}
