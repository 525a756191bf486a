//! The JSON-lines file: one thread appends, so that lines never mix and no request blocks the executor on a disk. Records that wait
//! are appended with one write and made durable with one sync: while it runs, the next ones gather.

mod place;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::AuditError;
use super::chain::{Chain, Head, Origin};
use super::journal::Journal;
use super::record::{End, Gap};
use crate::crypto::ChainKey;
use crate::model::Micros;

use place::Place;
pub(super) use place::files_beside;

/// Calls that may wait for the thread; more wait to be let in.
const QUEUE: usize = 1024;
/// How long a call waits for its record to be on the disk.
const LONGEST: Duration = Duration::from_secs(10);
/// Bytes of records that are held in memory while the keys are locked; what comes after is counted.
const HELD: usize = 1024 * 1024;

enum Job {
    Write {
        at: Micros,
        lines: Vec<u8>,
        /// How many there are in `lines`; none where the caller only asks whether records can be written.
        records: u64,
        done: Done,
    },
    Unlock {
        at: Micros,
        key: Arc<ChainKey>,
        done: Done,
    },
    Refuse {
        why: String,
        done: Done,
    },
    /// Puts the file aside where its first record is from before this time.
    PutAside {
        before: Micros,
        done: Done,
    },
}

type Done = oneshot::Sender<Result<(), AuditError>>;

/// What the thread shows.
#[derive(Default)]
struct Shown {
    failing: Mutex<Option<String>>,
    has_key: AtomicBool,
    head: Mutex<Option<Head>>,
}

pub(super) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    shown: Arc<Shown>,
}

impl Writer {
    pub(super) fn open(path: &Path, origin: Origin, journal: Option<Arc<Journal>>) -> io::Result<Self> {
        let shown = Arc::new(Shown::default());
        let mut place = Place::open(path)?;
        let previous = place.last_of(origin.node)?;
        let appender = Appender {
            place,
            origin,
            previous,
            keys: Keys::Locked { held: Vec::new(), records: 0 },
            gap: None,
            shown: Arc::clone(&shown),
            journal,
        };
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || appender.run(queue))?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)), shown })
    }

    /// Why the last write failed.
    pub(super) fn failing(&self) -> Option<String> {
        lock(&self.shown.failing).clone()
    }

    pub(super) fn lacks_key(&self) -> bool {
        !self.shown.has_key.load(Ordering::Acquire)
    }

    pub(super) fn head(&self) -> Option<Head> {
        *lock(&self.shown.head)
    }

    /// Returns when the lines are durable, or held. Without any it is a question: a writer that fails tries again for it.
    pub(super) async fn append(&self, at: Micros, lines: Vec<u8>, records: u64) -> Result<(), AuditError> {
        self.ask(|done| Job::Write { at, lines, records, done }).await
    }

    pub(super) async fn unlock(&self, at: Micros, key: Arc<ChainKey>) -> Result<(), AuditError> {
        self.ask(|done| Job::Unlock { at, key, done }).await
    }

    pub(super) async fn refuse(&self, why: String) {
        // It fails by what it asks for.
        let _refused = self.ask(|done| Job::Refuse { why, done }).await;
    }

    pub(super) async fn put_aside_begun_before(&self, before: Micros) -> Result<(), AuditError> {
        self.ask(|done| Job::PutAside { before, done }).await
    }

    async fn ask(&self, job: impl FnOnce(Done) -> Job) -> Result<(), AuditError> {
        self.ask_for(LONGEST, job).await
    }

    async fn ask_for(&self, longest: Duration, job: impl FnOnce(Done) -> Job) -> Result<(), AuditError> {
        let (done, written) = oneshot::channel();
        let jobs = lock(&self.jobs).clone();
        let asked = async {
            let sent = match jobs {
                Some(jobs) => jobs.send(job(done)).await.is_ok(),
                None => false,
            };
            if sent { written.await.ok() } else { None }
        };
        // A disk that hangs, a network's for one, must not hang each call with it.
        let Ok(asked) = tokio::time::timeout(longest, asked).await else {
            *lock(&self.shown.failing) = Some("a write has not ended yet: the disk hangs".to_owned());
            return Err(AuditError);
        };
        if let Some(result) = asked {
            return result;
        }
        *lock(&self.shown.failing) = Some("the writer has ended".to_owned());
        Err(AuditError)
    }

    pub(super) async fn close(&self) {
        lock(&self.jobs).take();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // The thread ends once the queue is empty; a join in a blocking task keeps the executor free.
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the audit writer ended with a panic");
            }
        }
    }
}

/// The mutexes guard takes, clones and assignments; a panic while one is held cannot leave half a change.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The thread's side.
struct Appender {
    place: Place,
    origin: Origin,
    /// The end of the node's chain before this one.
    previous: Option<End>,
    keys: Keys,
    /// What the file lacks, until that is written into it.
    gap: Option<Gap>,
    shown: Arc<Shown>,
    journal: Option<Arc<Journal>>,
}

/// Whether there is a key to authenticate records with.
enum Keys {
    /// Not yet: the few calls that are answered then are recorded once it is there.
    Locked {
        held: Vec<u8>,
        records: u64,
    },
    /// There should be one.
    Refused(String),
    Open(Chain),
}

impl Appender {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut batch = Vec::with_capacity(QUEUE);
        while queue.blocking_recv_many(&mut batch, QUEUE) > 0 {
            self.take(&mut batch);
        }
        if let Keys::Locked { records: records @ 1.., .. } = self.keys {
            tracing::error!("{records} audit records are lost: they were held until the keys would be open");
        }
    }

    /// Does the jobs in their order; writes that stand beside each other as one.
    fn take(&mut self, batch: &mut Vec<Job>) {
        let mut writes = Writes::default();
        for job in batch.drain(..) {
            match job {
                Job::Write { at, lines, records, done } => writes.add(at, &lines, records, done),
                Job::Unlock { at, key, done } => {
                    self.write(std::mem::take(&mut writes));
                    self.open(at, key);
                    self.write(Writes { at: Some(at), done: vec![done], ..Writes::default() });
                }
                Job::PutAside { before, done } => {
                    self.write(std::mem::take(&mut writes));
                    if let Err(error) = self.place.put_aside_begun_before(before) {
                        tracing::warn!("the audit file could not be put aside: {error}");
                    }
                    self.write(Writes { done: vec![done], ..Writes::default() });
                }
                Job::Refuse { why, done } => {
                    self.write(std::mem::take(&mut writes));
                    self.refuse(why);
                    self.write(Writes { done: vec![done], ..Writes::default() });
                }
            }
        }
        self.write(writes);
    }

    fn open(&mut self, at: Micros, key: Arc<ChainKey>) {
        let chain = match &self.keys {
            Keys::Open(chain) => chain.under(key),
            Keys::Locked { .. } | Keys::Refused(_) => Chain::new(self.origin, key, self.previous),
        };
        let before = std::mem::replace(&mut self.keys, Keys::Open(chain));
        self.shown.has_key.store(true, Ordering::Release);
        if let Keys::Locked { held, records: records @ 1.. } = before {
            let (done, _written) = oneshot::channel();
            self.write(Writes { at: Some(at), lines: held, records, done: vec![done] });
        }
    }

    fn refuse(&mut self, why: String) {
        if !matches!(self.keys, Keys::Open(_)) {
            self.keys = Keys::Refused(why);
        }
    }

    fn write(&mut self, writes: Writes) {
        if writes.done.is_empty() {
            return;
        }
        let result = self.write_durably(writes.at.unwrap_or(Micros(0)), &writes.lines, writes.records);
        for done in writes.done {
            // Whoever asked may have gone; the record stays.
            let _gone = done.send(result);
        }
    }

    /// Appends lines, and before them, after a failure, what is missing.
    fn write_durably(&mut self, at: Micros, lines: &[u8], records: u64) -> Result<(), AuditError> {
        let chain = match &mut self.keys {
            Keys::Locked { held, records: so_far } => {
                if held.len() + lines.len() > HELD {
                    let gap = self.gap.get_or_insert(Gap { since: at, records: 0 });
                    gap.records += records;
                } else {
                    held.extend_from_slice(lines);
                    *so_far += records;
                }
                return Ok(());
            }
            Keys::Refused(why) => {
                let why = why.clone();
                return Err(self.failed(at, records, why));
            }
            Keys::Open(chain) => chain,
        };
        let mut ahead = chain.clone();
        let mut out = Vec::with_capacity(lines.len() * 2 + 512);
        ahead.start(at, &mut out);
        if let Some(gap) = &self.gap {
            let mut line = Vec::new();
            gap.write_line(at, &mut line);
            ahead.add(&line, &mut out);
        }
        ahead.add(lines, &mut out);
        if out.is_empty() {
            // Whoever gave up waiting said that it fails, and its write ended well after all.
            *lock(&self.shown.failing) = None;
            return Ok(());
        }
        match self.place.append(&out) {
            Ok(()) => {
                if let Some(journal) = &self.journal {
                    journal.copy(&out);
                }
                *lock(&self.shown.head) = ahead.head();
                *chain = ahead;
                if self.gap.take().is_some() {
                    tracing::info!("audit records are written again");
                }
                *lock(&self.shown.failing) = None;
                Ok(())
            }
            Err(error) => Err(self.failed(at, records, error.to_string())),
        }
    }

    fn failed(&mut self, at: Micros, records: u64, why: String) -> AuditError {
        // A full disk fails each call: one line in the log when it begins and one when it ends.
        let gap = self.gap.get_or_insert_with(|| {
            tracing::error!("audit records cannot be written; calls fail until they can: {why}");
            Gap { since: at, records: 0 }
        });
        gap.records += records;
        *lock(&self.shown.failing) = Some(why);
        AuditError
    }
}

/// Writes that are made as one.
#[derive(Default)]
struct Writes {
    /// When the first of them was asked for.
    at: Option<Micros>,
    lines: Vec<u8>,
    records: u64,
    done: Vec<Done>,
}

impl Writes {
    fn add(&mut self, at: Micros, lines: &[u8], records: u64, done: Done) {
        self.at = Some(self.at.map_or(at, |first| first.min(at)));
        self.lines.extend_from_slice(lines);
        self.records += records;
        self.done.push(done);
    }
}

#[cfg(test)]
mod tests;
