//! Named steps at which a crash test ends or stops the process.
//!
//! Without the cargo feature `failpoints` nothing of this is in the program: the macro is empty and no variable is read.

/// A step that a crash test may end the process at: `failpoint!("refresh.claimed")`. Its name stands in `NAMES`.
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::reach($name);
    };
}

pub(crate) use failpoint;

#[cfg(feature = "failpoints")]
pub use armed::{FailpointError, NAMES, VARIABLE, arm, reach};

#[cfg(feature = "failpoints")]
mod armed {
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    /// All steps, in the order that a refresh, a link and an unlink take them.
    pub const NAMES: [&str; 18] = [
        "refresh.claiming",
        "refresh.claimed",
        "refresh.sent",
        "refresh.answered",
        "refresh.spooled",
        "refresh.committed",
        "link.opened",
        "link.returned",
        "link.claimed",
        "link.exchanged",
        "link.spooled",
        "link.parked",
        "link.committed",
        "unlink.committed",
        "revoke.claimed",
        "revoke.sent",
        "revoke.answered",
        "revoke.recorded",
    ];

    /// The variable that [`arm`] is given: `NAME`, `NAME:3` (at the third time), with `=pause` behind it to be stopped
    /// (`SIGSTOP`, until somebody sends `SIGCONT`) instead of killed.
    pub const VARIABLE: &str = "TOKEN_WALLET_FAILPOINT";

    /// How long the kernel may take to stop all threads.
    const STOPPING: Duration = Duration::from_millis(10);

    static ARMED: OnceLock<Armed> = OnceLock::new();

    struct Armed {
        name: &'static str,
        /// At which time it is reached, from 1.
        at: u32,
        pause: bool,
        reached: AtomicU32,
    }

    /// What the variable holds names no step.
    #[derive(Debug, thiserror::Error)]
    #[error("{VARIABLE} must be NAME, NAME:COUNT or either with =pause behind it; the names are {}", NAMES.join(", "))]
    pub struct FailpointError;

    /// Has the process die, or stop, at the step that `text` names. The first call counts.
    pub fn arm(text: &str) -> Result<(), FailpointError> {
        let armed = Armed::parse(text).ok_or(FailpointError)?;
        ARMED.get_or_init(|| armed);
        Ok(())
    }

    /// Dies or stops if this is the step and the time. Called by the macro.
    pub fn reach(name: &'static str) {
        let Some(armed) = ARMED.get().filter(|armed| armed.name == name) else { return };
        if armed.reached.fetch_add(1, Ordering::SeqCst) + 1 != armed.at {
            return;
        }
        let (signal, what) = if armed.pause { (Signal::STOP, "pause") } else { (Signal::KILL, "die") };
        // Straight to the stream: nothing is flushed any more. A parent that does not listen is no reason to live on.
        let _ = writeln!(std::io::stderr(), "failpoint {name}: {what}");
        let _ = kill_process(getpid(), signal);
        #[expect(clippy::disallowed_methods, reason = "no thread goes on until the signal has reached them all")]
        std::thread::sleep(STOPPING);
    }

    impl Armed {
        fn parse(text: &str) -> Option<Self> {
            let (step, pause) = text.strip_suffix("=pause").map_or((text, false), |step| (step, true));
            let (name, at) = step.split_once(':').unwrap_or((step, "1"));
            let name = NAMES.into_iter().find(|known| *known == name)?;
            let at = at.parse().ok().filter(|at| *at > 0)?;
            Some(Self { name, at, pause, reached: AtomicU32::new(0) })
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_step_is_named_with_its_count_and_its_manner() {
            let read = |text| Armed::parse(text).map(|armed| (armed.name, armed.at, armed.pause));
            assert_eq!(read("refresh.sent"), Some(("refresh.sent", 1, false)));
            assert_eq!(read("refresh.sent:3"), Some(("refresh.sent", 3, false)));
            assert_eq!(read("link.parked:2=pause"), Some(("link.parked", 2, true)));
            for wrong in ["", "refresh", "refresh.sent:0", "refresh.sent:x", "refresh.sent=die", "=pause"] {
                assert_eq!(read(wrong), None, "{wrong}");
            }
            assert!(arm("refresh.nowhere").is_err());
        }
    }
}
