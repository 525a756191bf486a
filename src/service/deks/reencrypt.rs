//! Re-encryption: every version of a tenant's secrets, deleted secrets too, from its decrypt-only DEKs to the active one.
//!
//! In pages, each put in by compare-and-set on the old blob, so readers and writers go on; never on a read. There is no state but
//! the rows': whatever interrupted it, the next call goes on with the decrypt-only DEKs that are left.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::super::error::seal_refusal;
use super::super::job::Reporter;
use super::super::{Error, Service};
use super::{blocked, named};
use crate::crypto::{self, Dek, SecretPlace, SecretValue};
use crate::keys::{Keyring, KeysError};
use crate::model::{Action, DekBody, DekRecord, DekVersion, SecretName, SecretVersion, Tenant};
use crate::store::deks::{RemoveDekOutcome, ResealOutcome, Resealer, SealedVersion};
use crate::store::{SealRefusal, Store, StoreError};

/// Versions that are opened at a time: with the largest values 8 MiB of plaintext, wiped with the page.
const PAGE: u32 = 128;
/// How often a tenant is walked anew for what a race left behind. A DEK that decrypts only seals nothing new, so one walk is enough
/// but for writes that were under way; what is left after these is somebody rotating without end.
const PASSES: u32 = 5;
/// How often one page is tried where its active DEK or master key was not there at first.
const PAGE_ATTEMPTS: u32 = 4;

/// What a re-encryption of one tenant did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reencrypted {
    /// Versions that were sealed anew.
    pub versions: u64,
    /// Old DEKs that are gone.
    pub removed: u64,
    /// Versions that do not open and were left.
    pub left: u64,
    /// What does not open, in words: versions, or whole DEKs.
    pub damaged: Vec<String>,
}

/// One tenant's re-encryption on its way.
struct Walk<'a> {
    service: &'a Service,
    /// Where it makes its changes.
    store: &'a dyn Store,
    tenant: &'a Tenant,
    reporter: &'a Reporter,
    say: &'a (dyn Fn(u64, u64) + Send + Sync),
    done: Reencrypted,
    /// How many versions there are to seal anew, as far as was counted.
    total: u64,
    /// What did not open, by DEK: found again in each pass, said once.
    damaged: HashMap<DekVersion, BTreeSet<(SecretName, SecretVersion)>>,
    /// DEKs that did not open themselves, with how many versions they sealed.
    unopened: HashMap<DekVersion, u64>,
}

/// What is left under an old DEK.
enum Rest {
    Gone,
    Damaged,
    /// Something else was sealed under it: a write that raced.
    More,
}

impl Service {
    /// Seals what a tenant's decrypt-only DEKs sealed under its active one, and removes those DEKs. `say` is told versions done and to
    /// do. What does not open is named in the log and in the result, and left with its DEK.
    ///
    /// # Errors
    /// [`Error::Denied`] for a blocked tenant; [`Error::Unavailable`], also where the daemon stops or writes are closed: called again,
    /// it goes on.
    pub(in crate::service) async fn reencrypt_tenant(
        &self,
        store: &dyn Store,
        tenant: &Tenant,
        reporter: &Reporter,
        say: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Reencrypted, Error> {
        let walk = Walk {
            service: self,
            store,
            tenant,
            reporter,
            say,
            done: Reencrypted::default(),
            total: 0,
            damaged: HashMap::new(),
            unopened: HashMap::new(),
        };
        walk.run().await
    }
}

impl Walk<'_> {
    async fn run(mut self) -> Result<Reencrypted, Error> {
        let mut finished = BTreeSet::new();
        for _ in 0..PASSES {
            let deks = self.service.store.deks(self.tenant).await?;
            let old: Vec<DekRecord> = deks
                .into_iter()
                .filter(|dek| matches!(dek.body, DekBody::DecryptOnly(_)) && !finished.contains(&dek.version))
                .collect();
            if old.is_empty() {
                return Ok(self.end());
            }
            for dek in old {
                match self.empty(&dek).await? {
                    Rest::Gone => {}
                    Rest::Damaged => {
                        finished.insert(dek.version);
                    }
                    Rest::More => tracing::info!("more was sealed under {}; walking again", self.named(&dek)),
                }
            }
        }
        Err(Error::Unavailable(format!(
            "something goes on sealing under old DEKs of tenant {}; everything else is re-encrypted. Try again when no other rotation of \
             it is under way",
            self.tenant
        )))
    }

    fn end(self) -> Reencrypted {
        let versions: u64 = self.damaged.values().map(|versions| versions.len() as u64).sum();
        let left = versions + self.unopened.values().sum::<u64>();
        Reencrypted { left, ..self.done }
    }

    fn named(&self, dek: &DekRecord) -> String {
        named(self.tenant, dek.version)
    }

    /// Seals all that is under an old DEK anew, and removes it.
    async fn empty(&mut self, dek: &DekRecord) -> Result<Rest, Error> {
        // The attempt counts what there is to do, and ends it where that is nothing.
        let RemoveDekOutcome::StillUsed(sealed) = self.remove(dek).await? else { return Ok(Rest::Gone) };
        let Some(key) = self.open_dek(dek, sealed).await? else { return Ok(Rest::Damaged) };
        self.total = self.total.max(self.done.versions + sealed);
        self.walk(dek.version, &key).await?;
        match self.remove(dek).await? {
            RemoveDekOutcome::StillUsed(left) if left <= self.count_damaged(dek.version) => Ok(Rest::Damaged),
            RemoveDekOutcome::StillUsed(_) => Ok(Rest::More),
            _ => Ok(Rest::Gone),
        }
    }

    async fn remove(&mut self, dek: &DekRecord) -> Result<RemoveDekOutcome, Error> {
        let change = self.service.own_change(Action::RemoveDek, Some(self.tenant)).await?;
        let outcome = change.store().remove_dek(self.tenant, dek.version).await?;
        if outcome == RemoveDekOutcome::Removed {
            self.service.keys.forget(dek);
            self.done.removed += 1;
        }
        Ok(outcome)
    }

    fn count_damaged(&self, dek: DekVersion) -> u64 {
        self.damaged.get(&dek).map_or(0, |versions| versions.len() as u64)
    }

    /// The old DEK itself. `None` where it does not open: then nothing under it does.
    async fn open_dek(&mut self, dek: &DekRecord, sealed: u64) -> Result<Option<Arc<Dek>>, Error> {
        let mut opened = self.service.keys.dek(dek);
        if let Err(KeysError::NotLoaded(kid)) = opened {
            // Its master key came a moment ago, or it was wrapped anew since it was read.
            self.service.node.look_for(kid).await;
            let again = self.service.store.dek(self.tenant, dek.version).await?;
            opened = self.service.keys.dek(again.as_ref().unwrap_or(dek));
        }
        match opened {
            Ok(key) => Ok(Some(key)),
            Err(error @ (KeysError::Locked(_) | KeysError::NotLoaded(_) | KeysError::NoRandom(_))) => {
                Err(Error::from_keys(&error))
            }
            Err(error) => {
                let what = format!("{}, which sealed {sealed} versions", self.named(dek));
                tracing::error!("{what}, does not open: {error}");
                self.unopened.insert(dek.version, sealed);
                self.done.damaged.push(what);
                Ok(None)
            }
        }
    }

    async fn walk(&mut self, from: DekVersion, key: &Dek) -> Result<(), Error> {
        let mut after: Option<(SecretName, SecretVersion)> = None;
        loop {
            self.reporter.go_on()?;
            (self.say)(self.done.versions, self.total);
            let cursor = after.as_ref().map(|(name, version)| (name, *version));
            let page = self.service.store.sealed_under(self.tenant, from, cursor, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some((last.name.clone(), last.version));
            let (versions, values) = self.open_page(from, key, page);
            if !versions.is_empty() {
                self.reseal(from, &versions, values).await?;
            }
        }
    }

    /// The page's versions that open, each with its value.
    fn open_page(
        &mut self,
        from: DekVersion,
        key: &Dek,
        page: Vec<SealedVersion>,
    ) -> (Vec<SealedVersion>, Vec<SecretValue>) {
        let mut opened = (Vec::with_capacity(page.len()), Vec::with_capacity(page.len()));
        for sealed in page {
            let (name, version) = (&sealed.name, sealed.version);
            let place = SecretPlace { tenant: self.tenant, name, dek_version: from, version };
            match crypto::open(key, place, &sealed.ciphertext) {
                Ok(value) => {
                    opened.0.push(sealed);
                    opened.1.push(value);
                }
                Err(error) => self.note_damaged(from, name, version, error),
            }
        }
        opened
    }

    fn note_damaged(&mut self, from: DekVersion, name: &SecretName, version: SecretVersion, error: crypto::OpenError) {
        if self.damaged.entry(from).or_default().insert((name.clone(), version)) {
            let tenant = self.tenant;
            tracing::error!(%tenant, %name, %version, "ciphertext authentication failed; the version stays under DEK version {from}: {error}");
            self.done.damaged.push(format!("{tenant}/{name} version {version}"));
        }
    }

    async fn reseal(
        &mut self,
        from: DekVersion,
        versions: &[SealedVersion],
        values: Vec<SecretValue>,
    ) -> Result<(), Error> {
        let service = self.service;
        let resealer = ValueResealer { keys: &service.keys, values };
        for _ in 0..PAGE_ATTEMPTS {
            service.node.may_write().await?;
            match self.store.reseal(self.tenant, from, versions, &resealer).await {
                Ok(ResealOutcome::Resealed(count)) => {
                    self.done.versions += count;
                    return Ok(());
                }
                Ok(ResealOutcome::NoActiveDek) => service.make_dek(self.tenant).await?,
                Ok(ResealOutcome::Blocked) => return Err(blocked(self.tenant)),
                Ok(ResealOutcome::Refused(SealRefusal::NotLoaded(kid))) => service.node.look_for(kid).await,
                Ok(ResealOutcome::Refused(refusal)) => return Err(refusal.into()),
                // Compare-and-set: where the commit came through, the page is found done.
                Err(StoreError::UnknownOutcome(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Unavailable(format!("the active DEK of tenant {} changed again and again", self.tenant)))
    }
}

/// Seals values that were opened before, under whatever DEK is active when the store holds its locks.
struct ValueResealer<'a> {
    keys: &'a Keyring,
    values: Vec<SecretValue>,
}

impl Resealer for ValueResealer<'_> {
    fn reseal(&self, index: usize, version: &SealedVersion, active: &DekRecord) -> Result<Vec<u8>, SealRefusal> {
        let value = self.values.get(index).ok_or(SealRefusal::DoesNotOpen)?;
        let dek = self.keys.dek(active).map_err(|error| seal_refusal(&error))?;
        let place = SecretPlace {
            tenant: &active.tenant,
            name: &version.name,
            dek_version: active.version,
            version: version.version,
        };
        crypto::seal(&dek, place, value).map_err(|_| SealRefusal::NoRandom)
    }
}
