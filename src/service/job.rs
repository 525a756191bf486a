//! Work that outlives the request which asked for it: one piece of a kind at a time, watched by as many as like to.
//!
//! A caller who hangs up stops nothing. Whoever watches is told the latest progress, not each step of it, so a slow reader holds nobody
//! up; how the work ended stays to be read until the next piece begins. Only the daemon's own end stops work early: it asks
//! [`Reporter::go_on`] wherever it could be resumed from.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Error, Failure};

/// How long the work under way may take to come to a stop when the daemon does.
const STOP_TIME: Duration = Duration::from_secs(20);

/// How far a piece of work has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, for people.
    pub step: Cow<'static, str>,
    pub done: u64,
    /// Absent where it is not known yet.
    pub total: Option<u64>,
}

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage<T> {
    Running(Progress),
    /// The last one.
    Ended(Result<T, Error>),
}

/// Room for one piece of work of a kind, under way or ended.
pub struct Job<T> {
    name: &'static str,
    latest: Mutex<Option<Watch<T>>>,
}

/// A look at one piece of work.
pub struct Watch<T> {
    progress: watch::Receiver<Progress>,
    end: watch::Receiver<Option<Result<T, Error>>>,
    seen_end: bool,
}

/// Says how the work is coming on, from inside it.
pub struct Reporter {
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
}

/// What all work of a daemon shares: where it runs, and the word to stop.
#[derive(Debug, Clone, Default)]
pub struct Workers {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl<T: Clone + Send + Sync + 'static> Job<T> {
    /// `name` as messages have it: `rotate-dek`.
    pub const fn new(name: &'static str) -> Self {
        Self { name, latest: Mutex::new(None) }
    }

    /// Begins a piece of work unless one is under way.
    ///
    /// # Errors
    /// [`Error::Conflict`] while one is under way; [`Error::Unavailable`] when the daemon is stopping.
    pub fn begin<F>(&self, workers: &Workers, work: impl FnOnce(Reporter) -> F) -> Result<Watch<T>, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.as_ref().is_some_and(Watch::is_under_way) {
            return Err(Error::Conflict(format!(
                "a {} is under way in this daemon; wait for its end (GET on the same route follows it)",
                self.name
            )));
        }
        if workers.stop.is_cancelled() {
            return Err(stopping());
        }
        let starting = Progress { step: Cow::Borrowed("starting"), done: 0, total: None };
        let (progress, progressed) = watch::channel(starting);
        let (end, ended) = watch::channel(None);
        let watch = Watch { progress: progressed, end: ended, seen_end: false };
        let begun = watch.clone();
        *latest = Some(watch);
        let work = work(Reporter { progress, stop: workers.stop.clone() });
        workers.tasks.spawn(async move {
            let result = work.await;
            end.send_replace(Some(result));
        });
        Ok(begun)
    }

    /// A look at the piece of work that is under way, or at the last one.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there was none since the daemon started.
    pub fn watch(&self) -> Result<Watch<T>, Error> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        latest.ok_or_else(|| Error::NotFound(format!("no {} was asked for since this daemon started", self.name)))
    }
}

impl<T: Clone> Watch<T> {
    /// What there is to say: how far it is, at once; then whenever that changed; last, how it ended; then nothing.
    pub async fn next(&mut self) -> Option<Stage<T>> {
        if self.seen_end {
            return None;
        }
        let end = self.end.borrow_and_update().clone();
        if let Some(result) = end {
            return Some(self.ended(result));
        }
        tokio::select! {
            biased;
            changed = self.end.changed() => Some(self.result(changed.is_ok())),
            changed = self.progress.changed() => {
                if changed.is_ok() {
                    return Some(Stage::Running(self.progress.borrow_and_update().clone()));
                }
                // The reporter is gone, so the end is near.
                let said = self.end.changed().await.is_ok();
                Some(self.result(said))
            }
        }
    }

    /// How it ended, if it has.
    pub fn end(&self) -> Option<Result<T, Error>> {
        self.end.borrow().clone()
    }

    /// The latest, without waiting.
    pub fn latest(&self) -> Progress {
        self.progress.borrow().clone()
    }

    fn result(&mut self, said: bool) -> Stage<T> {
        let result = if said { self.end.borrow_and_update().clone() } else { None };
        self.ended(result.unwrap_or_else(|| {
            tracing::error!("a piece of work ended with a panic");
            Err(Error::Internal(Failure::Other))
        }))
    }

    const fn ended(&mut self, result: Result<T, Error>) -> Stage<T> {
        self.seen_end = true;
        Stage::Ended(result)
    }

    fn is_under_way(&self) -> bool {
        self.end.borrow().is_none() && self.end.has_changed().is_ok()
    }
}

// By hand: a derived one would also copy what this watcher has seen.
impl<T> Clone for Watch<T> {
    fn clone(&self) -> Self {
        let mut progress = self.progress.clone();
        progress.mark_changed();
        Self { progress, end: self.end.clone(), seen_end: false }
    }
}

impl Reporter {
    pub fn say(&self, step: impl Into<Cow<'static, str>>, done: u64, total: Option<u64>) {
        self.progress.send_replace(Progress { step: step.into(), done, total });
    }

    /// Whether to go on; asked at each point from which the work can be resumed.
    ///
    /// # Errors
    /// [`Error::Unavailable`] once the daemon is stopping.
    pub fn go_on(&self) -> Result<(), Error> {
        if self.stop.is_cancelled() { Err(stopping()) } else { Ok(()) }
    }
}

/// What a caller is told whose work was not done for it.
pub(super) fn stopping() -> Error {
    Error::Unavailable("the daemon is stopping; nothing is lost: ask for the same again once it is back".to_owned())
}

impl Workers {
    /// Work in the background that nobody watches.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Whether to go on; asked at each point from which work that nobody watches can be resumed.
    ///
    /// # Errors
    /// [`Error::Unavailable`] once the daemon is stopping.
    pub fn go_on(&self) -> Result<(), Error> {
        if self.stop.is_cancelled() { Err(stopping()) } else { Ok(()) }
    }

    /// Resolves when work should stop.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Stops all work at the next point from which it can be resumed, and waits for that.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_TIME, self.tasks.wait()).await.is_err() {
            tracing::warn!("some work did not stop within {} s and was cut off", STOP_TIME.as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_second_piece_of_work_is_refused_until_the_first_has_ended() {
        let (job, workers) = (Job::<u8>::new("test"), Workers::default());
        let (go, wait) = oneshot::channel::<()>();
        let mut watch = job.begin(&workers, |_| async { wait.await.map(|()| 7).map_err(|_| stopping()) }).unwrap();
        assert!(matches!(job.begin(&workers, |_| async { Ok(8) }), Err(Error::Conflict(_))));
        go.send(()).unwrap();
        while watch.next().await.is_some_and(|stage| matches!(stage, Stage::Running(_))) {}
        assert!(job.begin(&workers, |_| async { Ok(8) }).is_ok());
    }

    #[tokio::test]
    async fn who_comes_late_is_told_the_latest_and_the_end() {
        let (job, workers) = (Arc::new(Job::<u8>::new("test")), Workers::default());
        let (go, wait) = oneshot::channel::<()>();
        let (said, heard) = oneshot::channel::<()>();
        let first = job
            .begin(&workers, |reporter| async move {
                reporter.say("one", 1, Some(9));
                reporter.say("two", 2, Some(9));
                said.send(()).unwrap();
                wait.await.unwrap();
                Ok(7)
            })
            .unwrap();
        drop(first);
        heard.await.unwrap();
        let mut late = job.watch().unwrap();
        let two = Progress { step: "two".into(), done: 2, total: Some(9) };
        assert_eq!(late.next().await, Some(Stage::Running(two)));
        go.send(()).unwrap();
        assert_eq!(late.next().await, Some(Stage::Ended(Ok(7))));
        assert_eq!(late.next().await, None);
        let mut after = job.watch().unwrap();
        assert_eq!(after.next().await, Some(Stage::Ended(Ok(7))));
    }

    #[tokio::test]
    async fn a_panic_is_an_end_and_makes_room_for_the_next() {
        let (job, workers) = (Job::<u8>::new("test"), Workers::default());
        let mut watch = job.begin(&workers, |_| async { panic!("on purpose") }).unwrap();
        let end = loop {
            match watch.next().await.unwrap() {
                Stage::Running(_) => {}
                Stage::Ended(end) => break end,
            }
        };
        assert_eq!(end, Err(Error::Internal(Failure::Other)));
        assert!(job.begin(&workers, |_| async { Ok(8) }).is_ok());
    }

    #[tokio::test]
    async fn a_daemon_that_stops_ends_the_work_and_begins_none() {
        let (job, workers) = (Job::<u8>::new("test"), Workers::default());
        let mut watch = job
            .begin(&workers, |reporter| async move {
                loop {
                    reporter.go_on()?;
                    tokio::task::yield_now().await;
                }
            })
            .unwrap();
        workers.stop().await;
        let end = loop {
            match watch.next().await.unwrap() {
                Stage::Running(_) => {}
                Stage::Ended(end) => break end,
            }
        };
        assert_eq!(end, Err(stopping()));
        assert!(matches!(job.begin(&workers, |_| async { Ok(8) }), Err(Error::Unavailable(_))));
    }

    #[test]
    fn work_that_was_never_asked_for_is_not_found() {
        assert!(matches!(Job::<u8>::new("test").watch(), Err(Error::NotFound(_))));
    }
}
