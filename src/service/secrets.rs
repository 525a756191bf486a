//! Secrets: read, list, write, delete, destroy.

use crate::access::{Grant, Permission};
use crate::audit::Outcome;
use crate::crypto::{self, SecretPlace, SecretValue};
use crate::keys::{Keyring, KeysError};
use crate::model::{
    Action, Delivery, Kid, MAX_VALUE_BYTES, Names, SecretName, SecretRecord, SecretVersion, Tenant, VersionBody,
    VersionRecord,
};
use crate::store::{
    Expect, Found, Intent, Keep, Page, Place, Refusal, SealRefusal, Source, Store, Together, Which, Written,
};

use super::change::Change;
use super::dek::{ValueSealer, log_no_dek};
use super::{Error, Failure, Request, Room, Service, Touched};

/// A secret's value with its metadata.
pub struct OpenedSecret {
    pub secret: SecretRecord,
    pub version: SecretVersion,
    pub made_at: crate::model::Micros,
    pub value: SecretValue,
}

/// One secret to write.
pub struct NewSecret {
    pub name: SecretName,
    pub value: SecretValue,
    pub expect: Expect,
    /// `None` keeps what the secret has.
    pub delivery: Option<Delivery>,
}

/// What a batch read found.
pub struct BatchValues {
    pub secrets: Vec<OpenedSecret>,
    pub missing: Vec<SecretName>,
    /// To be held as long as the values or their JSON are.
    pub room: Room,
}

/// How often a write starts anew because its tenant had no active DEK, or its master key was not loaded: once for the first write of a
/// tenant, once more where a rotation of DEKs came between, and once where one of master keys did.
/// How many names are looked through at a time where few of them may be covered.
const WHOLE_PAGE: u32 = 1000;

const WRITE_ATTEMPTS: u32 = 4;

impl Service {
    /// A secret's value.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Internal`] where the row does not open; [`Error::Unavailable`].
    pub async fn get(
        &self,
        request: &Request,
        grant: &Grant,
        name: &SecretName,
        which: Which,
    ) -> Result<OpenedSecret, Error> {
        let mut read = self.read_one(grant, name, which).await;
        if self.looked_for_key(&read).await {
            read = self.read_one(grant, name, which).await;
        }
        let result = read.map_err(Error::from);
        self.recorded(request, grant, Action::Get, Some(name), result, |opened| Some(opened.version)).await
    }

    /// Whether a read is worth another try: a master key was not loaded, and was looked for. It may lie in the key files by now, or the
    /// rows may be under another.
    async fn looked_for_key<T>(&self, read: &Result<T, ReadError>) -> bool {
        let Err(ReadError::NotLoaded(kid)) = read else { return false };
        self.node.look_for(*kid).await;
        true
    }

    async fn read_one(&self, grant: &Grant, name: &SecretName, which: Which) -> Result<OpenedSecret, ReadError> {
        let place = Place { tenant: tenant_of(grant, Permission::Read, [name])?.clone(), name: name.clone(), which };
        let found = self.reads.read(place.clone()).await.map_err(Error::from)?;
        self.open_found(&place, found)
    }

    fn open_found(&self, place: &Place, found: Found) -> Result<OpenedSecret, ReadError> {
        let Place { tenant, name, which } = place;
        let missing = match found {
            Found::NoTenant => Error::NotFound(format!("tenant {tenant} is unknown")),
            Found::TenantBlocked => Refusal::TenantBlocked.into(),
            Found::NoSecret => Error::NotFound(format!("tenant {tenant} has no secret {name}")),
            Found::Secret(secret, _) if secret.deleted_at.is_some() => {
                Error::NotFound(format!("secret {name} of tenant {tenant} is deleted; undelete brings it back"))
            }
            Found::Secret(_, None) => Error::NotFound(match which {
                Which::Current => format!("tenant {tenant} has no secret {name}"),
                Which::Number(version) => format!("secret {name} of tenant {tenant} has no version {version}"),
            }),
            Found::Secret(secret, Some(version)) => return open_sealed(&self.keys, secret, version),
        };
        Err(missing.into())
    }

    /// Many values of one tenant with one query: those named, or all of them, of which there may be `limit`. One that does not open
    /// fails the call: a program must not start with half of its secrets.
    ///
    /// # Errors
    /// As [`Service::get`], but a name that is not there is told in [`BatchValues::missing`]; [`Error::TooLarge`] where there are more
    /// than `limit`.
    pub async fn batch_get(
        &self,
        request: &Request,
        grant: &Grant,
        names: Option<&[SecretName]>,
        limit: u32,
    ) -> Result<BatchValues, Error> {
        let mut read = self.read_batch(grant, names, limit).await;
        if self.looked_for_key(&read).await {
            read = self.read_batch(grant, names, limit).await;
        }
        let result = read.map_err(Error::from);
        let touched: Vec<Touched> = match &result {
            Ok(values) => {
                let opened = values
                    .secrets
                    .iter()
                    .map(|opened| Touched::one(&opened.secret.name, Some(opened.version), Outcome::Ok));
                let missing = Touched::none_of(values.missing.iter(), Outcome::NotFound);
                let mut all: Vec<Touched> = opened.chain(missing).collect();
                if all.is_empty() {
                    all.push(Touched::nothing(Outcome::Ok));
                }
                all
            }
            Err(error) => vec![Touched::nothing(error.outcome())],
        };
        self.record(request, grant.identity(), Action::BatchGet, Some(grant.tenant()), touched).await?;
        result
    }

    async fn read_batch(
        &self,
        grant: &Grant,
        names: Option<&[SecretName]>,
        limit: u32,
    ) -> Result<BatchValues, ReadError> {
        match names {
            Some(names) => self.read_named(grant, names).await,
            None => self.read_all(grant, limit).await,
        }
    }

    async fn read_named(&self, grant: &Grant, names: &[SecretName]) -> Result<BatchValues, ReadError> {
        let tenant = tenant_of(grant, Permission::Read, names)?;
        let place = |name: &SecretName| Place { tenant: tenant.clone(), name: name.clone(), which: Which::Current };
        let places: Vec<Place> = names.iter().map(place).collect();
        let _reading = self.rooms.to_read(places.len()).await?;
        let all_found = self.store.read(&places).await.map_err(Error::from)?;
        let all_found = all_found.into_iter().collect::<Result<Vec<_>, _>>().map_err(Error::from)?;
        let room = self.rooms.to_answer(all_found.iter().map(ciphertext_of_found).sum()).await?;
        let mut values = BatchValues { secrets: Vec::with_capacity(names.len()), missing: Vec::new(), room };
        for (index, (place, found)) in places.iter().zip(all_found).enumerate() {
            let_others_run(index).await;
            if found == Found::NoTenant {
                return Err(Error::NotFound(format!("tenant {tenant} is unknown")).into());
            }
            match self.open_found(place, found) {
                Ok(opened) => values.secrets.push(opened),
                Err(ReadError::Other(Error::NotFound(_))) => values.missing.push(place.name.clone()),
                Err(error) => return Err(error),
            }
        }
        Ok(values)
    }

    async fn read_all(&self, grant: &Grant, limit: u32) -> Result<BatchValues, ReadError> {
        if *grant.names() != Names::Any {
            return self.read_covered(grant, limit).await;
        }
        let tenant = tenant_of(grant, Permission::Read, [])?;
        let _reading = self.rooms.to_read(limit as usize).await?;
        let read = self.store.read_tenant(tenant, limit).await.map_err(Error::from)?;
        let page = read.map_err(Error::from)?;
        if page.more {
            return Err(ReadError::Other(Error::TooLarge(format!(
                "the tenant has more than {limit} secrets; ask for them by name, {limit} at a time"
            ))));
        }
        let room = self.rooms.to_answer(page.items.iter().map(|(_, version)| ciphertext_len(version)).sum()).await?;
        let mut secrets = Vec::with_capacity(page.items.len());
        for (index, (secret, version)) in page.items.into_iter().enumerate() {
            let_others_run(index).await;
            secrets.push(open_sealed(&self.keys, secret, version)?);
        }
        Ok(BatchValues { secrets, missing: Vec::new(), room })
    }

    /// All that a grant for some names covers. It is looked for by name first, so that nothing beyond it is opened, counted or told.
    async fn read_covered(&self, grant: &Grant, limit: u32) -> Result<BatchValues, ReadError> {
        let tenant = tenant_of(grant, Permission::Read, [])?;
        let page = self.covered_page(tenant, grant.names(), None, limit).await?;
        if page.more {
            return Err(ReadError::Other(Error::TooLarge(format!(
                "the caller may read more than {limit} secrets of the tenant; ask for them by name, {limit} at a time"
            ))));
        }
        let names: Vec<SecretName> = page.items.into_iter().map(|secret| secret.name).collect();
        let values = self.read_named(grant, &names).await?;
        // What went since it was listed was not asked for by name.
        Ok(BatchValues { missing: Vec::new(), ..values })
    }

    /// A page of the secrets whose names are covered. The others are passed over here: a page token made of one would tell its name.
    async fn covered_page(
        &self,
        tenant: &Tenant,
        names: &Names,
        after: Option<&SecretName>,
        limit: u32,
    ) -> Result<Page<SecretRecord>, Error> {
        let (mut items, mut after) = (Vec::new(), after.cloned());
        loop {
            // Whole pages, whatever was asked for: of a thousand names one may be covered.
            let page = self.store.list(tenant, after.as_ref(), WHOLE_PAGE).await??;
            after = page.items.last().map(|secret| secret.name.clone());
            items.extend(page.items.into_iter().filter(|secret| names.cover(&secret.name)));
            if items.len() > limit as usize {
                items.truncate(limit as usize);
                return Ok(Page { items, more: true });
            }
            if !page.more || after.is_none() {
                return Ok(Page { items, more: false });
            }
        }
    }

    /// Metadata of a tenant's secrets, by name: of those that the grant covers.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown tenant; [`Error::Unavailable`].
    pub async fn list(
        &self,
        request: &Request,
        grant: &Grant,
        after: Option<&SecretName>,
        limit: u32,
    ) -> Result<Page<SecretRecord>, Error> {
        let result = async {
            let tenant = tenant_of(grant, Permission::List, [])?;
            match grant.names() {
                Names::Any => self.store.list(tenant, after, limit).await?.map_err(Error::from),
                names @ Names::Like(_) => self.covered_page(tenant, names, after, limit).await,
            }
        };
        let result = result.await;
        self.recorded(request, grant, Action::List, None, result, |_| None).await
    }

    /// A secret's versions, newest first, of a deleted secret too.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Unavailable`].
    pub async fn versions(
        &self,
        request: &Request,
        grant: &Grant,
        name: &SecretName,
    ) -> Result<(SecretRecord, Vec<VersionRecord>), Error> {
        let result = async {
            let tenant = tenant_of(grant, Permission::List, [name])?;
            self.store.versions(tenant, name).await?.map_err(Error::from)
        };
        let result = result.await;
        self.recorded(request, grant, Action::Versions, Some(name), result, |_| None).await
    }

    /// Sets a secret: a new version, unless the value is that of the current one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a value that is too long; [`Error::Precondition`]; [`Error::Unavailable`]; [`Error::Internal`] where the
    /// tenant's DEK does not open.
    pub async fn set(&self, request: &Request, grant: &Grant, new: NewSecret) -> Result<Written, Error> {
        self.may_record().await?;
        let name = new.name.clone();
        let change = self.change(request, grant.identity(), Action::Set, Some(grant.tenant())).await?;
        let result = async {
            let intent = self.intent(grant, &new)?;
            self.write_one(change.store(), intent, Some(new.value)).await
        };
        let result = result.await;
        self.recorded_version(request, grant, &change, &name, result, |written| written.secret.current).await
    }

    /// Sets several secrets of one tenant, all or none.
    ///
    /// # Errors
    /// As [`Service::set`]; the message names the secret that was refused.
    pub async fn batch_set(
        &self,
        request: &Request,
        grant: &Grant,
        secrets: Vec<NewSecret>,
    ) -> Result<Vec<Written>, Error> {
        self.may_record().await?;
        let names: Vec<SecretName> = secrets.iter().map(|new| new.name.clone()).collect();
        let change = self.change(request, grant.identity(), Action::BatchSet, Some(grant.tenant())).await?;
        let result = async {
            let intents = secrets
                .iter()
                .map(|new| self.intent(grant, new).map_err(|error| error.about(&new.name)))
                .collect::<Result<Vec<_>, _>>()?;
            let values: Vec<_> = secrets.into_iter().map(|new| Some(new.value)).collect();
            self.write_all(change.store(), &intents, &values).await
        };
        let result = result.await;
        let touched: Vec<Touched> = match &result {
            Ok(written) => written
                .iter()
                .map(|written| Touched::one(&written.secret.name, Some(written.secret.current), Outcome::Ok))
                .collect(),
            Err(error) => Touched::none_of(names.iter(), error.outcome()).into_iter().collect(),
        };
        self.recorded_change(request, grant.identity(), &change, |_| touched, result).await
    }

    /// Makes a new version with the value of an earlier one.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a version that is not there or destroyed, or a deleted secret; otherwise as [`Service::set`].
    pub async fn rollback(
        &self,
        request: &Request,
        grant: &Grant,
        name: &SecretName,
        version: SecretVersion,
    ) -> Result<Written, Error> {
        self.may_record().await?;
        let change = self.change(request, grant.identity(), Action::Rollback, Some(grant.tenant())).await?;
        let result = async {
            let intent = Intent {
                tenant: tenant_of(grant, Permission::Write, [name])?.clone(),
                name: name.clone(),
                source: Source::CopyOf(version),
                expect: Expect::Anything,
                delivery: None,
                keep: Keep::Newest(self.keep_versions.get()),
            };
            self.write_one(change.store(), intent, None).await
        };
        let result = result.await;
        self.recorded_version(request, grant, &change, name, result, |written| written.secret.current).await
    }

    /// Hides a secret until it is undeleted or set anew.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Unavailable`].
    pub async fn delete(&self, request: &Request, grant: &Grant, name: &SecretName) -> Result<SecretRecord, Error> {
        self.may_record().await?;
        let change = self.change(request, grant.identity(), Action::Delete, Some(grant.tenant())).await?;
        let result = async {
            let tenant = tenant_of(grant, Permission::Delete, [name])?;
            self.node.may_write().await?;
            change.store().delete(tenant, name).await?.map_err(Error::from)
        };
        let result = result.await;
        self.recorded_version(request, grant, &change, name, result, |secret| secret.current).await
    }

    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] where it is not deleted; [`Error::Unavailable`].
    pub async fn undelete(&self, request: &Request, grant: &Grant, name: &SecretName) -> Result<SecretRecord, Error> {
        self.may_record().await?;
        let change = self.change(request, grant.identity(), Action::Undelete, Some(grant.tenant())).await?;
        let result = async {
            let tenant = tenant_of(grant, Permission::Delete, [name])?;
            self.node.may_write().await?;
            change.store().undelete(tenant, name).await?.map_err(Error::from)
        };
        let result = result.await;
        self.recorded_version(request, grant, &change, name, result, |secret| secret.current).await
    }

    /// Destroys versions for good: all that are named, or none.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Unavailable`].
    pub async fn destroy(
        &self,
        request: &Request,
        grant: &Grant,
        name: &SecretName,
        versions: &[SecretVersion],
    ) -> Result<SecretRecord, Error> {
        self.may_record().await?;
        let change = self.change(request, grant.identity(), Action::Destroy, Some(grant.tenant())).await?;
        let result = async {
            let tenant = tenant_of(grant, Permission::Destroy, [name])?;
            self.node.may_write().await?;
            change.store().destroy(tenant, name, versions).await?.map_err(Error::from)
        };
        let result = result.await;
        let touched =
            |outcome| versions.iter().map(|version| Touched::one(name, Some(*version), outcome)).collect::<Vec<_>>();
        self.recorded_change(request, grant.identity(), &change, touched, result).await
    }

    /// As [`Service::recorded_change`], of a change of one secret.
    async fn recorded_version<T>(
        &self,
        request: &Request,
        grant: &Grant,
        change: &Change,
        name: &SecretName,
        result: Result<T, Error>,
        version: impl FnOnce(&T) -> SecretVersion,
    ) -> Result<T, Error> {
        let version = result.as_ref().ok().map(version);
        let touched = |outcome| vec![Touched::one(name, version, outcome)];
        self.recorded_change(request, grant.identity(), change, touched, result).await
    }

    fn intent(&self, grant: &Grant, new: &NewSecret) -> Result<Intent, Error> {
        if new.value.len() > MAX_VALUE_BYTES {
            return Err(Error::Invalid(format!(
                "a value has at most {MAX_VALUE_BYTES} bytes; this one has {}",
                new.value.len()
            )));
        }
        Ok(Intent {
            tenant: tenant_of(grant, Permission::Write, [&new.name])?.clone(),
            name: new.name.clone(),
            source: Source::Value,
            expect: new.expect,
            delivery: new.delivery,
            keep: Keep::Newest(self.keep_versions.get()),
        })
    }

    async fn write_one(&self, store: &dyn Store, intent: Intent, value: Option<SecretValue>) -> Result<Written, Error> {
        let written = self.write_all(store, std::slice::from_ref(&intent), &[value]).await?;
        written.into_iter().next().ok_or(Error::Internal(Failure::Other))
    }

    /// Writes all intents or none. A tenant without an active DEK gets one in a transaction of its own, and the write starts anew.
    pub(super) async fn write_all(
        &self,
        store: &dyn Store,
        intents: &[Intent],
        values: &[Option<SecretValue>],
    ) -> Result<Vec<Written>, Error> {
        let sealer = ValueSealer { keys: &self.keys, values };
        let mut looked = false;
        for _ in 0..WRITE_ATTEMPTS {
            self.node.may_write().await?;
            let outcomes = store.write(intents, Together::AllOrNothing, &sealer).await?;
            if let Some(kid) = not_loaded(&outcomes).filter(|_| !looked) {
                self.node.look_for(kid).await;
                looked = true;
                continue;
            }
            let without_dek = outcomes
                .iter()
                .zip(intents)
                .find_map(|(outcome, intent)| matches!(outcome, Err(Refusal::NoActiveDek)).then_some(intent));
            if let Some(intent) = without_dek {
                self.make_dek(&intent.tenant).await?;
                continue;
            }
            return all_written(intents, outcomes);
        }
        Err(Error::Unavailable("the tenant's DEK changed again and again; try once more".to_owned()))
    }
}

/// Why a read did not come to its end.
pub(super) enum ReadError {
    /// Worth another try once the key files were looked at.
    NotLoaded(Kid),
    Other(Error),
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NotLoaded(kid) => Self::from_keys(&KeysError::NotLoaded(kid)),
            ReadError::Other(error) => error,
        }
    }
}

fn not_loaded(outcomes: &[Result<Written, Refusal>]) -> Option<Kid> {
    outcomes.iter().find_map(|outcome| match outcome {
        Err(Refusal::Seal(SealRefusal::NotLoaded(kid))) => Some(*kid),
        _ => None,
    })
}

/// Opening a thousand values takes a tenth of a second, in which a request that waits for this thread would not be answered.
async fn let_others_run(index: usize) {
    if index % 16 == 15 {
        tokio::task::yield_now().await;
    }
}

fn ciphertext_of_found(found: &Found) -> usize {
    match found {
        Found::Secret(_, Some(version)) => ciphertext_len(version),
        _ => 0,
    }
}

fn ciphertext_len(version: &VersionRecord) -> usize {
    match &version.body {
        VersionBody::Live { ciphertext, .. } => ciphertext.len(),
        VersionBody::Destroyed { .. } => 0,
    }
}

/// The outcomes of an all-or-nothing batch; the error of the one that was refused, by its name where there are several.
pub(super) fn all_written(intents: &[Intent], outcomes: Vec<Result<Written, Refusal>>) -> Result<Vec<Written>, Error> {
    let single = intents.len() == 1;
    let cause = outcomes.iter().zip(intents).find_map(|(outcome, intent)| match outcome {
        Ok(_) | Err(Refusal::Batch) => None,
        Err(refusal) => Some((refusal.clone(), &intent.name)),
    });
    match cause {
        Some((refusal, _)) if single => Err(refusal.into()),
        Some((refusal, name)) => Err(Error::from(refusal).about(name)),
        None => outcomes.into_iter().collect::<Result<_, _>>().map_err(Error::from),
    }
}

/// Opens what was read of a secret; what does not open is said in the log.
pub(super) fn open_sealed(
    keys: &Keyring,
    secret: SecretRecord,
    version: VersionRecord,
) -> Result<OpenedSecret, ReadError> {
    let VersionBody::Live { ciphertext, dek_version, dek } = version.body else {
        return Err(ReadError::Other(Error::NotFound(format!(
            "version {} of secret {} of tenant {} is destroyed",
            version.version, secret.name, secret.tenant
        ))));
    };
    let place = SecretPlace { tenant: &secret.tenant, name: &secret.name, dek_version, version: version.version };
    let Some(dek) = dek else {
        tracing::error!(tenant = %place.tenant, name = %place.name, version = %place.version, "the row of DEK version {dek_version} is missing: restore the table `deks` from a backup");
        return Err(Error::Internal(Failure::Authentication).into());
    };
    let dek = keys.dek(&dek).map_err(|error| {
        log_no_dek(place, &error);
        match error {
            KeysError::NotLoaded(kid) => ReadError::NotLoaded(kid),
            error => Error::from_keys(&error).into(),
        }
    })?;
    let value = crypto::open(&dek, place, &ciphertext).map_err(|error| {
        tracing::error!(tenant = %place.tenant, name = %place.name, version = %place.version, "ciphertext authentication failed: {error}");
        Error::Internal(Failure::Authentication)
    })?;
    Ok(OpenedSecret { version: version.version, made_at: version.created_at, secret, value })
}

/// The grant's tenant, where the grant covers these names too. A grant for another permission never reaches here; were it to, it opens
/// nothing.
fn tenant_of<'a, 'n>(
    grant: &'a Grant,
    permission: Permission,
    names: impl IntoIterator<Item = &'n SecretName>,
) -> Result<&'a Tenant, Error> {
    if grant.permission() != permission {
        return Err(Error::Internal(Failure::Other));
    }
    names.into_iter().try_for_each(|name| grant.covers(name))?;
    Ok(grant.tenant())
}

impl Error {
    pub(super) fn from_keys(error: &KeysError) -> Self {
        match error {
            KeysError::Locked(_) => Self::Unavailable("the keys are locked".to_owned()),
            KeysError::NotLoaded(_) => Self::Unavailable(error.to_string()),
            KeysError::Quarantined => Self::Internal(Failure::Quarantined),
            KeysError::Shredded | KeysError::DoesNotOpen(_) | KeysError::WrongId => {
                Self::Internal(Failure::Authentication)
            }
            KeysError::NoRandom(_) => Self::Internal(Failure::Other),
        }
    }

    /// Says which secret of a batch an error is about; the words of an internal failure stay as they are.
    fn about(self, name: &SecretName) -> Self {
        let named = |detail: String| format!("{name}: {detail}");
        match self {
            Self::Invalid(detail) => Self::Invalid(named(detail)),
            Self::NotFound(detail) => Self::NotFound(named(detail)),
            Self::Conflict(detail) => Self::Conflict(named(detail)),
            Self::Precondition(detail) => Self::Precondition(named(detail)),
            other => other,
        }
    }
}
