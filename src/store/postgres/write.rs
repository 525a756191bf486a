//! Writes: a batch of intents in one transaction.
//!
//! Locks first (the tenants, then the rows of the secrets that there are, both sorted), then every look, then the decisions, then the
//! rows. A secret that is new has no row to lock: it is inserted at the end, sorted too, and whoever loses the race for a name starts
//! over and finds the winner's row. (Placeholder rows inserted up front were rejected: each costs a dead tuple on success and a
//! clean-up on refusal.) A transaction that inserts waits only for one that inserts as well, and one that locks rows holds no inserted
//! one yet, so nobody waits in a circle.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use sqlx::postgres::PgConnection;
use sqlx::{FromRow, Row};

use super::columns::{self, column};
use super::failure::Failure;
use super::tx::{End, Work};
use super::{locks, read};
use crate::model::{DekRecord, Micros, SecretVersion, Tenant, VersionRecord};
use crate::store::decide::{Change, Decision, Ground, all_refused, decide};
use crate::store::rows::DekColumns;
use crate::store::trail::Touched;
use crate::store::{
    Found, Intent, Keep, Place, Refusal, Sealer, Source, StoreError, Together, Which, WriteOutcome, Written,
};

pub(super) struct WriteBatch<'a> {
    pub(super) intents: &'a [Intent],
    pub(super) together: Together,
    pub(super) sealer: &'a dyn Sealer,
    pub(super) touched: Vec<Touched>,
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
        let grounds = self.look(tx).await?;
        let mut decisions = Vec::with_capacity(self.intents.len());
        let mut without_dek = None;
        for (index, (intent, ground)) in self.intents.iter().zip(&grounds).enumerate() {
            let decision = decide(index, intent, ground, self.sealer)?;
            if let (Together::AllOrNothing, Err(refusal)) = (self.together, &decision) {
                if *refusal != Refusal::NoActiveDek {
                    return Ok(End::Rollback(all_refused(self.intents.len(), index, refusal)));
                }
                without_dek.get_or_insert(index);
            }
            decisions.push(decision);
        }
        if let Some(index) = without_dek {
            return Ok(End::Rollback(all_refused(self.intents.len(), index, &Refusal::NoActiveDek)));
        }
        let changed = store(tx, self.intents, &decisions).await?;
        self.touched = decisions.iter().flatten().map(Decision::touched).collect();
        let answers = decisions.into_iter().map(|decision| decision.map(|decision| decision.written)).collect();
        Ok(if changed { End::Commit(answers) } else { End::Rollback(answers) })
    }

    fn touched(&self) -> &[Touched] {
        &self.touched
    }
}

impl WriteBatch<'_> {
    /// Takes the locks, and sees what lies under them: in statements of their own after the locks, as a statement that waits for a row
    /// still joins it to its older snapshot.
    async fn look(&self, tx: &mut PgConnection) -> Result<Vec<Ground>, Failure> {
        let tenants: HashSet<_> = self.intents.iter().map(|intent| &intent.tenant).collect();
        let tenants: Vec<_> = tenants.into_iter().collect();
        locks::tenants_shared(tx, &tenants.iter().map(|tenant| tenant.as_str()).collect::<Vec<_>>()).await?;
        let locked = lock_secrets(tx, self.intents).await?;
        let current = |intent: &Intent| place(intent, Which::Current);
        let copied = |intent: &Intent| match intent.source {
            Source::Value => None,
            Source::CopyOf(version) => Some(place(intent, Which::Number(version))),
        };
        let places: Vec<_> = self.intents.iter().map(current).chain(self.intents.iter().filter_map(copied)).collect();
        let mut rows = read::place_rows(tx, &places).await?.into_iter();
        let (now, deks) = active_deks(tx, &tenants).await?;
        let mut grounds = Vec::with_capacity(self.intents.len());
        for (index, (place, row)) in places.iter().zip(rows.by_ref().take(self.intents.len())).enumerate() {
            let last_version = row.last_version();
            let dek = deks.get(&place.tenant).cloned();
            let found = row.found(place)?;
            // Committed between the two statements: seen now, yet not locked, and its counter may move on.
            if matches!(found, Found::Secret(..)) && !locked.contains(&index) {
                return Err(Failure::Overtaken);
            }
            grounds.push(Ground { found, last_version, source: None, dek, now });
        }
        let grounds_of_copies = self.intents.iter().zip(&mut grounds).filter(|(intent, _)| copied(intent).is_some());
        for ((place, row), (_, ground)) in places.iter().skip(self.intents.len()).zip(rows).zip(grounds_of_copies) {
            ground.source = version_of(row.found(place)?);
        }
        Ok(grounds)
    }
}

fn place(intent: &Intent, which: Which) -> Place {
    Place { tenant: intent.tenant.clone(), name: intent.name.clone(), which }
}

fn version_of(found: Found) -> Option<VersionRecord> {
    match found {
        Found::Secret(_, version) => version,
        Found::NoTenant | Found::TenantBlocked | Found::NoSecret => None,
    }
}

/// Locks the rows that there are, and answers the indices of their intents. They are locked in the order of the sort, which lies below
/// LockRows. NO KEY UPDATE: a version that refers to the secret may be inserted beside, and nobody's key changes.
async fn lock_secrets(tx: &mut PgConnection, intents: &[Intent]) -> Result<HashSet<usize>, Failure> {
    let places: Vec<i64> = sqlx::query_scalar(
        "SELECT p.place - 1 FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS p (tenant, name, place) \
         JOIN containarium.secrets s ON s.tenant = p.tenant AND s.name = p.name \
         ORDER BY s.tenant, s.name FOR NO KEY UPDATE OF s",
    )
    .bind(intents.iter().map(|intent| intent.tenant.as_str()).collect::<Vec<_>>())
    .bind(intents.iter().map(|intent| intent.name.as_str()).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    Ok(places.into_iter().filter_map(|place| usize::try_from(place).ok()).collect())
}

/// The database's time, and the active DEK of each tenant that has one.
async fn active_deks<'a>(
    tx: &mut PgConnection,
    tenants: &[&'a Tenant],
) -> Result<(Micros, HashMap<&'a Tenant, DekRecord>), Failure> {
    let found = sqlx::query(concat!(
        "SELECT now.at, p.place - 1 AS place, ",
        columns::dek_columns!(),
        " FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS at) AS now \
         CROSS JOIN unnest($1::text[]) WITH ORDINALITY AS p (tenant, place) \
         LEFT JOIN containarium.deks d ON d.tenant = p.tenant AND d.state = 'active' ORDER BY p.place"
    ))
    .bind(tenants.iter().map(|tenant| tenant.as_str()).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let now = found.first().map_or(Ok(0), |row| row.try_get("at"))?;
    let mut deks = HashMap::with_capacity(tenants.len());
    for (tenant, row) in tenants.iter().zip(&found) {
        if let Some(dek) = DekColumns::from_row(row)?.record(tenant)? {
            deks.insert(*tenant, dek);
        }
    }
    Ok((Micros(now), deks))
}

/// Stores what was decided; answers whether that is anything.
async fn store(
    tx: &mut PgConnection,
    intents: &[Intent],
    decisions: &[Result<Decision, Refusal>],
) -> Result<bool, Failure> {
    let made = intents.iter().zip(decisions).filter_map(|(intent, decision)| Some((intent, decision.as_ref().ok()?)));
    let (mut created, mut updated, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for (intent, decision) in made {
        match (&decision.change, decision.written.outcome) {
            (Change::Nothing, _) => {}
            (Change::Delivery, _) => kept.push((intent, decision)),
            (Change::Version { .. }, WriteOutcome::Created) => created.push((intent, decision)),
            (Change::Version { .. }, _) => updated.push((intent, decision)),
        }
    }
    // The row locks are held already, so these two wait for nobody; inserting may, and comes last.
    apply(tx, UPDATE, &updated).await?;
    apply(tx, DELIVER, &kept).await?;
    if apply(tx, CREATE, &created).await? < created.len() {
        return Err(Failure::Overtaken);
    }
    Ok(!(created.is_empty() && updated.is_empty() && kept.is_empty()))
}

/// `n`: what was decided, a row for each secret.
macro_rules! with_decided {
    ($rest:literal) => {
        concat!(
            "WITH n AS MATERIALIZED (SELECT * FROM \
                 unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bytea[], $7::bigint[], $8::bigint[]) \
                 AS p (tenant, name, delivery, version, dek_version, ciphertext, keep_from, at)) ",
            $rest
        )
    };
}

/// New secrets with their first version. A name that somebody else has made meanwhile is missing from the count.
const CREATE: &str = with_decided!(
    ", s AS ( \
         INSERT INTO containarium.secrets (tenant, name, current_version, last_version, delivery, created_at, updated_at) \
         SELECT tenant, name, version, version, delivery, at, at FROM n \
         ORDER BY tenant COLLATE \"C\", name COLLATE \"C\" ON CONFLICT DO NOTHING RETURNING tenant, name \
     ), made AS ( \
         INSERT INTO containarium.secret_versions (tenant, name, version, state, dek_version, ciphertext, created_at) \
         SELECT n.tenant, n.name, n.version, 'live', n.dek_version, n.ciphertext, n.at \
         FROM n JOIN s ON s.tenant = n.tenant AND s.name = n.name \
     ) SELECT FROM s"
);

/// A further version, and the oldest ones pruned.
const UPDATE: &str = with_decided!(
    ", made AS ( \
         INSERT INTO containarium.secret_versions (tenant, name, version, state, dek_version, ciphertext, created_at) \
         SELECT tenant, name, version, 'live', dek_version, ciphertext, at FROM n \
     ), pruned AS ( \
         DELETE FROM containarium.secret_versions v USING n \
         WHERE v.tenant = n.tenant AND v.name = n.name AND v.version < n.keep_from \
     ) UPDATE containarium.secrets s \
     SET current_version = n.version, last_version = n.version, delivery = n.delivery, updated_at = n.at, deleted_at = NULL \
     FROM n WHERE s.tenant = n.tenant AND s.name = n.name"
);

/// Only the delivery.
const DELIVER: &str = with_decided!(
    "UPDATE containarium.secrets s SET delivery = n.delivery, updated_at = n.at \
     FROM n WHERE s.tenant = n.tenant AND s.name = n.name"
);

/// The number of secrets that the statement came to.
async fn apply(tx: &mut PgConnection, sql: &'static str, decided: &[(&Intent, &Decision)]) -> Result<usize, Failure> {
    if decided.is_empty() {
        return Ok(0);
    }
    let secrets = || decided.iter().map(|(_, decision)| &decision.written.secret);
    let sealed = |decision: &Decision| match &decision.change {
        Change::Version { ciphertext, dek_version } => (Some(i64::from(dek_version.get())), Some(ciphertext.clone())),
        Change::Nothing | Change::Delivery => (None, None),
    };
    let (deks, ciphertexts): (Vec<_>, Vec<_>) = decided.iter().map(|(_, decision)| sealed(decision)).unzip();
    let keep_from = |(intent, decision): &(&Intent, &Decision)| keep_from(intent.keep, decision.written.secret.current);
    let done = sqlx::query(sql)
        .bind(secrets().map(|secret| secret.tenant.as_str()).collect::<Vec<_>>())
        .bind(secrets().map(|secret| secret.name.as_str()).collect::<Vec<_>>())
        .bind(secrets().map(|secret| secret.delivery.as_str()).collect::<Vec<_>>())
        .bind(secrets().map(|secret| column(secret.current)).collect::<Vec<_>>())
        .bind(deks)
        .bind(ciphertexts)
        .bind(decided.iter().map(keep_from).collect::<Vec<_>>())
        .bind(secrets().map(|secret| secret.updated_at.0).collect::<Vec<_>>())
        .execute(tx)
        .await?;
    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
}

/// The lowest number that stays; the newest stays whatever is asked.
fn keep_from(keep: Keep, newest: SecretVersion) -> i64 {
    match keep {
        Keep::All => 1,
        Keep::Newest(number) => column(newest).saturating_sub(i64::from(number.max(1)) - 1),
    }
}
