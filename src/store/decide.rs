//! What a write does, decided from what lies under its locks: pure, and the same for both stores.

use super::trail::Touched;
use super::{
    Expect, Found, Intent, Refusal, SealedRow, Sealer, Sealing, Slot, Source, StoreError, WriteOutcome, Written,
};
use crate::model::{DekRecord, DekVersion, Delivery, Micros, SecretRecord, SecretVersion, VersionBody, VersionRecord};

/// What the rows under lock hold for one intent.
pub(super) struct Ground {
    /// What lies at the secret's current version.
    pub(super) found: Found,
    /// The highest number that the secret ever had; 0 where there is none.
    pub(super) last_version: u64,
    /// The version that [`Source::CopyOf`] names, where it has a row.
    pub(super) source: Option<VersionRecord>,
    /// The tenant's active DEK.
    pub(super) dek: Option<DekRecord>,
    /// The database's time.
    pub(super) now: Micros,
}

/// What is to be stored, and what the caller is told once it is.
pub(super) struct Decision {
    pub(super) written: Written,
    pub(super) change: Change,
}

impl Decision {
    /// What a record says of it.
    pub(super) fn touched(&self) -> Touched {
        let secret = &self.written.secret;
        let ciphertext = match &self.change {
            Change::Version { ciphertext, .. } => Some(ciphertext.clone()),
            Change::Nothing | Change::Delivery => None,
        };
        Touched::version(secret, secret.current, ciphertext)
    }
}

pub(super) enum Change {
    Nothing,
    /// Delivery and time of the secret's row.
    Delivery,
    /// The secret's row, and a version of the number that is its current one now.
    Version {
        ciphertext: Vec<u8>,
        dek_version: DekVersion,
    },
}

/// Decides one intent, in the order that [`super::Store::write`] promises.
///
/// # Errors
/// [`StoreError::Refused`] where the sealer breaks its word.
pub(super) fn decide(
    index: usize,
    intent: &Intent,
    ground: &Ground,
    sealer: &dyn Sealer,
) -> Result<Result<Decision, Refusal>, StoreError> {
    let slot = match slot(intent, ground) {
        Ok(slot) => slot,
        Err(refusal) => return Ok(Err(refusal)),
    };
    match sealer.seal(index, &slot) {
        Err(refusal) => Ok(Err(Refusal::Seal(refusal))),
        Ok(Sealing::Sealed(ciphertext)) => Ok(Ok(new_version(intent, ground, &slot, ciphertext))),
        Ok(Sealing::Unchanged) => match (&ground.found, slot.current, slot.source) {
            (Found::Secret(secret, _), Some(_), None) => Ok(Ok(unchanged(intent, ground, secret))),
            _ => Err(StoreError::Refused("the sealer called a value unchanged that has nothing to equal".to_owned())),
        },
    }
}

/// What the sealer is given, or why it is not asked.
fn slot<'a>(intent: &'a Intent, ground: &'a Ground) -> Result<Slot<'a>, Refusal> {
    let current = match &ground.found {
        Found::TenantBlocked => return Err(Refusal::TenantBlocked),
        Found::Secret(secret, Some(version)) if secret.deleted_at.is_none() => sealed_row(version),
        Found::Secret(..) | Found::NoTenant | Found::NoSecret => None,
    };
    let source = source(intent, ground)?;
    let current_version = current.map(|row| row.version);
    let holds = match intent.expect {
        Expect::Anything => true,
        Expect::Absent => current_version.is_none(),
        Expect::Current(expected) => current_version == Some(expected),
    };
    if !holds {
        return Err(Refusal::Precondition { current: current_version });
    }
    let dek = ground.dek.as_ref().ok_or(Refusal::NoActiveDek)?;
    let next = ground.last_version.checked_add(1).and_then(SecretVersion::new);
    let version = next.ok_or(Refusal::Exhausted)?;
    Ok(Slot { tenant: &intent.tenant, name: &intent.name, version, dek, current, source })
}

/// The version to copy, for an intent that copies.
fn source<'a>(intent: &Intent, ground: &'a Ground) -> Result<Option<SealedRow<'a>>, Refusal> {
    let Source::CopyOf(number) = intent.source else { return Ok(None) };
    match &ground.found {
        Found::TenantBlocked => Err(Refusal::TenantBlocked),
        Found::NoTenant => Err(Refusal::NoTenant),
        Found::NoSecret => Err(Refusal::NoSecret),
        Found::Secret(secret, _) if secret.deleted_at.is_some() => Err(Refusal::Deleted),
        Found::Secret(..) => {
            let version = ground.source.as_ref().ok_or(Refusal::NoVersion(number))?;
            sealed_row(version).map(Some).ok_or(Refusal::Destroyed(number))
        }
    }
}

/// Absent where it is destroyed.
fn sealed_row(version: &VersionRecord) -> Option<SealedRow<'_>> {
    match &version.body {
        VersionBody::Live { ciphertext, dek_version, dek } => {
            Some(SealedRow { version: version.version, ciphertext, dek_version: *dek_version, dek: dek.as_ref() })
        }
        VersionBody::Destroyed { .. } => None,
    }
}

fn new_version(intent: &Intent, ground: &Ground, slot: &Slot<'_>, ciphertext: Vec<u8>) -> Decision {
    let (before, outcome) = match &ground.found {
        Found::Secret(secret, _) => (Some(secret), WriteOutcome::Updated),
        _ => (None, WriteOutcome::Created),
    };
    let secret = SecretRecord {
        tenant: intent.tenant.clone(),
        name: intent.name.clone(),
        current: slot.version,
        delivery: intent.delivery.or(before.map(|secret| secret.delivery)).unwrap_or(Delivery::Env),
        created_at: before.map_or(ground.now, |secret| secret.created_at),
        updated_at: ground.now,
        deleted_at: None,
    };
    let change = Change::Version { ciphertext, dek_version: slot.dek.version };
    Decision { written: Written { secret, outcome }, change }
}

fn unchanged(intent: &Intent, ground: &Ground, secret: &SecretRecord) -> Decision {
    let mut secret = secret.clone();
    let change = match intent.delivery {
        Some(delivery) if delivery != secret.delivery => {
            (secret.delivery, secret.updated_at) = (delivery, ground.now);
            Change::Delivery
        }
        _ => Change::Nothing,
    };
    Decision { written: Written { secret, outcome: WriteOutcome::Unchanged }, change }
}

/// The answer for an all-or-nothing batch whose intent of this index was refused.
pub(super) fn all_refused(intents: usize, index: usize, refusal: &Refusal) -> Vec<Result<Written, Refusal>> {
    (0..intents).map(|at| Err(if at == index { refusal.clone() } else { Refusal::Batch })).collect()
}
