//! The built binary as a child process: run to its end, or started, called and ended.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// `dev` on free ports.
pub const DEV: [&str; 8] =
    ["dev", "--json", "--grpc-addr", "127.0.0.1:0", "--web-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0"];

/// Where the built binary is.
pub const BINARY: &str = env!("CARGO_BIN_EXE_token-wallet");

/// The binary in `folder`, with nothing of the test's environment but `variables`.
pub fn binary(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(BINARY);
    command.current_dir(folder).env_clear().envs(variables.iter().copied()).args(arguments);
    command
}

/// Runs the binary to its end.
pub fn run_in(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    binary(folder, arguments, variables).output().unwrap()
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A child that does not outlive its test.
pub struct Running(Child);

impl Running {
    /// Starts a command that prints one JSON line when it is ready, and waits for that line.
    pub fn ready(mut command: Command) -> (Self, Value) {
        let mut child = Self(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (child, serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
    }

    /// Starts `dev` in `folder`, with `more` arguments.
    pub fn dev(folder: &Path, more: &[&str]) -> (Self, Value) {
        Self::ready(binary(folder, &[&DEV, more].concat(), &[]))
    }

    /// Sends the signal; the exit code, which a killed process has none of.
    pub fn end_by(mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        self.0.wait().unwrap().code()
    }

    /// Ends it as an operator would; it must end well.
    pub fn end(self) {
        assert_eq!(self.end_by(Signal::TERM), Some(0));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
