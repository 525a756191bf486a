//! One binary for all integration tests: linking is what costs.
#![cfg(test)] // it always is; said so that clippy knows helpers for tests, where unwrap and panic are how a test fails

mod cli;
mod daemon;
mod doors;
mod keyfile;
mod process;
mod project;
mod readme;
mod store;
mod support;
mod terraform;
