//! Containarium: a secrets daemon with envelope encryption.
//!
//! One binary serves secrets over a Unix socket and is its own command line. docs/architecture.md draws the rooms below and the
//! doors between them; a test enforces the doors.

#![forbid(unsafe_code)]

<<<<<<< HEAD
pub mod access;
pub mod audit;
=======
pub mod cli;
pub mod client;
>>>>>>> cli
pub mod clock;
pub mod config;
pub mod crypto;
<<<<<<< HEAD
<<<<<<< HEAD
pub mod http;
pub mod keys;
=======
pub mod daemon;
>>>>>>> cli
pub mod model;
pub mod service;
=======
pub mod keys;
pub mod model;
pub mod process;
>>>>>>> keyfile
pub mod store;
pub mod telemetry;
pub mod wire;
