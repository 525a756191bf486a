//! The table as a sink of reads and denials: records that wait are inserted by one transaction, with their places in the chain, so that
//! each costs one row and none is written twice. While it runs, the next ones gather.
//!
//! Not as the records of changes, which get their places a second later: those lie in the transactions of their changes, of which many
//! run at once, and a chain has one end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::AuditError;
use super::file::lock;
use super::journal::Journal;
use super::table::Table;
use crate::store::Store;
use crate::store::trail::TrailRow;

/// Calls that may wait for the task; more wait to be let in.
const QUEUE: usize = 1024;
/// Rows in one transaction, but for a call that brings more itself.
const ROWS: usize = 1000;
/// How long a transaction may take before the file is asked, which stands ready: whoever waits for a silent database waits no longer.
const LONGEST: Duration = Duration::from_secs(2);

type Done = oneshot::Sender<Result<(), AuditError>>;

struct Job {
    rows: Vec<TrailRow>,
    done: Done,
}

pub(super) struct TableSink {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    task: Mutex<Option<JoinHandle<()>>>,
    failing: Arc<Mutex<Option<String>>>,
}

impl TableSink {
    /// To be called within a runtime.
    pub(super) fn start(table: Arc<Table>, store: Arc<dyn Store>, journal: Option<Arc<Journal>>) -> Self {
        let failing = Arc::new(Mutex::new(None));
        let (jobs, queue) = mpsc::channel(QUEUE);
        let inserter = Inserter { table, store, journal, failing: Arc::clone(&failing) };
        let task = tokio::spawn(inserter.run(queue));
        Self { jobs: Mutex::new(Some(jobs)), task: Mutex::new(Some(task)), failing }
    }

    /// Why the last transaction failed.
    pub(super) fn failing(&self) -> Option<String> {
        lock(&self.failing).clone()
    }

    /// Returns when the rows are committed.
    pub(super) async fn append(&self, rows: Vec<TrailRow>) -> Result<(), AuditError> {
        let (done, written) = oneshot::channel();
        let jobs = lock(&self.jobs).clone();
        let asked = async {
            let sent = match jobs {
                Some(jobs) => jobs.send(Job { rows, done }).await.is_ok(),
                None => false,
            };
            if sent { written.await.unwrap_or(Err(AuditError)) } else { Err(AuditError) }
        };
        // Behind a transaction that hangs nobody waits for two.
        tokio::time::timeout(LONGEST, asked).await.unwrap_or(Err(AuditError))
    }

    /// Writes what waits and stops.
    pub(super) async fn close(&self) {
        lock(&self.jobs).take();
        let task = lock(&self.task).take();
        if let Some(task) = task
            && task.await.is_err()
        {
            tracing::error!("the writer of audit records into the database ended with a panic");
        }
    }
}

/// The task's side.
struct Inserter {
    table: Arc<Table>,
    store: Arc<dyn Store>,
    journal: Option<Arc<Journal>>,
    failing: Arc<Mutex<Option<String>>>,
}

impl Inserter {
    async fn run(self, mut queue: mpsc::Receiver<Job>) {
        let mut batch = Vec::with_capacity(QUEUE);
        while queue.recv_many(&mut batch, QUEUE).await > 0 {
            let mut jobs = batch.drain(..).peekable();
            while jobs.peek().is_some() {
                let (mut rows, mut waiting) = (Vec::new(), Vec::new());
                while let Some(job) = jobs.next_if(|job| rows.is_empty() || rows.len() + job.rows.len() <= ROWS) {
                    rows.extend(job.rows);
                    waiting.push(job.done);
                }
                let result = self.insert(rows).await;
                for done in waiting {
                    // Whoever asked may have gone; the record stays.
                    let _gone = done.send(result);
                }
            }
        }
    }

    async fn insert(&self, rows: Vec<TrailRow>) -> Result<(), AuditError> {
        let inserted = tokio::time::timeout(LONGEST, self.table.append(&*self.store, rows)).await;
        let why = match inserted {
            Ok(Ok(rows)) => {
                if let Some(journal) = &self.journal {
                    for row in &rows {
                        journal.copy(&row.record);
                    }
                }
                if lock(&self.failing).take().is_some() {
                    tracing::info!("audit records are written into the database again");
                }
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        // One line in the log when it begins and one when it ends.
        if lock(&self.failing).replace(why.clone()).is_none() {
            tracing::error!("audit records of reads cannot be written into the database; the file takes them: {why}");
        }
        Err(AuditError)
    }
}
