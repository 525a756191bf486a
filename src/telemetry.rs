//! Logs and metrics. Neither ever holds a value, a key, or (metrics) the name of a tenant or secret.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::fmt::MakeWriter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Sends log lines of level info and above to standard error. Called once; a second call changes nothing.
pub fn start_logs(format: LogFormat) {
    start_logs_to(format, std::io::stderr);
}

fn start_logs_to<W>(format: LogFormat, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_writer(writer).with_max_level(tracing::Level::INFO).with_target(false);
    let started = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
    if started.is_err() {
        tracing::warn!("logging was started already; the first setting stays");
    }
}

/// The process's metrics in Prometheus's text format.
pub struct Metrics(PrometheusHandle);

/// Seconds; from a cached read to a request that is being given up.
const DURATION_BUCKETS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

impl Metrics {
    /// Installs the process's recorder.
    ///
    /// # Errors
    /// Where one is installed already.
    pub fn install() -> Result<Self, BuildError> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".to_owned()), DURATION_BUCKETS)?
            .install_recorder()?;
        metrics::describe_counter!(REQUESTS, "Requests answered, by route, method and status.");
        metrics::describe_histogram!(DURATION, "Seconds from a request's head to its answer, by route.");
        metrics::describe_counter!(CACHE_HITS, "DEKs found unwrapped in the cache.");
        metrics::describe_counter!(CACHE_MISSES, "DEKs not found in the cache.");
        metrics::describe_counter!(UNWRAPS, "DEKs unwrapped with a master key.");
        metrics::describe_gauge!(CACHE_ENTRIES, "DEKs in the cache.");
        metrics::describe_gauge!(KEYS_OPEN, "1 while the master key is loaded and active, else 0.");
        metrics::describe_gauge!(BUILD_INFO, "Always 1; the release is a label.");
        metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Ok(Self(handle))
    }

    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Folds what histograms have gathered into their buckets, so that they stay small between scrapes. Once a second.
    pub fn tick(&self) {
        self.0.run_upkeep();
    }
}

const REQUESTS: &str = "containarium_http_requests_total";
const DURATION: &str = "containarium_http_request_duration_seconds";
const CACHE_HITS: &str = "containarium_dek_cache_hits_total";
const CACHE_MISSES: &str = "containarium_dek_cache_misses_total";
const UNWRAPS: &str = "containarium_dek_unwraps_total";
const CACHE_ENTRIES: &str = "containarium_dek_cache_entries";
const KEYS_OPEN: &str = "containarium_keys_open";
const BUILD_INFO: &str = "containarium_build_info";

/// Counts one answered request. `route` is the route's pattern, never the path.
pub fn request_answered(route: &str, method: &'static str, status: u16, took: Duration) {
    metrics::counter!(REQUESTS, "route" => route.to_owned(), "method" => method, "status" => status.to_string())
        .increment(1);
    metrics::histogram!(DURATION, "route" => route.to_owned()).record(took.as_secs_f64());
}

/// The keys' state as a scrape finds it.
pub struct KeyGauges {
    pub open: bool,
    pub cache_entries: u64,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub unwraps: u64,
}

/// Sets the keys' metrics; called before rendering.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; a cache has far fewer than 2^52 entries")]
pub fn key_gauges(keys: &KeyGauges) {
    metrics::gauge!(KEYS_OPEN).set(f64::from(u8::from(keys.open)));
    metrics::gauge!(CACHE_ENTRIES).set(keys.cache_entries as f64);
    metrics::counter!(CACHE_HITS).absolute(keys.cache_hits);
    metrics::counter!(CACHE_MISSES).absolute(keys.cache_misses);
    metrics::counter!(UNWRAPS).absolute(keys.unwraps);
}
