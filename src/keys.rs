//! Master keys: where they lie, and what a start does with what it finds.

pub mod keyfile;
pub mod start;
