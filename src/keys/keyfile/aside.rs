//! A restored key's way into the key file's place: what lies there is set aside under a name of its own, never written over.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{self, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::error::KeyfileError;
use super::load::load;
use super::place::Place;
use super::{KeyFiles, KeyLock};
use crate::crypto::{self, KeyfileImage};
use crate::model::{Kid, Micros};

/// How many names are tried in one second.
const ATTEMPTS: u32 = 100;

impl KeyLock {
    /// Renames whatever lies in the key file's place, be it a key, a damaged file or no file at all, to
    /// `secrets.key.replaced-<kid or "unreadable">-<UTC>`, and answers that path; `None` where nothing was there. Until another key is
    /// put in its place there is none: the copies in `secrets.key.d` must hold what is needed by then.
    ///
    /// A file that is no good key file may hold a key all the same: its kid is then in the name, and nobody but the directory's owner can
    /// read it any more, where the system allows that.
    ///
    /// # Errors
    /// Those of the file system; everything is then where it was.
    pub fn set_aside(&self, now: Micros) -> Result<Option<PathBuf>, KeyfileError> {
        let main = &self.names.main;
        match self.dir.stat_entry(main) {
            Ok(_) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(KeyfileError::from_system("look at", self.dir.of(main), errno)),
        }
        let remains = Remains::of(&self.dir, main);
        let kid = remains.as_ref().and_then(|remains| remains.kid);
        for attempt in 0..ATTEMPTS {
            let name = replaced_name(main, kid, now, attempt);
            match self.dir.rename_to_free(main, &name) {
                Ok(()) => {
                    if let Some(remains) = &remains {
                        remains.close_to_others(&self.dir);
                    }
                    self.dir.sync()?;
                    return Ok(Some(self.dir.of(&name)));
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(KeyfileError::from_system("set aside", self.dir.of(main), errno)),
            }
        }
        Err(KeyfileError::from_system("set aside", self.dir.of(main), Errno::EXIST))
    }

    /// Undoes [`KeyLock::set_aside`], where the key that was to come did not, and answers why it did not: `cause`, or
    /// [`KeyfileError::NotPutBack`] with that in it where what was set aside is still where it is.
    #[must_use]
    pub fn put_back(&self, aside: &Path, cause: KeyfileError) -> KeyfileError {
        let main = &self.names.main;
        let name = aside.file_name().unwrap_or(OsStr::new(""));
        if let Err(errno) = self.dir.rename_to_free(name, main) {
            let undoing = KeyfileError::from_system("put back", aside.to_owned(), errno);
            return KeyfileError::NotPutBack {
                path: aside.to_owned(),
                main: self.dir.of(main),
                cause: Box::new(cause),
                undoing: Box::new(undoing),
            };
        }
        // It is back. Under which of its names a crash would leave it matters less than why it had to come back.
        let _unsynced = self.dir.sync();
        cause
    }

    /// Removes the copies of a key among what was set aside, and answers which they were.
    pub(super) fn unlink_replaced(&self, kid: Kid) -> Result<Vec<PathBuf>, KeyfileError> {
        let mut removed = Vec::new();
        for name in self.dir.names()?.iter().filter(|name| is_replaced(&self.names.main, name)) {
            let held = Remains::of(&self.dir, name).and_then(|remains| remains.kid);
            if held == Some(kid) && self.dir.unlink(name)? {
                removed.push(self.dir.of(name));
            }
        }
        if !removed.is_empty() {
            self.dir.sync()?;
        }
        Ok(removed)
    }
}

impl KeyFiles {
    /// What restores set aside and holds a key itself: wrapping the key files does not protect these.
    ///
    /// # Errors
    /// Those of the directory.
    pub fn raw_copies(&self) -> Result<Vec<PathBuf>, KeyfileError> {
        let Some(dir) = Place::open(&self.dir)? else { return Ok(Vec::new()) };
        let is_raw = |name: &&OsString| {
            is_replaced(&self.names.main, name)
                && matches!(load(&dir, name), Ok(Some(loaded)) if loaded.key.master().is_some())
        };
        Ok(dir.names()?.iter().filter(is_raw).map(|name| dir.of(name)).collect())
    }

    /// The bytes of a good file of this key, for a copy of it: the key file's own, else those of one in `secrets.key.d`. What is wrong
    /// with other files is [`KeyFiles::scan`]'s to say.
    ///
    /// # Errors
    /// Those of the directories.
    pub fn image(&self, kid: Kid) -> Result<Option<KeyfileImage>, KeyfileError> {
        let Some(dir) = Place::open(&self.dir)? else { return Ok(None) };
        let image = |place: &Place, name: &OsStr| match load(place, name) {
            Ok(Some(loaded)) if loaded.key.kid == kid => Some(loaded.image),
            _ => None,
        };
        if let Some(image) = image(&dir, &self.names.main) {
            return Ok(Some(image));
        }
        let Some(place) = dir.child(&self.names.retained)? else { return Ok(None) };
        Ok(place.names()?.iter().find_map(|name| image(&place, name)))
    }
}

/// What is set aside, or was: whatever owner, mode or newline made it no good key file, it holds a key if its bytes do.
struct Remains {
    file: File,
    stat: Stat,
    kid: Option<Kid>,
}

impl Remains {
    /// `None`: no regular file, or one that does not open.
    fn of(dir: &Place, name: &OsStr) -> Option<Self> {
        let is_file = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        // Opening a device can do something to it.
        dir.stat_entry(name).ok().filter(is_file)?;
        let mut file = dir.open_entry(name, OFlags::RDONLY, Mode::empty()).ok()?;
        let stat = fs::fstat(&file).ok().filter(is_file)?;
        let image = KeyfileImage::read_from(&mut file).ok();
        let kid = image.and_then(|image| image.remains()).map(|master| crypto::kid(&master));
        Some(Self { file, stat, kid })
    }

    /// As far as the system lets this process: a mode that stays is told of by doctor as part of what may hold a key. Of a file with a
    /// second name nothing is changed, since that name may be in use elsewhere.
    fn close_to_others(&self, dir: &Place) {
        if self.stat.st_nlink != 1 {
            return;
        }
        let _still_as_it_was = fs::fchmod(&self.file, Mode::RUSR);
        if let Ok(owner) = fs::fstat(dir) {
            let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
            let _still_anothers = fs::fchown(&self.file, Some(uid), Some(gid));
        }
    }
}

/// What restores set aside and may hold a key that nothing here can tell, and so never removes.
pub(super) fn unknown_asides(dir: &Place, main: &OsStr) -> Result<Vec<PathBuf>, KeyfileError> {
    let names = dir.names()?;
    let asides = names.iter().filter(|name| is_replaced(main, name));
    let untold =
        asides.filter(|name| may_hold_a_key(dir, name) && Remains::of(dir, name).and_then(|r| r.kid).is_none());
    Ok(untold.map(|name| dir.of(name)).collect())
}

fn may_hold_a_key(dir: &Place, name: &OsStr) -> bool {
    let Ok(stat) = dir.stat_entry(name) else { return false };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => stat.st_size > 0,
        FileType::Symlink | FileType::Directory => true,
        _ => false,
    }
}

/// `secrets.key.replaced-unreadable-20260517T083000Z`; a second one of the same second ends in `-1`.
fn replaced_name(main: &OsStr, kid: Option<Kid>, now: Micros, attempt: u32) -> OsString {
    let kid = kid.map_or_else(|| "unreadable".to_owned(), |kid| kid.to_string());
    let utc: String =
        now.to_string().split(['.', 'Z']).take(1).flat_map(str::chars).filter(|c| !"-:".contains(*c)).collect();
    let again = if attempt == 0 { String::new() } else { format!("-{attempt}") };
    let mut name = main.to_owned();
    name.push(format!(".replaced-{kid}-{utc}Z{again}"));
    name
}

fn is_replaced(main: &OsStr, name: &OsStr) -> bool {
    let rest = name.as_encoded_bytes().strip_prefix(main.as_encoded_bytes());
    rest.is_some_and(|rest| rest.starts_with(b".replaced-"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::crypto::{self, MasterKey};

    /// 2026-05-17T08:30:00.5Z
    const NOW: Micros = Micros(1_779_006_600_500_000);

    fn files() -> (tempfile::TempDir, KeyFiles) {
        let root = tempfile::tempdir().unwrap();
        let files = KeyFiles::at(&root.path().join("secrets.key")).unwrap();
        (root, files)
    }

    fn promoted(files: &KeyFiles) -> Kid {
        let lock = files.lock().unwrap();
        let master = MasterKey::make_random().unwrap();
        let kid = lock.stage(&master).unwrap();
        lock.promote(kid).unwrap();
        kid
    }

    #[test]
    fn what_is_set_aside_is_named_by_its_key_and_the_time_and_nothing_is_written_over() {
        let (root, files) = files();
        let lock = files.lock().unwrap();
        assert_eq!(lock.set_aside(NOW).unwrap(), None, "nothing is there");
        drop(lock);
        let kid = promoted(&files);
        let lock = files.lock().unwrap();
        let aside = lock.set_aside(NOW).unwrap().unwrap();
        assert_eq!(aside, root.path().join(format!("secrets.key.replaced-{kid}-20260517T083000Z")));
        assert_eq!(std::fs::read(&aside).unwrap().len(), 32);
        for expected in
            ["secrets.key.replaced-unreadable-20260517T083000Z", "secrets.key.replaced-unreadable-20260517T083000Z-1"]
        {
            std::fs::write(files.path(), "57 bytes").unwrap();
            std::fs::set_permissions(files.path(), PermissionsExt::from_mode(0o400)).unwrap();
            assert_eq!(lock.set_aside(NOW).unwrap(), Some(root.path().join(expected)));
        }
        assert!(matches!(lock.put_back(&aside, not_staged(kid)), KeyfileError::NotStaged { .. }));
        assert_eq!(std::fs::read(files.path()).unwrap().len(), 32);
        assert!(!aside.exists());
        assert_eq!(lock.set_aside(NOW).unwrap(), Some(aside));
    }

    fn not_staged(kid: Kid) -> KeyfileError {
        KeyfileError::NotStaged { path: "/x/secrets.key.d/kid".into(), kid }
    }

    #[test]
    fn what_cannot_be_put_back_is_named_with_both_causes_and_the_command_that_puts_it_back() {
        let (root, files) = files();
        let kid = promoted(&files);
        let lock = files.lock().unwrap();
        let aside = lock.set_aside(NOW).unwrap().unwrap();
        // Somebody who does not hold the lock was quicker.
        std::fs::write(files.path(), "another's").unwrap();
        let error = lock.put_back(&aside, not_staged(kid));
        assert_eq!(error.path(), aside);
        let told = error.to_string();
        let (_, command) = told.split_once("`mv ").unwrap();
        let command = format!("mv {}", command.split('`').next().unwrap());
        for words in ["is not staged at /x/secrets.key.d/kid", "cannot put back", aside.to_str().unwrap()] {
            assert!(told.contains(words), "no {words:?} in: {told}");
        }
        assert_eq!(std::fs::read(files.path()).unwrap(), b"another's", "nothing is written over");
        std::fs::rename(files.path(), root.path().join("moved")).unwrap();
        assert!(std::process::Command::new("sh").args(["-c", &command]).status().unwrap().success(), "{command}");
        assert_eq!(std::fs::read(files.path()).unwrap().len(), 32);
        assert!(!aside.exists());
    }

    #[test]
    fn a_key_that_is_set_aside_in_a_bad_file_has_its_kid_in_the_name_and_is_closed_to_others() {
        let (root, files) = files();
        let kid = promoted(&files);
        let key = std::fs::read(files.path()).unwrap();
        let lock = files.lock().unwrap();
        for (attempt, tail) in ["", "\n", "\r\n"].into_iter().enumerate() {
            std::fs::remove_file(files.path()).unwrap();
            std::fs::write(files.path(), [&key, tail.as_bytes()].concat()).unwrap();
            std::fs::set_permissions(files.path(), PermissionsExt::from_mode(0o644)).unwrap();
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(files.path(), Some(65534), Some(65534)).unwrap();
            }
            let aside = lock.set_aside(NOW).unwrap().unwrap();
            let again = if attempt == 0 { String::new() } else { format!("-{attempt}") };
            assert_eq!(aside, root.path().join(format!("secrets.key.replaced-{kid}-20260517T083000Z{again}")));
            let (aside, dir) = (std::fs::metadata(aside).unwrap(), std::fs::metadata(root.path()).unwrap());
            assert_eq!(aside.permissions().mode() & 0o7777, 0o400, "{tail:?}");
            assert_eq!((aside.uid(), aside.gid()), (dir.uid(), dir.gid()), "{tail:?}");
            std::fs::write(files.path(), b"").unwrap();
        }
        assert!(files.scan().unknown_asides.is_empty());
        assert_eq!(lock.unlink_replaced(kid).unwrap().len(), 3);
    }

    #[test]
    fn what_was_set_aside_and_may_hold_a_key_that_cannot_be_told_is_listed_and_stays() {
        let (root, files) = files();
        let kid = promoted(&files);
        let aside = |name: &str| root.path().join(format!("secrets.key.replaced-unreadable-{name}"));
        std::fs::write(aside("a"), [b'x'; 57]).unwrap();
        std::fs::write(aside("b"), b"").unwrap();
        std::os::unix::fs::symlink("/elsewhere", aside("c")).unwrap();
        std::fs::copy(files.path(), aside("d")).unwrap();
        assert_eq!(files.scan().unknown_asides, [aside("a"), aside("c")], "nothing is in b, and of d the key is known");
        assert_eq!(files.lock().unwrap().unlink_replaced(kid).unwrap(), [aside("d")]);
    }

    #[test]
    fn a_destroyed_keys_copies_are_removed_from_what_was_set_aside_too() {
        let (_root, files) = files();
        let old = promoted(&files);
        let lock = files.lock().unwrap();
        let aside = lock.set_aside(NOW).unwrap().unwrap();
        drop(lock);
        let new = promoted(&files);
        let lock = files.lock().unwrap();
        let unreadable = files.path().with_file_name("secrets.key.replaced-unreadable-x");
        std::fs::write(&unreadable, "no key").unwrap();
        let removed = lock.unlink_copies(old).unwrap();
        assert!(removed.contains(&aside) && !aside.exists(), "{removed:?}");
        assert!(unreadable.exists());
        assert!(files.image(old).unwrap().is_none());
        let image = files.image(new).unwrap().unwrap();
        assert_eq!(crypto::kid(&image.master().unwrap()), new);
    }
}
