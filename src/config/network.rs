//! What is served over TCP, and how much of it one caller may have.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::{Resolver, Setting, values};

/// TCP, where any is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    pub listen: Option<SocketAddr>,
    /// Metrics and health alone.
    pub metrics_listen: Option<SocketAddr>,
    /// Served with on every address; without them HTTP is plain.
    pub tls: Option<TlsFiles>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// How much one caller, one address and all of them together may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// On each TCP address that is listened on; the socket has as many of its own.
    pub connections: NonZeroU32,
    pub connections_per_address: NonZeroU32,
    /// A second; `None` for as many as come.
    pub requests_per_identity: Option<NonZeroU32>,
    pub requests_per_address: Option<NonZeroU32>,
    /// How long a request's head may take, and a connection may be idle.
    pub header_time: Duration,
    /// How long a whole body may take.
    pub body_time: Duration,
}

const MAX_CONNECTIONS: u32 = 60_000;
const MAX_RATE: u32 = 1_000_000;
const MAX_TIME: Duration = Duration::from_mins(10);

impl Resolver<'_> {
    pub(super) fn network(&mut self) -> Option<Network> {
        let listen = self.optional(Setting::Listen, address);
        let metrics_listen = self.optional(Setting::MetricsListen, address);
        let cert = self.optional_path(Setting::TlsCert);
        let key = self.optional_path(Setting::TlsKey);
        let plain = self.value(Setting::AllowPlainHttp, ("false", Plain::OnLoopback), plain);
        self.needs(Setting::TlsCert, Setting::TlsKey);
        self.needs(Setting::TlsKey, Setting::TlsCert);
        let tls = cert.zip(key).map(|(cert, key)| TlsFiles { cert, key });
        // A certificate that could not be read as a setting is an error already.
        let asked_for_tls = self.layers.find(Setting::TlsCert).is_some() || self.layers.find(Setting::TlsKey).is_some();
        if !asked_for_tls && plain? == Plain::OnLoopback {
            self.only_on_loopback(Setting::Listen, listen);
            self.only_on_loopback(Setting::MetricsListen, metrics_listen);
        }
        if tls.is_some() && listen.is_none() && metrics_listen.is_none() {
            self.needs(Setting::TlsCert, Setting::Listen);
        }
        if let (Some(one), Some(other)) = (listen, metrics_listen)
            && one == other
            && one.port() != 0
        {
            self.invalid(Setting::MetricsListen, "it is the address of `listen`: give it a port of its own".to_owned());
        }
        Some(Network { listen, metrics_listen, tls })
    }

    fn only_on_loopback(&mut self, setting: Setting, address: Option<SocketAddr>) {
        if address.is_some_and(|address| !address.ip().to_canonical().is_loopback()) {
            let why = "plain HTTP shows secrets and tokens to everybody on the way, and is served on 127.0.0.1 and [::1] only: \
                       give --tls-cert and --tls-key, or --allow-plain-http where something else encrypts";
            self.invalid(setting, why.to_owned());
        }
    }

    pub(super) fn limits(&mut self) -> Option<Limits> {
        let connections = self.value(Setting::LimitConnections, ("1024", CONNECTIONS), number_of_connections);
        let per_address = self.value(Setting::LimitConnectionsPerAddress, ("256", PER_ADDRESS), number_of_connections);
        let identity = self.value(Setting::LimitRequestsPerIdentity, ("1000", NonZeroU32::new(1000)), rate);
        let address = self.value(Setting::LimitRequestsPerAddress, ("2000", NonZeroU32::new(2000)), rate);
        let header_time = self.value(Setting::LimitHeaderTime, ("1m", Duration::from_mins(1)), time);
        let body_time = self.value(Setting::LimitBodyTime, ("30s", Duration::from_secs(30)), time);
        Some(Limits {
            connections: connections?,
            connections_per_address: per_address?,
            requests_per_identity: identity?,
            requests_per_address: address?,
            header_time: header_time?,
            body_time: body_time?,
        })
    }
}

const CONNECTIONS: NonZeroU32 = NonZeroU32::new(1024).unwrap();
const PER_ADDRESS: NonZeroU32 = NonZeroU32::new(256).unwrap();

#[derive(PartialEq, Eq)]
enum Plain {
    OnLoopback,
    Anywhere,
}

fn plain(text: &str) -> Result<Plain, String> {
    match text {
        "true" => Ok(Plain::Anywhere),
        "false" => Ok(Plain::OnLoopback),
        _ => Err("it must be true or false".to_owned()),
    }
}

/// No names: one that resolves to an address of another host, or to several, would listen elsewhere than was meant.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "it must be ADDRESS:PORT, such as 127.0.0.1:8443, 0.0.0.0:8443 or [::]:8443".to_owned())
}

fn number_of_connections(text: &str) -> Result<NonZeroU32, String> {
    let number = text.parse().ok().filter(|number: &NonZeroU32| number.get() <= MAX_CONNECTIONS);
    number.ok_or_else(|| format!("it must be a number from 1 to {MAX_CONNECTIONS}"))
}

fn rate(text: &str) -> Result<Option<NonZeroU32>, String> {
    let number = text.parse().ok().filter(|number: &u32| *number <= MAX_RATE);
    number.map(NonZeroU32::new).ok_or_else(|| format!("it must be a number from 0 (no limit) to {MAX_RATE}, a second"))
}

fn time(text: &str) -> Result<Duration, String> {
    let time = values::duration(text).filter(|time| (Duration::from_secs(1)..=MAX_TIME).contains(time));
    time.ok_or_else(|| "it must be a duration from \"1s\" to \"10m\", such as \"30s\"".to_owned())
}
