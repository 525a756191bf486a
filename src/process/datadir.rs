//! One daemon for one data directory, for as long as its process lives.
//!
//! The lock is a file of its own: the database file is never opened past SQLite in the same process, since closing it would drop
//! SQLite's locks (POSIX record locks belong to the process).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

const LOCK_NAME: &str = "daemon.lock";
/// How often the lock's file may be removed while it is being locked.
const ATTEMPTS: u32 = 5;

/// Holds the data directory until it is dropped, or its process ends, however it ends.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

/// Why the data directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error(
        "another daemon{} holds the data directory {path:?}; stop it first, or give this one a --data-dir of its own",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Held { path: PathBuf, pid: Option<u32> },
    #[error("the data directory {path:?} is not a directory; move it away, or use another --data-dir")]
    NotADirectory { path: PathBuf },
    #[error(
        "the data directory {path:?} belongs to uid {owner}; it must belong to uid {euid}, as whom this runs: `chown {euid} {path:?}`"
    )]
    Owner { path: PathBuf, owner: u32, euid: u32 },
    #[error("others than its owner can write to the data directory {path:?} (mode {mode:04o}): `chmod go-w {path:?}`")]
    Writable { path: PathBuf, mode: u32 },
    #[error(
        "{path:?} cannot serve as the lock of the data directory: {why}. Remove it, it holds nothing: `rm -r {path:?}`"
    )]
    LockUnusable { path: PathBuf, why: &'static str },
    #[error("cannot {doing} {path:?}: {cause}")]
    Io { doing: &'static str, path: PathBuf, cause: io::Error },
}

impl DataDirLock {
    /// Makes the directory (0700) and those above it where they are missing, and locks it without waiting.
    ///
    /// A symbolic link is followed: service managers place the state of a service with a dynamic user behind one.
    ///
    /// # Errors
    /// [`DataDirError::Held`] where another daemon, or another lock of this process, has it; the rest is wrong with the directory.
    pub fn take(dir: &Path) -> Result<Self, DataDirError> {
        create(dir)?;
        check(dir)?;
        let path = dir.join(LOCK_NAME);
        for _ in 0..ATTEMPTS {
            let file = open(&path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_still(&path, &file) => {
                    sign(&file);
                    return Ok(Self { _file: file });
                }
                Ok(()) => {} // Removed before it was locked: such a lock excludes nobody.
                Err(Errno::WOULDBLOCK) => {
                    return Err(DataDirError::Held { path: dir.to_owned(), pid: signature(file) });
                }
                Err(errno) => return Err(failed("lock", &path, errno.into())),
            }
        }
        Err(DataDirError::LockUnusable { path, why: "it is removed again and again" })
    }
}

/// Each directory that was made is made durable in the one above, so that a database in it is not lost with its directory.
fn create(dir: &Path) -> Result<(), DataDirError> {
    let missing: Vec<&Path> =
        dir.ancestors().filter(|above| !above.as_os_str().is_empty()).take_while(|above| !above.exists()).collect();
    for path in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(cause) => return Err(failed("create", path, cause)),
        }
        // The umask can take bits away.
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o700))
            .map_err(|cause| failed("protect", path, cause))?;
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(above).and_then(|above| above.sync_all());
        synced.map_err(|cause| failed("make durable", above, cause))?;
    }
    Ok(())
}

fn check(dir: &Path) -> Result<(), DataDirError> {
    let path = dir.to_owned();
    let found = std::fs::metadata(dir).map_err(|cause| failed("open", dir, cause))?;
    let euid = rustix::process::geteuid().as_raw();
    if !found.is_dir() {
        Err(DataDirError::NotADirectory { path })
    } else if found.uid() != euid && found.uid() != 0 {
        Err(DataDirError::Owner { path, owner: found.uid(), euid })
    } else if found.mode() & 0o022 != 0 {
        Err(DataDirError::Writable { path, mode: found.mode() & 0o7777 })
    } else {
        Ok(())
    }
}

fn open(path: &Path) -> Result<File, DataDirError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path);
    let unusable = |why| Err(DataDirError::LockUnusable { path: path.to_owned(), why });
    let file = match opened {
        Ok(file) => file,
        Err(cause) => match Errno::from_io_error(&cause) {
            Some(Errno::LOOP) => return unusable("it is a symbolic link"),
            Some(Errno::ISDIR | Errno::NXIO) => return unusable("it is not a regular file"),
            _ => return Err(failed("open", path, cause)),
        },
    };
    let found = file.metadata().map_err(|cause| failed("look at", path, cause))?;
    if !found.is_file() {
        return unusable("it is not a regular file");
    }
    // Whoever can open it can lock it, and so keep the daemon from starting.
    if found.mode() & 0o7777 != 0o600 {
        file.set_permissions(PermissionsExt::from_mode(0o600)).map_err(|cause| failed("protect", path, cause))?;
    }
    Ok(file)
}

fn is_still(path: &Path, file: &File) -> bool {
    match (std::fs::symlink_metadata(path), file.metadata()) {
        (Ok(named), Ok(locked)) => (named.dev(), named.ino()) == (locked.dev(), locked.ino()),
        _ => false,
    }
}

/// Our process id, for the message of a second daemon. It is no more than that, so a full disk does not matter here.
fn sign(mut file: &File) {
    let signed = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
    drop(signed.and_then(|_| writeln!(file, "{}", std::process::id())));
}

fn signature(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn failed(doing: &'static str, path: &Path, cause: io::Error) -> DataDirError {
    DataDirError::Io { doing, path: path.to_owned(), cause }
}
