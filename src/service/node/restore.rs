//! A database that went back, and what accepting it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::converge::is_needed;
use super::{Node, NodeError, Progress, Seen};
use crate::access::{AdminGrant, RowSealer, TokenKey as _};
use crate::audit::Outcome;
use crate::keys::Keys;
use crate::model::{Action, Kid, MasterKeyState, Micros, Tenant, TenantRecord, TokenId, WhichTokens};
use crate::node::{Behind, Fate, Mark, NodeFile};
use crate::service::change::Change;
use crate::service::tokens::unusable;
use crate::service::{Error, Request, Service, SystemKey, Touched};
use crate::store::Store;
use crate::store::deks::{ShredOutcome, ShredWhen};
use crate::store::masters::{Accepted, AtLeast};

const PAGE: u32 = 1000;
/// Within which an operator can take back a shred that is done again without having been asked.
const SECOND_THOUGHTS: Duration = Duration::from_hours(7 * 24);

/// What accepting a restored database means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestorePlan {
    /// Absent where there is nothing to accept.
    pub behind: Option<Behind>,
    /// How far the database is now; absent where it holds no key.
    pub now: Option<Mark>,
    /// The keys that it needs, the active one first.
    pub needed: Vec<NeededKey>,
    /// The key that is staged in it. Accepting ends that rotation and retires the key, which a later state may have had in use.
    pub retires: Option<Kid>,
    /// What is done again, by tenant.
    pub replay: Vec<Replay>,
    /// The tokens that are revoked again.
    pub revokes: Vec<TokenId>,
    /// Whether this node's log holds everything up to the highest generation that it saw. If not, a shred or a revocation that was made since the
    /// restored state may be undone by accepting it, and nobody here knows.
    pub complete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeededKey {
    pub kid: Kid,
    pub state: MasterKeyState,
    /// Whether it is loaded here.
    pub held: bool,
}

/// What the log says of a tenant and the restored database does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    pub tenant: Tenant,
    pub deed: Deed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Its DEKs are destroyed, for good.
    Shred,
    /// It is blocked, and its DEKs are destroyed then.
    ScheduleShred(Micros),
    CancelShred,
}

/// What was accepted, and what that did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedRestore {
    pub mark: Mark,
    pub replayed: Vec<Replay>,
    pub revoked: Vec<TokenId>,
    /// The key that was staged.
    pub retired: Option<Kid>,
}

/// What the operator agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The state that they were shown.
    pub epoch: u64,
    pub generation: u64,
    pub gaps: Gaps,
}

/// What to do where the log is not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gaps {
    Refuse,
    Accept,
}

impl Service {
    /// What accepting the database as it is would mean.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn restore_plan(&self, request: &Request, grant: &AdminGrant) -> Result<RestorePlan, Error> {
        let plan = self.node.restore_plan().await;
        let outcome = plan.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
        self.record(request, grant.identity(), Action::AdminRestorePlan, None, [Touched::nothing(outcome)]).await?;
        plan
    }

    /// Accepts the database as it is: what the log says and the database does not is done again, then epoch and generation rise above
    /// all that this node has seen, so that other nodes are content too, and writes are open.
    ///
    /// # Errors
    /// [`Error::Conflict`] where there is nothing to accept, where the database is not as it was shown, or the log has gaps that were
    /// not agreed to; [`Error::Unavailable`]. A call that broke off is made again.
    pub async fn accept_restore(
        &self,
        request: &Request,
        grant: &AdminGrant,
        agreed: Agreed,
    ) -> Result<AcceptedRestore, Error> {
        // Whoever asks for this has decided that the database may be written; nothing was before.
        let change = self.change_that_opens(request, grant.identity(), Action::AdminAcceptRestore).await?;
        let accepted = self.node.accept_restore(&change, agreed).await;
        if accepted.is_ok() {
            self.access.tokens().begin_again();
        }
        let touched = |outcome| vec![Touched::nothing(outcome)];
        self.recorded_change(request, grant.identity(), &change, touched, accepted).await
    }

    /// Goes on where another node's operator accepted a restored database: what this node knows and they did not is done again first.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: writes stay closed, and the next call tries again.
    pub async fn follow_acceptance(&self) -> Result<(), Error> {
        if !self.node.has_to_do_again().await? {
            return Ok(());
        }
        let change = self.own_change_that_opens(Action::AdminAcceptRestore).await?;
        self.node.follow_acceptance(&change).await?;
        self.access.tokens().begin_again();
        Ok(())
    }
}

impl Node {
    async fn restore_plan(&self) -> Result<RestorePlan, Error> {
        let mut progress = self.ticking.lock().await;
        self.tick_alone(&mut progress).await?;
        self.plan_alone().await
    }

    async fn plan_alone(&self) -> Result<RestorePlan, Error> {
        let survey = self.store.survey().await?;
        let now = survey.key_state.as_ref().map(Mark::of);
        let loaded = |kid: Kid| matches!(&*self.keys.state(), Keys::Open(ring) if ring.holds(kid));
        let mut needed: Vec<NeededKey> = survey
            .master_keys
            .iter()
            .filter(|key| is_needed(key) && key.state != MasterKeyState::Staged)
            .map(|key| NeededKey { kid: key.kid, state: key.state, held: loaded(key.kid) })
            .collect();
        let staged = survey.master_keys.iter().find(|key| key.state == MasterKeyState::Staged).map(|key| key.kid);
        needed.sort_by_key(|key| key.state != MasterKeyState::Active);
        let db_id = now.map(|mark| mark.db_id);
        let (behind, complete, fates, remembered) = self
            .with_file(move |file| {
                let (fates, remembered) = db_id.map(|id| (file.fates(id), file.revoked(id))).unwrap_or_default();
                (file.behind(), file.is_complete(), fates, remembered)
            })
            .await?;
        let mut replay = replays(&fates, &self.blocked_tenants().await?);
        if behind.is_none() {
            replay.clear();
        }
        let (replay, retires) = (self.of_known_tenants(replay).await?, staged.filter(|_| behind.is_some()));
        let revokes = if behind.is_some() { self.good_again(&remembered).await? } else { Vec::new() };
        Ok(RestorePlan { behind, now, needed, retires, replay, revokes, complete })
    }

    /// Tokens that were revoked, and are not in the restored state. One that is younger than that has no row there, and needs none.
    async fn good_again(&self, revoked: &BTreeSet<TokenId>) -> Result<Vec<TokenId>, Error> {
        let (mut again, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.tokens(after.as_deref(), PAGE).await?;
            let good = page.items.iter().filter(|token| token.revoked_at.is_none());
            again.extend(good.filter_map(|token| TokenId::parse(&token.id).ok()).filter(|id| revoked.contains(id)));
            after = page.items.last().map(|token| token.id.clone());
            if !page.more || after.is_none() {
                return Ok(again);
            }
        }
    }

    /// A tenant that is younger than the restored state has nothing there to shred.
    async fn of_known_tenants(&self, replay: Vec<Replay>) -> Result<Vec<Replay>, Error> {
        let mut known = Vec::with_capacity(replay.len());
        for deed in replay {
            if !self.store.deks(&deed.tenant).await?.is_empty() {
                known.push(deed);
            }
        }
        Ok(known)
    }

    async fn accept_restore(&self, change: &Change, agreed: Agreed) -> Result<AcceptedRestore, Error> {
        // No tick comes between: it would see shreds being replayed.
        let mut progress = self.ticking.lock().await;
        self.tick_alone(&mut progress).await?;
        let plan = self.plan_alone().await?;
        let Some(behind) = plan.behind else {
            return Err(Error::Conflict(
                "there is nothing to accept: the database is not behind what this node has seen".into(),
            ));
        };
        let Some(now) = plan.now else {
            return Err(Error::Conflict(
                "the database holds no key, so there is nothing to accept; restore it first".into(),
            ));
        };
        if (now.epoch, now.generation) != (agreed.epoch, agreed.generation) {
            return Err(Error::Conflict(format!(
                "the database is at {now} by now; look at it again before accepting it"
            )));
        }
        if !plan.complete && agreed.gaps == Gaps::Refuse {
            return Err(Error::Conflict(
                "this node's log does not hold everything up to what it saw last: a shred may be undone, and nobody here would know".into(),
            ));
        }
        for replay in &plan.replay {
            self.replay(change.about(&replay.tenant).store(), replay).await?;
        }
        if !plan.revokes.is_empty() {
            self.revoke_again(change.store(), &plan.revokes).await?;
        }
        let (mark, retired) = self.accept(change.store(), &mut progress, behind, now).await?;
        Ok(AcceptedRestore { mark, replayed: plan.replay, revoked: plan.revokes, retired })
    }

    /// Whether another node's operator accepted a database that this node saw go back; or accepted it while this node was away, which
    /// shows in nothing but what the database has forgotten. That is looked for at the start and whenever the epoch rose.
    async fn has_to_do_again(&self) -> Result<bool, Error> {
        if self.behind().is_some() {
            let Some(mark) = self.store.survey().await?.key_state.as_ref().map(Mark::of) else { return Ok(false) };
            return Ok(self.with_file(move |file| file.is_accepted_at(mark)).await?);
        }
        let Some(mark) = self.with_file(|file| file.highest()).await? else { return Ok(false) };
        if self.compared.load(Ordering::Acquire) == mark.epoch {
            return Ok(false);
        }
        let (fates, remembered) =
            self.with_file(move |file| (file.fates(mark.db_id), file.revoked(mark.db_id))).await?;
        let replays = self.of_known_tenants(replays(&fates, &self.blocked_tenants().await?)).await?;
        let is_undone =
            replays.iter().any(|replay| replay.deed == Deed::Shred) || !self.good_again(&remembered).await?.is_empty();
        if !is_undone {
            self.compared.store(mark.epoch, Ordering::Release);
        }
        Ok(is_undone)
    }

    /// They were shown what that node's record says; what only this one's says is done again, before writes are open here where it saw the
    /// database go back: revocations at once; a shred that was done is begun anew, so that the tenant is blocked
    /// and an operator can still take it back.
    async fn follow_acceptance(&self, change: &Change) -> Result<(), Error> {
        let mut progress = self.ticking.lock().await;
        let Some(mark) = self.store.survey().await?.key_state.as_ref().map(Mark::of) else { return Ok(()) };
        let (accepted, fates, remembered) = self
            .with_file(move |file| (file.is_accepted_at(mark), file.fates(mark.db_id), file.revoked(mark.db_id)))
            .await?;
        if !accepted && self.behind().is_some() {
            return Ok(());
        }
        let revokes = self.good_again(&remembered).await?;
        if !revokes.is_empty() {
            self.revoke_again(change.store(), &revokes).await?;
        }
        for Replay { tenant, deed } in self.of_known_tenants(replays(&fates, &self.blocked_tenants().await?)).await? {
            match deed {
                Deed::Shred => match change.about(&tenant).store().schedule_shred(&tenant, SECOND_THOUGHTS).await? {
                    ShredOutcome::Done { .. } => tracing::error!(
                        %tenant,
                        "this tenant was shredded, and the database that another node accepted did not say so: it is blocked, and \
                         is shredded in 7 days. `containarium admin shred TENANT --now` does it at once, `--cancel` takes it back"
                    ),
                    ShredOutcome::NoTenant | ShredOutcome::Elsewhere(_) => tracing::warn!(
                        %tenant,
                        "this tenant was shredded, and is being shredded in the database that another node accepted"
                    ),
                },
                // It may have been taken back since.
                Deed::ScheduleShred(_) => tracing::error!(
                    %tenant,
                    "this tenant was to be shredded, and the database that another node accepted does not say so: \
                     `containarium admin shred TENANT` orders it again"
                ),
                Deed::CancelShred => tracing::error!(
                    %tenant,
                    "a shred of this tenant had been taken back, and in the database that another node accepted it is under way again: \
                     `containarium admin shred TENANT --cancel` takes it back again"
                ),
            }
        }
        if accepted {
            self.with_file(NodeFile::went_on).await?.map_err(NodeError::from)?;
            self.stand(Seen::Good);
        }
        self.compared.store(mark.epoch, Ordering::Release);
        Ok(self.tick_alone(&mut progress).await?)
    }

    async fn revoke_again(&self, store: &dyn Store, ids: &[TokenId]) -> Result<(), Error> {
        let key = SystemKey::new(Arc::clone(&self.store), Arc::clone(&self.keys)).token_mac().await;
        let sealer = RowSealer(key.map_err(|why| unusable(&why))?);
        let revoked = store.revoke_tokens(&WhichTokens::Ids(ids.to_vec()), &sealer).await?;
        tracing::warn!("revoked {} tokens again in the restored database", revoked.tokens.len());
        Ok(())
    }

    async fn accept(
        &self,
        store: &dyn Store,
        progress: &mut Progress,
        behind: Behind,
        now: Mark,
    ) -> Result<(Mark, Option<Kid>), Error> {
        let at_least = AtLeast {
            epoch: behind.seen.epoch.max(now.epoch) + 1,
            generation: behind.seen.generation.max(now.generation) + 1,
        };
        let Accepted { state, retired } = store.accept_restore(at_least).await?;
        if let Some(kid) = retired {
            tracing::warn!("the staged master key {kid} is retired: a state that was lost may have had it in use");
        }
        let mark = Mark::of(&state);
        let (blocked, at) = (self.blocked_tenants().await?, self.clock.wall());
        let revoked = self.revoked_tokens().await?.unwrap_or_default();
        self.revoked.remember(revoked.iter().cloned());
        let written = self.with_file(move |file: &mut NodeFile| file.accept(mark, at, &blocked, &revoked)).await?;
        written.map_err(NodeError::from)?;
        self.stand(Seen::Good);
        self.tick_alone(progress).await?;
        Ok((mark, retired))
    }

    async fn replay(&self, store: &dyn Store, replay: &Replay) -> Result<(), Error> {
        let Replay { tenant, deed } = replay;
        let outcome = match *deed {
            Deed::Shred => {
                store.schedule_shred(tenant, Duration::ZERO).await?;
                store.shred(tenant, ShredWhen::Now).await?
            }
            Deed::ScheduleShred(at) => {
                let wait = at.0.saturating_sub(self.store.now().await?.0);
                let wait = Duration::from_micros(u64::try_from(wait).unwrap_or(0));
                store.schedule_shred(tenant, wait).await?
            }
            Deed::CancelShred => store.cancel_shred(tenant).await?,
        };
        match outcome {
            ShredOutcome::Done { .. } => tracing::warn!(%tenant, "replayed into the restored database: {deed:?}"),
            ShredOutcome::NoTenant | ShredOutcome::Elsewhere(_) => {
                tracing::info!(%tenant, "the restored database was so already: {deed:?}");
            }
        }
        Ok(())
    }
}

fn replays(fates: &BTreeMap<Tenant, Fate>, blocked: &[TenantRecord]) -> Vec<Replay> {
    let deed = |tenant: &Tenant, fate: Fate| {
        let found = blocked.iter().find(|record| record.tenant == *tenant);
        let is_shredded = found.is_some_and(|record| record.shredded_at.is_some());
        match fate {
            _ if is_shredded => None,
            Fate::Shredded { .. } => Some(Deed::Shred),
            Fate::Pending { shred_at } => found.is_none().then_some(Deed::ScheduleShred(shred_at)),
            Fate::Cancelled => found.map(|_| Deed::CancelShred),
        }
    };
    let replay = |(tenant, fate): (&Tenant, &Fate)| Some(Replay { tenant: tenant.clone(), deed: deed(tenant, *fate)? });
    fates.iter().filter_map(replay).collect()
}
