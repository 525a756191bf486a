//! A wire to the server that can be cut at a chosen byte string.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use sqlx::postgres::PgConnectOptions;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Where a connection breaks that carries the chosen bytes to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The server never gets them.
    BeforeThem,
    /// The server gets them and answers, and the answer is lost.
    AfterThem,
}

type Armed = Arc<Mutex<Option<Trap>>>;

struct Trap {
    /// What a connection has carried before, or it is none of those that break.
    after: Vec<u8>,
    bytes: Vec<u8>,
    cut: Cut,
}

/// Listens beside the server and passes everything on.
pub(crate) struct Wire {
    directory: TempDir,
    armed: Armed,
}

impl Wire {
    pub(crate) fn to(server: &PgConnectOptions) -> Self {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let socket = server.get_socket().expect("DATABASE_URL names a Unix socket's directory");
        let behind = socket.join(format!(".s.PGSQL.{}", server.get_port()));
        let listener = UnixListener::bind(directory.path().join(format!(".s.PGSQL.{}", server.get_port()))).unwrap();
        let armed = Armed::default();
        tokio::spawn(accept(listener, behind, Arc::clone(&armed)));
        Self { directory, armed }
    }

    /// The parameter for a URL that goes through this wire.
    pub(crate) fn host(&self) -> String {
        format!("host={}", self.directory.path().display())
    }

    /// The next connection that carries these bytes breaks, and no later one.
    pub(crate) fn cut(&self, bytes: &[u8], cut: Cut) {
        self.cut_after(b"", bytes, cut);
    }

    /// The same for a connection that has carried certain bytes: the transaction that they belong to.
    pub(crate) fn cut_after(&self, after: &[u8], bytes: &[u8], cut: Cut) {
        *self.armed.lock().unwrap() = Some(Trap { after: after.to_vec(), bytes: bytes.to_vec(), cut });
    }

    /// Whether the cut has happened.
    pub(crate) fn was_cut(&self) -> bool {
        self.armed.lock().unwrap().is_none()
    }
}

async fn accept(listener: UnixListener, behind: PathBuf, armed: Armed) {
    while let Ok((client, _)) = listener.accept().await {
        let server = UnixStream::connect(&behind).await.unwrap();
        tokio::spawn(pass(client, server, Arc::clone(&armed)));
    }
}

/// Both directions in one task, so that a cut closes both ends. A message that arrives in pieces is recognised all the same: what is
/// looked at grows until the server answers.
async fn pass(mut client: UnixStream, mut server: UnixStream, armed: Armed) -> std::io::Result<()> {
    let (mut asked, mut said) = (vec![0; 65_536], vec![0; 65_536]);
    let (mut seen, mut is_meant) = (Vec::new(), false);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let length = read?;
                if length == 0 {
                    return Ok(());
                }
                seen.extend_from_slice(&asked[..length]);
                match take(&armed, &seen, &mut is_meant) {
                    Some(Cut::BeforeThem) => return Ok(()),
                    Some(Cut::AfterThem) => {
                        server.write_all(&asked[..length]).await?;
                        let _answer = server.read(&mut said).await?;
                        return Ok(());
                    }
                    None => server.write_all(&asked[..length]).await?,
                }
            }
            read = server.read(&mut said) => {
                let length = read?;
                if length == 0 {
                    return Ok(());
                }
                seen.clear();
                client.write_all(&said[..length]).await?;
            }
        }
    }
}

fn take(armed: &Armed, seen: &[u8], is_meant: &mut bool) -> Option<Cut> {
    let holds = |bytes: &[u8]| bytes.is_empty() || seen.windows(bytes.len()).any(|window| window == bytes);
    let mut armed = armed.lock().unwrap();
    *is_meant |= armed.as_ref().is_some_and(|trap| holds(&trap.after));
    armed.take_if(|trap| *is_meant && holds(&trap.bytes)).map(|trap| trap.cut)
}
