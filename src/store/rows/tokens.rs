//! Rows of tokens.

use sqlx::FromRow;

use super::RowName;
use crate::model::{Micros, TokenRecord, WhichTokens};
use crate::store::StoreError;
use crate::store::tokens::{NewToken, Pulse, TokenSealer};

/// A row's columns, each absent where a LEFT JOIN found none.
#[derive(FromRow)]
pub(in crate::store) struct TokenRow {
    id: Option<String>,
    secret_hash: Option<Vec<u8>>,
    name: Option<String>,
    tenants: Option<String>,
    permissions: Option<String>,
    names: Option<String>,
    created_at: Option<i64>,
    created_by: Option<String>,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
    last_used_at: Option<i64>,
    mac: Option<Vec<u8>>,
}

impl TokenRow {
    /// `None` where there was no row.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn found(self) -> Result<Option<TokenRecord>, StoreError> {
        let Some(id) = self.id else { return Ok(None) };
        let row = RowName::Token(&id);
        let bytes = |bytes: Option<Vec<u8>>| bytes.and_then(|bytes| bytes.try_into().ok());
        Ok(Some(TokenRecord {
            secret_hash: row.need(bytes(self.secret_hash), "secret_hash")?,
            name: row.need(self.name, "name")?,
            tenants: row.need(self.tenants, "tenants")?,
            permissions: row.need(self.permissions, "permissions")?,
            names: row.need(self.names, "names")?,
            created_at: Micros(row.need(self.created_at, "created_at")?),
            created_by: row.need(self.created_by, "created_by")?,
            expires_at: self.expires_at.map(Micros),
            revoked_at: self.revoked_at.map(Micros),
            last_used_at: self.last_used_at.map(Micros),
            mac: row.need(bytes(self.mac), "mac")?,
            id,
        }))
    }

    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn all(rows: Vec<Self>) -> Result<Vec<TokenRecord>, StoreError> {
        rows.into_iter().filter_map(|row| row.found().transpose()).collect()
    }
}

/// The state that something was read in.
#[derive(FromRow)]
pub(in crate::store) struct PulseRow {
    db_id: Vec<u8>,
    generation: i64,
    now: i64,
}

impl PulseRow {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn pulse(self) -> Result<Pulse, StoreError> {
        let row = RowName::KeyState;
        let db_id = row.need(self.db_id.try_into().ok(), "db_id")?;
        let generation = row.need(u64::try_from(self.generation).ok(), "generation")?;
        Ok(Pulse { db_id, generation, now: Micros(self.now) })
    }
}

#[derive(FromRow)]
pub(in crate::store) struct PulsedTokenRow {
    #[sqlx(flatten)]
    pulse: PulseRow,
    #[sqlx(flatten)]
    token: TokenRow,
}

impl PulsedTokenRow {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(in crate::store) fn found(self) -> Result<(Pulse, Option<TokenRecord>), StoreError> {
        Ok((self.pulse.pulse()?, self.token.found()?))
    }
}

/// A new token as its row is to be, with its MAC.
pub(in crate::store) fn new_token(new: &NewToken, now: Micros, sealer: &dyn TokenSealer) -> TokenRecord {
    let [tenants, permissions, names] = new.scope.to_columns();
    let expires = new.ttl.map(|ttl| Micros(now.0.saturating_add(super::micros(ttl))));
    let mut token = TokenRecord {
        id: new.id.to_string(),
        secret_hash: new.secret_hash,
        name: new.name.to_string(),
        tenants,
        permissions,
        names,
        created_at: now,
        created_by: new.created_by.to_string(),
        expires_at: expires,
        revoked_at: None,
        last_used_at: None,
        mac: [0; 32],
    };
    token.mac = sealer.mac(&token);
    token
}

/// Whether a row is one of those that are meant.
pub(in crate::store) fn is_meant(which: &WhichTokens, token: &TokenRecord) -> bool {
    match which {
        WhichTokens::Ids(ids) => ids.iter().any(|id| id.as_str() == token.id),
        WhichTokens::All => true,
        WhichTokens::OfTenant(tenant) => token.tenants.split(',').any(|of| of == tenant.as_str()),
        WhichTokens::CreatedBy(who) => token.created_by == who.as_str(),
    }
}

/// Ids and MACs by another key, of the rows whose own MAC is right.
pub(in crate::store) fn macs_anew(
    rows: Vec<TokenRow>,
    from: &dyn TokenSealer,
    to: &dyn TokenSealer,
) -> Vec<(String, [u8; 32])> {
    let tokens = rows.into_iter().filter_map(|row| row.found().ok()?);
    tokens.filter(|token| from.holds(token)).map(|token| (token.id.clone(), to.mac(&token))).collect()
}

/// The row as it is once it is revoked; `None` where somebody else than a daemon wrote it.
pub(in crate::store) fn revoked_token(
    token: &TokenRecord,
    now: Micros,
    sealer: &dyn TokenSealer,
) -> Option<TokenRecord> {
    if !sealer.holds(token) {
        return None;
    }
    let mut revoked = TokenRecord { revoked_at: Some(now), ..token.clone() };
    revoked.mac = sealer.mac(&revoked);
    Some(revoked)
}
