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

/// Counter: ended runs of jobs, by `job` and `outcome` (`well`, `failed`).
pub const JOB_RUNS: &str = "token_wallet_job_runs_total";

/// Counter: refreshes that were sent and not answered, so that their outcome is in doubt, by `provider`.
pub const IN_DOUBT: &str = "token_wallet_refreshes_in_doubt_total";

/// Counter: grants ended because a new refresh token was lost with the answer that brought it, by `provider`.
pub const ROTATION_OUTCOME_LOST: &str = "token_wallet_rotation_outcome_lost_total";

/// Counter: how often a provider refused so many grants at once that none was ended for a while, by `provider`.
pub const VERDICTS_FROZEN: &str = "token_wallet_verdicts_frozen_total";
/// Gauge: current grants, by `state`.
pub const GRANTS: &str = "token_wallet_grants";

/// Gauge: current grants with a refresh whose outcome is not known.
pub const GRANTS_IN_DOUBT: &str = "token_wallet_grants_in_doubt";

/// Gauge: grants to be refreshed now, by `provider`.
pub const DUE: &str = "token_wallet_due_grants";

/// Gauge: seconds that the longest of them waits, by `provider`.
pub const OLDEST_DUE_SECONDS: &str = "token_wallet_oldest_due_seconds";

/// Gauge: seconds until the first token ends that is refreshed ahead, by `provider`; 0 if one has ended.
pub const SMALLEST_LIFE_SECONDS: &str = "token_wallet_smallest_remaining_life_seconds";

/// Gauge: 1 while a `provider` (slug) fails and is sent nothing but probes, by this replica's breaker.
pub const BREAKER_OPEN: &str = "token_wallet_breaker_open";

/// Gauge: 1 while a `provider` (slug) has asked to be sent nothing (429).
pub const PROVIDER_PAUSED: &str = "token_wallet_provider_paused";

/// Gauge: 1 while a `provider` (slug) refuses our client credentials.
pub const PROVIDER_MISCONFIGURED: &str = "token_wallet_provider_misconfigured";
/// Histogram: seconds from a provider's parsed answer to the acknowledged commit or the spool's sync.
pub const ANSWER_DURABLE_SECONDS: &str = "token_wallet_answer_durable_seconds";

/// Histogram: results that one transaction recorded.
pub const COMMIT_BATCH: &str = "token_wallet_commit_batch_results";

/// Gauge: answers in the spool that this process has, its own and what it took over.
pub const SPOOL_RECORDS: &str = "token_wallet_spool_records";

/// Counter: answers spooled.
pub const SPOOL_APPENDS: &str = "token_wallet_spool_appends_total";

/// Counter: answers that could not be spooled, at each try.
pub const SPOOL_FAILURES: &str = "token_wallet_spool_failures_total";

/// Counter: answers found in the spool that could not be read, or set aside because their flow had ended.
pub const SPOOL_UNREADABLE: &str = "token_wallet_spool_unreadable_total";

/// Upper bounds in seconds, finest where answers usually are, and around the moment of spooling.
const DURABLE_BUCKETS: [f64; 17] =
    [0.000_5, 0.001, 0.001_5, 0.002, 0.003, 0.005, 0.007_5, 0.01, 0.02, 0.05, 0.1, 0.11, 0.125, 0.15, 0.2, 0.5, 1.0];

/// Upper bounds in results.
const BATCH_BUCKETS: [f64; 7] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

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
        let histograms: [(_, &[f64]); 3] = [
            (REQUEST_SECONDS, &REQUEST_BUCKETS),
            (ANSWER_DURABLE_SECONDS, &DURABLE_BUCKETS),
            (COMMIT_BATCH, &BATCH_BUCKETS),
        ];
        let builder = histograms.into_iter().try_fold(builder, |builder, (name, buckets)| {
            builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)
        });
        let handle = builder.ok()?.install_recorder().ok()?;
        describe_counter!(REQUESTS, "Answered requests by method and gRPC code");
        describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Seconds until a request was answered, by method");
        describe_counter!(REFRESHES, "Refreshes by provider and outcome");
        describe_counter!(JOB_RUNS, "Ended runs of jobs, by job and outcome");
        describe_counter!(IN_DOUBT, "Refreshes that were sent and not answered, by provider");
        describe_counter!(
            ROTATION_OUTCOME_LOST,
            "Grants ended because a new refresh token was lost on its way, by provider"
        );
        describe_counter!(VERDICTS_FROZEN, "Waves of refusals that ended no grant, by provider");
        describe_gauge!(GRANTS, "Current grants, by state");
        describe_gauge!(GRANTS_IN_DOUBT, "Current grants with a refresh whose outcome is not known");
        describe_gauge!(DUE, "Grants to be refreshed now, by provider");
        describe_gauge!(OLDEST_DUE_SECONDS, Unit::Seconds, "Seconds that the longest due grant waits, by provider");
        describe_gauge!(SMALLEST_LIFE_SECONDS, Unit::Seconds, "Seconds until the first token ends, by provider");
        describe_gauge!(BREAKER_OPEN, "1 while a provider fails and is sent nothing but probes");
        describe_gauge!(PROVIDER_PAUSED, "1 while a provider has asked to be sent nothing");
        describe_gauge!(PROVIDER_MISCONFIGURED, "1 while a provider refuses our client credentials");
        describe_histogram!(ANSWER_DURABLE_SECONDS, Unit::Seconds, "Seconds until an answer was stored or spooled");
        describe_histogram!(COMMIT_BATCH, "Results that one transaction recorded");
        describe_gauge!(SPOOL_RECORDS, "Answers in the spool");
        describe_counter!(SPOOL_APPENDS, "Answers spooled");
        describe_counter!(SPOOL_FAILURES, "Answers that could not be spooled");
        describe_counter!(SPOOL_UNREADABLE, "Answers in the spool that could not be read, or are set aside");
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

/// Counts an ended run of a job.
pub fn job_run(job: &'static str, outcome: &'static str) {
    counter!(JOB_RUNS, "job" => job, "outcome" => outcome).increment(1);
}

/// Says how many current grants are in a state.
pub fn grants(state: &'static str, count: u32) {
    gauge!(GRANTS, "state" => state).set(f64::from(count));
}

/// Says how many current grants are in doubt.
pub fn grants_in_doubt(count: u32) {
    gauge!(GRANTS_IN_DOUBT).set(f64::from(count));
}

/// Says what waits at a provider, for how long, and how soon the first token ends; `None`: none is refreshed ahead.
pub fn backlog(provider: &str, due: u32, oldest: Duration, smallest_life: Option<Duration>) {
    gauge!(DUE, "provider" => provider.to_owned()).set(f64::from(due));
    gauge!(OLDEST_DUE_SECONDS, "provider" => provider.to_owned()).set(oldest.as_secs_f64());
    if let Some(life) = smallest_life {
        gauge!(SMALLEST_LIFE_SECONDS, "provider" => provider.to_owned()).set(life.as_secs_f64());
    }
}

/// Counts a refresh that was not answered.
pub fn in_doubt(provider: &str) {
    counter!(IN_DOUBT, "provider" => provider.to_owned()).increment(1);
}

/// Counts a grant that ended because an answer was lost.
pub fn rotation_outcome_lost(provider: &str) {
    counter!(ROTATION_OUTCOME_LOST, "provider" => provider.to_owned()).increment(1);
}

/// Counts a wave of refusals.
pub fn verdicts_frozen(provider: &str) {
    counter!(VERDICTS_FROZEN, "provider" => provider.to_owned()).increment(1);
}

/// Shows what keeps requests away from a provider.
pub fn gate(provider: &str, breaker_open: bool, paused: bool, misconfigured: bool) {
    for (name, holds) in
        [(BREAKER_OPEN, breaker_open), (PROVIDER_PAUSED, paused), (PROVIDER_MISCONFIGURED, misconfigured)]
    {
        gauge!(name, "provider" => provider.to_owned()).set(if holds { 1.0 } else { 0.0 });
    }
}

/// Notes that an answer is safe, in the store or in the spool.
pub fn answer_durable(after: Duration) {
    histogram!(ANSWER_DURABLE_SECONDS).record(after);
}

/// Notes a transaction that recorded so many results.
pub fn committed(results: usize) {
    histogram!(COMMIT_BATCH).record(lossy(results));
}

/// Says how many answers are in a spool that had so many.
pub fn spool_records(before: usize, now: usize) {
    gauge!(SPOOL_RECORDS).increment(lossy(now) - lossy(before));
}

/// Counts a spooled answer.
pub fn spool_appended() {
    counter!(SPOOL_APPENDS).increment(1);
}

/// Counts answers that could not be spooled, at each try.
pub fn spool_failed(answers: usize) {
    counter!(SPOOL_FAILURES).increment(answers as u64);
}

/// Counts answers of the spool that could not be read, or are nobody's.
pub fn spool_unreadable(answers: usize) {
    counter!(SPOOL_UNREADABLE).increment(answers as u64);
}

/// A count as metrics have it. It is never so large that a digit is lost.
fn lossy(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
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
