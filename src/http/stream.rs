//! Long work as an answer: NDJSON, a line for each look at it, the last one how it ended. A reader who goes away stops nothing.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;

use super::problem::Refused;
use crate::service::job::{Progress, Stage, Watch};
use crate::wire::{ProgressLine, StreamLine};

/// How often something is said while nothing changes, so that a client can tell a long step from a dead connection.
const SAY_AGAIN: Duration = Duration::from_secs(5);

/// Follows a piece of work to its end. `answer` turns its result into the fields of the last line.
pub(super) fn follow<T, A>(
    request_id: String,
    mut work: Watch<T>,
    answer: impl Fn(&T) -> A + Send + 'static,
) -> Response
where
    T: Clone + Send + Sync + 'static,
    A: Serialize + Send + 'static,
{
    let (lines, body) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let stage = match tokio::time::timeout(SAY_AGAIN, work.next()).await {
                Ok(Some(stage)) => stage,
                Ok(None) => return,
                Err(_) => Stage::Running(work.latest()),
            };
            let line = match stage {
                Stage::Running(progress) => line(&StreamLine::<A>::Progress(progress_line(progress))),
                Stage::Ended(Ok(result)) => line(&StreamLine::Done(answer(&result))),
                Stage::Ended(Err(error)) => {
                    line(&StreamLine::<A>::Failed { problem: Refused::from(error).problem(&request_id) })
                }
            };
            // Nobody reads any more.
            if lines.send(line).await.is_err() {
                return;
            }
        }
    });
    let mut response = Body::new(Lines(body)).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

fn progress_line(progress: Progress) -> ProgressLine {
    ProgressLine { step: progress.step.into_owned(), done: progress.done, total: progress.total }
}

fn line(line: &impl Serialize) -> Bytes {
    // Text and numbers only: writing them into memory does not fail.
    let mut json = serde_json::to_vec(line).unwrap_or_default();
    json.push(b'\n');
    json.into()
}

/// The lines as they come.
struct Lines(mpsc::Receiver<Bytes>);

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
