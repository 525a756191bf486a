//! A database, two nodes and their disks, as far as a rotation knows them; each store call with the guards that its contract names.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::super::super::Escrow;
use super::super::*;
use super::kid;
use crate::model::{BootId, EscrowKind, EscrowRecord, Lease};
use crate::service::backup::Class;
use crate::store::masters::GivenUp;

pub(super) const RETAIN: Duration = Duration::from_hours(35 * 24);
const LEASE: i64 = 30_000_000;
const LIVE: i64 = 30_000_000;

#[derive(Debug, Clone)]
pub(super) enum Event {
    Ask(usize, Asked),
    /// Converges, looks and plans.
    Look(usize),
    /// Does what was planned, on whatever the world is by now.
    Act(usize),
    Crash(usize),
    /// The step's effect is there, or half of it, and the process is not.
    CrashInside(usize),
    Restart(usize),
    /// The staged key's file is put on this node's disk.
    Install(usize),
    Create(usize),
    /// Secret Manager takes copies, or answers nobody.
    Cloud(Cloud),
    /// Leases lapse, and who does not run is no longer live.
    TimePasses,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cloud {
    Up,
    Away,
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let node = 0..2_usize;
    let escrow = prop_oneof![2 => Just(Escrow::Push), 1 => Just(Escrow::Prove), 2 => Just(Escrow::Waive)];
    let mode = prop_oneof![Just(KeyMode::Normal), Just(KeyMode::Compromised)];
    let asked = prop_oneof![
        3 => (mode, escrow.clone()).prop_map(|(mode, escrow)| Asked::Start { mode, escrow }),
        4 => escrow.prop_map(|escrow| Asked::Resume { proof: None, escrow }),
        1 => Just(Asked::Abort),
        1 => Just(Asked::DryRun),
    ];
    prop_oneof![
        2 => (node.clone(), asked).prop_map(|(node, asked)| Event::Ask(node, asked)),
        8 => node.clone().prop_map(Event::Look),
        8 => node.clone().prop_map(Event::Act),
        1 => node.clone().prop_map(Event::Crash),
        1 => node.clone().prop_map(Event::CrashInside),
        2 => node.clone().prop_map(Event::Restart),
        2 => node.clone().prop_map(Event::Install),
        1 => node.prop_map(Event::Create),
        1 => prop_oneof![Just(Cloud::Up), Just(Cloud::Away)].prop_map(Event::Cloud),
        1 => Just(Event::TimePasses),
    ]
}

#[derive(Debug, Clone)]
pub(super) struct ModelDek {
    pub(super) kid: Kid,
    made_in: u64,
}

/// What the store's transaction compares.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    epoch: u64,
    active: Kid,
    phase: KeyPhase,
}

#[derive(Debug)]
struct Node {
    boot: u8,
    up: bool,
    durable: BTreeSet<Kid>,
    main: Kid,
    loaded: BTreeSet<Kid>,
    seen_at: i64,
    said: BTreeSet<Kid>,
    asked: Option<Asked>,
    without: Vec<NodeId>,
    run: Run,
    planned: Option<(Step, Seen)>,
    ended: Option<Next>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) state: KeyState,
    keys: Vec<MasterKeyRecord>,
    pub(super) escrows: Vec<EscrowRecord>,
    pub(super) deks: Vec<ModelDek>,
    pub(super) quarantined: u64,
    pub(super) now: Micros,
    nodes: [Node; 2],
    made: u8,
    cloud: Cloud,
    pub(super) remembers_since: Option<Micros>,
}

fn record(kid: Kid, state: MasterKeyState) -> MasterKeyRecord {
    MasterKeyRecord { kid, state, created_at: Micros(0), retired_at: None, in_use: false }
}

fn copy_of(kid: Kid, what: EscrowKind) -> EscrowRecord {
    let at = Some(Micros(0));
    let (started_at, confirmed_at) = (Micros(0), at);
    let (id, target) = (kid.to_string(), "file".to_owned());
    let read_back_at = at.filter(|_| what == EscrowKind::Copy);
    EscrowRecord {
        id,
        kid,
        target,
        locator: None,
        content_sha256: None,
        kms_versions: Vec::new(),
        kind: what,
        started_at,
        confirmed_at,
        read_back_at,
        looked_at: None,
        lost: None,
        unread: None,
    }
}

fn begun_copy_of(kid: Kid) -> EscrowRecord {
    let target = "secret-manager".to_owned();
    EscrowRecord { target, confirmed_at: None, read_back_at: None, ..copy_of(kid, EscrowKind::Copy) }
}

impl World {
    pub(super) fn new() -> Self {
        let node = || Node {
            boot: 1,
            up: true,
            durable: BTreeSet::from([kid(1)]),
            main: kid(1),
            loaded: BTreeSet::from([kid(1)]),
            seen_at: 0,
            said: BTreeSet::from([kid(1)]),
            asked: None,
            without: Vec::new(),
            run: Run::default(),
            planned: None,
            ended: None,
        };
        let state = KeyState {
            db_id: [0; 16],
            epoch: 1,
            generation: 1,
            active_kid: kid(1),
            mode: KeyMode::Normal,
            phase: KeyPhase::Idle,
            lease: None,
        };
        Self {
            state,
            keys: vec![record(kid(1), MasterKeyState::Active)],
            escrows: vec![copy_of(kid(1), EscrowKind::Copy)],
            deks: vec![ModelDek { kid: kid(1), made_in: 1 }; 3],
            quarantined: 0,
            now: Micros(0),
            nodes: [node(), node()],
            made: 1,
            cloud: Cloud::Up,
            remembers_since: Some(Micros(0)),
        }
    }

    pub(super) fn node_id(node: usize) -> NodeId {
        NodeId::new([u8::try_from(node).unwrap(); 16])
    }

    fn holder(&self, node: usize) -> Holder {
        Holder { node: Self::node_id(node), boot: BootId::new([self.nodes[node].boot; 16]) }
    }

    pub(super) fn nodes(&self) -> Vec<NodeRecord> {
        let record = |(index, node): (usize, &Node)| NodeRecord {
            node: Self::node_id(index),
            boot: BootId::new([node.boot; 16]),
            durable_kids: node.said.iter().copied().collect(),
            epoch: self.state.epoch,
            seen_at: Micros(node.seen_at),
            live: self.now.0 - node.seen_at < LIVE,
        };
        self.nodes.iter().enumerate().map(record).collect()
    }

    pub(super) fn key_state(&self, kid: Kid) -> MasterKeyState {
        self.keys.iter().find(|key| key.kid == kid).unwrap().state
    }

    fn with_state(&self, state: MasterKeyState) -> Option<Kid> {
        self.keys.iter().find(|key| key.state == state).map(|key| key.kid)
    }

    pub(super) fn staged(&self) -> Option<Kid> {
        self.with_state(MasterKeyState::Staged)
    }

    fn set_state(&mut self, kid: Kid, state: MasterKeyState) {
        let key = self.keys.iter_mut().find(|key| key.kid == kid).unwrap();
        key.state = state;
    }

    fn old(&self) -> Option<Kid> {
        self.with_state(MasterKeyState::DecryptOnly)
    }

    fn under(&self, kid: Option<Kid>) -> u64 {
        self.deks.iter().filter(|dek| Some(dek.kid) == kid).count() as u64
    }

    fn is_stale(&self) -> bool {
        self.deks.iter().any(|dek| dek.made_in < self.state.epoch)
    }

    fn needed(&self) -> BTreeSet<Kid> {
        self.deks.iter().map(|dek| dek.kid).chain([self.state.active_kid]).collect()
    }

    /// Asks anew, whatever was asked before.
    pub(super) fn ask(&mut self, node: usize, asked: Asked) {
        let node = &mut self.nodes[node];
        (node.run, node.asked, node.planned, node.ended) = (Run::of(&asked), Some(asked), None, None);
    }

    /// Turns what was asked to something else, on its way.
    pub(super) fn turn(&mut self, node: usize, to: Asked) {
        let node = &mut self.nodes[node];
        (node.asked, node.planned, node.ended) = (Some(to), None, None);
    }

    pub(super) fn name_as_away(&mut self, node: usize, away: usize) {
        let id = Self::node_id(away);
        self.nodes[node].without.push(id);
    }

    pub(super) fn damage(&mut self, node: usize, damaged: Damaged) {
        self.nodes[node].run.damaged.push(damaged);
    }

    pub(super) fn ended(&self, node: usize) -> Option<Next> {
        self.nodes[node].ended.clone()
    }

    pub(super) fn plan(&mut self, node: usize) -> Option<Step> {
        self.happen(&Event::Look(node));
        self.nodes[node].planned.clone().map(|(step, _)| step)
    }

    /// One node alone, until it ends or waits.
    pub(super) fn run(&mut self, node: usize) {
        for _ in 0..100 {
            if self.plan(node).is_none() {
                return;
            }
            self.happen(&Event::Act(node));
        }
        panic!("no end: {self:?}");
    }

    pub(super) fn happen(&mut self, event: &Event) {
        match *event {
            Event::Ask(node, ref asked) => {
                if self.nodes[node].up && self.nodes[node].asked.is_none() {
                    self.ask(node, asked.clone());
                }
            }
            Event::Look(node) => self.look(node),
            Event::Act(node) => {
                if let Some((step, seen)) = self.nodes[node].planned.take() {
                    self.act(node, step, &seen);
                }
            }
            Event::Crash(node) => self.crash(node),
            Event::CrashInside(node) => {
                match self.nodes[node].planned.take() {
                    Some((Step::Stage(_), _)) => {
                        let made = self.make_key();
                        self.nodes[node].durable.insert(made);
                    }
                    // The row that comes before the call; whether the version was added nobody will know.
                    Some((Step::Push(kid), _)) => self.escrows.push(begun_copy_of(kid)),
                    Some((step, seen)) => self.act(node, step, &seen),
                    None => {}
                }
                self.crash(node);
            }
            Event::Restart(node) => {
                if !self.nodes[node].up {
                    self.nodes[node].boot += 1;
                    self.nodes[node].up = true;
                    self.converge(node);
                }
            }
            Event::Install(node) => {
                if let Some(staged) = self.staged().or(Some(self.state.active_kid)) {
                    self.nodes[node].durable.insert(staged);
                    if self.nodes[node].up {
                        self.converge(node);
                    }
                }
            }
            Event::Create(node) => {
                // The store compares under the master lock, whatever the creator believed.
                let active = self.state.active_kid;
                if self.nodes[node].up && self.nodes[node].loaded.contains(&active) && self.deks.len() < 6 {
                    self.deks.push(ModelDek { kid: active, made_in: self.state.epoch });
                }
            }
            Event::Cloud(cloud) => self.cloud = cloud,
            Event::TimePasses => {
                self.now.0 += LEASE + 1;
                for node in 0..2 {
                    if self.nodes[node].up {
                        self.converge(node);
                    }
                }
            }
        }
    }

    fn crash(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.up = false;
        node.loaded.clear();
        (node.asked, node.run, node.planned, node.ended) = (None, Run::default(), None, None);
    }

    /// What the node's loop does; it puts the active key into the key file too, unless somebody holds the lock: here somebody does.
    fn converge(&mut self, node: usize) {
        let (needed, now) = (self.needed(), self.now.0);
        let gone: Vec<Kid> = self
            .keys
            .iter()
            .filter(|key| matches!(key.state, MasterKeyState::Aborted | MasterKeyState::Destroyed))
            .map(|key| key.kid)
            .collect();
        let node = &mut self.nodes[node];
        node.durable.retain(|kid| !gone.contains(kid));
        node.loaded.extend(needed.intersection(&node.durable));
        node.said = node.durable.clone();
        node.seen_at = now;
    }

    fn look(&mut self, node: usize) {
        if !self.nodes[node].up || self.nodes[node].asked.is_none() {
            return;
        }
        self.converge(node);
        let nodes = self.nodes();
        let me = &self.nodes[node];
        let here = Here {
            durable: me.durable.iter().copied().collect(),
            main: Some(me.main),
            loaded: me.loaded.iter().copied().collect(),
            refused: None,
            remembers_since: self.remembers_since,
        };
        let asked = me.asked.clone().unwrap();
        let under = match &asked {
            Asked::DestroyOld { kid, .. } => Some(*kid),
            _ => self.old(),
        };
        let seen = Snapshot {
            asked: &asked,
            me: self.holder(node),
            state: &self.state,
            keys: &self.keys,
            escrows: &self.escrows,
            nodes: &nodes,
            without: &me.without,
            now: self.now,
            retain_old: RETAIN,
            here: &here,
            under_old: UnderKey { in_use: self.under(under), quarantined: self.quarantined },
            stale: if self.is_stale() { Stale::Some } else { Stale::None },
            run: &me.run,
        };
        let next = next(&seen);
        let fence = Seen { epoch: self.state.epoch, active: self.state.active_kid, phase: self.state.phase };
        match next {
            Next::Do(step, reason) => {
                assert!(!reason.is_empty());
                self.holds(node, &step);
                self.nodes[node].planned = Some((step, fence));
            }
            ended => {
                let node = &mut self.nodes[node];
                node.planned = None;
                // A wait is not the end: it looks again.
                if !matches!(ended, Next::WaitForNodes { .. }) {
                    node.asked = node.asked.take().filter(|_| matches!(ended, Next::Blocked(_)));
                }
                node.ended = Some(ended);
            }
        }
    }

    /// No step before its guard.
    fn holds(&self, node: usize, step: &Step) {
        let me = &self.nodes[node];
        let lease = self.state.lease.filter(|lease| {
            let me = self.holder(node);
            (lease.node, lease.boot) == (me.node, me.boot)
        });
        let fenced = !matches!(step, Step::TakeLease | Step::Preflight | Step::Destroy { .. } | Step::Record(_));
        assert!(!fenced || lease.is_some(), "{step:?} without the lease");
        let holds = match step {
            Step::TakeLease | Step::Preflight | Step::Waive(_) | Step::Record(_) | Step::Promote(_) => true,
            Step::Push(kid) => self.state.phase == KeyPhase::Staged && me.durable.contains(kid),
            Step::Stage(_) => self.state.phase == KeyPhase::Idle && me.run.preflighted,
            Step::Flip { to, without } => self.may_flip(*to, without) && me.durable.contains(to),
            Step::Rewrap { old, .. } => self.state.phase == KeyPhase::Rewrapping && me.loaded.contains(old),
            Step::Verify => self.state.phase == KeyPhase::Rewrapping && self.under(self.old()) == 0,
            Step::Reopen => self.state.phase == KeyPhase::Verified,
            Step::Retire(old) => {
                self.state.phase == KeyPhase::Verified
                    && self.under(Some(*old)) == 0
                    && me.main == self.state.active_kid
            }
            Step::Reencrypt => self.state.phase == KeyPhase::Reencrypting,
            Step::Finish => self.state.phase == KeyPhase::Reencrypting && !self.is_stale(),
            Step::Abort(..) => self.state.phase == KeyPhase::Staged,
            Step::Destroy { kid, .. } => {
                self.key_state(*kid) == MasterKeyState::Retired && self.under(Some(*kid)) + self.quarantined == 0
            }
        };
        assert!(holds, "{step:?} before its guard: {self:?}");
    }

    fn may_flip(&self, to: Kid, without: &[NodeId]) -> bool {
        let escrowed = self.is_escrowed(to);
        let held = |node: &NodeRecord| node.durable_kids.contains(&to) || (!node.live && without.contains(&node.node));
        self.state.phase == KeyPhase::Staged && self.staged() == Some(to) && escrowed && self.nodes().iter().all(held)
    }

    /// A row that was only begun is no copy.
    fn is_escrowed(&self, kid: Kid) -> bool {
        self.escrows.iter().any(|escrow| escrow.kid == kid && escrow.stands())
    }

    fn make_key(&mut self) -> Kid {
        self.made += 1;
        kid(self.made)
    }

    /// A step as the executor and the store do it: nothing where the fence or a guard does not hold.
    fn act(&mut self, index: usize, step: Step, seen: &Seen) {
        let holder = self.holder(index);
        let now = Seen { epoch: self.state.epoch, active: self.state.active_kid, phase: self.state.phase };
        let mine = self.state.lease.is_some_and(|lease| (lease.node, lease.boot) == (holder.node, holder.boot));
        let fenced = mine && *seen == now;
        let changed = match step {
            Step::TakeLease => {
                let free = self.state.lease.is_none_or(|lease| lease.until <= self.now || lease.node == holder.node);
                if free {
                    let until = Micros(self.now.0 + LEASE);
                    self.state.lease = Some(Lease { node: holder.node, boot: holder.boot, until });
                }
                false
            }
            Step::Preflight => {
                self.nodes[index].run.preflighted = true;
                false
            }
            Step::Stage(mode) => {
                let new = self.make_key();
                self.nodes[index].durable.insert(new);
                if fenced {
                    self.keys.push(record(new, MasterKeyState::Staged));
                    (self.state.phase, self.state.mode) = (KeyPhase::Staged, mode);
                    self.nodes[index].run.staged = Some(new);
                }
                fenced
            }
            Step::Push(kid) => self.push(index, kid),
            Step::Waive(kid) => {
                self.escrows.push(copy_of(kid, EscrowKind::Waiver));
                true
            }
            Step::Record(proof) => {
                self.escrows.push(copy_of(proof.kid, EscrowKind::Copy));
                true
            }
            Step::Flip { to, without } => {
                let may = fenced && self.may_flip(to, &without);
                if may {
                    self.set_state(self.state.active_kid, MasterKeyState::DecryptOnly);
                    self.set_state(to, MasterKeyState::Active);
                    (self.state.active_kid, self.state.phase) = (to, KeyPhase::Rewrapping);
                    self.state.epoch += 1;
                }
                may
            }
            Step::Rewrap { old, .. } => {
                let active = self.state.active_kid;
                if let Some(dek) = self.deks.iter_mut().find(|dek| dek.kid == old && fenced) {
                    dek.kid = active;
                }
                fenced
            }
            Step::Verify => self.set_phase(fenced, KeyPhase::Verified),
            Step::Reopen => self.set_phase(fenced, KeyPhase::Rewrapping),
            Step::Promote(kid) => {
                self.nodes[index].main = kid;
                true
            }
            Step::Retire(old) => {
                let may = fenced && self.under(Some(old)) == 0 && self.key_state(old) == MasterKeyState::DecryptOnly;
                if may {
                    self.set_state(old, MasterKeyState::Retired);
                    let at = self.now;
                    self.keys.iter_mut().find(|key| key.kid == old).unwrap().retired_at = Some(at);
                    match self.state.mode {
                        KeyMode::Compromised => self.state.phase = KeyPhase::Reencrypting,
                        KeyMode::Normal => self.end(),
                    }
                }
                may
            }
            Step::Reencrypt => {
                let epoch = self.state.epoch;
                if let Some(dek) = self.deks.iter_mut().find(|dek| dek.made_in < epoch) {
                    dek.made_in = epoch;
                }
                true
            }
            Step::Finish => {
                if fenced {
                    self.end();
                }
                fenced
            }
            Step::Abort(kid, given_up) => {
                self.nodes[index].run.tried = Some(Tried::Abort(kid));
                if fenced {
                    self.give_up(kid, given_up);
                }
                fenced
            }
            Step::Destroy { kid, .. } => {
                self.set_state(kid, MasterKeyState::Destroyed);
                self.nodes[index].run.tried = Some(Tried::Destroy(kid));
                true
            }
        };
        self.nodes[index].run.carried |= changed;
    }

    fn give_up(&mut self, kid: Kid, given_up: GivenUp) {
        let state = match given_up {
            GivenUp::Aborted => MasterKeyState::Aborted,
            GivenUp::Retired => MasterKeyState::Retired,
        };
        self.set_state(kid, state);
        self.end();
    }

    fn push(&mut self, index: usize, kid: Kid) -> bool {
        match self.cloud {
            Cloud::Up => self.escrows.push(EscrowRecord { confirmed_at: Some(self.now), ..begun_copy_of(kid) }),
            Cloud::Away => {
                let why = "no answer within 10 s".to_owned();
                self.nodes[index].run.unpushed = Some(Trouble { class: Class::Unavailable, why });
            }
        }
        true
    }

    fn set_phase(&mut self, fenced: bool, to: KeyPhase) -> bool {
        if fenced {
            self.state.phase = to;
        }
        fenced
    }

    fn end(&mut self) {
        (self.state.phase, self.state.mode, self.state.lease) = (KeyPhase::Idle, KeyMode::Normal, None);
    }

    /// What must hold at every moment.
    pub(super) fn check(&self) -> Result<(), TestCaseError> {
        let active: Vec<Kid> =
            self.keys.iter().filter(|key| key.state == MasterKeyState::Active).map(|key| key.kid).collect();
        prop_assert_eq!(active, vec![self.state.active_kid], "one active key, always");
        for dek in &self.deks {
            let escrowed = self.is_escrowed(dek.kid);
            prop_assert!(escrowed, "a DEK whose key is neither proven off the host nor waived: {:?}", self);
            let durable = self.nodes.iter().any(|node| node.durable.contains(&dek.kid));
            prop_assert!(durable, "a DEK whose key lies on no disk: {:?}", self);
            let state = self.key_state(dek.kid);
            let opens = matches!(state, MasterKeyState::Active | MasterKeyState::DecryptOnly);
            prop_assert!(opens, "a DEK under a key that is {}: {:?}", state, self);
        }
        for node in &self.nodes {
            prop_assert!(self.needed().is_subset(&node.durable), "a node lacks a key that is needed: {:?}", self);
        }
        let idle = self.state.phase == KeyPhase::Idle;
        prop_assert!(!idle || self.old().is_none(), "idle with a key that is decrypt-only: {:?}", self);
        prop_assert_eq!(self.staged().is_some(), self.state.phase == KeyPhase::Staged);
        Ok(())
    }

    /// Everybody is up, holds what is staged, and one of them goes on alone.
    pub(super) fn drain(&mut self) -> Result<(), TestCaseError> {
        for node in 0..2 {
            self.happen(&Event::Restart(node));
            self.happen(&Event::Install(node));
            self.nodes[node].planned = None;
        }
        self.happen(&Event::TimePasses);
        self.ask(0, Asked::Resume { proof: None, escrow: Escrow::Waive });
        self.run(0);
        let ended = matches!(self.ended(0), Some(Next::Stop(Stop::Rotated | Stop::Nothing)));
        // A lease that somebody took and did nothing with lapses; here it is given back as the executor does at its end.
        self.state.lease = self.state.lease.filter(|_| !ended);
        prop_assert!(ended, "{:?}", self.ended(0));
        Ok(())
    }
}
