//! Cloud KMS: symmetric keys in memory, with versions, a primary one, states and real AES-256-GCM; Google's paths, answers and refusals.

use std::collections::BTreeMap;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use data_encoding::{BASE64, BASE64URL};
use serde_json::{Value, json};

use super::api::{ApiError, Call, Enums, now, number_of_project};
use super::faults::Fault;

#[derive(Default)]
pub(crate) struct Kms {
    /// Names of key rings, their project by number.
    rings: Vec<String>,
    /// By name, its project by number.
    keys: BTreeMap<String, Key>,
}

struct Key {
    versions: Vec<Version>,
    /// From 1.
    primary: usize,
    created: String,
}

struct Version {
    key: [u8; 32],
    state: State,
    created: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Enabled = 1,
    Disabled = 2,
    Destroyed = 3,
    DestroyScheduled = 4,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
            Self::Destroyed => "DESTROYED",
            Self::DestroyScheduled => "DESTROY_SCHEDULED",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Enabled, Self::Disabled].into_iter().find(|state| state.name() == text)
    }

    /// As google.rpc.PreconditionFailure names the condition.
    const fn violation(self) -> &'static str {
        match self {
            Self::Disabled => "KEY_DISABLED",
            _ => "KEY_DESTROYED",
        }
    }

    fn json(self, enums: Enums) -> Value {
        match enums {
            Enums::Names => json!(self.name()),
            Enums::Numbers => json!(self as u8),
        }
    }
}

/// What a path asks for; rings, keys and versions by their full names, the project by number.
enum Target {
    Rings(String),
    Keys(String),
    Key(String),
    Versions(String),
    Version(String, usize),
}

/// The operation that a request asks for, as faults and the list of requests name it.
pub(crate) fn operation(method: &str, path: &str) -> Option<&'static str> {
    let (resource, verb) = split(path);
    let (_, target) = target(resource)?;
    Some(match (method, target, verb) {
        ("POST", Target::Rings(_), "") => "create-ring",
        ("POST", Target::Keys(_), "") => "create-key",
        ("GET", Target::Key(_), "") => "get-key",
        ("POST", Target::Key(_) | Target::Version(..), "encrypt") => "encrypt",
        ("POST", Target::Key(_), "decrypt") => "decrypt",
        ("POST", Target::Key(_), "updatePrimaryVersion") => "set-primary",
        ("POST", Target::Versions(_), "") => "create-key-version",
        ("GET", Target::Versions(_), "") => "list-key-versions",
        ("GET", Target::Version(..), "") => "get-key-version",
        ("PATCH", Target::Version(..), "") => "update-key-version",
        ("POST", Target::Version(..), "destroy") => "destroy-key-version",
        ("POST", Target::Version(..), "restore") => "restore-key-version",
        _ => return None,
    })
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once(':').unwrap_or((path, ""))
}

/// The project as it was asked for, and the target.
fn target(resource: &str) -> Option<(&str, Target)> {
    let parts: Vec<&str> = resource.strip_prefix("/v1/projects/")?.split('/').collect();
    let (project, rest) = parts.split_first()?;
    let number = number_of_project(project);
    let target = match *rest {
        ["locations", location, "keyRings"] => Target::Rings(format!("projects/{number}/locations/{location}")),
        ["locations", location, "keyRings", ring, "cryptoKeys", ref key @ ..] => {
            let ring = format!("projects/{number}/locations/{location}/keyRings/{ring}");
            match *key {
                [] => Target::Keys(ring),
                [key] => Target::Key(format!("{ring}/cryptoKeys/{key}")),
                [key, "cryptoKeyVersions"] => Target::Versions(format!("{ring}/cryptoKeys/{key}")),
                [key, "cryptoKeyVersions", version] => {
                    Target::Version(format!("{ring}/cryptoKeys/{key}"), version.parse().ok()?)
                }
                _ => return None,
            }
        }
        _ => return None,
    };
    Some((project, target))
}

impl Kms {
    pub(crate) fn call(&mut self, operation: &str, call: &Call<'_>) -> Result<Value, ApiError> {
        let (resource, _) = split(call.path);
        let (project, target) = target(resource).ok_or_else(ApiError::no_route)?;
        let permission = match operation {
            "create-ring" => "cloudkms.keyRings.create",
            "create-key" => "cloudkms.cryptoKeys.create",
            "get-key" => "cloudkms.cryptoKeys.get",
            "encrypt" => "cloudkms.cryptoKeyVersions.useToEncrypt",
            "decrypt" => "cloudkms.cryptoKeyVersions.useToDecrypt",
            "set-primary" => "cloudkms.cryptoKeys.update",
            "create-key-version" => "cloudkms.cryptoKeyVersions.create",
            "list-key-versions" => "cloudkms.cryptoKeyVersions.list",
            "get-key-version" => "cloudkms.cryptoKeyVersions.get",
            "update-key-version" => "cloudkms.cryptoKeyVersions.update",
            "destroy-key-version" => "cloudkms.cryptoKeyVersions.destroy",
            "restore-key-version" => "cloudkms.cryptoKeyVersions.restore",
            _ => return Err(ApiError::no_route()),
        };
        if !call.identity.may(permission, project) {
            return Err(ApiError::denied(permission, resource));
        }
        match target {
            Target::Rings(parent) => self.create_ring(&parent, call),
            Target::Keys(ring) => self.create_key(&ring, call),
            Target::Key(name) if operation == "encrypt" => {
                let key = self.key(&name)?;
                key.encrypt(&name, key.primary, call)
            }
            Target::Key(name) if operation == "decrypt" => self.key(&name)?.decrypt(&name, call),
            Target::Key(name) if operation == "set-primary" => {
                let key = self.key(&name)?;
                let id = call.body.get("cryptoKeyVersionId").and_then(Value::as_str).and_then(|id| id.parse().ok());
                let number = id.ok_or_else(|| ApiError::invalid("cryptoKeyVersionId is no number"))?;
                key.usable(&name, number)?;
                key.primary = number;
                key.json(&name, call.enums)
            }
            Target::Key(name) => self.key(&name)?.json(&name, call.enums),
            Target::Versions(name) if operation == "create-key-version" => {
                let key = self.key(&name)?;
                key.versions.push(Version::make()?);
                key.version_json(&name, key.versions.len(), call.enums)
            }
            Target::Versions(name) => {
                let key = self.key(&name)?;
                let all = (1..=key.versions.len()).map(|number| key.version_json(&name, number, call.enums));
                let all: Vec<Value> = all.collect::<Result<_, _>>()?;
                Ok(json!({"totalSize": all.len(), "cryptoKeyVersions": all}))
            }
            Target::Version(name, number) => self.key(&name)?.version_call(operation, &name, number, call),
        }
    }

    fn create_ring(&mut self, parent: &str, call: &Call<'_>) -> Result<Value, ApiError> {
        let name = format!("{parent}/keyRings/{}", call.query("keyRingId").unwrap_or_default());
        if self.rings.contains(&name) {
            return Err(ApiError::new(409, "ALREADY_EXISTS", format!("KeyRing {name} already exists.")));
        }
        self.rings.push(name.clone());
        Ok(json!({"name": name, "createTime": now()}))
    }

    fn create_key(&mut self, ring: &str, call: &Call<'_>) -> Result<Value, ApiError> {
        if !self.rings.iter().any(|there| there == ring) {
            return Err(ApiError::new(404, "NOT_FOUND", format!("KeyRing {ring} not found.")));
        }
        let name = format!("{ring}/cryptoKeys/{}", call.query("cryptoKeyId").unwrap_or_default());
        if self.keys.contains_key(&name) {
            return Err(ApiError::new(409, "ALREADY_EXISTS", format!("CryptoKey {name} already exists.")));
        }
        self.keys.insert(name.clone(), Key { versions: vec![Version::make()?], primary: 1, created: now() });
        self.key(&name)?.json(&name, call.enums)
    }

    fn key(&mut self, name: &str) -> Result<&mut Key, ApiError> {
        self.keys.get_mut(name).ok_or_else(|| ApiError::new(404, "NOT_FOUND", format!("CryptoKey {name} not found.")))
    }
}

impl Key {
    fn version(&self, name: &str, number: usize) -> Result<&Version, ApiError> {
        let found = number.checked_sub(1).and_then(|at| self.versions.get(at));
        let missing = || format!("CryptoKeyVersion {name}/cryptoKeyVersions/{number} not found.");
        found.ok_or_else(|| ApiError::new(404, "NOT_FOUND", missing()))
    }

    fn usable(&self, name: &str, number: usize) -> Result<&Version, ApiError> {
        let version = self.version(name, number)?;
        if version.state == State::Enabled {
            return Ok(version);
        }
        let subject = format!("{name}/cryptoKeyVersions/{number}");
        let message = format!("{subject} is not enabled, current state is: {}.", version.state.name());
        let failure = json!({
            "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
            "violations": [{"type": version.state.violation(), "subject": subject, "description": message}],
        });
        let error = json!({"code": 400, "message": message, "status": "FAILED_PRECONDITION", "details": [failure]});
        Err(ApiError { status: 400, body: json!({"error": error}) })
    }

    fn encrypt(&self, name: &str, number: usize, call: &Call<'_>) -> Result<Value, ApiError> {
        let version = self.usable(name, number)?;
        let plaintext = bytes(call, "plaintext")?;
        let aad = bytes(call, "additionalAuthenticatedData")?;
        if !(1..=65_536).contains(&plaintext.len()) {
            return Err(ApiError::invalid("the plaintext must have 1 to 65536 bytes"));
        }
        let nonce: [u8; 12] = random()?;
        let sealed = version.cipher().encrypt(&Nonce::from(nonce), Payload { msg: &plaintext, aad: &aad });
        let sealed = sealed.map_err(|_| ApiError::new(500, "INTERNAL", "it cannot be encrypted"))?;
        let number_bytes = u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
        let ciphertext = [number_bytes.as_slice(), &nonce, &sealed].concat();
        Ok(json!({
            "name": format!("{}/cryptoKeyVersions/{number}", as_asked(call)),
            "ciphertext": BASE64.encode(&ciphertext),
            "ciphertextCrc32c": crc32c::crc32c(&ciphertext).to_string(),
            "verifiedPlaintextCrc32c": call.body.get("plaintextCrc32c").is_some(),
            "verifiedAdditionalAuthenticatedDataCrc32c":
                call.body.get("additionalAuthenticatedDataCrc32c").is_some(),
            "protectionLevel": protection(call.enums),
        }))
    }

    fn decrypt(&self, name: &str, call: &Call<'_>) -> Result<Value, ApiError> {
        let ciphertext = bytes(call, "ciphertext")?;
        let aad = bytes(call, "additionalAuthenticatedData")?;
        let invalid = || ApiError::invalid("Decryption failed: verify that 'name' refers to the correct CryptoKey.");
        let (number, rest) = ciphertext.split_first_chunk::<4>().ok_or_else(invalid)?;
        let (nonce, sealed) = rest.split_first_chunk::<12>().ok_or_else(invalid)?;
        let number = usize::try_from(u32::from_be_bytes(*number)).map_err(|_| invalid())?;
        if number == 0 || number > self.versions.len() {
            return Err(invalid());
        }
        let version = self.usable(name, number)?;
        let opened = version.cipher().decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad: &aad });
        let plaintext = opened.map_err(|_| invalid())?;
        Ok(json!({
            "plaintext": BASE64.encode(&plaintext),
            "plaintextCrc32c": crc32c::crc32c(&plaintext).to_string(),
            "usedPrimary": number == self.primary,
            "protectionLevel": protection(call.enums),
        }))
    }

    fn version_call(&mut self, operation: &str, name: &str, number: usize, call: &Call<'_>) -> Result<Value, ApiError> {
        let before = self.version(name, number)?.state;
        let refused = || ApiError::new(400, "FAILED_PRECONDITION", format!("it is {}", before.name()));
        let state = match operation {
            "encrypt" => return self.encrypt(name, number, call),
            "get-key-version" => before,
            "update-key-version" => {
                let asked = call.body.get("state").and_then(Value::as_str).and_then(State::parse);
                let asked = asked.ok_or_else(|| ApiError::invalid("state must be ENABLED or DISABLED"))?;
                if matches!(before, State::Enabled | State::Disabled) { asked } else { return Err(refused()) }
            }
            // A second time it is as if its date had come: nobody brings it back.
            "destroy-key-version" if before == State::DestroyScheduled => State::Destroyed,
            "destroy-key-version" if before != State::Destroyed => State::DestroyScheduled,
            "restore-key-version" if before == State::DestroyScheduled => State::Disabled,
            _ => return Err(refused()),
        };
        if let Some(version) = number.checked_sub(1).and_then(|at| self.versions.get_mut(at)) {
            version.state = state;
            if state == State::Destroyed {
                version.key = [0; 32];
            }
        }
        self.version_json(name, number, call.enums)
    }

    fn json(&self, name: &str, enums: Enums) -> Result<Value, ApiError> {
        let purpose = match enums {
            Enums::Names => json!("ENCRYPT_DECRYPT"),
            Enums::Numbers => json!(1),
        };
        let primary = self.version_json(name, self.primary, enums)?;
        Ok(json!({"name": name, "purpose": purpose, "createTime": self.created, "primary": primary}))
    }

    fn version_json(&self, name: &str, number: usize, enums: Enums) -> Result<Value, ApiError> {
        let version = self.version(name, number)?;
        Ok(json!({
            "name": format!("{name}/cryptoKeyVersions/{number}"),
            "state": version.state.json(enums),
            "createTime": version.created,
            "protectionLevel": protection(enums),
        }))
    }
}

impl Version {
    fn make() -> Result<Self, ApiError> {
        Ok(Self { key: random()?, state: State::Enabled, created: now() })
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(&self.key.into())
    }
}

/// The key's name as the request has it: gcloud refuses an answer that names its project by number.
fn as_asked<'a>(call: &Call<'a>) -> &'a str {
    let resource = split(call.path).0.trim_start_matches("/v1/");
    resource.split_once("/cryptoKeyVersions/").map_or(resource, |(key, _)| key)
}

fn protection(enums: Enums) -> Value {
    match enums {
        Enums::Names => json!("HSM"),
        Enums::Numbers => json!(2),
    }
}

#[expect(clippy::disallowed_methods, reason = "a server of its own, with keys of its own")]
fn random<const N: usize>() -> Result<[u8; N], ApiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| ApiError::new(500, "INTERNAL", "no random bytes"))?;
    Ok(bytes)
}

/// A field of bytes, its checksum compared where one came; absent is empty.
fn bytes(call: &Call<'_>, field: &str) -> Result<Vec<u8>, ApiError> {
    let text = call.body.get(field).and_then(Value::as_str).unwrap_or_default();
    // gcloud sends the URL-safe alphabet, the libraries the standard one.
    let bytes = BASE64.decode(text.as_bytes()).or_else(|_| BASE64URL.decode(text.as_bytes()));
    let bytes = bytes.map_err(|_| ApiError::invalid("a field is no base64"))?;
    let sum = call.body.get(format!("{field}Crc32c"));
    let sum = sum.map(|sum| sum.as_str().map_or_else(|| sum.to_string(), str::to_owned));
    if sum.is_some_and(|sum| sum != crc32c::crc32c(&bytes).to_string()) {
        return Err(ApiError::invalid("a checksum does not match its field"));
    }
    Ok(bytes)
}

/// What a fault makes of an answer of encrypt or decrypt.
pub(crate) fn distort(answer: &mut Value, fault: Fault) {
    let Some(answer) = answer.as_object_mut() else { return };
    let field = if answer.contains_key("plaintext") { "plaintext" } else { "ciphertext" };
    let sum = format!("{field}Crc32c");
    let text = answer.get(field).and_then(Value::as_str).unwrap_or_default();
    let mut data = BASE64.decode(text.as_bytes()).unwrap_or_default();
    match fault {
        Fault::FlippedBit => {
            if let Some(byte) = data.first_mut() {
                *byte ^= 1;
            }
            answer.insert(field.to_owned(), json!(BASE64.encode(&data)));
        }
        Fault::OtherKey | Fault::Short => {
            if fault == Fault::OtherKey {
                for byte in &mut data {
                    *byte = byte.wrapping_add(1);
                }
            } else {
                data.pop();
            }
            answer.insert(field.to_owned(), json!(BASE64.encode(&data)));
            answer.insert(sum, json!(crc32c::crc32c(&data).to_string()));
        }
        Fault::NoChecksum => drop(answer.remove(&sum)),
        Fault::Unconfirmed if answer.contains_key("verifiedPlaintextCrc32c") => {
            answer.insert("verifiedPlaintextCrc32c".to_owned(), json!(false));
        }
        Fault::OtherVersion if answer.contains_key("name") => {
            let name = answer.get("name").and_then(Value::as_str).unwrap_or_default();
            let other = name.replace("/cryptoKeys/", "/cryptoKeys/not-");
            answer.insert("name".to_owned(), json!(other));
        }
        _ => {}
    }
}
