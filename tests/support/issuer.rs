//! An issuer of JWTs for each test: keys that sign, and a server of their public halves that can be made to misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// A key that signs, and its name.
pub(crate) struct Signer {
    pub(crate) kid: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    pub(crate) fn ed(kid: &'static str) -> Self {
        let key = EncodingKey::from_ed_der(include_bytes!("../vectors/jwt/ed25519-1.der"));
        Self { kid, algorithm: Algorithm::EdDSA, key }
    }

    pub(crate) fn other_ed(kid: &'static str) -> Self {
        let key = EncodingKey::from_ed_der(include_bytes!("../vectors/jwt/ed25519-2.der"));
        Self { kid, algorithm: Algorithm::EdDSA, key }
    }

    pub(crate) fn p256(kid: &'static str) -> Self {
        let key = EncodingKey::from_ec_der(include_bytes!("../vectors/jwt/p256-1.der"));
        Self { kid, algorithm: Algorithm::ES256, key }
    }

    pub(crate) fn rsa(kid: &'static str) -> Self {
        let key = EncodingKey::from_rsa_der(include_bytes!("../vectors/jwt/rsa-1.der"));
        Self { kid, algorithm: Algorithm::RS256, key }
    }

    pub(crate) fn secret(bytes: &[u8]) -> Self {
        Self { kid: "secret", algorithm: Algorithm::HS256, key: EncodingKey::from_secret(bytes) }
    }

    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&self.key, self.algorithm).unwrap()).unwrap();
        jwk["kid"] = self.kid.into();
        jwk["use"] = "sig".into();
        jwk
    }

    pub(crate) fn header(&self) -> Value {
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(self.algorithm) };
        serde_json::to_value(header).unwrap()
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_raw(&self.header().to_string(), &claims.to_string())
    }

    /// Signs any text, as a header and as claims.
    pub(crate) fn sign_raw(&self, header: &str, claims: &str) -> String {
        let part = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        let message = format!("{}.{}", part(header), part(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

pub(crate) fn set(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string()
}

/// What the server does with a request.
#[derive(Clone)]
pub(crate) enum Serves {
    Text(String),
    /// A status, and where else to look.
    Redirect(String),
    Failure,
    /// Closes without a word.
    Nothing,
    /// Says nothing and does not close.
    Silence,
    /// Never ends.
    Flood,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    serves: Mutex<Serves>,
    asked: AtomicUsize,
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl Server {
    pub(crate) fn start(serves: Serves) -> Self {
        Self::begin(serves, None)
    }

    pub(crate) fn start_tls(serves: Serves, config: Arc<rustls::ServerConfig>) -> Self {
        Self::begin(serves, Some(config))
    }

    fn begin(serves: Serves, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { serves: Mutex::new(serves), asked: AtomicUsize::new(0), tls });
        let serving = Arc::clone(&shared);
        // It ends with the process of the test.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || shared.answer(stream));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.shared.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}/keys", self.address)
    }

    pub(crate) fn serve(&self, serves: Serves) {
        *self.shared.serves.lock().unwrap() = serves;
    }

    pub(crate) fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn answer(&self, stream: TcpStream) {
        match &self.tls {
            Some(config) => {
                let connection = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
                self.speak(rustls::StreamOwned::new(connection, stream));
            }
            None => self.speak(stream),
        }
    }

    fn speak(&self, mut stream: impl Read + Write) {
        let mut head = Vec::new();
        let mut buffer = [0; 1024];
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(length) => head.extend_from_slice(&buffer[..length]),
            }
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        let serves = self.serves.lock().unwrap().clone();
        // The other end may be gone.
        let _gone = match serves {
            Serves::Text(text) => {
                let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
                stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{text}", text.len()).as_bytes())
            }
            Serves::Redirect(to) => stream.write_all(
                format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                    .as_bytes(),
            ),
            Serves::Failure => stream.write_all(b"HTTP/1.1 500 Oh\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
            Serves::Nothing => Ok(()),
            Serves::Silence => stream.read(&mut buffer).map(drop),
            Serves::Flood => {
                let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"keys\":[");
                while sent.is_ok() {
                    sent = stream.write_all(&[b' '; 16 * 1024]);
                }
                sent
            }
        };
        let _closed = stream.flush();
    }
}
