//! The one lock of all who write key files: first start, rotation, and whatever else puts a key in its place.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::fs::{self, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::error::{KeyfileError, euid};
use super::place::{Place, is_trusted};
use super::{KeyFiles, Names, is_temporary};

/// How long [`KeyFiles::lock`] waits. A writer holds the lock for a few fsyncs and never across a remote call.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);

const OWNER_ONLY: Mode = Mode::RUSR.union(Mode::WUSR);
/// How often the lock's file may be removed under the hands of who waits for it.
const ATTEMPTS: u32 = 5;

/// The right to write key files, until it is dropped (or its process ends, however it ends).
pub struct KeyLock {
    pub(super) dir: Place,
    pub(super) names: Names,
    /// flock(2) belongs to the open file; closing it is what unlocks.
    _file: File,
}

impl KeyFiles {
    /// Waits up to [`LOCK_WAIT`] for the lock, then removes what a writer that crashed left half written. Makes the key's directory
    /// where it is missing. It blocks: not for a thread that serves requests.
    ///
    /// # Errors
    /// [`KeyfileError::LockHeld`], naming the process that holds it where that is known; [`KeyfileError::LockUnusable`]; those of
    /// the directory and the file system.
    pub fn lock(&self) -> Result<KeyLock, KeyfileError> {
        self.lock_within(LOCK_WAIT)
    }

    /// [`Self::lock`] with another patience.
    ///
    /// # Errors
    /// As there.
    pub fn lock_within(&self, wait: Duration) -> Result<KeyLock, KeyfileError> {
        self.lock_with(|place, file| wait_for(place, &self.names.lock, file, wait).map(Some))?
            .ok_or_else(|| KeyfileError::LockHeld { path: self.dir.join(&self.names.lock), holder: None, waited: wait })
    }

    /// `None`: another writer is at work.
    ///
    /// # Errors
    /// As [`Self::lock`], but for [`KeyfileError::LockHeld`].
    pub fn try_lock(&self) -> Result<Option<KeyLock>, KeyfileError> {
        self.lock_with(|place, file| match try_flock(&file) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(KeyfileError::from_system("lock", place.of(&self.names.lock), errno)),
        })
    }

    fn lock_with(
        &self,
        take: impl Fn(&Place, File) -> Result<Option<File>, KeyfileError>,
    ) -> Result<Option<KeyLock>, KeyfileError> {
        let path = self.dir.join(&self.names.lock);
        for _ in 0..ATTEMPTS {
            let dir = Place::open_or_create(&self.dir)?;
            let file = open_lock(&dir, &self.names.lock)?;
            let Some(file) = take(&dir, file)? else { return Ok(None) };
            if is_still(&dir, &self.names.lock, &file) {
                sign(&file);
                let lock = KeyLock { dir, names: self.names.clone(), _file: file };
                lock.remove_leftovers()?;
                return Ok(Some(lock));
            }
        }
        Err(KeyfileError::LockUnusable { path, why: "it is removed again and again" })
    }
}

impl KeyLock {
    /// What a crash left half written was never relied on: it has no name that anybody reads.
    fn remove_leftovers(&self) -> Result<(), KeyfileError> {
        if self.dir.unlink(&self.names.temporary)? {
            self.dir.sync()?;
        }
        let Some(retained) = self.dir.child(&self.names.retained)? else { return Ok(()) };
        for name in retained.names()?.iter().filter(|name| is_temporary(name)) {
            retained.unlink(name)?;
            retained.sync()?;
        }
        Ok(())
    }
}

fn open_lock(dir: &Place, name: &OsStr) -> Result<File, KeyfileError> {
    let path = dir.of(name);
    let unusable = |why| Err(KeyfileError::LockUnusable { path: dir.of(name), why });
    let file = match dir.open_entry(name, OFlags::RDWR | OFlags::CREATE, OWNER_ONLY) {
        Ok(file) => file,
        Err(Errno::LOOP) => return unusable("it is a symbolic link"),
        Err(Errno::ISDIR | Errno::NXIO) => return unusable("it is not a regular file"),
        Err(errno) => return Err(KeyfileError::from_system("open", path, errno)),
    };
    let stat = fs::fstat(&file).map_err(|errno| KeyfileError::from_system("look at", path.clone(), errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return unusable("it is not a regular file");
    }
    if !is_trusted(stat.st_uid, euid()) {
        return unusable("it belongs to another user");
    }
    // Whoever can open it can lock it, and so stop every writer. The umask may have taken bits away too.
    if stat.st_mode & 0o7777 != OWNER_ONLY.as_raw_mode() {
        fs::fchmod(&file, OWNER_ONLY).map_err(|errno| KeyfileError::from_system("protect", path, errno))?;
    }
    Ok(file)
}

fn try_flock(file: &File) -> Result<(), Errno> {
    fs::flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// flock(2) has no time limit and a poll would need a sleep, so a thread waits in our place. When we give up it stays until the lock
/// is free, finds nobody listening, and lets go.
fn wait_for(dir: &Place, name: &OsStr, file: File, wait: Duration) -> Result<File, KeyfileError> {
    let failed = |errno| KeyfileError::from_system("lock", dir.of(name), errno);
    match try_flock(&file) {
        Ok(()) => return Ok(file),
        Err(Errno::WOULDBLOCK) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let (send, receive) = mpsc::channel();
    let spawned = std::thread::Builder::new().name("key-file-lock".to_owned()).spawn(move || {
        let outcome = rustix::io::retry_on_intr(|| fs::flock(&file, FlockOperation::LockExclusive));
        drop(send.send(outcome.map(|()| file)));
    });
    spawned.map_err(|cause| KeyfileError::from_io("wait for", dir.of(name), cause))?;
    match receive.recv_timeout(wait) {
        Ok(outcome) => outcome.map_err(failed),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(KeyfileError::LockHeld { path: dir.of(name), holder: holder(dir, name), waited: wait })
        }
    }
}

/// Whether the name still leads to the file that was locked: one that was removed meanwhile excludes nobody.
fn is_still(dir: &Place, name: &OsStr, file: &File) -> bool {
    match (dir.stat_entry(name), fs::fstat(file)) {
        (Ok(named), Ok(locked)) => (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino),
        _ => false,
    }
}

/// Writes our process id into the lock, for the message of who waits in vain. It is no more than that, so a disk that is full of
/// other things does not matter; /proc/locks would name the holder too, but not on overlay file systems.
fn sign(mut file: &File) {
    let signed = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
    drop(signed.and_then(|_| writeln!(file, "{}", std::process::id())));
}

fn holder(dir: &Place, name: &OsStr) -> Option<u32> {
    let mut text = String::new();
    let file = dir.open_entry(name, OFlags::RDONLY, Mode::empty()).ok()?;
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_lock_whose_file_was_removed_meanwhile_is_not_taken_for_one() {
        let root = tempfile::tempdir().expect("a directory");
        let files = KeyFiles::at(&root.path().join("secrets.key")).expect("a path");
        let first = Cell::new(true);
        let lock = files.lock_with(|place, file| {
            if first.take() {
                assert!(place.unlink(&files.names.lock)?);
            }
            try_flock(&file)
                .map(|()| Some(file))
                .map_err(|errno| KeyfileError::from_system("lock", place.of("".as_ref()), errno))
        });
        let _lock = lock.expect("no error").expect("locked");
        assert!(files.try_lock().expect("no error").is_none());
    }
}
