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
        metrics::describe_gauge!(
            KMS_PROVEN,
            "Unix time at which the wrapped key file was last proven to open with Cloud KMS; absent while it is not wrapped."
        );
        metrics::describe_gauge!(
            ISSUER_KEYS_SEEN,
            "Unix time at which an issuer's keys were last seen at their place, by issuer; 0 where they never were, or were taken away."
        );
        metrics::describe_gauge!(
            ISSUER_KEYS_KEPT,
            "For how many seconds an issuer's keys are used after they were last seen at their place, by issuer."
        );
        metrics::describe_gauge!(KEY_CREATED, "Unix time at which the active master key was made.");
        metrics::describe_gauge!(
            KEY_CONFIRMED,
            "Unix time of the last confirmed copy of the master key off the host; 0 while a key that is needed has none."
        );
        metrics::describe_gauge!(
            KEY_VERIFIED,
            "Unix time at which a copy of the master key was last read back; 0 while that never was for a key that is needed."
        );
        metrics::describe_gauge!(
            COPIES_MISSING,
            "Confirmed copies that configured secrets lack, one for each key that is needed and secret."
        );
        metrics::describe_gauge!(
            COPIES_UNREAD,
            "Recorded copies of master keys that were no good when they were read back last: another key, damaged, or opened by nothing."
        );
        metrics::describe_gauge!(
            CHECK,
            "What the doctor finds, for each check: 0 ok, 1 a warning, 2 a failure; NaN where it could not be looked at."
        );
        metrics::describe_gauge!(DATABASE_BACKUP, "Unix time of the last recorded copy of the database; 0 for none.");
        metrics::describe_gauge!(DRILL, "Unix time of the last recorded drill; 0 for none.");
        metrics::describe_gauge!(DRILL_FAILED, "DEKs that did not open in the last recorded drill.");
        metrics::describe_gauge!(ROTATION_PHASE, "1 for the phase that the rotation of the master key is in, else 0.");
        metrics::describe_gauge!(ROTATION_AGE, "Seconds since a rotation of the master key began; 0 while none runs.");
        metrics::describe_counter!(
            TURNED_AWAY,
            "Requests and connections turned away unheard, by the limit that they met."
        );
        metrics::describe_gauge!(CERTIFICATE_ENDS, "Unix time at which the TLS certificate that is served with ends.");
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
const KEY_CREATED: &str = "containarium_master_key_created_timestamp_seconds";
const KEY_CONFIRMED: &str = "containarium_key_backup_confirmed_timestamp_seconds";
const KEY_VERIFIED: &str = "containarium_key_backup_verified_timestamp_seconds";
const COPIES_MISSING: &str = "containarium_key_backup_copies_missing";
const COPIES_UNREAD: &str = "containarium_key_backup_copies_unread";
const CHECK: &str = "containarium_doctor_verdict";
const DATABASE_BACKUP: &str = "containarium_database_backup_timestamp_seconds";
const DRILL: &str = "containarium_drill_timestamp_seconds";
const DRILL_FAILED: &str = "containarium_drill_deks_failed";
const ROTATION_PHASE: &str = "containarium_rotation_phase";
const ROTATION_AGE: &str = "containarium_rotation_age_seconds";
const TURNED_AWAY: &str = "containarium_turned_away_total";
const CERTIFICATE_ENDS: &str = "containarium_tls_certificate_expiry_timestamp_seconds";
const KMS_PROVEN: &str = "containarium_kms_proven_timestamp_seconds";
const ISSUER_KEYS_SEEN: &str = "containarium_oidc_keys_seen_timestamp_seconds";
const ISSUER_KEYS_KEPT: &str = "containarium_oidc_keys_keep_seconds";
const BUILD_INFO: &str = "containarium_build_info";

/// Counts one answered request. `route` is the route's pattern, never the path.
pub fn request_answered(route: &str, method: &'static str, status: u16, took: Duration) {
    metrics::counter!(REQUESTS, "route" => route.to_owned(), "method" => method, "status" => status.to_string())
        .increment(1);
    metrics::histogram!(DURATION, "route" => route.to_owned()).record(took.as_secs_f64());
}

/// What a request or a connection met that was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// The rate of its identity.
    Identity,
    /// The rate of its address.
    Address,
    /// The connections of its address.
    Connections,
    /// A TLS handshake that failed or took too long.
    Handshake,
    /// The want of a credential that holds.
    Credential,
}

/// Counts one.
pub fn turned_away(by: Turned) {
    let by = match by {
        Turned::Identity => "identity",
        Turned::Address => "address",
        Turned::Connections => "connections",
        Turned::Handshake => "handshake",
        Turned::Credential => "credential",
    };
    metrics::counter!(TURNED_AWAY, "by" => by).increment(1);
}

/// Notes when the certificate that is served with ends, in seconds since 1970.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; no date is as far away as 2^52 seconds")]
pub fn certificate_ends(seconds: u64) {
    metrics::gauge!(CERTIFICATE_ENDS).set(seconds as f64);
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

/// Sets what each check found, absent for one that was not made; called before rendering.
pub fn check_gauges(checks: impl IntoIterator<Item = (&'static str, Option<u8>)>) {
    for (name, found) in checks {
        // Not as it was: an old verdict would look like one of now.
        metrics::gauge!(CHECK, "check" => name).set(found.map_or(f64::NAN, f64::from));
    }
}

/// Backups and rotation as a scrape finds them. Times are microseconds since 1970, 0 for never.
pub struct BackupGauges {
    pub key_created: i64,
    pub key_confirmed: i64,
    pub key_verified: i64,
    pub copies_missing: u64,
    pub copies_unread: u64,
    pub database: i64,
    pub drill: i64,
    /// DEKs.
    pub drill_failed: u64,
    /// Each phase, and whether it is the present one.
    pub phases: Vec<(&'static str, bool)>,
    /// Microseconds.
    pub rotating_for: i64,
}

/// Sets the time, in microseconds, at which the wrapped key file was last proven to open; not called where it is not wrapped.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; seconds of this millennium are exact in it")]
pub fn kms_proven(at: i64) {
    metrics::gauge!(KMS_PROVEN).set(at as f64 / 1e6);
}

/// Sets the time, in microseconds, at which an issuer's keys were last seen, and for how long they are used then; issuers are the settings', a closed set.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; seconds of this millennium are exact in it")]
pub fn issuer_keys(issuer: &str, at: i64, kept: Duration) {
    metrics::gauge!(ISSUER_KEYS_SEEN, "issuer" => issuer.to_owned()).set(at as f64 / 1e6);
    metrics::gauge!(ISSUER_KEYS_KEPT, "issuer" => issuer.to_owned()).set(kept.as_secs_f64());
}

/// Sets the metrics of backups and rotation; called before rendering.
#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; microseconds since 1970 stay under 2^53 until 2255"
)]
pub fn backup_gauges(backups: &BackupGauges) {
    let seconds = |micros: i64| micros as f64 / 1e6;
    metrics::gauge!(KEY_CREATED).set(seconds(backups.key_created));
    metrics::gauge!(KEY_CONFIRMED).set(seconds(backups.key_confirmed));
    metrics::gauge!(KEY_VERIFIED).set(seconds(backups.key_verified));
    metrics::gauge!(COPIES_MISSING).set(backups.copies_missing as f64);
    metrics::gauge!(COPIES_UNREAD).set(backups.copies_unread as f64);
    metrics::gauge!(DATABASE_BACKUP).set(seconds(backups.database));
    metrics::gauge!(DRILL).set(seconds(backups.drill));
    metrics::gauge!(DRILL_FAILED).set(backups.drill_failed as f64);
    for (phase, present) in &backups.phases {
        metrics::gauge!(ROTATION_PHASE, "phase" => *phase).set(f64::from(u8::from(*present)));
    }
    metrics::gauge!(ROTATION_AGE).set(seconds(backups.rotating_for));
}
