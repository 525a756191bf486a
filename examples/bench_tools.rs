//! What scripts/bench-rotation cannot do from a shell: tenants by the million, and a load whose rate does not yield to a slow answer.
//!
//!     bench_tools deks KEY_FILE KIND COUNT      rows of `tenants` or `deks`, as COPY reads them, the DEKs wrapped by this key
//!     bench_tools load SOCKET RATE SECONDS CONNECTIONS [first-writes]
//!     bench_tools most SOCKET SECONDS CONNECTIONS       as many as are answered
//!
//! SOCKET is a path, or `tcp:ADDRESS` with a token in `BENCH_TOKEN`.
//!
//! `load` ends early at SIGTERM, with its figures. It is an open loop (each request has its moment, and its latency counts from there) and not a closed one: a server that stands
//! still for a second otherwise costs one slow answer instead of all that were due.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures by the process's own clock")]
#![expect(clippy::print_stdout, reason = "its figures and its rows are its output")]

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use containarium::crypto::{self, DekPlace, KeyfileImage};
use containarium::model::{DekVersion, Tenant};
use data_encoding::HEXLOWER;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

type Failed = Box<dyn Error + Send + Sync>;

/// Secrets that the load reads, each of a tenant of its own; the script sets them first.
const READ: u64 = 100;
/// An answer that takes longer than this counts as an error.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *arguments.as_slice() {
        ["deks", key_file, kind, count] => rows(Path::new(key_file), kind, count.parse()?),
        ["load", socket, rate, seconds, connections] => {
            load(Load::new(socket, Some(rate.parse()?), seconds, connections, Kind::Get)?)
        }
        ["load", socket, rate, seconds, connections, "first-writes"] => {
            load(Load::new(socket, Some(rate.parse()?), seconds, connections, Kind::FirstWrite)?)
        }
        ["most", socket, seconds, connections] => load(Load::new(socket, None, seconds, connections, Kind::Get)?),
        _ => {
            Err("bench_tools deks KEY_FILE tenants|deks COUNT | load SOCKET RATE SECONDS CONNECTIONS [first-writes] | \
                  most SOCKET SECONDS CONNECTIONS"
                .into())
        }
    }
}

fn rows(key_file: &Path, kind: &str, count: u64) -> Result<(), Failed> {
    let master = KeyfileImage::read_from(&mut std::fs::File::open(key_file)?)?.master()?;
    let kek = crypto::derive_kek(&master);
    let wrapped_by = HEXLOWER.encode(kek.kid().as_bytes());
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for number in 0..count {
        let tenant = Tenant::parse(&format!("many-{number:08}"))?;
        if kind == "tenants" {
            writeln!(out, "{}\t0", tenant.as_str())?;
            continue;
        }
        let place = DekPlace { tenant: &tenant, version: DekVersion::FIRST };
        let dek = crypto::make_dek(place)?;
        let (id, wrapped) = (HEXLOWER.encode(crypto::dek_id(&dek).as_bytes()), crypto::wrap(&kek, place, &dek)?);
        let wrapped = HEXLOWER.encode(&wrapped);
        writeln!(out, "{}\t1\t\\\\x{wrapped_by}\t\\\\x{id}\tactive\t\\\\x{wrapped}\t0", tenant.as_str())?;
    }
    Ok(out.flush()?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Get,
    /// A tenant's first secret, each time another tenant's: it makes a DEK, which is what waits for a flip. Other writes do not.
    FirstWrite,
}

struct Load {
    socket: String,
    /// Presented with each request, where there is one.
    token: Option<String>,
    /// Requests in a second; `None`: each connection asks again as soon as it is answered.
    rate: Option<f64>,
    lasts: Duration,
    connections: u32,
    kind: Kind,
    stopped: AtomicBool,
}

impl Load {
    fn new(socket: &str, rate: Option<f64>, seconds: &str, connections: &str, kind: Kind) -> Result<Self, Failed> {
        let lasts = Duration::from_secs_f64(seconds.parse()?);
        let connections = connections.parse()?;
        let token = std::env::var("BENCH_TOKEN").ok();
        Ok(Self { socket: socket.to_owned(), token, rate, lasts, connections, kind, stopped: AtomicBool::new(false) })
    }
}

/// One answered request: when it was due, and how long after that its answer was there.
struct Answer {
    due: Duration,
    took: Duration,
    good: bool,
}

fn load(load: Load) -> Result<(), Failed> {
    let load = Arc::new(load);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let (began_at, answers) = runtime.block_on(async {
        let (mut terminated, all) = (signal(SignalKind::terminate())?, Arc::clone(&load));
        let _stopper = tokio::spawn(async move {
            terminated.recv().await;
            all.stopped.store(true, Ordering::Relaxed);
        });
        let (began_at, began) = (SystemTime::now().duration_since(UNIX_EPOCH)?, Instant::now());
        let mut connections = JoinSet::new();
        for number in 0..load.connections {
            connections.spawn(connection(Arc::clone(&load), run, number, began));
        }
        let done: Vec<_> = connections.join_all().await.into_iter().collect::<Result<_, _>>()?;
        Ok::<(Duration, Vec<Answer>), Failed>((began_at, done.into_iter().flatten().collect()))
    })?;
    let mut took: Vec<Duration> = answers.iter().map(|answer| answer.took).collect();
    took.sort_unstable();
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = ((took.len() as f64 * share) as usize).min(took.len().saturating_sub(1));
        took.get(index).copied().unwrap_or_default().as_secs_f64() * 1000.0
    };
    let errors = answers.iter().filter(|answer| !answer.good).count();
    // Writes with their moments, as the database's clock has them: the script looks for those around the flip.
    let moments = answers.iter().filter(|_| load.kind == Kind::FirstWrite).map(|answer| {
        format!("[{:.6},{:.3}]", (began_at + answer.due).as_secs_f64(), answer.took.as_secs_f64() * 1000.0)
    });
    println!(
        "{{\"answers\":{},\"errors\":{errors},\"p50\":{:.3},\"p99\":{:.3},\"p999\":{:.3},\"max\":{:.3},\"writes\":[{}]}}",
        answers.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        moments.collect::<Vec<_>>().join(",")
    );
    Ok(())
}

async fn connection(load: Arc<Load>, run: u128, number: u32, began: Instant) -> Result<Vec<Answer>, Failed> {
    let mut stream = BufReader::new(connect(&load.socket).await?);
    let every = load.rate.map(|rate| Duration::from_secs_f64(f64::from(load.connections) / rate));
    let mut due = every.unwrap_or_default().mul_f64(f64::from(number) / f64::from(load.connections));
    let mut answers = Vec::new();
    let mut turn = u64::from(number);
    while due < load.lasts && !load.stopped.load(Ordering::Relaxed) {
        tokio::time::sleep_until((began + due).into()).await;
        let request = request(load.kind, run, turn, load.token.as_deref());
        stream.write_all(request.as_bytes()).await?;
        let good = tokio::time::timeout(PATIENCE, answered(&mut stream)).await??;
        answers.push(Answer { due, took: began.elapsed().saturating_sub(due), good });
        due = every.map_or_else(|| began.elapsed(), |every| due + every);
        turn += u64::from(load.connections);
    }
    Ok(answers)
}

/// A socket of either kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(socket: &str) -> Result<Box<dyn Stream>, Failed> {
    Ok(match socket.strip_prefix("tcp:") {
        None => Box::new(UnixStream::connect(socket).await?),
        Some(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
    })
}

fn request(kind: Kind, run: u128, turn: u64, token: Option<&str>) -> String {
    match kind {
        Kind::Get => {
            let credential = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
            format!("GET /v1/secrets/bench-{}/KEY HTTP/1.1\r\nHost: x\r\n{credential}\r\n", turn % READ)
        }
        Kind::FirstWrite => {
            let body = format!("{{\"username\":\"first-{run}-{turn}\",\"name\":\"KEY\",\"value\":\"{turn}\"}}");
            format!(
                "POST /v1/secrets HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        }
    }
}

/// Whether it was 200, and what was read the value that the script set.
async fn answered(stream: &mut BufReader<Box<dyn Stream>>) -> Result<bool, Failed> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?.to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let mut body = vec![0; length.ok_or("an answer without its length")?.parse()?];
    stream.read_exact(&mut body).await?;
    let text = String::from_utf8_lossy(&body);
    Ok(head.starts_with("http/1.1 200") && (!text.contains("\"value\"") || text.contains("\"value\":\"measured\"")))
}
