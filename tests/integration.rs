//! The one integration binary: each room of tests is a module.

#[cfg(test)]
mod store;
#[cfg(test)]
mod support;
