//! Here and not in `tests/`: a fixed salt, a master key's bytes and the primitives are no public calls.

mod chain;
mod format;
mod image;
mod refusals;
mod types;
mod vectors;
mod with_reference;
mod wycheproof;

use super::secret::Bytes32;
use super::*;
use zeroize::Zeroizing;

fn fixed_32(first: u8) -> Bytes32 {
    Bytes32::filled(|out| out.iter_mut().zip(first..).for_each(|(byte, next)| *byte = next))
}

fn tenant(name: &str) -> Tenant {
    Tenant::parse(name).unwrap()
}

fn secret_name(name: &str) -> SecretName {
    SecretName::parse(name).unwrap()
}

fn version(number: u64) -> SecretVersion {
    SecretVersion::new(number).unwrap()
}

fn dek_version(number: u32) -> DekVersion {
    DekVersion::new(number).unwrap()
}

fn value(bytes: &[u8]) -> SecretValue {
    SecretValue::new(Zeroizing::new(bytes.to_vec()))
}

/// Where a value is sealed, owned, so that a test can move it elsewhere one part at a time.
#[derive(Clone)]
struct At {
    tenant: Tenant,
    name: SecretName,
    dek_version: DekVersion,
    version: SecretVersion,
}

impl At {
    fn new(in_tenant: &str, name: &str, dek: u32, number: u64) -> Self {
        Self {
            tenant: tenant(in_tenant),
            name: secret_name(name),
            dek_version: dek_version(dek),
            version: version(number),
        }
    }

    fn secret(&self) -> SecretPlace<'_> {
        SecretPlace { tenant: &self.tenant, name: &self.name, dek_version: self.dek_version, version: self.version }
    }

    fn dek(&self) -> DekPlace<'_> {
        DekPlace { tenant: &self.tenant, version: self.dek_version }
    }
}

fn alice() -> At {
    At::new("alice", "OPENAI_API_KEY", 1, 7)
}
