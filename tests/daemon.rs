//! The real binary over its real socket, on both stores.
#![expect(clippy::disallowed_methods, reason = "a test waits for another process, by a clock that nobody sets")]

mod api;
mod audit;
mod backup;
mod backups;
mod damage;
mod deks;
mod doctor;
mod faults;
mod gate;
mod hardening;
mod kms;
mod leaks;
mod nodes;
mod oidc;
mod rotation;
mod secrets;
mod sinks;
mod start;
mod tcp;
mod tokens;

/// Runs each function of a list on a site of either store.
macro_rules! on_both_stores {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test] fn $name() { super::$name(&crate::support::site::Site::sqlite()); })+
        }
        mod postgres {
            $(#[test] fn $name() { super::$name(&crate::support::site::Site::postgres()); })+
        }
    };
}
use on_both_stores;
