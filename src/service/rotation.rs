//! A new master key for every DEK while the daemon serves (docs/KEY_ROTATION.md).
//!
//! `plan` says what comes next, `execute` does it: a loop of look, plan, one step, look again. There is no state but the database's
//! and the key files', so a crash between or inside any two steps leaves what the next look goes on from.

mod execute;
mod plan;
pub mod proof;
mod report;
mod told;
pub mod verify;
mod walk;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::dek::ValueSealer;
use super::job::{Job, Watch};
use super::kms::OnlyWay;
use super::open::{SYSTEM_SECRETS, TOKEN_MAC};
use super::secrets::all_written;
use super::{Error, Request, Service, Touched};
use crate::access::{AdminGrant, RowSealer};
use crate::audit::Outcome;
use crate::crypto::{SecretValue, TokenMacKey};
use crate::keys::keyfile::MainFile;
use crate::model::{
    Action, DekVersion, KeyMode, KeyPhase, Kid, KmsKey, MasterKeyState, Micros, NodeId, SecretName, Tenant,
    WrappedMaster,
};
use crate::store::tokens::TokenSealer;
use crate::store::{Expect, Intent, Keep, Source};

use execute::{Carrier, blocked};
use plan::Blocked;
use told::Told;
use verify::Verifier;

pub use report::{End, Report, TenantValues, Values};

/// What an operator asks of the rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Counts, what would stop it, an estimate.
    DryRun,
    Start {
        mode: KeyMode,
        escrow: Escrow,
    },
    /// Goes on from where it is.
    Resume {
        proof: Option<Proof>,
        escrow: Escrow,
    },
    /// Gives the staged key up.
    Abort,
    /// Destroys a retired key.
    DestroyOld {
        kid: Kid,
        proof: Option<Proof>,
        escrow: Escrow,
    },
}

impl Asked {
    const fn action(&self) -> Action {
        match self {
            Self::DryRun => Action::RotationDryRun,
            Self::Start { .. } | Self::Resume { .. } => Action::RotateMaster,
            Self::Abort => Action::AbortRotation,
            Self::DestroyOld { .. } => Action::DestroyMaster,
        }
    }

    /// What asks for the same once more, or for what is left of it.
    const fn again(&self) -> &'static str {
        match self {
            Self::DryRun => "--dry-run",
            Self::Start { .. } | Self::Resume { .. } => "--resume",
            Self::Abort => "--abort",
            Self::DestroyOld { .. } => "--destroy-old",
        }
    }

    const fn proof(&self) -> Option<&Proof> {
        match self {
            Self::Resume { proof, .. } | Self::DestroyOld { proof, .. } => proof.as_ref(),
            Self::DryRun | Self::Start { .. } | Self::Abort => None,
        }
    }

    const fn escrow(&self) -> Escrow {
        match self {
            Self::Start { escrow, .. } | Self::Resume { escrow, .. } | Self::DestroyOld { escrow, .. } => *escrow,
            Self::DryRun | Self::Abort => Escrow::Prove,
        }
    }
}

/// How the key is to be known off the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escrow {
    /// By a copy in Secret Manager whose checksum was confirmed.
    Push,
    /// A copy is fed back from there.
    Prove,
    /// Not at all, and the operator says so.
    Waive,
}

/// A copy that was read off the host, in the command's own process. The key itself stays there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub kid: Kid,
    /// Where it was read: a path, or standard input.
    pub locator: String,
    pub sha256: [u8; 32],
    /// The versions of KMS keys that it needs, by their names; none of a copy of the key itself.
    pub kms_versions: Vec<String>,
}

/// What comes with what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Nodes that are away and may get the key later.
    pub without: Vec<NodeId>,
    /// Where the key file is wrapped: the new key's, made and wrapped by who asked. The daemon may only decrypt.
    pub new_key: Option<WrappedMaster>,
    /// Of a wrapped new key.
    pub only_way: OnlyWay,
}

impl Default for Terms {
    fn default() -> Self {
        Self { without: Vec::new(), new_key: None, only_way: OnlyWay::Refused }
    }
}

/// What an operator asked, and who that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub asked: Asked,
    pub terms: Terms,
    /// For the record of a waiver, as audit records name callers.
    pub who: String,
}

/// How often it is looked for a rotation that nobody carries.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How soon one is taken up again that stopped for a reason that did not go away.
const AGAIN_AFTER: Duration = Duration::from_mins(1);

/// What a service has for its rotations: room for one run at a time.
pub(super) struct Rotation {
    job: Job<Report>,
    /// What the run that is under way, or was last, goes by.
    told: Mutex<Told>,
    verifier: Verifier,
    /// For how long a retired key is kept.
    retain_old: Duration,
}

impl Rotation {
    pub(super) fn new(verifier: Verifier, retain_old: Duration) -> Self {
        Self { job: Job::new("rotate-master"), told: Mutex::default(), verifier, retain_old }
    }
}

impl Service {
    /// Begins what was asked in a task of its own, or turns what is under way to it: whoever asked may hang up.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a copy in Secret Manager is asked for and no secret is configured; [`Error::Conflict`] while one is under
    /// way here, and for giving up past the flip or beside what cannot be given up; [`Error::Unavailable`] when the daemon is stopping, or where the call could not be recorded.
    pub async fn rotate_master(
        self: &Arc<Self>,
        request: &Request,
        grant: &AdminGrant,
        asked: Asked,
        terms: Terms,
    ) -> Result<Watch<Report>, Error> {
        let action = asked.action();
        if action.changes() {
            self.may_record().await?;
        }
        let order = Order { asked, terms, who: grant.identity().to_string() };
        let begun = match order.asked {
            Asked::Abort => self.abort_rotation(order).await,
            _ => match self.may_escrow(&order.asked) {
                Ok(()) => self.fits_the_key_file(&order).await.and_then(|()| self.begin_rotation(order)),
                Err(error) => Err(error),
            },
        };
        let outcome = begun.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
        self.record(request, grant.identity(), action, None, [Touched::nothing(outcome)]).await?;
        begun
    }

    /// A look at the run that is under way, or was last.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there was none since the start; [`Error::Unavailable`] where the call could not be recorded.
    pub async fn follow_rotation(&self, request: &Request, grant: &AdminGrant) -> Result<Watch<Report>, Error> {
        let watch = self.rotation.job.watch();
        let outcome = watch.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
        self.record(request, grant.identity(), Action::FollowRotation, None, [Touched::nothing(outcome)]).await?;
        watch
    }

    /// The keys that a rotation, or the end of an old key, is about.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn rotation_keys(&self, request: &Request, grant: &AdminGrant) -> Result<RotationKeys, Error> {
        let keys = self.find_rotation_keys().await;
        let outcome = keys.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
        self.record(request, grant.identity(), Action::RotationKeys, None, [Touched::nothing(outcome)]).await?;
        keys
    }

    async fn find_rotation_keys(&self) -> Result<RotationKeys, Error> {
        let keys = self.store.survey().await?.master_keys;
        let files = self.node.files();
        let in_state = |state| keys.iter().filter(move |key| key.state == state);
        let staged = in_state(MasterKeyState::Staged)
            .next()
            .map(|key| Staged { kid: key.kid, path: files.retained_path(key.kid) });
        let mut retired: Vec<(Kid, Micros)> =
            in_state(MasterKeyState::Retired).filter_map(|key| key.retired_at.map(|at| (key.kid, at))).collect();
        retired.sort_by_key(|(_, at)| *at);
        Ok(RotationKeys { key_file: files.path(), wrapped_for: self.wrapped_for().await?, staged, retired })
    }

    /// Why the run of this daemon that was last did not come to its end; nothing while one is under way.
    pub(super) fn why_rotation_stopped(&self) -> Option<String> {
        match self.rotation.job.watch().ok()?.end()? {
            Err(error) => Some(error.to_string()),
            Ok(report) if report.end == End::Staged => Some(report.left.join("; ")),
            Ok(_) => None,
        }
    }

    /// How a new key is to be known off the host where the operator does not say.
    #[must_use]
    pub fn usual_escrow(&self) -> Escrow {
        if self.copied_to().is_empty() { Escrow::Prove } else { Escrow::Push }
    }

    /// Nothing is staged for a copy that can be made nowhere.
    fn may_escrow(&self, asked: &Asked) -> Result<(), Error> {
        if asked.escrow() == Escrow::Push && self.copied_to().is_empty() {
            return Err(Error::Invalid(
                "no secret is configured for a copy of the new key: name one in `[backup.gcp] secrets` and restart the daemon, or leave \
                 `--escrow gcp` out and prove a copy with `containarium admin rotate-master --resume --prove-from FILE`"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    /// Told before anything is done; staging looks again, under the key files' lock.
    async fn fits_the_key_file(&self, order: &Order) -> Result<(), Error> {
        if !matches!(order.asked, Asked::Start { .. }) {
            return Ok(());
        }
        let is_wrapped = self.wrapped_for().await?.is_some();
        misfit(is_wrapped, order.terms.new_key.is_some()).map_or(Ok(()), Err)
    }

    /// For what the key file in use is wrapped.
    async fn wrapped_for(&self) -> Result<Option<WrappedFor>, Error> {
        let files = self.node.files().clone();
        let scan = tokio::task::spawn_blocking(move || files.scan()).await;
        let main = scan.map_err(|_| Error::Incomplete("a thread ended with a panic".to_owned()))?.main;
        let MainFile::Key(file) = &main else { return Ok(None) };
        Ok(file.wrapped().map(|wrapped| WrappedFor {
            kms_keys: wrapped.kms_keys().into_iter().cloned().collect(),
            age_recipients: wrapped.age_recipients().map(str::to_owned).collect(),
        }))
    }

    fn begin_rotation(self: &Arc<Self>, order: Order) -> Result<Watch<Report>, Error> {
        // Held over both: an abort between them would be told to the run before.
        let mut current = lock(&self.rotation.told);
        let told = Told::new(order.clone());
        let (service, given) = (Arc::clone(self), told.clone());
        let work = |reporter| Carrier::new(service, order, given, reporter).carry();
        let watch = self.rotation.job.begin(&self.workers, work)?;
        *current = told;
        Ok(watch)
    }

    /// A run that waits while its key is staged turns to giving it up. What runs past the flip is left alone.
    async fn abort_rotation(self: &Arc<Self>, order: Order) -> Result<Watch<Report>, Error> {
        let state = self.store.survey().await?.key_state;
        if let Some(state) = state.filter(|state| is_past_the_flip(state.phase)) {
            return Err(blocked(&Blocked::PastTheFlip(state.phase)));
        }
        match self.begin_rotation(order.clone()) {
            Err(Error::Conflict(_)) => {
                let told = lock(&self.rotation.told).clone();
                told.turn(order)?;
                self.rotation.job.watch()
            }
            begun => begun,
        }
    }

    /// Carries on what a crash left past the flip, on this node at once and on another when the lease lapsed; until the daemon stops. One
    /// that was stopped by something that an operator must mend is tried again now and then.
    pub fn keep_rotating(self: &Arc<Self>) {
        self.workers.spawn(Arc::clone(self).carry_rotations_on());
    }

    async fn carry_rotations_on(self: Arc<Self>) {
        let mut tried: Option<((u64, KeyPhase), Duration)> = None;
        loop {
            let now = self.clock.monotonic();
            let again = |at| tried.is_none_or(|(before, when)| before != at || now.saturating_sub(when) >= AGAIN_AFTER);
            if let Some(at) = self.left_behind().await.filter(|at| again(*at)) {
                let asked = Asked::Resume { proof: None, escrow: Escrow::Prove };
                let order = Order { asked, terms: Terms::default(), who: "daemon".to_owned() };
                if self.begin_rotation(order).is_ok() {
                    tracing::info!("going on with the rotation that is under way, phase {}", at.1);
                    tried = Some((at, now));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.workers.stopping() => return,
            }
        }
    }

    /// New keys for token rows and audit records, beside the versions before: records of their time are verified with them. Tokens that hold
    /// go on to hold: their rows are authenticated anew in the transaction that makes the new key.
    async fn renew_system_keys(&self) -> Result<(), Error> {
        let failed = |why: String| Error::Incomplete(format!("the system's own keys were not replaced: {why}"));
        let mut intents = Vec::with_capacity(SYSTEM_SECRETS.len());
        let mut values = Vec::with_capacity(SYSTEM_SECRETS.len());
        for name in SYSTEM_SECRETS {
            let name = SecretName::parse(name).map_err(|error| failed(error.to_string()))?;
            let (expect, keep) = (Expect::Anything, Keep::All);
            intents.push(Intent {
                tenant: Tenant::system(),
                name,
                source: Source::Value,
                expect,
                delivery: None,
                keep,
            });
            values.push(Some(SecretValue::make_key().map_err(|error| failed(error.to_string()))?));
        }
        let to = values.iter().zip(SYSTEM_SECRETS).find(|(_, name)| *name == TOKEN_MAC);
        let to = to.and_then(|(value, _)| TokenMacKey::of(value.as_ref()?)).map(RowSealer);
        let to = to.ok_or_else(|| failed("no key of token rows was made".to_owned()))?;
        let change = self.own_change(Action::RenewSystemKeys, Some(&Tenant::system())).await?;
        let from = match self.token_sealer().await {
            Ok(from) => Some(from),
            Err(error) => {
                tracing::warn!("{error}: no token held before, and none is authenticated anew");
                None
            }
        };
        let from = from.as_ref().map(|from| from as &dyn TokenSealer);
        let sealer = ValueSealer { keys: &self.keys, values: &values };
        let outcomes = change.store().write_token_key(&intents, &sealer, from, &to).await?;
        all_written(&intents, outcomes)?;
        self.access.tokens().poll().await;
        self.renew_chain_key().await
    }

    /// A rotation past the flip that no other node carries: its epoch and phase.
    async fn left_behind(&self) -> Option<(u64, KeyPhase)> {
        self.node.may_write().await.ok()?;
        let state = self.store.survey().await.ok()?.key_state?;
        let past = is_past_the_flip(state.phase);
        let lease = state.lease.filter(|lease| past && lease.node != self.node.holder().node);
        let is_carried = match lease {
            Some(lease) => lease.until > self.store.now().await.ok()?,
            None => false,
        };
        (past && !is_carried).then_some((state.epoch, state.phase))
    }
}

/// The keys that are not the one in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationKeys {
    pub key_file: PathBuf,
    /// Absent where the key file is the key itself.
    pub wrapped_for: Option<WrappedFor>,
    pub staged: Option<Staged>,
    /// With the moment of retirement, the oldest first.
    pub retired: Vec<(Kid, Micros)>,
}

/// What opens the key file in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedFor {
    pub kms_keys: Vec<KmsKey>,
    pub age_recipients: Vec<String>,
}

/// Why a new key in this form does not go with the key file.
fn misfit(is_wrapped: bool, new_is_wrapped: bool) -> Option<Error> {
    match (is_wrapped, new_is_wrapped) {
        (true, false) => Some(Error::Conflict(
            "the key file is wrapped, and the daemon, which may only decrypt, cannot wrap a new key: nothing was changed. `containarium admin \
             rotate-master` on this host makes the key and wraps it, with the credentials of who runs it"
                .to_owned(),
        )),
        (false, true) => Some(Error::Conflict(
            "the key file is the key itself, and the new key was sent wrapped: nothing was changed. Wrap the key files first, `containarium \
             kms wrap`, or rotate to a raw key with `containarium admin rotate-master`"
                .to_owned(),
        )),
        (true, true) | (false, false) => None,
    }
}

/// A staged key, and its file on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    pub kid: Kid,
    pub path: PathBuf,
}

const fn is_past_the_flip(phase: KeyPhase) -> bool {
    matches!(phase, KeyPhase::Rewrapping | KeyPhase::Verified | KeyPhase::Reencrypting)
}

/// The mutexes guard single values; a panic while one is held cannot leave half a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A DEK that does not open, or what of a tenant does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    pub tenant: Tenant,
    /// Absent where it is not known which.
    pub version: Option<DekVersion>,
    pub why: String,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "DEK {} {version} does not open: {}", self.tenant, self.why),
            None => write!(f, "tenant {}: {}", self.tenant, self.why),
        }
    }
}
