//! The JSON-lines file: one thread appends, so that lines never mix and no request blocks the executor on a disk. Records that wait
//! are appended with one write.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::AuditError;

/// Calls that may wait for the thread; more wait to be let in.
const QUEUE: usize = 1024;

type Done = oneshot::Sender<Result<(), AuditError>>;

struct Job {
    lines: Vec<u8>,
    done: Done,
}

pub(super) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .read(true)
            .create(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || append(&file, queue))?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    pub(super) async fn send(&self, lines: Vec<u8>, done: Done) -> Result<(), AuditError> {
        let jobs = lock(&self.jobs).clone().ok_or(AuditError)?;
        jobs.send(Job { lines, done }).await.map_err(|_| AuditError)
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

/// The mutexes guard a take and a clone; a panic while one is held cannot leave half a change.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn append(file: &File, mut queue: mpsc::Receiver<Job>) {
    let mut batch = Vec::with_capacity(QUEUE);
    let mut lines = Vec::new();
    let mut failing = false;
    while queue.blocking_recv_many(&mut batch, QUEUE) > 0 {
        lines.clear();
        for job in &batch {
            lines.extend_from_slice(&job.lines);
        }
        let result = append_whole(file, &lines);
        // A full disk fails each call: one line in the log when it begins and one when it ends.
        match (&result, failing) {
            (Err(error), false) => {
                tracing::error!("audit records cannot be written; calls fail until they can: {error}");
            }
            (Ok(()), true) => tracing::info!("audit records are written again"),
            _ => {}
        }
        failing = result.is_err();
        for job in batch.drain(..) {
            // Whoever asked may have gone; the record stays.
            let _gone = job.done.send(result.as_ref().copied().map_err(|_| AuditError));
        }
    }
    if let Err(error) = file.sync_all() {
        tracing::error!("the audit file could not be synced: {error}");
    }
}

/// Appends all of it or none: what a full disk cut short is taken back, so that the file always ends with a whole line. A part of a
/// line that a crash of the machine left is ended first.
fn append_whole(mut file: &File, lines: &[u8]) -> io::Result<()> {
    let length = file.metadata()?.len();
    if length > 0 {
        let mut last = [0];
        file.read_exact_at(&mut last, length - 1)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    let start = file.metadata()?.len();
    file.write_all(lines).inspect_err(|_| {
        if let Err(error) = file.set_len(start) {
            tracing::error!("a part of an audit record stays at the end of the file: {error}");
        }
    })
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
