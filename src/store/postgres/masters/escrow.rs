//! What proves that a copy of a master key is off the host, and what stands for it.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use crate::failpoint;
use crate::model::EscrowRecord;
use crate::store::StoreError;
use crate::store::masters::{CopyFinding, EscrowStage, NewEscrow};
use crate::store::postgres::NOW;
use crate::store::postgres::failure::Failure;
use crate::store::postgres::tx::{End, Read, Work};
use crate::store::rows::{EscrowRow, kms_versions_column};

pub(super) struct AddEscrow<'a>(pub(super) &'a NewEscrow);

#[async_trait]
impl Work for AddEscrow<'_> {
    type Output = ();

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<()>, Failure> {
        insert_escrow(tx, self.0).await?;
        Ok(End::Commit(()))
    }
}

/// # Errors
/// [`StoreError::Refused`] where the kid has no row.
pub(super) async fn insert_escrow(tx: &mut PgConnection, escrow: &NewEscrow) -> Result<(), Failure> {
    let at: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
    let stamp = |stage| (escrow.stage >= stage).then_some(at);
    let added = sqlx::query(
        "INSERT INTO containarium.escrows (id, kid, target, locator, content_sha256, kind, started_at, confirmed_at, read_back_at, kms_versions) \
         SELECT $1, kid, $3, $4, $5, $6, $7, $8, $9, $10 FROM containarium.master_keys WHERE kid = $2",
    )
    .bind(&escrow.id)
    .bind(escrow.kid.as_bytes().as_slice())
    .bind(&escrow.target)
    .bind(escrow.locator.as_deref())
    .bind(escrow.content_sha256.as_ref().map(<[u8; 32]>::as_slice))
    .bind(escrow.kind.as_str())
    .bind(at)
    .bind(stamp(EscrowStage::Confirmed))
    .bind(stamp(EscrowStage::ReadBack))
    .bind(kms_versions_column(&escrow.kms_versions))
    .execute(tx)
    .await?;
    if added.rows_affected() != 1 {
        return Err(StoreError::Refused(format!("the database knows no master key {}", escrow.kid)).into());
    }
    failpoint::reached("store.escrow");
    Ok(())
}

pub(super) struct AdvanceEscrow<'a> {
    pub(super) id: &'a str,
    pub(super) stage: EscrowStage,
    pub(super) locator: Option<&'a str>,
}

#[async_trait]
impl Work for AdvanceEscrow<'_> {
    type Output = bool;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<bool>, Failure> {
        let at: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        let stamp = |stage| (self.stage == stage).then_some(at);
        let done = sqlx::query(
            "UPDATE containarium.escrows SET confirmed_at = COALESCE($2, confirmed_at, $3), \
                 read_back_at = COALESCE($3, read_back_at), locator = COALESCE($4, locator), \
                 looked_at = COALESCE($3, looked_at), lost_as = CASE WHEN $3::bigint IS NULL THEN lost_as END, \
                 unread_at = CASE WHEN $3::bigint IS NULL THEN unread_at END, \
                 unread_why = CASE WHEN $3::bigint IS NULL THEN unread_why END WHERE id = $1 AND kind = 'copy' \
                 AND ($2::bigint IS NULL OR confirmed_at IS NULL OR locator = $4)",
        )
        .bind(self.id)
        .bind(stamp(EscrowStage::Confirmed))
        .bind(stamp(EscrowStage::ReadBack))
        .bind(self.locator)
        .execute(tx)
        .await?;
        Ok(if done.rows_affected() == 1 { End::Commit(true) } else { End::Rollback(false) })
    }
}

pub(super) struct NoteCopy<'a> {
    pub(super) id: &'a str,
    pub(super) finding: &'a CopyFinding,
}

#[async_trait]
impl Work for NoteCopy<'_> {
    type Output = bool;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<bool>, Failure> {
        let at: i64 = sqlx::query_scalar(NOW).fetch_one(&mut *tx).await?;
        let (sql, what) = match self.finding {
            CopyFinding::There => (LOOKED, None),
            CopyFinding::Lost(loss) => (LOOKED, Some(loss.as_str())),
            CopyFinding::Unread(why) => (UNREAD, Some(&**why)),
        };
        let done = sqlx::query(sql).bind(self.id).bind(at).bind(what).execute(tx).await?;
        Ok(End::Commit(done.rows_affected() == 1))
    }
}

const LOOKED: &str = "UPDATE containarium.escrows SET looked_at = $2, lost_as = $3 \
     WHERE id = $1 AND kind = 'copy' AND confirmed_at IS NOT NULL";
const UNREAD: &str = "UPDATE containarium.escrows SET unread_at = $2, unread_why = $3 \
     WHERE id = $1 AND kind = 'copy' AND confirmed_at IS NOT NULL";

pub(super) struct ListEscrows;

#[async_trait]
impl Read for ListEscrows {
    type Output = Vec<EscrowRecord>;

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<EscrowRecord>, Failure> {
        let found: Vec<EscrowRow> = sqlx::query_as(
            "SELECT id, kid, target, locator, content_sha256, kms_versions, kind, started_at, confirmed_at, read_back_at, \
                 looked_at, lost_as, unread_at, unread_why \
             FROM containarium.escrows ORDER BY kid, started_at, id COLLATE \"C\"",
        )
        .fetch_all(connection)
        .await?;
        Ok(found.into_iter().map(EscrowRow::record).collect::<Result<_, _>>()?)
    }
}
