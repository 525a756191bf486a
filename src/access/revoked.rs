//! The tokens that this node knows to be revoked, whatever the database says of them.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

use crate::model::TokenId;

/// Ids of tokens that were revoked while this node's record was kept. A row that somebody put back as it was before has the right MAC, and
/// a restored database holds such rows too: only who remembers can tell. No id is given twice, so none is ever taken out.
#[derive(Debug, Default)]
pub struct RevokedHere(RwLock<HashSet<TokenId>>);

impl RevokedHere {
    pub fn remember(&self, ids: impl IntoIterator<Item = TokenId>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }

    #[must_use]
    pub fn has(&self, id: &TokenId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}
