//! One binary for all integration tests: each file is a module, so that they link once.

mod cli;
