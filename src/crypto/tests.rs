//! The vectors of the reference implementation, in both directions. Here because a fixed salt is no public call.
mod vectors;
