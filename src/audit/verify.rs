//! Whether a trail is whole: what was written into files and database, held against the keys, the chains' heads and each other.

mod line;
mod versions;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use super::prune::KeyRing;
use super::record::{CHANGED, HEAD, PRUNE, START};
use crate::crypto::{ChainKey, Mac};
use crate::model::{Action, BootId, Micros, NodeId};
use crate::store::trail::{ChainHead, ChainKind, TrailRow};

use line::{Ids, Line, Mark};
pub use versions::Version;
use versions::Versions;

/// What is after the MACed part of a line, but for the closing brace.
const SUFFIX: usize = r#","mac":"","link":""}"#.len() + 128;
/// By how much the clocks of nodes may differ.
const SKEW: Duration = Duration::from_mins(10);

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
    /// Other nodes of which no file was given: nothing is known of these.
    pub not_looked_at: Vec<Finding>,
    /// Lines that a release before chains wrote, at the beginning of files: nothing authenticates them.
    pub before_chains: u64,
    pub chains: u64,
    pub records: u64,
}

type Chain = (NodeId, BootId, ChainKind);

/// Goes through a trail: first [`Verifier::learn_pruned`] for all of it, then each file's lines, then each chain's rows, then
/// [`Verifier::finish`].
pub struct Verifier {
    keys: BTreeMap<u64, ChainKey>,
    heads: HashMap<Chain, ChainHead>,
    seen: HashMap<Chain, Seen>,
    /// Up to where records of a chain may be absent, and the link there.
    pruned: HashMap<Chain, (u64, Mac)>,
    /// Where the other chain of the same start says that a chain was, last, and when.
    told: HashMap<Chain, (Mark, Option<jiff::Timestamp>)>,
    /// Until when what files say of the table does not hold: it was put back to an earlier state, and that was accepted.
    accepted: Option<jiff::Timestamp>,
    versions: Versions,
    /// Whether a record of a chain came in the file that is gone through.
    is_chained: bool,
    verified: Verified,
}

/// How far a chain was followed.
struct Seen {
    n: u64,
    link: Mac,
    previous: Option<(BootId, u64, Mac)>,
    /// Where it broke: what follows is not looked at, since the first break says enough.
    is_broken: bool,
    /// The newest version of the key, and the first record under it.
    newest_key: (u64, u64),
    /// Whether it stood elsewhere than the other chain of its start says.
    is_elsewhere: bool,
}

impl Seen {
    const fn at(n: u64, link: Mac) -> Self {
        Self { n, link, previous: None, is_broken: false, newest_key: (0, 0), is_elsewhere: false }
    }
}

impl Verifier {
    #[must_use]
    pub fn new(keys: Vec<ChainKey>, heads: Vec<ChainHead>) -> Self {
        Self {
            keys: keys.into_iter().map(|key| (key.version().get(), key)).collect(),
            heads: heads.into_iter().map(|head| ((head.node, head.boot, head.kind), head)).collect(),
            seen: HashMap::new(),
            pruned: HashMap::new(),
            told: HashMap::new(),
            accepted: None,
            versions: Versions::default(),
            is_chained: false,
            verified: Verified::default(),
        }
    }

    /// Takes note of a file's line, where it says up to where records may be absent.
    pub fn learn_pruned(&mut self, line: &[u8]) {
        let Some((record, parsed, ids)) = split(line) else { return };
        self.learn_prune(&record, &parsed, ids.mac);
    }

    /// As [`Verifier::learn_pruned`], of a row.
    pub fn learn_pruned_row(&mut self, row: &TrailRow) {
        if let Ok(parsed) = serde_json::from_slice::<Line>(&row.record) {
            self.learn_prune(&row.record, &parsed, Mac(row.mac));
        }
    }

    fn learn_prune(&mut self, record: &[u8], parsed: &Line, mac: Mac) {
        let is_authentic = self.keys.get(&parsed.key).is_some_and(|key| key.verifies(record, mac));
        let Some(mark) = parsed.mark().filter(|_| is_authentic && parsed.action == PRUNE) else { return };
        let floor = self.pruned.entry(mark.chain).or_insert((mark.n, mark.link));
        if mark.n > floor.0 {
            *floor = (mark.n, mark.link);
        }
    }

    /// The lines that follow are of another file.
    pub const fn begin_file(&mut self) {
        self.is_chained = false;
    }

    /// One line of a file, without its end. A node's files come in the order in which they were written.
    pub fn line(&mut self, place: &str, bytes: &[u8]) {
        let split = split(bytes);
        if split.is_none() && !self.is_chained && is_of_before(bytes) {
            self.verified.before_chains += 1;
            return;
        }
        self.is_chained = true;
        let Some((record, parsed, ids)) = split else {
            return self.find(place, "is no record of a chain: it was changed, or written by a release before chains");
        };
        let chain = (ids.node, ids.boot, ChainKind::File);
        if self.authentic(place, &parsed, &record, ids.mac) {
            self.hear(&parsed);
            self.follow(place, chain, &parsed, parsed.n, (ids.mac, ids.link));
        } else {
            self.break_off(chain);
        }
    }

    /// A row that has its place in the table; those of a start come by their places.
    pub fn row(&mut self, row: &TrailRow) {
        let place = place_of(row);
        let chain = (row.node, row.boot, ChainKind::Table);
        let Some(parsed) = self.read(&place, row) else { return self.break_off(chain) };
        if let Some(at) = row.place {
            // What was written since the heads were read may speak of lines that were written since the files were.
            if self.heads.get(&chain).is_some_and(|head| at.position <= head.end.position) {
                self.hear(&parsed);
            }
            self.follow(&place, chain, &parsed, at.position, (Mac(row.mac), Mac(at.link)));
        }
    }

    /// A row that has no place. `open`: its start may be running, so that its last records wait for theirs.
    pub fn unlinked(&mut self, row: &TrailRow, open: bool) {
        let place = place_of(row);
        let Some(parsed) = self.read(&place, row) else { return };
        let is_old = self.keys.last_key_value().is_some_and(|(newest, _)| parsed.key < *newest);
        if is_old {
            self.find(&place, "has no place in its chain, and is under an old version of the chain key");
        } else if !open {
            self.note(&place, "has no place in its chain: its node ended before it was linked");
        }
    }

    fn read(&mut self, place: &str, row: &TrailRow) -> Option<Line> {
        let Ok(parsed) = serde_json::from_slice::<Line>(&row.record) else {
            self.find(place, "is no record: it was changed");
            return None;
        };
        if !self.authentic(place, &parsed, &row.record, Mac(row.mac)) {
            return None;
        }
        if !parsed.is_what_columns_say(row) {
            self.find(place, "its columns say something else than the record that is authenticated");
        }
        self.versions.remember(&parsed);
        if parsed.action == Action::AdminAcceptRestore.as_str() && parsed.outcome == "ok" {
            self.accepted = self.accepted.max(parsed.time());
        }
        Some(parsed)
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

    /// What a record says of the other chain of its start.
    fn hear(&mut self, parsed: &Line) {
        if let Some(mark) = parsed.mark().filter(|_| parsed.action == HEAD) {
            self.told.insert(mark.chain, (mark, parsed.time()));
        }
    }

    fn follow(&mut self, place: &str, chain: Chain, parsed: &Line, n: u64, (mac, link): (Mac, Mac)) {
        let mut missing = None;
        let floor = self.pruned.get(&chain).copied();
        if !self.seen.contains_key(&chain) {
            self.verified.chains += 1;
            let seen = if let Some((n, link)) = floor {
                Seen::at(n, link)
            } else {
                let is_start = n == 1 && parsed.action == START;
                if !is_start {
                    missing = Some(format!("is record {n} of its chain, and those before it are missing"));
                }
                let previous = parsed.previous().filter(|_| is_start);
                let link = previous.map_or(Mac::NONE, |(_, _, link)| link);
                Seen { previous, is_broken: !is_start, ..Seen::at(0, link) }
            };
            self.seen.insert(chain, seen);
        }
        // Of what may be absent, that which is there is authentic, and has its worth in what it says.
        if floor.is_some_and(|(floor, _)| n <= floor) {
            return;
        }
        let (seen, key) = (self.seen.get_mut(&chain), self.keys.get(&parsed.key));
        let (Some(seen), Some(key)) = (seen, key) else { return };
        if !seen.is_broken {
            let wrong = step(seen, key, n, (mac, link));
            seen.is_broken = wrong.is_some();
            (seen.n, seen.link) = (n, link);
            missing = missing.or(wrong);
        }
        if let Some((told, _)) = self.told.get(&chain)
            && told.n == n
            && told.link != link
        {
            seen.is_elsewhere = true;
        }
        let is_old = is_under_old_key(seen, parsed);
        let at_head = self.heads.get(&chain).filter(|head| head.end.position == n);
        if missing.is_none() && at_head.is_some_and(|head| head.end.link != link.0) {
            missing = Some("is not the record that the database holds as this chain's head".to_owned());
        }
        if let Some(what) = missing {
            self.find(place, &what);
        }
        if is_old {
            let what = format!(
                "is under version {} of the chain key, and was written after a newer one was in use",
                parsed.key
            );
            self.find(place, &what);
        }
    }

    /// A record that cannot be followed breaks its chain, where that is not broken yet.
    fn break_off(&mut self, chain: Chain) {
        self.seen.entry(chain).or_insert(Seen::at(0, Mac::NONE)).is_broken = true;
    }

    /// Takes note of what a row says of versions, where it may have been written since [`Verifier::row`], and is verified by the next run.
    pub fn learn(&mut self, row: &TrailRow) {
        let Ok(parsed) = serde_json::from_slice::<Line>(&row.record) else { return };
        if self.keys.get(&parsed.key).is_some_and(|key| key.verifies(&row.record, Mac(row.mac))) {
            self.versions.remember(&parsed);
        }
    }

    /// Whether a live version is what its last record says that was put there.
    #[must_use]
    pub fn knows(&self, version: &Version, blob: &[u8; 32]) -> bool {
        self.versions.knows(version, blob)
    }

    /// A version that is live. `before_the_trail`: it was made before there were records of writes.
    pub fn version(&mut self, version: &Version, blob: &[u8; 32], before_the_trail: bool) {
        if let Some(what) = self.versions.wrong(version, blob, before_the_trail) {
            let (tenant, name, number) = version;
            self.find(&format!("secret {tenant}/{name} version {number}"), what);
        }
    }

    /// A token whose row says that it is not revoked, by its public id.
    pub fn good_token(&mut self, id: &str) {
        if self.versions.was_revoked(id) {
            self.find(&format!("token {id}"), "was revoked, and is good again: an old row was put back");
        }
    }

    /// What only the whole shows: chains that end too early, are missing, or do not follow each other. Of nodes other than `own`, where
    /// that is known, files may lie elsewhere.
    #[must_use]
    pub fn finish(mut self, own: Option<NodeId>) -> Verified {
        let mut heads: Vec<ChainHead> = self.heads.values().cloned().collect();
        heads.sort_by_key(|head| (head.started_at, head.node, head.boot, head.kind));
        let mut elsewhere: BTreeMap<NodeId, u64> = BTreeMap::new();
        for head in heads {
            let place = format!("node {} start {} ({})", head.node, head.boot, Micros(head.started_at.0));
            let chain = (head.node, head.boot, head.kind);
            let (end, floor) = (self.least_end(&head), self.pruned.get(&chain).map_or(0, |(floor, _)| *floor));
            let what = match (self.seen.get(&chain), head.kind) {
                (None, _) if end <= floor => continue,
                (None, ChainKind::File) if self.is_elsewhere(head.node, own) => {
                    *elsewhere.entry(head.node).or_default() += 1;
                    continue;
                }
                (None, ChainKind::File) => format!(
                    "none of its {end} records is in the files that were given: the file is missing, or was moved away; give it with --file"
                ),
                (None, ChainKind::Table) => format!("all of its {end} records were removed from the database"),
                (Some(seen), _) if !seen.is_broken && seen.n < end => {
                    format!("its chain was cut: it has {} records, and had {end} at least", seen.n)
                }
                (Some(seen), _) if seen.is_elsewhere && self.holds(&chain) => {
                    "its chain is another than the one that was written: the other chain of this start says so"
                        .to_owned()
                }
                _ => continue,
            };
            self.find(&place, &what);
        }
        for (node, starts) in elsewhere {
            let what = format!("none of its files was given, of {starts} starts; give them with --file");
            self.verified.not_looked_at.push(Finding { place: format!("node {node}"), what });
        }
        let headless: BTreeSet<String> = self
            .told
            .iter()
            .filter(|(chain, _)| {
                !self.heads.contains_key(*chain) && !self.pruned.contains_key(*chain) && self.holds(chain)
            })
            .map(|((node, boot, _), _)| format!("node {node} start {boot}"))
            .collect();
        for place in headless {
            self.find(
                &place,
                "its chain and its head were removed from the database; its file says that they were there",
            );
        }
        let mut broken = self.torn_apart();
        broken.sort_by(|a, b| a.place.cmp(&b.place));
        self.verified.findings.extend(broken);
        self.verified
    }

    /// How many records a chain had at least.
    fn least_end(&self, head: &ChainHead) -> u64 {
        let chain = (head.node, head.boot, head.kind);
        let told = self.told.get(&chain).filter(|_| self.holds(&chain)).map_or(0, |(mark, _)| mark.n);
        head.end.position.max(told)
    }

    /// Whether what is told of a chain holds: what files say of a table that was put back since does not.
    fn holds(&self, chain: &Chain) -> bool {
        let Some((_, at)) = self.told.get(chain) else { return false };
        let until = self.accepted.and_then(|accepted| accepted.checked_add(SKEW).ok());
        chain.2 == ChainKind::File || until.is_none_or(|until| at.is_some_and(|at| at > until))
    }

    fn is_elsewhere(&self, node: NodeId, own: Option<NodeId>) -> bool {
        let is_given = self.seen.keys().any(|(of, _, kind)| *of == node && *kind == ChainKind::File);
        own.is_some_and(|own| own != node) && !is_given
    }

    /// Chains that do not follow the one that they say that they follow.
    fn torn_apart(&self) -> Vec<Finding> {
        let mut broken = Vec::new();
        for ((node, boot, kind), seen) in &self.seen {
            let Some((before, n, link)) = seen.previous else { continue };
            let chain = (*node, before, *kind);
            let found = self.seen.get(&chain).map(|seen| (seen.n, seen.link, seen.is_broken));
            let found = found.or_else(|| self.pruned.get(&chain).map(|(n, link)| (*n, *link, false)));
            let what = match found {
                Some((end, at, false)) if (end, at) != (n, link) => {
                    format!("follows record {n} of start {before}, whose chain ends at {end}")
                }
                // Files can lie elsewhere; the table is one.
                None if *kind == ChainKind::Table => {
                    format!("follows record {n} of start {before}, of which no record is there")
                }
                Some(_) | None => continue,
            };
            broken.push(Finding { place: format!("node {node} start {boot}"), what });
        }
        broken
    }

    fn find(&mut self, place: &str, what: &str) {
        self.verified.findings.push(Finding { place: place.to_owned(), what: what.to_owned() });
    }

    fn note(&mut self, place: &str, what: &str) {
        self.verified.notes.push(Finding { place: place.to_owned(), what: what.to_owned() });
    }
}

/// What is wrong with the next record of a chain.
fn step(seen: &Seen, key: &ChainKey, n: u64, (mac, link): (Mac, Mac)) -> Option<String> {
    let expected = seen.n + 1;
    if n > expected {
        let (last, upto) = (seen.n, n - 1);
        Some(format!("follows record {last} of its chain: records {expected} to {upto} were removed, or moved"))
    } else if n < expected {
        Some(format!("is record {n} of its chain, and stands behind record {}: it was moved or repeated", seen.n))
    } else if !key.links(seen.link, mac, link) {
        Some("is not linked to the record before it".to_owned())
    } else {
        None
    }
}

/// A key that was renewed may be in foreign hands: nothing is written under it any more. Records are told apart by their numbers, since
/// transactions come to their ends in another order.
fn is_under_old_key(seen: &mut Seen, parsed: &Line) -> bool {
    let (newest, first) = seen.newest_key;
    match parsed.key.cmp(&newest) {
        std::cmp::Ordering::Greater => seen.newest_key = (parsed.key, parsed.n),
        std::cmp::Ordering::Equal => seen.newest_key.1 = first.min(parsed.n),
        std::cmp::Ordering::Less => return parsed.n > first,
    }
    false
}

/// What a line of a file says, where it is as it was written.
pub(super) fn authentic_line(keys: &KeyRing, bytes: &[u8]) -> Option<(Line, Ids)> {
    let (record, parsed, ids) = split(bytes)?;
    let is_authentic = keys.get(&parsed.key)?.verifies(&record, ids.mac);
    is_authentic.then_some((parsed, ids))
}

/// What a row says, where it is as it was written.
pub(super) fn authentic_row(keys: &KeyRing, row: &TrailRow) -> Option<Line> {
    let parsed: Line = serde_json::from_slice(&row.record).ok()?;
    let is_authentic = keys.get(&parsed.key)?.verifies(&row.record, Mac(row.mac));
    (is_authentic && parsed.is_what_columns_say(row)).then_some(parsed)
}

/// A line as releases before chains wrote them. Who makes a record look like one breaks the chain that it was of.
fn is_of_before(bytes: &[u8]) -> bool {
    let parsed = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(bytes);
    parsed.is_ok_and(|line| line.contains_key("requestId") && !line.contains_key("mac") && !line.contains_key("n"))
}

/// A line of a file: the part that is authenticated, and what it says.
fn split(bytes: &[u8]) -> Option<(Vec<u8>, Line, Ids)> {
    let parsed = serde_json::from_slice::<Line>(bytes).ok()?;
    let ids = parsed.ids()?;
    let body = bytes.len().checked_sub(SUFFIX).and_then(|end| bytes.get(..end))?;
    Some(([body, b"}"].concat(), parsed, ids))
}

fn place_of(row: &TrailRow) -> String {
    format!("the database, node {} start {} record {}", row.node, row.boot, row.number)
}

#[cfg(test)]
mod tests;
