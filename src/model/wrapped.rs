//! A master key as it lies on a disk where something else opens it: wrapped by a Cloud KMS key, for age identities, or for both. Nothing
//! in it is secret, and nothing of it is believed until a key that it opens to has its kid.

use std::fmt;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::{Kid, Micros};

/// A key file that is no raw key: `containarium/wrapped-master/1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedMaster {
    /// The key that it says it holds.
    pub kid: Kid,
    /// At least one; any of them opens it.
    pub recipients: Vec<Wrapping>,
}

/// One way to the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrapping {
    GcpKms {
        key: KmsKey,
        /// The version that wrapped it, as Google named it. Google finds it by itself; people ask for it.
        key_version: String,
        ciphertext: Vec<u8>,
    },
    Age {
        /// `age1…`
        recipient: String,
        /// An age file, without armor.
        ciphertext: Vec<u8>,
        /// When an identity was seen to open it. Until then nobody knows whether anybody has one.
        proven_at: Option<Micros>,
    },
}

/// Not a wrapped master key: the rule that it breaks. The file's own words are not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrappedError {
    #[error(
        "it is not the JSON of a wrapped master key, whole and with exactly its fields (format, kid, recipients; line {line})"
    )]
    Json { line: usize },
    #[error("its format is not {FORMAT}; a later release may have written it")]
    Format,
    #[error("its kid is not 32 hex digits in lower case")]
    Kid,
    #[error("it names {count} recipients, and must name 1 to {MAX_RECIPIENTS}")]
    Recipients { count: usize },
    #[error("recipient {number}: {rule}")]
    Recipient { number: usize, rule: &'static str },
}

const FORMAT: &str = "containarium/wrapped-master/1";
/// More than anybody has, and little enough to try them all.
const MAX_RECIPIENTS: usize = 16;

/// `projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY`, without a version: which one is in use is KMS's to say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KmsKey(Box<str>);

/// Not the name of a KMS key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY, without a version")]
pub struct KmsKeyError;

impl KmsKey {
    /// # Errors
    /// [`KmsKeyError`].
    pub fn parse(text: &str) -> Result<Self, KmsKeyError> {
        let holds = match text.split('/').collect::<Vec<_>>()[..] {
            ["projects", project, "locations", location, "keyRings", ring, "cryptoKeys", key] => {
                is_project(project) && is_location(location) && is_id(ring) && is_id(key)
            }
            _ => false,
        };
        if holds { Ok(Self(text.into())) } else { Err(KmsKeyError) }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Project, location, ring and key, for a command line of Google's.
    #[must_use]
    pub fn parts(&self) -> [&str; 4] {
        let mut parts = self.0.split('/').skip(1).step_by(2);
        std::array::from_fn(|_| parts.next().unwrap_or_default())
    }

    /// Whether a name is that of a version of this key. The project is not compared: it has an id and a number.
    #[must_use]
    pub fn is_of_version(&self, name: &str) -> bool {
        let Some((key, number)) = name.rsplit_once("/cryptoKeyVersions/") else { return false };
        let is_number = !number.is_empty() && number.len() <= 20 && number.bytes().all(|b| b.is_ascii_digit());
        is_number && Self::parse(key).is_ok_and(|key| key.parts()[1..] == self.parts()[1..])
    }
}

impl fmt::Display for KmsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// By id or by number; an id of old has its domain before it (`example.com:id`).
fn is_project(text: &str) -> bool {
    let (domain, id) = text.rsplit_once(':').unwrap_or(("a", text));
    let is_domain = !domain.is_empty() && domain.bytes().all(|b| is_lower(b) || b == b'.');
    let is_name = (6..=30).contains(&id.len())
        && id.bytes().all(is_lower)
        && id.starts_with(|first: char| first.is_ascii_lowercase())
        && !id.ends_with('-');
    let is_number = !id.is_empty() && id.len() <= 20 && id.bytes().all(|b| b.is_ascii_digit());
    is_domain && (is_name || is_number)
}

fn is_location(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(is_lower)
}

fn is_id(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

const fn is_lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: String,
    kid: String,
    recipients: Vec<WrittenRecipient>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum WrittenRecipient {
    #[serde(rename = "gcp-kms")]
    GcpKms {
        key: String,
        #[serde(rename = "keyVersion")]
        key_version: String,
        ciphertext: String,
    },
    #[serde(rename = "age")]
    Age {
        recipient: String,
        ciphertext: String,
        #[serde(rename = "provenAt", default, skip_serializing_if = "Option::is_none")]
        proven_at: Option<String>,
    },
}

impl WrappedMaster {
    /// Whether bytes are meant to be one, good or not: text that begins as a JSON object. 32 bytes are a raw key whatever they are.
    #[must_use]
    pub fn is_meant_by(bytes: &[u8]) -> bool {
        let Some(inside) = bytes.trim_ascii_start().strip_prefix(b"{") else { return false };
        // Not a brace alone: a raw key that was damaged may begin with one.
        matches!(inside.trim_ascii_start().first(), None | Some(b'"' | b'}')) && std::str::from_utf8(bytes).is_ok()
    }

    /// # Errors
    /// Each [`WrappedError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, WrappedError> {
        let written: Written =
            serde_json::from_slice(bytes).map_err(|error| WrappedError::Json { line: error.line() })?;
        if written.format != FORMAT {
            return Err(WrappedError::Format);
        }
        let kid = Kid::from_hex(&written.kid).ok_or(WrappedError::Kid)?;
        let count = written.recipients.len();
        if !(1..=MAX_RECIPIENTS).contains(&count) {
            return Err(WrappedError::Recipients { count });
        }
        let read =
            |(number, recipient)| Wrapping::read(recipient).map_err(|rule| WrappedError::Recipient { number, rule });
        let recipients = (1..).zip(written.recipients).map(read).collect::<Result<_, _>>()?;
        Ok(Self { kid, recipients })
    }

    /// What [`WrappedMaster::parse`] reads back, a text for people too.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let recipients = self.recipients.iter().map(Wrapping::written).collect();
        let written = Written { format: FORMAT.to_owned(), kid: self.kid.to_string(), recipients };
        // Strings in a struct: there is nothing that serde_json could refuse.
        let mut json = serde_json::to_vec_pretty(&written).unwrap_or_default();
        json.push(b'\n');
        json
    }

    /// The KMS keys that open it, each once.
    #[must_use]
    pub fn kms_keys(&self) -> Vec<&KmsKey> {
        let mut keys: Vec<&KmsKey> = Vec::new();
        for (key, _) in self.kms() {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }

    /// Its KMS recipients: key and ciphertext.
    pub fn kms(&self) -> impl Iterator<Item = (&KmsKey, &[u8])> {
        self.recipients.iter().filter_map(|recipient| match recipient {
            Wrapping::GcpKms { key, ciphertext, .. } => Some((key, ciphertext.as_slice())),
            Wrapping::Age { .. } => None,
        })
    }

    /// The versions of KMS keys that wrapped it, as Google names them.
    pub fn kms_versions(&self) -> impl Iterator<Item = &str> {
        self.recipients.iter().filter_map(|recipient| match recipient {
            Wrapping::GcpKms { key_version, .. } => Some(key_version.as_str()),
            Wrapping::Age { .. } => None,
        })
    }

    /// Its age recipients' ciphertexts.
    pub fn age(&self) -> impl Iterator<Item = &[u8]> {
        self.recipients.iter().filter_map(|recipient| match recipient {
            Wrapping::Age { ciphertext, .. } => Some(ciphertext.as_slice()),
            Wrapping::GcpKms { .. } => None,
        })
    }

    /// The names of its age recipients.
    pub fn age_recipients(&self) -> impl Iterator<Item = &str> {
        self.recipients.iter().filter_map(|recipient| match recipient {
            Wrapping::Age { recipient, .. } => Some(recipient.as_str()),
            Wrapping::GcpKms { .. } => None,
        })
    }

    /// The same file of one recipient alone.
    #[must_use]
    pub fn alone(&self, recipient: &Wrapping) -> Self {
        Self { kid: self.kid, recipients: vec![recipient.clone()] }
    }

    /// Whether something else than one KMS key is known to open it: a recipient of age that was proven to, or a second KMS key.
    #[must_use]
    pub fn has_another_way(&self) -> bool {
        let is_proven = |recipient: &Wrapping| matches!(recipient, Wrapping::Age { proven_at: Some(_), .. });
        self.recipients.iter().any(is_proven) || self.kms_keys().len() > 1
    }

    /// The same, for KMS alone: what travels through the database. `None` where no KMS key opens it.
    #[must_use]
    pub fn for_kms_only(&self) -> Option<Self> {
        let is_kms = |recipient: &&Wrapping| matches!(recipient, Wrapping::GcpKms { .. });
        let recipients: Vec<Wrapping> = self.recipients.iter().filter(is_kms).cloned().collect();
        (!recipients.is_empty()).then_some(Self { kid: self.kid, recipients })
    }
}

impl Wrapping {
    fn read(written: WrittenRecipient) -> Result<Self, &'static str> {
        match written {
            WrittenRecipient::GcpKms { key, key_version, ciphertext } => {
                let key = KmsKey::parse(&key).map_err(|KmsKeyError| "its key is not the name of a KMS key")?;
                if !key.is_of_version(&key_version) {
                    return Err("its keyVersion is not a version of its key");
                }
                Ok(Self::GcpKms { key, key_version, ciphertext: decoded(&ciphertext)? })
            }
            WrittenRecipient::Age { recipient, ciphertext, proven_at } => {
                let is_good = recipient.starts_with("age1")
                    && recipient.len() <= 128
                    && recipient.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                if !is_good {
                    return Err("its recipient is no age recipient (age1…)");
                }
                let proven_at = proven_at.map(|at| Micros::parse(&at).ok_or("its provenAt is no time of RFC 3339"));
                Ok(Self::Age { recipient, ciphertext: decoded(&ciphertext)?, proven_at: proven_at.transpose()? })
            }
        }
    }

    fn written(&self) -> WrittenRecipient {
        match self {
            Self::GcpKms { key, key_version, ciphertext } => WrittenRecipient::GcpKms {
                key: key.to_string(),
                key_version: key_version.clone(),
                ciphertext: BASE64.encode(ciphertext),
            },
            Self::Age { recipient, ciphertext, proven_at } => WrittenRecipient::Age {
                recipient: recipient.clone(),
                ciphertext: BASE64.encode(ciphertext),
                proven_at: proven_at.map(|at| at.to_string()),
            },
        }
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, &'static str> {
    match BASE64.decode(text.as_bytes()) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err("its ciphertext is not base64, or empty"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "projects/acme-prod/locations/europe-west1/keyRings/containarium/cryptoKeys/wrap";

    fn good() -> String {
        format!(
            r#"{{"format": "containarium/wrapped-master/1", "kid": "000102030405060708090a0b0c0d0e0f", "recipients": [
            {{"type": "gcp-kms", "key": "{KEY}", "keyVersion": "projects/12345/locations/europe-west1/keyRings/containarium/cryptoKeys/wrap/cryptoKeyVersions/3", "ciphertext": "AAEC"}},
            {{"type": "age", "recipient": "age1qqqq", "ciphertext": "YWdl", "provenAt": "2026-05-17T08:30:00.5Z"}}]}}"#
        )
    }

    #[test]
    fn a_wrapped_key_is_read_and_written_as_the_same() {
        let wrapped = WrappedMaster::parse(good().as_bytes()).unwrap();
        assert_eq!(wrapped.kid.to_string(), "000102030405060708090a0b0c0d0e0f");
        assert_eq!(
            wrapped.kms().map(|(key, bytes)| (key.as_str(), bytes)).collect::<Vec<_>>(),
            [(KEY, &[0, 1, 2][..])]
        );
        assert_eq!(wrapped.age().collect::<Vec<_>>(), [b"age"]);
        assert_eq!(WrappedMaster::parse(&wrapped.to_json()), Ok(wrapped.clone()));
        assert_eq!(wrapped.age_recipients().collect::<Vec<_>>(), ["age1qqqq"]);
        let stripped = wrapped.for_kms_only().unwrap();
        assert_eq!((stripped.recipients.len(), stripped.age().count()), (1, 0));
        let age = WrappedMaster { recipients: wrapped.recipients[1..].to_vec(), ..wrapped };
        assert_eq!(age.for_kms_only(), None);
    }

    #[test]
    fn a_recipient_of_age_is_another_way_once_it_was_proven_and_a_second_kms_key_is_one() {
        let read = |text: String| WrappedMaster::parse(text.as_bytes()).unwrap();
        let proven = read(good());
        assert!(proven.has_another_way());
        let unproven = read(good().replace(r#", "provenAt": "2026-05-17T08:30:00.5Z""#, ""));
        assert!(!unproven.has_another_way());
        let mut two = unproven.for_kms_only().unwrap();
        assert!(!two.has_another_way());
        two.recipients.extend(two.recipients.clone());
        assert!(!two.has_another_way(), "the same KMS key twice");
        let Some(Wrapping::GcpKms { key, .. }) = two.recipients.last_mut() else { panic!("no KMS key") };
        *key = KmsKey::parse(&format!("{KEY}-2")).unwrap();
        assert!(two.has_another_way());
    }

    #[test]
    fn what_is_not_exactly_a_wrapped_key_is_refused_with_the_rule_that_it_breaks() {
        let said = |text: &str| match WrappedMaster::parse(text.as_bytes()) {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => error.to_string(),
        };
        let changed = |from: &str, to: &str| {
            let text = good().replace(from, to);
            assert_ne!(text, good(), "{from}");
            said(&text)
        };
        let whole = "whole and with exactly its fields";
        for text in ["{", "{}", "[]", &good()[..60], &format!("{}x", good()), &good().replace("age\"", "pgp\"")] {
            assert!(said(text).contains(whole), "{text}: {}", said(text));
        }
        assert!(changed(r#""kid": "#, r#""note": 1, "kid": "#).contains(whole));
        assert!(changed(r#""key": "#, r#""note": 1, "key": "#).contains(whole));
        assert!(changed(r#""kid": "#, r#""kid": "00", "kid": "#).contains(whole), "twice");
        assert!(changed("master/1", "master/2").contains("its format is not"));
        assert!(changed("0a0b", "0A0B").contains("its kid is not"));
        assert!(
            changed("cryptoKeys/wrap\"", "cryptoKeys/wrap/cryptoKeyVersions/1\"").contains("the name of a KMS key")
        );
        assert!(changed("cryptoKeyVersions/3", "cryptoKeyVersions/x").contains("not a version of its key"));
        assert!(changed("wrap/cryptoKeyVersions", "other/cryptoKeyVersions").contains("not a version of its key"));
        assert!(changed("AAEC", "AA-C").contains("not base64, or empty"));
        assert!(changed("AAEC", "").contains("not base64, or empty"));
        assert!(changed("08:30:00.5Z", "08:30").contains("recipient 2: its provenAt is no time"));
        assert!(changed("age1qqqq", "AGE-SECRET-KEY-1QQ").contains("recipient 2: its recipient is no age recipient"));
        let none = r#"{"format": "containarium/wrapped-master/1", "kid": "000102030405060708090a0b0c0d0e0f", "recipients": []}"#;
        assert!(said(none).contains("0 recipients"));
    }

    #[test]
    fn a_kms_key_is_named_whole_and_without_a_version() {
        assert_eq!(KmsKey::parse(KEY).map(|key| key.parts().map(str::to_owned)), {
            Ok(["acme-prod", "europe-west1", "containarium", "wrap"].map(str::to_owned))
        });
        for wrong in [
            "",
            "projects/acme-prod/locations/europe-west1/keyRings/r",
            "projects/acme-prod/locations/europe-west1/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
            "projects/Acme/locations/europe-west1/keyRings/r/cryptoKeys/k",
            "projects/acme-prod/locations/EU/keyRings/r/cryptoKeys/k",
            "projects/acme-prod/locations/x/keyRings/r/cryptoKeys/k:decrypt",
            "projects/acme-prod/locations/x/keyRings/../cryptoKeys/k",
            "/projects/acme-prod/locations/x/keyRings/r/cryptoKeys/k",
        ] {
            assert_eq!(KmsKey::parse(wrong), Err(KmsKeyError), "{wrong}");
        }
    }
}
