//! Accepts connections, on the Unix socket and over TCP, says who is at the other end, and drains.

mod shares;
mod tcp;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tower::Service as _;

use super::extract::Peer;
use super::patience::Patient;
use crate::telemetry::{self, Turned};

use shares::Shares;

pub use tcp::{BindError, Tcp, bind, probe};

/// How many connections are served at once on the socket; further ones wait to be accepted. Not those of TCP: strangers there must not
/// keep the operator out.
const MAX_CONNECTIONS: usize = 1024;
/// Of those, how many may be other users' than root and the daemon's own, and how many one user's: the socket is open to every user of the
/// host, and none may keep the operator or another out.
const OTHERS_CONNECTIONS: usize = 896;
const USERS_CONNECTIONS: u32 = 256;
/// How long a peer may take nothing of its answer.
const TAKE_TIME: Duration = Duration::from_secs(30);
/// How long the answers that are under way may take when the daemon stops.
const DRAIN_TIME: Duration = Duration::from_secs(20);
/// How long a head that is half there may take then: nothing was promised to whoever sends it.
const GRACE: Duration = Duration::from_secs(1);

/// What the listener is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Serve,
    /// Accept nothing more, and finish what is under way.
    Drain,
    /// Not even that.
    Stop,
}

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Every request was answered.
    Drained,
    /// Some were not.
    Cut,
}

/// What a listener serves, until when, and how patiently.
#[derive(Clone)]
pub struct Serving {
    pub router: Router,
    /// Requests under way on every listener.
    pub requests: TaskTracker,
    pub orders: watch::Receiver<Order>,
    /// How long a request's head may take, from the connection's start or the answer before: an idle connection is closed after it.
    pub header_time: Duration,
}

/// Serves the socket, with a share of the connections for each user whom the settings name, until the order is another; then accepts nothing more, finishes what is under way, and returns.
pub async fn serve(listener: UnixListener, named: BTreeSet<u32>, mut serving: Serving) -> Ended {
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (others, shares) = (Arc::new(Semaphore::new(OTHERS_CONNECTIONS)), Shares::of(USERS_CONNECTIONS));
    let is_named = |uid: &u32| named.contains(uid);
    let own = rustix::process::geteuid().as_raw();
    loop {
        let accepted = tokio::select! {
            biased;
            () = no_longer(&mut serving.orders, Order::Serve) => break,
            accepted = accept(&listener, &room) => accepted,
        };
        let Some((stream, place)) = accepted else { continue };
        let (peer, serving) = (peer(&stream), serving.clone());
        let share = match peer {
            Some(peer) if peer.uid == 0 || peer.uid == own => None,
            // Those whom the settings do not name, and who get no more than a refusal, have one share together: one user of the host can
            // have many uids.
            peer => {
                let user = peer.map(|peer| peer.uid).filter(is_named);
                let (Ok(other), Some(share)) = (Arc::clone(&others).try_acquire_owned(), shares.take(user)) else {
                    telemetry::turned_away(Turned::Connections);
                    continue;
                };
                Some((other, share))
            }
        };
        connections.spawn(async move {
            converse(stream, peer, serving).await;
            drop((share, place));
        });
    }
    drop(listener);
    drained(connections, serving).await
}

/// Waits for what is under way, as long as the orders allow.
async fn drained(connections: TaskTracker, serving: Serving) -> Ended {
    let Serving { requests, mut orders, .. } = serving;
    connections.close();
    requests.close();
    // A request outlives a caller who hung up, so the connections' end is not yet the requests'.
    let drained = async {
        connections.wait().await;
        requests.wait().await;
    };
    tokio::select! {
        () = drained => {}
        () = tokio::time::sleep(DRAIN_TIME) => {}
        () = no_longer(&mut orders, Order::Drain) => {}
    }
    if requests.is_empty() {
        return Ended::Drained;
    }
    tracing::warn!("requests under way were cut off");
    Ended::Cut
}

/// Returns once the order is neither this nor an earlier one, or nobody is left to give another.
async fn no_longer(orders: &mut watch::Receiver<Order>, order: Order) {
    let _nobody_left = orders.wait_for(|now| *now != order && *now != Order::Serve).await;
}

/// Serves one connection to its end; each request is told of the `peer`. From a drain on, one that is in no request has [`GRACE`].
async fn converse<S, P>(stream: S, peer: Option<P>, serving: Serving)
where
    S: AsyncRead + AsyncWrite + Unpin,
    P: Copy + Send + Sync + 'static,
{
    let Serving { router, requests, mut orders, header_time } = serving;
    let busy = Arc::new(());
    let connection = {
        let busy = Arc::clone(&busy);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            let under_way = Arc::new(UnderWay { _request: requests.token(), _connection: Arc::clone(&busy) });
            let answer = router.clone().call(request);
            async move { Ok::<_, Infallible>(answer.await?.map(|body| Answer { body, under_way })) }
        });
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_time)
            .serve_connection(TokioIo::new(Patient::new(stream, TAKE_TIME)), service)
    };
    let mut connection = pin!(connection);
    // An error of a connection is a peer that hung up or spoke no HTTP: theirs, and it may hold what they sent.
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = no_longer(&mut orders, Order::Serve) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = tokio::time::sleep(GRACE) => {}
    }
    // One is held here, and one by the service to give to requests.
    if Arc::strong_count(&busy) > 2 {
        let _ended = connection.await;
    }
}

async fn accept(listener: &UnixListener, room: &Arc<Semaphore>) -> Option<(UnixStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            // Out of descriptors, most likely: that passes, and spinning would not help it.
            tracing::warn!("a connection could not be accepted: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

fn peer(stream: &UnixStream) -> Option<Peer> {
    stream.peer_cred().ok().map(|peer| Peer { uid: peer.uid(), pid: peer.pid() })
}

/// A request from its head to the last byte of its answer: what a drain waits for.
struct UnderWay {
    _request: TaskTrackerToken,
    _connection: Arc<()>,
}

/// An answer's body, whose request is under way until the kernel has taken its bytes: hyper lets go of the body itself before.
struct Answer {
    body: Body,
    under_way: Arc<UnderWay>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        frame.map_ok(|frame| {
            frame.map_data(|bytes| Bytes::from_owner(Part { bytes, _under_way: Arc::clone(&self.under_way) }))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Part {
    bytes: Bytes,
    _under_way: Arc<UnderWay>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
