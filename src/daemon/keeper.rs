//! What the daemon does by itself all its life: opens locked keys when their files come, ticks as a node, and tells the service manager
//! how it stands.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Interval;

use super::{interval, notify};
use crate::service::Service;
use crate::service::node::{self, Node, NodeError};
use crate::service::open::{OpenError, Opened, Opener};

/// How often locked keys are looked for again.
const UNLOCK_EVERY: Duration = Duration::from_secs(1);

const READY: &str = "Secrets store ready";

pub(super) struct Keeper {
    node: Arc<Node>,
    service: Arc<Service>,
    opener: Opener,
    /// Why the keys are locked.
    locked: Option<String>,
    /// What the service manager was told last.
    told: String,
    /// What went wrong in the last tick.
    failed: Option<String>,
}

impl Keeper {
    pub(super) fn new((node, service): (Arc<Node>, Arc<Service>), opener: Opener, start: Opened) -> Self {
        let locked = match start {
            Opened::Ready => None,
            Opened::Locked(reason) => {
                tracing::error!("the secrets store is not ready: {reason}");
                Some(reason)
            }
        };
        Self { node, service, opener, locked, told: String::new(), failed: None }
    }

    /// An operator who puts the right file in place, or accepts a restored database, needs no restart.
    ///
    /// It ends only where this process must not go on.
    pub(super) async fn run(mut self) -> NodeError {
        let (mut looks, mut ticks): (Interval, Interval) = (interval(UNLOCK_EVERY), interval(node::TICK));
        loop {
            self.tell();
            let tick = tokio::select! {
                _ = looks.tick(), if self.locked.is_some() => self.look().await,
                _ = ticks.tick() => Tick::Now,
            };
            if tick == Tick::Now
                && let Err(fatal) = self.tick().await
            {
                return fatal;
            }
        }
    }

    async fn tick(&mut self) -> Result<(), NodeError> {
        let failed = match self.node.tick().await {
            Ok(()) => self.service.follow_acceptance().await.err().map(|error| {
                format!("another node accepted the restored database; what this one knows could not be done again yet: {error}")
            }),
            Err(fatal @ NodeError::Taken { .. }) => return Err(fatal),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = failed.as_ref().filter(|_| failed != self.failed) {
            tracing::warn!("{error}");
        }
        self.failed = failed;
        Ok(())
    }

    async fn look(&mut self) -> Tick {
        let said = match self.opener.open().await {
            Ok(Opened::Ready) => {
                self.locked = None;
                return Tick::Now;
            }
            Ok(Opened::Locked(reason)) => reason,
            // The database may be away for a moment; what was said of the keys stays true.
            Err(OpenError::Store(_)) => return Tick::InTime,
            Err(error) => {
                let reason = error.to_string();
                if self.locked.as_ref() != Some(&reason) {
                    self.opener.lock(reason.clone());
                }
                reason
            }
        };
        if self.locked.as_ref() != Some(&said) {
            tracing::warn!("still not ready: {said}");
            self.locked = Some(said);
        }
        Tick::InTime
    }

    fn tell(&mut self) {
        let waiting = self.node.waiting_for();
        let status = match &self.locked {
            Some(reason) => format!("Waiting for keys: {}", one_line(reason)),
            None if waiting.is_empty() => READY.to_owned(),
            None => format!("Not ready: {}", one_line(&waiting.join("\n"))),
        };
        if status != self.told {
            notify(&[NotifyState::Status(&status)]);
            self.told = status;
        }
    }
}

/// When to tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tick {
    Now,
    InTime,
}

/// A reason in one line, which is all that a status has (sd_notify(3)): the keys and the commands stay in it. systemd reads 4,096 bytes.
fn one_line(reason: &str) -> String {
    let lines: Vec<&str> = reason.lines().map(str::trim).collect();
    lines.join("; ").chars().take(1800).collect()
}
