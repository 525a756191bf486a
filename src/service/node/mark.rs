//! How far the database has come, carried on in this node's record.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Node, NodeError, Progress};
use crate::access::RowSealer;
use crate::keys::Keys;
use crate::model::{KeyState, TenantRecord, TokenId};
use crate::node::Mark;
use crate::store::StoreError;
use crate::store::tokens::TokenSealer;

/// The longest that the generation stays as it is, so that last night's dump is noticed too.
const LONGEST: Duration = Duration::from_hours(1);
const PAGE: u32 = 1000;

impl Node {
    /// Carries the record on; and raises the generation where it was the same for an hour.
    pub(super) async fn note(&self, progress: &mut Progress, state: &KeyState) -> Result<(), NodeError> {
        let mut mark = Mark::of(state);
        if self.is_mark_due(progress, mark).await? {
            mark = Mark::of(&self.store.raise_generation().await?);
        }
        if !self.with_file(move |file| file.lacks(mark)).await? {
            return Ok(());
        }
        if self.with_file(|file| file.highest().is_none()).await? {
            let now = self.store.now().await?;
            self.with_file(move |file| file.begin(now)).await?;
        }
        // After the mark was read: what is noted may be more than belongs to it, never less.
        let blocked = self.blocked_tenants().await?;
        let Some(revoked) = self.revoked_tokens().await? else {
            // What is noted has to hold the revocations that belong to it: the next tick tries again.
            tracing::debug!("how far the database has come is not noted while the key of token rows is locked");
            return Ok(());
        };
        self.revoked.remember(revoked.iter().cloned());
        let at = self.clock.wall();
        Ok(self.with_file(move |file| file.note(mark, at, &blocked, &revoked)).await??)
    }

    async fn is_mark_due(&self, progress: &mut Progress, mark: Mark) -> Result<bool, NodeError> {
        let now = self.clock.monotonic();
        if let Some((seen, since)) = progress.generation
            && seen == mark.generation
        {
            return Ok(now.saturating_sub(since) >= LONGEST);
        }
        let is_first = progress.generation.replace((mark.generation, now)).is_none();
        // Across restarts only the wall clock knows. Where it was set, a mark too many does no harm.
        let noted = self.with_file(move |file| file.noted_at().filter(|_| file.highest() == Some(mark))).await?;
        let age = noted.map_or(0, |noted| self.clock.wall().0.saturating_sub(noted.0));
        Ok(is_first && age >= i64::try_from(LONGEST.as_micros()).unwrap_or(i64::MAX))
    }

    /// The tokens that a daemon revoked. A row that somebody else wrote revokes none: what is remembered here is never forgotten, and whoever
    /// can write to the database would lock tokens out for good, beyond any restore. `None` while that cannot be told.
    pub(super) async fn revoked_tokens(&self) -> Result<Option<BTreeSet<TokenId>>, StoreError> {
        let mut ours = BTreeSet::new();
        // Rows and key are two reads: where none is right, a new key may have come between them.
        for _ in 0..2 {
            let rows = self.store.revoked_tokens().await?;
            if rows.is_empty() {
                break;
            }
            let sealer = match self.token_key.token_mac().await {
                Ok(key) => RowSealer(key),
                Err(why) => {
                    if !matches!(&*self.keys.state(), Keys::Locked(_)) {
                        tracing::warn!(
                            "which tokens are revoked cannot be noted: the key of token rows cannot be used: {why}"
                        );
                    }
                    return Ok(None);
                }
            };
            let held = rows.iter().filter(|token| sealer.holds(token));
            ours = held.filter_map(|token| TokenId::parse(&token.id).ok()).collect();
            if !ours.is_empty() {
                break;
            }
        }
        Ok(Some(ours))
    }

    pub(super) async fn blocked_tenants(&self) -> Result<Vec<TenantRecord>, StoreError> {
        let mut all: Vec<TenantRecord> = Vec::new();
        loop {
            let after = all.last().map(|tenant| tenant.tenant.clone());
            let page = self.store.blocked_tenants(after.as_ref(), PAGE).await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }
}
