//! What the store promises, held to on both databases, and what only one of them could break.

mod conformance;
mod fakes;
mod postgres;
mod rotation;
mod sqlite;
mod steps;
