//! Whether a trail is whole: what was written into files and database, held against the keys, the chains' heads and each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde::Deserialize;

use super::record::{CHANGED, START};
use crate::crypto::{ChainKey, Mac};
use crate::model::{BootId, Micros, NodeId};
use crate::store::trail::{ChainHead, ChainKind, TrailRow};

/// What is after the MACed part of a line, but for the closing brace.
const SUFFIX: usize = r#","mac":"","link":""}"#.len() + 128;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where: a line of a file, a record of the database, a version of a secret.
    pub place: String,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// What a verification went through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    pub findings: Vec<Finding>,
    /// What an auditor should know, and is nobody's doing: records that are missing since they could not be written.
    pub notes: Vec<Finding>,
    pub chains: u64,
    pub records: u64,
}

/// A version of a secret, as records name it.
pub type Version = (String, String, u64);

/// Goes through a trail: each file's lines, then each chain's rows, then [`Verifier::finish`].
pub struct Verifier {
    keys: BTreeMap<u64, ChainKey>,
    heads: HashMap<(NodeId, BootId, ChainKind), ChainHead>,
    seen: HashMap<(NodeId, BootId, ChainKind), Seen>,
    blobs: HashMap<Version, Blobs>,
    verified: Verified,
}

/// How far a chain was followed.
struct Seen {
    n: u64,
    link: Mac,
    previous: Option<(BootId, u64, Mac)>,
    /// Where it broke: what follows is not looked at, since the first break says enough.
    is_broken: bool,
}

/// What was recorded of a version's ciphertexts.
#[derive(Default)]
struct Blobs {
    put: BTreeSet<String>,
    replaced: BTreeSet<String>,
    is_destroyed: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    action: String,
    outcome: String,
    #[serde(default)]
    identity: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    version: Option<u64>,
    #[serde(default)]
    blob_sha256: Option<String>,
    #[serde(default)]
    replaces_sha256: Option<String>,
    #[serde(default)]
    since: Option<String>,
    #[serde(default)]
    records: Option<u64>,
    #[serde(default)]
    previous_boot: Option<String>,
    #[serde(default)]
    previous_n: Option<u64>,
    #[serde(default)]
    previous_link: Option<String>,
    node: String,
    boot: String,
    key: u64,
    n: u64,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default)]
    link: Option<String>,
}

impl Line {
    fn previous(&self) -> Option<(BootId, u64, Mac)> {
        let boot = BootId::from_hex(self.previous_boot.as_deref()?)?;
        Some((boot, self.previous_n?, Mac::from_hex(self.previous_link.as_deref()?)?))
    }
}

impl Verifier {
    #[must_use]
    pub fn new(keys: Vec<ChainKey>, heads: Vec<ChainHead>) -> Self {
        Self {
            keys: keys.into_iter().map(|key| (key.version().get(), key)).collect(),
            heads: heads.into_iter().map(|head| ((head.node, head.boot, head.kind), head)).collect(),
            seen: HashMap::new(),
            blobs: HashMap::new(),
            verified: Verified::default(),
        }
    }

    /// One line of a file, without its end. A node's files come in the order in which they were written.
    pub fn line(&mut self, place: &str, bytes: &[u8]) {
        let parsed = serde_json::from_slice::<Line>(bytes).ok();
        let ids = parsed.as_ref().and_then(|parsed| {
            Some((
                NodeId::from_hex(&parsed.node)?,
                BootId::from_hex(&parsed.boot)?,
                Mac::from_hex(parsed.mac.as_deref()?)?,
                Mac::from_hex(parsed.link.as_deref()?)?,
            ))
        });
        let (Some(parsed), Some((node, boot, mac, link))) = (parsed, ids) else {
            return self.find(place, "is no record of a chain: it was changed, or written by a release before chains");
        };
        let Some(body) = bytes.len().checked_sub(SUFFIX).and_then(|end| bytes.get(..end)) else {
            return self.find(place, "is too short for a record");
        };
        let record = [body, b"}"].concat();
        let chain = (node, boot, ChainKind::File);
        if self.authentic(place, &parsed, &record, mac) {
            self.follow(place, chain, &parsed, parsed.n, mac, link);
        } else {
            self.break_off(chain);
        }
    }

    /// All rows of a start of a node, in any order. `open`: it may be running, so that its last records wait for their places.
    pub fn rows(&mut self, mut rows: Vec<TrailRow>, open: bool) {
        rows.sort_by_key(|row| row.place.map_or(u64::MAX, |place| place.position));
        for row in rows {
            let place = format!("the database, node {} start {} record {}", row.node, row.boot, row.number);
            let chain = (row.node, row.boot, ChainKind::Table);
            let Ok(parsed) = serde_json::from_slice::<Line>(&row.record) else {
                self.find(&place, "is no record: it was changed");
                self.break_off(chain);
                continue;
            };
            if !self.authentic(&place, &parsed, &row.record, Mac(row.mac)) {
                self.break_off(chain);
                continue;
            }
            if !says_the_same(&row, &parsed) {
                self.find(&place, "its columns say something else than the record that is authenticated");
            }
            self.remember(&parsed);
            match row.place {
                Some(at) => self.follow(&place, chain, &parsed, at.position, Mac(row.mac), Mac(at.link)),
                None if open => {}
                None => self.note(&place, "has no place in its chain: its node ended before it was linked"),
            }
        }
    }

    /// Whether the record's MAC is right; where it is not, that is found.
    fn authentic(&mut self, place: &str, parsed: &Line, record: &[u8], mac: Mac) -> bool {
        self.verified.records += 1;
        let Some(key) = self.keys.get(&parsed.key) else {
            self.find(place, &format!("names version {} of the chain key, which is not there", parsed.key));
            return false;
        };
        let is_authentic = key.verifies(record, mac);
        if !is_authentic {
            self.find(place, "was changed: its mac does not fit it");
        } else if parsed.action == "audit.gap" {
            let (records, since) = (parsed.records.unwrap_or(0), parsed.since.as_deref().unwrap_or("an unknown time"));
            self.note(place, &format!("{records} records since {since} could not be written"));
        } else if parsed.action == CHANGED {
            self.find(place, "says that the daemon found the trail in the database changed by somebody else");
        }
        is_authentic
    }

    fn follow(&mut self, place: &str, chain: (NodeId, BootId, ChainKind), parsed: &Line, n: u64, mac: Mac, link: Mac) {
        let mut missing = None;
        if !self.seen.contains_key(&chain) {
            self.verified.chains += 1;
            let is_start = n == 1 && parsed.action == START;
            if !is_start {
                missing = Some(format!("is record {n} of its chain, and those before it are missing"));
            }
            let previous = parsed.previous().filter(|_| is_start);
            let link = previous.map_or(Mac::NONE, |(_, _, link)| link);
            self.seen.insert(chain, Seen { n: 0, link, previous, is_broken: !is_start });
        }
        let (seen, key) = (self.seen.get_mut(&chain), self.keys.get(&parsed.key));
        let (Some(seen), Some(key)) = (seen, key) else { return };
        if !seen.is_broken {
            let expected = seen.n + 1;
            let wrong = if n > expected {
                let (last, upto) = (seen.n, n - 1);
                Some(format!("follows record {last} of its chain: records {expected} to {upto} were removed, or moved"))
            } else if n < expected {
                Some(format!(
                    "is record {n} of its chain, and stands behind record {}: it was moved or repeated",
                    seen.n
                ))
            } else if !key.links(seen.link, mac, link) {
                Some("is not linked to the record before it".to_owned())
            } else {
                None
            };
            seen.is_broken = wrong.is_some();
            (seen.n, seen.link) = (n, link);
            missing = missing.or(wrong);
        }
        let at_head = self.heads.get(&chain).filter(|head| head.end.position == n);
        if missing.is_none() && at_head.is_some_and(|head| head.end.link != link.0) {
            missing = Some("is not the record that the database holds as this chain's head".to_owned());
        }
        if let Some(what) = missing {
            self.find(place, &what);
        }
    }

    /// A record that cannot be followed breaks its chain, where that is not broken yet.
    fn break_off(&mut self, chain: (NodeId, BootId, ChainKind)) {
        let broken = Seen { n: 0, link: Mac::NONE, previous: None, is_broken: true };
        self.seen.entry(chain).or_insert(broken).is_broken = true;
    }

    fn remember(&mut self, parsed: &Line) {
        let (Some(tenant), Some(name), Some(version)) = (&parsed.tenant, &parsed.name, parsed.version) else { return };
        let blobs = self.blobs.entry((tenant.clone(), name.clone(), version)).or_default();
        blobs.put.extend(parsed.blob_sha256.clone());
        blobs.replaced.extend(parsed.replaces_sha256.clone());
        blobs.is_destroyed |= parsed.action == "secret.destroy" && parsed.outcome == "ok";
    }

    /// Takes note of what rows say of versions, where they were written since [`Verifier::rows`] and are verified by the next run.
    pub fn learn(&mut self, rows: &[TrailRow]) {
        for row in rows {
            let Ok(parsed) = serde_json::from_slice::<Line>(&row.record) else { continue };
            if self.keys.get(&parsed.key).is_some_and(|key| key.verifies(&row.record, Mac(row.mac))) {
                self.remember(&parsed);
            }
        }
    }

    /// Whether a live version is what its last record says that was put there.
    #[must_use]
    pub fn knows(&self, version: &Version, blob: &[u8; 32]) -> bool {
        let blob = data_encoding::HEXLOWER.encode(blob);
        self.blobs
            .get(version)
            .is_some_and(|blobs| !blobs.is_destroyed && blobs.put.contains(&blob) && !blobs.replaced.contains(&blob))
    }

    /// A version that is live. `before_the_trail`: it was made before there were records of writes.
    pub fn version(&mut self, version: &Version, blob: &[u8; 32], before_the_trail: bool) {
        let (tenant, name, number) = version;
        let place = format!("secret {tenant}/{name} version {number}");
        let blob = data_encoding::HEXLOWER.encode(blob);
        match self.blobs.get(version) {
            Some(blobs) if blobs.is_destroyed => self.find(&place, "was destroyed, and is there again"),
            Some(blobs) if blobs.put.contains(&blob) && !blobs.replaced.contains(&blob) => {}
            Some(blobs) if blobs.put.is_empty() && before_the_trail => {}
            Some(blobs) if blobs.replaced.contains(&blob) => {
                self.find(&place, "is an old row: it was sealed anew since, and was put back");
            }
            Some(blobs) if !blobs.put.is_empty() => {
                self.find(&place, "is not what was written: another ciphertext was put in its place");
            }
            _ if before_the_trail => {}
            _ => self.find(&place, "has no record of its write"),
        }
    }

    /// What only the whole shows: chains that end too early, are missing, or do not follow each other.
    #[must_use]
    pub fn finish(mut self) -> Verified {
        let mut heads: Vec<ChainHead> = self.heads.values().cloned().collect();
        heads.sort_by_key(|head| (head.started_at, head.node, head.boot, head.kind));
        for head in heads {
            let place = format!("node {} start {} ({})", head.node, head.boot, Micros(head.started_at.0));
            let (end, chain) = (head.end.position, (head.node, head.boot, head.kind));
            let what = match (self.seen.get(&chain), head.kind) {
                (None, ChainKind::File) => format!(
                    "none of its {end} records is in the files that were given: the file is missing, or lies on another node; give it \
                     with --file"
                ),
                (None, ChainKind::Table) => format!("all of its {end} records were removed from the database"),
                (Some(seen), _) if !seen.is_broken && seen.n < end => {
                    format!("its chain was cut: it has {} records, and had {end} at least", seen.n)
                }
                _ => continue,
            };
            self.find(&place, &what);
        }
        let mut broken = Vec::new();
        for ((node, boot, kind), seen) in &self.seen {
            let Some((before, n, link)) = seen.previous else { continue };
            let what = match self.seen.get(&(*node, before, *kind)) {
                Some(previous) if !previous.is_broken && (previous.n, previous.link) != (n, link) => {
                    format!("follows record {n} of start {before}, whose chain ends at {}", previous.n)
                }
                // Files can lie elsewhere; the table is one.
                None if *kind == ChainKind::Table => {
                    format!("follows record {n} of start {before}, of which no record is there")
                }
                Some(_) | None => continue,
            };
            broken.push(Finding { place: format!("node {node} start {boot}"), what });
        }
        broken.sort_by(|a, b| a.place.cmp(&b.place));
        self.verified.findings.extend(broken);
        self.verified
    }

    fn find(&mut self, place: &str, what: &str) {
        self.verified.findings.push(Finding { place: place.to_owned(), what: what.to_owned() });
    }

    fn note(&mut self, place: &str, what: &str) {
        self.verified.notes.push(Finding { place: place.to_owned(), what: what.to_owned() });
    }
}

#[cfg(test)]
mod tests;

/// The columns are what a search finds by, and nothing authenticates them but this.
fn says_the_same(row: &TrailRow, record: &Line) -> bool {
    let blob = row.blob_sha256.map(|sha| data_encoding::HEXLOWER.encode(&sha));
    let identity = record.identity.as_deref().unwrap_or("daemon");
    row.node.to_string() == record.node
        && row.boot.to_string() == record.boot
        && row.number == record.n
        && row.identity == identity
        && row.action == record.action
        && row.outcome == record.outcome
        && row.tenant == record.tenant
        && row.name == record.name
        && row.version == record.version
        && blob == record.blob_sha256
}
