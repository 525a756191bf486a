//! Tokens.

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;

use super::error::store_error;
use super::sql::now;
use super::write::one_row;
use super::{SqliteStore, StoreError, committed, key_state, roll_back, write};
use crate::model::{Page, TokenId, TokenRecord, WhichTokens};
use crate::store::rows::{
    PulseRow, PulsedTokenRow, TokenRow, is_meant, macs_anew, micros, new_token, page, revoked_token,
};
use crate::store::tokens::{NewToken, Pulse, Revoked, TOUCH_EVERY, TokenSealer, Tokens};
use crate::store::trail::Touched;
use crate::store::{Intent, Refusal, Sealer, Together, Written};

macro_rules! token_columns {
    () => {
        "t.id, t.secret_hash, t.name, t.tenants, t.permissions, t.names, t.created_at, t.created_by, t.expires_at, t.revoked_at, \
         t.last_used_at, t.mac"
    };
}

#[async_trait]
impl Tokens for SqliteStore {
    async fn pulse(&self) -> Result<Option<Pulse>, StoreError> {
        const SQL: &str = concat!("SELECT db_id, generation, ", now!(), " AS now FROM key_state");
        let row: Option<PulseRow> = sqlx::query_as(SQL).fetch_optional(&self.readers).await.map_err(store_error)?;
        row.map(PulseRow::pulse).transpose()
    }

    async fn token(&self, id: &TokenId) -> Result<(Pulse, Option<TokenRecord>), StoreError> {
        const SQL: &str = concat!(
            "SELECT k.db_id, k.generation, ",
            now!(),
            " AS now, ",
            token_columns!(),
            " FROM key_state k LEFT JOIN tokens t ON t.id = ?1"
        );
        let query = sqlx::query_as(SQL).bind(id.as_str());
        let row: Option<PulsedTokenRow> = query.fetch_optional(&self.readers).await.map_err(store_error)?;
        row.ok_or_else(|| StoreError::Refused("the database has held no master key yet".to_owned()))?.found()
    }

    async fn add_token(&self, new: &NewToken, sealer: &dyn TokenSealer) -> Result<TokenRecord, StoreError> {
        let mut transaction = self.begin().await?;
        let token = add(&mut transaction, new, sealer).await?;
        self.commit(transaction, &Touched::tokens(std::slice::from_ref(&token))).await?;
        Ok(token)
    }

    async fn tokens(&self, after: Option<&str>, limit: u32) -> Result<Page<TokenRecord>, StoreError> {
        const SQL: &str = concat!("SELECT ", token_columns!(), " FROM tokens t WHERE t.id > ?1 ORDER BY t.id LIMIT ?2");
        let query = sqlx::query_as(SQL).bind(after.unwrap_or_default()).bind(i64::from(limit) + 1);
        let rows: Vec<TokenRow> = query.fetch_all(&self.readers).await.map_err(store_error)?;
        Ok(page(TokenRow::all(rows)?, limit))
    }

    async fn revoke_tokens(&self, which: &WhichTokens, sealer: &dyn TokenSealer) -> Result<Revoked, StoreError> {
        let mut transaction = self.begin().await?;
        let revoked = revoke(&mut transaction, which, sealer).await?;
        if revoked.tokens.is_empty() {
            roll_back(transaction).await?;
        } else {
            key_state::raise_generation(&mut transaction).await?;
            self.commit(transaction, &Touched::tokens(&revoked.tokens)).await?;
        }
        Ok(revoked)
    }

    async fn write_token_key(
        &self,
        intents: &[Intent],
        sealer: &dyn Sealer,
        from: Option<&dyn TokenSealer>,
        to: &dyn TokenSealer,
    ) -> Result<Vec<Result<Written, Refusal>>, StoreError> {
        let mut transaction = self.begin().await?;
        match write::batch(&mut transaction, intents, Together::AllOrNothing, sealer).await? {
            write::Batch::Undo(outcomes) => {
                roll_back(transaction).await?;
                Ok(outcomes)
            }
            write::Batch::Keep(outcomes, touched) => {
                if let Some(from) = from {
                    mac_anew(&mut transaction, from, to).await?;
                }
                key_state::raise_generation(&mut transaction).await?;
                self.commit(transaction, &touched).await?;
                Ok(outcomes)
            }
        }
    }

    async fn revoked_tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        const SQL: &str =
            concat!("SELECT ", token_columns!(), " FROM tokens t WHERE t.revoked_at IS NOT NULL ORDER BY t.id");
        let rows: Vec<TokenRow> = sqlx::query_as(SQL).fetch_all(&self.readers).await.map_err(store_error)?;
        Ok(rows.into_iter().filter_map(|row| row.found().ok()?).collect())
    }

    async fn touch_tokens(&self, ids: &[TokenId]) -> Result<(), StoreError> {
        committed!(self, |tx| touch(tx, ids))
    }
}

async fn add(
    connection: &mut SqliteConnection,
    new: &NewToken,
    sealer: &dyn TokenSealer,
) -> Result<TokenRecord, StoreError> {
    let token = new_token(new, key_state::now(connection).await?, sealer);
    let insert = sqlx::query(
        "INSERT INTO tokens (id, secret_hash, name, tenants, permissions, names, created_at, created_by, expires_at, mac) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )
    .bind(&token.id)
    .bind(token.secret_hash.as_slice())
    .bind(&token.name)
    .bind(&token.tenants)
    .bind(&token.permissions)
    .bind(&token.names)
    .bind(token.created_at.0)
    .bind(&token.created_by)
    .bind(token.expires_at.map(|at| at.0))
    .bind(token.mac.as_slice());
    insert.execute(connection).await.map_err(store_error)?;
    Ok(token)
}

async fn revoke(
    connection: &mut SqliteConnection,
    which: &WhichTokens,
    sealer: &dyn TokenSealer,
) -> Result<Revoked, StoreError> {
    const SQL: &str = concat!("SELECT ", token_columns!(), " FROM tokens t WHERE t.revoked_at IS NULL ORDER BY t.id");
    let now = key_state::now(connection).await?;
    let rows: Vec<TokenRow> = sqlx::query_as(SQL).fetch_all(&mut *connection).await.map_err(store_error)?;
    let mut revoked = Revoked::default();
    for token in TokenRow::all(rows)?.into_iter().filter(|token| is_meant(which, token)) {
        let Some(token) = revoked_token(&token, now, sealer) else {
            revoked.forged.push(token.id);
            continue;
        };
        let update = sqlx::query("UPDATE tokens SET revoked_at = ?2, mac = ?3 WHERE id = ?1")
            .bind(&token.id)
            .bind(now.0)
            .bind(token.mac.as_slice());
        one_row(&update.execute(&mut *connection).await.map_err(store_error)?)?;
        revoked.tokens.push(token);
    }
    Ok(revoked)
}

async fn mac_anew(
    connection: &mut SqliteConnection,
    from: &dyn TokenSealer,
    to: &dyn TokenSealer,
) -> Result<(), StoreError> {
    const SQL: &str = concat!("SELECT ", token_columns!(), " FROM tokens t ORDER BY t.id");
    let rows: Vec<TokenRow> = sqlx::query_as(SQL).fetch_all(&mut *connection).await.map_err(store_error)?;
    for (id, mac) in macs_anew(rows, from, to) {
        let update = sqlx::query("UPDATE tokens SET mac = ?2 WHERE id = ?1").bind(id).bind(mac.as_slice());
        one_row(&update.execute(&mut *connection).await.map_err(store_error)?)?;
    }
    Ok(())
}

async fn touch(connection: &mut SqliteConnection, ids: &[TokenId]) -> Result<(), StoreError> {
    let now = key_state::now(connection).await?;
    for id in ids {
        let update = sqlx::query(
            "UPDATE tokens SET last_used_at = ?2 WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at <= ?3)",
        )
        .bind(id.as_str())
        .bind(now.0)
        .bind(now.0.saturating_sub(micros(TOUCH_EVERY)));
        update.execute(&mut *connection).await.map_err(store_error)?;
    }
    Ok(())
}
