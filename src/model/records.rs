//! What the store keeps, as the rest of the program sees it. Ciphertexts and wrapped DEKs are bytes here; opening them is crypto's.

use std::time::Duration;

use super::{
    BootId, CopyLoss, DekId, DekState, DekVersion, Delivery, EscrowKind, KeyMode, KeyPhase, Kid, MasterKeyState,
    Micros, NodeId, SecretName, SecretVersion, Tenant,
};

/// A database's key state; absent until it has held its first key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyState {
    pub db_id: [u8; 16],
    /// Counts the master changes of this database, from 1.
    pub epoch: u64,
    /// Rises with each rotation, revocation and shred.
    pub generation: u64,
    pub active_kid: Kid,
    pub mode: KeyMode,
    pub phase: KeyPhase,
    /// Who carries the rotation; absent while none runs.
    pub lease: Option<Lease>,
}

/// The right of one process to carry a rotation on, until it lapses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub node: NodeId,
    pub boot: BootId,
    pub until: Micros,
}

/// A daemon that shares the database, as it last said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    pub node: NodeId,
    pub boot: BootId,
    /// The master keys that lie fsynced in its key files, sorted.
    pub durable_kids: Vec<Kid>,
    /// The epoch that it serves.
    pub epoch: u64,
    pub seen_at: Micros,
    /// Whether it was seen within [`NODE_LIVE`], by the database's clock.
    pub live: bool,
}

/// For how long a node counts as live after it was seen.
pub const NODE_LIVE: Duration = Duration::from_secs(30);

/// What stands for a master key off the host: a copy, or the waiver of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EscrowRecord {
    pub id: String,
    pub kid: Kid,
    /// What kind of place it is: `file`, `secret-manager`, `age`, `paper`; of a waiver, who gave it.
    pub target: String,
    /// Where in it; never a secret.
    pub locator: Option<String>,
    /// Of the copy's bytes; absent for a waiver.
    pub content_sha256: Option<[u8; 32]>,
    /// Of the copy of a wrapped key file: the versions of KMS keys that it is wrapped with, by their names, where it was looked at.
    pub kms_versions: Vec<String>,
    pub kind: EscrowKind,
    pub started_at: Micros,
    pub confirmed_at: Option<Micros>,
    pub read_back_at: Option<Micros>,
    /// When its place was last asked whether it is still there; absent where it never was.
    pub looked_at: Option<Micros>,
    /// How it was missed then.
    pub lost: Option<CopyLoss>,
    /// Why it is no good: set where reading it back failed, until it is read back.
    pub unread: Option<Unread>,
}

/// That a copy could be had and was not the key, or could not be had for a reason that is the copy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    pub at: Micros,
    pub why: String,
}

impl EscrowRecord {
    /// Whether it stands for the key: a copy that is there as far as anybody knows, or a waiver.
    #[must_use]
    pub const fn stands(&self) -> bool {
        self.confirmed_at.is_some() && self.lost.is_none()
    }

    /// Whether the key may come to depend on it: it stands, and was not found to be something else when it was read last.
    #[must_use]
    pub const fn can_be_relied_on(&self) -> bool {
        self.stands() && self.unread.is_none()
    }

    /// Whether somebody may come to need what opens it: what is disabled or not in a list can come back, so here it is careful to count
    /// more, not less.
    #[must_use]
    pub fn may_be_needed(&self) -> bool {
        self.kind == EscrowKind::Copy && self.confirmed_at.is_some() && self.lost != Some(CopyLoss::Destroyed)
    }

    #[must_use]
    pub fn is_copy_that_stands(&self) -> bool {
        self.kind == EscrowKind::Copy && self.stands()
    }

    #[must_use]
    pub fn is_at(&self, locator: &str) -> bool {
        self.locator.as_deref() == Some(locator)
    }

    /// When it was last known to be where it was put.
    #[must_use]
    pub fn last_seen_at(&self) -> Option<Micros> {
        self.confirmed_at.max(self.read_back_at).max(self.looked_at.filter(|_| self.lost.is_none()))
    }

    /// Whether somebody had it in hand, and it has not been missed since.
    #[must_use]
    pub const fn is_proven(&self) -> bool {
        self.read_back_at.is_some() && self.lost.is_none()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterKeyRecord {
    pub kid: Kid,
    pub state: MasterKeyState,
    pub created_at: Micros,
    pub retired_at: Option<Micros>,
    /// Whether an active or decrypt-only DEK is wrapped by it.
    pub in_use: bool,
}

/// A wrapped DEK and the master key that wraps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedDek {
    pub kid: Kid,
    pub bytes: Vec<u8>,
}

/// A DEK's state together with what that state leaves of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DekBody {
    Active(WrappedDek),
    DecryptOnly(WrappedDek),
    Quarantined(WrappedDek),
    Shredded,
}

impl DekBody {
    #[must_use]
    pub const fn state(&self) -> DekState {
        match self {
            Self::Active(_) => DekState::Active,
            Self::DecryptOnly(_) => DekState::DecryptOnly,
            Self::Quarantined(_) => DekState::Quarantined,
            Self::Shredded => DekState::Shredded,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DekRecord {
    pub tenant: Tenant,
    pub version: DekVersion,
    pub id: DekId,
    pub body: DekBody,
}

/// A secret's row: its metadata and its version counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRecord {
    pub tenant: Tenant,
    pub name: SecretName,
    /// The version that a read without a number answers.
    pub current: SecretVersion,
    pub delivery: Delivery,
    pub created_at: Micros,
    /// When the current version or the metadata last changed.
    pub updated_at: Micros,
    pub deleted_at: Option<Micros>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRecord {
    pub version: SecretVersion,
    pub created_at: Micros,
    pub body: VersionBody,
}

/// What is left of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionBody {
    Live {
        ciphertext: Vec<u8>,
        dek_version: DekVersion,
        /// Absent when the row is missing from `deks`: the database was damaged.
        dek: Option<DekRecord>,
    },
    Destroyed {
        at: Micros,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRecord {
    pub tenant: Tenant,
    pub created_at: Micros,
    /// Set while a shred is pending or done: the tenant is blocked.
    pub shred_at: Option<Micros>,
    /// Set once its DEKs are gone for good.
    pub shredded_at: Option<Micros>,
    /// Its readable secrets.
    pub secrets: u64,
    pub active_dek: Option<DekVersion>,
}

/// Sizes of a store, for `admin status`. The system's own rows are not in `tenants`, `secrets` and `versions`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    pub tenants: u64,
    /// Readable ones: not deleted, the current version not destroyed.
    pub secrets: u64,
    /// Live versions, of deleted secrets too.
    pub versions: u64,
    /// DEKs by state.
    pub deks: Vec<(DekState, u64)>,
}
