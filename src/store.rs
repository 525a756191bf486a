//! The store: what is kept, on SQLite or PostgreSQL, behind one trait.
//!
//! The store sees ciphertexts, wrapped DEKs and public ids; it knows no crypto. Where a write needs sealing, the store allocates the
//! version under its locks and calls a [`Sealer`], so that the version can be sealed in; where it needs a new DEK or the first key, it
//! calls a [`DekMaker`] or a [`FirstKeyMaker`]. These are pure CPU or local file work: never a remote call inside a transaction.
//!
//! To add an operation: add it here with what it promises, add its test to the conformance suite (it runs on both stores), then
//! implement it in both. Absence is a value, not an error; affected rows are checked; a row that breaks its own rules is
//! [`StoreError::Corrupt`], which names table and key.

pub mod backups;
mod coalesce;
mod decide;
pub mod deks;
mod guards;
pub mod masters;
mod postgres;
mod rows;
mod sqlite;
pub mod tokens;
pub mod trail;

pub use backups::BackupLog;
pub use coalesce::Reads;
pub use deks::Deks;
pub use masters::Masters;
pub use trail::Trail;

pub use crate::model::{Expect, Page, Which, WriteOutcome, Written};
pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;
pub use tokens::Tokens;

use async_trait::async_trait;

use crate::model::{
    Counts, DekId, DekRecord, DekVersion, Delivery, KeyState, Kid, MasterKeyRecord, SecretName, SecretRecord,
    SecretVersion, StoreKind, Tenant, TenantRecord, VersionRecord,
};

/// Why the store could not do what it was asked. The messages hold names and public ids, never a value or a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, is shutting down, out of connections or timed out. Nothing was done.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The connection broke at COMMIT: the change is there, or it is not. Read before trying again.
    #[error("the database broke off at commit; whether the change was made is not known: {0}")]
    UnknownOutcome(String),
    /// A row that breaks the rules of its own table.
    #[error("corrupt row in {table}, key {key}: {what}")]
    Corrupt { table: &'static str, key: String, what: String },
    /// The database was migrated by a newer release.
    #[error(
        "the database has migration {found}, which this release does not know; its newest is {known}. Start a newer release"
    )]
    Newer { found: i64, known: i64 },
    /// The server does not keep the store's locks, or the database is not one that this release may touch.
    #[error("this database is not usable: {0}")]
    Unusable(String),
    /// Anything else that the database answered.
    #[error("the database refused: {0}")]
    Refused(String),
}

/// One thing to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub tenant: Tenant,
    pub name: SecretName,
    pub which: Which,
}

/// What lies at a [`Place`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly every one is the large variant; a box would cost each read")]
pub enum Found {
    NoTenant,
    /// A shred of this tenant is pending or done: nothing of it is read or written.
    TenantBlocked,
    NoSecret,
    /// The secret; the version is absent where there is none of that number (it never was, or was pruned). A deleted secret is found
    /// too, with `deleted_at` set.
    Secret(SecretRecord, Option<VersionRecord>),
}

/// Where a new version's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The sealer holds it, by the intent's index.
    Value,
    /// An earlier version of the same secret, which must be live; the secret must not be deleted.
    CopyOf(SecretVersion),
}

/// How many versions of a secret stay, the newest by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    All,
    Newest(u32),
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    pub tenant: Tenant,
    pub name: SecretName,
    pub source: Source,
    pub expect: Expect,
    /// `None` keeps what the secret has; a new secret gets [`Delivery::Env`].
    pub delivery: Option<Delivery>,
    pub keep: Keep,
}

/// How the writes of one batch hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// Each has an outcome of its own.
    Each,
    /// All are made, or none: after a refusal every other intent answers [`Refusal::Batch`].
    AllOrNothing,
}

/// A sealed version and the DEK that it needs.
#[derive(Debug, Clone, Copy)]
pub struct SealedRow<'a> {
    pub version: SecretVersion,
    pub ciphertext: &'a [u8],
    pub dek_version: DekVersion,
    /// Absent when the DEK's row is missing.
    pub dek: Option<&'a DekRecord>,
}

/// What a sealer is given for one intent: the place, the number allocated for it, and what the rows under lock hold.
#[derive(Debug, Clone, Copy)]
pub struct Slot<'a> {
    pub tenant: &'a Tenant,
    pub name: &'a SecretName,
    pub version: SecretVersion,
    /// The tenant's active DEK.
    pub dek: &'a DekRecord,
    /// The current version, where the secret is readable.
    pub current: Option<SealedRow<'a>>,
    /// The version to copy, for [`Source::CopyOf`].
    pub source: Option<SealedRow<'a>>,
}

/// A sealer's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sealing {
    /// The value is that of the current version: make no new one. Not for [`Source::CopyOf`].
    Unchanged,
    Sealed(Vec<u8>),
}

/// Seals values while the store holds its locks. Called from inside a transaction: CPU work only.
pub trait Sealer: Send + Sync {
    /// # Errors
    /// A word for the log and the problem, which the store hands back as [`Refusal::Seal`].
    fn seal(&self, index: usize, slot: &Slot<'_>) -> Result<Sealing, SealRefusal>;
}

/// Why a sealer did not seal. The caller knows more; the store only passes it on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealRefusal {
    #[error("keys are locked")]
    Locked,
    /// The master key of the DEK's row is not loaded here.
    #[error("master key {0} is not loaded")]
    NotLoaded(Kid),
    #[error("the DEK is quarantined")]
    Quarantined,
    /// A row did not open; the detail is for the log.
    #[error("ciphertext authentication failed")]
    DoesNotOpen,
    #[error("the operating system gave no random bytes")]
    NoRandom,
}

/// Why the store refused a change. Nothing of it was stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the tenant is unknown")]
    NoTenant,
    #[error("the tenant is blocked: a shred is pending or done")]
    TenantBlocked,
    /// The tenant has no active DEK (or the tenant is new): make one with [`Store::create_dek`], then write again.
    #[error("the tenant has no active DEK")]
    NoActiveDek,
    #[error("the secret is unknown")]
    NoSecret,
    #[error("the secret is deleted")]
    Deleted,
    #[error("the secret is not deleted")]
    NotDeleted,
    #[error("version {0} is unknown")]
    NoVersion(SecretVersion),
    #[error("version {0} is destroyed")]
    Destroyed(SecretVersion),
    /// The expectation failed; the readable current version, where there is one.
    #[error("the expectation failed")]
    Precondition { current: Option<SecretVersion> },
    #[error("no further version number")]
    Exhausted,
    #[error(transparent)]
    Seal(SealRefusal),
    /// Another intent of the same all-or-nothing batch was refused.
    #[error("another secret of the batch was refused")]
    Batch,
}

/// What the start needs to know of a database, read without a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Absent until the database has held its first key.
    pub key_state: Option<KeyState>,
    pub master_keys: Vec<MasterKeyRecord>,
    /// Whether tenants, DEKs, secrets or versions have any row: true without a key state means a damaged database, never a new one.
    pub holds_rows: bool,
    /// Whether v1's `secrets` table is in sight (PostgreSQL: in any other schema of this database).
    pub v1_table: bool,
}

impl Survey {
    /// Keys without which something of the database does not open: the active one first, then those of other DEKs in use, by kid.
    #[must_use]
    pub fn needed(&self) -> Vec<Kid> {
        let active = self.key_state.as_ref().map(|state| state.active_kid);
        let mut others: Vec<Kid> =
            self.master_keys.iter().filter(|key| key.in_use && Some(key.kid) != active).map(|key| key.kid).collect();
        others.sort_unstable();
        active.into_iter().chain(others).collect()
    }
}

/// A new DEK, wrapped, as it goes into its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDek {
    pub id: DekId,
    pub wrapped: Vec<u8>,
}

/// Makes a tenant's DEK inside the store's transaction: CPU work only.
pub trait DekMaker: Send + Sync {
    /// # Errors
    /// As [`Sealer::seal`]; [`SealRefusal::NotLoaded`] where `active` is not the maker's.
    fn make(&self, tenant: &Tenant, version: DekVersion, active: Kid) -> Result<NewDek, SealRefusal>;
}

/// What a database gets with its first key, in one transaction: the key's row, the key state (epoch 1, generation 1), and the
/// system tenant with its DEK and first secrets (each version 1 under DEK version 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstKey {
    pub kid: Kid,
    pub db_id: [u8; 16],
    pub system_dek: NewDek,
    pub system_secrets: Vec<(SecretName, Vec<u8>)>,
}

/// Makes the first key while the store holds the master lock and has checked again that the database never held one: the key's file
/// is staged and fsynced in this call, before any row.
pub trait FirstKeyMaker: Send {
    /// # Errors
    /// Why no key was made, for the operator.
    fn make(&mut self) -> Result<FirstKey, String>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstKeyOutcome {
    Made(KeyState),
    /// Somebody else was faster, or the database held rows already. Nothing was called and nothing changed.
    AlreadyHeld,
    /// The maker failed with this message; nothing changed.
    NotMade(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DekOutcome {
    /// The tenant's active DEK: made now, or found when somebody else was faster.
    Active(DekRecord),
    Blocked,
    /// Live versions exist whose DEK rows are missing: a new DEK would bury them. Restore `deks` first.
    Orphans {
        dek_version: DekVersion,
    },
    Refused(SealRefusal),
}

/// A database. What concerns rotation is in [`Masters`], the further life of DEKs in [`Deks`], the record of backups in [`BackupLog`], tokens
/// in [`Tokens`], the record of changes in [`Trail`].
#[async_trait]
pub trait Store: Masters + Deks + BackupLog + Tokens + Trail + Send + Sync {
    fn kind(&self) -> StoreKind;

    /// One round trip.
    async fn ping(&self) -> Result<(), StoreError>;

    /// What the start decides on; index look-ups only.
    async fn survey(&self) -> Result<Survey, StoreError>;

    /// Puts the first key into a database that never held one: master lock, check again, `maker`, rows, commit.
    async fn first_key(&self, maker: &mut dyn FirstKeyMaker) -> Result<FirstKeyOutcome, StoreError>;

    /// What lies at each place, in their order; one SQL statement for all. A row that breaks its rules is its own place's
    /// [`StoreError::Corrupt`], and so is a secret whose current version has no row at all: it is never pruned.
    async fn read(&self, places: &[Place]) -> Result<Vec<Result<Found, StoreError>>, StoreError>;

    /// Every readable secret of a tenant with its current version, by name; one SQL statement. `more` where there are more than
    /// `limit`. `None`: no such tenant. A blocked tenant is [`Found::TenantBlocked`]'s refusal.
    async fn read_tenant(
        &self,
        tenant: &Tenant,
        limit: u32,
    ) -> Result<Result<Page<(SecretRecord, VersionRecord)>, Refusal>, StoreError>;

    /// Writes each intent: a version number under lock, then the sealer, all in one transaction. Answers in the order of `intents`,
    /// which name a place at most once each.
    ///
    /// What refuses an intent, the first of: its tenant is blocked; what it copies ([`Refusal::NoTenant`], [`Refusal::NoSecret`],
    /// [`Refusal::Deleted`], [`Refusal::NoVersion`], [`Refusal::Destroyed`]); its expectation; no active DEK (so that a write which
    /// would be refused anyway makes neither DEK nor tenant); no further number; the sealer. Of an all-or-nothing batch the first
    /// refused intent answers with its refusal, every other with [`Refusal::Batch`]; one that lacks a DEK only where no other is refused
    /// for another reason, as a DEK would not help.
    ///
    /// Older versions are pruned when one is made, destroyed ones counting like live ones; the current version is never pruned.
    /// A sealer that answers [`Sealing::Unchanged`] where there is no current version to equal, or for a copy, is a
    /// [`StoreError::Refused`], and nothing of the batch is stored.
    async fn write(
        &self,
        intents: &[Intent],
        together: Together,
        sealer: &dyn Sealer,
    ) -> Result<Vec<Result<Written, Refusal>>, StoreError>;

    /// The tenant's active DEK, made if there is none; the tenant's row too. In a transaction of its own: master lock shared, tenant
    /// lock exclusive, then read again. Its number is one above the highest of the
    /// tenant's DEK rows.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where the database has held no key yet.
    async fn create_dek(&self, tenant: &Tenant, maker: &dyn DekMaker) -> Result<DekOutcome, StoreError>;

    /// Readable secrets (not deleted, current version live) by name, after `after`.
    async fn list(
        &self,
        tenant: &Tenant,
        after: Option<&SecretName>,
        limit: u32,
    ) -> Result<Result<Page<SecretRecord>, Refusal>, StoreError>;

    /// Every version of a secret, newest first, without ciphertexts (a live version's is empty), of a deleted secret too.
    async fn versions(
        &self,
        tenant: &Tenant,
        name: &SecretName,
    ) -> Result<Result<(SecretRecord, Vec<VersionRecord>), Refusal>, StoreError>;

    /// Soft delete. Refused for one that is unknown or already deleted. Like undelete, and like a destroy that destroyed something, it
    /// sets `updated_at`.
    async fn delete(&self, tenant: &Tenant, name: &SecretName) -> Result<Result<SecretRecord, Refusal>, StoreError>;

    /// Refused for one that is unknown or not deleted.
    async fn undelete(&self, tenant: &Tenant, name: &SecretName) -> Result<Result<SecretRecord, Refusal>, StoreError>;

    /// Destroys the ciphertexts of these versions for good, of a deleted secret too: all of them, or none where one is unknown (the
    /// first such is named). One that is destroyed already stays as it is.
    async fn destroy(
        &self,
        tenant: &Tenant,
        name: &SecretName,
        versions: &[SecretVersion],
    ) -> Result<Result<SecretRecord, Refusal>, StoreError>;

    /// Tenants by name, the system's own left out.
    async fn tenants(&self, after: Option<&Tenant>, limit: u32) -> Result<Page<TenantRecord>, StoreError>;

    /// Sizes; scans, for `admin status` only. Each DEK state has an entry, in the order of `DekState::ALL`.
    async fn counts(&self) -> Result<Counts, StoreError>;

    /// Whether a copy of this master key off the host has been proven: a confirmed copy, not a waiver.
    async fn has_confirmed_escrow(&self, kid: Kid) -> Result<bool, StoreError>;

    /// Closes every connection; on SQLite the write-ahead log is folded in.
    async fn close(&self);
}
