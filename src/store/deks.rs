//! The life of a tenant's DEKs after the first: a new version, re-encryption, removal, quarantine and shredding.
//!
//! Whoever activates, removes or shreds a DEK holds its tenant's lock exclusively (and the master lock shared); whoever seals a value
//! holds the tenant's lock shared.

use std::time::Duration;

use async_trait::async_trait;

use super::trail::{Touched, TouchedVersion};
use super::{DekMaker, SealRefusal, StoreError};
use crate::model::{DekRecord, DekVersion, Kid, Micros, SecretName, SecretVersion, Tenant, TenantRecord, WrappedDek};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RotateDekOutcome {
    /// The new active DEK; the one before decrypts only.
    Rotated(DekRecord),
    /// The tenant's active DEK is not the one that was to be replaced; it, where there is one.
    NotActive(Option<DekVersion>),
    NoTenant,
    Blocked,
    Refused(SealRefusal),
}

/// A live version of a secret as it is sealed, of a deleted secret too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedVersion {
    pub name: SecretName,
    pub version: SecretVersion,
    pub ciphertext: Vec<u8>,
}

impl SealedVersion {
    /// What a record says of it once it was sealed anew.
    pub(super) fn resealed(&self, tenant: &Tenant, ciphertext: Vec<u8>) -> Touched {
        Touched::Version(TouchedVersion {
            tenant: tenant.clone(),
            name: self.name.clone(),
            version: self.version,
            ciphertext: Some(ciphertext),
            replaced: Some(self.ciphertext.clone()),
        })
    }
}

/// Seals versions under another DEK while the store holds its locks: CPU work only.
pub trait Resealer: Send + Sync {
    /// # Errors
    /// As [`Sealer::seal`](super::Sealer::seal).
    fn reseal(&self, index: usize, version: &SealedVersion, active: &DekRecord) -> Result<Vec<u8>, SealRefusal>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResealOutcome {
    /// How many were replaced; a version that changed or went meanwhile is left alone.
    Resealed(u64),
    NoActiveDek,
    Blocked,
    /// Nothing was replaced.
    Refused(SealRefusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoveDekOutcome {
    Removed,
    Unknown,
    /// The tenant's active DEK is never removed, nor one that is quarantined or shredded.
    NotDecryptOnly,
    /// So many versions are sealed under it.
    StillUsed(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuarantineOutcome {
    /// As it is now.
    Done(DekRecord),
    Unknown,
    /// It is not in the state that the call starts from, or its wrapping is another by now.
    Elsewhere(DekRecord),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShredOutcome {
    /// As the tenant is now, and the generation that the change was given.
    Done {
        tenant: TenantRecord,
        generation: u64,
    },
    NoTenant,
    /// It is not in the state that the call starts from.
    Elsewhere(TenantRecord),
}

/// When a shred becomes final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShredWhen {
    /// Where its time has come.
    Due,
    Now,
}

/// The DEKs' part of a [`Store`](super::Store).
#[async_trait]
pub trait Deks: Send + Sync {
    /// One DEK's row.
    async fn dek(&self, tenant: &Tenant, version: DekVersion) -> Result<Option<DekRecord>, StoreError>;

    /// All of a tenant, by version.
    async fn deks(&self, tenant: &Tenant) -> Result<Vec<DekRecord>, StoreError>;

    /// Makes a new active DEK where `from` is the active one, numbered one above the highest of the tenant's; `from` decrypts only.
    /// Master shared, tenant exclusive.
    async fn rotate_dek(
        &self,
        tenant: &Tenant,
        from: DekVersion,
        maker: &dyn DekMaker,
    ) -> Result<RotateDekOutcome, StoreError>;

    /// Versions sealed under this DEK, by name and version, after the cursor.
    async fn sealed_under(
        &self,
        tenant: &Tenant,
        dek: DekVersion,
        after: Option<(&SecretName, SecretVersion)>,
        limit: u32,
    ) -> Result<Vec<SealedVersion>, StoreError>;

    /// Seals these versions under the tenant's active DEK, compare-and-set on ciphertext and DEK version. Tenant shared, then the active
    /// DEK, then the secrets' rows, sorted. Neither `updated_at` nor any number changes. The resealer is asked only for versions that are
    /// still as they were read, with their index in `versions`.
    async fn reseal(
        &self,
        tenant: &Tenant,
        from: DekVersion,
        versions: &[SealedVersion],
        resealer: &dyn Resealer,
    ) -> Result<ResealOutcome, StoreError>;

    /// Removes a decrypt-only DEK under which nothing is sealed. Master shared, tenant exclusive.
    async fn remove_dek(&self, tenant: &Tenant, version: DekVersion) -> Result<RemoveDekOutcome, StoreError>;

    /// Sets a DEK aside: active or decrypt-only → quarantined, where its wrapping is still `wrapping`. Master shared, tenant exclusive.
    async fn quarantine(
        &self,
        tenant: &Tenant,
        version: DekVersion,
        wrapping: &WrappedDek,
    ) -> Result<QuarantineOutcome, StoreError>;

    /// Takes a DEK back: quarantined → active where it is the highest of the tenant's and there is no active one, else decrypt-only;
    /// with a wrapping by the active master key, where its wrapping is still `before`. Master shared, tenant exclusive; `active` is
    /// compared under the lock ([`QuarantineOutcome::Elsewhere`]).
    async fn release(
        &self,
        tenant: &Tenant,
        version: DekVersion,
        before: &WrappedDek,
        after: &[u8],
        active: Kid,
    ) -> Result<QuarantineOutcome, StoreError>;

    /// Blocks the tenant now and names the moment of its shred, `wait` from now by the database's clock; a pending one keeps its
    /// moment ([`ShredOutcome::Elsewhere`]). Tenant exclusive. It raises the generation.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for the system's tenant.
    async fn schedule_shred(&self, tenant: &Tenant, wait: Duration) -> Result<ShredOutcome, StoreError>;

    /// Unblocks a tenant whose shred is pending. Tenant exclusive. It raises the generation.
    async fn cancel_shred(&self, tenant: &Tenant) -> Result<ShredOutcome, StoreError>;

    /// Destroys every DEK of a tenant whose shred is pending: kid and wrapping become NULL. Master shared, tenant exclusive. It raises
    /// the generation.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for the system's tenant.
    async fn shred(&self, tenant: &Tenant, when: ShredWhen) -> Result<ShredOutcome, StoreError>;

    /// Tenants whose shred is pending or done, by name.
    async fn blocked_tenants(&self, after: Option<&Tenant>, limit: u32) -> Result<Vec<TenantRecord>, StoreError>;

    /// Pending shreds whose time has come, by the database's clock, the longest due first.
    async fn due_shreds(&self, limit: u32) -> Result<Vec<Tenant>, StoreError>;

    /// Tenants that still have a DEK in use which was made in an earlier epoch than this one, by name; those that a shred blocks are left
    /// out.
    async fn made_before_active(&self, after: Option<&Tenant>, limit: u32) -> Result<Vec<Tenant>, StoreError>;

    /// Now, by the database's clock.
    async fn now(&self) -> Result<Micros, StoreError>;
}
