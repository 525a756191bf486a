//! What a round is: drawn from the seed and the round's number, so that both name it.

use super::super::kills::{ROUNDS, Round};

/// SplitMix64: a few lines whose sequence no dependency's next version changes.
#[derive(Debug, Clone)]
pub(super) struct Draw(u64);

impl Draw {
    pub(super) const fn new(seed: u64, round: u64) -> Self {
        Self(seed ^ round.wrapping_mul(0xA076_1D64_78BD_642F))
    }

    /// A sequence of its own, for a thread.
    pub(super) fn split(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// Once in so many.
    pub(super) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(super) fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    Sqlite,
    Postgres { nodes: usize },
}

impl Where {
    pub(super) const fn nodes(self) -> usize {
        match self {
            Self::Sqlite => 1,
            Self::Postgres { nodes } => nodes,
        }
    }
}

/// What is asked of the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Waived,
    Proven,
    GivenUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    Normal,
    Compromised,
}

/// What else is asked meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    Nothing,
    RotateDeks,
    Shred,
    SecondRotation,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    Kill { node: usize, down_ms: u64 },
    Stop { node: usize, ms: u64 },
    KillServer { down_ms: u64 },
}

#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) place: Where,
    pub(super) cache_entries: u32,
    pub(super) tenants: usize,
    pub(super) wanted: Wanted,
    pub(super) urgency: Urgency,
    pub(super) beside: Beside,
    pub(super) beside_at_ms: u64,
    /// Where the operator begins; its daemon has the failpoint.
    pub(super) home: usize,
    /// `name=kill` or `name=stop`.
    pub(super) failpoint: Option<String>,
    /// When, from the operator's first command on.
    pub(super) faults: Vec<(u64, Fault)>,
    /// By another implementation too.
    pub(super) with_reference: bool,
}

/// The time in which faults begin. A rotation of this size takes less than half a second where nothing goes wrong, and some seconds where
/// something does.
const FAULTS_MS: usize = 1500;
const SOON_MS: usize = 400;

impl Plan {
    pub(super) fn draw(draw: &mut Draw) -> Self {
        let place = match draw.below(5) {
            0 | 1 => Where::Sqlite,
            others => Where::Postgres { nodes: others - 1 },
        };
        let nodes = place.nodes();
        let wanted = *draw.of(&[Wanted::Waived, Wanted::Waived, Wanted::Proven, Wanted::Proven, Wanted::GivenUp]);
        let urgency = if draw.once_in(4) { Urgency::Compromised } else { Urgency::Normal };
        let beside =
            *draw.of(&[Beside::Nothing, Beside::Nothing, Beside::RotateDeks, Beside::Shred, Beside::SecondRotation]);
        let failpoint = (!draw.once_in(3)).then(|| {
            let name = *draw.of(&points(wanted, urgency));
            format!("{name}={}", if draw.once_in(4) { "stop" } else { "kill" })
        });
        let mut faults: Vec<(u64, Fault)> = (0..=draw.below(3)).map(|_| (moment(draw), fault(draw, place))).collect();
        faults.sort_by_key(|(at, _)| *at);
        Self {
            place,
            cache_entries: *draw.of(&[0, 2, 1000, 1000]),
            tenants: 3 + draw.below(4),
            wanted,
            urgency,
            beside,
            beside_at_ms: moment(draw),
            home: draw.below(nodes),
            failpoint,
            faults,
            with_reference: draw.once_in(3),
        }
    }

    /// The tenant that a shred would take; nobody's first.
    pub(super) fn shredded(&self) -> Option<String> {
        (self.beside == Beside::Shred).then(|| format!("t{}", self.tenants - 1))
    }

    /// A daemon may stop while it holds a lock, and then a write is refused.
    pub(super) fn has_stops(&self) -> bool {
        self.failpoint.as_ref().is_some_and(|point| point.ends_with("=stop"))
            || self.faults.iter().any(|(_, fault)| matches!(fault, Fault::Stop { .. }))
    }
}

/// More often than not while the first attempt is under way.
fn moment(draw: &mut Draw) -> u64 {
    let within = *draw.of(&[SOON_MS, SOON_MS, FAULTS_MS]);
    draw.below(within) as u64
}

/// The failpoints that such a rotation comes to, where nothing stops it before.
fn points(wanted: Wanted, urgency: Urgency) -> Vec<&'static str> {
    let is_met = |round: Round| match round {
        Round::Waived => true,
        Round::Proven => wanted == Wanted::Proven,
        Round::Compromised => urgency == Urgency::Compromised && wanted != Wanted::GivenUp,
        Round::Abort => wanted == Wanted::GivenUp,
        Round::LockHeld | Round::Destroy | Round::Pushed => false,
    };
    ROUNDS.iter().filter(|(_, round)| is_met(*round)).map(|(name, _)| *name).collect()
}

fn fault(draw: &mut Draw, place: Where) -> Fault {
    let node = draw.below(place.nodes());
    match (draw.below(5), place) {
        (0, _) => Fault::Stop { node, ms: 100 + draw.below(1200) as u64 },
        (1, Where::Postgres { .. }) => Fault::KillServer { down_ms: draw.below(400) as u64 },
        _ => Fault::Kill { node, down_ms: draw.below(300) as u64 },
    }
}
