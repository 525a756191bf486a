//! The daemon's life: take the data directory, open the store, open the keys, listen, serve, drain, stop.

mod keeper;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::task::TaskTracker;

use crate::audit;
use crate::compose::{self, ComposeError, Composed};
use crate::config::{Config, FirstStart, LogFormat};
use crate::http::listen::{self, Ended, Order};
use crate::http::{self, App};
use crate::process::{DataDirError, DataDirLock, Warning};
use crate::service::node::NodeError;
use crate::service::open::OpenError;
use crate::telemetry::{self, Metrics};

use keeper::Keeper;
use socket::SocketError;

/// How often caches and metrics are tidied.
const TICK: Duration = Duration::from_secs(1);
/// How long the store may take to close while requests that were cut off hold on to it.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Why the daemon did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Compose(#[from] ComposeError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("metrics could not be started: {0}")]
    Metrics(String),
    #[error("signals could not be listened for: {0}")]
    Signals(std::io::Error),
}

impl StartError {
    /// 2: a setting is wrong; 5: database or key are not available; 6: another daemon is there, or uses this node's id; else 1.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Compose(ComposeError::DatabaseUrl(_)) => 2,
            Self::Compose(ComposeError::Store(_) | ComposeError::SqliteHoldsSecrets { .. })
            | Self::Open(_)
            | Self::Node(NodeError::Store(_)) => 5,
            Self::DataDir(DataDirError::Held { .. })
            | Self::Socket(SocketError::InUse { .. })
            | Self::Node(NodeError::Taken { .. }) => 6,
            _ => 1,
        }
    }
}

/// Runs the daemon until SIGTERM or SIGINT, or until another process turns out to use its node's id. `unprotected` is what hardening the process could not do.
///
/// # Errors
/// [`StartError`], logged too. Nothing was changed that a later start would trip over.
pub async fn run(config: Config, unprotected: &[Warning]) -> Result<(), StartError> {
    telemetry::start_logs(match config.log_format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    });
    for warning in unprotected {
        tracing::warn!("{warning}");
    }
    if audit::IS_OFF {
        tracing::error!("this build is for benchmarks only: it records neither reads nor refusals");
    }
    serve(config, unprotected).await.inspect_err(|error| tracing::error!("{error}"))
}

async fn serve(config: Config, unprotected: &[Warning]) -> Result<(), StartError> {
    compose::check(&config)?;
    let mut signals = Signals::listen().map_err(StartError::Signals)?;
    let metrics = Arc::new(Metrics::install().map_err(|error| StartError::Metrics(error.to_string()))?);
    let _data_dir = DataDirLock::take(&config.data_dir)?;
    socket::check(&config.socket)?;
    let Composed { store, audit, clock, node, service, opener } = compose::daemon(&config).await?;
    service.know_unprotected(unprotected.iter().map(ToString::to_string).collect());
    node.look_back().await?;
    let opened = opener.open().await?;
    // Before anything is served: whether another process uses this node's id.
    node.tick().await?;
    let socket = socket::bind(&config.socket)?;
    tracing::info!("listening on {}", config.socket.display());

    let (order, orders) = watch::channel(Order::Serve);
    let requests = TaskTracker::new();
    let app = App { service: Arc::clone(&service), metrics: Arc::clone(&metrics), clock, requests: requests.clone() };
    let mut served = tokio::spawn(listen::serve(socket.listener, http::router(app), requests, orders));
    notify(&[NotifyState::Ready]);
    let mut keeping = tokio::spawn(Keeper::new(node, opener, opened).run());
    service.keep_shredding();
    service.keep_rotating();
    if let Some(endpoint) = config.backup_gcp.as_ref().and_then(|backup| backup.endpoint.as_ref()) {
        // Left over from a trial, it would make whatever listens there an off-host copy.
        tracing::warn!("copies of the master key go to {endpoint} and not to Google: `[backup.gcp] endpoint` says so");
    }
    if config.backup_gcp.as_ref().is_some_and(|backup| backup.first_start == FirstStart::Push) {
        service.push_at_start();
    }
    let ticked = Arc::clone(&service);
    let ticking = tokio::spawn(async move {
        let mut ticks = interval(TICK);
        loop {
            ticks.tick().await;
            ticked.tick();
            metrics.tick();
        }
    });

    // Apart from the others: it waits for a disk.
    let ticked = Arc::clone(&service);
    let auditing = tokio::spawn(async move {
        let mut ticks = interval(TICK);
        loop {
            ticks.tick().await;
            ticked.tick_audit().await;
        }
    });

    let ended = tokio::select! {
        () = signals.wait() => Ok(()),
        ended = &mut keeping => Err(StartError::Node(ended.unwrap_or(NodeError::Panicked))),
    };
    tracing::info!("stopping: no new connections; requests under way are finished; a second signal cuts them off");
    notify(&[NotifyState::Stopping]);
    order.send_replace(Order::Drain);
    // Who watches long work is a connection that waits for its end.
    let working = Arc::clone(&service);
    let work = tokio::spawn(async move { working.stop_work().await });
    let drained = tokio::select! {
        drained = &mut served => drained,
        () = signals.wait() => {
            tracing::info!("stopping at once");
            order.send_replace(Order::Stop);
            served.await
        }
    };
    let drained = drained.unwrap_or_else(|_| {
        tracing::error!("the listener ended with a panic");
        Ended::Cut
    });
    match drained {
        Ended::Drained if work.await.is_err() => tracing::error!("long work ended with a panic"),
        Ended::Drained | Ended::Cut => {}
    }
    keeping.abort();
    ticking.abort();
    auditing.abort();
    socket.file.remove();
    // The audit last: what a request that was cut off had under way in the store is still recorded.
    match drained {
        Ended::Drained => store.close().await,
        Ended::Cut => {
            let _under_way = tokio::time::timeout(CLOSE_TIME, store.close()).await;
        }
    }
    audit.close().await;
    tracing::info!("stopped");
    ended
}

fn interval(every: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Tells systemd, where it started us. Without it there is nobody to tell.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("the service manager could not be told: {error}");
    }
}

/// What stops the daemon. SIGHUP is taken and does nothing, so that a terminal that closes does not cut requests off.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => tracing::info!("SIGHUP: there is nothing to reload"),
            }
        }
    }
}
