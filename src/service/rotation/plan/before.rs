//! What comes next while the old key is the one in use.

use super::super::{Asked, Escrow};
use super::{Blocked, Next, Snapshot, Step, Stop, Tried, damaged, in_state, is_read_back, record, under_lease};
use crate::model::{EscrowKind, EscrowRecord, KeyMode, Kid, MasterKeyState, NodeRecord};
use crate::store::masters::GivenUp;

pub(super) fn idle(seen: &Snapshot<'_>) -> Next {
    if let Some(Tried::Abort(kid)) = seen.run.tried
        && seen.keys.iter().any(|key| key.kid == kid && is_given_up(key.state))
    {
        return Next::Stop(Stop::Aborted(Some(kid)));
    }
    if let Some(staged) = seen.run.staged {
        return if staged == seen.state.active_kid {
            Next::Stop(Stop::Rotated)
        } else {
            Next::Blocked(Blocked::GivenUp)
        };
    }
    match seen.asked {
        Asked::DryRun if seen.run.preflighted => Next::Stop(Stop::Looked),
        Asked::DryRun => Next::Do(Step::Preflight, "a dry run opens every DEK and changes nothing"),
        Asked::Abort if seen.run.starts => Next::Stop(Stop::Aborted(None)),
        Asked::Abort => Next::Blocked(Blocked::NothingStaged),
        Asked::Resume { .. } if seen.run.carried => Next::Stop(Stop::Rotated),
        Asked::Resume { .. } | Asked::DestroyOld { .. } => Next::Stop(Stop::Nothing),
        Asked::Start { mode, .. } => begin(seen, *mode),
    }
}

fn begin(seen: &Snapshot<'_>, mode: KeyMode) -> Next {
    let lost: Vec<NodeRecord> =
        seen.nodes.iter().filter(|node| !node.live && !seen.without.contains(&node.node)).cloned().collect();
    if !lost.is_empty() {
        return Next::Blocked(Blocked::LostNodes { nodes: lost });
    }
    under_lease(seen, || match damaged(seen) {
        Some(blocked) => Next::Blocked(blocked),
        None if !seen.run.preflighted => Next::Do(Step::Preflight, "no key is made before every DEK was seen to open"),
        None => Next::Do(Step::Stage(mode), "every DEK opens, and every node is live or named"),
    })
}

pub(super) fn staged(seen: &Snapshot<'_>) -> Next {
    let Some(kid) = in_state(seen, MasterKeyState::Staged).next() else {
        return Next::Blocked(Blocked::Corrupt("the phase is staged, and no key is".to_owned()));
    };
    match seen.asked {
        Asked::DryRun => return Next::Blocked(Blocked::StagedAlready(kid)),
        Asked::Start { .. } if seen.run.staged != Some(kid) => return Next::Blocked(Blocked::StagedAlready(kid)),
        Asked::Abort => return under_lease(seen, || give_up(seen, kid)),
        Asked::Start { .. } | Asked::Resume { .. } | Asked::DestroyOld { .. } => {}
    }
    under_lease(seen, || {
        if !seen.here.durable.contains(&kid) {
            return Next::Blocked(Blocked::NoStagedFile(kid));
        }
        // A copy that was fed back is worth recording beside a waiver too.
        match seen.asked.proof().filter(|_| !is_read_back(seen, kid)) {
            Some(proof) => record(proof, kid),
            None if is_escrowed(seen, kid) => acknowledge(seen, kid),
            None => escrow(seen, kid),
        }
    })
}

/// What a node sees as staged may be a restored database's, and a later state that was lost may have had the key in use; then a backup of
/// that state needs it. A node whose record is older than the key would have noticed. One with a younger record does not know, and
/// nothing that it does may unlink the key.
fn give_up(seen: &Snapshot<'_>, kid: Kid) -> Next {
    let staged_at = seen.keys.iter().find(|key| key.kid == kid).map(|key| key.created_at);
    let has_seen_it_all = match (seen.here.remembers_since, staged_at) {
        (Some(since), Some(staged_at)) => since <= staged_at,
        _ => false,
    };
    if has_seen_it_all {
        Next::Do(Step::Abort(kid, GivenUp::Aborted), "it was asked for, before the flip")
    } else {
        let why = "it was asked for; whether the key was never in use is not known to this node, so the key is kept";
        Next::Do(Step::Abort(kid, GivenUp::Retired), why)
    }
}

const fn is_given_up(state: MasterKeyState) -> bool {
    matches!(state, MasterKeyState::Aborted | MasterKeyState::Retired)
}

/// A copy off the host that is confirmed, and neither lost nor found bad since, or the waiver of one.
fn is_escrowed(seen: &Snapshot<'_>, kid: Kid) -> bool {
    let stands = |escrow: &EscrowRecord| escrow.kind == EscrowKind::Waiver || escrow.can_be_relied_on();
    seen.escrows.iter().any(|escrow| escrow.kid == kid && stands(escrow))
}

fn escrow(seen: &Snapshot<'_>, kid: Kid) -> Next {
    match seen.asked.escrow() {
        Escrow::Push => match &seen.run.unpushed {
            Some(trouble) => Next::Blocked(Blocked::NotPushed { kid, trouble: trouble.clone() }),
            None => Next::Do(Step::Push(kid), "no copy of the new key off the host is confirmed yet"),
        },
        Escrow::Waive => Next::Do(Step::Waive(kid), "the operator said that there is to be no copy off the host"),
        Escrow::Prove => Next::Stop(Stop::NeedsCopy(kid)),
    }
}

fn acknowledge(seen: &Snapshot<'_>, kid: Kid) -> Next {
    let lacking = || seen.nodes.iter().filter(|node| !node.durable_kids.contains(&kid));
    let lost: Vec<NodeRecord> =
        lacking().filter(|node| !node.live && !seen.without.contains(&node.node)).cloned().collect();
    if !lost.is_empty() {
        return Next::Blocked(Blocked::LostNodes { nodes: lost });
    }
    let waiting: Vec<NodeRecord> = lacking().filter(|node| node.live).cloned().collect();
    if !waiting.is_empty() {
        return Next::WaitForNodes { kid, nodes: waiting };
    }
    let flip = Step::Flip { to: kid, without: seen.without.to_vec() };
    Next::Do(flip, "the new key is proven off the host, or that was waived, and every node holds it")
}
