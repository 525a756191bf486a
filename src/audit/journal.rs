//! A copy of each record in the daemon's log, which systemd keeps in its journal. It counts for nothing: nobody waits for it, and where the
//! log is slower than the records, some are left out and their number is said.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Records that wait for the log.
const QUEUE: usize = 4096;

/// Where copies are handed in. Its thread ends with it.
pub(super) struct Journal {
    lines: SyncSender<Vec<u8>>,
    left_out: Arc<AtomicU64>,
}

impl Journal {
    pub(super) fn start() -> io::Result<Self> {
        let (journal, queue) = Self::new(QUEUE);
        let left_out = Arc::clone(&journal.left_out);
        let copy = move || {
            for line in queue {
                let missing = left_out.swap(0, Ordering::Relaxed);
                if missing > 0 {
                    tracing::warn!("{missing} audit records were left out of the log: it is slower than they come");
                }
                tracing::info!("audit {}", String::from_utf8_lossy(&line));
            }
        };
        std::thread::Builder::new().name("audit-journal".to_owned()).spawn(copy)?;
        Ok(journal)
    }

    fn new(queue: usize) -> (Self, Receiver<Vec<u8>>) {
        let (lines, queue) = sync_channel(queue);
        (Self { lines, left_out: Arc::default() }, queue)
    }

    /// Copies lines, each a record. Never waits: a log that is read by nobody would stop the daemon.
    pub(super) fn copy(&self, lines: &[u8]) {
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if self.lines.try_send(line.to_vec()).is_err() {
                self.left_out.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up_and_what_is_left_out_is_counted() {
        let (journal, queue) = Journal::new(2);
        journal.copy(b"one\ntwo\nthree\n");
        journal.copy(b"four\n");
        assert_eq!(journal.left_out.load(Ordering::Relaxed), 2);
        assert_eq!(queue.try_iter().collect::<Vec<_>>(), [b"one".to_vec(), b"two".to_vec()]);
    }
}
