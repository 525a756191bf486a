<<<<<<< HEAD
<<<<<<< HEAD
//! One binary for all integration tests: linking is what costs.
#![cfg(test)] // it always is; said so that clippy knows helpers for tests, where unwrap and panic are how a test fails

mod doors;
mod project;
mod store;
mod support;
=======
//! The one integration binary.

#[cfg(test)]
mod keyfile;
#[cfg(test)]
mod process;
>>>>>>> keyfile
=======
//! One binary for all integration tests: each file is a module, so that they link once.

mod cli;
>>>>>>> cli
