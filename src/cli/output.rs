//! What people and programs read: answers on standard output, everything else on standard error.

use std::fmt;
use std::io::{self, IsTerminal, Write as _};
use std::time::SystemTime;

use crate::config;

/// Prints one line of an answer.
pub(super) fn line(text: impl fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints an answer for programs, indented.
pub(super) fn json(value: &serde_json::Value) -> io::Result<()> {
    line(format_args!("{value:#}"))
}

/// Prints a line that is no part of the answer.
pub(super) fn note(text: impl fmt::Display) {
    // Nobody left to tell: nothing to do about it.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a failure and how to cure it.
pub(super) fn failure(text: impl fmt::Display, hint: Option<&str>) {
    let (red, end) = if colours(&io::stderr()) { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    note(format_args!("{red}error:{end} {text}"));
    if let Some(hint) = hint {
        note(format_args!("hint: {hint}"));
    }
}

/// Prints rows under a head, in columns; cells are made safe for a terminal.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| plain(cell))).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    });
    let (bold, end) = if colours(&io::stdout()) { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    line(format_args!("{bold}{}{end}", columns(head.map(str::to_owned).as_ref(), &widths)))?;
    rows.iter().try_for_each(|row| line(columns(row, &widths)))
}

/// A moment as RFC 3339 in UTC, or `-`.
pub(super) fn time(moment: Option<prost_types::Timestamp>) -> String {
    let moment = moment.and_then(|moment| SystemTime::try_from(moment).ok());
    moment.map_or_else(|| "-".to_owned(), |moment| humantime::format_rfc3339_seconds(moment).to_string())
}

/// The same for programs: null if there is none.
pub(super) fn json_time(moment: Option<prost_types::Timestamp>) -> serde_json::Value {
    moment.is_some().then(|| time(moment)).into()
}

/// Text from elsewhere without what a terminal would obey.
pub(super) fn plain(text: &str) -> String {
    let safe: String = text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect();
    if safe.is_empty() { "-".to_owned() } else { safe }
}

fn columns(cells: &[String], widths: &[usize]) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
    padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

fn colours(to: &impl IsTerminal) -> bool {
    to.is_terminal() && config::variable("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_cannot_drive_the_terminal() {
        assert_eq!(plain("Eve\x1b[2J\nroot"), "Eve\u{fffd}[2J\u{fffd}root");
        assert_eq!(plain(""), "-");
    }

    #[test]
    fn columns_line_up_and_end_without_blanks() {
        assert_eq!(columns(&["a".to_owned(), "b".to_owned()], &[3, 2]), "a    b");
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time(Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 })), "2023-11-14T22:13:20Z");
        assert_eq!(json_time(None), serde_json::Value::Null);
    }
}
