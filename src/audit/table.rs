//! The chain in the database. A record is inserted by the transaction of its change, unlinked; once it is committed it gets its place in
//! the chain, within a second. That second is the window in which a record that is removed leaves no trace.
//!
//! Where the chain ends is kept in memory: the database only repeats it. Whoever can write there could otherwise remove a record, take
//! the places of those behind it and set the head back, and the daemon would close the hole under its own key.

mod own;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::Deserialize;

use super::chain::{Origin, members};
use super::file::lock;
use super::record::{self, End, HEAD, Kind, RESUMED, Spot, Start};
use super::{Head, Outcome, Record};
use crate::crypto::{ChainKey, Mac};
use crate::model::{Micros, SecretName, Tenant};
use crate::store::trail::{ChainHead, ChainKind, Linked, TrailRow};
use crate::store::{Store, StoreError};

use own::{Own, Stand};

/// Records that are linked at a time.
const PAGE: u32 = 1000;

/// How the database's part of the trail was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chained {
    AsWritten,
    /// Somebody else changed it, or the database was put back to an earlier state: nothing was linked. [`super::Audit::insist`] goes
    /// on from what this process knows.
    Changed(String),
}

pub(super) struct Table {
    origin: Origin,
    /// By version; the newest is the one in use.
    keys: Mutex<BTreeMap<u64, Arc<ChainKey>>>,
    /// The number of the next record; 0 is the chain's beginning.
    next: AtomicU64,
    /// Whether the chain's beginning is committed.
    begun: AtomicBool,
    own: Mutex<Own>,
    /// One at a time gives records their places. Never held over what waits for the file.
    placing: tokio::sync::Mutex<()>,
    /// What was last entered of the file's chain.
    entered: Mutex<Option<Head>>,
}

/// A record's number in its start.
#[derive(Clone, Copy)]
enum Number {
    Beginning,
    Next,
}

/// What of a record says under which key it is.
#[derive(Deserialize)]
struct KeyOf {
    key: u64,
}

impl Table {
    pub(super) fn new(origin: Origin) -> Self {
        Self {
            origin,
            keys: Mutex::default(),
            next: AtomicU64::new(1),
            begun: AtomicBool::new(false),
            own: Mutex::default(),
            placing: tokio::sync::Mutex::default(),
            entered: Mutex::default(),
        }
    }

    pub(super) fn add_key(&self, key: Arc<ChainKey>) {
        lock(&self.keys).insert(key.version().get(), key);
    }

    pub(super) fn key_version(&self) -> Option<u64> {
        lock(&self.keys).last_key_value().map(|(version, _)| *version)
    }

    pub(super) fn keys(&self) -> BTreeMap<u64, Arc<ChainKey>> {
        lock(&self.keys).clone()
    }

    /// What is known of the database does not hold any more.
    pub(super) fn begin_again(&self) {
        self.begun.store(false, Ordering::Release);
        lock(&self.own).forget();
        *lock(&self.entered) = None;
    }

    pub(super) fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// What was found in the database that this process did not write; kept until it ends.
    pub(super) fn changed(&self) -> Option<String> {
        lock(&self.own).changed.clone()
    }

    /// Goes on from what this process knows, whatever the database says. Whether that is news.
    pub(super) fn insist(&self, what: String) -> bool {
        lock(&self.own).insist(what)
    }

    /// The record's row, authenticated, which gets its place later. `None` until the chain has begun.
    pub(super) fn row(&self, record: &Record) -> Option<TrailRow> {
        self.row_for_append(record).map(|row| self.waits(row))
    }

    /// The record's row, authenticated, for [`Table::append`], which gives it its place. It never waits for one: as many as there may be of
    /// these would push out those that do. `None` until the chain has begun.
    pub(super) fn row_for_append(&self, record: &Record) -> Option<TrailRow> {
        if !self.is_begun() {
            return None;
        }
        let mut line = Vec::with_capacity(512);
        record.write_line(&mut line);
        Some(TrailRow {
            identity: record.identity.clone(),
            tenant: record.tenant.as_ref().map(Tenant::to_string),
            name: record.name.as_ref().map(SecretName::to_string),
            version: record.version.map(crate::model::SecretVersion::get),
            blob_sha256: record.blob,
            outcome: record.outcome.as_str().to_owned(),
            ..self.blank(&line, record.at, record.action.as_str(), Number::Next)?
        })
    }

    /// A row of the daemon's own record of a place in a chain. `None` until the chain has begun.
    pub(super) fn spot_row(&self, spot: &Spot, action: &'static str, at: Micros) -> Option<TrailRow> {
        if !self.is_begun() {
            return None;
        }
        let mut line = Vec::new();
        spot.write_line(action, at, &mut line);
        self.blank(&line, at, action, Number::Next).map(|row| self.waits(row))
    }

    /// Only what went through here gets a place later.
    fn waits(&self, row: TrailRow) -> TrailRow {
        lock(&self.own).hand_out(row.number, Mac(row.mac));
        row
    }

    /// A record of this start under the newest key, by the daemon.
    fn blank(&self, line: &[u8], at: Micros, action: &str, number: Number) -> Option<TrailRow> {
        let Origin { node, boot } = self.origin;
        // A record of a higher number is under no older key.
        let keys = lock(&self.keys);
        let (_, key) = keys.last_key_value()?;
        let number = match number {
            Number::Beginning => 0,
            Number::Next => self.next.fetch_add(1, Ordering::Relaxed),
        };
        let mut record = line.strip_suffix(b"}\n")?.to_vec();
        record.extend_from_slice(&members(self.origin, key));
        record.extend_from_slice(number.to_string().as_bytes());
        record.push(b'}');
        let mac = key.mac(&record);
        drop(keys);
        Some(TrailRow {
            node,
            boot,
            number,
            at,
            identity: "daemon".to_owned(),
            action: action.to_owned(),
            tenant: None,
            name: None,
            version: None,
            blob_sha256: None,
            outcome: Outcome::Ok.as_str().to_owned(),
            record,
            mac: mac.0,
            place: None,
        })
    }

    /// Begins this start's chain after the node's one before, which is brought to its end first: no process of an earlier start lives.
    async fn begin(&self, store: &dyn Store, at: Micros) -> Result<(), StoreError> {
        let Origin { node, boot } = self.origin;
        self.end_earlier(store).await?;
        // An attempt whose end was not known may have come through.
        let first = store.trail(node, boot, None, 1).await?;
        if first.is_empty() {
            let start = lock(&self.own).start.clone();
            let row = match start {
                Some(row) => row,
                None => match self.first_row(store, at).await? {
                    Some(row) => row,
                    None => return Ok(()),
                },
            };
            // The same one again where this attempt's end is not known.
            lock(&self.own).start = Some(row.clone());
            store.insert(&[row]).await?;
        }
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    async fn first_row(&self, store: &dyn Store, at: Micros) -> Result<Option<TrailRow>, StoreError> {
        let node = self.origin.node;
        let chains = store.chains().await?;
        let before = chains.iter().rfind(|head| head.node == node && head.kind == ChainKind::Table);
        let end = |head: &ChainHead| End { boot: head.boot, n: head.end.position, link: Mac(head.end.link) };
        let mut line = Vec::new();
        Start { kind: Kind::Table, previous: before.map(end) }.write_line(at, &mut line);
        Ok(self.blank(&line, at, super::record::START, Number::Beginning).map(|row| self.waits(row)))
    }

    /// For [`Table::append`]: the row of the record that this table takes records again. `None` until the chain has begun.
    pub(super) fn resumed_row(&self, at: Micros) -> Option<TrailRow> {
        if !self.is_begun() {
            return None;
        }
        let mut line = Vec::new();
        record::write_resumed(at, &mut line);
        self.blank(&line, at, RESUMED, Number::Next)
    }

    /// Begins the chain where it has not begun, and gives committed records their places.
    pub(super) async fn link(&self, store: &dyn Store, at: Micros) -> Result<Chained, StoreError> {
        let _alone = self.placing.lock().await;
        if !self.is_begun() {
            self.begin(store, at).await?;
        }
        if !self.is_begun() {
            return Ok(Chained::AsWritten);
        }
        match self.link_own(store).await? {
            Chained::AsWritten => {
                let mut own = lock(&self.own);
                Ok(own.elsewhere.take().or_else(|| own.untold()).map_or(Chained::AsWritten, Chained::Changed))
            }
            changed @ Chained::Changed(_) => Ok(changed),
        }
    }

    /// Enters how far the file's chain has come.
    pub(super) async fn enter(&self, store: &dyn Store, file: Option<Head>) -> Result<(), StoreError> {
        if !self.is_begun() {
            return Ok(());
        }
        let Some(head) = file.filter(|head| *lock(&self.entered) != Some(*head)) else { return Ok(()) };
        let entry = ChainHead {
            node: self.origin.node,
            boot: self.origin.boot,
            kind: ChainKind::File,
            started_at: head.started_at,
            previous: head.previous.map(|end| (end.boot, end.link.0)),
            end: Linked { position: head.end.n, link: head.end.link.0 },
        };
        store.link(&[], &entry).await?;
        *lock(&self.entered) = Some(head);
        Ok(())
    }

    /// Where the chain ends, if it has grown by more than what was heard of the file since the file was told.
    pub(super) fn news(&self) -> Option<Spot> {
        let end = lock(&self.own).news()?;
        Some(Spot { kind: Kind::Table, of: None, position: end.position, link: Mac(end.link) })
    }

    pub(super) fn was_told(&self, spot: &Spot) {
        lock(&self.own).was_told(Linked { position: spot.position, link: spot.link.0 });
    }

    /// Inserts records that go with no change, with their places, and returns them.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where the database's end of the chain is not this process's; the next [`Table::link`] tells.
    pub(super) async fn append(&self, store: &dyn Store, mut rows: Vec<TrailRow>) -> Result<Vec<TrailRow>, StoreError> {
        let _alone = self.placing.lock().await;
        let known = lock(&self.own).certain_end();
        let (from, mut head) = match known {
            Some(head) => (head.end, head),
            None => self.end_in(store).await?,
        };
        for row in &mut rows {
            let key =
                self.key_of(row).ok_or_else(|| StoreError::Refused("no key authenticates a record".to_owned()))?;
            head.end = behind(&key, &head.end, row);
            row.place = Some(head.end);
        }
        lock(&self.own).attempt(&head, Vec::new());
        store.append(&rows, from, &head).await?;
        let mut own = lock(&self.own);
        own.settle(&head);
        own.grew();
        drop(own);
        Ok(rows)
    }

    /// Where the database's end of this start's chain is, and where records go on.
    async fn end_in(&self, store: &dyn Store) -> Result<(Linked, ChainHead), StoreError> {
        let chains = store.chains().await?;
        let Origin { node, boot } = self.origin;
        let found = chains.iter().find(|head| head.node == node && head.kind == ChainKind::Table && head.boot == boot);
        let mut own = lock(&self.own);
        match (own.stand(found), found) {
            (Stand::At(head), Some(found)) => Ok((found.end, head)),
            (Stand::Elsewhere(what), _) => {
                own.elsewhere = Some(what.clone());
                Err(StoreError::Refused(what))
            }
            (Stand::NotBegun | Stand::At(_), _) => {
                Err(StoreError::Refused("this start's chain has no end in the database yet".to_owned()))
            }
        }
    }

    /// Gives this start's records their places. One that had a place, or was not made here, gets none.
    async fn link_own(&self, store: &dyn Store) -> Result<Chained, StoreError> {
        let mut after = None;
        loop {
            let rows = store.unlinked(self.origin.node, after, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(Chained::AsWritten) };
            after = Some((last.boot, last.number));
            let is_full = rows.len() == PAGE as usize;
            let rows: Vec<TrailRow> = rows.into_iter().filter(|row| self.is_to_be_linked(row)).collect();
            if !rows.is_empty()
                && let changed @ Chained::Changed(_) = self.link_rows(store, &rows).await?
            {
                return Ok(changed);
            }
            if !is_full {
                return Ok(Chained::AsWritten);
            }
        }
    }

    fn is_to_be_linked(&self, row: &TrailRow) -> bool {
        let mut own = lock(&self.own);
        let is_ours = row.boot == self.origin.boot && (own.waits(row) || (own.adopts() && self.key_of(row).is_some()));
        if !is_ours {
            own.found(format!(
                "record {} of start {} has no place in its chain although it had one, or is none of this daemon's; it gets none",
                row.number, row.boot
            ));
        }
        is_ours
    }

    async fn link_rows(&self, store: &dyn Store, rows: &[TrailRow]) -> Result<Chained, StoreError> {
        let chains = store.chains().await?;
        let Origin { node, boot } = self.origin;
        let of_node = || chains.iter().filter(|head| head.node == node && head.kind == ChainKind::Table);
        let found = of_node().find(|head| head.boot == boot);
        let mut head = match lock(&self.own).stand(found) {
            Stand::At(head) => head,
            Stand::NotBegun => new_head(rows.first(), of_node().rfind(|head| head.boot != boot), self.origin),
            Stand::Elsewhere(what) => return Ok(Chained::Changed(what)),
        };
        let mut places = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(key) = self.key_of(row) else { break };
            head.end = behind(&key, &head.end, row);
            places.push((row.number, head.end));
        }
        if places.is_empty() {
            return Ok(Chained::AsWritten);
        }
        let numbers: Vec<u64> = places.iter().map(|(number, _)| *number).collect();
        lock(&self.own).attempt(&head, numbers);
        store.link(&places, &head).await?;
        let mut own = lock(&self.own);
        own.settle(&head);
        if rows.iter().any(|row| row.action != HEAD) {
            own.grew();
        }
        drop(own);
        Ok(Chained::AsWritten)
    }

    /// Brings the chains of earlier starts to their ends: what a crash left without its place.
    async fn end_earlier(&self, store: &dyn Store) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let rows = store.unlinked(self.origin.node, after, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some((last.boot, last.number));
            for of_boot in rows.chunk_by(|a, b| a.boot == b.boot) {
                if of_boot.first().is_some_and(|row| row.boot != self.origin.boot) {
                    self.link_earlier(store, of_boot).await?;
                }
            }
            if rows.len() < PAGE as usize {
                return Ok(());
            }
        }
    }

    async fn link_earlier(&self, store: &dyn Store, rows: &[TrailRow]) -> Result<(), StoreError> {
        let Some(first) = rows.first() else { return Ok(()) };
        let chains = store.chains().await?;
        let mut of_node = chains.iter().filter(|head| head.node == first.node && head.kind == ChainKind::Table);
        let known = of_node.clone().find(|head| head.boot == first.boot).cloned();
        let origin = Origin { node: first.node, boot: first.boot };
        let mut head =
            known.unwrap_or_else(|| new_head(Some(first), of_node.rfind(|head| head.boot != first.boot), origin));
        let mut places = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(key) = self.key_of(row) else {
                // A chain that vouches for a forgery would be worse than one that ends: `audit verify` names the record.
                tracing::error!(boot = %row.boot, number = row.number, "an audit record in the database does not verify, and is not linked");
                break;
            };
            head.end = behind(&key, &head.end, row);
            places.push((row.number, head.end));
        }
        if places.is_empty() { Ok(()) } else { store.link(&places, &head).await }
    }

    /// The key that authenticates the row; `None` where none does.
    fn key_of(&self, row: &TrailRow) -> Option<Arc<ChainKey>> {
        let version = serde_json::from_slice::<KeyOf>(&row.record).ok()?.key;
        let key = lock(&self.keys).get(&version).cloned()?;
        key.verifies(&row.record, Mac(row.mac)).then_some(key)
    }
}

/// A chain that has no record yet, and follows the node's one before.
fn new_head(first: Option<&TrailRow>, before: Option<&ChainHead>, Origin { node, boot }: Origin) -> ChainHead {
    let previous = before.map(|head| (head.boot, head.end.link));
    ChainHead {
        node,
        boot,
        kind: ChainKind::Table,
        started_at: first.map_or(Micros(0), |row| row.at),
        previous,
        end: Linked { position: 0, link: previous.map_or(Mac::NONE.0, |(_, link)| link) },
    }
}

/// The place after this one.
fn behind(key: &ChainKey, end: &Linked, row: &TrailRow) -> Linked {
    Linked { position: end.position + 1, link: key.link(Mac(end.link), Mac(row.mac)).0 }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::crypto::SecretValue;
    use crate::model::{Action, BootId, NodeId, SecretVersion};

    /// A record of a change that is pushed out would be called somebody else's, and get no place.
    #[test]
    fn records_that_are_inserted_with_their_places_push_none_out_that_waits_for_one() {
        let table = Table::new(Origin { node: NodeId::new([1; 16]), boot: BootId::new([2; 16]) });
        let value = SecretValue::new(Zeroizing::new(vec![7; 32]));
        table.add_key(Arc::new(ChainKey::of(SecretVersion::new(1).unwrap(), &value).unwrap()));
        table.begun.store(true, Ordering::Release);
        let record = Record {
            at: Micros(0),
            request_id: "r".to_owned(),
            identity: "uid:0".to_owned(),
            pid: None,
            address: None,
            action: Action::Get,
            tenant: None,
            name: None,
            version: None,
            token: None,
            blob: None,
            replaces: None,
            outcome: Outcome::Ok,
            count: 1,
        };
        let change = table.row(&record).unwrap();
        for _ in 0..own::MOST_WAITING {
            table.row_for_append(&record).unwrap();
        }
        assert!(lock(&table.own).waits(&change));
    }
}
