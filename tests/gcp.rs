//! Google's client against the fake over real HTTP: what it does, who may, what goes wrong, and that it keeps silent about keys.

mod calls;
mod environment;
mod faults;
mod identities;
mod kms;

use std::num::NonZeroU64;
use std::time::Duration;

use containarium::crypto::KeyfileImage;
use containarium::gcp::{Endpoint, GcpError, Limits, SecretManager, VersionNumber};
use containarium::model::SecretPath;

use crate::support::google::{Google, SECRET};

/// As much patience as a fault takes, and no more.
const SHORT: Duration = Duration::from_millis(900);

fn secret() -> SecretPath {
    SecretPath::parse(SECRET).unwrap()
}

fn number(number: u64) -> VersionNumber {
    NonZeroU64::new(number).unwrap().into()
}

fn image(bytes: &[u8]) -> KeyfileImage {
    KeyfileImage::read_from(&mut &*bytes).unwrap()
}

fn bytes(image: &KeyfileImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut bytes).unwrap();
    bytes
}

/// The client as an identity has it, with the design's patience.
fn client(google: &Google, identity: &str) -> SecretManager {
    client_at(&google.url(identity), Limits::default())
}

fn hasty(google: &Google, identity: &str) -> SecretManager {
    client_at(&google.url(identity), Limits::within(SHORT))
}

fn client_at(url: &str, limits: Limits) -> SecretManager {
    SecretManager::connect(&Endpoint::parse(url).unwrap(), limits, &secret()).unwrap()
}

fn error<T>(outcome: Result<T, GcpError>) -> GcpError {
    outcome.err().expect("an error")
}
