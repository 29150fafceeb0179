//! Secrets that a person gives: from a file or standard input, never from the command line, which others can read.

use std::fs::File;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::output;
use crate::domain::secret::ClientSecret;

/// No client secret is longer.
const MOST: u64 = 16 * 1024;

/// Hides what is typed until it is dropped.
struct Hidden(Termios);

/// Reads a client secret from a file, or from standard input if the path is `-`. A line break at its end is not part
/// of it.
pub(super) fn read(path: &Path) -> anyhow::Result<ClientSecret> {
    let mut text = Zeroizing::new(String::new());
    if path == Path::new("-") {
        let hidden = io::stdin().is_terminal().then(Hidden::new).transpose().context("cannot hide what is typed")?;
        if hidden.is_some() {
            output::note("Client secret (not shown), then Enter:");
            io::stdin().lock().read_line(&mut text)?;
        } else {
            io::stdin().lock().take(MOST).read_to_string(&mut text)?;
        }
    } else {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        file.take(MOST).read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    }
    match text.trim_end_matches(['\r', '\n']) {
        "" => bail!("the client secret is empty; a public client is made with providers create --public"),
        secret => Ok(ClientSecret::new(secret)),
    }
}

impl Hidden {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Now, &hidden)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_a_file_ends_before_its_line_break() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "s3cret \r\n").unwrap();
        assert_eq!(read(&path).unwrap().expose(), "s3cret ");
        std::fs::write(&path, "\n").unwrap();
        assert!(read(&path).is_err());
        assert!(read(&folder.path().join("missing")).is_err());
    }
}
