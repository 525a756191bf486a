//! The record of who did what to which secret: one JSON line for each call, and for each secret of a batch. Never a value.
//!
//! An answer leaves only after its record is durable, so a call that cannot be recorded fails and says so. Records are chained under
//! a key of the database (docs/AUDIT.md has the format); reading them needs no tool of ours.

mod chain;
mod denials;
mod file;
mod journal;
mod prune;
mod record;
mod sink;
mod table;
pub mod verify;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::crypto::ChainKey;
use crate::model::Micros;
use crate::store::trail::TrailRow;
use crate::store::{Store, StoreError};

pub use denials::Stranger;
use denials::{Denials, Turn};
use file::lock;
use journal::Journal;
use sink::TableSink;
use table::Table;

pub use chain::{Head, Origin};
pub use prune::{PruneError, Pruned};
pub use record::{End, Kind, Outcome, PRUNE, Record};
pub use table::Chained;

/// The file with those that were put aside before it, in the order in which they were written; none of them need be there.
///
/// # Errors
/// The operating system's.
pub fn files_beside(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    file::files_beside(path)
}

/// Whether this is a build for benchmarks, which tell the cost of the audit by it: reads and refusals leave no record. Never in a release:
/// CI looks.
pub const IS_OFF: bool = cfg!(feature = "audit-off");

/// Who called, where nobody is known.
pub const UNKNOWN: &str = "unknown";

/// The record could not be written; the cause is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit record could not be written")]
pub struct AuditError;

/// Whether records are copied, beside what counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    None,
    /// Into the daemon's log.
    Journal,
}

/// A place that takes the records of reads and denials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// The JSON-lines file of this node.
    File,
    /// The database's table.
    Table,
}

/// Where records go: those of changes into the database, in the transactions of the changes; all others into the first of two sinks, and
/// where that takes none, into the other.
pub struct Audit {
    path: PathBuf,
    file: Arc<file::Writer>,
    denials: Denials,
    table: Arc<Table>,
    /// The table as a sink, where it is one.
    table_sink: Option<TableSink>,
    first: Sink,
    journal: Option<Arc<Journal>>,
    /// Whether a file that failed is being tried again.
    trying: Arc<AtomicBool>,
    /// One at a time holds the chains together.
    linking: tokio::sync::Mutex<()>,
    told: Mutex<Told>,
    /// Why the database takes no places, although it answers.
    held_up: Mutex<Option<String>>,
}

/// What the table was told of the file.
#[derive(Default)]
struct Told {
    at: Option<Micros>,
    n: u64,
    /// Records that the file has since of the table's head; they are no reason to tell the table.
    heads: u64,
}

/// How often the table is told at most, in microseconds: it is a row that stays.
const TABLE_IS_TOLD: u64 = 60_000_000;

impl Audit {
    /// Opens the file for appending, or makes it (0600). Until [`Audit::unlock`] records are held in memory.
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn open(path: &Path, origin: Origin, copies: Copies) -> std::io::Result<Self> {
        let journal = match copies {
            Copies::None => None,
            Copies::Journal => Some(Arc::new(Journal::start()?)),
        };
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file::Writer::open(path, origin, journal.clone())?),
            denials: Denials::default(),
            table: Arc::new(Table::new(origin)),
            table_sink: None,
            first: Sink::File,
            journal,
            trying: Arc::default(),
            linking: tokio::sync::Mutex::new(()),
            told: Mutex::default(),
            held_up: Mutex::default(),
        })
    }

    /// Makes the table a sink too: records of reads and denials go into this one first, and into the other where that takes none. To be
    /// called within a runtime.
    #[must_use]
    pub fn with_table(self, first: Sink, store: Arc<dyn Store>) -> Self {
        let sink = TableSink::start(Arc::clone(&self.table), store, self.journal.clone());
        Self { table_sink: Some(sink), first, ..self }
    }

    /// Begins the chain of this start under this key, or goes on under it; writes what was held.
    ///
    /// # Errors
    /// [`AuditError`]: the next write tries again.
    pub async fn unlock(&self, at: Micros, key: Arc<ChainKey>) -> Result<(), AuditError> {
        self.table.add_key(Arc::clone(&key));
        self.file.unlock(at, key).await
    }

    /// Which version of the key new records are under; absent while there is none.
    pub fn key_version(&self) -> Option<u64> {
        self.table.key_version()
    }

    /// Takes an earlier version of the key, for records that an earlier start left.
    pub fn add_old_key(&self, key: Arc<ChainKey>) {
        self.table.add_key(key);
    }

    /// Begins this start's chain in the database, where it is not begun; gives the records that were committed since their places in
    /// it, and enters how far both chains have come. To be called each second.
    ///
    /// # Errors
    /// [`StoreError`]: the next call tries again.
    pub async fn link(&self, store: &dyn Store, at: Micros) -> Result<Chained, StoreError> {
        if self.lacks_key() {
            return Ok(Chained::AsWritten);
        }
        let _alone = self.linking.lock().await;
        self.tell_table(store, at).await?;
        let chained = self.table.link(store, at).await?;
        self.tell_file(at).await;
        self.table.enter(store, self.file.head()).await?;
        self.try_again(at).await;
        Ok(chained)
    }

    /// Writes into the file's chain how far the table's has come, where it has: who can write to the database cannot take that back.
    async fn tell_file(&self, at: Micros) {
        // One that fails is tried again beside this, which a disk that hangs would hold up.
        let Some(spot) = self.table.news().filter(|_| self.file.failing().is_none()) else { return };
        let mut line = Vec::new();
        spot.write_line(record::HEAD, at, &mut line);
        // A failing file is told by the audit itself, and the next second tries again.
        if self.file.append(at, line, 1).await.is_ok() {
            self.table.was_told(&spot);
            lock(&self.told).heads += 1;
        }
    }

    /// Writes into the table's chain how far the file's has come, where it has by more than what it was told, and the last time is a
    /// minute ago: who can write the file cannot take that back.
    async fn tell_table(&self, store: &dyn Store, at: Micros) -> Result<(), StoreError> {
        let Some(head) = self.file.head() else { return Ok(()) };
        {
            let mut told = lock(&self.told);
            let since = *told.at.get_or_insert(at);
            if at.0.abs_diff(since.0) < TABLE_IS_TOLD || head.end.n <= told.n + told.heads {
                return Ok(());
            }
        }
        let spot = record::Spot { kind: Kind::File, of: None, position: head.end.n, link: head.end.link };
        let Some(row) = self.table.spot_row(&spot, record::HEAD, at) else { return Ok(()) };
        store.insert(&[row]).await?;
        *lock(&self.told) = Told { at: Some(at), n: head.end.n, heads: 0 };
        Ok(())
    }

    /// Goes on in the database from what this process knows, although that says something else: the next [`Audit::link`] does. That
    /// it was changed is recorded in the file, and said until this process ends.
    ///
    /// # Errors
    /// [`AuditError`]: it is not recorded.
    pub async fn insist(&self, at: Micros, what: String) -> Result<(), AuditError> {
        if !self.table.insist(what) {
            return Ok(());
        }
        let mut line = Vec::new();
        record::write_changed(at, &mut line);
        self.file.append(at, line, 1).await
    }

    /// What was found in the database that this process did not write.
    pub fn changed(&self) -> Option<String> {
        self.table.changed()
    }

    /// The database was put back to an earlier state, in which this start's chain may not have begun: the next [`Audit::link`] looks.
    pub fn begin_again(&self) {
        self.table.begin_again();
    }

    /// Whether changes can be recorded.
    pub fn takes_changes(&self) -> bool {
        self.table.is_begun()
    }

    /// The row of a change's record, to be inserted in the change's transaction; `None` while changes cannot be recorded.
    pub fn row(&self, record: &Record) -> Option<TrailRow> {
        self.table.row(record)
    }

    /// Whether [`Audit::copy`] does anything.
    pub const fn is_copied(&self) -> bool {
        self.journal.is_some()
    }

    /// Copies a change's records, which were committed with it.
    pub fn copy(&self, rows: &[TrailRow]) {
        if let Some(journal) = &self.journal {
            for row in rows {
                journal.copy(&row.record);
            }
        }
    }

    /// There is no key although there should be one: no record is taken until there is.
    pub async fn refuse(&self, why: String) {
        self.file.refuse(why).await;
    }

    /// Writes the records in order and returns when they are durable in one of the sinks.
    ///
    /// # Errors
    /// [`AuditError`]: no sink is known to have taken them.
    pub async fn write(&self, records: &[Record]) -> Result<(), AuditError> {
        if IS_OFF || records.is_empty() {
            return Ok(());
        }
        for sink in self.order() {
            let written = match sink {
                Sink::File => self.write_to_file(records).await,
                Sink::Table => self.write_to_table(records).await,
            };
            if written.is_ok() {
                return Ok(());
            }
        }
        Err(AuditError)
    }

    async fn write_to_file(&self, records: &[Record]) -> Result<(), AuditError> {
        let Some(first) = records.first() else { return Ok(()) };
        let mut lines = Vec::with_capacity(records.len() * 256);
        for record in records {
            record.write_line(&mut lines);
        }
        self.file.append(first.at, lines, records.iter().map(|record| record.count).sum()).await
    }

    async fn write_to_table(&self, records: &[Record]) -> Result<(), AuditError> {
        // While the chain has not begun, as where the keys are locked, the file holds records.
        let sink = self.table_sink.as_ref().filter(|_| self.table.is_begun()).ok_or(AuditError)?;
        let rows = records.iter().map(|record| self.table.row_for_append(record)).collect::<Option<Vec<_>>>();
        let rows = rows.ok_or(AuditError)?;
        sink.append(rows).await
    }

    /// The sinks in the order in which they are asked: one that failed last time is asked last, so that a disk that hangs or a database
    /// that is away is not waited for with each call.
    fn order(&self) -> [Sink; 2] {
        let fails = |sink| match sink {
            Sink::File => self.file.failing().is_some(),
            Sink::Table => self.table_sink.as_ref().is_none_or(|sink| sink.failing().is_some()),
        };
        let [first, second] = match self.first {
            Sink::File => [Sink::File, Sink::Table],
            Sink::Table => [Sink::Table, Sink::File],
        };
        if fails(first) && !fails(second) { [second, first] } else { [first, second] }
    }

    /// Records that a caller was turned away; counted where it happens again and again within the second.
    ///
    /// # Errors
    /// As [`Audit::write`].
    pub async fn write_denial(&self, record: Record) -> Result<(), AuditError> {
        self.take_turn(self.denials.take(record)).await
    }

    /// As [`Audit::write_denial`], of somebody whom nobody knows.
    ///
    /// # Errors
    /// As [`Audit::write`].
    pub async fn write_stranger(&self, stranger: Stranger, record: Record) -> Result<(), AuditError> {
        self.take_turn(self.denials.take_stranger(stranger, record)).await
    }

    async fn take_turn(&self, turn: Turn) -> Result<(), AuditError> {
        match turn {
            Turn::Record(record) => self.write(&[*record]).await,
            Turn::Wait(counted) => counted.await.unwrap_or(Err(AuditError)),
        }
    }

    /// Writes the records of the second that is over. To be called each second, and before the end.
    pub async fn end_second(&self) {
        let (records, waiters) = self.denials.end();
        let written = self.write(&records).await;
        for waiter in waiters {
            // Whoever asked may have gone; the record stays.
            let _gone = waiter.send(written);
        }
    }

    /// How far the file's chain has come, durably; absent until it has begun.
    pub fn head(&self) -> Option<Head> {
        self.file.head()
    }

    /// Whether there is no key yet to authenticate records with.
    pub fn lacks_key(&self) -> bool {
        self.file.lacks_key()
    }

    /// Why the last write failed, where it failed in every sink.
    pub fn failing(&self) -> Option<String> {
        let file = self.file.failing()?;
        match self.table_sink.as_ref().map(TableSink::failing) {
            None => Some(file),
            Some(Some(table)) => Some(format!("the file: {file}; the table: {table}")),
            Some(None) => (!self.table.is_begun()).then_some(file),
        }
    }

    /// Takes note of why the chain in the database cannot go on, or that it does.
    pub fn note_held_up(&self, why: Option<String>) {
        let before = std::mem::replace(&mut *lock(&self.held_up), why.clone());
        match (before, why) {
            (None, Some(why)) => tracing::error!("records of changes get no places in the audit's chain: {why}"),
            (Some(_), None) => tracing::info!("records of changes get their places in the audit's chain again"),
            _ => {}
        }
    }

    /// What an operator should know of sinks that fail while the other one takes their records.
    pub fn troubles(&self) -> Vec<String> {
        let file = self.file.failing().map(|why| format!("the audit file cannot be written: {why}"));
        let table = self.table_sink.as_ref().and_then(TableSink::failing);
        let table = table.map(|why| format!("audit records of reads cannot be written into the database: {why}"));
        let held_up = lock(&self.held_up).clone();
        let held_up = held_up.map(|why| format!("records of changes get no places in the audit's chain: {why}"));
        file.into_iter().chain(table).chain(held_up).collect()
    }

    /// Why records cannot be written; `None` while they can. Where no sink works this tries them again first, the file with a record of
    /// how many it lacks: so whoever asks heals them, and without a timer.
    pub async fn heal(&self, at: Micros) -> Option<String> {
        self.file.failing()?;
        if self.table_takes(at).await || self.file.append(at, Vec::new(), 0).await.is_ok() {
            return None;
        }
        self.failing()
    }

    /// Whether the table is a sink that works, tried again where it failed.
    async fn table_takes(&self, at: Micros) -> bool {
        let Some(sink) = self.table_sink.as_ref().filter(|_| self.table.is_begun()) else { return false };
        if sink.failing().is_none() {
            return true;
        }
        // With a record: a table may take the chain's head and no row.
        let Some(row) = self.table.resumed_row(at) else { return false };
        sink.append(vec![row]).await.is_ok()
    }

    /// Tries the sinks that failed again; whoever is served meanwhile does not wait for that.
    async fn try_again(&self, at: Micros) {
        if self.file.failing().is_some() && !self.trying.swap(true, Ordering::AcqRel) {
            let (file, trying) = (Arc::clone(&self.file), Arc::clone(&self.trying));
            tokio::spawn(async move {
                let _told = file.append(at, Vec::new(), 0).await;
                trying.store(false, Ordering::Release);
            });
        }
        self.table_takes(at).await;
    }

    /// Writes what waits and stops.
    pub async fn close(&self) {
        self.end_second().await;
        if let Some(sink) = &self.table_sink {
            sink.close().await;
        }
        self.file.close().await;
    }
}
