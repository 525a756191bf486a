//! One binary for all integration tests: each file is a module, so that they link once.

// The attribute tells clippy that helpers are tests too.
#[cfg(test)]
mod cli;
