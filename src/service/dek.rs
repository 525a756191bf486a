//! Sealing inside the store's transaction, and the DEK that a tenant gets with its first write.

use crate::crypto::{self, SecretPlace, SecretValue};
use crate::keys::{Keyring, KeysError};
use crate::model::{DekVersion, Kid, Tenant};
use crate::store::{DekMaker, DekOutcome, NewDek, SealRefusal, SealedRow, Sealer, Sealing, Slot};

use super::error::seal_refusal;
use super::{Error, Failure, Service};

/// Seals the values of one batch, by their index; none for a copy of an earlier version.
pub(super) struct ValueSealer<'a> {
    pub(super) keys: &'a Keyring,
    pub(super) values: &'a [Option<SecretValue>],
}

impl Sealer for ValueSealer<'_> {
    fn seal(&self, index: usize, slot: &Slot<'_>) -> Result<Sealing, SealRefusal> {
        match (self.values.get(index), slot.source) {
            (Some(Some(value)), None) => {
                if self.is_current(value, slot) {
                    return Ok(Sealing::Unchanged);
                }
                self.seal_value(value, slot)
            }
            (_, Some(source)) => self.seal_value(&self.open(slot, source)?, slot),
            (_, None) => {
                tracing::error!("a write without a value reached the sealer");
                Err(SealRefusal::DoesNotOpen)
            }
        }
    }
}

impl ValueSealer<'_> {
    /// Whether the current version holds this very value. One that does not open is no reason to refuse the new value that mends it.
    fn is_current(&self, value: &SecretValue, slot: &Slot<'_>) -> bool {
        slot.current
            .and_then(|current| self.open(slot, current).ok())
            .is_some_and(|current| crypto::same_value(&current, value))
    }

    fn open(&self, slot: &Slot<'_>, row: SealedRow<'_>) -> Result<SecretValue, SealRefusal> {
        let place =
            SecretPlace { tenant: slot.tenant, name: slot.name, dek_version: row.dek_version, version: row.version };
        let Some(dek) = row.dek else {
            tracing::error!(tenant = %place.tenant, name = %place.name, version = %place.version, "the row of DEK version {} is missing", place.dek_version);
            return Err(SealRefusal::DoesNotOpen);
        };
        let dek = self.keys.dek(dek).map_err(|error| {
            log_no_dek(place, &error);
            seal_refusal(&error)
        })?;
        crypto::open(&dek, place, row.ciphertext).map_err(|error| {
            tracing::error!(tenant = %place.tenant, name = %place.name, version = %place.version, "ciphertext authentication failed: {error}");
            SealRefusal::DoesNotOpen
        })
    }

    fn seal_value(&self, value: &SecretValue, slot: &Slot<'_>) -> Result<Sealing, SealRefusal> {
        let place =
            SecretPlace { tenant: slot.tenant, name: slot.name, dek_version: slot.dek.version, version: slot.version };
        let dek = self.keys.dek(slot.dek).map_err(|error| {
            log_no_dek(place, &error);
            seal_refusal(&error)
        })?;
        crypto::seal(&dek, place, value).map(Sealing::Sealed).map_err(|_| SealRefusal::NoRandom)
    }
}

/// The inside reason, for the operator; callers get one word. That keys are locked was said once, when they were.
pub(super) fn log_no_dek(place: SecretPlace<'_>, error: &KeysError) {
    if matches!(error, KeysError::Locked(_)) {
        return;
    }
    tracing::error!(tenant = %place.tenant, name = %place.name, version = %place.version, dek_version = %place.dek_version, "no DEK: {error}");
}

/// Makes DEKs under the master key that the store names as the active one.
pub(super) struct RingDekMaker<'a>(pub(super) &'a Keyring);

impl DekMaker for RingDekMaker<'_> {
    fn make(&self, tenant: &Tenant, version: DekVersion, active: Kid) -> Result<NewDek, SealRefusal> {
        let new = self.0.make_dek(tenant, version, active).map_err(|error| seal_refusal(&error))?;
        Ok(NewDek { id: new.id, wrapped: new.wrapped })
    }
}

impl Service {
    /// Gives a tenant its DEK; concurrent first writes make one.
    pub(super) async fn make_dek(&self, tenant: &Tenant) -> Result<(), Error> {
        self.node.may_write().await?;
        let mut outcome = self.store.create_dek(tenant, &RingDekMaker(&self.keys)).await?;
        if let DekOutcome::Refused(SealRefusal::NotLoaded(kid)) = outcome {
            // It became the active key a moment ago.
            self.node.look_for(kid).await;
            outcome = self.store.create_dek(tenant, &RingDekMaker(&self.keys)).await?;
        }
        match outcome {
            DekOutcome::Active(_) => Ok(()),
            DekOutcome::Blocked => Err(Error::Denied("the tenant is blocked: a shred is pending or done".to_owned())),
            DekOutcome::Orphans { dek_version } => {
                tracing::error!(%tenant, "secrets exist whose DEK version {dek_version} is missing from the database; no new DEK is made over them: restore the table `deks` from a backup");
                Err(Error::Internal(Failure::Authentication))
            }
            DekOutcome::Refused(refusal) => Err(refusal.into()),
        }
    }
}
