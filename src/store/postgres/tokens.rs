//! Tokens.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::columns::one_more;
use super::failure::Failure;
use super::masters::{no_key_yet, raise_generation};
use super::tx::{End, Read, Work, run_read, run_tx};
use super::write::{WriteBatch, check_distinct};
use super::{NOW, PostgresStore};
use crate::model::{Micros, Page, TokenId, TokenRecord, WhichTokens};
use crate::store::StoreError;
use crate::store::rows::{
    PulseRow, PulsedTokenRow, TokenRow, is_meant, macs_anew, micros, new_token, page, revoked_token,
};
use crate::store::tokens::{NewToken, Pulse, Revoked, TOUCH_EVERY, TokenSealer, Tokens};
use crate::store::trail::Touched;
use crate::store::{Intent, Refusal, Sealer, Together, Written};

/// Ids are compared as bytes everywhere, so that pages are the same under any collation.
macro_rules! token_columns {
    () => {
        "t.id, t.secret_hash, t.name, t.tenants, t.permissions, t.names, t.created_at, t.created_by, t.expires_at, t.revoked_at, \
         t.last_used_at, t.mac"
    };
}

#[async_trait]
impl Tokens for PostgresStore {
    async fn pulse(&self) -> Result<Option<Pulse>, StoreError> {
        run_read(&self.pool, &ReadPulse).await
    }

    async fn token(&self, id: &TokenId) -> Result<(Pulse, Option<TokenRecord>), StoreError> {
        run_read(&self.pool, &ReadToken(id)).await
    }

    async fn add_token(&self, new: &NewToken, sealer: &dyn TokenSealer) -> Result<TokenRecord, StoreError> {
        run_tx(self, "add_token", &mut AddToken { new, sealer, touched: Vec::new() }).await
    }

    async fn tokens(&self, after: Option<&str>, limit: u32) -> Result<Page<TokenRecord>, StoreError> {
        run_read(&self.pool, &ListTokens { after, limit }).await
    }

    async fn revoke_tokens(&self, which: &WhichTokens, sealer: &dyn TokenSealer) -> Result<Revoked, StoreError> {
        run_tx(self, "revoke_tokens", &mut RevokeTokens { which, sealer, touched: Vec::new() }).await
    }

    async fn write_token_key(
        &self,
        intents: &[Intent],
        sealer: &dyn Sealer,
        from: Option<&dyn TokenSealer>,
        to: &dyn TokenSealer,
    ) -> Result<Vec<Result<Written, Refusal>>, StoreError> {
        check_distinct(intents)?;
        let write = WriteBatch { intents, together: Together::AllOrNothing, sealer, touched: Vec::new() };
        run_tx(self, "write_token_key", &mut WriteTokenKey { write, from, to }).await
    }

    async fn revoked_tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        run_read(&self.pool, &ListRevoked).await
    }

    async fn touch_tokens(&self, ids: &[TokenId]) -> Result<(), StoreError> {
        run_tx(self, "touch_tokens", &mut TouchTokens(ids)).await
    }
}

struct ReadPulse;

#[async_trait]
impl Read for ReadPulse {
    type Output = Option<Pulse>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let row: Option<PulseRow> = sqlx::query_as(
            "SELECT db_id, generation, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now \
             FROM containarium.key_state",
        )
        .fetch_optional(connection)
        .await?;
        Ok(row.map(PulseRow::pulse).transpose()?)
    }
}

struct ReadToken<'a>(&'a TokenId);

#[async_trait]
impl Read for ReadToken<'_> {
    type Output = (Pulse, Option<TokenRecord>);

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let row: Option<PulsedTokenRow> = sqlx::query_as(concat!(
            "SELECT k.db_id, k.generation, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now, ",
            token_columns!(),
            " FROM containarium.key_state k LEFT JOIN containarium.tokens t ON t.id = $1"
        ))
        .bind(self.0.as_str())
        .fetch_optional(connection)
        .await?;
        Ok(row.ok_or_else(no_key_yet)?.found()?)
    }
}

struct AddToken<'a> {
    new: &'a NewToken,
    sealer: &'a dyn TokenSealer,
    touched: Vec<Touched>,
}

#[async_trait]
impl Work for AddToken<'_> {
    type Output = TokenRecord;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<TokenRecord>, Failure> {
        let now: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        let token = new_token(self.new, Micros(now), self.sealer);
        sqlx::query(
            "INSERT INTO containarium.tokens \
             (id, secret_hash, name, tenants, permissions, names, created_at, created_by, expires_at, mac) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
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
        .bind(token.mac.as_slice())
        .execute(tx)
        .await?;
        self.touched = Touched::tokens(std::slice::from_ref(&token));
        Ok(End::Commit(token))
    }

    fn touched(&self) -> &[Touched] {
        &self.touched
    }
}

struct ListTokens<'a> {
    after: Option<&'a str>,
    limit: u32,
}

#[async_trait]
impl Read for ListTokens<'_> {
    type Output = Page<TokenRecord>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let rows: Vec<TokenRow> = sqlx::query_as(concat!(
            "SELECT ",
            token_columns!(),
            " FROM containarium.tokens t WHERE t.id COLLATE \"C\" > $1 ORDER BY t.id COLLATE \"C\" LIMIT $2"
        ))
        .bind(self.after.unwrap_or_default())
        .bind(one_more(self.limit))
        .fetch_all(connection)
        .await?;
        Ok(page(TokenRow::all(rows)?, self.limit))
    }
}

struct RevokeTokens<'a> {
    which: &'a WhichTokens,
    sealer: &'a dyn TokenSealer,
    touched: Vec<Touched>,
}

#[async_trait]
impl Work for RevokeTokens<'_> {
    type Output = Revoked;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Revoked>, Failure> {
        // In one order, so that two revocations wait for each other and never deadlock.
        let rows: Vec<TokenRow> = sqlx::query_as(concat!(
            "SELECT ",
            token_columns!(),
            " FROM containarium.tokens t WHERE t.revoked_at IS NULL ORDER BY t.id FOR UPDATE"
        ))
        .fetch_all(&mut *tx)
        .await?;
        let now: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        let mut revoked = Revoked::default();
        for token in TokenRow::all(rows)?.into_iter().filter(|token| is_meant(self.which, token)) {
            match revoked_token(&token, Micros(now), self.sealer) {
                Some(token) => revoked.tokens.push(token),
                None => revoked.forged.push(token.id),
            }
        }
        if revoked.tokens.is_empty() {
            return Ok(End::Rollback(revoked));
        }
        let (ids, macs): (Vec<_>, Vec<_>) =
            revoked.tokens.iter().map(|token| (token.id.as_str(), token.mac.as_slice())).unzip();
        sqlx::query(
            "UPDATE containarium.tokens t SET revoked_at = $3, mac = n.mac \
             FROM unnest($1::text[], $2::bytea[]) AS n (id, mac) WHERE t.id = n.id",
        )
        .bind(&ids)
        .bind(&macs)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        raise_generation(tx).await?;
        self.touched = Touched::tokens(&revoked.tokens);
        Ok(End::Commit(revoked))
    }

    fn touched(&self) -> &[Touched] {
        &self.touched
    }
}

struct WriteTokenKey<'a> {
    write: WriteBatch<'a>,
    from: Option<&'a dyn TokenSealer>,
    to: &'a dyn TokenSealer,
}

#[async_trait]
impl Work for WriteTokenKey<'_> {
    type Output = Vec<Result<Written, Refusal>>;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Self::Output>, Failure> {
        let outcomes = match self.write.run(tx).await? {
            End::Commit(outcomes) => outcomes,
            End::Rollback(outcomes) => return Ok(End::Rollback(outcomes)),
        };
        if let Some(from) = self.from {
            // In the order of a revocation.
            let rows: Vec<TokenRow> = sqlx::query_as(concat!(
                "SELECT ",
                token_columns!(),
                " FROM containarium.tokens t ORDER BY t.id FOR UPDATE"
            ))
            .fetch_all(&mut *tx)
            .await?;
            let anew = macs_anew(rows, from, self.to);
            sqlx::query(
                "UPDATE containarium.tokens t SET mac = n.mac FROM unnest($1::text[], $2::bytea[]) AS n (id, mac) WHERE t.id = n.id",
            )
            .bind(anew.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>())
            .bind(anew.iter().map(|(_, mac)| mac.as_slice()).collect::<Vec<_>>())
            .execute(&mut *tx)
            .await?;
        }
        raise_generation(tx).await?;
        Ok(End::Commit(outcomes))
    }

    fn touched(&self) -> &[Touched] {
        self.write.touched()
    }
}

struct ListRevoked;

#[async_trait]
impl Read for ListRevoked {
    type Output = Vec<TokenRecord>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Self::Output, Failure> {
        let rows: Vec<TokenRow> = sqlx::query_as(concat!(
            "SELECT ",
            token_columns!(),
            " FROM containarium.tokens t WHERE t.revoked_at IS NOT NULL ORDER BY t.id COLLATE \"C\""
        ))
        .fetch_all(connection)
        .await?;
        Ok(rows.into_iter().filter_map(|row| row.found().ok()?).collect())
    }
}

struct TouchTokens<'a>(&'a [TokenId]);

#[async_trait]
impl Work for TouchTokens<'_> {
    type Output = ();

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<()>, Failure> {
        let now: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        let mut ids: Vec<&str> = self.0.iter().map(TokenId::as_str).collect();
        ids.sort_unstable();
        // Locked first and in order, as a revocation locks them; one that is being revoked is not worth waiting for.
        sqlx::query(
            "UPDATE containarium.tokens SET last_used_at = $2 WHERE id IN (SELECT id FROM containarium.tokens \
             WHERE id = ANY($1) AND (last_used_at IS NULL OR last_used_at <= $3) ORDER BY id FOR UPDATE SKIP LOCKED)",
        )
        .bind(&ids)
        .bind(now)
        .bind(now.saturating_sub(micros(TOUCH_EVERY)))
        .execute(tx)
        .await?;
        Ok(End::Commit(()))
    }
}
