//! The daemon's life: take the data directory, open the store, open the keys, listen, serve, drain, stop.

mod keeper;
mod socket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::task::TaskTracker;

use crate::audit;
use crate::clock::Clock;
use crate::compose::{self, ComposeError, Composed};
use crate::config::{Config, FirstStart, LogFormat};
use crate::http::listen::{self, BindError, Ended, Order, Serving, Tcp};
use crate::http::{self, App, Rates, Surface};
use crate::process::{DataDirError, DataDirLock, Warning};
use crate::service::Service;
use crate::service::node::NodeError;
use crate::service::open::OpenError;
use crate::telemetry::{self, Metrics};
use crate::tls::{Certificates, TlsError, Validity};

use keeper::Keeper;
use socket::{OpenTo, SocketError};

/// How often caches and metrics are tidied.
const TICK: Duration = Duration::from_secs(1);
/// How long the store may take to close while requests that were cut off hold on to it, and before that to give the last records their places.
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
    #[error("TLS cannot be served: {0}")]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Bind(#[from] BindError),
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
            Self::Compose(ComposeError::DatabaseUrl(_) | ComposeError::Tls(_) | ComposeError::Issuers(_))
            | Self::Tls(_) => 2,
            Self::Compose(ComposeError::Store(_) | ComposeError::SqliteHoldsSecrets { .. })
            | Self::Open(_)
            | Self::Node(NodeError::Store(_)) => 5,
            Self::DataDir(DataDirError::Held { .. })
            | Self::Socket(SocketError::InUse { .. })
            | Self::Bind(BindError::InUse { .. })
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
    let network = Network::bind(&config)?;
    let Composed { store, audit, clock, node, service, opener } = compose::daemon(&config).await?;
    service.know_unprotected(unprotected.iter().map(ToString::to_string).collect());
    node.look_back().await?;
    let opened = opener.open().await?;
    // Before anything is served: whether another process uses this node's id.
    node.tick().await?;
    let open_to = if config.socket_users.is_empty() { OpenTo::Owner } else { OpenTo::Everybody };
    let socket = socket::bind(&config.socket, open_to)?;
    tracing::info!("listening on {}", config.socket.display());

    let (order, orders) = watch::channel(Order::Serve);
    let requests = TaskTracker::new();
    let limits = config.limits;
    let rates = Rates::new(Arc::clone(&clock), limits.requests_per_identity, limits.requests_per_address);
    let app = App {
        service: Arc::clone(&service),
        metrics: Arc::clone(&metrics),
        clock: Arc::clone(&clock),
        requests: requests.clone(),
        surface: Surface::Socket,
        rates: Arc::new(rates),
        body_time: limits.body_time,
    };
    let router = http::router(app.clone());
    let serving = Serving { router, requests, orders, header_time: limits.header_time };
    let certificates = network.certificates.clone();
    note_validity(certificates.as_deref(), network.validity, &*clock);
    let rates = Arc::clone(&app.rates);
    let on_socket = listen::serve(socket.listener, config.socket_users.keys().copied().collect(), serving.clone());
    let mut served = tokio::spawn(all_of(network.serve(&config, &app, &serving), on_socket));
    notify(&[NotifyState::Ready]);
    let mut keeping = tokio::spawn(Keeper::new((node, Arc::clone(&service)), opener, opened).run());
    keep_at_it(&service);
    note_settings(&config);
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
            rates.tick();
        }
    });

    let auditing = tokio::spawn(keep_auditing(Arc::clone(&service)));

    let ended = tokio::select! {
        () = signals.wait(|| reload(certificates.as_deref(), &service, &*clock)) => Ok(()),
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
        () = signals.wait(|| tracing::info!("SIGHUP: nothing is read anew while the daemon stops")) => {
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
    end_auditing(&service).await;
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

/// What the daemon does by itself until it stops.
fn keep_at_it(service: &Arc<Service>) {
    service.keep_shredding();
    service.keep_rotating();
    service.keep_proving();
    service.keep_looking_for_copies();
    service.keep_tokens();
    service.keep_issuers();
    service.keep_pruning();
}

/// Apart from the other work of each second, and in two, since one waits for a disk and the other for the database: whoever waits to hear
/// that they are turned away must not wait for a database that has fallen silent longer than a sink is given.
async fn keep_auditing(service: Arc<Service>) {
    let (mut seconds, mut ticks) = (interval(TICK), interval(TICK));
    let ending = async {
        loop {
            seconds.tick().await;
            service.end_second().await;
        }
    };
    let linking = async {
        loop {
            ticks.tick().await;
            service.tick_audit().await;
        }
    };
    tokio::join!(ending, linking);
}

/// What was recorded in the last second gets its place before the end: of a record without one nobody could tell that it was removed while no
/// daemon ran. Where the database is away the next start does it.
async fn end_auditing(service: &Service) {
    service.end_second().await;
    let _away = tokio::time::timeout(CLOSE_TIME, service.tick_audit()).await;
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

/// Whether each TCP address of the settings could be listened on.
///
/// # Errors
/// [`BindError`].
pub fn probe(config: &Config) -> Result<(), BindError> {
    tcp_addresses(config).into_iter().try_for_each(|(_, setting, address)| listen::probe(setting, address))
}

fn tcp_addresses(config: &Config) -> Vec<(Surface, &'static str, SocketAddr)> {
    let asked = [
        (Surface::Network, "listen", config.network.listen),
        (Surface::Watchers, "metrics-listen", config.network.metrics_listen),
    ];
    asked.into_iter().filter_map(|(surface, setting, address)| Some((surface, setting, address?))).collect()
}

/// TCP, bound before a key and a database are made for a daemon that could not be reached.
struct Network {
    listeners: Vec<(Surface, Tcp)>,
    certificates: Option<Arc<Certificates>>,
    validity: Option<Validity>,
}

impl Network {
    fn bind(config: &Config) -> Result<Self, StartError> {
        let opened = compose::tls_pair(config).map(Certificates::open).transpose()?;
        let (certificates, validity) = opened.map(|(open, validity)| (Arc::new(open), validity)).unzip();
        let mut listeners = Vec::new();
        for (surface, setting, address) in tcp_addresses(config) {
            listeners.push((surface, listen::bind(setting, address)?));
        }
        Ok(Self { listeners, certificates, validity })
    }

    /// Begins to serve.
    fn serve(self, config: &Config, app: &App, serving: &Serving) -> Vec<JoinHandle<Ended>> {
        let limits = &config.limits;
        let connections = (limits.connections.get(), limits.connections_per_address.get());
        let begin = |(surface, listener): (Surface, Tcp)| {
            let scheme = if self.certificates.is_some() { "https" } else { "http" };
            let what = if surface == Surface::Watchers { " for metrics and health" } else { "" };
            tracing::info!("listening on {scheme}://{}{what}", listener.address());
            let router = http::router(App { surface, ..app.clone() });
            let serving = Serving { router, ..serving.clone() };
            tokio::spawn(listener.serve(self.certificates.clone(), connections, serving))
        };
        self.listeners.into_iter().map(begin).collect()
    }
}

/// Drained once all are.
async fn all_of(others: Vec<JoinHandle<Ended>>, socket: impl Future<Output = Ended>) -> Ended {
    let mut ended = socket.await;
    for other in others {
        match other.await {
            Ok(Ended::Drained) => {}
            Ok(Ended::Cut) => ended = Ended::Cut,
            Err(_) => {
                tracing::error!("a listener ended with a panic");
                ended = Ended::Cut;
            }
        }
    }
    ended
}

/// SIGHUP: what cannot be used leaves in use what was there before.
fn reload(certificates: Option<&Certificates>, service: &Service, clock: &dyn Clock) {
    let has_issuers = service.reread_issuers();
    if has_issuers {
        tracing::info!("SIGHUP: the keys of issuers are read anew");
    }
    match certificates.map(|certificates| (certificates, certificates.reload())) {
        Some((certificates, Ok(validity))) => {
            tracing::info!("SIGHUP: new connections get the TLS certificate {}", certificates.certificate().display());
            note_validity(Some(certificates), Some(validity), clock);
        }
        Some((_, Err(error))) => tracing::error!("SIGHUP: the TLS certificate stays as it was: {error}"),
        None if has_issuers => {}
        None => tracing::info!("SIGHUP: there is nothing to reload"),
    }
}

/// What an operator should know of settings that hold.
fn note_settings(config: &Config) {
    for warning in compose::warnings_of_issuers(config) {
        tracing::warn!("{warning}");
    }
    if let Some(endpoint) = compose::destinations(config).elsewhere() {
        // Left over from a trial, it would make whatever listens there an off-host copy.
        tracing::warn!("copies of the master key go to {endpoint} and not to Google: `[backup.gcp] endpoint` says so");
    }
}

fn note_validity(certificates: Option<&Certificates>, validity: Option<Validity>, clock: &dyn Clock) {
    let (Some(certificates), Some(validity)) = (certificates, validity) else { return };
    telemetry::certificate_ends(validity.ends());
    if let Some(warning) = validity.warning(clock.wall(), certificates.certificate()) {
        tracing::warn!("{warning}");
    }
}

/// What stops the daemon, and what has it read its certificate and the keys of issuers anew. SIGHUP is taken in any case, so that a terminal that closes does not
/// cut requests off.
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

    /// Waits for one that stops the daemon.
    async fn wait(&mut self, on_hangup: impl Fn()) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => on_hangup(),
            }
        }
    }
}
