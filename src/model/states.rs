//! States and other closed sets, with the text that the database and the wire hold for each.

use std::fmt;

/// A text that names none of a closed set's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of {expected}")]
pub struct UnknownState {
    pub expected: &'static str,
}

macro_rules! closed_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// # Errors
            /// [`UnknownState`] where the text is none of the set's.
            pub fn parse(text: &str) -> Result<Self, UnknownState> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(UnknownState { expected: concat!($("'", $text, "' "),+) }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

closed_set! {
    /// Where a master key is in its life.
    MasterKeyState {
        Staged = "staged",
        Active = "active",
        DecryptOnly = "decrypt_only",
        Retired = "retired",
        Destroyed = "destroyed",
        Aborted = "aborted",
    }
}

closed_set! {
    DekState {
        /// Seals and opens.
        Active = "active",
        /// Opens what it sealed; seals nothing new.
        DecryptOnly = "decrypt_only",
        /// Its wrapped bytes are gone for good.
        Shredded = "shredded",
        /// Set aside because it does not open; its secrets answer with that word.
        Quarantined = "quarantined",
    }
}

closed_set! {
    KeyMode { Normal = "normal", Compromised = "compromised" }
}

closed_set! {
    /// What a rotation is doing.
    KeyPhase {
        Idle = "idle",
        Staged = "staged",
        Rewrapping = "rewrapping",
        Verified = "verified",
        Reencrypting = "reencrypting",
    }
}

closed_set! {
    /// What stands for a master key off the host.
    EscrowKind {
        /// A copy, known by the SHA-256 of its bytes.
        Copy = "copy",
        /// An operator's word that there need be none.
        Waiver = "waiver",
    }
}

closed_set! {
    /// How a copy of a master key is missed where it was put.
    CopyLoss {
        /// It is there, and not handed out until somebody enables it.
        Disabled = "disabled",
        /// For good.
        Destroyed = "destroyed",
        /// A whole list of the place does not have it.
        Absent = "absent",
    }
}

closed_set! {
    /// v1's hint to a deliverer of secrets. Stored and echoed; this daemon delivers nothing into containers.
    Delivery { Env = "env", File = "file", Compose = "compose" }
}

closed_set! {
    StoreKind { Sqlite = "sqlite", Postgres = "postgres" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_reads_back_from_its_text() {
        for state in MasterKeyState::ALL {
            assert_eq!(MasterKeyState::parse(state.as_str()), Ok(*state));
        }
        for state in DekState::ALL {
            assert_eq!(DekState::parse(state.as_str()), Ok(*state));
        }
        for delivery in Delivery::ALL {
            assert_eq!(Delivery::parse(delivery.as_str()), Ok(*delivery));
        }
        assert!(Delivery::parse("ENV").is_err());
    }
}
