//! What comes next once the new key is in use, and when the old one is destroyed.

use super::super::{Asked, Escrow, Proof};
use super::{
    Blocked, Next, Snapshot, Stale, Step, Stop, Tried, Waiver, damaged, in_state, is_read_back, record, under_lease,
};
use crate::model::{EscrowRecord, Kid, MasterKeyState, Micros};

pub(super) fn past_the_flip(seen: &Snapshot<'_>, carry: impl FnOnce(&Snapshot<'_>) -> Next) -> Next {
    match seen.asked {
        Asked::Abort => return Next::Blocked(Blocked::PastTheFlip(seen.state.phase)),
        Asked::DryRun => return Next::Blocked(Blocked::UnderWay(seen.state.phase)),
        Asked::Start { .. } if seen.run.staged != Some(seen.state.active_kid) => {
            return Next::Blocked(Blocked::UnderWay(seen.state.phase));
        }
        Asked::Start { .. } | Asked::Resume { .. } | Asked::DestroyOld { .. } => {}
    }
    under_lease(seen, || match damaged(seen) {
        Some(blocked) => Next::Blocked(blocked),
        None => carry(seen),
    })
}

pub(super) fn rewrapping(seen: &Snapshot<'_>) -> Next {
    let Some(old) = in_state(seen, MasterKeyState::DecryptOnly).next() else {
        return Next::Blocked(Blocked::Corrupt("the phase is rewrapping, and no key is decrypt-only".to_owned()));
    };
    let left = seen.under_old.in_use;
    if left == 0 {
        return match &seen.run.verification {
            Some(why) => Next::Blocked(Blocked::Verification(why.clone())),
            None => Next::Do(Step::Verify, "no DEK in use is left under the old key"),
        };
    }
    if !seen.here.loaded.contains(&old) {
        return Next::Blocked(Blocked::NotLoaded(old));
    }
    if seen.run.idle_passes >= 3 {
        return Next::Blocked(Blocked::NoProgress(left));
    }
    Next::Do(Step::Rewrap { old, left }, "DEKs in use are under the old key")
}

pub(super) fn verified(seen: &Snapshot<'_>) -> Next {
    let Some(old) = in_state(seen, MasterKeyState::DecryptOnly).next() else {
        return Next::Blocked(Blocked::Corrupt("the phase is verified, and no key is decrypt-only".to_owned()));
    };
    if seen.under_old.in_use > 0 {
        return Next::Do(Step::Reopen, "a DEK in use came back under the old key");
    }
    if seen.here.main != Some(seen.state.active_kid) {
        return match &seen.run.promotion {
            Some(why) => Next::Blocked(Blocked::Promotion(why.clone())),
            None => {
                Next::Do(Step::Promote(seen.state.active_kid), "the key file holds another key than the active one")
            }
        };
    }
    Next::Do(Step::Retire(old), "every DEK in use was opened with the new key as it is on disk")
}

pub(super) fn reencrypting(seen: &Snapshot<'_>) -> Next {
    match seen.stale {
        Stale::Some => Next::Do(Step::Reencrypt, "DEKs from before the flip may be known to whoever knew the old key"),
        Stale::None => Next::Do(Step::Finish, "no DEK in use is from before the flip"),
    }
}

pub(super) fn destroy_old(seen: &Snapshot<'_>, kid: Kid, proof: Option<&Proof>, escrow: Escrow) -> Next {
    let Some(key) = seen.keys.iter().find(|key| key.kid == kid) else {
        return Next::Blocked(Blocked::UnknownKey(kid));
    };
    match (key.state, key.retired_at) {
        (MasterKeyState::Destroyed, _) if seen.run.tried == Some(Tried::Destroy(kid)) => {
            return Next::Stop(Stop::Destroyed(kid));
        }
        (MasterKeyState::Retired, Some(retired_at)) => {
            let retain = i64::try_from(seen.retain_old.as_micros()).unwrap_or(i64::MAX);
            let at = Micros(retired_at.0.saturating_add(retain));
            if seen.now < at {
                return Next::Blocked(Blocked::TooEarly { kid, at });
            }
        }
        (state, _) => return Next::Blocked(Blocked::NotRetired { kid, state }),
    }
    if seen.under_old.quarantined > 0 {
        return Next::Blocked(Blocked::Quarantined { kid, deks: seen.under_old.quarantined });
    }
    match (proof, escrow) {
        // It counts where another one that was read back cannot be looked at.
        (Some(proof), _) if !is_recorded(seen, proof) => record(proof, kid),
        _ if is_read_back(seen, kid) => {
            Next::Do(Step::Destroy { kid, waiver: Waiver::None }, "a copy of it off the host was read back")
        }
        (Some(proof), _) => record(proof, kid),
        (None, Escrow::Waive) => {
            let step = Step::Destroy { kid, waiver: Waiver::ByOperator };
            Next::Do(step, "the operator said that there is to be no copy off the host")
        }
        // A push proves nothing of a key that was active for long: what counts is that its copy can be read.
        (None, Escrow::Push | Escrow::Prove) => Next::Blocked(Blocked::NotReadBack(kid)),
    }
}

fn is_recorded(seen: &Snapshot<'_>, proof: &Proof) -> bool {
    let is_it = |escrow: &EscrowRecord| escrow.is_at(&proof.locator) && escrow.content_sha256 == Some(proof.sha256);
    seen.escrows.iter().any(|escrow| escrow.kid == proof.kid && escrow.is_proven() && is_it(escrow))
}
