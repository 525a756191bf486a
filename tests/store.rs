//! What the store promises, held to on both databases.

mod conformance;
mod fakes;
mod sqlite;
mod steps;
