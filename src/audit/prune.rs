//! Retention: what is older than an operator wants to keep is removed, and a record says up to where. Nothing is removed that is not as
//! it was written: otherwise whoever changed it would only have to wait for the evidence to go.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use super::chain::Origin;
use super::record::{Kind, PRUNE, Spot};
use super::verify::{authentic_line, authentic_row};
use super::{Audit, AuditError, files_beside};
use crate::crypto::{ChainKey, Mac};
use crate::model::Micros;
use crate::store::trail::{ChainHead, ChainKind, TrailRow};
use crate::store::{Store, StoreError};

/// Rows that are read at a time.
const PAGE: u32 = 500;
/// Rows that are removed by one transaction, and that one record says are gone: a day of reads may be millions, and no statement may take
/// that long.
const MOST: u64 = 50_000;

/// Why not all that is old was removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("{0}")]
    File(#[from] io::Error),
    #[error("{0} is not as it was written: it stays, and what is behind it; `containarium audit verify` says more")]
    Changed(String),
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    pub rows: u64,
    pub files: u64,
}

pub(super) type KeyRing = BTreeMap<u64, Arc<ChainKey>>;

impl Audit {
    /// Removes rows and put-aside files whose records are all from before this time, and records up to where. The file in use is put
    /// aside where it began before `aside`.
    ///
    /// # Errors
    /// [`PruneError`]: what was removed until then is recorded.
    pub async fn prune(
        &self,
        store: &dyn Store,
        (at, before, aside): (Micros, Micros, Micros),
    ) -> Result<Pruned, PruneError> {
        let mut pruned = Pruned::default();
        if self.lacks_key() || !self.takes_changes() {
            return Ok(pruned);
        }
        self.file.put_aside_begun_before(aside).await?;
        let keys = Arc::new(self.table.keys());
        // What is not as it was written keeps itself, and nothing beside it.
        let mut failed = None;
        match self.prune_files(&keys, at, before).await {
            Ok(files) => pruned.files = files,
            Err(error) => failed = Some(error),
        }
        let known = floors(store, &keys).await?;
        for head in store.chains().await?.iter().filter(|head| head.kind == ChainKind::Table) {
            let origin = Origin { node: head.node, boot: head.boot };
            let chain = (origin.node.to_string(), origin.boot.to_string());
            match self.prune_steps(store, &keys, head, known.get(&chain).copied(), (at, before)).await {
                Ok(rows) => pruned.rows += rows,
                Err(PruneError::Changed(what)) => {
                    // Another node may have removed what was being read.
                    if floors(store, &keys).await?.get(&chain) == known.get(&chain) {
                        failed.get_or_insert(PruneError::Changed(what));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        match failed {
            None => Ok(pruned),
            Some(error) => Err(error),
        }
    }

    async fn prune_steps(
        &self,
        store: &dyn Store,
        keys: &KeyRing,
        head: &ChainHead,
        mut floor: Option<(u64, Mac)>,
        (at, before): (Micros, Micros),
    ) -> Result<u64, PruneError> {
        let mut rows = 0;
        while let Some(end) = old_end(store, keys, head, floor, before).await? {
            let Some(removed) = self.prune_chain(store, head, end, at).await? else { break };
            rows += removed;
            floor = Some(end);
        }
        Ok(rows)
    }

    async fn prune_chain(
        &self,
        store: &dyn Store,
        head: &ChainHead,
        (position, link): (u64, Mac),
        at: Micros,
    ) -> Result<Option<u64>, PruneError> {
        let _alone = self.linking.lock().await;
        let of = Some(Origin { node: head.node, boot: head.boot });
        let spot = Spot { kind: Kind::Table, of, position, link };
        let Some(row) = self.table.spot_row(&spot, PRUNE, at) else { return Ok(None) };
        Ok(Some(store.prune((head.node, head.boot), position, &row).await?))
    }

    async fn prune_files(&self, keys: &Arc<KeyRing>, at: Micros, before: Micros) -> Result<u64, PruneError> {
        let mut removed = 0;
        let mut known = BTreeMap::new();
        for path in files_beside(&self.path)?.into_iter().filter(|path| *path != self.path) {
            let (keys, read, before_it) = (Arc::clone(keys), path.clone(), known.clone());
            let ends = tokio::task::spawn_blocking(move || ends_of(&read, &keys, before, before_it));
            let Some(ends) = ends.await.map_err(io::Error::other)?? else { break };
            known.extend(ends.iter().filter_map(|spot| {
                let Origin { node, boot } = spot.of?;
                Some(((node.to_string(), boot.to_string()), (spot.position, spot.link)))
            }));
            let mut lines = Vec::new();
            for spot in &ends {
                spot.write_line(PRUNE, at, &mut lines);
            }
            // First said, then done: a file that is there although it may be absent is no finding.
            self.file.append(at, lines, ends.len() as u64).await?;
            std::fs::remove_file(&path)?;
            removed += 1;
        }
        Ok(removed)
    }
}

/// Up to where chains may be absent, by node and boot.
async fn floors(store: &dyn Store, keys: &KeyRing) -> Result<BTreeMap<(String, String), (u64, Mac)>, StoreError> {
    let mut floors = BTreeMap::new();
    for row in store.trail_of(PRUNE).await? {
        let Some(mark) = authentic_row(keys, &row).and_then(|parsed| parsed.mark()) else { continue };
        let (node, boot, kind) = mark.chain;
        if kind == ChainKind::Table {
            let floor = floors.entry((node.to_string(), boot.to_string())).or_insert((mark.n, mark.link));
            if mark.n > floor.0 {
                *floor = (mark.n, mark.link);
            }
        }
    }
    Ok(floors)
}

/// The last record of a chain that is old, as all before it are, and no further than [`MOST`] behind the floor; `None` where none is.
async fn old_end(
    store: &dyn Store,
    keys: &KeyRing,
    head: &ChainHead,
    floor: Option<(u64, Mac)>,
    before: Micros,
) -> Result<Option<(u64, Mac)>, PruneError> {
    let mut end = floor;
    let most = floor.map_or(0, |(n, _)| n) + MOST;
    loop {
        let rows = store.linked(head.node, head.boot, end.map_or(0, |(n, _)| n), PAGE).await?;
        for row in &rows {
            if row.at >= before || end.is_some_and(|(n, _)| n >= most) {
                return Ok(end.filter(|_| end != floor));
            }
            end = Some(next(keys, end, row, before)?);
        }
        if rows.len() < PAGE as usize {
            return Ok(end.filter(|_| end != floor));
        }
    }
}

/// The place of a row that is old and follows this one.
fn next(keys: &KeyRing, end: Option<(u64, Mac)>, row: &TrailRow, before: Micros) -> Result<(u64, Mac), PruneError> {
    let changed = || PruneError::Changed(format!("record {} of start {} of node {}", row.number, row.boot, row.node));
    let parsed = authentic_row(keys, row).ok_or_else(changed)?;
    let (n, link) = end.unwrap_or((0, parsed.previous().map_or(Mac::NONE, |(_, _, link)| link)));
    let place = row.place.ok_or_else(changed)?;
    let follows = keys.get(&parsed.key).is_some_and(|key| key.links(link, Mac(row.mac), Mac(place.link)));
    let is_old = parsed.time().is_some_and(|time| time.as_microsecond() < before.0);
    if place.position != n + 1 || !follows || !is_old {
        return Err(changed());
    }
    Ok((place.position, Mac(place.link)))
}

/// Ends of chains, by node and boot.
type Ends = BTreeMap<(String, String), (u64, Mac)>;

/// The last record of each chain in a file; `None` where one is not old. What follows a record that is known, from this file or one before
/// it, has to be the next one: lines that were cut out would go unseen otherwise, with the file.
fn ends_of(path: &Path, keys: &KeyRing, before: Micros, mut known: Ends) -> Result<Option<Vec<Spot>>, PruneError> {
    let changed = |number: usize| PruneError::Changed(format!("{} line {number}", path.display()));
    let mut ends: Vec<Spot> = Vec::new();
    for (at, line) in BufReader::new(File::open(path)?).split(b'\n').enumerate() {
        let (parsed, ids) = authentic_line(keys, &line?).ok_or_else(|| changed(at + 1))?;
        if parsed.time().is_none_or(|time| time.as_microsecond() >= before.0) {
            return Ok(None);
        }
        let of = Origin { node: ids.node, boot: ids.boot };
        let chain = (of.node.to_string(), of.boot.to_string());
        let follows = known.get(&chain).is_none_or(|(n, link)| {
            parsed.n == n + 1 && keys.get(&parsed.key).is_some_and(|key| key.links(*link, ids.mac, ids.link))
        });
        if !follows {
            return Err(changed(at + 1));
        }
        known.insert(chain, (parsed.n, ids.link));
        let spot = Spot { kind: Kind::File, of: Some(of), position: parsed.n, link: ids.link };
        match ends.last_mut() {
            Some(last) if last.of == Some(of) => *last = spot,
            _ => ends.push(spot),
        }
    }
    Ok(Some(ends))
}
