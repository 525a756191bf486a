//! Tokens: their rows, and the pulse by which a node knows that what it remembers of them still holds.

use std::time::Duration;

use async_trait::async_trait;

use super::{Intent, Refusal, Sealer, StoreError, Written};
use crate::model::{Label, Micros, Page, Scope, TokenId, TokenRecord, WhichTokens};

/// Which state of the database something was read in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulse {
    pub db_id: [u8; 16],
    /// Rises in the transaction of each revocation.
    pub generation: u64,
    /// By the database's clock.
    pub now: Micros,
}

/// A token as it is before it has a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    pub id: TokenId,
    pub secret_hash: [u8; 32],
    pub name: Label,
    pub scope: Scope,
    pub created_by: Label,
    /// From now by the database's clock; `None` never expires.
    pub ttl: Option<Duration>,
}

/// Authenticates rows inside the store's transaction, where their times are known: CPU work only.
pub trait TokenSealer: Send + Sync {
    /// The MAC over a row, without regard to the one that is in it.
    fn mac(&self, token: &TokenRecord) -> [u8; 32];
    /// Whether the row's own MAC is right.
    fn holds(&self, token: &TokenRecord) -> bool;
}

/// What a revocation did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revoked {
    /// As they are now.
    pub tokens: Vec<TokenRecord>,
    /// Ids of rows that were not revoked, because somebody else than a daemon wrote them: they authenticate nobody, and a new MAC would
    /// make them look as if they ever had.
    pub forged: Vec<String>,
}

/// The tokens' part of a [`Store`](super::Store).
#[async_trait]
pub trait Tokens: Send + Sync {
    /// One statement; `None` until the database has held its first key.
    async fn pulse(&self) -> Result<Option<Pulse>, StoreError>;

    /// The token of this id and the state that it was read in: one statement, so that a row is never newer than its pulse.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where the database has held no key yet.
    async fn token(&self, id: &TokenId) -> Result<(Pulse, Option<TokenRecord>), StoreError>;

    /// # Errors
    /// [`StoreError::Refused`] where the id was used.
    async fn add_token(&self, new: &NewToken, sealer: &dyn TokenSealer) -> Result<TokenRecord, StoreError>;

    /// By id, after `after`.
    async fn tokens(&self, after: Option<&str>, limit: u32) -> Result<Page<TokenRecord>, StoreError>;

    /// Revokes those that are not revoked yet, expired ones too, and raises the generation in the same transaction where there were any.
    async fn revoke_tokens(&self, which: &WhichTokens, sealer: &dyn TokenSealer) -> Result<Revoked, StoreError>;

    /// Writes all of the intents or none, as [`Store::write`](super::Store::write) does, and with them gives each row whose MAC is right by
    /// `from` the one that `to` makes: one transaction, which raises the generation. So a new key of token rows is in use for all tokens at
    /// once, and those that were good stay so; rows that nobody's key fits keep what they have.
    async fn write_token_key(
        &self,
        intents: &[Intent],
        sealer: &dyn Sealer,
        from: Option<&dyn TokenSealer>,
        to: &dyn TokenSealer,
    ) -> Result<Vec<Result<Written, Refusal>>, StoreError>;

    /// All that are revoked, by id: what must not be undone by an older dump. A row that can be no token's is left out.
    async fn revoked_tokens(&self) -> Result<Vec<TokenRecord>, StoreError>;

    /// Stamps these as used now; where that was said within a minute, nothing is written.
    async fn touch_tokens(&self, ids: &[TokenId]) -> Result<(), StoreError>;
}

/// How long a stamp of the last use stands before it is written anew.
pub const TOUCH_EVERY: Duration = Duration::from_mins(1);
