//! One look at the database and at this node, from which the next step is planned.

use super::super::plan::{Here, Stale};
use super::super::{Asked, Order};
use super::{Carrier, Trouble};
use crate::keys::Keys;
use crate::keys::keyfile::MainFile;
use crate::model::{EscrowRecord, KeyPhase, KeyState, Kid, MasterKeyRecord, MasterKeyState, Micros, NodeRecord};
use crate::service::Error;
use crate::store::masters::UnderKey;

/// What one look saw.
pub(in crate::service::rotation) struct Seen {
    pub(in crate::service::rotation) state: KeyState,
    pub(in crate::service::rotation) keys: Vec<MasterKeyRecord>,
    pub(in crate::service::rotation) escrows: Vec<EscrowRecord>,
    pub(in crate::service::rotation) nodes: Vec<NodeRecord>,
    pub(in crate::service::rotation) now: Micros,
    pub(in crate::service::rotation) here: Here,
    pub(super) under_old: UnderKey,
    pub(super) stale: Stale,
}

impl Carrier {
    pub(super) async fn look(&self, order: &Order) -> Result<Seen, Trouble> {
        let parts = &self.service;
        let refused = parts.node.may_write().await.err();
        let survey = parts.store.survey().await?;
        let Some(state) = survey.key_state else {
            return Err(Trouble::Failed(Error::Unavailable("the database has held no master key yet".to_owned())));
        };
        let nodes = parts.store.nodes().await?;
        let me = parts.node.holder().node;
        let durable = nodes.iter().find(|node| node.node == me).map_or_else(Vec::new, |node| node.durable_kids.clone());
        let loaded = match &*parts.keys.state() {
            Keys::Open(ring) => ring.kids(),
            Keys::Locked(_) => Vec::new(),
        };
        let here = Here {
            durable,
            main: self.main().await?,
            loaded,
            refused: refused.map(|error| error.to_string()),
            remembers_since: parts.node.remembers_since().await?,
        };
        let counted = match (&order.asked, state.phase) {
            (Asked::DestroyOld { kid, .. }, _) => Some(*kid),
            (_, KeyPhase::Rewrapping | KeyPhase::Verified) => {
                let old = survey.master_keys.iter().find(|key| key.state == MasterKeyState::DecryptOnly);
                old.map(|key| key.kid)
            }
            _ => None,
        };
        let under_old = match counted {
            Some(kid) => parts.store.count_under(kid).await?,
            None => UnderKey::default(),
        };
        let from_before = match state.phase {
            KeyPhase::Reencrypting => self.stale().await?,
            _ => Stale::None,
        };
        // For the end of a key they are looked at anew: a copy that came back since it was missed is found too.
        let escrows = match order.asked {
            Asked::DestroyOld { .. } if self.run.tried.is_none() => parts.copies_as_seen().await?,
            _ => parts.store.escrows().await?,
        };
        Ok(Seen {
            state,
            keys: survey.master_keys,
            escrows,
            nodes,
            now: parts.store.now().await?,
            here,
            under_old,
            stale: from_before,
        })
    }

    async fn stale(&self) -> Result<Stale, Trouble> {
        let some = self.service.store.made_before_active(None, 1).await?;
        Ok(if some.is_empty() { Stale::None } else { Stale::Some })
    }

    async fn main(&self) -> Result<Option<Kid>, Trouble> {
        let scan = self.with_files(|files| Ok(files.scan())).await?;
        Ok(match scan {
            Ok(scan) => match scan.main {
                MainFile::Key(key) => Some(key.kid),
                MainFile::Missing | MainFile::Bad(_) => None,
            },
            Err(_) => None,
        })
    }
}
