//! What records say of secret versions and tokens, held against what is there.

use std::collections::{BTreeSet, HashMap};

use super::line::Line;
use crate::model::Action;

/// A version of a secret, as records name it.
pub type Version = (String, String, u64);

#[derive(Default)]
pub(super) struct Versions {
    blobs: HashMap<Version, Blobs>,
    revoked: BTreeSet<String>,
}

/// What was recorded of a version's ciphertexts.
#[derive(Default)]
struct Blobs {
    put: BTreeSet<String>,
    replaced: BTreeSet<String>,
    is_destroyed: bool,
}

impl Versions {
    pub(super) fn remember(&mut self, parsed: &Line) {
        if let Some(token) = &parsed.token
            && parsed.action == Action::TokenRevoke.as_str()
            && parsed.outcome == "ok"
        {
            self.revoked.insert(token.clone());
        }
        let (Some(tenant), Some(name), Some(version)) = (&parsed.tenant, &parsed.name, parsed.version) else { return };
        let blobs = self.blobs.entry((tenant.clone(), name.clone(), version)).or_default();
        blobs.put.extend(parsed.blob_sha256.clone());
        blobs.replaced.extend(parsed.replaces_sha256.clone());
        blobs.is_destroyed |= parsed.action == Action::Destroy.as_str() && parsed.outcome == "ok";
    }

    pub(super) fn was_revoked(&self, token: &str) -> bool {
        self.revoked.contains(token)
    }

    pub(super) fn knows(&self, version: &Version, blob: &[u8; 32]) -> bool {
        let blob = data_encoding::HEXLOWER.encode(blob);
        self.blobs
            .get(version)
            .is_some_and(|blobs| !blobs.is_destroyed && blobs.put.contains(&blob) && !blobs.replaced.contains(&blob))
    }

    /// What is wrong with a version that is live. `before_the_trail`: it was made before there were records of writes.
    pub(super) fn wrong(&self, version: &Version, blob: &[u8; 32], before_the_trail: bool) -> Option<&'static str> {
        let blob = data_encoding::HEXLOWER.encode(blob);
        match self.blobs.get(version) {
            Some(blobs) if blobs.is_destroyed => Some("was destroyed, and is there again"),
            Some(blobs) if blobs.put.contains(&blob) && !blobs.replaced.contains(&blob) => None,
            Some(blobs) if blobs.put.is_empty() && before_the_trail => None,
            Some(blobs) if blobs.replaced.contains(&blob) => {
                Some("is an old row: it was sealed anew since, and was put back")
            }
            Some(blobs) if !blobs.put.is_empty() => {
                Some("is not what was written: another ciphertext was put in its place")
            }
            _ if before_the_trail => None,
            _ => Some("has no record of its write"),
        }
    }
}
