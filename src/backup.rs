//! Copies of a master key off the host: in Secret Manager, in an age file, on paper, or as a plain copy of the key file.
//!
//! A copy is the key file's bytes, whatever form of key they hold, and is known by their SHA-256; which key it opens (its kid) is read
//! from what came back, never from a name. Nothing here writes a key file or a database: what to keep, and what a copy is good for,
//! is for the caller.

pub mod age;
mod copy;
mod error;
pub mod paper;
mod secret_manager;

pub use copy::{Form, KeyCopy, READ_LIMIT, ReadCopy, open, read_copy};
pub use error::{BackupError, Kind};
pub use secret_manager::{
    CopyState, Fetched, Lifetime, Listed, LookedAt, Opens, Pushed, Search, SecretManagerTarget, Unopened, WhatItWas,
};
