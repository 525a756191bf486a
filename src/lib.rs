//! Containarium: a secrets daemon with envelope encryption.
//!
//! One binary serves secrets over a Unix socket and is its own command line. docs/architecture.md draws the rooms below and the
//! doors between them; a test enforces the doors.

#![forbid(unsafe_code)]

pub mod access;
pub mod audit;
pub mod backup;
pub mod cli;
pub mod client;
pub mod clock;
pub mod compose;
pub mod config;
pub mod crypto;
pub mod daemon;
pub mod failpoint;
pub mod gcp;
pub mod http;
pub mod issuer;
pub mod keys;
pub mod model;
pub mod node;
pub mod process;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod wire;
