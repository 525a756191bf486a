//! Who calls, and what they may. Authorization is decided here and nowhere else, always before the store; a [`Grant`] is the proof of
//! it, which use-cases ask for and only this room can make.

use std::fmt;

use crate::model::Tenant;

/// Who a caller is, as audit records name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A process of this host, by its socket's peer credentials.
    Socket { uid: u32, pid: Option<i32> },
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { uid, .. } => write!(f, "uid:{uid}"),
        }
    }
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    identity: Identity,
    rights: Rights,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    /// Every tenant, every permission, and administration.
    All,
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
}

/// An identity as limits tell one from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RateKey(Box<str>);

/// What a caller may be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    Read,
    /// Metadata, versions too.
    List,
    /// Set and roll back.
    Write,
    /// Delete and undelete.
    Delete,
    Destroy,
}

/// A caller may not do what they asked for. The same whether or not the tenant exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("uid {uid} has no rights here: the socket serves root and the daemon's own user")]
pub struct Denied {
    uid: u32,
}

/// Proof that a caller may do something to a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    tenant: Tenant,
    permission: Permission,
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
#[derive(Debug, Clone)]
pub struct Access {
    own_uid: u32,
}

impl Access {
    /// `own_uid`: the daemon's effective user.
    pub const fn new(own_uid: u32) -> Self {
        Self { own_uid }
    }

    /// The process at the other end of a socket: root and the daemon's own user may do all, others nothing.
    pub const fn socket_peer(&self, uid: u32, pid: Option<i32>) -> Caller {
        let rights = if uid == 0 || uid == self.own_uid { Rights::All } else { Rights::None };
        Caller { identity: Identity::Socket { uid, pid }, rights }
    }

    /// Whether the caller has any right at all: asked before a body is read whose target is not known yet.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn authenticate(&self, caller: &Caller) -> Result<(), Denied> {
        Self::allowed(caller).map(drop)
    }

    /// # Errors
    /// [`Denied`].
    pub fn authorize(&self, caller: &Caller, permission: Permission, tenant: &Tenant) -> Result<Grant, Denied> {
        let identity = Self::allowed(caller)?;
        Ok(Grant { tenant: tenant.clone(), permission, identity })
    }

    /// # Errors
    /// [`Denied`].
    pub fn authorize_admin(&self, caller: &Caller) -> Result<AdminGrant, Denied> {
        Ok(AdminGrant { identity: Self::allowed(caller)? })
    }

    fn allowed(caller: &Caller) -> Result<Identity, Denied> {
        match (caller.rights, &caller.identity) {
            (Rights::All, identity) => Ok(identity.clone()),
            (Rights::None, Identity::Socket { uid, .. }) => Err(Denied { uid: *uid }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_daemons_own_user_may_do_all_and_others_nothing() {
        let access = Access::new(1000);
        let tenant = Tenant::parse("alice").unwrap();
        for (uid, may) in [(0, true), (1000, true), (1001, false), (u32::MAX, false)] {
            let caller = access.socket_peer(uid, None);
            for permission in
                [Permission::Read, Permission::List, Permission::Write, Permission::Delete, Permission::Destroy]
            {
                assert_eq!(access.authorize(&caller, permission, &tenant).is_ok(), may, "{uid} {permission:?}");
            }
            assert_eq!(access.authorize_admin(&caller).is_ok(), may, "{uid}");
            assert_eq!(access.authenticate(&caller).is_ok(), may, "{uid}");
        }
    }
}
