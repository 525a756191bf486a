//! What several rooms of tests share.

pub(crate) mod stores;
