//! A new master key for every DEK while the daemon serves (docs/KEY_ROTATION.md).
//!
//! [`plan`] says what comes next, [`execute`] does it: a loop of look, plan, one step, look again. There is no state but the database's
//! and the key files', so a crash between or inside any two steps leaves what the next look goes on from.

mod plan;

use std::fmt;

use crate::model::{DekVersion, KeyMode, Kid, Tenant};

/// What an operator asks of the rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Counts, what would stop it, an estimate.
    DryRun,
    Start {
        mode: KeyMode,
        escrow: Escrow,
    },
    /// Goes on from where it is.
    Resume {
        proof: Option<Proof>,
        escrow: Escrow,
    },
    /// Gives the staged key up.
    Abort,
    /// Destroys a retired key.
    DestroyOld {
        kid: Kid,
        proof: Option<Proof>,
        escrow: Escrow,
    },
}

impl Asked {
    const fn proof(&self) -> Option<&Proof> {
        match self {
            Self::Resume { proof, .. } | Self::DestroyOld { proof, .. } => proof.as_ref(),
            Self::DryRun | Self::Start { .. } | Self::Abort => None,
        }
    }

    const fn escrow(&self) -> Escrow {
        match self {
            Self::Start { escrow, .. } | Self::Resume { escrow, .. } | Self::DestroyOld { escrow, .. } => *escrow,
            Self::DryRun | Self::Abort => Escrow::Prove,
        }
    }
}

/// How the key is to be known off the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escrow {
    /// A copy is fed back from there.
    Prove,
    /// Not at all, and the operator says so.
    Waive,
}

/// A copy that was read off the host, in the command's own process. The key itself stays there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub kid: Kid,
    /// Where it was read: a path, or standard input.
    pub locator: String,
    pub sha256: [u8; 32],
}

/// A DEK that does not open, or what of a tenant does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    pub tenant: Tenant,
    /// Absent where it is not known which.
    pub version: Option<DekVersion>,
    pub why: String,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "DEK {} {version} does not open: {}", self.tenant, self.why),
            None => write!(f, "tenant {}: {}", self.tenant, self.why),
        }
    }
}
