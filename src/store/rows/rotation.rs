//! Rows that a rotation reads beyond those of every day: nodes, escrows, DEKs of many tenants, versions as they are sealed.

use std::time::Duration;

use sqlx::FromRow;

use super::{DekColumns, RowName, read_kid, secret_version};
use crate::model::{
    BootId, CopyLoss, DekRecord, EscrowKind, EscrowRecord, Kid, MasterKeyState, Micros, NodeId, NodeRecord, SecretName,
    Tenant, Unread,
};
use crate::store::StoreError;
use crate::store::deks::SealedVersion;
use crate::store::guards::is_live;

/// A row of `nodes`, with the database's time of the statement as `now`.
#[derive(FromRow)]
pub(in crate::store) struct NodeRow {
    node_id: String,
    boot_id: String,
    durable_kids: String,
    epoch: i64,
    seen_at: i64,
    now: i64,
}

impl NodeRow {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn record(self) -> Result<NodeRecord, StoreError> {
        let row = RowName::Node(&self.node_id);
        Ok(NodeRecord {
            node: NodeId::from_hex(&self.node_id).ok_or_else(|| row.corrupt("node_id is not a node's id"))?,
            boot: BootId::from_hex(&self.boot_id).ok_or_else(|| row.corrupt("boot_id is not a boot's id"))?,
            durable_kids: durable_kids(&self.durable_kids)
                .ok_or_else(|| row.corrupt("durable_kids is not a list of kids"))?,
            epoch: u64::try_from(self.epoch).map_err(|_| row.corrupt("epoch is negative"))?,
            seen_at: Micros(self.seen_at),
            live: is_live(Micros(self.seen_at), Micros(self.now)),
        })
    }
}

/// A node's kids as its column holds them: in hex, sorted, each once, a space between two.
pub(in crate::store) fn durable_kids_column(kids: &[Kid]) -> String {
    let mut kids = kids.to_vec();
    kids.sort_unstable();
    kids.dedup();
    kids.iter().map(Kid::to_string).collect::<Vec<_>>().join(" ")
}

pub(super) fn durable_kids(text: &str) -> Option<Vec<Kid>> {
    if text.is_empty() { Some(Vec::new()) } else { text.split(' ').map(Kid::from_hex).collect() }
}

/// A duration as it is added to a column of times; one that does not fit is the longest that does.
pub(in crate::store) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Names of KMS key versions as their column holds them; a name has no space.
pub(in crate::store) fn kms_versions_column(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| names.join(" "))
}

/// A row of `escrows`.
#[derive(FromRow)]
pub(in crate::store) struct EscrowRow {
    id: String,
    kid: Vec<u8>,
    target: String,
    locator: Option<String>,
    content_sha256: Option<Vec<u8>>,
    kms_versions: Option<String>,
    kind: String,
    started_at: i64,
    confirmed_at: Option<i64>,
    read_back_at: Option<i64>,
    looked_at: Option<i64>,
    lost_as: Option<String>,
    unread_at: Option<i64>,
    unread_why: Option<String>,
}

impl EscrowRow {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn record(self) -> Result<EscrowRecord, StoreError> {
        let row = RowName::Escrow(&self.id);
        let digest = self.content_sha256.as_deref().map(<[u8; 32]>::try_from).transpose();
        Ok(EscrowRecord {
            kid: read_kid(&self.kid, &row, "kid")?,
            content_sha256: digest.map_err(|_| row.corrupt("content_sha256 is not 32 bytes"))?,
            kms_versions: self.kms_versions.iter().flat_map(|names| names.split(' ')).map(str::to_owned).collect(),
            kind: EscrowKind::parse(&self.kind).map_err(|e| row.unknown("kind", e))?,
            started_at: Micros(self.started_at),
            confirmed_at: self.confirmed_at.map(Micros),
            read_back_at: self.read_back_at.map(Micros),
            looked_at: self.looked_at.map(Micros),
            lost: self.lost_as.as_deref().map(CopyLoss::parse).transpose().map_err(|e| row.unknown("lost_as", e))?,
            unread: match (self.unread_at, self.unread_why) {
                (Some(at), Some(why)) => Some(Unread { at: Micros(at), why }),
                (None, None) => None,
                _ => return Err(row.corrupt("one of unread_at and unread_why is missing")),
            },
            target: self.target,
            locator: self.locator,
            id: self.id,
        })
    }
}

/// A row of `deks` that says itself whose it is, in a column `d_tenant`.
#[derive(FromRow)]
pub(in crate::store) struct DekRow {
    d_tenant: String,
    #[sqlx(flatten)]
    dek: DekColumns,
}

impl DekRow {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn record(self) -> Result<DekRecord, StoreError> {
        let row = RowName::Tenant(&self.d_tenant);
        let tenant = tenant(&self.d_tenant)?;
        self.dek.record(&tenant)?.ok_or_else(|| row.corrupt("a DEK of it has no dek_version"))
    }
}

/// Columns of `secret_versions` that a re-encryption reads; the rows are live ones of one tenant.
#[derive(FromRow)]
pub(in crate::store) struct SealedVersionRow {
    name: String,
    version: i64,
    ciphertext: Option<Vec<u8>>,
}

impl SealedVersionRow {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn record(self, tenant: &Tenant) -> Result<SealedVersion, StoreError> {
        let row = RowName::SealedVersion(tenant, &self.name, self.version);
        Ok(SealedVersion {
            name: SecretName::parse(&self.name).map_err(|e| row.corrupt(e))?,
            version: secret_version(Some(self.version), &row, "version")?,
            ciphertext: row.need(self.ciphertext, "ciphertext")?,
        })
    }
}

/// The state of this master key's row, from its column alone.
///
/// # Errors
/// [`StoreError::Corrupt`]
pub(in crate::store) fn master_key_state(kid: Kid, text: &str) -> Result<MasterKeyState, StoreError> {
    MasterKeyState::parse(text).map_err(|e| RowName::MasterKey(kid.as_bytes()).unknown("state", e))
}

/// A tenant's name, from its column alone.
///
/// # Errors
/// [`StoreError::Corrupt`]
pub(in crate::store) fn tenant(text: &str) -> Result<Tenant, StoreError> {
    Tenant::from_row(text).map_err(|e| RowName::Tenant(text).corrupt(e))
}

/// A retired key's row that does not say since when.
pub(in crate::store) fn retired_without_time(kid: Kid) -> StoreError {
    RowName::MasterKey(kid.as_bytes()).corrupt("retired_at is missing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_kids_come_back_sorted_and_once() {
        let (one, two) = (Kid::new([1; 16]), Kid::new([2; 16]));
        assert_eq!(durable_kids(&durable_kids_column(&[two, one, two])), Some(vec![one, two]));
        assert_eq!(durable_kids(&durable_kids_column(&[])), Some(Vec::new()));
        for wrong in [" ", "01", &format!("{one}  {two}"), &format!("{one},{two}")] {
            assert_eq!(durable_kids(wrong), None, "{wrong}");
        }
    }
}
