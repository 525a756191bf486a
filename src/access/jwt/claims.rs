//! What a token says, once it is known who said it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::Wrong;
use crate::model::{ClaimTest, Issuer, Micros, Rule, Wanted};

/// The most that OpenID Connect lets a subject have (Core 1.0, section 2).
const MOST_OF_SUBJECT: usize = 255;
/// The end of the year 9999: far enough, and no sum of it and a leeway overflows.
const LAST_SECOND: f64 = 253_402_300_799.0;

/// A token's claims, each there once: which of two counts would be another reader's choice (RFC 7519, section 4).
pub(super) struct Claims(Map<String, Value>);

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Once::deserialize(deserializer)?.0 {
            Value::Object(claims) => Ok(Self(claims)),
            _ => Err(D::Error::custom("no object")),
        }
    }
}

impl Claims {
    /// # Errors
    /// [`Wrong::Missing`] without an end or a time of issue, [`Wrong::Claims`] for what is no time.
    pub(super) fn times(&self) -> Result<Times, Wrong> {
        let time = |name| self.0.get(name).map(|value| time(value).ok_or(Wrong::Claims)).transpose();
        let needed = |name| time(name)?.ok_or(Wrong::Missing(name));
        Ok(Times { ends: needed("exp")?, begins: time("nbf")?, issued: needed("iat")? })
    }

    /// As log and records have it: visible ASCII, all else percent-encoded, so that no two subjects look alike and none can write a line of its
    /// own. `None` for one that cannot be.
    pub(super) fn subject(&self, names: &[&str]) -> Option<String> {
        let subject = names
            .iter()
            .find_map(|name| self.0.get(*name))?
            .as_str()
            .filter(|text| (1..=MOST_OF_SUBJECT).contains(&text.len()))?;
        let mut escaped = String::with_capacity(subject.len());
        for byte in subject.bytes() {
            if byte.is_ascii_graphic() && byte != b'%' {
                escaped.push(char::from(byte));
            } else {
                fmt::Write::write_fmt(&mut escaped, format_args!("%{byte:02X}")).ok()?;
            }
        }
        Some(escaped)
    }

    pub(super) fn fit(&self, rule: &Rule) -> bool {
        rule.claims().iter().all(|test| self.fits(test))
    }

    fn fits(&self, test: &ClaimTest) -> bool {
        let Some(value) = self.at(test) else { return false };
        match (&test.wanted, value) {
            (Wanted::Is(wanted), Value::Bool(is)) => wanted == is,
            (Wanted::Like(pattern), Value::String(one)) => pattern.matches(one),
            (Wanted::Like(pattern), Value::Array(items)) => {
                items.iter().filter_map(Value::as_str).any(|one| pattern.matches(one))
            }
            _ => false,
        }
    }

    fn at(&self, test: &ClaimTest) -> Option<&Value> {
        if !test.place.is_path() {
            return self.0.get(test.place.as_str());
        }
        // RFC 6901, section 4; of a list no element is named by its number, since which one that is is nobody's promise.
        let mut steps = test.place.as_str().split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~"));
        let first = self.0.get(&steps.next()?)?;
        steps.try_fold(first, |value, step| value.as_object()?.get(&step))
    }
}

/// When a token is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    ends: Micros,
    begins: Option<Micros>,
    /// RFC 7519 lets it be absent. Of a token without it nobody could tell how long it has been about, and one that ends in ten years would be good in its
    /// last hour, whoever stole it when; platforms and v1 set it.
    issued: Micros,
}

impl Times {
    /// # Errors
    /// [`Wrong::Expired`], [`Wrong::NotYet`], [`Wrong::TooLongLived`].
    pub(super) fn hold(&self, now: Micros, issuer: &Issuer) -> Result<(), Wrong> {
        let micros = |time: std::time::Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let (now, leeway) = (now.0, micros(issuer.leeway));
        if now >= self.ends.0.saturating_add(leeway) {
            return Err(Wrong::Expired);
        }
        let latest = now.saturating_add(leeway);
        if self.issued.0 > latest || self.begins.is_some_and(|time| time.0 > latest) {
            return Err(Wrong::NotYet);
        }
        if self.ends.0.saturating_sub(self.issued.0) > micros(issuer.max_lifetime) {
            return Err(Wrong::TooLongLived);
        }
        Ok(())
    }
}

/// A NumericDate: seconds since 1970, with a fraction or without (RFC 7519, section 2).
#[expect(
    clippy::cast_possible_truncation,
    reason = "microseconds until the year 9999 fit, and a fraction of one does not count"
)]
fn time(value: &Value) -> Option<Micros> {
    let seconds = value.as_f64().filter(|seconds| (0.0..=LAST_SECOND).contains(seconds))?;
    Some(Micros((seconds * 1e6) as i64))
}

/// JSON in which no object has a name twice, at any depth.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor).map(Self)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON with each name once")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Once(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Once(value))) = entries.next_entry::<String, Once>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a name is there twice"));
            }
        }
        Ok(Value::Object(object))
    }
}
