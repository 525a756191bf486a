//! The chain in the database. A record is inserted by the transaction of its change, unlinked; once it is committed it gets its place in
//! the chain, within a second. That second is the window in which a record that is removed leaves no trace.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::Deserialize;

use super::chain::{Origin, members};
use super::file::lock;
use super::record::{End, Kind, Start};
use super::{Head, Record};
use crate::crypto::{ChainKey, Mac};
use crate::model::{Micros, SecretName, Tenant};
use crate::store::trail::{ChainHead, ChainKind, Linked, TrailRow};
use crate::store::{Store, StoreError};

/// Records that are linked at a time.
const PAGE: u32 = 1000;

pub(super) struct Table {
    origin: Origin,
    /// By version; the newest is the one in use.
    keys: Mutex<BTreeMap<u64, Arc<ChainKey>>>,
    /// The number of the next record; 0 is the chain's beginning.
    next: AtomicU64,
    /// Whether the chain's beginning is committed.
    begun: AtomicBool,
    /// What was last entered of the file's chain.
    entered: Mutex<Option<Head>>,
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
            entered: Mutex::default(),
        }
    }

    pub(super) fn add_key(&self, key: Arc<ChainKey>) {
        lock(&self.keys).insert(key.version().get(), key);
    }

    /// What is known of the database does not hold any more.
    pub(super) fn begin_again(&self) {
        self.begun.store(false, Ordering::Release);
        *lock(&self.entered) = None;
    }

    pub(super) fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// The record's row, authenticated, not linked. `None` until the chain has begun.
    pub(super) fn row(&self, record: &Record) -> Option<TrailRow> {
        if !self.is_begun() {
            return None;
        }
        let mut line = Vec::with_capacity(512);
        record.write_line(&mut line);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (record_bytes, mac) = self.authenticated(&line, number)?;
        Some(TrailRow {
            node: self.origin.node,
            boot: self.origin.boot,
            number,
            at: record.at,
            identity: record.identity.clone(),
            action: record.action.as_str().to_owned(),
            tenant: record.tenant.as_ref().map(Tenant::to_string),
            name: record.name.as_ref().map(SecretName::to_string),
            version: record.version.map(crate::model::SecretVersion::get),
            blob_sha256: record.blob,
            outcome: record.outcome.as_str().to_owned(),
            record: record_bytes,
            mac: mac.0,
            place: None,
        })
    }

    fn authenticated(&self, line: &[u8], number: u64) -> Option<(Vec<u8>, Mac)> {
        let (_, key) = lock(&self.keys).last_key_value().map(|(version, key)| (*version, Arc::clone(key)))?;
        let mut record = line.strip_suffix(b"}\n")?.to_vec();
        record.extend_from_slice(&members(self.origin, &key));
        record.extend_from_slice(number.to_string().as_bytes());
        record.push(b'}');
        let mac = key.mac(&record);
        Some((record, mac))
    }

    /// Begins this start's chain after the node's one before, which is brought to its end first: no process of an earlier start lives.
    pub(super) async fn begin(&self, store: &dyn Store, at: Micros) -> Result<(), StoreError> {
        let Origin { node, boot } = self.origin;
        // An attempt whose end was not known may have come through.
        let first = store.trail(node, boot, None, 1).await?;
        if first.is_empty() {
            while self.link_page(store).await? {}
            let chains = store.chains().await?;
            let before = chains.iter().rfind(|head| head.node == node && head.kind == ChainKind::Table);
            let end = |head: &ChainHead| End { boot: head.boot, n: head.end.position, link: Mac(head.end.link) };
            let mut line = Vec::new();
            Start { kind: Kind::Table, previous: before.map(end) }.write_line(at, &mut line);
            let Some((record, mac)) = self.authenticated(&line, 0) else { return Ok(()) };
            let row = TrailRow {
                node,
                boot,
                number: 0,
                at,
                identity: "daemon".to_owned(),
                action: super::record::START.to_owned(),
                tenant: None,
                name: None,
                version: None,
                blob_sha256: None,
                outcome: super::Outcome::Ok.as_str().to_owned(),
                record,
                mac: mac.0,
                place: None,
            };
            store.insert(&[row]).await?;
        }
        self.begun.store(true, Ordering::Release);
        Ok(())
    }

    /// Gives committed records their places, and enters how far the chains have come: this one, and the file's.
    pub(super) async fn link(&self, store: &dyn Store, file: Option<Head>) -> Result<(), StoreError> {
        if !self.is_begun() {
            return Ok(());
        }
        while self.link_page(store).await? {}
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

    /// Whether there may be more.
    async fn link_page(&self, store: &dyn Store) -> Result<bool, StoreError> {
        let rows = store.unlinked(self.origin.node, PAGE).await?;
        if rows.is_empty() {
            return Ok(false);
        }
        let chains = store.chains().await?;
        let is_full = rows.len() == PAGE as usize;
        let mut any = false;
        for of_boot in rows.chunk_by(|a, b| a.boot == b.boot) {
            any |= self.link_boot(store, &chains, of_boot).await?;
        }
        Ok(is_full && any)
    }

    async fn link_boot(&self, store: &dyn Store, chains: &[ChainHead], rows: &[TrailRow]) -> Result<bool, StoreError> {
        let Some(first) = rows.first() else { return Ok(false) };
        let mut of_node = chains.iter().filter(|head| head.node == first.node && head.kind == ChainKind::Table);
        let known = of_node.clone().find(|head| head.boot == first.boot).cloned();
        let mut head = known.unwrap_or_else(|| {
            let previous = of_node.rfind(|head| head.boot != first.boot).map(|head| (head.boot, head.end.link));
            ChainHead {
                node: first.node,
                boot: first.boot,
                kind: ChainKind::Table,
                started_at: first.at,
                previous,
                end: Linked { position: 0, link: previous.map_or(Mac::NONE.0, |(_, link)| link) },
            }
        });
        let mut places = Vec::with_capacity(rows.len());
        for row in rows {
            let version = serde_json::from_slice::<KeyOf>(&row.record).ok().map(|of| of.key);
            let key = version.and_then(|version| lock(&self.keys).get(&version).cloned());
            let Some(key) = key.filter(|key| key.verifies(&row.record, Mac(row.mac))) else {
                // A chain that vouches for a forgery would be worse than one that ends: `audit verify` names the record.
                tracing::error!(boot = %row.boot, number = row.number, "an audit record in the database does not verify, and is not linked");
                break;
            };
            head.end.link = key.link(Mac(head.end.link), Mac(row.mac)).0;
            head.end.position += 1;
            places.push((row.number, head.end));
        }
        if places.is_empty() {
            return Ok(false);
        }
        store.link(&places, &head).await?;
        Ok(true)
    }
}
