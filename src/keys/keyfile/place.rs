//! Directories that hold keys, opened and checked: whoever can write to one, or to one above it, can replace the keys in it.
//!
//! The way down is walked on descriptors, so that what was checked is what is used. Canonicalising the path first and opening it
//! afterwards was rejected: it does not see whose the links on the way are, and leaves a moment in which they can be changed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RawMode, RenameFlags, Stat};
use rustix::io::Errno;

use super::error::{KeyfileError, euid};

/// As many links as the kernel follows (path_resolution(7)).
const MAX_LINKS: u32 = 40;
const OTHERS_WRITE: RawMode = 0o022;
const STICKY: RawMode = 0o1000;

/// An opened directory that only root and this process's user can change.
pub(super) struct Place {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Place {
    /// Opens the key's directory. `None`: it, or one above it, is not there.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, KeyfileError> {
        Walk::from_root(path)?.down(IfMissing::Report)
    }

    /// Opens the key's directory; it and those above it are made where they are missing.
    pub(super) fn open_or_create(path: &Path) -> Result<Self, KeyfileError> {
        let gone = || KeyfileError::from_system("create", path.to_owned(), Errno::NOENT);
        Walk::from_root(path)?.down(IfMissing::Create)?.ok_or_else(gone)
    }

    /// Opens a directory in this one, under the same rules.
    pub(super) fn child(&self, name: &OsStr) -> Result<Option<Self>, KeyfileError> {
        match open_path(self, name) {
            Ok(fd) => Self::from_path_fd(&fd, self.of(name)).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(KeyfileError::from_system("open", self.of(name), errno)),
        }
    }

    pub(super) fn child_or_create(&self, name: &OsStr) -> Result<Self, KeyfileError> {
        match self.child(name)? {
            Some(child) => Ok(child),
            None => Self::from_path_fd(&create_dir(self, name, &self.of(name))?, self.of(name)),
        }
    }

    /// The path of an entry, for people.
    pub(super) fn of(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn open_entry(&self, name: &OsStr, flags: OFlags, mode: Mode) -> Result<File, Errno> {
        // O_NONBLOCK: a FIFO in a key's place must not stop the daemon until somebody writes to it.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        fs::openat(self, name, flags, mode).map(File::from)
    }

    pub(super) fn stat_entry(&self, name: &OsStr) -> Result<Stat, Errno> {
        fs::statat(self, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The names in it, sorted.
    pub(super) fn names(&self) -> Result<Vec<OsString>, KeyfileError> {
        let failed = |errno| KeyfileError::from_system("list", self.path.clone(), errno);
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(self).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort();
        Ok(names)
    }

    /// `false`: it was not there.
    pub(super) fn unlink(&self, name: &OsStr) -> Result<bool, KeyfileError> {
        match fs::unlinkat(self, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(KeyfileError::from_system("remove", self.of(name), errno)),
        }
    }

    /// Renames onto a name that must be free. `Err(Errno::EXIST)` where it is not.
    pub(super) fn rename_to_free(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        match fs::renameat_with(self, from, self, to, RenameFlags::NOREPLACE) {
            // NFS, and ZFS before 2.2, know no such rename.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.look_then_rename(from, to),
            outcome => outcome,
        }
    }

    /// As good where every writer holds the key files' lock, as ours do, and where the directory is nobody else's.
    fn look_then_rename(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        match self.stat_entry(to) {
            Err(Errno::NOENT) => self.rename_over(from, to),
            Ok(_) => Err(Errno::EXIST),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn rename_over(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        fs::renameat(self, from, self, to)
    }

    /// Makes names that were added, changed or removed durable.
    pub(super) fn sync(&self) -> Result<(), KeyfileError> {
        fs::fsync(self).map_err(|errno| KeyfileError::from_system("make durable", self.path.clone(), errno))
    }

    /// From an `O_PATH` descriptor of what should be the directory: checked, then opened for reading and fsync.
    fn from_path_fd(fd: &OwnedFd, path: PathBuf) -> Result<Self, KeyfileError> {
        let stat = stat_fd(fd, &path)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {}
            FileType::Symlink => return Err(KeyfileError::DirectoryIsSymlink { path }),
            _ => return Err(KeyfileError::NotADirectory { path }),
        }
        let euid = euid();
        if !is_trusted(stat.st_uid, euid) {
            return Err(KeyfileError::DirectoryOwner { path, owner: stat.st_uid, euid });
        }
        // No exception for a sticky directory: others could still put files of their own beside the keys.
        if stat.st_mode & OTHERS_WRITE != 0 {
            return Err(KeyfileError::DirectoryWritable { path, mode: stat.st_mode & 0o7777 });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::openat(fd, ".", flags, Mode::empty())
            .map_err(|errno| KeyfileError::from_system("open", path.clone(), errno))?;
        Ok(Self { fd, path })
    }
}

/// What to do about a directory that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfMissing {
    Report,
    /// Make it, 0700 and durable.
    Create,
}

/// The way from the root down to the key's directory.
struct Walk {
    at: OwnedFd,
    /// Where `at` is, without links.
    path: PathBuf,
    /// Names still to go, the next one last.
    todo: Vec<OsString>,
    links: u32,
    goal: PathBuf,
}

impl Walk {
    fn from_root(goal: &Path) -> Result<Self, KeyfileError> {
        let at = open_root()?;
        let mut walk = Self { at, path: "/".into(), todo: Vec::new(), links: 0, goal: goal.to_owned() };
        walk.check_ancestor()?;
        walk.queue(goal);
        Ok(walk)
    }

    fn down(mut self, if_missing: IfMissing) -> Result<Option<Place>, KeyfileError> {
        while let Some(name) = self.todo.pop() {
            let path = if name == ".." { self.path.join("..") } else { self.path.join(&name) };
            let fd = match open_path(&self.at, &name) {
                Ok(fd) => fd,
                Err(Errno::NOENT) if if_missing == IfMissing::Report => return Ok(None),
                Err(Errno::NOENT) => create_dir(&self.at, &name, &path)?,
                Err(errno) => return Err(KeyfileError::from_system("open", path, errno)),
            };
            // Links are expanded into `todo` in front of the last name, which therefore is the key's directory itself.
            if self.todo.is_empty() {
                return Place::from_path_fd(&fd, path).map(Some);
            }
            self.step(fd, path, &name)?;
        }
        Place::from_path_fd(&self.at, self.path).map(Some)
    }

    fn step(&mut self, fd: OwnedFd, path: PathBuf, name: &OsStr) -> Result<(), KeyfileError> {
        let stat = stat_fd(&fd, &path)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => self.follow(&fd, &stat, path),
            FileType::Directory => {
                self.at = fd;
                if name == ".." {
                    self.path.pop();
                } else {
                    self.path = path;
                }
                self.check_ancestor()
            }
            _ => Err(KeyfileError::NotADirectory { path }),
        }
    }

    fn follow(&mut self, link: &OwnedFd, stat: &Stat, path: PathBuf) -> Result<(), KeyfileError> {
        let euid = euid();
        if !is_trusted(stat.st_uid, euid) {
            return Err(KeyfileError::AncestorLink { path, owner: stat.st_uid, euid });
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(KeyfileError::TooManyLinks { path: self.goal.clone() });
        }
        let target = fs::readlinkat(link, "", Vec::new())
            .map_err(|errno| KeyfileError::from_system("read the link", path, errno))?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            self.at = open_root()?;
            self.path = "/".into();
        }
        self.queue(&target);
        Ok(())
    }

    fn queue(&mut self, path: &Path) {
        self.todo.extend(path.components().rev().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        }));
    }

    fn check_ancestor(&self) -> Result<(), KeyfileError> {
        let (stat, path, euid) = (stat_fd(&self.at, &self.path)?, self.path.clone(), euid());
        if !is_trusted(stat.st_uid, euid) {
            return Err(KeyfileError::AncestorOwner { path, owner: stat.st_uid, euid });
        }
        // In a sticky directory (/tmp) others cannot rename or remove what is not theirs.
        if stat.st_mode & OTHERS_WRITE != 0 && stat.st_mode & STICKY == 0 {
            return Err(KeyfileError::AncestorWritable { path, mode: stat.st_mode & 0o7777 });
        }
        Ok(())
    }
}

/// Root may do anything anyway; everybody else but the process's own user could change keys behind its back.
pub(super) const fn is_trusted(owner: u32, euid: u32) -> bool {
    owner == 0 || owner == euid
}

/// The thing itself, a link too; without a permission on it.
fn open_path(at: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    fs::openat(at, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn open_root() -> Result<OwnedFd, KeyfileError> {
    fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| KeyfileError::from_system("open", "/".into(), errno))
}

fn stat_fd(fd: impl AsFd, path: &Path) -> Result<Stat, KeyfileError> {
    fs::fstat(fd).map_err(|errno| KeyfileError::from_system("look at", path.to_owned(), errno))
}

/// Makes a directory, 0700 whatever the umask is, and makes its name durable. Somebody who was faster is fine: what then lies there
/// is checked like all else.
fn create_dir(at: impl AsFd, name: &OsStr, path: &Path) -> Result<OwnedFd, KeyfileError> {
    let failed = |errno| KeyfileError::from_system("create", path.to_owned(), errno);
    let fd = match fs::mkdirat(&at, name, Mode::RWXU) {
        Ok(()) => {
            // It is ours, so nobody else can have put anything in its place; fchmod(2) refuses O_PATH.
            fs::chmodat(&at, name, Mode::RWXU, AtFlags::empty()).map_err(failed)?;
            open_path(&at, name).map_err(failed)?
        }
        Err(Errno::EXIST) => open_path(&at, name).map_err(failed)?,
        Err(errno) => return Err(failed(errno)),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = fs::openat(&at, ".", flags, Mode::empty()).map_err(failed)?;
    fs::fsync(parent).map_err(failed)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_file_system_cannot_rename_without_replacing_nothing_is_replaced_either() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place::open(dir.path()).expect("opens").expect("is there");
        std::fs::write(dir.path().join("new"), "new").expect("written");
        std::fs::write(dir.path().join("old"), "old").expect("written");
        let (new, old, free) = (OsStr::new("new"), OsStr::new("old"), OsStr::new("free"));
        assert_eq!(place.look_then_rename(new, old), Err(Errno::EXIST));
        assert_eq!(std::fs::read(dir.path().join("old")).expect("read"), b"old");
        assert_eq!(place.look_then_rename(new, free), Ok(()));
        assert_eq!(std::fs::read(dir.path().join("free")).expect("read"), b"new");
    }
}
