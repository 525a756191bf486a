//! A copy of a SQLite database, made in the command's own process: the operator's file, with the operator's rights, beside a daemon
//! that goes on writing or without one. Never a key: key files lie elsewhere, and the database holds only what they wrap.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::clock::{Clock, SystemClock};
use crate::crypto::{self, NoRandom};
use crate::store::{SqliteStore, Store, StoreError};

use super::CopiedState;

/// A copy that was made, looked into, and is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    pub bytes: u64,
    /// Read from the copy itself; absent where the database never held a key.
    pub state: Option<CopiedState>,
}

/// Why there is no copy. What was begun of it was removed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{} is there already, and a copy is never written over anything", .0.display())]
    Exists(PathBuf),
    #[error("{} is there: another copy is being made, or one was cut off", .0.display())]
    Partial(PathBuf),
    #[error("{} names no file", .0.display())]
    NoName(PathBuf),
    #[error("cannot {doing} {}: {cause}", path.display())]
    File { doing: &'static str, path: PathBuf, cause: io::Error },
    #[error("the copy cannot be written to standard output: {0}")]
    Output(#[source] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    NoRandom(#[from] NoRandom),
}

/// Copies the database at `from` to `to`, a new file of mode 0600. It has its name only once it is whole and durable.
///
/// # Errors
/// [`CopyError`].
pub async fn copy_to_file(from: &Path, to: &Path) -> Result<Copied, CopyError> {
    let path = partial_of(to)?;
    if to.symlink_metadata().is_ok() {
        return Err(CopyError::Exists(to.to_owned()));
    }
    make(&path).map_err(|cause| match cause.kind() {
        ErrorKind::AlreadyExists => CopyError::Partial(path.clone()),
        _ => CopyError::File { doing: "make", path: path.clone(), cause },
    })?;
    let partial = Unfinished { path };
    let copied = copy(from, &partial.path).await?;
    place(&partial.path, to)?;
    Ok(copied)
}

/// Copies the database at `from` to a writer, by way of a file in `scratch` that nobody else can open and that has no name for long.
///
/// # Errors
/// [`CopyError`].
pub async fn copy_to_writer(from: &Path, scratch: &Path, to: &mut (impl Write + Send)) -> Result<Copied, CopyError> {
    let path = scratch.join(format!(".containarium-copy-{}", crypto::random_id()?));
    let failed = |doing: &'static str, cause| CopyError::File { doing, path: path.clone(), cause };
    make(&path).map_err(|cause| failed("make", cause))?;
    let unfinished = Unfinished { path: path.clone() };
    let copied = copy(from, &path).await?;
    let mut file = File::open(&path).map_err(|cause| failed("read", cause))?;
    drop(unfinished);
    io::copy(&mut file, to).and_then(|_| to.flush()).map_err(CopyError::Output)?;
    Ok(copied)
}

/// A file that this process made. Removed when it goes, whatever happened; a copy that got its name is not there any more.
struct Unfinished {
    path: PathBuf,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

fn partial_of(to: &Path) -> Result<PathBuf, CopyError> {
    let name = to.file_name().ok_or_else(|| CopyError::NoName(to.to_owned()))?;
    let mut partial = OsString::from(".");
    partial.push(name);
    partial.push(".partial");
    Ok(to.with_file_name(partial))
}

/// O_EXCL does not follow a link, so that nobody gets the copy by laying one.
fn make(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
}

async fn copy(from: &Path, to: &Path) -> Result<Copied, CopyError> {
    let taken_at = SystemClock::new().wall();
    let absolute = std::path::absolute(to).map_err(|cause| CopyError::File {
        doing: "find the directory of",
        path: to.to_owned(),
        cause,
    })?;
    SqliteStore::copy(from, &absolute).await?;
    let synced = File::open(to).and_then(|file| file.sync_all().and_then(|()| file.metadata()));
    let metadata = synced.map_err(|cause| CopyError::File { doing: "make durable", path: to.to_owned(), cause })?;
    // What is read back is the copy: that it opens, and what it holds.
    let store = SqliteStore::open_copy(to).await?;
    let survey = store.survey().await;
    store.close().await;
    let state = survey?.key_state.map(|state| CopiedState {
        db_id: state.db_id,
        epoch: state.epoch,
        generation: state.generation,
        taken_at,
    });
    Ok(Copied { bytes: metadata.len(), state })
}

/// Gives the whole copy its name, unless something has that name by now.
fn place(partial: &Path, to: &Path) -> Result<(), CopyError> {
    let renamed = match rustix::fs::renameat_with(CWD, partial, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that does not know the flag may know links, which replace nothing either.
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::hard_link(partial, to),
        renamed => renamed.map_err(io::Error::from),
    };
    renamed.map_err(|cause| match cause.kind() {
        ErrorKind::AlreadyExists => CopyError::Exists(to.to_owned()),
        _ => CopyError::File { doing: "name", path: to.to_owned(), cause },
    })?;
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|cause| CopyError::File { doing: "make durable the entry of", path: to.to_owned(), cause })
}
