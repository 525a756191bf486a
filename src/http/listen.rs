//! The Unix socket: accepts connections, says who is at the other end, and drains.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;
use tower::Service as _;

use super::extract::Peer;

/// How many connections are served at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;
/// How long a request's head may take, from the connection's start or the answer before: an idle connection is closed after it.
const HEAD_TIME: Duration = Duration::from_mins(1);
/// How long the answers that are under way may take when the daemon stops.
const DRAIN_TIME: Duration = Duration::from_secs(20);

/// Serves until `stop` says so; then accepts nothing more, finishes what is under way, and returns.
pub async fn serve(listener: UnixListener, router: Router, requests: TaskTracker, mut stop: watch::Receiver<bool>) {
    let connections = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener, &room) => accepted,
        };
        let Some((stream, place)) = accepted else { continue };
        let connection = connections.watch(connection(stream, router.clone()));
        tokio::spawn(async move {
            // An error here is a peer that hung up or spoke no HTTP: theirs, and it may hold what they sent.
            let _ended = connection.await;
            drop(place);
        });
    }
    drop(listener);
    // A request outlives a caller who hung up, so the connections' end is not yet the requests'.
    let drained = async {
        connections.shutdown().await;
        requests.close();
        requests.wait().await;
    };
    if tokio::time::timeout(DRAIN_TIME, drained).await.is_err() {
        tracing::warn!("some requests did not end within {} s and were cut off", DRAIN_TIME.as_secs());
    }
}

async fn accept(
    listener: &UnixListener,
    room: &Arc<Semaphore>,
) -> Option<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
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

fn connection(
    stream: UnixStream,
    app: Router,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> {
    let peer = stream.peer_cred().ok().map(|peer| Peer { uid: peer.uid(), pid: peer.pid() });
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        app.clone().call(request)
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service)
}
