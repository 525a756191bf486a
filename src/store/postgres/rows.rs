//! From rows to records. What the database's own rules should have kept out is [`StoreError::Corrupt`], with table and key.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::failure::Failure;
use crate::model::{
    DekBody, DekId, DekRecord, DekState, DekVersion, Delivery, KeyMode, KeyPhase, KeyState, Kid, MasterKeyRecord,
    MasterKeyState, Micros, SecretName, SecretRecord, SecretVersion, Tenant, TenantRecord, VersionBody, VersionRecord,
    WrappedDek,
};
use crate::store::StoreError;

// The columns of each record, under the names that the functions below look for; tables go by s, v, d and k.
macro_rules! secret_columns {
    () => {
        "s.current_version, s.last_version, s.delivery, s.created_at AS secret_created_at, s.updated_at, s.deleted_at"
    };
}
macro_rules! version_columns {
    () => {
        "v.version, v.state AS version_state, v.dek_version, v.ciphertext, v.created_at AS version_created_at, v.destroyed_at"
    };
    (without ciphertext) => {
        "v.version, v.state AS version_state, v.dek_version, ''::bytea AS ciphertext, v.created_at AS version_created_at, v.destroyed_at"
    };
}
macro_rules! dek_columns {
    () => {
        "d.dek_version AS dek_row, d.kid AS dek_kid, d.dek_id, d.state AS dek_state, d.wrapped"
    };
}
macro_rules! key_state_columns {
    () => {
        "k.db_id, k.epoch, k.generation, k.active_kid, k.mode, k.phase"
    };
}
pub(super) use {dek_columns, key_state_columns, secret_columns, version_columns};

/// Whether a tenant may be read and written; from the columns `tenant` and `shred_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Unknown,
    Blocked,
    Open,
}

impl Standing {
    pub(super) fn of(row: &PgRow) -> Result<Self, Failure> {
        let tenant: Option<&str> = row.try_get("tenant")?;
        let shred_at: Option<i64> = row.try_get("shred_at")?;
        Ok(match (tenant, shred_at) {
            (None, _) => Self::Unknown,
            (Some(_), Some(_)) => Self::Blocked,
            (Some(_), None) => Self::Open,
        })
    }
}

/// A version as its column holds it; [`SecretVersion`] promises that it fits.
pub(super) fn column(version: SecretVersion) -> i64 {
    i64::try_from(version.get()).unwrap_or(i64::MAX)
}

/// What count(*) answers.
pub(super) fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn corrupt(table: &'static str, key: impl Into<String>, what: impl Into<String>) -> StoreError {
    StoreError::Corrupt { table, key: key.into(), what: what.into() }
}

/// A secret whose current version has no row: it is never pruned, so it was taken away.
pub(super) fn no_current_version(tenant: &Tenant, name: &SecretName) -> StoreError {
    corrupt("secrets", format!("{tenant}/{name}"), "its current version has no row")
}

/// The secret's name in the column `name`; absent where the row holds none.
pub(super) fn name(row: &PgRow, tenant: &Tenant) -> Result<Option<SecretName>, Failure> {
    let name: Option<&str> = row.try_get("name")?;
    let parse = |name| SecretName::parse(name).map_err(|error| corrupt("secrets", tenant.as_str(), error.to_string()));
    Ok(name.map(parse).transpose()?)
}

/// The secret of a row of [`secret_columns`]; absent where the join found none.
pub(super) fn secret(row: &PgRow, tenant: &Tenant, name: &SecretName) -> Result<Option<SecretRecord>, Failure> {
    let Some(current) = row.try_get::<Option<i64>, _>("current_version")? else { return Ok(None) };
    let broken = |what: &str| corrupt("secrets", format!("{tenant}/{name}"), what);
    Ok(Some(SecretRecord {
        tenant: tenant.clone(),
        name: name.clone(),
        current: secret_version(current).ok_or_else(|| broken("current_version is not a version number"))?,
        delivery: Delivery::parse(row.try_get("delivery")?).map_err(|_| broken("delivery is unknown"))?,
        created_at: Micros(row.try_get("secret_created_at")?),
        updated_at: Micros(row.try_get("updated_at")?),
        deleted_at: row.try_get::<Option<i64>, _>("deleted_at")?.map(Micros),
    }))
}

fn secret_version(number: i64) -> Option<SecretVersion> {
    u64::try_from(number).ok().and_then(SecretVersion::new)
}

/// The last number that a secret used.
pub(super) fn last_version(row: &PgRow) -> Result<u64, Failure> {
    Ok(count(row.try_get("last_version")?))
}

/// The version of a row of [`version_columns`] and [`dek_columns`]; absent where the join found none.
pub(super) fn version(row: &PgRow, tenant: &Tenant, name: &SecretName) -> Result<Option<VersionRecord>, Failure> {
    let Some(number) = row.try_get::<Option<i64>, _>("version")? else { return Ok(None) };
    let broken = |what: &str| corrupt("secret_versions", format!("{tenant}/{name}/{number}"), what);
    let destroyed_at: Option<i64> = row.try_get("destroyed_at")?;
    let body = match (row.try_get("version_state")?, destroyed_at) {
        ("live", None) => {
            let ciphertext: Option<Vec<u8>> = row.try_get("ciphertext")?;
            let dek_version: Option<i64> = row.try_get("dek_version")?;
            VersionBody::Live {
                ciphertext: ciphertext.ok_or_else(|| broken("a live version without a ciphertext"))?,
                dek_version: dek_version
                    .and_then(dek_number)
                    .ok_or_else(|| broken("a live version without a DEK version"))?,
                dek: dek(row, tenant)?,
            }
        }
        ("destroyed", Some(at)) => VersionBody::Destroyed { at: Micros(at) },
        _ => return Err(broken("its state and its columns do not agree").into()),
    };
    Ok(Some(VersionRecord {
        version: secret_version(number).ok_or_else(|| broken("version is not a version number"))?,
        created_at: Micros(row.try_get("version_created_at")?),
        body,
    }))
}

fn dek_number(number: i64) -> Option<DekVersion> {
    u32::try_from(number).ok().and_then(DekVersion::new)
}

/// The DEK of a row of [`dek_columns`]; absent where the join found none.
pub(super) fn dek(row: &PgRow, tenant: &Tenant) -> Result<Option<DekRecord>, Failure> {
    let Some(number) = row.try_get::<Option<i64>, _>("dek_row")? else { return Ok(None) };
    let broken = |what: &str| corrupt("deks", format!("{tenant}/{number}"), what);
    let id: &[u8] = row.try_get("dek_id")?;
    let state = DekState::parse(row.try_get("dek_state")?).map_err(|_| broken("state is unknown"))?;
    let kid: Option<&[u8]> = row.try_get("dek_kid")?;
    let wrapped: Option<Vec<u8>> = row.try_get("wrapped")?;
    let body = match (state, kid, wrapped) {
        (DekState::Shredded, None, None) => DekBody::Shredded,
        (DekState::Shredded, ..) => return Err(broken("shredded, yet its key is there").into()),
        (state, Some(kid), Some(bytes)) => {
            let kid = Kid::from_slice(kid).ok_or_else(|| broken("kid has not 16 bytes"))?;
            let wrapped = WrappedDek { kid, bytes };
            match state {
                DekState::Active => DekBody::Active(wrapped),
                DekState::DecryptOnly => DekBody::DecryptOnly(wrapped),
                DekState::Quarantined | DekState::Shredded => DekBody::Quarantined(wrapped),
            }
        }
        _ => return Err(broken("its key is gone, yet it is not shredded").into()),
    };
    Ok(Some(DekRecord {
        tenant: tenant.clone(),
        version: dek_number(number).ok_or_else(|| broken("dek_version is not a version number"))?,
        id: DekId::from_slice(id).ok_or_else(|| broken("dek_id has not 16 bytes"))?,
        body,
    }))
}

/// A tenant of a listing.
pub(super) fn tenant(row: &PgRow) -> Result<TenantRecord, Failure> {
    let name: &str = row.try_get("tenant")?;
    let active: Option<i64> = row.try_get("dek_version")?;
    Ok(TenantRecord {
        tenant: Tenant::from_row(name).map_err(|error| corrupt("tenants", name, error.to_string()))?,
        created_at: Micros(row.try_get("created_at")?),
        shred_at: row.try_get::<Option<i64>, _>("shred_at")?.map(Micros),
        secrets: count(row.try_get("secrets")?),
        active_dek: active.and_then(dek_number),
    })
}

/// The key state of a row of [`key_state_columns`]; absent where the join found none.
pub(super) fn key_state(row: &PgRow) -> Result<Option<KeyState>, Failure> {
    let Some(db_id) = row.try_get::<Option<&[u8]>, _>("db_id")? else { return Ok(None) };
    let broken = |what: &str| corrupt("key_state", "1", what);
    let positive = |number: i64| u64::try_from(number).ok().filter(|number| *number >= 1);
    Ok(Some(KeyState {
        db_id: db_id.try_into().map_err(|_| broken("db_id has not 16 bytes"))?,
        epoch: positive(row.try_get("epoch")?).ok_or_else(|| broken("epoch is not positive"))?,
        generation: positive(row.try_get("generation")?).ok_or_else(|| broken("generation is not positive"))?,
        active_kid: Kid::from_slice(row.try_get("active_kid")?).ok_or_else(|| broken("active_kid has not 16 bytes"))?,
        mode: KeyMode::parse(row.try_get("mode")?).map_err(|_| broken("mode is unknown"))?,
        phase: KeyPhase::parse(row.try_get("phase")?).map_err(|_| broken("phase is unknown"))?,
    }))
}

/// A master key of the survey; absent where the join found none.
pub(super) fn master_key(row: &PgRow) -> Result<Option<MasterKeyRecord>, Failure> {
    let Some(kid) = row.try_get::<Option<&[u8]>, _>("master_kid")? else { return Ok(None) };
    let shown = data_encoding::HEXLOWER.encode(kid);
    Ok(Some(MasterKeyRecord {
        kid: Kid::from_slice(kid).ok_or_else(|| corrupt("master_keys", shown.clone(), "kid has not 16 bytes"))?,
        state: MasterKeyState::parse(row.try_get("master_state")?)
            .map_err(|_| corrupt("master_keys", shown, "state is unknown"))?,
        created_at: Micros(row.try_get("master_created_at")?),
        in_use: row.try_get("master_in_use")?,
    }))
}
