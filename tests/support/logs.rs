//! CRI log files, read as kubelet reads them.

use std::path::Path;

/// One line of a log: `<time> <stream> <tag> <content>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// `F` for the end of a line, `P` for a part of one.
    pub tag: String,
    /// Without the line's end.
    pub content: String,
}

/// The lines of a log file; none if it does not exist.
///
/// # Panics
/// On a line that is not of CRI's form.
pub fn read(path: &Path) -> Vec<LogLine> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.is_empty() || text.ends_with('\n'), "{}: the last line has no end", path.display());
    text.lines().map(parse).collect()
}

fn parse(line: &str) -> LogLine {
    let mut parts = line.splitn(4, ' ').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_else(|| panic!("not a CRI log line: {line:?}"));
    let parsed = LogLine { time: next(), stream: next(), tag: next(), content: next() };
    assert!(matches!(parsed.stream.as_str(), "stdout" | "stderr"), "stream of {line:?}");
    assert!(matches!(parsed.tag.as_str(), "P" | "F"), "tag of {line:?}");
    assert!(parsed.time.contains('T') && parsed.time.contains('.'), "time of {line:?}");
    parsed
}

/// What the process wrote to the stream.
pub fn text(lines: &[LogLine], stream: &str) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|l| l.stream == stream) {
        text.push_str(&line.content);
        if line.tag == "F" {
            text.push('\n');
        }
    }
    text
}
