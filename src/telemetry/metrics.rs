//! Metrics, for Prometheus to read. No label ever holds a user, an account or a secret.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

const REQUESTS: &str = "token_wallet_requests_total";
const REQUEST_SECONDS: &str = "token_wallet_request_duration_seconds";
const REFRESHES: &str = "token_wallet_refreshes_total";
const IN_DOUBT: &str = "token_wallet_refreshes_in_doubt_total";
const ROTATION_OUTCOME_LOST: &str = "token_wallet_rotation_outcome_lost_total";
const VERDICTS_FROZEN: &str = "token_wallet_verdicts_frozen_total";
const REVOCATIONS: &str = "token_wallet_revocations_total";
const REVOCATIONS_WAITING: &str = "token_wallet_revocations_waiting";
const OLDEST_REVOCATION_SECONDS: &str = "token_wallet_oldest_revocation_seconds";
const GRANTS: &str = "token_wallet_grants";
const GRANTS_IN_DOUBT: &str = "token_wallet_grants_in_doubt";
const DUE: &str = "token_wallet_due_grants";
const OLDEST_DUE_SECONDS: &str = "token_wallet_oldest_due_seconds";
const SMALLEST_LIFE_SECONDS: &str = "token_wallet_smallest_remaining_life_seconds";
const BREAKER_OPEN: &str = "token_wallet_breaker_open";
const PROVIDER_PAUSED: &str = "token_wallet_provider_paused";
const PROVIDER_MISCONFIGURED: &str = "token_wallet_provider_misconfigured";
const ANSWER_DURABLE_SECONDS: &str = "token_wallet_answer_durable_seconds";
const COMMIT_BATCH: &str = "token_wallet_commit_batch_results";
const SPOOL_RECORDS: &str = "token_wallet_spool_records";
const SPOOL_APPENDS: &str = "token_wallet_spool_appends_total";
const SPOOL_FAILURES: &str = "token_wallet_spool_failures_total";
const SPOOL_UNREADABLE: &str = "token_wallet_spool_unreadable_total";
const CLOCK_AHEAD_SECONDS: &str = "token_wallet_clock_ahead_seconds";
const STATEMENTS: &str = "token_wallet_store_statements_total";
const EVENTS: &str = "token_wallet_events_total";
const EVENTS_UNNUMBERED: &str = "token_wallet_events_unnumbered";
const EVENT_WATCHERS: &str = "token_wallet_event_watchers";
const JOB_RUNS: &str = "token_wallet_job_runs_total";
pub(crate) const CACHE_HITS: &str = "token_wallet_cache_hits_total";
pub(crate) const CACHE_MISSES: &str = "token_wallet_cache_misses_total";
pub(crate) const CACHE_DROPS: &str = "token_wallet_cache_drops_total";
pub(crate) const CACHE_BYTES: &str = "token_wallet_cache_bytes";
pub(crate) const CACHE_ENTRIES: &str = "token_wallet_cache_entries";

/// One of our metrics, as operators see it. A provider is named by its slug.
pub struct Metric {
    /// Its name; it ends with its unit, where it has one.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels, separated by commas.
    pub labels: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

/// What a metric is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// It only grows, while a process lives.
    Counter,
    /// It is what it is now.
    Gauge,
    /// It counts what was measured, by upper bounds.
    Histogram,
}

const fn counter_of(name: &'static str, labels: &'static str, meaning: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, meaning }
}

const fn gauge_of(name: &'static str, labels: &'static str, meaning: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, meaning }
}

const fn histogram_of(name: &'static str, labels: &'static str, meaning: &'static str) -> Metric {
    Metric { name, kind: Kind::Histogram, labels, meaning }
}

/// All of them.
pub const METRICS: [Metric; 34] = [
    counter_of(REQUESTS, "method, code", "Answered requests, by gRPC code"),
    histogram_of(REQUEST_SECONDS, "method", "Seconds from a request's headers to its answer"),
    counter_of(
        REFRESHES,
        "provider, outcome",
        "Refreshes: `refreshed`, or what the provider's answer or silence was taken for",
    ),
    counter_of(IN_DOUBT, "provider", "Refreshes that were sent and whose outcome is not known"),
    counter_of(
        ROTATION_OUTCOME_LOST,
        "provider",
        "Grants that ended because a new refresh token was lost with the answer that brought it",
    ),
    counter_of(
        VERDICTS_FROZEN,
        "provider",
        "How often a provider refused so many grants at once that none was ended for a while",
    ),
    counter_of(
        REVOCATIONS,
        "provider, outcome",
        "Tries to take back what a grant gave: `revoked`, `not_revoked`, `given_up`, or why it is tried again",
    ),
    gauge_of(REVOCATIONS_WAITING, "", "Grants that ended and are not taken back at their providers yet"),
    gauge_of(OLDEST_REVOCATION_SECONDS, "", "Seconds since the first of them ended; it is given up after a day"),
    gauge_of(GRANTS, "state", "Current grants"),
    gauge_of(GRANTS_IN_DOUBT, "", "Current grants with a refresh whose outcome is not known"),
    gauge_of(DUE, "provider", "Grants to be refreshed now"),
    gauge_of(OLDEST_DUE_SECONDS, "provider", "Seconds that the longest of them waits"),
    gauge_of(
        SMALLEST_LIFE_SECONDS,
        "provider",
        "Seconds until the first token ends that is refreshed ahead: 0 if one has ended, `+Inf` if there is none",
    ),
    gauge_of(BREAKER_OPEN, "provider", "1 while it fails and this replica sends it nothing but probes"),
    gauge_of(PROVIDER_PAUSED, "provider", "1 while it has asked to be sent nothing (429)"),
    gauge_of(PROVIDER_MISCONFIGURED, "provider", "1 while it refuses our client credentials"),
    histogram_of(
        ANSWER_DURABLE_SECONDS,
        "",
        "Seconds from a provider's parsed answer to the acknowledged commit, or to the spool's sync",
    ),
    histogram_of(COMMIT_BATCH, "", "Results that one transaction recorded"),
    gauge_of(SPOOL_RECORDS, "", "Answers in the spool that this process has, its own and what it took over"),
    counter_of(SPOOL_APPENDS, "", "Answers spooled"),
    counter_of(SPOOL_FAILURES, "", "Answers that could not be spooled, at each try"),
    counter_of(
        SPOOL_UNREADABLE,
        "",
        "Answers found in the spool that could not be read, or set aside because their flow had ended",
    ),
    gauge_of(
        CLOCK_AHEAD_SECONDS,
        "clock",
        "On PostgreSQL, how far ahead of the database's clock a clock is: `machine`, by which nothing is dated, and `wallet`, \
         not 0 only after the database's was set back",
    ),
    counter_of(STATEMENTS, "statement", "Statements sent to the store"),
    counter_of(EVENTS, "type", "Events written, each with its change"),
    gauge_of(
        EVENTS_UNNUMBERED,
        "",
        "Events that watchers cannot see yet, 1 000 at most: more than 0 for seconds means that none are numbered",
    ),
    gauge_of(EVENT_WATCHERS, "", "Open streams of `WatchEvents`"),
    counter_of(JOB_RUNS, "job, outcome", "Ended runs of jobs: `well`, `failed`"),
    counter_of(CACHE_HITS, "shelf", "Look-ups in memory that found something"),
    counter_of(CACHE_MISSES, "shelf", "Look-ups in memory that had to go to the store"),
    counter_of(CACHE_DROPS, "shelf", "Changes that made something in memory stale"),
    gauge_of(CACHE_BYTES, "shelf", "Bytes held in memory"),
    gauge_of(CACHE_ENTRIES, "shelf", "Entries held in memory"),
];

/// Upper bounds in seconds, finest where answers usually are, and around the moment of spooling.
const DURABLE_BUCKETS: [f64; 17] =
    [0.000_5, 0.001, 0.001_5, 0.002, 0.003, 0.005, 0.007_5, 0.01, 0.02, 0.05, 0.1, 0.11, 0.125, 0.15, 0.2, 0.5, 1.0];

/// Upper bounds in results.
const BATCH_BUCKETS: [f64; 7] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// Upper bounds in seconds: a hot get takes microseconds, a refresh waits for a provider.
const REQUEST_BUCKETS: [f64; 12] = [0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

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
        for metric in METRICS {
            match metric.kind {
                Kind::Counter => describe_counter!(metric.name, metric.meaning),
                Kind::Gauge => describe_gauge!(metric.name, metric.meaning),
                Kind::Histogram => describe_histogram!(metric.name, metric.meaning),
            }
        }
        // A first event is seen as one only where there was a 0 before it.
        for name in [SPOOL_FAILURES, SPOOL_UNREADABLE] {
            counter!(name).increment(0);
        }
        Some(handle)
    });
}

/// What operators may read of each, as a Markdown table.
pub fn table() -> String {
    let mut table = "| metric | kind | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for Metric { name, kind, labels, meaning } in METRICS {
        let kind = format!("{kind:?}").to_lowercase();
        // Writing to a text does not fail.
        let _ = writeln!(table, "| `{name}` | {kind} | {labels} | {meaning} |");
    }
    table
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

/// Counts a try to revoke a grant.
pub fn revocation(provider: &str, outcome: &'static str) {
    counter!(REVOCATIONS, "provider" => provider.to_owned(), "outcome" => outcome).increment(1);
}

/// Says how many revocations wait, and for how long the oldest.
pub fn revocations_waiting(count: u32, oldest: Duration) {
    gauge!(REVOCATIONS_WAITING).set(f64::from(count));
    gauge!(OLDEST_REVOCATION_SECONDS).set(oldest.as_secs_f64());
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
    let life = smallest_life.map_or(f64::INFINITY, |life| life.as_secs_f64());
    gauge!(SMALLEST_LIFE_SECONDS, "provider" => provider.to_owned()).set(life);
}

/// Has the rare counters of a provider begin at 0: a first event is seen as one only where there was a 0 before it.
pub fn provider(provider: &str) {
    for name in [IN_DOUBT, ROTATION_OUTCOME_LOST, VERDICTS_FROZEN] {
        counter!(name, "provider" => provider.to_owned()).increment(0);
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

/// Says how many milliseconds a clock is ahead of the database's.
pub fn clock_ahead(clock: &'static str, millis: i64) {
    let seconds = Duration::from_millis(millis.unsigned_abs()).as_secs_f64();
    gauge!(CLOCK_AHEAD_SECONDS, "clock" => clock).set(if millis < 0 { -seconds } else { seconds });
}

/// Counts a written event.
pub fn event(kind: &'static str) {
    counter!(EVENTS, "type" => kind).increment(1);
}

/// Says how many events wait for their number.
pub fn events_unnumbered(count: u32) {
    gauge!(EVENTS_UNNUMBERED).set(f64::from(count));
}

/// Says how many watch.
pub fn event_watchers(count: usize) {
    gauge!(EVENT_WATCHERS).set(lossy(count));
}

/// Counts a statement sent to the store.
pub fn statement(name: &'static str) {
    counter!(STATEMENTS, "statement" => name).increment(1);
}

/// What is counted of a part of memory.
pub struct Shelf {
    /// Look-ups that found something.
    pub hits: Counter,
    /// Look-ups that had to go to the store.
    pub misses: Counter,
    /// Changes that made something stale.
    pub drops: Counter,
    /// Bytes held.
    pub bytes: Gauge,
    /// Entries held.
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
