//! Quarantine: a DEK that does not open is set aside, so that a rotation can pass it; and taken back once it is mended.

use std::sync::Arc;

use super::super::{Error, Failure, Request, Service, Touched};
use super::{elsewhere, named, unknown};
use crate::access::AdminGrant;
use crate::keys::keyfile::Scan;
use crate::keys::start::BringBack;
use crate::keys::{Keys, KeysError};
use crate::model::{Action, DekBody, DekRecord, DekVersion, Kid, MasterKeyState, Tenant, WrappedDek};
use crate::store::Store;
use crate::store::deks::QuarantineOutcome;

/// What to do with a DEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuarantineOrder {
    /// Set it aside: its secrets answer `quarantined`, and nothing of it is deleted.
    SetAside,
    Release,
}

impl QuarantineOrder {
    #[must_use]
    pub const fn action(self) -> Action {
        match self {
            Self::SetAside => Action::QuarantineDek,
            Self::Release => Action::ReleaseDek,
        }
    }
}

impl Service {
    /// Sets a DEK aside that does not open, or takes one back that does.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] where it is in another state, where one to be set aside opens, and where one to be
    /// released does not; [`Error::Unavailable`], also where the master key that would tell is not here.
    pub async fn quarantine(
        &self,
        request: &Request,
        grant: &AdminGrant,
        tenant: &Tenant,
        version: DekVersion,
        order: QuarantineOrder,
    ) -> Result<DekRecord, Error> {
        let change = self.change(request, grant.identity(), order.action(), Some(tenant)).await?;
        let result = match order {
            QuarantineOrder::SetAside => self.set_aside(change.store(), tenant, version).await,
            QuarantineOrder::Release => self.release(change.store(), tenant, version).await,
        };
        let touched = |outcome| vec![Touched::nothing(outcome)];
        self.recorded_change(request, grant.identity(), &change, touched, result).await
    }

    async fn set_aside(&self, store: &dyn Store, tenant: &Tenant, version: DekVersion) -> Result<DekRecord, Error> {
        self.may_change().await?;
        let dek = self.store.dek(tenant, version).await?.ok_or_else(|| unknown(tenant, version))?;
        let (DekBody::Active(wrapping) | DekBody::DecryptOnly(wrapping)) = &dek.body else {
            return Err(elsewhere(&dek));
        };
        let damage = self.damage(&dek, wrapping.kid).await?;
        match store.quarantine(tenant, version, wrapping).await? {
            QuarantineOutcome::Done(dek) => {
                self.keys.forget(&dek);
                tracing::warn!("{} does not open ({damage}) and was set aside", named(tenant, version));
                Ok(dek)
            }
            QuarantineOutcome::Unknown => Err(unknown(tenant, version)),
            QuarantineOutcome::Elsewhere(_) => Err(changed(tenant, version)),
        }
    }

    /// Why a DEK does not open with the key that its row names. One that opens, or may open elsewhere, is not set aside: its secrets
    /// would be gone for as long as nobody notices.
    async fn damage(&self, dek: &DekRecord, kid: Kid) -> Result<KeysError, Error> {
        match self.keys.opens(dek, &*self.key_files().await?) {
            Ok(()) => Err(Error::Conflict(format!(
                "{} opens with master key {kid}: it is not damaged, and was not set aside",
                named(&dek.tenant, dek.version)
            ))),
            Err(KeysError::NotLoaded(kid)) => {
                let survey = self.store.survey().await?;
                let state = survey.master_keys.iter().find(|key| key.kid == kid).map(|key| key.state);
                if matches!(state, Some(MasterKeyState::Destroyed | MasterKeyState::Aborted)) {
                    return Ok(KeysError::NotLoaded(kid));
                }
                Err(Error::Unavailable(format!(
                    "master key {kid}, which the row of {} names, is not here, so whether the DEK is damaged is not known; nothing was \
                     done. Bring the key here: {}",
                    named(&dek.tenant, dek.version),
                    BringBack(kid)
                )))
            }
            Err(error @ (KeysError::DoesNotOpen(_) | KeysError::WrongId)) => Ok(error),
            Err(error) => Err(Error::from_keys(&error)),
        }
    }

    async fn release(&self, store: &dyn Store, tenant: &Tenant, version: DekVersion) -> Result<DekRecord, Error> {
        self.may_change().await?;
        let dek = self.store.dek(tenant, version).await?.ok_or_else(|| unknown(tenant, version))?;
        let DekBody::Quarantined(before) = &dek.body else { return Err(elsewhere(&dek)) };
        let active = self.active_kid().await?;
        let after = self.mended(&dek, before, active).await?;
        match store.release(tenant, version, before, &after, active).await? {
            QuarantineOutcome::Done(dek) => {
                tracing::info!("{} opens and was released; it is {}", named(tenant, version), dek.body.state());
                Ok(dek)
            }
            QuarantineOutcome::Unknown => Err(unknown(tenant, version)),
            QuarantineOutcome::Elsewhere(_) => Err(changed(tenant, version)),
        }
    }

    async fn mended(&self, dek: &DekRecord, before: &WrappedDek, active: Kid) -> Result<Vec<u8>, Error> {
        let files = self.key_files().await?;
        self.keys.mended(dek, &files, active).map_err(|error| match error {
            KeysError::NotLoaded(kid) if kid == active => Error::from_keys(&error),
            KeysError::DoesNotOpen(_) | KeysError::WrongId | KeysError::NotLoaded(_) => Error::Conflict(format!(
                "{} does not open with any master key that is here ({error}); its row names master key {}. It stays set aside. Put its row \
                 back from a backup of the database, or bring that key here ({}), and release it then",
                named(&dek.tenant, dek.version),
                before.kid,
                BringBack(before.kid)
            )),
            error => Error::from_keys(&error),
        })
    }

    async fn active_kid(&self) -> Result<Kid, Error> {
        let state = self.store.survey().await?.key_state;
        state.map(|state| state.active_kid).ok_or(Error::Internal(Failure::Other))
    }

    /// Every key file, retired keys' too, read on a thread that may block; wrapped ones opened where they open.
    async fn key_files(&self) -> Result<Arc<Scan>, Error> {
        let files = self.node.files().clone();
        let scanned = tokio::task::spawn_blocking(move || files.scan()).await;
        let scan = scanned.map_err(|_| Error::Internal(Failure::Other))?;
        let keys = self.keys.state();
        let is_new = |kid| matches!(&*keys, Keys::Open(ring) if !ring.holds(kid));
        Ok(Arc::new(self.unlocker.opened(scan, is_new, &*self.clock).await))
    }
}

fn changed(tenant: &Tenant, version: DekVersion) -> Error {
    Error::Conflict(format!("{} changed at the same time; look again and try once more", named(tenant, version)))
}
