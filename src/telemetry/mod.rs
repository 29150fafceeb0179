//! Logs and metrics.

pub mod metrics;

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text for people; coloured on a terminal unless `NO_COLOR` is set.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Why nothing is logged.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The directives do not parse.
    #[error("the log filter cannot be used: {0}")]
    Filter(#[from] ParseError),
    /// Somebody set a logger before.
    #[error("logging is set up already")]
    SetUp(#[from] tracing_subscriber::util::TryInitError),
}

/// Writes logs to standard error. `filter` holds `EnvFilter` directives; whatever they say, dependencies log at most
/// at `info`.
pub fn init(format: Format, filter: &str) -> Result<(), TelemetryError> {
    let colours = format == Format::Pretty && io::stderr().is_terminal();
    Ok(subscriber(format, filter, colours, io::stderr)?.try_init()?)
}

fn subscriber<W>(format: Format, filter: &str, colours: bool, to: W) -> Result<impl Subscriber, ParseError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter)?;
    let layer = tracing_subscriber::fmt::layer().with_writer(to);
    let layer = match format {
        // `with_ansi(false)` only switches colours off: `NO_COLOR` is heeded by the layer's own default.
        Format::Pretty if colours => layer.boxed(),
        Format::Pretty => layer.with_ansi(false).boxed(),
        Format::Json => layer.json().flatten_event(true).boxed(),
    };
    // Filters of the whole, not of the layer: those lose lines (github.com/tokio-rs/tracing/issues/2519).
    Ok(tracing_subscriber::registry().with(layer).with(filter).with(DependenciesAtMostInfo))
}

/// Below `info`, HTTP and database libraries print what they carry: authorization headers, URLs with codes, bodies,
/// bound values. No directive may switch that on, so only our own code gets below it.
struct DependenciesAtMostInfo;

impl DependenciesAtMostInfo {
    fn allows(metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
        ours || *metadata.level() <= LevelFilter::INFO
    }
}

impl<S: Subscriber> Layer<S> for DependenciesAtMostInfo {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        Self::allows(metadata)
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if Self::allows(metadata) { Interest::always() } else { Interest::never() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{Level, event, subscriber::with_default};

    use super::*;

    /// What was logged while `act` ran.
    fn logged(format: Format, filter: &str, act: impl FnOnce()) -> String {
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&written);
        let make = move || Shared(Arc::clone(&writer));
        with_default(subscriber(format, filter, false, make).unwrap(), act);
        let bytes = written.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_directive_lets_a_dependency_log_below_info() {
        for filter in ["trace", "h2=trace,hyper=debug,sqlx::query=trace", "token_walletx=trace,trace"] {
            let told = logged(Format::Pretty, filter, || {
                event!(target: "h2::codec", Level::TRACE, "canary");
                event!(target: "hyper::proto", Level::DEBUG, "canary");
                event!(target: "sqlx::query", Level::TRACE, "canary");
                event!(target: "token_walletx", Level::DEBUG, "canary");
                tracing::debug_span!(target: "tonic", "call", bearer = "canary").in_scope(|| {
                    event!(target: "token_wallet::app", Level::ERROR, "within");
                });
            });
            assert!(!told.contains("canary"), "{filter}: {told}");
        }
    }

    #[test]
    fn our_own_code_and_warnings_of_others_are_logged() {
        let told = logged(Format::Pretty, "warn,token_wallet=trace", || {
            event!(target: "token_wallet::wallet::get", Level::TRACE, "ours");
            event!(target: "sqlx", Level::WARN, "theirs");
            event!(target: "sqlx", Level::INFO, "less");
        });
        assert!(told.contains("ours") && told.contains("theirs") && !told.contains("less"), "{told}");
    }

    // What the `log` crate's macros ask, and so sqlx: for metadata that no callsite of tracing has an interest cached
    // for. A filter of a single layer keeps its no for the next event of the thread, whatever that is.
    #[test]
    fn a_dependency_that_asks_whether_it_may_log_costs_us_no_line() {
        let told = logged(Format::Pretty, "warn,token_wallet=info", || {
            let asked = tracing::info_span!(target: "sqlx::postgres::notice", "asked");
            for _ in 0..2 {
                tracing::dispatcher::get_default(|to| to.enabled(asked.metadata().unwrap()));
                event!(target: "token_wallet::app", Level::INFO, "ready");
            }
        });
        assert_eq!(told.matches("ready").count(), 2, "{told}");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let told = logged(Format::Json, "info", || {
            event!(target: "token_wallet", Level::INFO, provider = "github", "first\nline");
            event!(target: "token_wallet", Level::INFO, "second");
        });
        let lines: Vec<serde_json::Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["message"], &lines[0]["provider"]), (&"first\nline".into(), &"github".into()));
    }

    #[test]
    fn a_filter_that_does_not_parse_is_an_error() {
        assert!(subscriber(Format::Json, "token_wallet=loud", false, io::sink).is_err());
    }
}
