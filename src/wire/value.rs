//! How a value travels in JSON: as text or as base64, straight from the parser into memory that is wiped, and back.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use crate::crypto::SecretValue;

/// A value as JSON text: any UTF-8, `\u0000` too.
pub struct Text(pub SecretValue);

/// A value as standard base64 with padding (RFC 4648, section 4).
pub struct Base64(pub SecretValue);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(SecretValue::new(Zeroizing::new(text.as_bytes().to_vec()))))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Base64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("standard base64 with padding")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Base64, E> {
                let input = text.as_bytes();
                let unreadable = || E::custom("not standard base64");
                let length = data_encoding::BASE64.decode_len(input.len()).map_err(|_| unreadable())?;
                let mut bytes = Zeroizing::new(vec![0; length]);
                let decoded = data_encoding::BASE64.decode_mut(input, &mut bytes).map_err(|_| unreadable())?;
                bytes.truncate(decoded);
                Ok(Base64(SecretValue::new(bytes)))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// Which of `value` and `value_base64` were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("give the value as `value` (UTF-8) or as `value_base64`")]
    Neither,
    #[error("give `value` or `value_base64`, not both")]
    Both,
}

/// The one value of a body.
///
/// # Errors
/// [`ValueError`] unless exactly one is there.
pub fn one_value(value: Option<Text>, value_base64: Option<Base64>) -> Result<SecretValue, ValueError> {
    match (value, value_base64) {
        (Some(Text(value)), None) | (None, Some(Base64(value))) => Ok(value),
        (None, None) => Err(ValueError::Neither),
        (Some(_), Some(_)) => Err(ValueError::Both),
    }
}

/// A value as `value` where it is UTF-8, as `value_base64` where it is not.
pub(super) fn as_json_takes_it(value: &SecretValue) -> (Option<&str>, Option<Zeroizing<String>>) {
    match std::str::from_utf8(value.expose()) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(Zeroizing::new(data_encoding::BASE64.encode(value.expose())))),
    }
}

#[expect(clippy::ref_option, reason = "serde's serialize_with gives the field as it is")]
pub(super) fn wiped_text<S: Serializer>(text: &Option<Zeroizing<String>>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_ref().map(|text| text.as_str()).serialize(serializer)
}

/// The length of a text as `serde_json` escapes it.
pub(super) fn escaped_len(text: &str) -> usize {
    let one = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0C => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8]) -> SecretValue {
        SecretValue::new(Zeroizing::new(bytes.to_vec()))
    }

    #[test]
    fn exactly_one_of_value_and_value_base64_is_taken() {
        assert_eq!(one_value(None, None).err(), Some(ValueError::Neither));
        let both = one_value(Some(Text(value(b"a"))), Some(Base64(value(b"b"))));
        assert_eq!(both.err(), Some(ValueError::Both));
    }
}
