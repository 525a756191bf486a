//! What a start does with the database and the key files that it finds. Pure: state in, decision and its reason out.
//!
//! One rule stands above the rest: nothing is ever generated, changed or deleted where a key may only be missing for the moment.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::keyfile::{KeyFile, MainFile, Scan, sh, user};
use crate::model::{KeyState, Kid, MasterKeyRecord};

/// What the database says of its keys.
#[derive(Debug, Clone, Copy)]
pub struct Database<'a> {
    /// Absent until it has held its first key.
    pub key_state: Option<&'a KeyState>,
    pub master_keys: &'a [MasterKeyRecord],
    /// Whether any tenant, DEK, secret or version is there.
    pub holds_rows: bool,
    /// Whether v1's `secrets` table is in sight.
    pub v1_table: bool,
}

/// What the key files are, without the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The key file's own path, whatever lies there.
    pub path: PathBuf,
    pub main: Main,
    /// The good files of `secrets.key.d`.
    pub retained: Vec<FoundKey>,
    /// What is wrong in `secrets.key.d`: a key that is needed may be in one of these.
    pub problems: Vec<String>,
    /// Whose the key files are to be, for `install -o`.
    pub owner: u32,
    pub copies: Copies,
}

/// Where a key that is not here comes from, in the words of every message that misses one.
pub struct BringBack(pub Kid);

impl fmt::Display for BringBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`containarium backup restore --kid {}` from Secret Manager, `containarium backup restore --from COPY` from another copy, or \
             `containarium admin install-key < KEYFILE` from another node's key file",
            self.0
        )
    }
}

/// Whether copies of the keys are looked for by a command, for what a message advises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// Only their operator knows where they are.
    Unknown,
    /// In the configured secrets, from where `containarium backup restore` fetches them.
    InSecretManager,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Main {
    Missing,
    Key(Kid),
    /// What is wrong with it, and what mends it.
    Bad(String),
}

/// A key and the file that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundKey {
    pub kid: Kid,
    pub path: PathBuf,
}

/// Whether the operator said `--adopt-key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopt {
    NotAsked,
    Asked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The database never held a key, and no key file is there: make the first.
    CreateKey,
    /// The key file becomes the first key of this database, as the operator asked.
    AdoptKey(Kid),
    /// Every key that is needed is there.
    Open {
        /// The active key first; none twice.
        needed: Vec<Kid>,
        active: Kid,
        /// The active key lies in `secrets.key.d` only, and the key file is another one or missing: promote it. (A key file that is
        /// bad is never written over; the daemon opens with the retained key and the scan's error is to be shown.)
        promote: Option<Kid>,
    },
    /// A key of this database is here, but not the active one: up, not ready, until that is put in place.
    Locked(Reason),
    /// Nothing here opens this database: exit, changing nothing.
    Refuse(Reason),
}

/// Why keys are not opened: for programs in `why`, for people in its text, which names every key needed and found and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub why: Why,
    /// The keys that the database needs; the active one first.
    pub needed: Vec<Kid>,
    pub found: Vec<FoundKey>,
    files: Files,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Rows are there, but no key state: the database was damaged, or restored in part.
    NoKeyState,
    /// The database is new, and a key file is there that nobody asked to adopt.
    StrangeKey,
    /// The same, and v1's table is in sight: the file is most likely v1's key.
    KeyBesideV1,
    /// The database is new, and something is in the key file's place that is no usable key.
    BadFileBesideEmpty,
    /// A key was to be adopted and lies in `secrets.key.d` only.
    AdoptNeedsMain,
    /// Not one key of this database is here.
    NoKnownKey,
    /// A key of this database is here, not the active one.
    NotActive,
    /// The active key is here, and others that still wrap DEKs are not.
    Incomplete,
}

/// Decides. The order of the questions: was there ever a key; is the active one here; are all others.
#[must_use]
pub fn decide(database: &Database<'_>, files: &Files, adopt: Adopt) -> Decision {
    match database.key_state {
        Some(state) => decide_populated(state.active_kid, database.master_keys, files),
        None if database.holds_rows || !database.master_keys.is_empty() => {
            let needed = in_use(database.master_keys).collect();
            Decision::Refuse(Reason::new(Why::NoKeyState, needed, files))
        }
        None => decide_empty(database, files, adopt),
    }
}

fn decide_populated(active: Kid, known: &[MasterKeyRecord], files: &Files) -> Decision {
    let others: BTreeSet<Kid> = in_use(known).filter(|kid| *kid != active).collect();
    let needed: Vec<Kid> = std::iter::once(active).chain(others).collect();
    let found = files.found();
    let has = |kid: &Kid| found.iter().any(|key| key.kid == *kid);
    if needed.iter().all(has) {
        return Decision::Open { needed, active, promote: to_promote(active, &files.main) };
    }
    if has(&active) {
        return Decision::Refuse(Reason::new(Why::Incomplete, needed, files));
    }
    if known.iter().any(|record| has(&record.kid)) {
        return Decision::Locked(Reason::new(Why::NotActive, needed, files));
    }
    Decision::Refuse(Reason::new(Why::NoKnownKey, needed, files))
}

fn to_promote(active: Kid, main: &Main) -> Option<Kid> {
    match main {
        Main::Key(kid) if *kid == active => None,
        Main::Key(_) | Main::Missing => Some(active),
        Main::Bad(_) => None,
    }
}

/// A database that never held a key. A key file beside it means that something is not as the operator thinks: the wrong database, one
/// that was lost, v1's key. A key that lies among the retained ones only is what a first start leaves that was killed between staging
/// and commit: the next start makes another, and keeps it.
fn decide_empty(database: &Database<'_>, files: &Files, adopt: Adopt) -> Decision {
    let refuse = |why| Decision::Refuse(Reason::new(why, Vec::new(), files));
    match &files.main {
        Main::Bad(_) => refuse(Why::BadFileBesideEmpty),
        Main::Missing if files.problems.is_empty() && (files.retained.is_empty() || adopt == Adopt::NotAsked) => {
            Decision::CreateKey
        }
        // v2's master is always fresh: a key that v1 used was written to disks and backups for years.
        _ if database.v1_table => refuse(Why::KeyBesideV1),
        Main::Key(kid) if adopt == Adopt::Asked => Decision::AdoptKey(*kid),
        Main::Missing if adopt == Adopt::Asked => refuse(Why::AdoptNeedsMain),
        Main::Key(_) | Main::Missing => refuse(Why::StrangeKey),
    }
}

fn in_use(known: &[MasterKeyRecord]) -> impl Iterator<Item = Kid> {
    known.iter().filter(|record| record.in_use).map(|record| record.kid)
}

impl Files {
    #[must_use]
    pub fn of(scan: &Scan, owner: u32, copies: Copies) -> Self {
        let found = |key: &KeyFile| FoundKey { kid: key.kid, path: key.path.clone() };
        Self {
            path: scan.path.clone(),
            main: match &scan.main {
                MainFile::Missing => Main::Missing,
                MainFile::Key(key) => Main::Key(key.kid),
                MainFile::Bad(error) => Main::Bad(error.to_string()),
            },
            retained: scan.retained.iter().map(found).collect(),
            problems: scan.problems.iter().map(ToString::to_string).collect(),
            owner,
            copies,
        }
    }

    fn found(&self) -> Vec<FoundKey> {
        let main = match self.main {
            Main::Key(kid) => Some(FoundKey { kid, path: self.path.clone() }),
            Main::Missing | Main::Bad(_) => None,
        };
        main.into_iter().chain(self.retained.iter().cloned()).collect()
    }
}

impl Reason {
    fn new(why: Why, needed: Vec<Kid>, files: &Files) -> Self {
        Self { why, needed, found: files.found(), files: files.clone() }
    }

    fn missing(&self) -> impl Iterator<Item = &Kid> {
        self.needed.iter().filter(|kid| !self.found.iter().any(|key| key.kid == **kid))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why.headline())?;
        self.show_keys(f)?;
        self.show_advice(f)
    }
}

impl Why {
    const fn headline(self) -> &'static str {
        match self {
            Self::NoKeyState => {
                "the database holds rows but not the state of its keys: it was damaged, or restored only in part. No key was made"
            }
            Self::StrangeKey => {
                "the database is new, but a master key is here already. It was neither used nor replaced"
            }
            Self::KeyBesideV1 => {
                "the database is new, a master key is here already, and version 1's `secrets` table is in the same database: the \
                 key is most likely version 1's, which this version never takes as its own. It was neither used nor replaced"
            }
            Self::BadFileBesideEmpty => {
                "the database is new, and what lies in the key file's place cannot be used as a key. It was not replaced"
            }
            Self::AdoptNeedsMain => {
                "--adopt-key takes the key file itself, and there is none; a key lies among the retained ones only"
            }
            Self::NoKnownKey => "the database is encrypted, and none of its master keys is here. Nothing was changed",
            Self::NotActive => {
                "a master key of this database is here, but not the one that is active now. Nothing was changed"
            }
            Self::Incomplete => {
                "the active master key is here, but not every other key that still opens part of the database. Nothing was changed"
            }
        }
    }
}

impl Reason {
    fn show_keys(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, kid) in self.needed.iter().enumerate() {
            let active = if index == 0 && self.why != Why::NoKeyState { " (active)" } else { "" };
            let here = if self.missing().any(|missing| missing == kid) { "not found" } else { "found" };
            write!(f, "\n  needed: {kid}{active}, {here}")?;
        }
        for key in &self.found {
            write!(f, "\n  found:  {} in {}", key.kid, sh(&key.path))?;
        }
        match &self.files.main {
            Main::Missing => write!(f, "\n  found:  nothing at {}", sh(&self.files.path))?,
            Main::Bad(error) => write!(f, "\n  cannot be used: {error}")?,
            Main::Key(_) => {}
        }
        for problem in &self.files.problems {
            write!(f, "\n  look at: {problem}")?;
        }
        Ok(())
    }

    fn show_advice(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, dir) = (sh(&self.files.path), self.retained_dir());
        let dir = sh(&dir);
        match self.why {
            Why::NoKeyState => f.write_str(
                "\nRestore the database from a backup, whole (table key_state is empty); the key files stay as they are.",
            ),
            Why::StrangeKey => write!(
                f,
                "\nIf the database should not be new, the daemon looks at the wrong one: correct --database-url or --data-dir \
                 (`containarium config show` shows both), or restore it.\
                 \nIf this key is to protect this new database, start once with --adopt-key: from then on whoever has a copy of \
                 the file can open what is stored.\
                 \nIf neither, move it away, never delete it, and start again: `{}`",
                MoveAway(&self.files)
            ),
            Why::KeyBesideV1 => write!(
                f,
                "\nLeave it where version 1 needs it, and give this version a key file of its own: --key-file, for example {}",
                sh(&beside(&self.files.path))
            ),
            Why::BadFileBesideEmpty => write!(
                f,
                "\nMend it as said above and start again; or, if nothing needs it, move it away, never delete it: \
                 `mv -nT {path} {path}.moved`"
            ),
            Why::AdoptNeedsMain => write!(
                f,
                "\nPut the key that you mean in the key file's place, then start with --adopt-key: \
                 `install -m 0400 -o {} {} {path}`",
                user(self.files.owner),
                self.found.first().map_or_else(|| format!("{dir}/KID"), |key| sh(&key.path).to_string()),
            ),
            Why::NoKnownKey | Why::NotActive | Why::Incomplete => self.show_put_back(f),
        }
    }

    /// A backup goes to the retained keys, under its kid: so it overwrites nothing, and a copy of the wrong key is noticed by its name.
    fn show_put_back(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (owner, dir) = (user(self.files.owner), self.retained_dir());
        // A daemon that is up and locked looks for its keys by itself.
        let then = if self.why == Why::NotActive { "the daemon opens by itself" } else { "start again" };
        if self.files.copies == Copies::InSecretManager {
            write!(
                f,
                "\nFetch each key that was not found from Secret Manager: `containarium backup restore`, with this daemon's settings, as its \
                 user, and with credentials that may read the copies; then {then}.\nWithout them:"
            )?;
        }
        write!(
            f,
            "\nBring each key that was not found back from its copy: `containarium backup restore --from COPY`, with this daemon's settings \
             and as its user (COPY is a key file, a sheet of paper typed in, or an age file, which also needs `--identity FILE`); or from \
             another node's key file: `containarium admin install-key < KEYFILE`. Then {then}. Or put it back by hand:"
        )?;
        write!(f, "\n  install -d -m 0700 -o {owner} {}", sh(&dir))?;
        for kid in self.missing() {
            write!(f, "\n  install -m 0400 -o {owner} BACKUP {}", sh(&dir.join(kid.to_string())))?;
        }
        f.write_str(
            "\nIf you expected another database, correct --database-url or --data-dir (`containarium config show` shows both).",
        )
    }

    fn retained_dir(&self) -> PathBuf {
        let mut dir = self.files.path.clone().into_os_string();
        dir.push(".d");
        dir.into()
    }
}

/// The commands that set every key aside, so that a first start finds none.
struct MoveAway<'a>(&'a Files);

impl fmt::Display for MoveAway<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.0.path;
        let retained = !self.0.retained.is_empty() || !self.0.problems.is_empty();
        if self.0.main != Main::Missing {
            write!(f, "mv -nT {0} {0}.moved", sh(path))?;
            f.write_str(if retained { " && " } else { "" })?;
        }
        if retained {
            write!(f, "mv -nT {0}.d {0}.d.moved", sh(path))?;
        }
        Ok(())
    }
}

/// A name for this version's key beside version 1's.
fn beside(path: &Path) -> PathBuf {
    path.with_file_name("secrets-v2.key")
}

#[cfg(test)]
mod tests;
