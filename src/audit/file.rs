//! The JSON-lines file: one thread appends, so that lines never mix and no request blocks the executor on a disk. Records that wait
//! are appended with one write.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::fs::OFlags;
use tokio::sync::{mpsc, oneshot};

use super::AuditError;
use super::record::Gap;
use crate::model::Micros;

/// Calls that may wait for the thread; more wait to be let in.
const QUEUE: usize = 1024;

struct Job {
    at: Micros,
    lines: Vec<u8>,
    /// How many there are in `lines`; none where the caller only asks whether records can be written.
    records: usize,
    done: oneshot::Sender<Result<(), AuditError>>,
}

pub(super) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    failing: Arc<Mutex<Option<String>>>,
}

impl Writer {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let failing = Arc::new(Mutex::new(None));
        let appender = Appender {
            path: path.to_owned(),
            file: open(path).map_err(|error| named(path, &error))?,
            gap: None,
            failing: Arc::clone(&failing),
        };
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || appender.run(queue))?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)), failing })
    }

    /// Why the last write failed.
    pub(super) fn failing(&self) -> Option<String> {
        lock(&self.failing).clone()
    }

    /// Returns when the lines are in the file. Without any it is a question: a writer that fails tries again for it.
    pub(super) async fn append(&self, at: Micros, lines: Vec<u8>, records: usize) -> Result<(), AuditError> {
        let (done, written) = oneshot::channel();
        let jobs = lock(&self.jobs).clone();
        let sent = match jobs {
            Some(jobs) => jobs.send(Job { at, lines, records, done }).await.is_ok(),
            None => false,
        };
        if sent && let Ok(result) = written.await {
            return result;
        }
        *lock(&self.failing) = Some("the writer has ended".to_owned());
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

/// The mutexes guard a take, a clone and an assignment; a panic while one is held cannot leave half a change.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The thread's side.
struct Appender {
    path: PathBuf,
    file: File,
    /// What the file lacks, until that is written into it.
    gap: Option<Gap>,
    failing: Arc<Mutex<Option<String>>>,
}

impl Appender {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut batch = Vec::with_capacity(QUEUE);
        while queue.blocking_recv_many(&mut batch, QUEUE) > 0 {
            let result = self.write(&batch);
            for job in batch.drain(..) {
                // Whoever asked may have gone; the record stays.
                let _gone = job.done.send(result);
            }
        }
        if let Err(error) = self.file.sync_all() {
            tracing::error!("the audit file could not be synced: {error}");
        }
    }

    /// Appends a batch, and before it, after a failure, what is missing.
    fn write(&mut self, batch: &[Job]) -> Result<(), AuditError> {
        let Some(at) = batch.iter().map(|job| job.at).min() else { return Ok(()) };
        let mut lines = Vec::new();
        if let Some(gap) = &self.gap {
            gap.write_line(at, &mut lines);
        }
        for job in batch {
            lines.extend_from_slice(&job.lines);
        }
        if lines.is_empty() {
            return Ok(());
        }
        match self.append(&lines) {
            Ok(()) => {
                if self.gap.take().is_some() {
                    tracing::info!("audit records are written again");
                }
                *lock(&self.failing) = None;
                Ok(())
            }
            Err(error) => {
                let why = named(&self.path, &error).to_string();
                // A full disk fails each call: one line in the log when it begins and one when it ends.
                let gap = self.gap.get_or_insert_with(|| {
                    tracing::error!("audit records cannot be written; calls fail until they can: {why}");
                    Gap { since: at, records: 0 }
                });
                gap.records += batch.iter().map(|job| job.records).sum::<usize>();
                *lock(&self.failing) = Some(why);
                Err(AuditError)
            }
        }
    }

    /// Appends all of it or none: what a full disk cut short is taken back, so that the file always ends with a whole line. A part of
    /// a line that a crash of the machine left is ended first.
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut length = self.in_its_place()?.len();
        let mut file = &self.file;
        if length > 0 {
            let mut last = [0];
            file.read_exact_at(&mut last, length - 1)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                length += 1;
            }
        }
        file.write_all(lines).inspect_err(|_| {
            if let Err(error) = file.set_len(length) {
                tracing::error!("a part of an audit record stays at the end of the file: {error}");
            }
        })
    }

    /// The open file's metadata, after opening the path anew where it names another file or none: what is written into a file that
    /// was moved away or removed is read by nobody.
    fn in_its_place(&mut self) -> io::Result<Metadata> {
        let open_file = self.file.metadata()?;
        let same = |found: &Metadata| (found.dev(), found.ino()) == (open_file.dev(), open_file.ino());
        match std::fs::symlink_metadata(&self.path) {
            Ok(found) if same(&found) => Ok(open_file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                let file = open(&self.path)?;
                if let Err(error) = self.file.sync_all() {
                    tracing::error!("the audit file that was moved away could not be synced: {error}");
                }
                tracing::warn!(
                    "the audit file was moved away, removed or replaced; records go on in {}",
                    self.path.display()
                );
                self.file = file;
                self.file.metadata()
            }
        }
    }
}

/// Nothing but a file: a pipe that nobody reads would take records and then block for good.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .read(true)
        .create(true)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::{Audit, Outcome, Record};
    use super::*;
    use crate::model::{Action, Micros, SecretName, SecretVersion, Tenant};

    fn record(request_id: &str) -> Record {
        Record {
            at: Micros(0),
            request_id: request_id.to_owned(),
            identity: "uid:0".to_owned(),
            pid: Some(7),
            action: Action::Get,
            tenant: Some(Tenant::parse("alice").unwrap()),
            name: Some(SecretName::parse("DB_URL").unwrap()),
            version: SecretVersion::new(3),
            outcome: Outcome::Ok,
        }
    }

    #[tokio::test]
    async fn a_record_is_one_line_of_json_and_is_there_when_the_call_returns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let audit = Audit::open(&path).unwrap();
        audit.write(&[record("r1"), record("r2")]).await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            r#"{"time":"1970-01-01T00:00:00Z","requestId":"r1","identity":"uid:0","pid":7,"action":"secret.get","tenant":"alice","name":"DB_URL","version":3,"outcome":"ok"}"#
        );
        assert_eq!(lines.len(), 2);
        audit.close().await;
        assert_eq!(audit.write(&[record("r3")]).await, Err(AuditError));
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_or_moved_away_is_noticed_and_what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let audit = Audit::open(&path).unwrap();
        audit.write(&[record("r1")]).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(audit.heal(Micros(1)).await, None, "what has not failed is not tried");
        assert_eq!(audit.write(&[record("r2"), record("r3")]).await, Err(AuditError));
        assert!(audit.heal(Micros(1)).await.unwrap().contains("audit.jsonl: Is a directory"));
        assert_eq!(audit.write(&[record("r4")]).await, Err(AuditError));
        std::fs::remove_dir(&path).unwrap();
        assert_eq!(audit.heal(Micros(2_000_000)).await, None);
        audit.write(&[record("r5")]).await.unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        audit.write(&[record("r6")]).await.unwrap();

        let moved = std::fs::read_to_string(dir.path().join("moved")).unwrap();
        let lines: Vec<&str> = moved.lines().collect();
        assert_eq!(
            lines[0],
            r#"{"time":"1970-01-01T00:00:02Z","action":"audit.gap","since":"1970-01-01T00:00:00Z","records":3,"outcome":"failed"}"#
        );
        assert!(lines.len() == 2 && lines[1].contains("r5"), "{moved}");
        let current = std::fs::read_to_string(&path).unwrap();
        assert!(current.lines().count() == 1 && current.contains("r6"), "{current}");
    }

    #[tokio::test]
    async fn a_pipe_in_the_files_place_is_refused_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert!(Audit::open(&path).err().unwrap().to_string().contains("not a regular file"));
    }

    #[tokio::test]
    async fn a_line_that_a_crash_cut_short_does_not_swallow_the_next_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        std::fs::write(&path, b"{\"time\":\"half").unwrap();
        let audit = Audit::open(&path).unwrap();
        audit.write(&[record("r1")]).await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(serde_json::from_str::<serde_json::Value>(text.lines().nth(1).unwrap()).is_ok(), "{text}");
    }

    #[tokio::test]
    async fn a_symbolic_link_in_the_files_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("audit.jsonl")).unwrap();
        assert!(Audit::open(&dir.path().join("audit.jsonl")).is_err());
    }
}
