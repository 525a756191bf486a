//! The words of the product as types: ids, names, states and records. Parse, don't validate: a value of one of these types has
//! passed its rule, so nothing below checks again. No key and no secret value is ever in a model type.

mod access;
mod address;
mod backups;
mod google;
mod ids;
mod issuers;
mod names;
mod records;
mod requests;
mod states;
mod tokens;
mod wrapped;

pub use access::{NamePattern, Names, Permission, Scope, ScopeError};
pub use address::network;
pub use backups::{DatabaseBackup, Drill};
pub use google::{SecretPath, SecretPathError};
pub use ids::{BootId, DekId, DekVersion, Kid, Micros, NodeId, SecretVersion};
pub use issuers::{
    ClaimPattern, ClaimPlace, ClaimTest, Issuer, IssuerError, IssuerKeys, IssuerName, KeySetPlace, PublicAlgorithm,
    Rule, Wanted,
};
pub use names::{NameError, SecretName, Tenant};
pub use records::{
    Counts, DekBody, DekRecord, EscrowRecord, KeyState, Lease, MasterKeyRecord, NODE_LIVE, NodeRecord, SecretRecord,
    TenantRecord, Unread, VersionBody, VersionRecord, WrappedDek,
};
pub use requests::{Action, Expect, Page, Which, WriteOutcome, Written};
pub use states::{
    CopyLoss, DekState, Delivery, EscrowKind, KeyMode, KeyPhase, MasterKeyState, StoreKind, UnknownState,
};
pub use tokens::{Label, TokenError, TokenId, TokenRecord, WhichTokens};
pub use wrapped::{KmsKey, KmsKeyError, WrappedError, WrappedMaster, Wrapping};

/// The most bytes a secret's value may have.
pub const MAX_VALUE_BYTES: usize = 65_536;
