//! Rows of the audit trail.

use sqlx::FromRow;

use super::super::StoreError;
use super::super::trail::{ChainHead, ChainKind, Linked, TrailRow};
use crate::model::{BootId, Micros, NodeId};

#[derive(FromRow)]
pub(in crate::store) struct TrailColumns {
    node_id: String,
    boot_id: String,
    record_no: i64,
    at: i64,
    identity: String,
    action: String,
    tenant: Option<String>,
    name: Option<String>,
    version: Option<i64>,
    blob_sha256: Option<Vec<u8>>,
    outcome: String,
    record: Vec<u8>,
    mac: Vec<u8>,
    position: Option<i64>,
    link: Option<Vec<u8>>,
}

impl TrailColumns {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn row(self) -> Result<TrailRow, StoreError> {
        let key = format!("{}/{}/{}", self.node_id, self.boot_id, self.record_no);
        let corrupt = |what: &str| StoreError::Corrupt { table: "audit", key: key.clone(), what: what.to_owned() };
        let number = |value: i64, what: &str| u64::try_from(value).map_err(|_| corrupt(what));
        let digest = |value: Vec<u8>, what: &str| <[u8; 32]>::try_from(value).map_err(|_| corrupt(what));
        let place = match (self.position, self.link) {
            (Some(position), Some(link)) => Some(Linked {
                position: number(position, "position is negative")?,
                link: digest(link, "link has not 32 bytes")?,
            }),
            (None, None) => None,
            _ => return Err(corrupt("position and link are not both there")),
        };
        let version = self.version.map(|version| number(version, "version is negative")).transpose()?;
        Ok(TrailRow {
            node: NodeId::from_hex(&self.node_id).ok_or_else(|| corrupt("node_id is none"))?,
            boot: BootId::from_hex(&self.boot_id).ok_or_else(|| corrupt("boot_id is none"))?,
            number: number(self.record_no, "record_no is negative")?,
            at: Micros(self.at),
            identity: self.identity,
            action: self.action,
            tenant: self.tenant,
            name: self.name,
            version,
            blob_sha256: self.blob_sha256.map(|sha| digest(sha, "blob_sha256 has not 32 bytes")).transpose()?,
            outcome: self.outcome,
            record: self.record,
            mac: digest(self.mac, "mac has not 32 bytes")?,
            place,
        })
    }
}

#[derive(FromRow)]
pub(in crate::store) struct ChainColumns {
    node_id: String,
    boot_id: String,
    kind: String,
    started_at: i64,
    previous_boot_id: Option<String>,
    previous_link: Option<Vec<u8>>,
    position: i64,
    link: Vec<u8>,
}

impl ChainColumns {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn head(self) -> Result<ChainHead, StoreError> {
        let key = format!("{}/{}/{}", self.node_id, self.boot_id, self.kind);
        let corrupt =
            |what: &str| StoreError::Corrupt { table: "audit_chains", key: key.clone(), what: what.to_owned() };
        let digest = |value: Vec<u8>| <[u8; 32]>::try_from(value).map_err(|_| corrupt("a link has not 32 bytes"));
        let boot = |text: &str| BootId::from_hex(text).ok_or_else(|| corrupt("a boot_id is none"));
        let previous = match (self.previous_boot_id, self.previous_link) {
            (Some(previous), Some(link)) => Some((boot(&previous)?, digest(link)?)),
            (None, None) => None,
            _ => return Err(corrupt("the previous boot and link are not both there")),
        };
        Ok(ChainHead {
            node: NodeId::from_hex(&self.node_id).ok_or_else(|| corrupt("node_id is none"))?,
            boot: boot(&self.boot_id)?,
            kind: match self.kind.as_str() {
                "file" => ChainKind::File,
                "table" => ChainKind::Table,
                _ => return Err(corrupt("kind is none")),
            },
            started_at: Micros(self.started_at),
            previous,
            end: Linked {
                position: u64::try_from(self.position).map_err(|_| corrupt("position is negative"))?,
                link: digest(self.link)?,
            },
        })
    }
}

/// A start that has records.
#[derive(FromRow)]
pub(in crate::store) struct StartColumns {
    node_id: String,
    boot_id: String,
}

impl StartColumns {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn start(self) -> Result<(NodeId, BootId), StoreError> {
        let ids = NodeId::from_hex(&self.node_id).zip(BootId::from_hex(&self.boot_id));
        ids.ok_or_else(|| StoreError::Corrupt {
            table: "audit",
            key: format!("{}/{}", self.node_id, self.boot_id),
            what: "its node or its boot is none".to_owned(),
        })
    }
}

/// A count as its column holds it.
///
/// # Errors
/// [`StoreError::Refused`] for one that no column holds.
pub(in crate::store) fn trail_column(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Refused(format!("{number} does not fit")))
}

/// After which start and record to go on, as the columns compare them; nothing is before the empty text.
///
/// # Errors
/// [`StoreError::Refused`] for a number that no column holds.
pub(in crate::store) fn keyset(after: Option<(BootId, u64)>) -> Result<(String, i64), StoreError> {
    after.map_or(Ok((String::new(), -1)), |(boot, number)| Ok((boot.to_string(), trail_column(number)?)))
}
