//! Whether the copies in Secret Manager are still there: a copy that somebody destroyed, disabled or deleted stands for nothing, and is
//! better missed now than on the day when it is needed. Seen with the daemon's own right to list; no payload is read.

use std::sync::Arc;
use std::time::Duration;

use crate::backup::{CopyState, Listed};
use crate::model::{Action, CopyLoss, EscrowRecord, Kid, Micros};
use crate::service::{Error, Service};
use crate::store::masters::CopyFinding;

use super::{Class, SECRET_MANAGER, SEEN_LATELY, Trouble, is_version_of, is_within};

/// A secret and its versions, or why they are not known.
pub(super) type Answered = (String, Result<Vec<Listed>, Trouble>);

/// The recorded copies as they are seen now, for what cannot be undone, or is not looked at again.
pub(super) struct SeenNow {
    pub(super) escrows: Vec<EscrowRecord>,
    pub(super) now: Micros,
    /// Why secrets were not seen.
    pub(super) unanswered: Vec<String>,
}

impl SeenNow {
    /// Without the copies in Secret Manager that nobody has seen lately: whoever must decide and cannot look goes by none of them. What lies
    /// elsewhere nobody can look at but its keeper.
    pub(super) fn seen_lately(&self) -> Vec<EscrowRecord> {
        let is_seen = |escrow: &&EscrowRecord| {
            escrow.target != SECRET_MANAGER || is_within(SEEN_LATELY, escrow.last_seen_at(), self.now)
        };
        self.escrows.iter().filter(is_seen).cloned().collect()
    }

    /// Why what was not seen was not.
    pub(super) fn why_unseen(&self) -> String {
        if self.unanswered.is_empty() {
            "its secret is none of `[backup.gcp] secrets`".to_owned()
        } else {
            self.unanswered.join("; ")
        }
    }
}

/// What is known of a key's copies that were read back, once it was looked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::service) enum Standing {
    /// One stands that was seen lately, or lies where nobody can look but its keeper.
    Stands,
    /// There is none, or none any more.
    Lost,
    /// One was not missed, and not seen lately either.
    Unseen { locator: String, seen: Micros, why: String },
}

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_hours(24);
/// How soon again where a copy was missed: somebody may have mended it.
const LOOK_AGAIN: Duration = Duration::from_hours(1);
/// How long a version may not be in a list yet: Google's lists follow later than its answers, as a rule within minutes.
const SETTLING: Duration = Duration::from_hours(1);
/// How often it is asked whether a look is due, and how soon a look that was not answered is tried again.
const ASK: Duration = Duration::from_mins(10);
const TRY_AGAIN: Duration = Duration::from_hours(1);

/// What a list says of a copy. `None` where that is not known: it was made a moment ago.
pub(super) fn judge(escrow: &EscrowRecord, listed: &[Listed], now: Micros) -> Option<CopyFinding> {
    let found = listed.iter().find(|version| escrow.locator.as_deref() == Some(&*version.locator));
    // In a secret that was deleted and made anew numbers begin again: a version that is younger than the copy is another.
    let is_another = |version: &Listed| version.created_at.is_some_and(|made| made > past(last_had(escrow), SETTLING));
    match found.map(|version| version.state) {
        // A state that this release does not know is tried as an enabled one is.
        Some(CopyState::Enabled | CopyState::Unknown) if found.is_some_and(is_another) => {
            Some(CopyFinding::Lost(CopyLoss::Absent))
        }
        Some(CopyState::Enabled | CopyState::Unknown) => Some(CopyFinding::There),
        Some(CopyState::Disabled) => Some(CopyFinding::Lost(CopyLoss::Disabled)),
        Some(CopyState::Destroyed) => Some(CopyFinding::Lost(CopyLoss::Destroyed)),
        None if past(last_had(escrow), SETTLING) > now => None,
        None => Some(CopyFinding::Lost(CopyLoss::Absent)),
    }
}

/// The copy as the list has it: what is to be shown, whether it is written down or not.
pub(super) fn seen_in(mut escrow: EscrowRecord, answered: &[Answered], now: Micros) -> EscrowRecord {
    for (secret, listed) in answered {
        if let Some(listed) = whole(listed)
            && is_version_of(&escrow, secret)
            && let Some(finding) = judge(&escrow, listed, now)
        {
            escrow.looked_at = Some(now);
            escrow.lost = loss(&finding);
        }
    }
    escrow
}

/// All there is in a secret. One that is not there has nothing: whoever deleted it deleted the copies in it.
fn whole(listed: &Result<Vec<Listed>, Trouble>) -> Option<&[Listed]> {
    match listed {
        Ok(listed) => Some(listed),
        Err(trouble) if trouble.class == Class::NotFound => Some(&[]),
        Err(_) => None,
    }
}

const fn loss(finding: &CopyFinding) -> Option<CopyLoss> {
    match finding {
        CopyFinding::Lost(loss) => Some(*loss),
        CopyFinding::There | CopyFinding::Unread(_) => None,
    }
}

/// Why secrets are not known.
fn unanswered(answered: &[Answered]) -> Vec<String> {
    let unknown = answered.iter().filter(|(_, listed)| whole(listed).is_none());
    unknown.filter_map(|(_, listed)| listed.as_ref().err()).map(|trouble| trouble.why.clone()).collect()
}

/// When somebody had it in hand.
fn last_had(escrow: &EscrowRecord) -> Micros {
    escrow.confirmed_at.max(escrow.read_back_at).unwrap_or(escrow.started_at)
}

fn past(at: Micros, by: Duration) -> Micros {
    Micros(at.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
}

/// When the copy is to be looked at.
fn due(escrow: &EscrowRecord) -> Micros {
    match escrow.looked_at {
        None => past(last_had(escrow), SETTLING),
        Some(at) if escrow.lost.is_some() => past(at, LOOK_AGAIN),
        Some(at) => past(at, LOOK_EVERY),
    }
}

/// Looks go out apart where many daemons were started at once. Those of one database share what each finds.
fn apart(seed: &[u8]) -> Duration {
    let spread = seed.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    Duration::from_secs(spread % ASK.as_secs())
}

impl Service {
    /// Looks once a day, and when something was heard of copies, until the daemon stops.
    pub fn keep_looking_for_copies(self: &Arc<Self>) {
        self.workers.spawn(Arc::clone(self).look_on());
    }

    async fn look_on(self: Arc<Self>) {
        let apart = apart(self.node.holder().node.to_string().as_bytes());
        let mut is_asked_for = false;
        loop {
            let wait = match self.look_for_copies(is_asked_for).await {
                Ok(()) => ASK,
                Err(why) => {
                    tracing::warn!("whether the copies of the master keys are still there is not known: {why}");
                    TRY_AGAIN
                }
            };
            is_asked_for = tokio::select! {
                () = tokio::time::sleep(wait.saturating_add(apart)) => false,
                () = self.heard_of_copies.notified() => true,
                () = self.workers.stopping() => return,
            };
        }
    }

    async fn look_for_copies(&self, is_asked_for: bool) -> Result<(), String> {
        let escrows = self.store.escrows().await.map_err(|error| error.to_string())?;
        let now = self.store.now().await.map_err(|error| error.to_string())?;
        let in_secrets =
            |escrow: &&EscrowRecord| self.destinations.secrets().iter().any(|secret| is_version_of(escrow, secret));
        let mut copies = escrows.iter().filter(in_secrets).peekable();
        if copies.peek().is_none() || !(is_asked_for || copies.any(|escrow| due(escrow) <= now)) {
            return Ok(());
        }
        let answered = self.listed().await.map_err(|error| error.to_string())?;
        self.note_seen(&escrows, &answered).await.map_err(|error| error.to_string())?;
        let why = unanswered(&answered);
        if why.is_empty() { Ok(()) } else { Err(why.join("; ")) }
    }

    /// Looks at the configured secrets at once, where a copy is recorded in them, and writes down what is seen.
    ///
    /// # Errors
    /// [`Error::Unavailable`]. A secret that does not answer is in what was seen.
    pub(super) async fn copies_now(&self) -> Result<SeenNow, Error> {
        let escrows = self.store.escrows().await?;
        let is_there =
            escrows.iter().any(|escrow| self.destinations.secrets().iter().any(|secret| is_version_of(escrow, secret)));
        let answered = if is_there { self.listed().await? } else { Vec::new() };
        self.note_seen(&escrows, &answered).await?;
        let now = self.store.now().await?;
        let escrows = escrows.into_iter().map(|escrow| seen_in(escrow, &answered, now)).collect();
        Ok(SeenNow { escrows, now, unanswered: unanswered(&answered) })
    }

    /// The recorded copies, as they are seen now.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(in crate::service) async fn copies_as_seen(&self) -> Result<Vec<EscrowRecord>, Error> {
        self.copies_now().await.map(|seen| seen.escrows)
    }

    /// Whether a copy of this key that was read back is there, now.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub(in crate::service) async fn proven_copies(&self, kid: Kid) -> Result<Standing, Error> {
        let seen = self.copies_now().await?;
        let is_proven =
            |escrow: &&EscrowRecord| escrow.kid == kid && escrow.read_back_at.is_some() && escrow.can_be_relied_on();
        if seen.seen_lately().iter().any(|escrow| is_proven(&escrow)) {
            return Ok(Standing::Stands);
        }
        let unseen = seen.escrows.iter().filter(is_proven).max_by_key(|escrow| escrow.last_seen_at());
        Ok(unseen.map_or(Standing::Lost, |escrow| Standing::Unseen {
            locator: escrow.locator.clone().unwrap_or_default(),
            seen: last_had(escrow).max(escrow.looked_at.unwrap_or(Micros(0))),
            why: seen.why_unseen(),
        }))
    }

    /// Writes down what lists say of copies that were recorded before they were asked for. A database that may not be written is left
    /// alone: the next look finds the same.
    pub(super) async fn note_seen(&self, escrows: &[EscrowRecord], answered: &[Answered]) -> Result<(), Error> {
        if self.node.may_write().await.is_err() {
            return Ok(());
        }
        let now = self.store.now().await?;
        for (secret, listed) in answered {
            let Some(listed) = whole(listed) else { continue };
            for escrow in escrows.iter().filter(|escrow| is_version_of(escrow, secret)) {
                let Some(finding) = judge(escrow, listed, now) else { continue };
                if loss(&finding) == escrow.lost {
                    // That it is still as it was, once a day, is no news for whoever reads records.
                    self.store.note_copy(&escrow.id, &finding).await?;
                } else {
                    let change = self.own_change(Action::ConfirmCopy, None).await?;
                    change.store().note_copy(&escrow.id, &finding).await?;
                }
                tell(escrow.kid, escrow.locator.as_deref().unwrap_or(secret), escrow.lost, loss(&finding));
            }
        }
        Ok(())
    }
}

/// Once, when it changes.
fn tell(kid: Kid, locator: &str, before: Option<CopyLoss>, now: Option<CopyLoss>) {
    match now {
        _ if before == now => {}
        Some(loss) => tracing::warn!("the copy of master key {kid} at {locator} is {loss} there, and counts no more"),
        None => tracing::info!("the copy of master key {kid} at {locator} is there again"),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::super::is_raw_escrowed;
    use super::*;
    use crate::model::{EscrowKind, Unread};

    const SECRET: &str = "projects/p/secrets/s";
    const HOUR: i64 = 3_600_000_000;

    fn copy(number: u64, confirmed_at: i64) -> EscrowRecord {
        EscrowRecord {
            id: "a".to_owned(),
            kid: Kid::new([1; 16]),
            target: "secret-manager".to_owned(),
            locator: Some(format!("{SECRET}/versions/{number}")),
            content_sha256: Some([7; 32]),
            kms_versions: Vec::new(),
            kind: EscrowKind::Copy,
            started_at: Micros(confirmed_at),
            confirmed_at: Some(Micros(confirmed_at)),
            read_back_at: None,
            looked_at: None,
            lost: None,
            unread: None,
        }
    }

    fn listed(number: u64, state: CopyState) -> Listed {
        let locator = format!("{SECRET}/versions/{number}");
        Listed { number: NonZeroU64::new(number).unwrap(), locator, state, created_at: None }
    }

    #[test]
    fn what_opens_a_copy_is_needed_until_it_is_destroyed_and_a_bad_copy_is_not_relied_on() {
        let lost = |lost| EscrowRecord { lost, ..copy(1, 0) };
        for (copy, needed, stands) in [
            (lost(None), true, true),
            (lost(Some(CopyLoss::Disabled)), true, false),
            (lost(Some(CopyLoss::Absent)), true, false),
            (lost(Some(CopyLoss::Destroyed)), false, false),
        ] {
            assert_eq!((copy.may_be_needed(), copy.can_be_relied_on()), (needed, stands), "{:?}", copy.lost);
            let raw = Some([7; 32]);
            assert_eq!(is_raw_escrowed(&[copy], Kid::new([1; 16]), raw, Micros(HOUR)), stands);
        }
        let bad = EscrowRecord { unread: Some(Unread { at: Micros(1), why: String::new() }), ..copy(1, 0) };
        assert!(bad.stands() && !bad.can_be_relied_on());
        assert!(!is_raw_escrowed(&[bad], Kid::new([1; 16]), Some([7; 32]), Micros(HOUR)));
    }

    #[test]
    fn a_version_that_is_younger_than_the_copy_is_another_ones() {
        let now = Micros(10 * HOUR);
        let made = |at: i64| [Listed { created_at: Some(Micros(at)), ..listed(1, CopyState::Enabled) }];
        assert_eq!(judge(&copy(1, 2 * HOUR), &made(2 * HOUR), now), Some(CopyFinding::There));
        assert_eq!(judge(&copy(1, 2 * HOUR), &made(9 * HOUR), now), Some(CopyFinding::Lost(CopyLoss::Absent)));
    }

    #[test]
    fn a_copy_is_lost_where_a_whole_list_lacks_it_or_does_not_hand_it_out() {
        let now = Micros(10 * HOUR);
        for (state, finding) in [
            (CopyState::Enabled, CopyFinding::There),
            (CopyState::Unknown, CopyFinding::There),
            (CopyState::Disabled, CopyFinding::Lost(CopyLoss::Disabled)),
            (CopyState::Destroyed, CopyFinding::Lost(CopyLoss::Destroyed)),
        ] {
            assert_eq!(judge(&copy(3, 0), &[listed(4, CopyState::Enabled), listed(3, state)], now), Some(finding));
        }
        let others = [listed(4, CopyState::Enabled)];
        assert_eq!(judge(&copy(3, 0), &others, now), Some(CopyFinding::Lost(CopyLoss::Absent)));
        assert_eq!(judge(&copy(3, 10 * HOUR - 5), &others, now), None, "the list may lag behind");
        let read = EscrowRecord { read_back_at: Some(Micros(10 * HOUR - 5)), ..copy(3, 0) };
        assert_eq!(judge(&read, &others, now), None, "somebody had it in hand a moment ago");
    }

    #[test]
    fn what_was_not_answered_changes_nothing_and_a_secret_that_is_gone_has_no_copies() {
        let now = Micros(10 * HOUR);
        let answers = |class| [(SECRET.to_owned(), Err(Trouble { class, why: String::new() }))];
        for class in [Class::Denied, Class::Unavailable, Class::Failed] {
            assert_eq!(seen_in(copy(3, 0), &answers(class), now), copy(3, 0), "{class:?}");
        }
        assert_eq!(seen_in(copy(3, 0), &answers(Class::NotFound), now).lost, Some(CopyLoss::Absent));
        let another = [(format!("{SECRET}-old"), Ok(Vec::new()))];
        assert_eq!(seen_in(copy(3, 0), &another, now), copy(3, 0));
    }

    #[test]
    fn a_look_is_due_once_a_day_and_sooner_where_a_copy_was_missed_or_never_looked_at() {
        assert_eq!(due(&copy(3, 5)), Micros(5 + HOUR));
        let looked = EscrowRecord { looked_at: Some(Micros(7)), ..copy(3, 5) };
        assert_eq!(due(&looked), Micros(7 + 24 * HOUR));
        assert_eq!(due(&EscrowRecord { lost: Some(CopyLoss::Absent), ..looked }), Micros(7 + HOUR));
    }
}
