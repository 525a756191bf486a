//! What this node says of itself, and how it notices another process under its id.

use std::time::Duration;

use super::{Node, NodeError, Progress, Seen};
use crate::keys::Keys;
use crate::model::{KeyState, Kid, StoreKind};
use crate::store::masters::{Beat, Beaten};

/// The longest that a node says nothing; a node counts as live for three times as long.
const HEARTBEAT: Duration = Duration::from_secs(10);

impl Node {
    pub(super) fn epoch_served(&self, state: Option<&KeyState>) -> u64 {
        match (&*self.keys.state(), state) {
            (Keys::Open(ring), Some(state)) if ring.holds(state.active_kid) => state.epoch,
            _ => 0,
        }
    }

    pub(super) async fn beat(&self, progress: &mut Progress, durable: Vec<Kid>, epoch: u64) -> Result<(), NodeError> {
        let now = self.clock.monotonic();
        if let Some((kids, before, at)) = &progress.beaten
            && (kids, *before) == (&durable, epoch)
            && now.saturating_sub(*at) < HEARTBEAT
        {
            return Ok(());
        }
        if progress.beaten.is_none() {
            self.with_file(|file| file.enter()).await??;
        }
        let mut beat = Beat { holder: self.holder, previous_boot: None, durable_kids: &durable, epoch };
        let mut beaten = self.store.heartbeat(&beat).await?;
        if let Beaten::Taken { boot, .. } = beaten
            && (self.is_sole() || self.with_file(move |file| file.is_earlier(boot)).await?)
        {
            beat.previous_boot = Some(boot);
            beaten = self.store.heartbeat(&beat).await?;
        }
        if let Beaten::Taken { boot, seen_at } = beaten {
            self.stand(Seen::Taken);
            return Err(NodeError::Taken { node: self.holder.node, boot, seen_at });
        }
        progress.beaten = Some((durable, epoch, now));
        Ok(())
    }

    /// Whether no other process can be on this database: SQLite's lies in the data directory, whose lock is ours, wherever it was copied.
    fn is_sole(&self) -> bool {
        self.store.kind() == StoreKind::Sqlite
    }
}
