//! `critical.jsonl`: what must not be undone by a restored database.
//!
//! Each line is the difference to what the lines before it say, so that a node which slept through some generations loses nothing: the
//! log is complete when its last line is at the generation that the record names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::write::{self, failed};
use super::{Mark, NodeFileError, Notice, WireMark};
use crate::model::{Micros, Tenant, TenantRecord, TokenId};

/// A log of this size is folded into one line at the next start. The hourly marks make some 2 MB in a year.
const LARGE: u64 = 1024 * 1024;

/// What became of a tenant that was to be shredded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Pending { shred_at: Micros },
    Shredded { shred_at: Micros, shredded_at: Micros },
    Cancelled,
}

impl Fate {
    fn of(tenant: &TenantRecord) -> Option<Self> {
        let shred_at = tenant.shred_at?;
        Some(match tenant.shredded_at {
            Some(shredded_at) => Self::Shredded { shred_at, shredded_at },
            None => Self::Pending { shred_at },
        })
    }
}

#[derive(Debug)]
pub(super) struct CriticalLog {
    path: PathBuf,
    /// By database: a data directory may have been pointed at several.
    databases: BTreeMap<[u8; 16], Folded>,
    last: Option<(Mark, Micros)>,
    /// Lines could not be read, so that a difference to the rest would say too little.
    damaged: bool,
}

/// What the lines of one database say together.
#[derive(Debug, Clone)]
struct Folded {
    last: Mark,
    at: Micros,
    fates: BTreeMap<Tenant, Fate>,
    /// Tokens that were revoked. There is no way back, so none is ever taken out.
    revoked: BTreeSet<TokenId>,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    mark: WireMark,
    /// Microseconds since 1970, by this host's clock.
    at: i64,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    shredded: Vec<Shred>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    cancelled: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    revoked: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Shred {
    tenant: String,
    #[serde(rename = "shred_at")]
    due_at: i64,
    #[serde(rename = "shredded_at", skip_serializing_if = "Option::is_none", default)]
    done_at: Option<i64>,
}

impl CriticalLog {
    pub(super) fn open(path: &Path, notices: &mut Vec<Notice>) -> Result<Self, NodeFileError> {
        let mut log = Self { path: path.to_owned(), databases: BTreeMap::new(), last: None, damaged: false };
        let Some(bytes) = write::read(path)? else { return Ok(log) };
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            log.cut(whole)?;
            notices.push(Notice::TornLine);
        }
        let mut bad = 0;
        for line in bytes.get(..whole).unwrap_or_default().split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
        {
            match serde_json::from_slice::<Line>(line).ok().and_then(Line::parse) {
                Some(line) => log.fold(line),
                None => bad += 1,
            }
        }
        if bad > 0 {
            log.damaged = true;
            notices.push(Notice::BadLines { count: bad });
        } else if whole as u64 > LARGE {
            log.compact()?;
        }
        Ok(log)
    }

    pub(super) fn last(&self) -> Option<Mark> {
        self.last.map(|(mark, _)| mark)
    }

    pub(super) fn noted_at(&self) -> Option<Micros> {
        self.last.map(|(_, at)| at)
    }

    /// Whether the lines of that database reach to this mark.
    pub(super) fn covers(&self, mark: Mark) -> bool {
        let reaches = |folded: &Folded| folded.last.epoch >= mark.epoch && folded.last.generation >= mark.generation;
        !self.damaged && self.databases.get(&mark.db_id).is_some_and(reaches)
    }

    pub(super) fn fates(&self, db_id: [u8; 16]) -> BTreeMap<Tenant, Fate> {
        self.databases.get(&db_id).map(|folded| folded.fates.clone()).unwrap_or_default()
    }

    pub(super) fn revoked(&self, db_id: [u8; 16]) -> BTreeSet<TokenId> {
        self.databases.get(&db_id).map(|folded| folded.revoked.clone()).unwrap_or_default()
    }

    pub(super) fn ever_revoked(&self) -> impl Iterator<Item = TokenId> {
        self.databases.values().flat_map(|folded| folded.revoked.iter().cloned())
    }

    /// Enters the difference; durable when this returns. A log with lines that cannot be read is set aside and begun anew.
    pub(super) fn append(
        &mut self,
        mark: Mark,
        at: Micros,
        blocked: &[TenantRecord],
        revoked: &BTreeSet<TokenId>,
    ) -> Result<(), NodeFileError> {
        let now: BTreeMap<Tenant, Fate> =
            // The system's own is never shredded, whatever somebody wrote into its row; no line could be read that has it.
            blocked
                .iter()
                .filter(|tenant| !tenant.tenant.is_system())
                .filter_map(|tenant| Some((tenant.tenant.clone(), Fate::of(tenant)?)))
                .collect();
        let before = self.fates(mark.db_id);
        let changed = now.iter().filter(|(tenant, fate)| before.get(*tenant) != Some(fate));
        // What was shredded cannot be cancelled: where the database no longer says so, it was restored, and the memory is kept.
        let gone =
            before.iter().filter(|(tenant, fate)| matches!(fate, Fate::Pending { .. }) && !now.contains_key(*tenant));
        let mut fates: BTreeMap<Tenant, Fate> = changed.map(|(tenant, fate)| (tenant.clone(), *fate)).collect();
        fates.extend(gone.map(|(tenant, _)| (tenant.clone(), Fate::Cancelled)));
        let revoked = revoked.difference(&self.revoked(mark.db_id)).cloned().collect();
        let line = Folded { last: mark, at, fates, revoked };
        if self.damaged {
            self.fold(line);
            self.begin_anew()
        } else {
            self.write(&line)?;
            self.fold(line);
            Ok(())
        }
    }

    fn write(&self, line: &Folded) -> Result<(), NodeFileError> {
        let bytes = self.bytes_of(line)?;
        let mut options = OpenOptions::new();
        let there = write::open(&self.path, options.append(true))?;
        let is_new = there.is_none();
        let made = || options.create_new(true).mode(0o600).open(&self.path);
        let mut file = there.map_or_else(made, Ok).map_err(|cause| failed("make", &self.path, cause))?;
        let length = file.metadata().map_err(|cause| failed("look at", &self.path, cause))?.len();
        let written = file.write_all(&bytes).and_then(|()| file.sync_all());
        if let Err(cause) = written {
            // Half a line would spoil the next one. Where this fails too, the next start cuts it off.
            let _cut = file.set_len(length);
            return Err(failed("write", &self.path, cause));
        }
        if is_new { write::sync_directory(&self.path) } else { Ok(()) }
    }

    fn bytes_of(&self, line: &Folded) -> Result<Vec<u8>, NodeFileError> {
        let mut bytes = serde_json::to_vec(&Line::of(line))
            .map_err(|error| failed("write", &self.path, std::io::Error::from(error)))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn fold(&mut self, line: Folded) {
        self.last = Some((line.last, line.at));
        let folded = self.databases.entry(line.last.db_id).or_insert_with(|| Folded {
            fates: BTreeMap::new(),
            revoked: BTreeSet::new(),
            ..line
        });
        folded.last = line.last;
        folded.at = line.at;
        folded.fates.extend(line.fates);
        folded.revoked.extend(line.revoked);
    }

    fn cut(&self, length: usize) -> Result<(), NodeFileError> {
        let Some(file) = write::open(&self.path, OpenOptions::new().write(true))? else { return Ok(()) };
        let cut = file.set_len(length as u64).and_then(|()| file.sync_all());
        cut.map_err(|cause| failed("cut a torn line off", &self.path, cause))
    }

    /// One line for each database, with all that its lines said; the one written last stays last.
    fn compact(&self) -> Result<(), NodeFileError> {
        let mut folded: Vec<&Folded> = self.databases.values().collect();
        folded.sort_by_key(|folded| Some(folded.last) == self.last());
        let mut bytes = Vec::new();
        for line in folded {
            bytes.extend(self.bytes_of(line)?);
        }
        write::replace(&self.path, &bytes)
    }

    fn begin_anew(&mut self) -> Result<(), NodeFileError> {
        let mut aside = self.path.clone().into_os_string();
        aside.push(".damaged");
        if let Some(bytes) = write::read(&self.path)? {
            write::replace(Path::new(&aside), &bytes)?;
        }
        self.compact()?;
        self.damaged = false;
        Ok(())
    }
}

impl Line {
    fn of(line: &Folded) -> Self {
        let shred = |(tenant, fate): (&Tenant, &Fate)| match *fate {
            Fate::Pending { shred_at } => Some(Shred { tenant: tenant.to_string(), due_at: shred_at.0, done_at: None }),
            Fate::Shredded { shred_at, shredded_at } => {
                Some(Shred { tenant: tenant.to_string(), due_at: shred_at.0, done_at: Some(shredded_at.0) })
            }
            Fate::Cancelled => None,
        };
        let cancelled = line.fates.iter().filter(|(_, fate)| **fate == Fate::Cancelled);
        Self {
            mark: WireMark::of(line.last),
            at: line.at.0,
            shredded: line.fates.iter().filter_map(shred).collect(),
            cancelled: cancelled.map(|(tenant, _)| tenant.to_string()).collect(),
            revoked: line.revoked.iter().map(ToString::to_string).collect(),
        }
    }

    /// `None` where a name is none.
    fn parse(self) -> Option<Folded> {
        let mut fates = BTreeMap::new();
        for shred in self.shredded {
            let shred_at = Micros(shred.due_at);
            let fate = match shred.done_at {
                Some(at) => Fate::Shredded { shred_at, shredded_at: Micros(at) },
                None => Fate::Pending { shred_at },
            };
            fates.insert(Tenant::parse(&shred.tenant).ok()?, fate);
        }
        for tenant in self.cancelled {
            fates.insert(Tenant::parse(&tenant).ok()?, Fate::Cancelled);
        }
        let revoked = self.revoked.iter().map(|id| TokenId::parse(id).ok()).collect::<Option<_>>()?;
        Some(Folded { last: self.mark.mark(), at: Micros(self.at), fates, revoked })
    }
}
