//! The guards of a rotation's steps, for both stores: pure, over what a transaction read under its locks. The stores ask these, so that
//! neither can be laxer than the other.

use super::StoreError;
use super::masters::{Beat, EscrowStage, Fence, NewEscrow};
use crate::model::{
    BootId, DekBody, DekRecord, DekState, DekVersion, EscrowKind, KeyPhase, KeyState, Kid, Lease, Micros, NODE_LIVE,
    NodeId, NodeRecord, Tenant, WrappedDek,
};

impl Fence {
    /// Whether the database is where the caller takes it to be, and the rotation still the caller's. A lease that lapsed holds as long as
    /// nobody took it: taking it is what ends it.
    pub(super) fn holds(&self, state: &KeyState) -> bool {
        let ours = state.lease.is_some_and(|lease| lease.node == self.holder.node && lease.boot == self.holder.boot);
        ours && state.epoch == self.epoch && state.active_kid == self.active && state.phase == self.phase
    }

    /// Also that the step starts from the phase that it must start from.
    pub(super) fn holds_in(&self, phase: KeyPhase, state: &KeyState) -> bool {
        self.phase == phase && self.holds(state)
    }
}

/// Whom a lease keeps out: another node, until it lapses. Another boot of the same node is dead, since the data directory has one lock.
pub(super) fn keeps_out(lease: &Lease, node: NodeId, now: Micros) -> bool {
    lease.node != node && lease.until > now
}

/// The boot that a heartbeat of the same node must give way to: one that is live, and neither the beat's own nor the one before it. `boot`
/// is what the row says; what is no boot's id is nobody's.
pub(super) fn taken(boot: &str, seen_at: Micros, now: Micros, beat: &Beat<'_>) -> Option<BootId> {
    let boot = BootId::from_hex(boot)?;
    let ours = boot == beat.holder.boot || beat.previous_boot == Some(boot);
    (!ours && is_live(seen_at, now)).then_some(boot)
}

/// Whether a node that was seen then counts as live. Either way: a database whose clock was set back would otherwise show a node that is
/// gone as live until that clock catches up.
pub(super) const fn is_live(seen_at: Micros, now: Micros) -> bool {
    now.0.abs_diff(seen_at.0) as u128 <= NODE_LIVE.as_micros()
}

/// The nodes that a flip to this key waits for. One that holds the key durably is waited for in no case: it comes back with it. One that
/// is live is waited for though it was named.
pub(super) fn waiting(nodes: Vec<NodeRecord>, to: Kid, without: &[NodeId]) -> Vec<NodeRecord> {
    let excused = |node: &NodeRecord| !node.live && without.contains(&node.node);
    nodes.into_iter().filter(|node| !node.durable_kids.contains(&to) && !excused(node)).collect()
}

/// The changes of phase that need no step of their own. Every other one is made by a step that has guards: stage, abort, flip, retire.
///
/// # Errors
/// [`StoreError::Refused`]
pub(super) fn check_phase(from: KeyPhase, to: KeyPhase) -> Result<(), StoreError> {
    match (from, to) {
        (KeyPhase::Rewrapping, KeyPhase::Verified)
        | (KeyPhase::Verified, KeyPhase::Rewrapping | KeyPhase::Reencrypting | KeyPhase::Idle)
        | (KeyPhase::Reencrypting, KeyPhase::Idle) => Ok(()),
        _ => Err(StoreError::Refused(format!("a rotation does not go from {from} to {to} without a step"))),
    }
}

/// # Errors
/// [`StoreError::Refused`] for a waiver that is not one.
pub(super) fn check_escrow(escrow: &NewEscrow) -> Result<(), StoreError> {
    let bare = escrow.locator.is_none() && escrow.content_sha256.is_none() && escrow.stage == EscrowStage::Confirmed;
    let fits = match escrow.kind {
        EscrowKind::Waiver => bare,
        EscrowKind::Copy => escrow.content_sha256.is_some(),
    };
    if fits {
        return Ok(());
    }
    let rule = "a waiver is confirmed and has neither locator nor digest, and a copy has a digest";
    Err(StoreError::Refused(format!("escrow {}: {rule}", escrow.id)))
}

/// # Errors
/// [`StoreError::Refused`] for anything but a waiver for this key.
pub(super) fn check_waiver(waiver: &NewEscrow, kid: Kid) -> Result<(), StoreError> {
    if waiver.kind != EscrowKind::Waiver || waiver.kid != kid {
        return Err(StoreError::Refused(format!("escrow {} is no waiver for master key {kid}", waiver.id)));
    }
    check_escrow(waiver)
}

/// What a DEK becomes that leaves quarantine: active again only where nothing took its place among the tenant's `deks`.
pub(super) fn released(version: DekVersion, deks: &[DekRecord], wrapped: WrappedDek) -> DekBody {
    let replaced = deks.iter().any(|dek| dek.version > version || dek.body.state() == DekState::Active);
    if replaced { DekBody::DecryptOnly(wrapped) } else { DekBody::Active(wrapped) }
}

/// # Errors
/// [`StoreError::Refused`]: what the daemon's own secrets are sealed with is not a tenant's to lose.
pub(super) fn check_shreddable(tenant: &Tenant) -> Result<(), StoreError> {
    if tenant.is_system() {
        return Err(StoreError::Refused(format!("tenant {tenant} is the system's own and cannot be shredded")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_seen_in_the_future_is_not_live_for_years() {
        let now = Micros(1_764_000_000_000_000);
        let live = 30_000_000;
        assert!(is_live(now, now) && is_live(Micros(now.0 - live), now) && is_live(Micros(now.0 + live), now));
        assert!(!is_live(Micros(now.0 - live - 1), now) && !is_live(Micros(now.0 + live + 1), now));
        assert!(!is_live(Micros(i64::MIN), Micros(i64::MAX)));
    }
}
