//! Metrics, for Prometheus to read. No label ever holds a user, an account or a secret.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Counter: answered requests, by `method` (`WalletService/GetAccessToken`) and `code` (`OK`, `NOT_FOUND`, …).
pub const REQUESTS: &str = "token_wallet_requests_total";

/// Histogram: seconds from a request's headers to its answer, by `method`.
pub const REQUEST_SECONDS: &str = "token_wallet_request_duration_seconds";

/// Counter: refreshes, by `provider` (slug) and `outcome` (`refreshed`, `refused`, `unavailable`, …).
pub const REFRESHES: &str = "token_wallet_refreshes_total";

/// Upper bounds in seconds: a hot get takes microseconds, a refresh waits for a provider.
const REQUEST_BUCKETS: [f64; 12] = [0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// Counter: statements sent to the store, by `statement`.
pub const STATEMENTS: &str = "token_wallet_store_statements_total";

/// Counters: look-ups in memory that found something, and that did not, by `shelf` (`tokens`, `providers`, `api_keys`).
pub const CACHE_HITS: &str = "token_wallet_cache_hits_total";
/// See [`CACHE_HITS`].
pub const CACHE_MISSES: &str = "token_wallet_cache_misses_total";

/// Counter: changes that made something in memory stale, by `shelf`.
pub const CACHE_DROPS: &str = "token_wallet_cache_drops_total";

/// Gauges: what is held in memory, by `shelf`.
pub const CACHE_BYTES: &str = "token_wallet_cache_bytes";
/// See [`CACHE_BYTES`].
pub const CACHE_ENTRIES: &str = "token_wallet_cache_entries";

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Begins to count, once in a process; further calls change nothing.
pub fn install() {
    RECORDER.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        let buckets = Matcher::Full(REQUEST_SECONDS.to_owned());
        let handle = builder.set_buckets_for_metric(buckets, &REQUEST_BUCKETS).ok()?.install_recorder().ok()?;
        describe_counter!(REQUESTS, "Answered requests by method and gRPC code");
        describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Seconds until a request was answered, by method");
        describe_counter!(REFRESHES, "Refreshes by provider and outcome");
        describe_counter!(STATEMENTS, "Statements sent to the store");
        describe_counter!(CACHE_HITS, "Look-ups in memory that found something");
        describe_counter!(CACHE_MISSES, "Look-ups in memory that had to go to the store");
        describe_counter!(CACHE_DROPS, "Changes that made something in memory stale");
        describe_gauge!(CACHE_BYTES, Unit::Bytes, "Bytes held in memory of the store");
        describe_gauge!(CACHE_ENTRIES, "Entries held in memory of the store");
        Some(handle)
    });
}

/// Everything counted so far, in the Prometheus text format; empty before [`install`].
pub fn render() -> String {
    let Some(handle) = RECORDER.get().and_then(Option::as_ref) else { return String::new() };
    handle.run_upkeep();
    handle.render()
}

/// Counts an answered request.
pub fn request(method: &'static str, code: &'static str, took: Duration) {
    counter!(REQUESTS, "method" => method, "code" => code).increment(1);
    histogram!(REQUEST_SECONDS, "method" => method).record(took);
}

/// Counts a refresh.
pub fn refresh(provider: &str, outcome: &'static str) {
    counter!(REFRESHES, "provider" => provider.to_owned(), "outcome" => outcome).increment(1);
}

/// Counts a statement sent to the store.
pub fn statement(name: &'static str) {
    counter!(STATEMENTS, "statement" => name).increment(1);
}

/// What is counted of a part of memory.
pub struct Shelf {
    /// [`CACHE_HITS`].
    pub hits: Counter,
    /// [`CACHE_MISSES`].
    pub misses: Counter,
    /// [`CACHE_DROPS`].
    pub drops: Counter,
    /// [`CACHE_BYTES`].
    pub bytes: Gauge,
    /// [`CACHE_ENTRIES`].
    pub entries: Gauge,
}

/// The counts of the part of memory called `shelf`: looked up once, since every call counts.
pub fn shelf(shelf: &'static str) -> Shelf {
    Shelf {
        hits: counter!(CACHE_HITS, "shelf" => shelf),
        misses: counter!(CACHE_MISSES, "shelf" => shelf),
        drops: counter!(CACHE_DROPS, "shelf" => shelf),
        bytes: gauge!(CACHE_BYTES, "shelf" => shelf),
        entries: gauge!(CACHE_ENTRIES, "shelf" => shelf),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
        install();
        install();
        request("WalletService/GetAccessToken", "OK", Duration::from_micros(300));
        refresh("sandbox", "refreshed");
        let text = render();
        for line in [
            "# TYPE token_wallet_requests_total counter",
            "token_wallet_requests_total{method=\"WalletService/GetAccessToken\",code=\"OK\"} ",
            "token_wallet_request_duration_seconds_bucket{method=\"WalletService/GetAccessToken\",le=\"0.0005\"} ",
            "token_wallet_refreshes_total{provider=\"sandbox\",outcome=\"refreshed\"} ",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
    }
}
