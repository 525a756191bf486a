//! What is asked of secrets and what comes of it, in words that every room shares.

use super::{SecretRecord, SecretVersion};

/// What a caller does, as audit records name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Says who one is, where nobody is known by it.
    Authenticate,
    Get,
    BatchGet,
    List,
    Versions,
    Set,
    BatchSet,
    Rollback,
    Delete,
    Undelete,
    Destroy,
    AdminTenants,
    AdminStatus,
    RotateMaster,
    RotationDryRun,
    StageMaster,
    FlipMaster,
    RetireMaster,
    AbortRotation,
    DestroyMaster,
    FollowRotation,
    RotationKeys,
    RotateDek,
    /// Looks at a `rotate-dek` that is under way, or was.
    FollowRotateDek,
    /// Seals a tenant's versions anew under its active DEK.
    Reencrypt,
    /// Seals one version anew.
    Reseal,
    /// Makes new versions of the system's own keys.
    RenewSystemKeys,
    /// Blocks a tenant whose DEKs are to be destroyed later.
    ScheduleShred,
    CancelShred,
    /// Destroys a tenant's DEKs.
    Shred,
    /// Removes a DEK under which nothing is sealed any more.
    RemoveDek,
    QuarantineDek,
    ReleaseDek,
    AdminNodes,
    AdminForgetNode,
    AdminRestorePlan,
    AdminAcceptRestore,
    AdminDoctor,
    RecordDatabaseBackup,
    RecordDrill,
    /// Copies master keys off the host.
    BackupPush,
    FollowBackupPush,
    BackupList,
    /// Records that a copy of a master key is off the host, or no longer.
    ConfirmCopy,
    /// Records that an operator wants no copy of a master key.
    WaiveCopy,
    /// Records that copies were read back.
    BackupReadBack,
    TokenCreate,
    TokenList,
    TokenRevoke,
    /// A path or a method that no route takes.
    Unknown,
}

impl Action {
    /// Whether it changes something.
    pub const fn changes(self) -> bool {
        match self {
            Self::Get
            | Self::BatchGet
            | Self::List
            | Self::Versions
            | Self::AdminTenants
            | Self::Authenticate
            | Self::AdminStatus
            | Self::RotationDryRun
            | Self::FollowRotation
            | Self::RotationKeys
            | Self::FollowRotateDek
            | Self::AdminNodes
            | Self::AdminRestorePlan
            | Self::AdminDoctor
            | Self::FollowBackupPush
            | Self::BackupList
            | Self::TokenList
            | Self::Unknown => false,
            Self::Set
            | Self::BatchSet
            | Self::Rollback
            | Self::Delete
            | Self::Undelete
            | Self::Destroy
            | Self::RotateMaster
            | Self::StageMaster
            | Self::FlipMaster
            | Self::RetireMaster
            | Self::AbortRotation
            | Self::DestroyMaster
            | Self::RotateDek
            | Self::Reencrypt
            | Self::Reseal
            | Self::RenewSystemKeys
            | Self::ScheduleShred
            | Self::CancelShred
            | Self::Shred
            | Self::RemoveDek
            | Self::QuarantineDek
            | Self::ReleaseDek
            | Self::AdminForgetNode
            | Self::AdminAcceptRestore
            | Self::BackupPush
            | Self::ConfirmCopy
            | Self::WaiveCopy
            | Self::BackupReadBack
            | Self::RecordDatabaseBackup
            | Self::RecordDrill
            | Self::TokenCreate
            | Self::TokenRevoke => true,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "secret.get",
            Self::BatchGet => "secret.batch-get",
            Self::List => "secret.list",
            Self::Versions => "secret.versions",
            Self::Set => "secret.set",
            Self::BatchSet => "secret.batch-set",
            Self::Rollback => "secret.rollback",
            Self::Delete => "secret.delete",
            Self::Undelete => "secret.undelete",
            Self::Destroy => "secret.destroy",
            Self::AdminTenants => "admin.tenants",
            Self::Authenticate => "authenticate",
            Self::AdminStatus => "admin.status",
            Self::RotateMaster => "admin.rotate-master",
            Self::RotationDryRun => "admin.rotate-master.dry-run",
            Self::StageMaster => "admin.rotate-master.stage",
            Self::FlipMaster => "admin.rotate-master.flip",
            Self::RetireMaster => "admin.rotate-master.retire",
            Self::AbortRotation => "admin.rotate-master.abort",
            Self::DestroyMaster => "admin.rotate-master.destroy-old",
            Self::FollowRotation => "admin.rotate-master.follow",
            Self::RotationKeys => "admin.rotate-master.keys",
            Self::RotateDek => "admin.rotate-dek",
            Self::FollowRotateDek => "admin.rotate-dek.follow",
            Self::Reencrypt => "admin.reencrypt",
            Self::Reseal => "secret.reseal",
            Self::RenewSystemKeys => "admin.renew-system-keys",
            Self::ScheduleShred => "admin.shred.schedule",
            Self::CancelShred => "admin.shred.cancel",
            Self::Shred => "admin.shred",
            Self::RemoveDek => "admin.remove-dek",
            Self::QuarantineDek => "admin.quarantine",
            Self::ReleaseDek => "admin.quarantine.release",
            Self::AdminNodes => "admin.nodes",
            Self::AdminForgetNode => "admin.forget-node",
            Self::AdminRestorePlan => "admin.restore-plan",
            Self::AdminAcceptRestore => "admin.accept-restore",
            Self::AdminDoctor => "admin.doctor",
            Self::RecordDatabaseBackup => "backup.record-database",
            Self::RecordDrill => "backup.record-drill",
            Self::BackupPush => "backup.push",
            Self::FollowBackupPush => "backup.push.follow",
            Self::BackupList => "backup.list",
            Self::ConfirmCopy => "backup.confirm",
            Self::WaiveCopy => "backup.waive",
            Self::BackupReadBack => "backup.read-back",
            Self::TokenCreate => "token.create",
            Self::TokenList => "token.list",
            Self::TokenRevoke => "token.revoke",
            Self::Unknown => "unknown",
        }
    }
}

/// Which version of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Current,
    Number(SecretVersion),
}

/// What a write demands of the secret before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Anything,
    /// There is no readable secret: none of that name, a deleted one, or one whose current version is destroyed.
    Absent,
    /// The secret is readable and this is its current version.
    Current(SecretVersion),
}

/// How a write came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub secret: SecretRecord,
    pub outcome: WriteOutcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Version 1 of a name that never was.
    Created,
    /// A further version, after a delete too.
    Updated,
    /// The same value: no version was made. A delivery that was given is stored all the same.
    Unchanged,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Whether more follow the last item.
    pub more: bool,
}
