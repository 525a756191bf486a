//! The record of who did what to which secret: one JSON line for each call, and for each secret of a batch. Never a value.
//!
//! An answer leaves only after its record is written, so a call that cannot be recorded fails and says so. Reading the file needs no
//! tool of ours; docs/OPERATIONS.md has its fields.

mod file;
mod record;

use std::path::Path;

use crate::model::Micros;

pub use record::{Outcome, Record};

/// The record could not be written; the cause is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit record could not be written")]
pub struct AuditError;

/// Where records go: the JSON-lines file of this node.
pub struct Audit {
    file: file::Writer,
}

impl Audit {
    /// Opens the file for appending, or makes it (0600).
    ///
    /// # Errors
    /// The operating system's, with the path.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: file::Writer::open(path)? })
    }

    /// Writes the records in order and returns when they are in the file (not yet on the disk: a power cut can take the last ones).
    ///
    /// # Errors
    /// [`AuditError`]; none of the records was written.
    pub async fn write(&self, records: &[Record]) -> Result<(), AuditError> {
        let Some(first) = records.first() else { return Ok(()) };
        let mut lines = Vec::with_capacity(records.len() * 256);
        for record in records {
            record.write_line(&mut lines);
        }
        self.file.append(first.at, lines, records.len()).await
    }

    /// Why the last write failed.
    pub fn failing(&self) -> Option<String> {
        self.file.failing()
    }

    /// Why records cannot be written; `None` while they can. Where the last write failed this tries again first, with a record of
    /// how many are missing: so whoever asks heals it, and without a timer.
    pub async fn heal(&self, at: Micros) -> Option<String> {
        self.file.failing()?;
        match self.file.append(at, Vec::new(), 0).await {
            Ok(()) => None,
            Err(AuditError) => self.file.failing(),
        }
    }

    /// Writes what waits, syncs the file and stops.
    pub async fn close(&self) {
        self.file.close().await;
    }
}
