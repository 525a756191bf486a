//! Rows to model types, for both stores: the same column names, the same rules, the same words for a row that breaks them.
//!
//! Columns come from LEFT JOINs, so each is optional here; a prefix says whose it is (`t_` tenants, `s_` secrets, `v_`
//! secret_versions, `d_` deks). Lengths of ciphertexts and wrapped DEKs are not looked at: that is the first thing that opening them does.

mod backups;
mod rotation;
mod tokens;
mod trail;

pub(super) use backups::{DatabaseBackupRow, DrillRow, column};
pub(super) use rotation::{
    DekRow, EscrowRow, NodeRow, SealedVersionRow, durable_kids_column, kms_versions_column, master_key_state, micros,
    retired_without_time, tenant,
};
pub(super) use tokens::{PulseRow, PulsedTokenRow, TokenRow, is_meant, macs_anew, new_token, revoked_token};

pub(super) use trail::{ChainColumns, StartColumns, TrailColumns, keyset, trail_column};

use std::fmt;

use sqlx::FromRow;

use super::{Found, Page, Place, Refusal, StoreError, Which};
use crate::model::{
    BootId, DekBody, DekId, DekRecord, DekState, DekVersion, Delivery, KeyMode, KeyPhase, KeyState, Kid, Lease,
    MasterKeyRecord, MasterKeyState, Micros, NodeId, SecretName, SecretRecord, SecretVersion, Tenant, TenantRecord,
    UnknownState, VersionBody, VersionRecord, WrappedDek,
};

/// A place's index and all that lies there.
#[derive(FromRow)]
pub(super) struct PlaceRow {
    /// The index among the places asked for, from 0.
    place: i64,
    #[sqlx(flatten)]
    tenant: TenantColumns,
    #[sqlx(flatten)]
    secret: SecretColumns,
    #[sqlx(flatten)]
    version: VersionColumns,
    #[sqlx(flatten)]
    dek: DekColumns,
}

impl PlaceRow {
    pub(super) fn index(&self) -> Option<usize> {
        usize::try_from(self.place).ok()
    }

    /// The highest number that the secret ever had; 0 where there is none.
    pub(super) fn last_version(&self) -> u64 {
        self.secret.last_version()
    }

    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(super) fn found(self, place: &Place) -> Result<Found, StoreError> {
        match self.tenant.open() {
            Err(Refusal::TenantBlocked) => return Ok(Found::TenantBlocked),
            Err(_) => return Ok(Found::NoTenant),
            Ok(()) => {}
        }
        let Some(secret) = self.secret.record(&place.tenant)? else { return Ok(Found::NoSecret) };
        let version = self.version.record(&secret, self.dek)?;
        let wanted = match place.which {
            Which::Current => secret.current,
            Which::Number(number) => number,
        };
        if version.is_none() && wanted == secret.current {
            return Err(without_current(&secret));
        }
        Ok(Found::Secret(secret, version))
    }
}

/// A secret of a tenant that is asked for by name, or one of its page.
#[derive(FromRow)]
pub(super) struct SecretRow {
    #[sqlx(flatten)]
    tenant: TenantColumns,
    #[sqlx(flatten)]
    secret: SecretColumns,
}

impl SecretRow {
    /// The one secret that was asked for; `row` is absent where the tenant is.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(super) fn secret(row: Option<Self>, tenant: &Tenant) -> Result<Result<SecretRecord, Refusal>, StoreError> {
        let Some(row) = row else { return Ok(Err(Refusal::NoTenant)) };
        match row.tenant.open() {
            Err(refusal) => Ok(Err(refusal)),
            Ok(()) => Ok(row.secret.record(tenant)?.ok_or(Refusal::NoSecret)),
        }
    }

    /// A page of a tenant's secrets, read one past `limit`. A tenant without any is one row without a secret.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(super) fn page(
        rows: Vec<Self>,
        tenant: &Tenant,
        limit: u32,
    ) -> Result<Result<Page<SecretRecord>, Refusal>, StoreError> {
        if let Err(refusal) = status(rows.first().map(|row| &row.tenant)) {
            return Ok(Err(refusal));
        }
        let secrets = rows.into_iter().filter_map(|row| row.secret.record(tenant).transpose());
        Ok(Ok(page(secrets.collect::<Result<_, _>>()?, limit)))
    }
}

/// A secret of a tenant with one of its versions.
#[derive(FromRow)]
pub(super) struct VersionRow {
    #[sqlx(flatten)]
    tenant: TenantColumns,
    #[sqlx(flatten)]
    secret: SecretColumns,
    #[sqlx(flatten)]
    version: VersionColumns,
    #[sqlx(flatten)]
    dek: DekColumns,
}

impl VersionRow {
    /// One secret and each of its versions, in the order of the rows.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(super) fn versions(
        rows: Vec<Self>,
        tenant: &Tenant,
    ) -> Result<Result<(SecretRecord, Vec<VersionRecord>), Refusal>, StoreError> {
        if let Err(refusal) = status(rows.first().map(|row| &row.tenant)) {
            return Ok(Err(refusal));
        }
        let mut secret = None;
        let mut versions = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(of) = row.secret.record(tenant)? else { break };
            versions.extend(row.version.record(&of, row.dek)?);
            secret = Some(of);
        }
        Ok(secret.map(|secret| (secret, versions)).ok_or(Refusal::NoSecret))
    }

    /// A page of a tenant's secrets, each with its current version, read one past `limit`.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(super) fn page(
        rows: Vec<Self>,
        tenant: &Tenant,
        limit: u32,
    ) -> Result<Result<Page<(SecretRecord, VersionRecord)>, Refusal>, StoreError> {
        if let Err(refusal) = status(rows.first().map(|row| &row.tenant)) {
            return Ok(Err(refusal));
        }
        let mut items = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(secret) = row.secret.record(tenant)? else { break };
            let version = row.version.record(&secret, row.dek)?.ok_or_else(|| without_current(&secret))?;
            items.push((secret, version));
        }
        Ok(Ok(page(items, limit)))
    }
}

/// Columns of `tenants` that say whether anything of it may be read.
#[derive(FromRow)]
pub(super) struct TenantColumns {
    t_tenant: Option<String>,
    t_shred_at: Option<i64>,
}

impl TenantColumns {
    /// # Errors
    /// [`Refusal::NoTenant`] and [`Refusal::TenantBlocked`].
    pub(super) fn open(&self) -> Result<(), Refusal> {
        match (&self.t_tenant, self.t_shred_at) {
            (None, _) => Err(Refusal::NoTenant),
            (Some(_), Some(_)) => Err(Refusal::TenantBlocked),
            (Some(_), None) => Ok(()),
        }
    }
}

fn status(first: Option<&TenantColumns>) -> Result<(), Refusal> {
    first.map_or(Err(Refusal::NoTenant), TenantColumns::open)
}

/// What was read one past `limit` as a page of at most `limit`.
pub(super) fn page<T>(mut items: Vec<T>, limit: u32) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    Page { items, more }
}

/// Columns of `secrets`.
#[derive(FromRow)]
#[expect(clippy::struct_field_names, reason = "the columns' names in a join, where each table has a prefix")]
struct SecretColumns {
    s_name: Option<String>,
    s_current_version: Option<i64>,
    s_last_version: Option<i64>,
    s_delivery: Option<String>,
    s_created_at: Option<i64>,
    s_updated_at: Option<i64>,
    s_deleted_at: Option<i64>,
}

impl SecretColumns {
    fn last_version(&self) -> u64 {
        self.s_last_version.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
    }

    /// Absent where the row is.
    fn record(self, tenant: &Tenant) -> Result<Option<SecretRecord>, StoreError> {
        let Some(text) = self.s_name else { return Ok(None) };
        let row = RowName::Secret(tenant, &text);
        Ok(Some(SecretRecord {
            tenant: tenant.clone(),
            name: SecretName::parse(&text).map_err(|e| row.corrupt(e))?,
            current: secret_version(self.s_current_version, &row, "current_version")?,
            delivery: Delivery::parse(&row.need(self.s_delivery, "delivery")?)
                .map_err(|e| row.unknown("delivery", e))?,
            created_at: Micros(row.need(self.s_created_at, "created_at")?),
            updated_at: Micros(row.need(self.s_updated_at, "updated_at")?),
            deleted_at: self.s_deleted_at.map(Micros),
        }))
    }
}

/// Columns of `secret_versions`.
#[derive(FromRow)]
#[expect(clippy::struct_field_names, reason = "the columns' names in a join, where each table has a prefix")]
struct VersionColumns {
    v_version: Option<i64>,
    v_state: Option<String>,
    v_dek_version: Option<i64>,
    v_ciphertext: Option<Vec<u8>>,
    v_created_at: Option<i64>,
    v_destroyed_at: Option<i64>,
}

impl VersionColumns {
    /// Absent where the row is.
    fn record(self, secret: &SecretRecord, dek: DekColumns) -> Result<Option<VersionRecord>, StoreError> {
        let Some(number) = self.v_version else { return Ok(None) };
        let row = RowName::Version(secret, number);
        let body = match row.need(self.v_state, "state")?.as_str() {
            "live" => VersionBody::Live {
                ciphertext: row.need(self.v_ciphertext, "ciphertext")?,
                dek_version: dek_version(self.v_dek_version, &row, "dek_version")?,
                dek: dek.record(&secret.tenant)?,
            },
            "destroyed" => VersionBody::Destroyed { at: Micros(row.need(self.v_destroyed_at, "destroyed_at")?) },
            _ => return Err(row.corrupt("state is not one of 'live' 'destroyed'")),
        };
        Ok(Some(VersionRecord {
            version: secret_version(Some(number), &row, "version")?,
            created_at: Micros(row.need(self.v_created_at, "created_at")?),
            body,
        }))
    }
}

/// Columns of `deks`.
#[derive(FromRow)]
#[expect(clippy::struct_field_names, reason = "the columns' names in a join, where each table has a prefix")]
pub(super) struct DekColumns {
    d_dek_version: Option<i64>,
    d_kid: Option<Vec<u8>>,
    d_dek_id: Option<Vec<u8>>,
    d_state: Option<String>,
    d_wrapped: Option<Vec<u8>>,
}

impl DekColumns {
    /// Absent where the row is.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(super) fn record(self, tenant: &Tenant) -> Result<Option<DekRecord>, StoreError> {
        let Some(number) = self.d_dek_version else { return Ok(None) };
        let row = RowName::Dek(tenant, number);
        let id = row.need(self.d_dek_id, "dek_id")?;
        let state = DekState::parse(&row.need(self.d_state, "state")?).map_err(|e| row.unknown("state", e))?;
        let wrapped = |kid: Option<Vec<u8>>, bytes: Option<Vec<u8>>| {
            Ok(WrappedDek { kid: read_kid(&row.need(kid, "kid")?, &row, "kid")?, bytes: row.need(bytes, "wrapped")? })
        };
        let body = match state {
            DekState::Active => DekBody::Active(wrapped(self.d_kid, self.d_wrapped)?),
            DekState::DecryptOnly => DekBody::DecryptOnly(wrapped(self.d_kid, self.d_wrapped)?),
            DekState::Quarantined => DekBody::Quarantined(wrapped(self.d_kid, self.d_wrapped)?),
            DekState::Shredded => DekBody::Shredded,
        };
        Ok(Some(DekRecord {
            tenant: tenant.clone(),
            version: dek_version(Some(number), &row, "dek_version")?,
            id: DekId::from_slice(&id).ok_or_else(|| row.corrupt("dek_id is not 16 bytes"))?,
            body,
        }))
    }
}

/// A row of `master_keys`.
#[derive(FromRow)]
pub(super) struct MasterKeyRow {
    kid: Vec<u8>,
    state: String,
    created_at: i64,
    retired_at: Option<i64>,
    in_use: bool,
}

impl MasterKeyRow {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(super) fn record(self) -> Result<MasterKeyRecord, StoreError> {
        let row = RowName::MasterKey(&self.kid);
        Ok(MasterKeyRecord {
            kid: read_kid(&self.kid, &row, "kid")?,
            state: MasterKeyState::parse(&self.state).map_err(|e| row.unknown("state", e))?,
            created_at: Micros(self.created_at),
            retired_at: self.retired_at.map(Micros),
            in_use: self.in_use,
        })
    }
}

/// The row of `key_state`.
#[derive(FromRow)]
pub(super) struct KeyStateRow {
    db_id: Vec<u8>,
    epoch: i64,
    generation: i64,
    active_kid: Vec<u8>,
    mode: String,
    phase: String,
    lease_holder: Option<String>,
    lease_boot: Option<String>,
    lease_until: Option<i64>,
}

impl KeyStateRow {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(super) fn record(self) -> Result<KeyState, StoreError> {
        let row = RowName::KeyState;
        let counter =
            |number, what: &str| u64::try_from(number).map_err(|_| row.corrupt(format_args!("{what} is negative")));
        Ok(KeyState {
            db_id: self.db_id.as_slice().try_into().map_err(|_| row.corrupt("db_id is not 16 bytes"))?,
            epoch: counter(self.epoch, "epoch")?,
            generation: counter(self.generation, "generation")?,
            active_kid: read_kid(&self.active_kid, &row, "active_kid")?,
            mode: KeyMode::parse(&self.mode).map_err(|e| row.unknown("mode", e))?,
            phase: KeyPhase::parse(&self.phase).map_err(|e| row.unknown("phase", e))?,
            lease: lease(self.lease_holder, self.lease_boot, self.lease_until, &row)?,
        })
    }
}

/// The columns are set together or not at all.
fn lease(
    node: Option<String>,
    boot: Option<String>,
    until: Option<i64>,
    row: &RowName<'_>,
) -> Result<Option<Lease>, StoreError> {
    match (node, boot, until) {
        (None, None, None) => Ok(None),
        (Some(node), Some(boot), Some(until)) => Ok(Some(Lease {
            node: NodeId::from_hex(&node).ok_or_else(|| row.corrupt("lease_holder is not a node's id"))?,
            boot: BootId::from_hex(&boot).ok_or_else(|| row.corrupt("lease_boot is not a boot's id"))?,
            until: Micros(until),
        })),
        _ => Err(row.corrupt("of the lease's columns only some are set")),
    }
}

/// The active key's id alone.
///
/// # Errors
/// [`StoreError::Corrupt`]
pub(super) fn active_kid(bytes: &[u8]) -> Result<Kid, StoreError> {
    read_kid(bytes, &RowName::KeyState, "active_kid")
}

/// The staged key's id alone.
///
/// # Errors
/// [`StoreError::Corrupt`]
pub(super) fn staged_kid(bytes: &[u8]) -> Result<Kid, StoreError> {
    read_kid(bytes, &RowName::MasterKey(bytes), "kid")
}

/// A row of `tenants` with what its listing counts.
#[derive(FromRow)]
pub(super) struct TenantRow {
    tenant: String,
    created_at: i64,
    shred_at: Option<i64>,
    shredded_at: Option<i64>,
    secrets: i64,
    active_dek: Option<i64>,
}

impl TenantRow {
    /// # Errors
    /// [`StoreError::Corrupt`]
    pub(super) fn record(self) -> Result<TenantRecord, StoreError> {
        let row = RowName::Tenant(&self.tenant);
        let tenant = Tenant::from_row(&self.tenant).map_err(|e| row.corrupt(e))?;
        let active_dek = match self.active_dek {
            None => None,
            number @ Some(_) => Some(dek_version(number, &row, "the active DEK's dek_version")?),
        };
        Ok(TenantRecord {
            tenant,
            created_at: Micros(self.created_at),
            shred_at: self.shred_at.map(Micros),
            shredded_at: self.shredded_at.map(Micros),
            secrets: count(self.secrets),
            active_dek,
        })
    }
}

/// Counts of DEKs as `(state, count)` rows, as one entry for each state.
///
/// # Errors
/// [`StoreError::Corrupt`] for a state that is none.
pub(super) fn dek_counts(rows: Vec<(String, i64)>) -> Result<Vec<(DekState, u64)>, StoreError> {
    let mut counts: Vec<_> = DekState::ALL.iter().map(|state| (*state, 0)).collect();
    for (text, number) in rows {
        let row = RowName::DeksOf(&text);
        let state = DekState::parse(&text).map_err(|e| row.unknown("state", e))?;
        for entry in counts.iter_mut().filter(|entry| entry.0 == state) {
            entry.1 = count(number);
        }
    }
    Ok(counts)
}

/// What `count(*)` answers; it is never negative.
pub(super) fn count(number: i64) -> u64 {
    number.unsigned_abs()
}

/// A secret whose current version has no row: never pruned, so lost.
fn without_current(secret: &SecretRecord) -> StoreError {
    let row = RowName::Secret(&secret.tenant, secret.name.as_str());
    row.corrupt(format_args!("its current version {} has no row in secret_versions", secret.current))
}

fn secret_version(number: Option<i64>, row: &RowName<'_>, column: &str) -> Result<SecretVersion, StoreError> {
    let number = u64::try_from(row.need(number, column)?).ok().and_then(SecretVersion::new);
    number.ok_or_else(|| row.corrupt(format_args!("{column} is no version number")))
}

/// A DEK's number, from a column of this row.
fn dek_version(number: Option<i64>, row: &RowName<'_>, column: &str) -> Result<DekVersion, StoreError> {
    let number = u32::try_from(row.need(number, column)?).ok().and_then(DekVersion::new);
    number.ok_or_else(|| row.corrupt(format_args!("{column} is no DEK version")))
}

fn read_kid(bytes: &[u8], row: &RowName<'_>, column: &str) -> Result<Kid, StoreError> {
    Kid::from_slice(bytes).ok_or_else(|| row.corrupt(format_args!("{column} is not 16 bytes")))
}

/// The DEK version of a live version whose DEK has no row.
///
/// # Errors
/// [`StoreError::Corrupt`]
pub(super) fn orphaned_dek_version(tenant: &Tenant, number: i64) -> Result<DekVersion, StoreError> {
    dek_version(Some(number), &RowName::Dek(tenant, number), "dek_version")
}

/// The number of a tenant's next DEK, from the highest that it has.
///
/// # Errors
/// [`StoreError::Corrupt`] where that is none, [`StoreError::Refused`] where it is the last.
pub(super) fn next_dek_version(tenant: &Tenant, highest: Option<i64>) -> Result<DekVersion, StoreError> {
    let Some(number) = highest else { return Ok(DekVersion::FIRST) };
    let highest = dek_version(Some(number), &RowName::Dek(tenant, number), "dek_version")?;
    highest.next().ok_or_else(|| StoreError::Refused(format!("tenant {tenant} has used its last DEK version")))
}

/// How an error names a row: the table, and the key that an operator would look for. Written out only when there is an error.
enum RowName<'a> {
    Tenant(&'a str),
    Secret(&'a Tenant, &'a str),
    Version(&'a SecretRecord, i64),
    SealedVersion(&'a Tenant, &'a str, i64),
    Dek(&'a Tenant, i64),
    DeksOf(&'a str),
    MasterKey(&'a [u8]),
    KeyState,
    Node(&'a str),
    Escrow(&'a str),
    DatabaseBackup(&'a str),
    Drill(&'a str),
    Token(&'a str),
}

impl RowName<'_> {
    const fn table(&self) -> &'static str {
        match self {
            Self::Tenant(_) => "tenants",
            Self::Secret(..) => "secrets",
            Self::Version(..) | Self::SealedVersion(..) => "secret_versions",
            Self::Dek(..) | Self::DeksOf(_) => "deks",
            Self::MasterKey(_) => "master_keys",
            Self::KeyState => "key_state",
            Self::Node(_) => "nodes",
            Self::Escrow(_) => "escrows",
            Self::DatabaseBackup(_) => "database_backups",
            Self::Drill(_) => "drills",
            Self::Token(_) => "tokens",
        }
    }

    fn corrupt(&self, what: impl fmt::Display) -> StoreError {
        StoreError::Corrupt { table: self.table(), key: self.to_string(), what: what.to_string() }
    }

    fn unknown(&self, column: &str, error: UnknownState) -> StoreError {
        self.corrupt(format_args!("{column} is {error}"))
    }

    fn need<T>(&self, value: Option<T>, column: &str) -> Result<T, StoreError> {
        value.ok_or_else(|| self.corrupt(format_args!("{column} is missing")))
    }
}

impl fmt::Display for RowName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(text)
            | Self::Node(text)
            | Self::Escrow(text)
            | Self::DatabaseBackup(text)
            | Self::Drill(text)
            | Self::Token(text) => f.write_str(text),
            Self::Secret(tenant, name) => write!(f, "{tenant}/{name}"),
            Self::Version(secret, version) => write!(f, "{}/{}/{version}", secret.tenant, secret.name),
            Self::SealedVersion(tenant, name, version) => write!(f, "{tenant}/{name}/{version}"),
            Self::Dek(tenant, version) => write!(f, "{tenant}/{version}"),
            Self::DeksOf(state) => write!(f, "state '{state}'"),
            Self::MasterKey(kid) => f.write_str(&data_encoding::HEXLOWER.encode(kid)),
            Self::KeyState => f.write_str("1"),
        }
    }
}
