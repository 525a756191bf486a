//! Who presents a token, and whether it still holds.
//!
//! A token that was checked is remembered, with the state of the database (its id and generation) that its row was read in. What is
//! remembered holds while the last good poll says that the database is still in that state and was sent at most [`WARM`] ago: a revocation
//! raises the generation in its own transaction, so it holds on every node within that time, also on one that lost its database. What
//! does not hold is read anew; where that cannot be done, nobody is let in.
//!
//! A token expires by the database's clock: what the last poll said, and the time since. The host's wall clock decides nothing.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use moka::sync::Cache;

use super::seldom::Seldom;
use super::token::{self, Presented};
use super::{Caller, Identity, RevokedHere, Unauthenticated};
use crate::clock::Clock;
use crate::crypto::{self, TokenMacKey};
use crate::model::{Micros, Scope, TokenId, TokenRecord};
use crate::store::tokens::{Pulse, TOUCH_EVERY, TokenSealer};
use crate::store::{Store, StoreError};

/// How often the state of the database is asked for.
pub const POLL: Duration = Duration::from_millis(250);
/// How long after a good poll what is remembered still holds.
const WARM: Duration = Duration::from_secs(1);
/// The longest that a look at a token waits for the database. A poll waits for [`WARM`]: what comes later vouches for nobody.
const LONGEST: Duration = Duration::from_secs(3);
/// Far more than a deployment has in use; one entry takes some hundred bytes.
const MOST_REMEMBERED: u64 = 50_000;

/// Where the key that authenticates token rows comes from: the system's own secret, which keys and store have together.
#[async_trait]
pub trait TokenKey: Send + Sync {
    /// # Errors
    /// Why it is not to be had, in words for administrators.
    async fn token_mac(&self) -> Result<TokenMacKey, String>;
}

/// A row's MAC, by the key.
pub struct RowSealer(pub TokenMacKey);

impl TokenSealer for RowSealer {
    fn mac(&self, token: &TokenRecord) -> [u8; 32] {
        with_fields(token, |fields| self.0.mac(fields))
    }

    fn holds(&self, token: &TokenRecord) -> bool {
        with_fields(token, |fields| self.0.holds(fields, &token.mac))
    }
}

/// What the MAC is over, in its order (docs/envelope-format.md). A time that is absent is no byte, which no time is.
fn with_fields<T>(token: &TokenRecord, with: impl FnOnce(&[&[u8]]) -> T) -> T {
    let time = |at: Option<Micros>| at.map_or_else(Vec::new, |at| at.0.to_be_bytes().to_vec());
    let (expires, revoked) = (time(token.expires_at), time(token.revoked_at));
    with(&[
        token.id.as_bytes(),
        &token.secret_hash,
        token.name.as_bytes(),
        token.tenants.as_bytes(),
        token.permissions.as_bytes(),
        token.names.as_bytes(),
        &expires,
        &revoked,
        // Whom a revocation of all that somebody made finds.
        token.created_by.as_bytes(),
    ])
}

/// The tokens of a daemon.
pub struct Tokens {
    store: Arc<dyn Store>,
    key: Arc<dyn TokenKey>,
    clock: Arc<dyn Clock>,
    revoked: Arc<RevokedHere>,
    /// By the hash of the whole credential, which is in no memory and no dump of it.
    remembered: Cache<[u8; 32], Arc<Checked>>,
    beat: Mutex<Beat>,
    /// Used since the last time that this was written down.
    used: Mutex<HashSet<TokenId>>,
    told: Seldom,
    /// That a token was refused by this node's own record.
    refused: Seldom,
}

/// A token that was found good.
struct Checked {
    id: TokenId,
    scope: Arc<Scope>,
    expires_at: Option<Micros>,
    /// What its row was read in.
    state: State,
    /// When its use was last noted, since boot.
    noted: Mutex<Option<Duration>>,
}

/// A state of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    db_id: [u8; 16],
    generation: u64,
}

impl State {
    const fn of(pulse: &Pulse) -> Self {
        Self { db_id: pulse.db_id, generation: pulse.generation }
    }
}

/// What is known of the database.
#[derive(Default)]
struct Beat {
    /// The last good poll, and when it was sent, since boot.
    last: Option<(Pulse, Duration)>,
    /// The highest generation that was ever seen by this process.
    highest: u64,
}

impl Tokens {
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        key: Arc<dyn TokenKey>,
        clock: Arc<dyn Clock>,
        revoked: Arc<RevokedHere>,
    ) -> Self {
        let remembered = Cache::new(MOST_REMEMBERED);
        Self {
            store,
            key,
            clock,
            revoked,
            remembered,
            beat: Mutex::default(),
            used: Mutex::default(),
            told: Seldom::default(),
            refused: Seldom::default(),
        }
    }

    /// Asks the database for its state. Each [`POLL`].
    pub async fn poll(&self) {
        let sent = self.clock.since_boot();
        match tokio::time::timeout(WARM, self.store.pulse()).await {
            Ok(Ok(Some(pulse))) => self.heard(pulse, sent),
            Ok(Ok(None)) => tracing::debug!("the database has held no key yet"),
            Ok(Err(error)) => tracing::debug!("the state of tokens could not be asked for: {error}"),
            Err(_) => tracing::debug!("the state of tokens was not answered"),
        }
    }

    /// A database that went back is no news that anything holds.
    fn heard(&self, pulse: Pulse, sent: Duration) {
        let mut beat = self.beat();
        if pulse.generation < beat.highest {
            beat.last = None;
            return;
        }
        beat.highest = pulse.generation;
        if beat.last.is_none_or(|(_, before)| before <= sent) {
            beat.last = Some((pulse, sent));
        }
    }

    /// A database that went back was accepted as it is: what was known of it before counts no more, and its generation may be lower than
    /// one that was heard of.
    pub fn begin_again(&self) {
        self.remembered.invalidate_all();
        *self.beat() = Beat::default();
    }

    /// Whoever presents this text, which begins as tokens do.
    pub(super) async fn check(&self, text: &str) -> Result<Caller, Unauthenticated> {
        let presented = token::parse(text).ok_or(Unauthenticated::Invalid)?;
        if self.revoked.has(&presented.id) {
            // `token list` may show it as good: that is what was put back.
            if self.refused.is_due(self.clock.since_boot()) {
                tracing::warn!(token = %presented.id, "a token was presented that this node has seen revoked, whatever its row says");
            }
            return Err(Unauthenticated::Invalid);
        }
        let credential = crypto::hash_credential(text.as_bytes());
        if let Some(checked) = self.remembered.get(&credential) {
            match self.standing(&checked) {
                Standing::Holds => return Ok(self.caller(&checked)),
                Standing::Expired => return Err(Unauthenticated::Invalid),
                Standing::Unknown => {}
            }
        }
        let checked = Arc::new(self.look(presented).await?);
        self.remembered.insert(credential, Arc::clone(&checked));
        Ok(self.caller(&checked))
    }

    fn standing(&self, checked: &Checked) -> Standing {
        let now = self.clock.since_boot();
        let Some((pulse, sent)) = self.beat().last else { return Standing::Unknown };
        let since = now.saturating_sub(sent);
        if since > WARM || State::of(&pulse) != checked.state {
            return Standing::Unknown;
        }
        // Later than it is, by the time that the poll was on its way: a token may end a little early, and never late.
        let now = pulse.now.0.saturating_add(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
        if checked.expires_at.is_some_and(|at| at.0 <= now) { Standing::Expired } else { Standing::Holds }
    }

    /// Reads the row. One that is not there and one of another secret cost the same: both are held against a hash and a MAC, so that how
    /// long an answer takes tells nobody which ids there are.
    async fn look(&self, presented: Presented) -> Result<Checked, Unauthenticated> {
        // Row and key are two reads: between them a new key may have come, for which the row has another MAC.
        match self.look_once(&presented).await? {
            Looked::Checked(checked) => return Ok(checked),
            Looked::NotOurs => {}
        }
        match self.look_once(&presented).await? {
            Looked::Checked(checked) => Ok(checked),
            Looked::NotOurs => {
                let id = &presented.id;
                tracing::error!(token = %id, "a token's row was written or changed by somebody else than a daemon");
                Err(Unauthenticated::Invalid)
            }
        }
    }

    async fn look_once(&self, presented: &Presented) -> Result<Looked, Unauthenticated> {
        let sent = self.clock.since_boot();
        let read = tokio::time::timeout(LONGEST, self.store.token(&presented.id)).await;
        let (pulse, found) = match read {
            Ok(Ok(read)) => read,
            // A row that only somebody else than a daemon can have written.
            Ok(Err(error @ StoreError::Corrupt { .. })) => {
                tracing::error!("{error}");
                return Err(Unauthenticated::Invalid);
            }
            Ok(Err(error)) => return Err(self.unavailable(&error.to_string())),
            Err(_) => return Err(self.unavailable("the database did not answer in time")),
        };
        if pulse.generation < self.beat().highest {
            return Err(self.unavailable("the database went back to an earlier state"));
        }
        let mac = tokio::time::timeout(LONGEST, self.key.token_mac()).await;
        let mac = mac.map_err(|_| self.unavailable("the key of token rows was not read in time"))?;
        let sealer =
            RowSealer(mac.map_err(|why| self.unavailable(&format!("the key of token rows cannot be used: {why}")))?);
        self.heard(pulse, sent);
        let row = found.clone().unwrap_or_else(|| nobody(&presented.id));
        let is_its_secret = crypto::same_hash(&row.secret_hash, &presented.secret_hash);
        let is_ours = sealer.holds(&row);
        if found.is_none() || !is_its_secret {
            return Err(Unauthenticated::Invalid);
        }
        if !is_ours {
            return Ok(Looked::NotOurs);
        }
        if row.revoked_at.is_some() || row.expires_at.is_some_and(|at| at <= pulse.now) {
            return Err(Unauthenticated::Invalid);
        }
        let Some(scope) = Scope::of_columns(&row.tenants, &row.permissions, &row.names) else {
            tracing::error!(token = row.id, "a token's row holds a scope of another release");
            return Err(Unauthenticated::Invalid);
        };
        Ok(Looked::Checked(Checked {
            id: presented.id.clone(),
            scope: Arc::new(scope),
            expires_at: row.expires_at,
            state: State::of(&pulse),
            noted: Mutex::default(),
        }))
    }

    /// The cause goes to the log, once a minute: anybody can ask. They learn that there is one.
    fn unavailable(&self, cause: &str) -> Unauthenticated {
        if self.told.is_due(self.clock.since_boot()) {
            tracing::warn!("a token could not be checked: {cause}");
        } else {
            tracing::debug!("a token could not be checked: {cause}");
        }
        Unauthenticated::Unavailable
    }

    fn caller(&self, checked: &Checked) -> Caller {
        self.note_use(checked);
        Caller::scoped(Identity::Token { id: checked.id.clone() }, Arc::clone(&checked.scope))
    }

    fn note_use(&self, checked: &Checked) {
        let now = self.clock.since_boot();
        let mut noted = checked.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.is_some_and(|at| now.saturating_sub(at) < TOUCH_EVERY) {
            return;
        }
        *noted = Some(now);
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(checked.id.clone());
    }

    /// Writes down which tokens were used. For whoever may write to the database; what cannot be written is left out, as it decides
    /// nothing.
    pub async fn note_used(&self) {
        let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        if used.is_empty() {
            return;
        }
        let ids: Vec<TokenId> = used.into_iter().collect();
        if let Err(error) = self.store.touch_tokens(&ids).await {
            tracing::debug!("when {} tokens were used could not be written down: {error}", ids.len());
        }
    }

    fn beat(&self) -> std::sync::MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a row was found to be that is there and has the secret.
enum Looked {
    Checked(Checked),
    /// Its MAC is not right by the key that was read with it.
    NotOurs,
}

enum Standing {
    Holds,
    Expired,
    /// It must be read anew.
    Unknown,
}

/// A row for an id that has none.
fn nobody(id: &TokenId) -> TokenRecord {
    TokenRecord {
        id: id.to_string(),
        secret_hash: [0; 32],
        name: "none".to_owned(),
        tenants: "none".to_owned(),
        permissions: "read".to_owned(),
        names: String::new(),
        created_at: Micros(0),
        created_by: "none".to_owned(),
        expires_at: None,
        revoked_at: None,
        last_used_at: None,
        mac: [0; 32],
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::Setup;
