//! The part of the audit trail that lies in the database: the record of each change, inserted in the change's own transaction, and how
//! far each chain has come.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Store, StoreError};
use crate::model::{BootId, Micros, NodeId, SecretName, SecretRecord, SecretVersion, Tenant, TokenRecord};

/// A record, as its row holds it. What is beside `record` is there to be searched by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrailRow {
    pub node: NodeId,
    pub boot: BootId,
    /// Counts the records of a start of a node; one whose transaction was rolled back leaves a hole.
    pub number: u64,
    pub at: Micros,
    pub identity: String,
    pub action: String,
    pub tenant: Option<String>,
    pub name: Option<String>,
    pub version: Option<u64>,
    pub blob_sha256: Option<[u8; 32]>,
    pub outcome: String,
    pub record: Vec<u8>,
    pub mac: [u8; 32],
    /// Where it stands in its chain; absent until the chain has reached it.
    pub place: Option<Linked>,
}

/// A place in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linked {
    pub position: u64,
    pub link: [u8; 32],
}

/// What a change touched; each has a record of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    Version(TouchedVersion),
    /// By its public id.
    Token(String),
}

/// A version of a secret that a change touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TouchedVersion {
    pub tenant: Tenant,
    pub name: SecretName,
    pub version: SecretVersion,
    /// The ciphertext that the change put there; absent where it put none.
    pub ciphertext: Option<Vec<u8>>,
    /// The ciphertext that it replaced.
    pub replaced: Option<Vec<u8>>,
}

impl Touched {
    pub(super) fn version(secret: &SecretRecord, version: SecretVersion, ciphertext: Option<Vec<u8>>) -> Self {
        let (tenant, name) = (secret.tenant.clone(), secret.name.clone());
        Self::Version(TouchedVersion { tenant, name, version, ciphertext, replaced: None })
    }

    pub(super) fn tokens(tokens: &[TokenRecord]) -> Vec<Self> {
        tokens.iter().map(|token| Self::Token(token.id.clone())).collect()
    }
}

/// Writes the records of changes inside their transactions: CPU work only.
pub trait Scribe: Send + Sync {
    /// The records of one transaction that changed something. It may be asked again, where the transaction is tried again.
    fn records(&self, touched: &[Touched]) -> Vec<TrailRow>;

    /// The transaction was committed, with its records.
    fn committed(&self);
}

/// Why records are not put behind a head.
pub(super) fn head_is_elsewhere() -> StoreError {
    StoreError::Refused("the head of this node's audit chain in the database is not where the node left it".to_owned())
}

/// The records of a change; a change without one is not made.
pub(super) fn records_of(scribe: &dyn Scribe, touched: &[Touched]) -> Result<Vec<TrailRow>, StoreError> {
    let rows = scribe.records(touched);
    if rows.is_empty() {
        return Err(StoreError::Refused("a change could not be recorded, and was not made".to_owned()));
    }
    Ok(rows)
}

/// Which of a start's chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChainKind {
    File,
    Table,
}

impl ChainKind {
    pub(super) const fn column(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Table => "table",
        }
    }
}

/// How far a chain has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainHead {
    pub node: NodeId,
    pub boot: BootId,
    pub kind: ChainKind,
    pub started_at: Micros,
    /// The chain of the node's start before, and its end.
    pub previous: Option<(BootId, [u8; 32])>,
    pub end: Linked,
}

/// The trail's part of a [`Store`].
#[async_trait]
pub trait Trail: Send + Sync {
    /// The same database; each transaction of a call on it that changes something holds the scribe's records of it.
    fn recorded(&self, scribe: Arc<dyn Scribe>) -> Arc<dyn Store>;

    /// Inserts records that go with no change.
    async fn insert(&self, rows: &[TrailRow]) -> Result<(), StoreError>;

    /// Committed records of a node that no chain has reached, by start and number, after this one.
    async fn unlinked(
        &self,
        node: NodeId,
        after: Option<(BootId, u64)>,
        limit: u32,
    ) -> Result<Vec<TrailRow>, StoreError>;

    /// Gives rows their places in the chain of `head`, and enters how far it has come: one transaction. Only rows that have none get one.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where a row is not there, or has a place.
    async fn link(&self, places: &[(u64, Linked)], head: &ChainHead) -> Result<(), StoreError>;

    /// Inserts records that have their places, and moves the chain's head on from where it has to be: one transaction.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where the head is somewhere else: another state of the database than the caller knows.
    async fn append(&self, rows: &[TrailRow], from: Linked, head: &ChainHead) -> Result<(), StoreError>;

    /// Every chain's head, the oldest first.
    async fn chains(&self) -> Result<Vec<ChainHead>, StoreError>;

    /// Records of a start, by number, after this one.
    async fn trail(
        &self,
        node: NodeId,
        boot: BootId,
        after: Option<u64>,
        limit: u32,
    ) -> Result<Vec<TrailRow>, StoreError>;

    /// Records of a start that have a place behind this one, in their order.
    async fn linked(&self, node: NodeId, boot: BootId, after: u64, limit: u32) -> Result<Vec<TrailRow>, StoreError>;

    /// Every record of this action.
    async fn trail_of(&self, action: &str) -> Result<Vec<TrailRow>, StoreError>;

    /// Inserts the record that says so and removes a start's records up to this place, but for those of versions that are live, of
    /// revocations, and of removals: what they say is still needed. One transaction. How many were removed.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was removed.
    async fn prune(&self, of: (NodeId, BootId), upto: u64, record: &TrailRow) -> Result<u64, StoreError>;

    /// Starts of nodes that have records here, whether or not they have a head.
    async fn starts(&self) -> Result<Vec<(NodeId, BootId)>, StoreError>;
}
