//! What is measured in real time, and said.

use std::time::{Duration, Instant};

/// An answer is in the spool, or stored, this long after the wallet has it.
pub const SPOOLED_BY: Duration = Duration::from_millis(200);

/// Once the store is back, it has the answers by then.
pub const STORED_BY: Duration = Duration::from_secs(1);

#[expect(clippy::disallowed_methods, reason = "how long it really takes")]
pub fn now() -> Instant {
    Instant::now()
}

/// How long it takes until `done`, in steps of some milliseconds.
pub async fn time_until(what: &str, mut done: impl AsyncFnMut() -> bool) -> Duration {
    let began = now();
    while !done().await {
        assert!(began.elapsed() < Duration::from_secs(10), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    began.elapsed()
}

#[expect(clippy::print_stdout, reason = "figures that a person wants to see")]
pub fn say(what: std::fmt::Arguments<'_>) {
    println!("{what}");
}
