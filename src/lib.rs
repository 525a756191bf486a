//! Containarium: a secrets daemon with envelope encryption.
//!
//! One binary serves secrets over a Unix socket and is its own command line. docs/architecture.md draws the rooms below and the
//! doors between them; a test enforces the doors.

#![forbid(unsafe_code)]

pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod crypto;
pub mod daemon;
pub mod model;
pub mod store;
pub mod wire;
