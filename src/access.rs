//! Who calls, and what they may. Authorization is decided here and nowhere else, always before the store; a [`Grant`] is the proof of
//! it, which use-cases ask for and only this room can make.
//!
//! A caller is root or the daemon's own user on the socket (all, and the only administrators), a uid that `[[socket_users]]` names, or
//! whoever presents a bearer credential, a token of this daemon or a JWT of an issuer that `[[oidc]]` names: what has a [`Scope`] has nothing beyond it. A credential that is presented counts, whoever
//! sends it: root with a token has the token's rights.

mod bearer;
mod jwt;
mod revoked;
mod seldom;
mod token;
mod tokens;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::model::{IssuerName, Names, Scope, SecretName, Tenant, TokenId};

pub use crate::model::Permission;
pub use jwt::{IssuerKeysError, Issuers, KeysState, TRY_AGAIN, check_issuers};
pub use revoked::RevokedHere;
pub use token::{MadeToken, make_token};
pub use tokens::{POLL, RowSealer, TokenKey, Tokens};

use bearer::Credential;

/// Who a caller is, as audit records name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A process of this host, by its socket's peer credentials.
    Socket { uid: u32, pid: Option<i32> },
    /// A token, by its public id.
    Token { id: TokenId },
    /// Whom an issuer's JWT is about; the subject is visible ASCII.
    Issued { issuer: IssuerName, subject: Arc<str> },
}

impl Identity {
    /// The peer's process, where there is one.
    #[must_use]
    pub const fn pid(&self) -> Option<i32> {
        match self {
            Self::Socket { pid, .. } => *pid,
            Self::Token { .. } | Self::Issued { .. } => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { uid, .. } => write!(f, "uid:{uid}"),
            Self::Token { id } => write!(f, "token:{id}"),
            // An issuer's name has no `#`.
            Self::Issued { issuer, subject } => write!(f, "oidc:{issuer}#{subject}"),
        }
    }
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    identity: Identity,
    rights: Rights,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rights {
    /// Every tenant, every permission, and administration.
    All,
    Some(Arc<Scope>),
    None,
}

impl Caller {
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Under what the caller's requests are counted; `None` for an administrator, who must be able to act while others flood the daemon,
    /// and could stop it anyway.
    pub fn rate_key(&self) -> Option<RateKey> {
        (self.rights != Rights::All).then(|| RateKey(self.identity.to_string().into()))
    }

    /// Somebody who proved who they are otherwise than by the socket.
    const fn scoped(identity: Identity, scope: Arc<Scope>) -> Self {
        Self { identity, rights: Rights::Some(scope) }
    }
}

/// An identity as limits tell one from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RateKey(Box<str>);

/// Why nobody is known to call. What is wrong with a credential is for the log: who guesses learns nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    #[error("the caller is not known: give `Authorization: Bearer` with a token")]
    Missing,
    #[error("give one Authorization header, of the form `Bearer TOKEN`")]
    Malformed,
    #[error("the credential is not valid: it is unknown, expired or revoked")]
    Invalid,
    /// What is needed to tell is away. Why is for the log too: anybody can ask.
    #[error("the credential cannot be checked now; the daemon's log says why")]
    Unavailable,
}

/// A caller may not do what they asked for. The same whether or not the tenant exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error(
        "uid {uid} has no rights here: the socket serves root, the daemon's own user, and whom [[socket_users]] names"
    )]
    Stranger { uid: u32 },
    #[error("no right to {permission} this: the caller's tenants, names or permissions do not cover it")]
    Beyond { permission: Permission },
    #[error("administration is for root and the daemon's own user, on the socket and without a token")]
    NoAdministrator,
}

/// Proof that a caller may do something to a tenant, on secrets of some names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    tenant: Tenant,
    permission: Permission,
    /// `None`: every name.
    scope: Option<Arc<Scope>>,
    identity: Identity,
}

impl Grant {
    pub const fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    pub const fn permission(&self) -> Permission {
        self.permission
    }

    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Which names it is for.
    pub fn names(&self) -> &Names {
        self.scope.as_ref().map_or(&Names::Any, |scope| scope.names())
    }

    /// Whether it is for a secret of this name: asked for each name that a body holds, before the store.
    ///
    /// # Errors
    /// [`Denied::Beyond`].
    pub fn covers(&self, name: &SecretName) -> Result<(), Denied> {
        if self.names().cover(name) { Ok(()) } else { Err(Denied::Beyond { permission: self.permission }) }
    }
}

/// Proof that a caller is an administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminGrant {
    identity: Identity,
}

impl AdminGrant {
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// The rules.
pub struct Access {
    own_uid: u32,
    socket_users: HashMap<u32, Arc<Scope>>,
    tokens: Tokens,
    issuers: Issuers,
}

impl Access {
    /// `own_uid`: the daemon's effective user; `socket_users`: further users of this host, by uid.
    #[must_use]
    pub const fn new(own_uid: u32, socket_users: HashMap<u32, Arc<Scope>>, tokens: Tokens, issuers: Issuers) -> Self {
        Self { own_uid, socket_users, tokens, issuers }
    }

    /// What is remembered of tokens.
    #[must_use]
    pub const fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Whose JWTs are taken.
    #[must_use]
    pub const fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    /// The process at the other end of a socket: root and the daemon's own user may do all, others what the settings say.
    pub fn socket_peer(&self, uid: u32, pid: Option<i32>) -> Caller {
        let rights = match self.socket_users.get(&uid) {
            _ if uid == 0 || uid == self.own_uid => Rights::All,
            Some(scope) => Rights::Some(Arc::clone(scope)),
            None => Rights::None,
        };
        Caller { identity: Identity::Socket { uid, pid }, rights }
    }

    /// Whoever presents this credential. The one place that tells kinds of credentials apart.
    ///
    /// # Errors
    /// [`Unauthenticated`].
    pub async fn bearer(&self, credential: &str) -> Result<Caller, Unauthenticated> {
        match Credential::of(credential) {
            Credential::Token(text) => self.tokens.check(text).await,
            Credential::Jwt(text) => self.issuers.check(text).await,
        }
    }

    /// Whether the caller has any right at all: asked before a body is read whose target is not known yet.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn authenticate(&self, caller: &Caller) -> Result<(), Denied> {
        match (&caller.rights, &caller.identity) {
            (Rights::None, Identity::Socket { uid, .. }) => Err(Denied::Stranger { uid: *uid }),
            (Rights::None, _) => Err(Denied::NoAdministrator),
            (Rights::All | Rights::Some(_), _) => Ok(()),
        }
    }

    /// `name`: where the path names the secret. What a body names, the grant is asked for with [`Grant::covers`].
    ///
    /// # Errors
    /// [`Denied`].
    pub fn authorize(
        &self,
        caller: &Caller,
        permission: Permission,
        tenant: &Tenant,
        name: Option<&SecretName>,
    ) -> Result<Grant, Denied> {
        self.authenticate(caller)?;
        let scope = match &caller.rights {
            Rights::All => None,
            Rights::Some(scope) if scope.allows(permission, tenant) => Some(Arc::clone(scope)),
            Rights::Some(_) | Rights::None => return Err(Denied::Beyond { permission }),
        };
        let grant = Grant { tenant: tenant.clone(), permission, scope, identity: caller.identity.clone() };
        name.map_or(Ok(()), |name| grant.covers(name))?;
        Ok(grant)
    }

    /// # Errors
    /// [`Denied`].
    pub fn authorize_admin(&self, caller: &Caller) -> Result<AdminGrant, Denied> {
        self.authenticate(caller)?;
        match &caller.rights {
            Rights::All => Ok(AdminGrant { identity: caller.identity.clone() }),
            Rights::Some(_) | Rights::None => Err(Denied::NoAdministrator),
        }
    }
}

#[cfg(test)]
mod tests;
