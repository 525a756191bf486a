//! Writes: a batch of intents in one transaction.
//!
//! Locks first (the tenants, then the rows of the secrets that there are, both sorted), then every look, then the decisions, then the
//! rows. A secret that is new has no row to lock: it is inserted at the end, sorted too, and whoever loses the race for a name starts
//! over and finds the winner's row. (Placeholder rows inserted up front were rejected: each costs a dead tuple on success and a
//! clean-up on refusal.) A transaction that inserts waits only for one that inserts as well, and one that locks rows holds no inserted
//! one yet, so nobody waits in a circle.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::failure::Failure;
use super::locks;
use super::rows::{self, Standing};
use super::tx::{End, Work};
use crate::model::{
    DekRecord, DekVersion, SecretName, SecretRecord, SecretVersion, Tenant, VersionBody, VersionRecord,
};
use crate::store::{
    Expect, Intent, Keep, Refusal, SealedRow, Sealer, Sealing, Slot, Source, StoreError, Together, WriteOutcome,
    Written,
};

pub(super) struct WriteBatch<'a> {
    pub(super) intents: &'a [Intent],
    pub(super) together: Together,
    pub(super) sealer: &'a dyn Sealer,
}

type Answers = Vec<Result<Written, Refusal>>;

/// # Errors
/// [`StoreError::Refused`] where two intents name one place.
pub(super) fn check_distinct(intents: &[Intent]) -> Result<(), StoreError> {
    let mut places = HashSet::with_capacity(intents.len());
    match intents.iter().find(|intent| !places.insert((&intent.tenant, &intent.name))) {
        Some(twice) => Err(StoreError::Refused(format!("{}/{} is in one batch twice", twice.tenant, twice.name))),
        None => Ok(()),
    }
}

#[async_trait]
impl Work for WriteBatch<'_> {
    type Output = Answers;

    async fn run(&mut self, tx: &mut PgConnection) -> Result<End<Answers>, Failure> {
        let seen = self.look(tx).await?;
        let mut decisions = Vec::with_capacity(self.intents.len());
        for (index, intent) in self.intents.iter().enumerate() {
            let decision = self.decide(index, intent, &seen)?;
            if let (Together::AllOrNothing, Err(refusal)) = (self.together, &decision) {
                return Ok(End::Rollback(self.all_refused(index, refusal)));
            }
            decisions.push(decision);
        }
        if decisions.iter().all(Result::is_err) {
            return Ok(End::Rollback(decisions.into_iter().filter_map(Result::err).map(Err).collect()));
        }
        let stored = self.store(tx, &decisions).await?;
        let answers = self.intents.iter().zip(decisions).map(|(intent, decision)| {
            decision
                .map_or_else(|refusal| Ok(Err(refusal)), |decision| answer(intent, &decision, &seen, &stored).map(Ok))
        });
        Ok(End::Commit(answers.collect::<Result<_, Failure>>()?))
    }
}

type Key<'a> = (&'a Tenant, &'a SecretName);

/// What lay there when the locks were held.
#[derive(Default)]
struct Seen<'a> {
    tenants: HashMap<&'a Tenant, (Standing, Option<DekRecord>)>,
    secrets: HashMap<Key<'a>, SecretRow>,
    /// The current version of each secret, and the version that an intent copies.
    versions: HashMap<(Key<'a>, SecretVersion), VersionRecord>,
}

struct SecretRow {
    record: SecretRecord,
    last: u64,
}

impl<'a> Seen<'a> {
    fn version(&self, key: Key<'a>, number: SecretVersion) -> Option<&VersionRecord> {
        self.versions.get(&(key, number))
    }
}

/// What becomes of an intent that is not refused.
enum Decision {
    Create { ciphertext: Vec<u8>, dek: DekVersion },
    Update { version: SecretVersion, ciphertext: Vec<u8>, dek: DekVersion },
    Keep,
}

impl<'a> WriteBatch<'a> {
    fn all_refused(&self, first: usize, refusal: &Refusal) -> Answers {
        let answer = |index| Err(if index == first { refusal.clone() } else { Refusal::Batch });
        (0..self.intents.len()).map(answer).collect()
    }

    async fn look(&self, tx: &mut PgConnection) -> Result<Seen<'a>, Failure> {
        let mut seen = Seen::default();
        let tenants: Vec<_> =
            self.intents.iter().map(|intent| &intent.tenant).collect::<HashSet<_>>().into_iter().collect();
        let texts: Vec<_> = tenants.iter().map(|tenant| tenant.as_str()).collect();
        locks::tenants_shared(tx, &texts).await?;
        self.look_at_tenants(tx, &tenants, &texts, &mut seen).await?;
        self.lock_secrets(tx, &mut seen).await?;
        self.look_at_versions(tx, &mut seen).await?;
        Ok(seen)
    }

    async fn look_at_tenants(
        &self,
        tx: &mut PgConnection,
        tenants: &[&'a Tenant],
        texts: &[&str],
        seen: &mut Seen<'a>,
    ) -> Result<(), Failure> {
        let found = sqlx::query(concat!(
            "SELECT t.tenant, t.shred_at, ",
            rows::dek_columns!(),
            " FROM unnest($1::text[]) WITH ORDINALITY AS p (tenant, place) \
             LEFT JOIN containarium.tenants t ON t.tenant = p.tenant \
             LEFT JOIN containarium.deks d ON d.tenant = t.tenant AND d.state = 'active' \
             ORDER BY p.place"
        ))
        .bind(texts)
        .fetch_all(tx)
        .await?;
        for (tenant, row) in tenants.iter().copied().zip(&found) {
            seen.tenants.insert(tenant, (Standing::of(row)?, rows::dek(row, tenant)?));
        }
        Ok(())
    }

    /// LockRows lies above the sort, so the rows are locked in the order of the answer.
    async fn lock_secrets(&self, tx: &mut PgConnection, seen: &mut Seen<'a>) -> Result<(), Failure> {
        let found = sqlx::query(concat!(
            "SELECT p.place, ",
            rows::secret_columns!(),
            " FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS p (tenant, name, place) \
             JOIN containarium.secrets s ON s.tenant = p.tenant AND s.name = p.name \
             ORDER BY s.tenant, s.name FOR NO KEY UPDATE OF s"
        ))
        .bind(self.intents.iter().map(|intent| intent.tenant.as_str()).collect::<Vec<_>>())
        .bind(self.intents.iter().map(|intent| intent.name.as_str()).collect::<Vec<_>>())
        .fetch_all(tx)
        .await?;
        for row in &found {
            let intent = at_place(self.intents, row)?;
            if let Some(record) = rows::secret(row, &intent.tenant, &intent.name)? {
                let last = rows::last_version(row)?;
                seen.secrets.insert((&intent.tenant, &intent.name), SecretRow { record, last });
            }
        }
        Ok(())
    }

    /// In a statement after the row locks: the locking one answers the newest secret rows, but joins them to its own older snapshot.
    async fn look_at_versions(&self, tx: &mut PgConnection, seen: &mut Seen<'a>) -> Result<(), Failure> {
        let mut wanted: Vec<(Key<'a>, SecretVersion)> = Vec::new();
        for intent in self.intents {
            let key = (&intent.tenant, &intent.name);
            let Some(secret) = seen.secrets.get(&key) else { continue };
            wanted.push((key, secret.record.current));
            match intent.source {
                Source::CopyOf(source) if source != secret.record.current => wanted.push((key, source)),
                Source::CopyOf(_) | Source::Value => {}
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let found = sqlx::query(concat!(
            "SELECT p.place, ",
            rows::version_columns!(),
            ", ",
            rows::dek_columns!(),
            " FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS p (tenant, name, version, place) \
             JOIN containarium.secret_versions v ON v.tenant = p.tenant AND v.name = p.name AND v.version = p.version \
             LEFT JOIN containarium.deks d ON d.tenant = v.tenant AND d.dek_version = v.dek_version"
        ))
        .bind(wanted.iter().map(|((tenant, _), _)| tenant.as_str()).collect::<Vec<_>>())
        .bind(wanted.iter().map(|((_, name), _)| name.as_str()).collect::<Vec<_>>())
        .bind(wanted.iter().map(|(_, version)| rows::column(*version)).collect::<Vec<_>>())
        .fetch_all(tx)
        .await?;
        for row in &found {
            let (key, number) = *at_place(&wanted, row)?;
            if let Some(version) = rows::version(row, key.0, key.1)? {
                seen.versions.insert((key, number), version);
            }
        }
        Ok(())
    }

    /// In the order that [`crate::store::Store::write`] promises.
    fn decide(&self, index: usize, intent: &'a Intent, seen: &Seen<'a>) -> Result<Result<Decision, Refusal>, Failure> {
        let key = (&intent.tenant, &intent.name);
        let (standing, dek) = seen.tenants.get(&intent.tenant).ok_or(sqlx::Error::RowNotFound)?;
        if *standing == Standing::Blocked {
            return Ok(Err(Refusal::TenantBlocked));
        }
        let secret = seen.secrets.get(&key);
        let source = match intent.source {
            Source::Value => None,
            Source::CopyOf(number) => match copied(*standing, secret, number, seen.version(key, number)) {
                Ok(source) => Some(source),
                Err(refusal) => return Ok(Err(refusal)),
            },
        };
        let current = match secret {
            Some(secret) => readable(secret, key, seen)?,
            None => None,
        };
        if let Err(refusal) = expected(intent.expect, current.map(|current| current.version)) {
            return Ok(Err(refusal));
        }
        let Some(dek) = dek else { return Ok(Err(Refusal::NoActiveDek)) };
        let Some(version) = secret.map_or(0, |secret| secret.last).checked_add(1).and_then(SecretVersion::new) else {
            return Ok(Err(Refusal::Exhausted));
        };
        let slot = Slot { tenant: &intent.tenant, name: &intent.name, version, dek, current, source };
        Ok(match self.sealer.seal(index, &slot) {
            Err(refusal) => Err(Refusal::Seal(refusal)),
            Ok(Sealing::Unchanged) if current.is_some() && source.is_none() => Ok(Decision::Keep),
            Ok(Sealing::Unchanged) => {
                return Err(StoreError::Refused(format!(
                    "{}/{}: the sealer called a value unchanged that has none before it",
                    intent.tenant, intent.name
                ))
                .into());
            }
            Ok(Sealing::Sealed(ciphertext)) => Ok(match secret {
                None => Decision::Create { ciphertext, dek: dek.version },
                Some(_) => Decision::Update { version, ciphertext, dek: dek.version },
            }),
        })
    }

    async fn store(
        &self,
        tx: &mut PgConnection,
        decisions: &[Result<Decision, Refusal>],
    ) -> Result<Stored<'a>, Failure> {
        let (mut created, mut updated, mut kept) = (Columns::default(), Columns::default(), Columns::default());
        for (intent, decision) in self.intents.iter().zip(decisions) {
            match decision {
                Ok(Decision::Create { ciphertext, dek }) => created.push(intent, None, Some((ciphertext, *dek))),
                Ok(Decision::Update { version, ciphertext, dek }) => {
                    updated.push(intent, Some(*version), Some((ciphertext, *dek)));
                }
                Ok(Decision::Keep) if intent.delivery.is_some() => kept.push(intent, None, None),
                Ok(Decision::Keep) | Err(_) => {}
            }
        }
        let mut stored = Stored::new();
        // The row locks are held already, so these two wait for nobody; inserting may, and comes last.
        updated.run(tx, UPDATE, &mut stored).await?;
        kept.run(tx, DELIVER, &mut stored).await?;
        created.run(tx, CREATE, &mut stored).await?;
        Ok(stored)
    }
}

/// What an intent may copy, or why not.
fn copied<'s>(
    standing: Standing,
    secret: Option<&SecretRow>,
    number: SecretVersion,
    version: Option<&'s VersionRecord>,
) -> Result<SealedRow<'s>, Refusal> {
    if standing == Standing::Unknown {
        return Err(Refusal::NoTenant);
    }
    let secret = secret.ok_or(Refusal::NoSecret)?;
    if secret.record.deleted_at.is_some() {
        return Err(Refusal::Deleted);
    }
    let version = version.ok_or(Refusal::NoVersion(number))?;
    sealed_row(version).ok_or(Refusal::Destroyed(number))
}

fn sealed_row(version: &VersionRecord) -> Option<SealedRow<'_>> {
    match &version.body {
        VersionBody::Live { ciphertext, dek_version, dek } => {
            Some(SealedRow { version: version.version, ciphertext, dek_version: *dek_version, dek: dek.as_ref() })
        }
        VersionBody::Destroyed { .. } => None,
    }
}

/// The current version, where the secret is readable.
fn readable<'s>(secret: &SecretRow, key: Key<'s>, seen: &'s Seen<'s>) -> Result<Option<SealedRow<'s>>, Failure> {
    let current = seen.versions.get(&(key, secret.record.current));
    let current = current.ok_or_else(|| rows::no_current_version(key.0, key.1))?;
    Ok(if secret.record.deleted_at.is_some() { None } else { sealed_row(current) })
}

fn expected(expect: Expect, current: Option<SecretVersion>) -> Result<(), Refusal> {
    let holds = match expect {
        Expect::Anything => true,
        Expect::Absent => current.is_none(),
        Expect::Current(version) => current == Some(version),
    };
    if holds { Ok(()) } else { Err(Refusal::Precondition { current }) }
}

/// The secrets that were written, as they are now, by place in the batch's own columns.
type Stored<'a> = HashMap<Key<'a>, SecretRecord>;

fn answer<'a>(
    intent: &'a Intent,
    decision: &Decision,
    seen: &Seen<'a>,
    stored: &Stored<'a>,
) -> Result<Written, Failure> {
    let key = (&intent.tenant, &intent.name);
    let secret = stored.get(&key).or_else(|| seen.secrets.get(&key).map(|secret| &secret.record));
    let outcome = match decision {
        Decision::Create { .. } => WriteOutcome::Created,
        Decision::Update { .. } => WriteOutcome::Updated,
        Decision::Keep => WriteOutcome::Unchanged,
    };
    Ok(Written { secret: secret.cloned().ok_or(sqlx::Error::RowNotFound)?, outcome })
}

/// One statement's rows, a column each.
#[derive(Default)]
struct Columns<'a> {
    keys: Vec<Key<'a>>,
    tenants: Vec<&'a str>,
    names: Vec<&'a str>,
    deliveries: Vec<Option<&'static str>>,
    versions: Vec<Option<i64>>,
    deks: Vec<Option<i64>>,
    ciphertexts: Vec<Option<Vec<u8>>>,
    /// The lowest version that stays.
    keep_from: Vec<i64>,
}

/// `n`: the rows of [`Columns`], one moment for all of them.
macro_rules! with_rows {
    ($($rest:literal),+) => {
        concat!(
            "WITH n AS MATERIALIZED ( \
                 SELECT p.*, now.at FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bigint[]) \
                     WITH ORDINALITY AS p (tenant, name, delivery, version, dek_version, ciphertext, keep_from, place), \
                     (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS at) AS now \
             ) ",
            $($rest),+
        )
    };
}

/// New secrets with their version 1. A name that somebody else has made meanwhile is missing from the answer.
const CREATE: &str = concat!(
    with_rows!(
        ", s AS ( \
             INSERT INTO containarium.secrets (tenant, name, current_version, last_version, delivery, created_at, updated_at) \
             SELECT tenant, name, 1, 1, COALESCE(delivery, 'env'), at, at FROM n ORDER BY tenant COLLATE \"C\", name COLLATE \"C\" \
             ON CONFLICT DO NOTHING RETURNING * \
         ), versions AS ( \
             INSERT INTO containarium.secret_versions (tenant, name, version, state, dek_version, ciphertext, created_at) \
             SELECT n.tenant, n.name, 1, 'live', n.dek_version, n.ciphertext, n.at FROM n JOIN s ON s.tenant = n.tenant AND s.name = n.name \
         ) SELECT n.place, "
    ),
    rows::secret_columns!(),
    " FROM s JOIN n ON n.tenant = s.tenant AND n.name = s.name"
);

/// A further version, and the oldest ones pruned.
const UPDATE: &str = concat!(
    with_rows!(
        ", made AS ( \
             INSERT INTO containarium.secret_versions (tenant, name, version, state, dek_version, ciphertext, created_at) \
             SELECT tenant, name, version, 'live', dek_version, ciphertext, at FROM n \
         ), pruned AS ( \
             DELETE FROM containarium.secret_versions v USING n \
             WHERE v.tenant = n.tenant AND v.name = n.name AND v.version < n.keep_from \
         ) UPDATE containarium.secrets s \
         SET current_version = n.version, last_version = n.version, delivery = COALESCE(n.delivery, s.delivery), \
             updated_at = n.at, deleted_at = NULL \
         FROM n WHERE s.tenant = n.tenant AND s.name = n.name RETURNING n.place, "
    ),
    rows::secret_columns!()
);

/// Only the delivery, where it is another.
const DELIVER: &str = concat!(
    with_rows!(
        "UPDATE containarium.secrets s SET delivery = n.delivery, updated_at = n.at \
         FROM n WHERE s.tenant = n.tenant AND s.name = n.name AND s.delivery <> n.delivery RETURNING n.place, "
    ),
    rows::secret_columns!()
);

impl<'a> Columns<'a> {
    fn push(&mut self, intent: &'a Intent, version: Option<SecretVersion>, sealed: Option<(&[u8], DekVersion)>) {
        self.keys.push((&intent.tenant, &intent.name));
        self.tenants.push(intent.tenant.as_str());
        self.names.push(intent.name.as_str());
        self.deliveries.push(intent.delivery.map(crate::model::Delivery::as_str));
        self.versions.push(version.map(rows::column));
        self.deks.push(sealed.map(|(_, dek)| i64::from(dek.get())));
        self.ciphertexts.push(sealed.map(|(ciphertext, _)| ciphertext.to_vec()));
        self.keep_from.push(version.map_or(1, |version| keep_from(intent.keep, version)));
    }

    async fn run(self, tx: &mut PgConnection, sql: &'static str, stored: &mut Stored<'a>) -> Result<(), Failure> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let found = sqlx::query(sql)
            .bind(self.tenants)
            .bind(self.names)
            .bind(self.deliveries)
            .bind(self.versions)
            .bind(self.deks)
            .bind(self.ciphertexts)
            .bind(self.keep_from)
            .fetch_all(tx)
            .await?;
        for row in &found {
            let key = *at_place(&self.keys, row)?;
            let record = rows::secret(row, key.0, key.1)?.ok_or(sqlx::Error::RowNotFound)?;
            stored.insert(key, record);
        }
        // The rows of UPDATE are locked, and DELIVER may pass over some: only a name that was to be new can be missing for a reason.
        match sql {
            CREATE if found.len() < self.keys.len() => Err(Failure::Overtaken),
            UPDATE if found.len() < self.keys.len() => Err(sqlx::Error::RowNotFound.into()),
            _ => Ok(()),
        }
    }
}

/// The newest stays whatever is asked.
fn keep_from(keep: Keep, newest: SecretVersion) -> i64 {
    match keep {
        Keep::All => 1,
        Keep::Newest(number) => (rows::column(newest) - i64::from(number.max(1)) + 1).max(1),
    }
}

/// What the column `place`, counted from 1, points at.
fn at_place<'s, T>(items: &'s [T], row: &PgRow) -> Result<&'s T, Failure> {
    let place: i64 = row.try_get("place")?;
    let index = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
    Ok(index.and_then(|index| items.get(index)).ok_or(sqlx::Error::RowNotFound)?)
}
