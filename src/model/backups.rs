//! Copies of a database, and drills.

use super::{Kid, Micros};

/// A copy of the database that was made, and which state of it the copy holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseBackup {
    pub id: String,
    /// When the copy was begun, by the database's clock.
    pub taken_at: Micros,
    /// Where it is, in its maker's words.
    pub target: String,
    /// Of the copy; of one that nobody looked into, what the database had come to when it was recorded.
    pub epoch: u64,
    pub generation: u64,
}

/// A trial whether copies of the master keys open the DEKs of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drill {
    pub id: String,
    pub ran_at: Micros,
    /// Which database was tried, in its runner's words.
    pub source: String,
    /// The keys that were tried, sorted.
    pub kids: Vec<Kid>,
    pub deks_opened: u64,
    /// DEKs in use that did not open with any of these keys.
    pub deks_failed: u64,
}
