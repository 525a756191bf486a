//! Public identifiers and numbers.

use std::fmt;

/// A master key's public id: 16 bytes derived from the key with HKDF; shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kid([u8; 16]);

/// A DEK's public id: 16 bytes derived from the DEK with HKDF. A rewrap must not change it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DekId([u8; 16]);

/// A daemon's data directory, as the database knows it: 16 random bytes made at its first start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId([u8; 16]);

/// One start of a daemon: 16 random bytes made by each process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootId([u8; 16]);

macro_rules! public_id {
    ($name:ident) => {
        impl $name {
            #[must_use]
            pub const fn new(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// `None` unless there are exactly 16 bytes.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// `None` unless there are exactly 32 lower-case hex digits.
            #[must_use]
            pub fn from_hex(text: &str) -> Option<Self> {
                let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?;
                Self::from_slice(&bytes)
            }

            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}
public_id!(Kid);
public_id!(DekId);
public_id!(NodeId);
public_id!(BootId);

/// The number of a secret's version, from 1; a number is used once, also after destroy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretVersion(u64);

impl SecretVersion {
    /// `None` for 0 and for what a signed 64-bit column cannot hold.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        (number >= 1 && i64::try_from(number).is_ok()).then_some(Self(number))
    }

    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SecretVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a tenant's DEK, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DekVersion(u32);

impl DekVersion {
    pub const FIRST: Self = Self(1);

    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        (number >= 1).then_some(Self(number))
    }

    /// `None` after the last number.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }

    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for DekVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment: microseconds since 1970-01-01T00:00:00Z, as both databases store it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub i64);

impl Micros {
    /// What its `Display` shows; any moment of RFC 3339.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(|at| Self(at.as_microsecond()))
    }
}

impl fmt::Display for Micros {
    /// RFC 3339, UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(at) => at.fmt(f),
            Err(_) => write!(f, "{}µs", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kid_reads_back_from_what_it_shows_and_from_nothing_else() {
        let kid = Kid::new([0xAB; 16]);
        assert_eq!(Kid::from_hex(&kid.to_string()), Some(kid));
        for wrong in ["", "ab", &"AB".repeat(16), &"ab".repeat(17), &"zz".repeat(16)] {
            assert_eq!(Kid::from_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_version_is_at_least_one_and_fits_a_database_column() {
        assert!(SecretVersion::new(0).is_none());
        assert!(SecretVersion::new(1).is_some());
        assert!(SecretVersion::new(u64::MAX).is_none());
        assert!(DekVersion::new(0).is_none());
        assert!(DekVersion::new(u32::MAX).and_then(DekVersion::next).is_none());
    }

    #[test]
    fn times_are_shown_as_rfc_3339_in_utc() {
        assert_eq!(Micros(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Micros(1_764_000_000_123_456).to_string(), "2025-11-24T16:00:00.123456Z");
    }
}
