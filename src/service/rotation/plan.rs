//! What a rotation does next: pure. What was seen of database, nodes and this node's disk goes in; the next step with its reason comes
//! out, or what is waited for, or that all is done, or what stops it and the one command that mends it.
//!
//! It is asked again before each step with what is seen then, so it needs no memory of its own: a crash, another rotator or an operator
//! between two steps changes what is seen. The store's transactions compare all that matters once more (`store::Fence`); a plan that was
//! made on an old look fails there, and is made anew.

use crate::model::{
    EscrowKind, EscrowRecord, KeyMode, KeyPhase, KeyState, Kid, MasterKeyRecord, MasterKeyState, Micros, NodeId,
    NodeRecord,
};
use crate::store::masters::{Holder, UnderKey};

use super::{Asked, Damaged, Escrow, Proof};

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
    /// Why the promotion failed.
    pub promotion: Option<String>,
    /// Why the verification could not be done at all.
    pub verification: Option<String>,
    /// Whether a step of this run changed anything.
    pub carried: bool,
    /// What this run was asked for and has done.
    pub ended: Option<Ended>,
}

/// A change that leaves nothing further to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The staged key was given up.
    Aborted,
    /// The old key was destroyed.
    Destroyed,
}

/// A step, small enough that a crash inside it leaves what the next plan can go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    TakeLease,
    /// Opens every DEK, and changes nothing.
    Preflight,
    /// The new key's file, then its row.
    Stage(KeyMode),
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
    Abort(Kid),
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
    Aborted,
    Destroyed(Kid),
    /// There was nothing to do.
    Nothing,
}

/// Why it does not go on. The message names the one command that mends it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Blocked {
    #[error("{0}")]
    Regressed(String),
    #[error(
        "the database's own keys do not fit together: {0}. Restore the tables `master_keys` and `key_state` from a backup"
    )]
    Corrupt(String),
    #[error(
        "node {node} carries a rotation until {until}; watch it there with `containarium admin rotate-master --resume`"
    )]
    Busy { node: NodeId, until: Micros },
    #[error(
        "a rotation to {0} is staged already: go on with `containarium admin rotate-master --resume`, or give it up with `containarium \
         admin rotate-master --abort`"
    )]
    StagedAlready(Kid),
    #[error("a rotation is under way (phase {0}): it goes on with `containarium admin rotate-master --resume`")]
    UnderWay(KeyPhase),
    #[error("the staged key was given up meanwhile; start again with `containarium admin rotate-master`")]
    GivenUp,
    #[error(
        "phase {0}: after the flip the way is forward. Let it end with `containarium admin rotate-master --resume`; if the new key is \
         unwanted, then rotate again with `containarium admin rotate-master`"
    )]
    PastTheFlip(KeyPhase),
    #[error("nothing is staged, so there is nothing to give up; `containarium admin status` shows the phase")]
    NothingStaged,
    #[error(
        "master key {0} is not loaded here: feed its file to this node with `containarium admin install-key < FILE`, then go on with \
         `containarium admin rotate-master --resume`"
    )]
    NotLoaded(Kid),
    #[error(
        "the file of the staged key {0} is not on this node: go on where it lies, or feed it to this node with `containarium admin \
         install-key < FILE`, or give it up with `containarium admin rotate-master --abort`"
    )]
    NoStagedFile(Kid),
    #[error(
        "the copy holds master key {found}, and {wanted} is wanted: feed that one with the same command, `containarium admin rotate-master … \
         --prove-from FILE`"
    )]
    WrongCopy { found: Kid, wanted: Kid },
    #[error("there is no node {0}; `containarium admin nodes` lists them")]
    UnknownNode(NodeId),
    #[error(
        "waiting for nodes: {}. They are not live and do not hold the new key. Start them; or, for one that is only away, add {}; one \
         that is gone for good is taken off with `containarium admin nodes forget ID`",
        ids(.nodes), without(.nodes)
    )]
    LostNodes { nodes: Vec<NodeRecord> },
    #[error("{}", damage(.deks, *.more))]
    Damage { deks: Vec<Damaged>, more: u64 },
    #[error(
        "{0} DEKs stay under the old key although nothing is wrong with them; the daemon's log says more. Go on with `containarium admin \
         rotate-master --resume`"
    )]
    NoProgress(u64),
    #[error("{0}. Mend that, then go on with `containarium admin rotate-master --resume`")]
    Promotion(String),
    #[error(
        "the verification could not be done: {0}. Mend that, then go on with `containarium admin rotate-master --resume`"
    )]
    Verification(String),
    #[error("master key {0} is unknown; `containarium admin status` lists the keys")]
    UnknownKey(Kid),
    #[error(
        "master key {kid} is {state}, and only a retired one is destroyed; `containarium admin status` lists the keys"
    )]
    NotRetired { kid: Kid, state: MasterKeyState },
    #[error(
        "master key {kid} opens the database backups of its time: not before {at} (`[keys] retain_old`). Then: `containarium admin rotate-master --destroy-old`"
    )]
    TooEarly { kid: Kid, at: Micros },
    #[error(
        "no copy of master key {0} off the host was read back: feed one with `containarium admin rotate-master --destroy-old --prove-from \
         FILE`, or say that there is to be none with `--escrow waive-off-host-copy`"
    )]
    NotReadBack(Kid),
    #[error(
        "{deks} quarantined DEKs are under master key {kid} and would be lost: release them with `containarium admin quarantine TENANT \
         DEK_VERSION --release`, or shred their tenants"
    )]
    Quarantined { kid: Kid, deks: u64 },
}

fn ids(nodes: &[NodeRecord]) -> String {
    nodes.iter().map(|node| node.node.to_string()).collect::<Vec<_>>().join(", ")
}

fn without(nodes: &[NodeRecord]) -> String {
    nodes.iter().map(|node| format!("--without-node {}", node.node)).collect::<Vec<_>>().join(" ")
}

fn damage(deks: &[Damaged], more: u64) -> String {
    let mut text: Vec<String> = deks.iter().map(ToString::to_string).collect();
    if more > 0 {
        text.push(format!("and {more} more"));
    }
    if deks.iter().any(|damaged| damaged.version.is_none()) {
        return format!(
            "{}. Set such a secret anew or destroy that version, or set a DEK aside with `containarium admin quarantine TENANT \
             DEK_VERSION`; then go on with `containarium admin rotate-master --resume`",
            text.join("; ")
        );
    }
    let first = deks.first().map_or_else(
        || "TENANT DEK_VERSION".to_owned(),
        |first| {
            format!("{} {}", first.tenant, first.version.map_or_else(|| "DEK_VERSION".to_owned(), |v| v.to_string()))
        },
    );
    format!(
        "{}. Restore that row of the table `deks` from a backup, or set it aside with `containarium admin quarantine {first}`; then go on \
         with `containarium admin rotate-master --resume`",
        text.join("; ")
    )
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
    seen.without
        .iter()
        .find(|named| !seen.nodes.iter().any(|node| node.node == **named))
        .map(|named| Blocked::UnknownNode(*named))
}

fn idle(seen: &Snapshot<'_>) -> Next {
    if seen.run.ended == Some(Ended::Aborted) {
        return Next::Stop(Stop::Aborted);
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

fn staged(seen: &Snapshot<'_>) -> Next {
    let Some(kid) = in_state(seen, MasterKeyState::Staged).next() else {
        return Next::Blocked(Blocked::Corrupt("the phase is staged, and no key is".to_owned()));
    };
    match seen.asked {
        Asked::DryRun => return Next::Blocked(Blocked::StagedAlready(kid)),
        Asked::Start { .. } if seen.run.staged != Some(kid) => return Next::Blocked(Blocked::StagedAlready(kid)),
        Asked::Abort => return under_lease(seen, || Next::Do(Step::Abort(kid), "it was asked for, before the flip")),
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

/// A copy off the host that is confirmed, or the waiver of one.
fn is_escrowed(seen: &Snapshot<'_>, kid: Kid) -> bool {
    let stands = |escrow: &EscrowRecord| escrow.kind == EscrowKind::Waiver || escrow.confirmed_at.is_some();
    seen.escrows.iter().any(|escrow| escrow.kid == kid && stands(escrow))
}

fn is_read_back(seen: &Snapshot<'_>, kid: Kid) -> bool {
    seen.escrows.iter().any(|escrow| escrow.kid == kid && escrow.read_back_at.is_some())
}

fn record(proof: &Proof, wanted: Kid) -> Next {
    if proof.kid == wanted {
        Next::Do(Step::Record(proof.clone()), "a copy off the host was read, and it is this key")
    } else {
        Next::Blocked(Blocked::WrongCopy { found: proof.kid, wanted })
    }
}

fn escrow(seen: &Snapshot<'_>, kid: Kid) -> Next {
    match seen.asked.escrow() {
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

fn past_the_flip(seen: &Snapshot<'_>, carry: impl FnOnce(&Snapshot<'_>) -> Next) -> Next {
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

fn rewrapping(seen: &Snapshot<'_>) -> Next {
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

fn verified(seen: &Snapshot<'_>) -> Next {
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

fn reencrypting(seen: &Snapshot<'_>) -> Next {
    match seen.stale {
        Stale::Some => Next::Do(Step::Reencrypt, "DEKs from before the flip may be known to whoever knew the old key"),
        Stale::None => Next::Do(Step::Finish, "no DEK in use is from before the flip"),
    }
}

fn destroy_old(seen: &Snapshot<'_>, kid: Kid, proof: Option<&Proof>, escrow: Escrow) -> Next {
    let Some(key) = seen.keys.iter().find(|key| key.kid == kid) else {
        return Next::Blocked(Blocked::UnknownKey(kid));
    };
    match (key.state, key.retired_at) {
        (MasterKeyState::Destroyed, _) if seen.run.ended == Some(Ended::Destroyed) => {
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
        _ if is_read_back(seen, kid) => {
            Next::Do(Step::Destroy { kid, waiver: Waiver::None }, "a copy of it off the host was read back")
        }
        (Some(proof), _) => record(proof, kid),
        (None, Escrow::Waive) => {
            let step = Step::Destroy { kid, waiver: Waiver::ByOperator };
            Next::Do(step, "the operator said that there is to be no copy off the host")
        }
        (None, Escrow::Prove) => Next::Blocked(Blocked::NotReadBack(kid)),
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
