//! One binary for all integration tests: linking is what costs.
#![cfg(test)] // it always is; said so that clippy knows helpers for tests, where unwrap and panic are how a test fails

mod backup;
mod cli;
mod daemon;
mod doors;
mod gcp;
mod keyfile;
mod node;
mod process;
mod project;
mod readme;
mod service;
mod store;
mod support;
mod terraform;
