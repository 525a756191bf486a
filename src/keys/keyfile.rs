//! Key files, with all the discipline that they need: what is loaded was checked on the opened descriptor, and what is written is
//! durable before anything relies on it.
//!
//! `secrets.key` is the master key in use. Every other key that is still wanted lies in `secrets.key.d/`, named by its kid; names
//! are hints, and each file is known by what it holds. Whoever writes holds one lock, `secrets.key.lock`, from before the first look
//! to after the last fsync; readers need none, since a file is only ever replaced whole.
//!
//! The master keys themselves pass through here unseen: [`MasterKey`] and [`KeyfileImage`](crate::crypto::KeyfileImage) do not show
//! their bytes.

mod aside;
mod durable;
mod error;
mod exchange;
mod load;
mod lock;
mod place;
mod write;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::crypto::{Content, MasterKey};
use crate::model::{Kid, WrappedMaster};

use durable::Stamp;
use load::load;
use place::Place;

pub use durable::Synced;
pub use error::KeyfileError;
pub(super) use error::{sh, user};
pub use exchange::FoundImage;
pub use lock::{KeyLock, LOCK_WAIT};

/// Where a daemon's key files lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFiles {
    dir: PathBuf,
    names: Names,
}

/// A master key, itself or wrapped, and the file that holds it.
pub struct KeyFile {
    /// Of a wrapped key what its file says; whoever opens it checks.
    pub kid: Kid,
    pub content: Content,
    pub path: PathBuf,
    stamp: Stamp,
}

impl KeyFile {
    /// `None` where the file holds it wrapped.
    #[must_use]
    pub const fn master(&self) -> Option<&MasterKey> {
        match &self.content {
            Content::Raw(master) => Some(master),
            Content::Wrapped(_) => None,
        }
    }

    /// `None` where the file holds the key itself.
    #[must_use]
    pub const fn wrapped(&self) -> Option<&WrappedMaster> {
        match &self.content {
            Content::Raw(_) => None,
            Content::Wrapped(wrapped) => Some(wrapped),
        }
    }
}

/// What lies at the key file's own path.
pub enum MainFile {
    Missing,
    Key(KeyFile),
    /// Something is there, or may be, and it cannot be used. Nothing is ever written over it.
    Bad(KeyfileError),
}

/// All that was found.
pub struct Scan {
    /// The key file's own path, whatever lies there.
    pub path: PathBuf,
    pub main: MainFile,
    /// The good files of `secrets.key.d`, by name; a name that lies is here too, by what the file holds.
    pub retained: Vec<KeyFile>,
    /// What in `secrets.key.d`, or about it, is wrong: files that cannot be used, and names that lie.
    pub problems: Vec<KeyfileError>,
    /// The keys in what restores set aside.
    pub aside_kids: Vec<Kid>,
    /// What restores set aside that may hold a key, which one nobody can tell: no destroyed key is removed from there.
    pub unknown_asides: Vec<PathBuf>,
}

impl Scan {
    /// Of every good file.
    #[must_use]
    pub fn kids(&self) -> BTreeSet<Kid> {
        let main = match &self.main {
            MainFile::Key(key) => Some(key.kid),
            MainFile::Missing | MainFile::Bad(_) => None,
        };
        main.into_iter().chain(self.retained.iter().map(|key| key.kid)).collect()
    }
}

/// Whether an open file lies on the key file's file system, and is lost together with it: then it is no copy off the host, and may be the
/// key file itself. What is no regular file comes from elsewhere.
///
/// # Errors
/// Those of looking at either; `NotFound` where there is no key file.
pub fn lies_beside(file: &File, key_file: &Path) -> io::Result<bool> {
    let stat = rustix::fs::fstat(file)?;
    let key = rustix::fs::stat(key_file)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_dev == key.st_dev)
}

impl KeyFiles {
    /// `path` is that of the key file itself; a relative one is taken from the working directory as it is now.
    ///
    /// # Errors
    /// [`KeyfileError::NoFileName`]; [`KeyfileError::Io`] where the working directory is gone.
    pub fn at(path: &Path) -> Result<Self, KeyfileError> {
        let full = std::path::absolute(path)
            .map_err(|cause| KeyfileError::from_io("find the working directory for", path.to_owned(), cause))?;
        match (full.parent(), full.file_name()) {
            (Some(dir), Some(name)) => Ok(Self { dir: dir.to_owned(), names: Names::of(name) }),
            _ => Err(KeyfileError::NoFileName { path: path.to_owned() }),
        }
    }

    /// The key file's own path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.names.main)
    }

    /// Where a key that is not the one in use has its place.
    #[must_use]
    pub fn retained_path(&self, kid: Kid) -> PathBuf {
        self.dir.join(&self.names.retained).join(kid.to_string())
    }

    /// Opens every key file. Takes no lock and changes nothing.
    #[must_use]
    pub fn scan(&self) -> Scan {
        let mut scan = Scan {
            path: self.path(),
            main: MainFile::Missing,
            retained: Vec::new(),
            problems: Vec::new(),
            aside_kids: Vec::new(),
            unknown_asides: Vec::new(),
        };
        match Place::open(&self.dir) {
            Ok(Some(dir)) => {
                scan.main = main_file(&dir, &self.names.main);
                scan.add_retained(&dir, &self.names.retained);
                match aside::Asides::of(&dir, &self.names.main) {
                    Ok(asides) => (scan.aside_kids, scan.unknown_asides) = (asides.kids, asides.unknown),
                    Err(error) => scan.problems.push(error),
                }
            }
            Ok(None) => {}
            // In a directory that others can change no file is worth reading.
            Err(error) => scan.main = MainFile::Bad(error),
        }
        scan
    }
}

fn main_file(dir: &Place, name: &OsStr) -> MainFile {
    match load(dir, name) {
        Ok(Some(loaded)) => MainFile::Key(loaded.key),
        Ok(None) => MainFile::Missing,
        Err(error) => MainFile::Bad(error),
    }
}

impl Scan {
    /// Every good file, the key file's own first.
    pub fn files(&self) -> impl Iterator<Item = &KeyFile> {
        let main = match &self.main {
            MainFile::Key(file) => Some(file),
            MainFile::Missing | MainFile::Bad(_) => None,
        };
        main.into_iter().chain(&self.retained)
    }

    /// As [`Scan::files`], of each key the first: the one that is opened.
    pub fn first_of_each(&self) -> impl Iterator<Item = &KeyFile> {
        let mut seen = Vec::new();
        self.files().filter(move |file| {
            let is_first = !seen.contains(&file.kid);
            seen.push(file.kid);
            is_first
        })
    }

    /// As [`Scan::files`], to keep.
    pub fn into_files(self) -> impl Iterator<Item = KeyFile> {
        let main = match self.main {
            MainFile::Key(file) => Some(file),
            MainFile::Missing | MainFile::Bad(_) => None,
        };
        main.into_iter().chain(self.retained)
    }

    fn add_retained(&mut self, dir: &Place, name: &OsStr) {
        let listed = dir.child(name).and_then(|place| match place {
            Some(place) => place.names().map(|names| Some((place, names))),
            None => Ok(None),
        });
        match listed {
            Ok(Some((place, names))) => {
                for name in names.iter().filter(|name| !is_temporary(name)) {
                    self.add_retained_file(&place, name);
                }
            }
            Ok(None) => {}
            Err(error) => self.problems.push(error),
        }
    }

    fn add_retained_file(&mut self, place: &Place, name: &OsStr) {
        match load(place, name) {
            Ok(Some(loaded)) => {
                if name != loaded.key.kid.to_string().as_str() {
                    self.problems.push(KeyfileError::NameLies { path: place.of(name), kid: loaded.key.kid });
                }
                self.retained.push(loaded.key);
            }
            Ok(None) => {} // Removed since the directory was read.
            Err(error) => self.problems.push(error),
        }
    }
}

/// The names beside each other in the key's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Names {
    main: OsString,
    retained: OsString,
    lock: OsString,
    /// The key in use while it is written. One fixed name is enough, since all writers hold the lock; the next one finds and removes
    /// what a crash left.
    temporary: OsString,
}

impl Names {
    fn of(main: &OsStr) -> Self {
        let with = |before: &str, after: &str| [OsStr::new(before), main, OsStr::new(after)].into_iter().collect();
        Self { main: main.to_owned(), retained: with("", ".d"), lock: with("", ".lock"), temporary: with(".", ".new") }
    }
}

/// The name of a retained key while it is written.
fn temporary_of(kid: Kid) -> OsString {
    format!(".{kid}.new").into()
}

/// Whether it is a name of [`temporary_of`], and no other.
fn is_temporary(name: &OsStr) -> bool {
    let kid = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(".new"));
    kid.and_then(Kid::from_hex).is_some()
}
