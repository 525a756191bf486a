//! Copies of master keys off the host, and waivers.

use sqlx::{SqliteConnection, SqlitePool};

use super::StoreError;
use super::error::store_error;
use super::sql::now;
use crate::failpoint;
use crate::model::{EscrowRecord, Kid};
use crate::store::guards;
use crate::store::masters::{CopyFinding, EscrowStage, NewEscrow};
use crate::store::rows::{EscrowRow, kms_versions_column};

pub(super) async fn add(connection: &mut SqliteConnection, escrow: &NewEscrow) -> Result<(), StoreError> {
    const SQL: &str = concat!(
        "INSERT INTO escrows (id, kid, target, locator, content_sha256, kind, started_at, confirmed_at, read_back_at, \
             kms_versions) \
         SELECT ?1, m.kid, ?3, ?4, ?5, ?6, now, iif(?7, now, NULL), iif(?8, now, NULL), ?9 \
         FROM master_keys m, (SELECT ",
        now!(),
        " AS now) WHERE m.kid = ?2"
    );
    guards::check_escrow(escrow)?;
    let insert = sqlx::query(SQL)
        .bind(&escrow.id)
        .bind(escrow.kid.as_bytes().as_slice())
        .bind(&escrow.target)
        .bind(escrow.locator.as_deref())
        .bind(escrow.content_sha256.as_ref().map(<[u8; 32]>::as_slice))
        .bind(escrow.kind.as_str())
        .bind(escrow.stage >= EscrowStage::Confirmed)
        .bind(escrow.stage >= EscrowStage::ReadBack)
        .bind(kms_versions_column(&escrow.kms_versions));
    if insert.execute(connection).await.map_err(store_error)?.rows_affected() == 0 {
        return Err(StoreError::Refused(format!("the database knows no master key {}", escrow.kid)));
    }
    failpoint::reached("store.escrow");
    Ok(())
}

pub(super) async fn advance(
    connection: &mut SqliteConnection,
    id: &str,
    stage: EscrowStage,
    locator: Option<&str>,
) -> Result<bool, StoreError> {
    const SQL: &str = concat!(
        "UPDATE escrows SET locator = coalesce(?2, locator), \
         confirmed_at = CASE ?3 WHEN 'confirmed' THEN now WHEN 'read_back' THEN coalesce(confirmed_at, now) \
                        ELSE confirmed_at END, \
         read_back_at = CASE ?3 WHEN 'read_back' THEN now ELSE read_back_at END, \
         looked_at = CASE ?3 WHEN 'read_back' THEN now ELSE looked_at END, \
         lost_as = CASE ?3 WHEN 'read_back' THEN NULL ELSE lost_as END, \
         unread_at = CASE ?3 WHEN 'read_back' THEN NULL ELSE unread_at END, \
         unread_why = CASE ?3 WHEN 'read_back' THEN NULL ELSE unread_why END \
         FROM (SELECT ",
        now!(),
        " AS now) WHERE id = ?1 AND kind = 'copy' \
         AND (?3 <> 'confirmed' OR confirmed_at IS NULL OR locator = ?2)"
    );
    let stage = match stage {
        EscrowStage::Started => "started",
        EscrowStage::Confirmed => "confirmed",
        EscrowStage::ReadBack => "read_back",
    };
    let update = sqlx::query(SQL).bind(id).bind(locator).bind(stage);
    Ok(update.execute(connection).await.map_err(store_error)?.rows_affected() == 1)
}

pub(super) async fn all(pool: &SqlitePool) -> Result<Vec<EscrowRecord>, StoreError> {
    let query = sqlx::query_as(
        "SELECT id, kid, target, locator, content_sha256, kms_versions, kind, started_at, confirmed_at, read_back_at, looked_at, \
             lost_as, unread_at, unread_why FROM escrows ORDER BY kid, started_at, id",
    );
    let rows: Vec<EscrowRow> = query.fetch_all(pool).await.map_err(store_error)?;
    rows.into_iter().map(EscrowRow::record).collect()
}

pub(super) async fn note(
    connection: &mut SqliteConnection,
    id: &str,
    finding: &CopyFinding,
) -> Result<bool, StoreError> {
    const LOOKED: &str = concat!(
        "UPDATE escrows SET looked_at = now, lost_as = ?2 FROM (SELECT ",
        now!(),
        " AS now) WHERE id = ?1 AND kind = 'copy' AND confirmed_at IS NOT NULL"
    );
    const UNREAD: &str = concat!(
        "UPDATE escrows SET unread_at = now, unread_why = ?2 FROM (SELECT ",
        now!(),
        " AS now) WHERE id = ?1 AND kind = 'copy' AND confirmed_at IS NOT NULL"
    );
    let update = match finding {
        CopyFinding::There => sqlx::query(LOOKED).bind(id).bind(None::<&str>),
        CopyFinding::Lost(loss) => sqlx::query(LOOKED).bind(id).bind(loss.as_str()),
        CopyFinding::Unread(why) => sqlx::query(UNREAD).bind(id).bind(why),
    };
    Ok(update.execute(connection).await.map_err(store_error)?.rows_affected() == 1)
}

/// Whether a copy stands, or is waived.
pub(super) async fn allows_flip(connection: &mut SqliteConnection, kid: Kid) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM escrows WHERE kid = ?1 AND confirmed_at IS NOT NULL AND lost_as IS NULL AND unread_at IS NULL)",
    );
    query.bind(kid.as_bytes().as_slice()).fetch_one(connection).await.map_err(store_error)
}

pub(super) async fn was_read_back(connection: &mut SqliteConnection, kid: Kid) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM escrows WHERE kid = ?1 AND kind = 'copy' AND read_back_at IS NOT NULL AND lost_as IS NULL AND unread_at IS NULL)",
    );
    query.bind(kid.as_bytes().as_slice()).fetch_one(connection).await.map_err(store_error)
}
