//! Tokens: made, listed and revoked by administrators; checked for whoever presents one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::MissedTickBehavior;

use super::{Error, Failure, Request, Service, Touched};
use crate::access::{self, AdminGrant, Caller, KeysState, POLL, RowSealer, TokenKey, Unauthenticated, make_token};
use crate::audit::Outcome;
use crate::crypto::{self, SecretPlace, TokenMacKey};
use crate::keys::Keyring;
use crate::model::{
    Action, Label, Micros, Page, Scope, SecretName, Tenant, TokenId, TokenRecord, VersionBody, WhichTokens,
};
use crate::store::tokens::{NewToken, TokenSealer};
use crate::store::{Found, Place, Store, Which};

use super::open::TOKEN_MAC;

/// The longest that a token may be made for; one without an end is asked for as such.
const LONGEST_TTL: Duration = Duration::from_hours(24 * 3660);
/// How often uses of tokens are written down.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// What a token is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOrder {
    pub name: Label,
    pub scope: Scope,
    /// `None` never expires.
    pub ttl: Option<Duration>,
    /// Who asked for it, in the words of the process that did; the audit has who it was.
    pub created_by: Option<Label>,
}

/// A token that was made. Its text is told now and never again.
pub struct CreatedToken {
    pub text: zeroize::Zeroizing<String>,
    pub token: TokenRecord,
}

/// A token as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedToken {
    pub token: TokenRecord,
    pub state: TokenState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    Good,
    Expired,
    Revoked,
    /// Somebody else than a daemon wrote or changed its row: it authenticates nobody.
    Forged,
}

/// What a revocation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedTokens {
    pub tokens: Vec<TokenRecord>,
    pub forged: Vec<String>,
}

impl TokenState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Forged => "forged",
        }
    }
}

impl Service {
    /// Whoever presents this bearer credential.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`]; [`Error::Unavailable`] where it cannot be checked.
    pub async fn bearer(&self, credential: &str) -> Result<Caller, Error> {
        // What was revoked since the restored state would be good again.
        if self.node.behind().is_some() {
            return Err(Unauthenticated::Unavailable.into());
        }
        Ok(self.access.bearer(credential).await?)
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a time that is too long; [`Error::Unavailable`].
    pub async fn create_token(
        &self,
        request: &Request,
        grant: &AdminGrant,
        order: TokenOrder,
    ) -> Result<CreatedToken, Error> {
        self.may_record().await?;
        let change = self.change(request, grant.identity(), Action::TokenCreate, None).await?;
        let result = self.make_token(change.store(), grant, order).await;
        let touched = |outcome| vec![Touched::nothing(outcome)];
        self.recorded_change(request, grant.identity(), &change, touched, result).await
    }

    async fn make_token(
        &self,
        store: &dyn Store,
        grant: &AdminGrant,
        order: TokenOrder,
    ) -> Result<CreatedToken, Error> {
        let TokenOrder { name, scope, ttl, created_by } = order;
        if ttl.is_some_and(|ttl| ttl.is_zero() || ttl > LONGEST_TTL) {
            return Err(Error::Invalid("a token's time to live is from 1 second to 3660 days".to_owned()));
        }
        self.may_change().await?;
        let created_by = match created_by {
            Some(who) => who,
            None => Label::parse(&grant.identity().to_string()).map_err(|_| Error::Internal(Failure::Other))?,
        };
        let sealer = self.token_sealer().await?;
        let made = make_token().map_err(|error| Error::Unavailable(error.to_string()))?;
        let new = NewToken { id: made.id, secret_hash: made.secret_hash, name, scope, created_by, ttl };
        let token = store.add_token(&new, &sealer).await?;
        if !self.token_sealer().await?.holds(&token) {
            let what =
                "the key of token rows was replaced meanwhile: the token that was made opens nothing; make another";
            return Err(Error::Unavailable(what.to_owned()));
        }
        tracing::info!(token = token.id, name = token.name, by = token.created_by, "made a token");
        Ok(CreatedToken { text: made.text, token })
    }

    /// Tokens by id, those that no longer hold too.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn tokens(
        &self,
        request: &Request,
        grant: &AdminGrant,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Page<ListedToken>, Error> {
        let result = self.list_tokens(after, limit).await;
        let outcome = result.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
        self.record(request, grant.identity(), Action::TokenList, None, [Touched::nothing(outcome)]).await?;
        result
    }

    async fn list_tokens(&self, after: Option<&str>, limit: u32) -> Result<Page<ListedToken>, Error> {
        let page = self.store.tokens(after, limit).await?;
        let now = self.store.now().await?;
        let sealer = self.token_sealer().await?;
        let listed = |token: TokenRecord| ListedToken { state: state_of(&token, now, &sealer), token };
        Ok(Page { items: page.items.into_iter().map(listed).collect(), more: page.more })
    }

    /// Revokes tokens. When it answers, this node's record on disk has it too, and no node lets one of them in a second later.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has; [`Error::Unavailable`].
    pub async fn revoke_tokens(
        &self,
        request: &Request,
        grant: &AdminGrant,
        which: &WhichTokens,
    ) -> Result<RevokedTokens, Error> {
        self.may_record().await?;
        let change = self.change(request, grant.identity(), Action::TokenRevoke, None).await?;
        let result = self.revoke(change.store(), which).await;
        let touched = |outcome| match which {
            WhichTokens::Ids(ids) => ids.iter().map(|id| Touched::token(id.as_str(), outcome)).collect(),
            _ => vec![Touched::nothing(outcome)],
        };
        self.recorded_change(request, grant.identity(), &change, touched, result).await
    }

    async fn revoke(&self, store: &dyn Store, which: &WhichTokens) -> Result<RevokedTokens, Error> {
        self.may_change().await?;
        if let WhichTokens::Ids(ids) = which {
            for id in ids {
                self.known_token(id).await?;
            }
        }
        let mut revoked = store.revoke_tokens(which, &self.token_sealer().await?).await?;
        if !revoked.forged.is_empty() {
            // They may have been authenticated anew meanwhile, under a new key.
            let again = store.revoke_tokens(which, &self.token_sealer().await?).await?;
            revoked.tokens.extend(again.tokens);
            revoked.forged = again.forged;
        }
        for token in &revoked.tokens {
            tracing::info!(token = token.id, name = token.name, "revoked a token");
        }
        // This node need not wait for its next poll.
        self.access.tokens().poll().await;
        self.node.tick().await.map_err(|error| {
            tracing::error!("tokens were revoked, and this node could not record it: {error}");
            let what = "the tokens are revoked, but this node could not record it yet; `containarium admin token list` shows them";
            Error::Unavailable(what.to_owned())
        })?;
        Ok(RevokedTokens { tokens: revoked.tokens, forged: revoked.forged })
    }

    async fn known_token(&self, id: &TokenId) -> Result<(), Error> {
        match self.store.token(id).await?.1 {
            Some(_) => Ok(()),
            None => Err(Error::NotFound(format!("there is no token {id}"))),
        }
    }

    pub(super) async fn token_sealer(&self) -> Result<RowSealer, Error> {
        let key = SystemKey::new(Arc::clone(&self.store), Arc::clone(&self.keys)).token_mac().await;
        key.map(RowSealer).map_err(|why| unusable(&why))
    }

    /// Looks for the keys of issuers again and again.
    pub fn keep_issuers(self: &Arc<Self>) {
        if self.access.issuers().is_empty() {
            return;
        }
        let service = Arc::clone(self);
        self.workers.spawn(async move {
            tokio::select! {
                biased;
                () = service.workers.stopping() => {}
                () = service.access.issuers().keep() => {}
            }
        });
    }

    /// How it stands with the keys of each issuer.
    #[must_use]
    pub fn issuer_keys(&self) -> Vec<KeysState> {
        self.access.issuers().states()
    }

    /// Has the keys of issuers read anew; says whether there is any issuer.
    pub fn reread_issuers(&self) -> bool {
        self.access.issuers().reread();
        !self.access.issuers().is_empty()
    }

    /// Asks the database again and again whether what is remembered of tokens still holds; and, apart from that, since it can wait for a
    /// writer, writes down which were used.
    pub fn keep_tokens(self: &Arc<Self>) {
        let (service, writing) = (Arc::clone(self), Arc::clone(self));
        self.workers.spawn(async move {
            let mut polls = each(POLL);
            loop {
                tokio::select! {
                    biased;
                    () = service.workers.stopping() => return,
                    _ = polls.tick() => service.access.tokens().poll().await,
                }
            }
        });
        self.workers.spawn(async move {
            let mut looks = each(NOTE_EVERY);
            loop {
                tokio::select! {
                    biased;
                    () = writing.workers.stopping() => return,
                    _ = looks.tick() => {}
                }
                if writing.node.may_write_now() {
                    writing.access.tokens().note_used().await;
                }
            }
        });
    }
}

/// Without the key no row is made or revoked.
pub(super) fn unusable(why: &str) -> Error {
    Error::Unavailable(format!("the key that tokens are checked with cannot be used: {why}"))
}

fn each(time: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(time);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn state_of(token: &TokenRecord, now: Micros, sealer: &RowSealer) -> TokenState {
    if !sealer.holds(token) {
        TokenState::Forged
    } else if token.revoked_at.is_some() {
        TokenState::Revoked
    } else if token.expires_at.is_some_and(|at| at <= now) {
        TokenState::Expired
    } else {
        TokenState::Good
    }
}

/// The key of token rows, read anew each time: it is wanted for a token that is new here, which is seldom, and what is not kept need not
/// be wiped, nor be the wrong one after a restore.
pub struct SystemKey {
    store: Arc<dyn Store>,
    keys: Arc<Keyring>,
}

impl SystemKey {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, keys: Arc<Keyring>) -> Self {
        Self { store, keys }
    }

    async fn read(&self) -> Result<TokenMacKey, String> {
        let (tenant, name) = (Tenant::system(), SecretName::parse(TOKEN_MAC).map_err(|error| error.to_string())?);
        let place = Place { tenant: tenant.clone(), name: name.clone(), which: Which::Current };
        let found = self.store.read(&[place]).await.map_err(|error| error.to_string())?;
        let found = found.into_iter().next().transpose().map_err(|error| error.to_string())?;
        let Some(Found::Secret(_, Some(version))) = found else {
            return Err("it is missing".to_owned());
        };
        let VersionBody::Live { ciphertext, dek_version, dek: Some(row) } = version.body else {
            return Err("it is destroyed, or its DEK is missing".to_owned());
        };
        let dek = self.keys.dek(&row).map_err(|error| error.to_string())?;
        let place = SecretPlace { tenant: &tenant, name: &name, dek_version, version: version.version };
        let value = crypto::open(&dek, place, &ciphertext).map_err(|error| error.to_string())?;
        TokenMacKey::of(&value).ok_or_else(|| "it has not 32 bytes".to_owned())
    }
}

#[async_trait]
impl access::TokenKey for SystemKey {
    async fn token_mac(&self) -> Result<TokenMacKey, String> {
        self.read().await.map_err(|why| format!("_system/{TOKEN_MAC}: {why}"))
    }
}
