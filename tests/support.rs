//! What several rooms of tests share.

pub(crate) mod postgres;
pub(crate) mod stores;
