//! What is printed: tables for people, JSON for programs, colours where they are seen.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use super::error::CliError;

/// Columns with a heading each, without borders.
#[derive(Debug)]
pub(super) struct Rows {
    table: Table,
}

impl Rows {
    pub(super) fn new(headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(headings.iter().map(|h| (*h).to_owned()));
        Self { table }
    }

    pub(super) fn add(&mut self, cells: impl IntoIterator<Item = String>) {
        self.table.add_row(cells.into_iter().map(plain));
    }

    /// One line a row, columns two or more blanks apart.
    pub(super) fn text(mut self) -> String {
        self.table.discover_columns();
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

/// Control characters of a name, which a stranger may have chosen, must not reach the terminal.
pub(super) fn plain(text: String) -> String {
    if text.chars().any(char::is_control) { text.escape_debug().to_string() } else { text }
}

/// `label: value` lines, aligned.
pub(super) fn sheet(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0) + 1;
    lines.iter().map(|(label, value)| format!("{:width$} {}\n", format!("{label}:"), plain(value.clone()))).collect()
}

/// Indented JSON and a newline.
pub(super) fn json(value: &impl Serialize) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::Failed(format!("write JSON: {e}")))?;
    Ok(text + "\n")
}

/// Writes to standard output, whole.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    write(&mut io::stdout().lock(), text.as_bytes())
}

/// Writes and flushes; a reader that is gone is [`CliError::OutputClosed`].
pub(super) fn write(to: &mut impl Write, bytes: &[u8]) -> Result<(), CliError> {
    to.write_all(bytes).and_then(|()| to.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => CliError::OutputClosed,
        _ => CliError::io("write the output", e),
    })
}

/// Colours of a few words.
#[derive(Debug, Clone, Copy)]
pub(super) enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// Whether `stream` shows colours: a terminal, and `NO_COLOR` not set.
pub(super) fn coloured(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// `text` in `colour` if `on`.
pub(super) fn paint(text: &str, colour: Colour, on: bool) -> String {
    if on { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_owned() }
}

/// Tells of an error on standard error.
pub(super) fn complain(message: &str) {
    let label = paint("error:", Colour::Red, coloured(&io::stderr()));
    // With standard error gone there is nobody to tell.
    writeln!(io::stderr().lock(), "{label} {message}").ok();
}

/// Tells of something that is less than was asked for, on standard error.
pub(super) fn warn(message: &str) {
    let label = paint("warning:", Colour::Yellow, coloured(&io::stderr()));
    // As above.
    writeln!(io::stderr().lock(), "{label} {message}").ok();
}

/// Says something to the person, beside the output.
pub(super) fn remark(message: &str) {
    // As above.
    writeln!(io::stderr().lock(), "{message}").ok();
}

/// Bytes in the largest fitting unit, powers of 1024.
#[must_use]
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut tenths = u128::from(count) * 10;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 || tenths >= 1000 {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// "1 pod", "2 pods".
#[must_use]
pub(super) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The part of an id that people read: 12 digits, without the algorithm.
#[must_use]
pub(super) fn short(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_columns_and_nothing_else() {
        let mut rows = Rows::new(&["NAME", "STATE"]);
        rows.add(["a-long-name".to_owned(), "Running".to_owned()]);
        rows.add(["b".to_owned(), "Exited".to_owned()]);
        assert_eq!(rows.text(), "NAME         STATE\na-long-name  Running\nb            Exited\n");
        assert_eq!(Rows::new(&["NAME", "STATE"]).text(), "NAME  STATE\n");
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        let mut rows = Rows::new(&["NAME"]);
        rows.add(["a\x1b[31m\nb".to_owned()]);
        assert_eq!(rows.text(), "NAME\na\\u{1b}[31m\\nb\n");
        assert!(!sheet(&[("x", "\x1b".into())]).contains('\x1b'));
    }

    #[test]
    fn a_sheet_is_aligned() {
        assert_eq!(sheet(&[("pid", "1".into()), ("version", "2".into())]), "pid:     1\nversion: 2\n");
    }

    #[test]
    fn sizes_for_people() {
        for (count, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_500_000, "1.4 MiB"), (200 << 20, "200 MiB")]
        {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(u64::MAX), "16777215 TiB");
    }

    #[test]
    fn one_is_one() {
        assert_eq!(
            (count(0, "pod"), count(1, "pod"), count(2, "image")),
            ("0 pods".into(), "1 pod".into(), "2 images".into())
        );
    }

    #[test]
    fn short_ids() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("0123"), "0123");
    }
}
