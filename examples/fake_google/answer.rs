//! Bodies of answers, good and bad ones.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::{Sleep, sleep};

/// One thing after the other.
pub(crate) struct Answer {
    parts: VecDeque<Part>,
    pause: Option<Pin<Box<Sleep>>>,
    /// Bytes that were taken from here.
    sent: Arc<AtomicU64>,
}

enum Part {
    Send(Bytes),
    Pause(Duration),
    /// Closes the connection although there is more to come.
    Break,
    /// Sends this again and again.
    Repeat(Bytes),
}

impl Answer {
    pub(crate) fn whole(body: Bytes) -> Self {
        Self::of([Part::Send(body)])
    }

    pub(crate) fn truncated(body: &Bytes) -> Self {
        Self::of([Part::Send(body.slice(..body.len() / 2)), Part::Pause(Duration::from_millis(20)), Part::Break])
    }

    pub(crate) fn dripping(body: &Bytes) -> Self {
        let drops = (0..body.len()).map(|at| body.slice(at..=at));
        Self::of(drops.flat_map(|drop| [Part::Send(drop), Part::Pause(Duration::from_secs(1))]))
    }

    /// JSON that goes on and on: a reader that wants all of it needs all memory.
    pub(crate) fn endless() -> Self {
        Self::of([
            Part::Send(Bytes::from_static(b"{\"payload\":{\"data\":\"")),
            Part::Repeat(Bytes::from(vec![b'A'; 65_536])),
        ])
    }

    pub(crate) fn sent(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }

    fn of(parts: impl IntoIterator<Item = Part>) -> Self {
        Self { parts: parts.into_iter().collect(), pause: None, sent: Arc::default() }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        loop {
            if let Some(pause) = self.pause.as_mut() {
                match pause.as_mut().poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => self.pause = None,
                }
            }
            let bytes = match self.parts.pop_front() {
                None => return Poll::Ready(None),
                Some(Part::Pause(time)) => {
                    self.pause = Some(Box::pin(sleep(time)));
                    continue;
                }
                Some(Part::Break) => return Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionAborted.into()))),
                Some(Part::Repeat(bytes)) => {
                    self.parts.push_front(Part::Repeat(bytes.clone()));
                    bytes
                }
                Some(Part::Send(bytes)) => bytes,
            };
            self.sent.fetch_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
    }
}
