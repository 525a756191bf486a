//! What the database knows of keys, backups and nodes, read at once for doctor and metrics.

use crate::model::{
    DatabaseBackup, Drill, EscrowKind, EscrowRecord, KeyPhase, KeyState, MasterKeyRecord, MasterKeyState, Micros,
    NodeRecord, StoreKind, Unread,
};
use crate::service::backup::is_version_of;
use crate::store::{Store, StoreError, Survey};

pub(super) struct Ledger {
    pub(super) kind: StoreKind,
    pub(super) now: Micros,
    pub(super) survey: Survey,
    pub(super) escrows: Vec<EscrowRecord>,
    pub(super) database_backup: Option<DatabaseBackup>,
    pub(super) drill: Option<Drill>,
    pub(super) nodes: Vec<NodeRecord>,
}

/// When keys and database were last backed up, as metrics say it. Of several keys that the database needs, the one that is worst off counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupTimes {
    /// Of the active key.
    pub key_created: Micros,
    /// Absent while a key that is needed has no confirmed copy.
    pub key_confirmed: Option<Micros>,
    /// Absent while no copy of a key that is needed was read back.
    pub key_read_back: Option<Micros>,
    /// Copies that configured secrets lack, of each key that is needed.
    pub copies_missing: u64,
    /// Copies that were no good when they were last to be read back, where none of the same place was read back since.
    pub copies_unread: u64,
    pub database: Option<Micros>,
    pub drill: Option<Micros>,
    /// Of the last drill.
    pub drill_failed: u64,
    pub phase: KeyPhase,
    /// Since the rotation's key was made; zero while none runs.
    pub rotating_for_micros: i64,
}

/// What a key's copies have come to.
pub(super) struct Proof<'a> {
    pub(super) key: &'a MasterKeyRecord,
    /// Of copies that nothing bad is known of, as is `read_back`.
    pub(super) confirmed: Option<Micros>,
    pub(super) read_back: Option<Micros>,
    /// Its confirmed copies, but for those that were lost since.
    pub(super) copies: Vec<&'a EscrowRecord>,
    pub(super) lost: Vec<&'a EscrowRecord>,
    pub(super) waived: bool,
}

impl<'a> Proof<'a> {
    /// Of these secrets the ones that have no confirmed copy of the key, or none that is good.
    pub(super) fn lacking<'s>(&self, secrets: &'s [String]) -> impl Iterator<Item = &'s str> {
        let has = |secret: &str| self.good().any(|copy| is_version_of(copy, secret));
        secrets.iter().map(String::as_str).filter(move |secret| !has(secret))
    }

    /// Copies that were lost where no other one is in their secret, or none of the key anywhere.
    pub(super) fn missed(&self, secrets: &[String]) -> Vec<&'a EscrowRecord> {
        let lacking: Vec<&str> = self.lacking(secrets).collect();
        let is_missed = |escrow: &EscrowRecord| lacking.iter().any(|secret| is_version_of(escrow, secret));
        self.lost.iter().copied().filter(|escrow| self.copies.is_empty() || is_missed(escrow)).collect()
    }

    /// Copies that were no good when they were last to be read back, where none of the same place was read back since.
    pub(super) fn unread(&self) -> Vec<(&'a EscrowRecord, &'a Unread)> {
        let all = || self.copies.iter().chain(&self.lost).copied();
        let read_since = |bad: &EscrowRecord, at: Micros| {
            all().any(|other| place(other) == place(bad) && other.read_back_at.is_some_and(|read| read >= at))
        };
        all()
            .filter_map(|escrow| Some((escrow, escrow.unread.as_ref()?)))
            .filter(|(escrow, unread)| !read_since(escrow, unread.at))
            .collect()
    }

    /// Whether a copy is there that nothing bad is known of.
    pub(super) fn has_good_copy(&self) -> bool {
        self.good().next().is_some()
    }

    pub(super) fn good(&self) -> impl Iterator<Item = &'a EscrowRecord> {
        self.copies.iter().copied().filter(|escrow| escrow.can_be_relied_on())
    }
}

impl Ledger {
    pub(super) async fn read(store: &dyn Store) -> Result<Self, StoreError> {
        Ok(Self {
            kind: store.kind(),
            now: store.now().await?,
            survey: store.survey().await?,
            escrows: store.escrows().await?,
            database_backup: store.last_database_backup().await?,
            drill: store.last_drill().await?,
            nodes: store.nodes().await?,
        })
    }

    pub(super) const fn state(&self) -> Option<&KeyState> {
        self.survey.key_state.as_ref()
    }

    /// The keys without which something would be lost: the active one, and those under which DEKs in use are; the active one first.
    pub(super) fn needed(&self) -> Vec<&MasterKeyRecord> {
        let record = |kid| self.survey.master_keys.iter().find(|key| key.kid == kid);
        self.survey.needed().into_iter().filter_map(record).collect()
    }

    pub(super) fn proofs(&self) -> Vec<Proof<'_>> {
        self.needed().into_iter().map(|key| self.proof(key)).collect()
    }

    /// Of keys that are retired and not destroyed those that had copies, and have none any more that nothing bad is known of: backups of
    /// the database from their time need them. One copy, wherever it is, is enough for those.
    pub(super) fn forlorn(&self) -> Vec<Proof<'_>> {
        let retired = self.survey.master_keys.iter().filter(|key| key.state == MasterKeyState::Retired);
        let retired = retired.filter(|key| !self.survey.needed().contains(&key.kid));
        let is_forlorn = |proof: &Proof<'_>| !proof.has_good_copy() && proof.lost.len() + proof.copies.len() > 0;
        retired.map(|key| self.proof(key)).filter(is_forlorn).collect()
    }

    fn proof<'a>(&'a self, key: &'a MasterKeyRecord) -> Proof<'a> {
        let of_key = || self.escrows.iter().filter(|escrow| escrow.kid == key.kid && escrow.confirmed_at.is_some());
        let of_kind = of_key().filter(|escrow| escrow.kind == EscrowKind::Copy);
        let (copies, lost): (Vec<_>, Vec<_>) = of_kind.partition(|escrow| escrow.stands());
        let good = || copies.iter().filter(|escrow| escrow.can_be_relied_on());
        Proof {
            key,
            confirmed: good().filter_map(|escrow| escrow.confirmed_at).max(),
            read_back: good().filter_map(|escrow| escrow.read_back_at).max(),
            waived: of_key().any(|escrow| escrow.kind == EscrowKind::Waiver),
            copies,
            lost,
        }
    }

    /// Whether a daemon has the right to carry a rotation on, and so is at work on it.
    pub(super) fn is_carried(&self) -> bool {
        self.state().and_then(|state| state.lease).is_some_and(|lease| lease.until > self.now)
    }

    /// Since when a rotation has run: since its key was made.
    pub(super) fn rotating_since(&self) -> Option<Micros> {
        let state = self.state().filter(|state| state.phase != KeyPhase::Idle)?;
        let created = |wanted: &dyn Fn(&MasterKeyRecord) -> bool| {
            self.survey.master_keys.iter().find(|key| wanted(key)).map(|key| key.created_at)
        };
        created(&|key| key.state == MasterKeyState::Staged).or_else(|| created(&|key| key.kid == state.active_kid))
    }

    pub(super) fn times(&self, secrets: &[String]) -> Option<BackupTimes> {
        let state = self.state()?;
        let active = self.survey.master_keys.iter().find(|key| key.kid == state.active_kid)?;
        let proofs = self.proofs();
        // Of Options none is less than any time.
        let worst = |time: fn(&Proof<'_>) -> Option<Micros>| proofs.iter().map(time).min().flatten();
        Some(BackupTimes {
            key_created: active.created_at,
            key_confirmed: worst(|proof| proof.confirmed),
            key_read_back: worst(|proof| proof.read_back),
            copies_missing: proofs.iter().map(|proof| proof.lacking(secrets).count() as u64).sum(),
            copies_unread: proofs.iter().chain(&self.forlorn()).map(|proof| proof.unread().len() as u64).sum(),
            database: self.database_backup.as_ref().map(|backup| backup.taken_at),
            drill: self.drill.as_ref().map(|drill| drill.ran_at),
            drill_failed: self.drill.as_ref().map_or(0, |drill| drill.deks_failed),
            phase: state.phase,
            rotating_for_micros: self.rotating_since().map_or(0, |since| self.now.0.saturating_sub(since.0).max(0)),
        })
    }
}

/// The secret that a version is of; of another copy all that is known of where it is.
fn place(escrow: &EscrowRecord) -> Option<&str> {
    let locator = escrow.locator.as_deref()?;
    Some(locator.rsplit_once("/versions/").map_or(locator, |(secret, _)| secret))
}
