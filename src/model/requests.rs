//! What is asked of secrets and what comes of it, in words that every room shares.

use super::{SecretRecord, SecretVersion};

/// What a caller does, as audit records name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
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
    /// A path or a method that no route takes.
    Unknown,
}

impl Action {
    /// Whether it changes a secret.
    pub const fn changes(self) -> bool {
        matches!(self, Self::Set | Self::BatchSet | Self::Rollback | Self::Delete | Self::Undelete | Self::Destroy)
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
            Self::AdminStatus => "admin.status",
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
