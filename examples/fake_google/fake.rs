//! The server: a port for each identity, and one to control it.
//!
//! A service is a module with `operation` (what a request asks for) and `call` (does it).

mod answer;
mod api;
mod faults;
mod identity;
mod kms;
mod secret_manager;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, LOCATION};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use answer::Answer;
use api::{ApiError, Call, Enums};
use faults::{Fault, Rule};
use identity::{IDENTITIES, Identity};
use kms::Kms;
use secret_manager::SecretManager;

/// A running fake. It ends when this is dropped.
pub(crate) struct Fake {
    addresses: Vec<(&'static str, SocketAddr)>,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<Result<()>>>,
}

impl Fake {
    /// Listens on this host at consecutive ports, or at any free ones where the first is 0.
    pub(crate) fn start(first_port: u16) -> Result<Self> {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                drop(tell.send(listen(first_port).await));
                // An error is a dropped sender: the end, too.
                stopped.await.or(Ok(()))
            })
        });
        let addresses = told.recv().context("the server ended")??;
        Ok(Self { addresses, stop: Some(stop), server: Some(server) })
    }

    /// Each identity's address, and `control`'s.
    pub(crate) fn addresses(&self) -> &[(&'static str, SocketAddr)] {
        &self.addresses
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(server) = self.server.take() {
            drop(server.join());
        }
    }
}

/// All that is there.
#[derive(Default)]
struct World {
    secrets: SecretManager,
    kms: Kms,
    rules: Vec<Rule>,
    requests: Vec<Seen>,
}

/// A request that came, without its body.
struct Seen {
    identity: &'static str,
    method: String,
    path: String,
    operation: &'static str,
    status: u16,
    sent: Arc<AtomicU64>,
}

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(first_port: u16) -> Result<Vec<(&'static str, SocketAddr)>> {
    let world = Shared::default();
    let mut addresses = Vec::new();
    for (offset, identity) in (0_u16..).zip(IDENTITIES.iter().map(Some).chain([None])) {
        let port = if first_port == 0 { 0 } else { first_port.checked_add(offset).context("no such port")? };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.with_context(|| format!("port {port}"))?;
        addresses.push((identity.map_or("control", |identity| identity.name), listener.local_addr()?));
        tokio::spawn(accept(listener, identity, Arc::clone(&world)));
    }
    Ok(addresses)
}

async fn accept(listener: TcpListener, identity: Option<&'static Identity>, world: Shared) -> Infallible {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let world = Arc::clone(&world);
                async move {
                    match identity {
                        Some(identity) => serve(request, identity, &world).await,
                        None => control(request, &world).await,
                    }
                }
            });
            // An error here is a connection that a fault closed, or the client.
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

/// Says to close the connection.
#[derive(Debug, thiserror::Error)]
#[error("closed by a fault")]
struct Closed;

async fn serve(
    request: Request<Incoming>,
    identity: &'static Identity,
    world: &Shared,
) -> Result<Response<Answer>, Closed> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, 1 << 20).collect().await.map_err(|_| Closed)?.to_bytes();
    let (method, path) = (head.method.as_str().to_owned(), head.uri.path().to_owned());
    let url = format!("http://fake{}", head.uri.path_and_query().map_or("/", |all| all.as_str()));
    let query: Vec<(String, String)> =
        reqwest::Url::parse(&url).map_err(|_| Closed)?.query_pairs().into_owned().collect();
    let is_kms = kms::operation(&method, &path).is_some();
    let operation = kms::operation(&method, &path).or_else(|| secret_manager::operation(&method, &path));
    let operation = operation.unwrap_or("unknown");
    let fault = faults::take(&mut lock(world).rules, operation, identity.name, &path);
    let see = |status: u16, answer: Answer| {
        let seen = Seen {
            identity: identity.name,
            method: method.clone(),
            path: path.clone(),
            operation,
            status,
            sent: answer.sent(),
        };
        lock(world).requests.push(seen);
        answer
    };

    match fault {
        Some(Fault::Status(status)) => {
            let refusal = ApiError::of_status(status);
            return respond(status, see(status, json_answer(&refusal.body)));
        }
        Some(Fault::Slow) => {
            see(0, Answer::whole(Bytes::new()));
            std::future::pending::<()>().await;
        }
        Some(Fault::Cut) => {
            see(0, Answer::whole(Bytes::new()));
            return Err(Closed);
        }
        Some(Fault::Late) => tokio::time::sleep(std::time::Duration::from_millis(500)).await,
        Some(Fault::Oversized) => return respond(200, see(200, Answer::endless())),
        Some(Fault::Garbage) => {
            return respond(200, see(200, Answer::whole(Bytes::from_static(b"<html>Sign in to the network</html>"))));
        }
        Some(Fault::Redirect) => {
            let mut response = respond(307, see(307, Answer::whole(Bytes::new())))?;
            let elsewhere = format!("{path}?{}", head.uri.query().unwrap_or_default());
            response.headers_mut().insert(LOCATION, elsewhere.parse().map_err(|_| Closed)?);
            return Ok(response);
        }
        Some(Fault::Echo) => {
            let quoted = format!("Invalid value: {}", String::from_utf8_lossy(&body));
            let refusal = json!({"error": {"code": 400, "message": quoted, "status": quoted}});
            return respond(400, see(400, json_answer(&refusal)));
        }
        _ => {}
    }

    let parsed = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body) };
    let numbers = query.iter().any(|(key, value)| key == "$alt" && value.contains("enum-encoding=int"));
    let outcome = match &parsed {
        Ok(body) => {
            let enums = if numbers { Enums::Numbers } else { Enums::Names };
            let call = Call { identity, path: &path, query: &query, body, enums };
            let mut world = lock(world);
            if is_kms { world.kms.call(operation, &call) } else { world.secrets.call(operation, &call) }
        }
        Err(_) => Err(ApiError::invalid("the body is no JSON")),
    };
    let (status, mut answer) = match outcome {
        Ok(answer) => (200, answer),
        Err(refusal) => (refusal.status, refusal.body),
    };
    if let Some(fault) = fault {
        if is_kms { kms::distort(&mut answer, fault) } else { distort(&mut answer, fault) }
    }
    let bytes = Bytes::from(answer.to_string());
    match fault {
        Some(Fault::LostAnswer) => {
            see(0, Answer::whole(Bytes::new()));
            Err(Closed)
        }
        Some(Fault::Truncated) => respond(status, see(status, Answer::truncated(&bytes))),
        Some(Fault::Drip) => respond(status, see(status, Answer::dripping(&bytes))),
        _ => respond(status, see(status, Answer::whole(bytes))),
    }
}

/// Makes a good answer a bad one.
fn distort(answer: &mut Value, fault: Fault) {
    let payload = answer.get_mut("payload").and_then(Value::as_object_mut);
    match (fault, payload) {
        (Fault::FlippedBit, Some(payload)) => {
            let text = payload.get("data").and_then(Value::as_str).unwrap_or_default();
            let mut data = BASE64.decode(text.as_bytes()).unwrap_or_default();
            if let Some(byte) = data.first_mut() {
                *byte ^= 1;
            }
            payload.insert("data".to_owned(), json!(BASE64.encode(&data)));
        }
        (Fault::NoChecksum, Some(payload)) => drop(payload.remove("dataCrc32c")),
        (Fault::Unconfirmed, None) => set(answer, "clientSpecifiedPayloadChecksum", json!(false)),
        (Fault::OtherVersion, _) => {
            let name = answer.get("name").and_then(Value::as_str).unwrap_or_default();
            set(answer, "name", json!(format!("{name}0")));
        }
        (Fault::SamePage, _) => set(answer, "nextPageToken", json!("1")),
        (Fault::EndlessPages, _) => {
            static PAGE: AtomicU64 = AtomicU64::new(0);
            set(answer, "nextPageToken", json!((1 + PAGE.fetch_add(1, Ordering::Relaxed) % 2).to_string()));
        }
        _ => {}
    }
}

fn set(answer: &mut Value, key: &str, value: Value) {
    if let Some(answer) = answer.as_object_mut() {
        answer.insert(key.to_owned(), value);
    }
}

/// `POST /faults`, `DELETE /faults`, `GET /requests`.
async fn control(request: Request<Incoming>, world: &Shared) -> Result<Response<Answer>, Closed> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, 1 << 16).collect().await.map_err(|_| Closed)?.to_bytes();
    let (status, answer) = match (head.method.as_str(), head.uri.path()) {
        ("POST", "/faults") => match Rule::read(&serde_json::from_slice(&body).unwrap_or_default()) {
            Ok(rule) => {
                lock(world).rules.push(rule);
                (200, json!({}))
            }
            Err(help) => (400, help),
        },
        ("DELETE", "/faults") => {
            lock(world).rules.clear();
            (200, json!({}))
        }
        ("GET", "/requests") => (200, lock(world).requests.iter().map(Seen::json).collect()),
        _ => (404, json!({"error": "POST /faults, DELETE /faults, GET /requests"})),
    };
    respond(status, json_answer(&answer))
}

impl Seen {
    fn json(&self) -> Value {
        json!({
            "identity": self.identity,
            "method": self.method,
            "path": self.path,
            "operation": self.operation,
            "status": self.status,
            "sentBytes": self.sent.load(Ordering::Relaxed),
        })
    }
}

fn json_answer(value: &Value) -> Answer {
    Answer::whole(Bytes::from(value.to_string()))
}

fn respond(status: u16, answer: Answer) -> Result<Response<Answer>, Closed> {
    Response::builder().status(status).header(CONTENT_TYPE, "application/json").body(answer).map_err(|_| Closed)
}
