//! A node's own record, in its data directory: who it is, and how far it has seen its database go.
//!
//! A database that was restored from a backup, or a standby that lags, looks like any other; only somebody who remembers can tell. So
//! each node keeps the highest (database, epoch, generation) that it has seen in `node.json`, and in `critical.jsonl` what must not be
//! undone by a restore. The order is: the log's line, appended and fsynced, then `node.json`. So the log is never behind the record,
//! unless somebody took it away; then [`NodeFile::is_complete`] says so.
//!
//! The caller holds the data directory's lock, so there is one writer. Nothing in here is secret.

mod log;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failpoint;
use crate::model::{BootId, KeyState, Micros, NodeId, Tenant, TenantRecord, TokenId};

use log::CriticalLog;
pub use log::Fate;

const RECORD: &str = "node.json";
const LOG: &str = "critical.jsonl";
/// Far more starts than fit into the time for which a dead process counts as live.
const MOST_BOOTS: usize = 64;

/// How far a database has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub db_id: [u8; 16],
    pub epoch: u64,
    pub generation: u64,
}

/// The database is not where this node has seen it: it was restored, lags behind, or is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// As it was when that was noticed; absent where it has never held a key.
    pub found: Option<Mark>,
    pub seen: Mark,
}

/// Something about the record that an operator should know; it was dealt with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Notice {
    #[error(
        "{RECORD} was not there beside {LOG}: this is a new node now, which remembers how far its database had come"
    )]
    RecordLost,
    #[error(
        "{LOG} was not there beside {RECORD}: what must not be undone by a restore is written down anew from the database as it is"
    )]
    LogLost,
    #[error("the last line of {LOG} was cut off by a crash; nothing relied on it, and it was removed")]
    TornLine,
    #[error("{count} lines of {LOG} cannot be read; what they said is written down anew from the database as it is")]
    BadLines { count: usize },
    #[error("this data directory is a copy, or was moved: its node is taken over once no other process uses it")]
    Copied,
}

/// Why the record was not read or not written.
#[derive(Debug, thiserror::Error)]
pub enum NodeFileError {
    #[error("cannot {doing} {}: {cause}", .path.display())]
    Io { doing: &'static str, path: PathBuf, cause: io::Error },
    #[error(
        "{0} is not a file of its own (a link, or no regular file). Look at it, then move it away: `mv -nT {0} {0}.moved`", .path.display()
    )]
    NotAFile { path: PathBuf },
    #[error("{p} belongs to uid {owner}; it must belong to uid {euid}, as whom this runs: `chown {euid} {p}`", p = .path.display())]
    Owner { path: PathBuf, owner: u32, euid: u32 },
    #[error(
        "others than its owner can write to {p} (mode {mode:04o}), so what it says cannot be relied on. See who did, then: `chmod 0600 {p}`",
        p = .path.display()
    )]
    Writable { path: PathBuf, mode: u32 },
    /// It says how far the database had come: without it a restored database would not be noticed, so nothing is guessed.
    #[error(
        "{p} cannot be read: {why}. It remembers how far the database had come. Put back a copy of it; or, when it is certain that the \
         database is the newest there is, move it away: `mv -nT {p} {p}.damaged`", p = .path.display()
    )]
    Damaged { path: PathBuf, why: String },
}

/// The record, open.
#[derive(Debug)]
pub struct NodeFile {
    dir: PathBuf,
    record: Record,
    boot: BootId,
    /// Earlier processes of this very directory, dead for certain.
    earlier: Vec<BootId>,
    log: CriticalLog,
}

/// `node.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    node_id: Hex16,
    /// The data directory's own: a copy has another.
    inode: u64,
    /// This process, last, and those before it: the database may name any of them, a restored one also one that is long dead.
    boot_ids: Vec<Hex16>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    highest: Option<WireMark>,
    /// When this record began, by the clock of its first database; older records do not say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    since: Option<i64>,
    /// Set when the database was found behind; only an accepted restore clears it, whatever the numbers say meanwhile.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    behind: Option<Found>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    found: Option<WireMark>,
}

/// Whose data directory this is, for who only reads; `None` where no readable record says so.
#[must_use]
pub fn id_in(dir: &Path) -> Option<NodeId> {
    read_record(dir).ok().flatten().map(|record| NodeId::new(record.node_id.0))
}

impl NodeFile {
    /// Opens the record in this data directory, or begins one with these fresh ids where there is none. Nothing is written yet, but for a
    /// torn line or a large log put right: a start that is refused leaves everything as it was.
    ///
    /// # Errors
    /// [`NodeFileError`].
    pub fn open(dir: &Path, fresh: NodeId, boot: BootId) -> Result<(Self, Vec<Notice>), NodeFileError> {
        let mut notices = Vec::new();
        let inode = inode(dir)?;
        let record = read_record(dir)?;
        let log = CriticalLog::open(&dir.join(LOG), &mut notices)?;
        if record.is_none() && log.last().is_some() {
            notices.push(Notice::RecordLost);
        }
        if record.as_ref().is_some_and(|record| record.highest.is_some()) && log.last().is_none() {
            notices.push(Notice::LogLost);
        }
        let mut record = record.unwrap_or_else(|| Record {
            node_id: Hex16(*fresh.as_bytes()),
            inode,
            boot_ids: Vec::new(),
            highest: log.last().map(WireMark::of),
            since: None,
            behind: None,
        });
        let mut earlier: Vec<BootId> = record.boot_ids.iter().map(|boot| BootId::new(boot.0)).collect();
        if record.inode != inode {
            // Its processes may be alive elsewhere.
            notices.push(Notice::Copied);
            earlier.clear();
            record.boot_ids.clear();
            record.inode = inode;
        }
        let oldest = record.boot_ids.len().saturating_sub(MOST_BOOTS - 1);
        record.boot_ids.drain(..oldest);
        record.boot_ids.push(Hex16(*boot.as_bytes()));
        Ok((Self { dir: dir.to_owned(), record, boot, earlier, log }, notices))
    }

    /// Enters this process into the record: before its first heartbeat, since after a crash the database may name it.
    ///
    /// # Errors
    /// [`NodeFileError::Io`]
    pub fn enter(&self) -> Result<(), NodeFileError> {
        self.write(&self.record)
    }

    #[must_use]
    pub const fn node(&self) -> NodeId {
        NodeId::new(self.record.node_id.0)
    }

    #[must_use]
    pub const fn boot(&self) -> BootId {
        self.boot
    }

    /// Whether that process was one of this data directory, and so is dead: its lock is ours.
    #[must_use]
    pub fn is_earlier(&self, boot: BootId) -> bool {
        self.earlier.contains(&boot)
    }

    /// The highest that was seen.
    #[must_use]
    pub fn highest(&self) -> Option<Mark> {
        self.record.highest.as_ref().map(WireMark::mark)
    }

    /// Begins the record, at this moment of the database's clock, where it has seen nothing yet. Written with the first mark.
    pub fn begin(&mut self, now: Micros) {
        if self.record.highest.is_none() {
            self.record.since = Some(now.0);
        }
    }

    /// Since when this node would notice that its database was restored; `None` where that is not known.
    #[must_use]
    pub fn since(&self) -> Option<Micros> {
        self.record.since.map(Micros)
    }

    /// What is wrong with the database, if it was found behind and that was not accepted.
    #[must_use]
    pub fn behind(&self) -> Option<Behind> {
        let found = self.record.behind.as_ref()?.found.as_ref().map(WireMark::mark);
        Some(Behind { found, seen: self.highest()? })
    }

    /// Holds what was found in the database against what was seen of it. One that is behind is remembered as such, on disk, until
    /// it is accepted: while shreds are replayed into it, its generation may well pass the one that was seen.
    ///
    /// Somebody else's acceptance is for [`NodeFile::is_accepted_at`] to say. Where it was another database
    /// that was found, by a setting gone wrong, the right one is as good as ever.
    ///
    /// # Errors
    /// [`NodeFileError::Io`], where it could not be remembered; [`NodeFile::behind`] says so all the same.
    pub fn judge(&mut self, found: Option<Mark>) -> Result<(), NodeFileError> {
        let Some(seen) = self.highest() else { return Ok(()) };
        let is_same = |mark: &Mark| mark.db_id == seen.db_id;
        let went_on = found.is_some_and(|mark| mark.is_at_least(seen));
        let Some(before) = self.behind() else {
            return if went_on { Ok(()) } else { self.hold(found) };
        };
        let was_another = !before.found.is_some_and(|mark| is_same(&mark));
        if was_another && went_on {
            self.went_on()
        } else if was_another && found.is_some_and(|mark| is_same(&mark)) {
            self.hold(found)
        } else {
            Ok(())
        }
    }

    /// Whether a database that was behind was accepted by an operator of another node: both epoch and generation are above what was seen.
    #[must_use]
    pub fn is_accepted_at(&self, found: Mark) -> bool {
        let above =
            |seen: Mark| found.is_at_least(seen) && found.epoch > seen.epoch && found.generation > seen.generation;
        self.behind().is_some_and(|behind| above(behind.seen))
    }

    /// The database is behind no longer; the record is carried on as ever.
    ///
    /// # Errors
    /// [`NodeFileError::Io`]: it still is.
    pub fn went_on(&mut self) -> Result<(), NodeFileError> {
        self.replace(Record { behind: None, ..self.record.clone() })
    }

    /// Remembered also where the disk does not take it.
    fn hold(&mut self, found: Option<Mark>) -> Result<(), NodeFileError> {
        self.record.behind = Some(Found { found: found.map(WireMark::of) });
        self.write(&self.record)
    }

    /// Whether [`NodeFile::note`] has something to write for this mark.
    #[must_use]
    pub fn lacks(&self, mark: Mark) -> bool {
        self.highest().is_none_or(|seen| seen != mark) || !self.log.covers(mark)
    }

    /// Enters how far the database is, with what it says of blocked tenants and revoked tokens, read after the mark: first into the log, then into the
    /// record.
    ///
    /// # Errors
    /// [`NodeFileError::Io`]: the record is as it was.
    pub fn note(
        &mut self,
        mark: Mark,
        at: Micros,
        blocked: &[TenantRecord],
        revoked: &BTreeSet<TokenId>,
    ) -> Result<(), NodeFileError> {
        if !self.log.covers(mark) {
            self.log.append(mark, at, blocked, revoked)?;
        }
        failpoint::reached("node.log-written");
        if self.highest() == Some(mark) {
            return Ok(());
        }
        self.replace(Record { highest: Some(WireMark::of(mark)), ..self.record.clone() })
    }

    /// When the log's last line was written, by the wall clock of then.
    #[must_use]
    pub fn noted_at(&self) -> Option<Micros> {
        self.log.noted_at()
    }

    /// Whether the log holds everything up to the highest mark.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.highest().is_none_or(|mark| self.log.covers(mark))
    }

    /// What became of each tenant of that database that was ever blocked.
    #[must_use]
    pub fn fates(&self, db_id: [u8; 16]) -> BTreeMap<Tenant, Fate> {
        self.log.fates(db_id)
    }

    /// The tokens of that database that were ever revoked.
    #[must_use]
    pub fn revoked(&self, db_id: [u8; 16]) -> BTreeSet<TokenId> {
        self.log.revoked(db_id)
    }

    /// The tokens of any database that were ever revoked.
    pub fn ever_revoked(&self) -> impl Iterator<Item = TokenId> {
        self.log.ever_revoked()
    }

    /// The database is accepted as it is: what was seen of it from now on counts.
    ///
    /// # Errors
    /// As [`NodeFile::note`]: it is still behind.
    pub fn accept(
        &mut self,
        mark: Mark,
        at: Micros,
        blocked: &[TenantRecord],
        revoked: &BTreeSet<TokenId>,
    ) -> Result<(), NodeFileError> {
        if !self.log.covers(mark) {
            self.log.append(mark, at, blocked, revoked)?;
        }
        self.replace(Record { highest: Some(WireMark::of(mark)), behind: None, ..self.record.clone() })
    }

    fn replace(&mut self, record: Record) -> Result<(), NodeFileError> {
        self.write(&record)?;
        self.record = record;
        Ok(())
    }

    fn write(&self, record: &Record) -> Result<(), NodeFileError> {
        let path = self.dir.join(RECORD);
        let mut json = serde_json::to_vec(record).map_err(|error| NodeFileError::Io {
            doing: "write",
            path: path.clone(),
            cause: error.into(),
        })?;
        json.push(b'\n');
        write::replace(&path, &json)
    }
}

impl Mark {
    #[must_use]
    pub const fn of(state: &KeyState) -> Self {
        Self { db_id: state.db_id, epoch: state.epoch, generation: state.generation }
    }

    /// Whether a database that was at `seen` can have come to here.
    fn is_at_least(self, seen: Self) -> bool {
        self.db_id == seen.db_id && self.epoch >= seen.epoch && self.generation >= seen.generation
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}, generation {}", self.epoch, self.generation)
    }
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.found {
            None => write!(f, "the database holds no key, and this node has seen it at {}", self.seen),
            Some(found) if found.db_id != self.seen.db_id => write!(
                f,
                "this is another database than the one that this data directory belongs to (its id is {}, and {} was seen)",
                hex(&found.db_id),
                hex(&self.seen.db_id)
            ),
            Some(found) => write!(
                f,
                "the database went back to {found}, and this node has seen {}: it was restored from a backup, or is a standby that \
                 lags behind",
                self.seen
            ),
        }
    }
}

fn inode(dir: &Path) -> Result<u64, NodeFileError> {
    let found = std::fs::metadata(dir);
    found.map(|found| found.ino()).map_err(|cause| write::failed("look at", dir, cause))
}

fn read_record(dir: &Path) -> Result<Option<Record>, NodeFileError> {
    let path = dir.join(RECORD);
    let Some(bytes) = write::read(&path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| NodeFileError::Damaged { path, why: error.to_string() })
}

/// 16 bytes as 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hex16([u8; 16]);

impl Serialize for Hex16 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Hex16 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok();
        let bytes = bytes.and_then(|bytes| bytes.as_slice().try_into().ok());
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("an id is not 32 hex digits"))
    }
}

fn hex(bytes: &[u8; 16]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// A [`Mark`] in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct WireMark {
    db_id: Hex16,
    epoch: u64,
    generation: u64,
}

impl WireMark {
    const fn of(mark: Mark) -> Self {
        Self { db_id: Hex16(mark.db_id), epoch: mark.epoch, generation: mark.generation }
    }

    const fn mark(&self) -> Mark {
        Mark { db_id: self.db_id.0, epoch: self.epoch, generation: self.generation }
    }
}

#[cfg(test)]
mod tests;
