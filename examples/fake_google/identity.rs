//! Who asks. Each identity has a port of its own and exactly the permissions that the terraform module grants it.

/// An identity and what it may do.
pub(crate) struct Identity {
    pub(crate) name: &'static str,
    permissions: Permissions,
}

enum Permissions {
    All,
    These(&'static [&'static str]),
    /// Of projects for offsite copies only, whose id ends in `-offsite`.
    Offsite(&'static [&'static str]),
}

/// `roles/secretmanager.secretAccessor` and {versions.get, versions.list}.
const RESTORE: &[&str] =
    &["secretmanager.versions.access", "secretmanager.versions.get", "secretmanager.versions.list"];

pub(crate) const IDENTITIES: &[Identity] = &[
    // Whoever runs terraform, and gcloud by hand.
    Identity { name: "owner", permissions: Permissions::All },
    // `roles/secretmanager.secretVersionAdder` and the custom role {secrets.get, versions.get, versions.list}.
    Identity {
        name: "daemon",
        permissions: Permissions::These(&[
            "secretmanager.versions.add",
            "secretmanager.secrets.get",
            "secretmanager.versions.get",
            "secretmanager.versions.list",
            // `roles/cloudkms.cryptoKeyDecrypter`.
            "cloudkms.cryptoKeyVersions.useToDecrypt",
        ]),
    },
    Identity { name: "restore", permissions: Permissions::These(RESTORE) },
    Identity { name: "drill", permissions: Permissions::Offsite(RESTORE) },
    Identity { name: "nobody", permissions: Permissions::These(&[]) },
    // `roles/cloudkms.cryptoKeyEncrypterDecrypter`: who wraps.
    Identity {
        name: "operator",
        permissions: Permissions::These(&[
            "cloudkms.cryptoKeyVersions.useToEncrypt",
            "cloudkms.cryptoKeyVersions.useToDecrypt",
        ]),
    },
    // `roles/cloudkms.cryptoKeyEncrypter`.
    Identity { name: "wrapper", permissions: Permissions::These(&["cloudkms.cryptoKeyVersions.useToEncrypt"]) },
];

impl Identity {
    pub(crate) fn may(&self, permission: &str, project: &str) -> bool {
        match self.permissions {
            Permissions::All => true,
            Permissions::These(list) => list.contains(&permission),
            Permissions::Offsite(list) => project.ends_with("-offsite") && list.contains(&permission),
        }
    }
}
