//! What several rooms of tests share.

pub(crate) mod google;
pub(crate) mod issuer;
pub(crate) mod site;
pub(crate) mod stores;
