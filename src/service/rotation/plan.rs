//! What a rotation does next: pure. What was seen of database, nodes and this node's disk goes in; the next step with its reason comes
//! out, or what is waited for, or that all is done, or what stops it and the one command that mends it.
//!
//! It is asked again before each step with what is seen then, so it needs no memory of its own: a crash, another rotator or an operator
//! between two steps changes what is seen. The store's transactions compare all that matters once more (`store::Fence`); a plan that was
//! made on an old look fails there, and is made anew.

mod after;
mod before;
mod blocked;

use crate::model::{
    EscrowRecord, KeyMode, KeyPhase, KeyState, Kid, MasterKeyRecord, MasterKeyState, Micros, NodeId, NodeRecord,
};
use crate::store::masters::{GivenUp, Holder, UnderKey};

use super::{Asked, Damaged, Proof, is_past_the_flip};
use crate::service::backup::Trouble;

use after::{destroy_old, past_the_flip, reencrypting, rewrapping, verified};
use before::{idle, staged};

pub(super) use blocked::Blocked;

/// All that a plan is made from.
#[derive(Debug, Clone)]
pub(super) struct Snapshot<'a> {
    pub asked: &'a Asked,
    pub me: Holder,
    pub state: &'a KeyState,
    pub keys: &'a [MasterKeyRecord],
    pub escrows: &'a [EscrowRecord],
    pub nodes: &'a [NodeRecord],
    /// Nodes that the operator named as away.
    pub without: &'a [NodeId],
    /// By the database's clock.
    pub now: Micros,
    /// For how long a retired key is kept.
    pub retain_old: std::time::Duration,
    pub here: &'a Here,
    /// DEKs under the decrypt-only key, or under the one that is to be destroyed.
    pub under_old: UnderKey,
    /// Whether any tenant still has a DEK in use that was made before the active master key.
    pub stale: Stale,
    pub run: &'a Run,
}

/// This node, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Here {
    /// Fsynced in its key files.
    pub durable: Vec<Kid>,
    /// What lies at the key file's own path.
    pub main: Option<Kid>,
    /// In memory.
    pub loaded: Vec<Kid>,
    /// Why this node may change nothing, where the database went backwards.
    pub refused: Option<String>,
    /// Since when it would have noticed that, by the database's clock.
    pub remembers_since: Option<Micros>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stale {
    None,
    Some,
}

/// What this run has seen and done so far. Lost with its process, and not missed: each entry is made again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Run {
    /// Whether every DEK was opened before anything was staged.
    pub preflighted: bool,
    /// The key that this run staged.
    pub staged: Option<Kid>,
    /// What did not open, in whatever step.
    pub damaged: Vec<Damaged>,
    /// How many more there are than `damaged` names.
    pub more_damaged: u64,
    /// Passes over all DEKs that changed nothing although some were left.
    pub idle_passes: u32,
    /// Why no secret took the new key.
    pub unpushed: Option<Trouble>,
    /// Why the promotion failed.
    pub promotion: Option<String>,
    /// Why the verification could not be done at all.
    pub verification: Option<String>,
    /// Whether a step of this run changed anything.
    pub carried: bool,
    /// Whether it was begun to stage a key.
    pub starts: bool,
    /// What it set out to do last. That it is done is read in the database alone: of a commit the answer may be lost.
    pub tried: Option<Tried>,
}

impl Run {
    pub(super) fn of(asked: &Asked) -> Self {
        Self { starts: matches!(asked, Asked::Start { .. }), ..Self::default() }
    }
}

/// A change that leaves nothing further to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tried {
    Abort(Kid),
    Destroy(Kid),
}

/// A step, small enough that a crash inside it leaves what the next plan can go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    TakeLease,
    /// Opens every DEK, and changes nothing.
    Preflight,
    /// The new key's file, then its row.
    Stage(KeyMode),
    /// Copies the new key into every configured secret; what is confirmed is recorded.
    Push(Kid),
    /// Records that the operator wants no copy off the host.
    Waive(Kid),
    /// Records a copy that the operator's command read.
    Record(Proof),
    Flip {
        to: Kid,
        without: Vec<NodeId>,
    },
    Rewrap {
        old: Kid,
        left: u64,
    },
    /// Another process opens every DEK with the keys as they are on disk; then the phase.
    Verify,
    /// Back to rewrapping.
    Reopen,
    Promote(Kid),
    Retire(Kid),
    /// Every tenant with a DEK from before.
    Reencrypt,
    Finish,
    Abort(Kid, GivenUp),
    /// Marks a retired key destroyed; nodes unlink it.
    Destroy {
        kid: Kid,
        waiver: Waiver,
    },
}

/// What stands for a copy that was read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiver {
    None,
    ByOperator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Do(Step, &'static str),
    /// Live nodes that do not hold the new key yet: look again soon.
    WaitForNodes {
        kid: Kid,
        nodes: Vec<NodeRecord>,
    },
    Stop(Stop),
    Blocked(Blocked),
}

/// A good end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// What was asked for is all done: the dry run, too.
    Looked,
    /// The key is staged and waits for the proof of a copy.
    NeedsCopy(Kid),
    Rotated,
    /// The staged key was given up, or a start before it had staged one.
    Aborted(Option<Kid>),
    Destroyed(Kid),
    /// There was nothing to do.
    Nothing,
}

/// Who may change the rotation's state.
enum LeaseIs {
    Mine,
    /// Nobody's, lapsed, or that of an earlier start of this node, which is gone for certain.
    Free,
    Anothers {
        node: NodeId,
        until: Micros,
    },
}

/// The next step, or why there is none.
pub(super) fn next(seen: &Snapshot<'_>) -> Next {
    if let Some(blocked) = unfit(seen) {
        return Next::Blocked(blocked);
    }
    if let Asked::DestroyOld { kid, proof, escrow } = seen.asked {
        return destroy_old(seen, *kid, proof.as_ref(), *escrow);
    }
    match seen.state.phase {
        KeyPhase::Idle => idle(seen),
        KeyPhase::Staged => staged(seen),
        KeyPhase::Rewrapping => past_the_flip(seen, rewrapping),
        KeyPhase::Verified => past_the_flip(seen, verified),
        KeyPhase::Reencrypting => past_the_flip(seen, reencrypting),
    }
}

/// What stops anything, whatever was asked.
fn unfit(seen: &Snapshot<'_>) -> Option<Blocked> {
    if let Some(why) = &seen.here.refused {
        return Some(Blocked::Regressed(why.clone()));
    }
    let active: Vec<Kid> = in_state(seen, MasterKeyState::Active).collect();
    if active != [seen.state.active_kid] {
        return Some(Blocked::Corrupt(format!(
            "the active key is {} by `key_state`, and `master_keys` has {} that are active",
            seen.state.active_kid,
            active.len()
        )));
    }
    if !seen.here.loaded.contains(&seen.state.active_kid) {
        return Some(Blocked::NotLoaded(seen.state.active_kid));
    }
    // A typing error is told before anything is done. From then on whoever was named may be forgotten, which is no reason to stop, and
    // past the flip nobody is waited for.
    if seen.run.carried || is_past_the_flip(seen.state.phase) {
        return None;
    }
    seen.without
        .iter()
        .find(|named| !seen.nodes.iter().any(|node| node.node == **named))
        .map(|named| Blocked::UnknownNode(*named))
}

fn is_read_back(seen: &Snapshot<'_>, kid: Kid) -> bool {
    seen.escrows.iter().any(|escrow| escrow.kid == kid && escrow.is_proven())
}

fn record(proof: &Proof, wanted: Kid) -> Next {
    if proof.kid == wanted {
        Next::Do(Step::Record(proof.clone()), "a copy off the host was read, and it is this key")
    } else {
        Next::Blocked(Blocked::WrongCopy { found: proof.kid, wanted })
    }
}

fn under_lease(seen: &Snapshot<'_>, then: impl FnOnce() -> Next) -> Next {
    match lease(seen) {
        LeaseIs::Mine => then(),
        LeaseIs::Free => Next::Do(Step::TakeLease, "nobody carries the rotation"),
        LeaseIs::Anothers { node, until } => Next::Blocked(Blocked::Busy { node, until }),
    }
}

fn lease(seen: &Snapshot<'_>) -> LeaseIs {
    match seen.state.lease {
        Some(lease) if lease.node == seen.me.node && lease.boot == seen.me.boot => LeaseIs::Mine,
        Some(lease) if lease.node != seen.me.node && lease.until > seen.now => {
            LeaseIs::Anothers { node: lease.node, until: lease.until }
        }
        Some(_) | None => LeaseIs::Free,
    }
}

fn damaged(seen: &Snapshot<'_>) -> Option<Blocked> {
    let run = seen.run;
    (!run.damaged.is_empty()).then(|| Blocked::Damage { deks: run.damaged.clone(), more: run.more_damaged })
}

fn in_state(seen: &Snapshot<'_>, state: MasterKeyState) -> impl Iterator<Item = Kid> {
    seen.keys.iter().filter(move |key| key.state == state).map(|key| key.kid)
}

#[cfg(test)]
mod tests;
