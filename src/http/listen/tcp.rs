//! TCP, with TLS where there is a certificate: a share of the connections for each address, and a time for the handshake.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::shares::Shares;
use super::{Ended, Order, Serving, converse, drained, no_longer};
use crate::http::extract::Address;
use crate::http::limits;
use crate::telemetry::{self, Turned};
use crate::tls::Certificates;

/// How long a TLS handshake may take: two round trips and a signature.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("another process listens on {address} already: stop it, or give another --{setting}")]
    InUse { setting: &'static str, address: SocketAddr },
    #[error(
        "no permission to listen on {address}: ports below 1024 need CAP_NET_BIND_SERVICE; give a higher one with --{setting}"
    )]
    Denied { setting: &'static str, address: SocketAddr },
    #[error(
        "{address} is no address of this host: give one that `ip address` shows, or 0.0.0.0 or [::] for all, with --{setting}"
    )]
    NotOurs { setting: &'static str, address: SocketAddr },
    #[error("cannot listen on {address} (--{setting}): {cause}")]
    Io { setting: &'static str, address: SocketAddr, cause: io::Error },
}

/// A TCP address that is listened on, not yet served.
pub struct Tcp {
    listener: TcpListener,
    address: SocketAddr,
}

impl Tcp {
    /// Where it listens; the port is the one that was got, where 0 asked for any.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves as [`super::serve`] does; at most `connections` at once, and `per_address` of one host. Without certificates HTTP is plain.
    pub async fn serve(
        self,
        certificates: Option<Arc<Certificates>>,
        (connections, per_address): (u32, u32),
        mut serving: Serving,
    ) -> Ended {
        let tasks = TaskTracker::new();
        let room = Arc::new(Semaphore::new(connections as usize));
        let shares = Shares::of(per_address);
        loop {
            let accepted = tokio::select! {
                biased;
                () = no_longer(&mut serving.orders, Order::Serve) => break,
                accepted = accept(&self.listener, &room) => accepted,
            };
            let Some((stream, peer, place)) = accepted else { continue };
            let source = limits::source(peer);
            let Some(share) = shares.take(source) else {
                telemetry::turned_away(Turned::Connections);
                continue;
            };
            let (serving, certificates) = (serving.clone(), certificates.clone());
            tasks.spawn(async move {
                talk(stream, Address(peer), certificates.as_deref(), serving).await;
                drop((share, place));
            });
        }
        drop(self.listener);
        drained(tasks, serving).await
    }
}

/// Listens; serving begins later, when there is something to serve.
///
/// # Errors
/// [`BindError`].
pub fn bind(setting: &'static str, address: SocketAddr) -> Result<Tcp, BindError> {
    let io = |cause| BindError::Io { setting, address, cause };
    let listener = std::net::TcpListener::bind(address).map_err(|cause| not_bound(setting, address, cause))?;
    listener.set_nonblocking(true).map_err(io)?;
    let listener = TcpListener::from_std(listener).map_err(io)?;
    let address = listener.local_addr().map_err(io)?;
    Ok(Tcp { listener, address })
}

/// Whether it could be listened on.
///
/// # Errors
/// [`BindError`].
pub fn probe(setting: &'static str, address: SocketAddr) -> Result<(), BindError> {
    std::net::TcpListener::bind(address).map(drop).map_err(|cause| not_bound(setting, address, cause))
}

fn not_bound(setting: &'static str, address: SocketAddr, cause: io::Error) -> BindError {
    match cause.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { setting, address },
        io::ErrorKind::PermissionDenied => BindError::Denied { setting, address },
        io::ErrorKind::AddrNotAvailable => BindError::NotOurs { setting, address },
        _ => BindError::Io { setting, address, cause },
    }
}

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<(TcpStream, IpAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer.ip(), place)),
        Err(error) => {
            tracing::warn!("a connection could not be accepted: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// One connection. A handshake that fails is a peer's own affair, as HTTP is that nobody can read; the configuration is taken at its
/// beginning, so that a reload changes nothing for who is there.
async fn talk(stream: TcpStream, address: Address, certificates: Option<&Certificates>, mut serving: Serving) {
    // Answers are written whole; waiting for more to send would add a delay to each. Where it cannot be set they are slower, no more.
    let _slower = stream.set_nodelay(true);
    let Some(certificates) = certificates else { return converse(stream, Some(address), serving).await };
    let handshake = TlsAcceptor::from(certificates.present()).accept(stream);
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(HANDSHAKE_TIME, handshake) => greeted,
        // Nothing was promised to who has not said hello.
        () = no_longer(&mut serving.orders, Order::Serve) => return,
    };
    if let Ok(Ok(stream)) = greeted {
        converse(stream, Some(address), serving).await;
    } else {
        telemetry::turned_away(Turned::Handshake);
    }
}
