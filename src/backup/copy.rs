//! A copy in hand, and the ways in which one can come from a file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::age::{self, Identities};
use super::error::BackupError;
use super::paper;
use crate::crypto::{ImageError, KeyfileImage};
use crate::model::Kid;

/// A key file's bytes that came back from somewhere.
pub struct KeyCopy(KeyfileImage);

impl KeyCopy {
    #[must_use]
    pub const fn new(image: KeyfileImage) -> Self {
        Self(image)
    }

    /// The copy's identity.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        self.0.sha256()
    }

    /// Which key it is; of a wrapped one, which it says it is.
    ///
    /// # Errors
    /// Each [`ImageError`]: what it is instead of a key file.
    pub fn kid(&self) -> Result<Kid, ImageError> {
        self.0.content().map(|content| content.kid())
    }

    #[must_use]
    pub const fn image(&self) -> &KeyfileImage {
        &self.0
    }

    #[must_use]
    pub fn into_image(self) -> KeyfileImage {
        self.0
    }
}

/// How a copy was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The key file's bytes as they are.
    Plain,
    Age,
    Paper,
}

/// A copy that was read, and how.
pub struct ReadCopy {
    pub form: Form,
    pub copy: KeyCopy,
}

/// Opens a file, or a FIFO that somebody opens to write within the patience. To open one without a writer would wait for ever.
///
/// # Errors
/// The system's, and `TimedOut`.
pub fn open(path: &Path, patience: Duration) -> io::Result<File> {
    if !std::fs::metadata(path)?.file_type().is_fifo() {
        return File::open(path);
    }
    let (opened, waits) = mpsc::channel();
    let named = path.to_owned();
    // It may wait for as long as the process lives; then it goes with it.
    std::thread::Builder::new().spawn(move || opened.send(File::open(named)))?;
    waits.recv_timeout(patience).unwrap_or_else(|_| {
        let why = format!("it is a FIFO, and nobody has opened it to write within {} s", patience.as_secs_f64());
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    })
}

/// The most bytes that a copy in a file may have: 64 KiB in base64, with room for headers and checks.
pub const READ_LIMIT: usize = 256 * 1024;

/// Reads a copy of whatever form from a file or a pipe. An age file needs the `identities` that open it.
///
/// # Errors
/// `Read` (the reader's), `TooLong`, `NeedsIdentity`, `Age`, `Paper`. A plain copy is not judged here: [`KeyCopy::kid`] does.
pub fn read_copy(reader: &mut impl Read, identities: Option<&Identities>) -> Result<ReadCopy, BackupError> {
    let bytes = read_bounded(reader, READ_LIMIT)?;
    if age::is_age(&bytes) {
        let identities = identities.ok_or(BackupError::NeedsIdentity)?;
        let copy = KeyCopy::new(age::open(&bytes, identities)?);
        Ok(ReadCopy { form: Form::Age, copy })
    } else if paper::is_paper(&bytes) {
        Ok(ReadCopy { form: Form::Paper, copy: paper::read(&bytes)? })
    } else {
        Ok(ReadCopy { form: Form::Plain, copy: KeyCopy::new(KeyfileImage::new(bytes)) })
    }
}

/// Into one allocation that is wiped and never moved.
pub(super) fn read_bounded(reader: &mut impl Read, limit: usize) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(most).read_to_end(&mut bytes).map_err(|cause| BackupError::Read { cause })?;
    if bytes.len() > limit { Err(BackupError::TooLong { limit }) } else { Ok(bytes) }
}
