//! `aril logs`: prints the log file the container's status names.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::LogsArgs;
use super::connect::Daemon;
use super::error::CliError;
use super::find::Objects;
use super::logfile::{Entry, LogFile, Open, Stream};
use super::output;
use super::time;
use crate::api::cri;

/// How often a followed log is looked at.
const GLANCE: Duration = Duration::from_millis(50);
/// Every so many glances the daemon is asked whether the container still runs.
const GLANCES_BETWEEN_QUESTIONS: u32 = 10;

/// Prints and, if asked, follows until the container has ended.
pub(super) async fn logs(daemon: &mut Daemon, args: &LogsArgs) -> Result<(), CliError> {
    let objects = Objects::fetch(daemon).await?;
    let id = objects.container(&args.container)?.id.clone();
    let path = log_path(&status(daemon, &id).await?)?;
    let opening = |e| CliError::io(format!("open log {}", path.display()), e);
    let mut printer = Printer::new(args);
    let mut log = LogFile::open(&path).map_err(opening)?;
    if let Some(count) = args.tail {
        printer.open = log.tail(count, |e| printer.is_young(e)).map_err(opening)?;
    }
    print_all(&mut log, &mut printer)?;
    if args.follow { follow(daemon, &id, &mut log, &mut printer).await } else { Ok(()) }
}

/// Prints what is written until the container has ended.
async fn follow(daemon: &mut Daemon, id: &str, log: &mut LogFile, printer: &mut Printer) -> Result<(), CliError> {
    let mut glances = 0;
    loop {
        tokio::time::sleep(GLANCE).await;
        glances += 1;
        let asked = glances % GLANCES_BETWEEN_QUESTIONS == 0;
        // Asked before the last look at the file, so that nothing is written after it.
        let ended = asked && has_ended(daemon, id).await?;
        print_all(log, printer)?;
        if log.follow(|_, entry| printer.print(&entry))? {
            print_all(log, printer)?;
        }
        if ended {
            return Ok(());
        }
    }
}

fn print_all(log: &mut LogFile, printer: &mut Printer) -> Result<(), CliError> {
    log.read(|_, entry| printer.print(&entry))
}

/// The status of the container `id`.
pub(super) async fn status(daemon: &mut Daemon, id: &str) -> Result<cri::ContainerStatus, CliError> {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let answer = daemon.runtime.container_status(request).await?.into_inner();
    answer.status.ok_or_else(|| CliError::Failed(format!("the daemon told nothing of container {}", output::short(id))))
}

/// Whether it runs no more, or is gone.
async fn has_ended(daemon: &mut Daemon, id: &str) -> Result<bool, CliError> {
    match status(daemon, id).await {
        Ok(status) => {
            Ok(matches!(status.state(), cri::ContainerState::ContainerExited | cri::ContainerState::ContainerUnknown))
        }
        Err(CliError::Daemon(s)) if s.code() == tonic::Code::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}

/// Where the container's output is written.
pub(super) fn log_path(status: &cri::ContainerStatus) -> Result<PathBuf, CliError> {
    let path = Path::new(&status.log_path);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Err(CliError::Failed(format!(
        "container {} keeps no log: it was made without a log path",
        output::short(&status.id)
    )))
}

/// Picks and prints entries, each stream to its own.
struct Printer {
    since: Option<i64>,
    timestamps: bool,
    open: Open,
    /// For each stream whether its last line that began is wanted; of those before the first nothing is.
    wanted: [bool; 2],
}

impl Printer {
    fn new(args: &LogsArgs) -> Self {
        let since = args.since.map(|since| since.point(time::now()));
        Self { since, timestamps: args.timestamps, open: Open::default(), wanted: [false; 2] }
    }

    fn is_young(&self, entry: &Entry<'_>) -> bool {
        // What carries no time cannot be left out by it.
        self.since.is_none_or(|since| time::parse(entry.time).is_none_or(|at| at >= since))
    }

    fn print(&mut self, entry: &Entry<'_>) -> Result<(), CliError> {
        let bytes = self.format(entry);
        match entry.stream {
            _ if bytes.is_empty() => Ok(()),
            Stream::Stdout => output::write(&mut io::stdout().lock(), &bytes),
            Stream::Stderr => output::write(&mut io::stderr().lock(), &bytes),
        }
    }

    /// What is printed of an entry: its line is, as a whole, or is not.
    fn format(&mut self, entry: &Entry<'_>) -> Vec<u8> {
        let begins = self.open.begins(entry);
        let stream = usize::from(entry.stream == Stream::Stderr);
        if begins {
            self.wanted[stream] = self.is_young(entry);
        }
        if !self.wanted[stream] {
            return Vec::new();
        }
        let mut bytes = Vec::with_capacity(entry.bytes.len() + entry.time.len() + 2);
        if begins && self.timestamps && !entry.time.is_empty() {
            bytes.extend_from_slice(entry.time.as_bytes());
            bytes.push(b' ');
        }
        bytes.extend_from_slice(entry.bytes);
        if entry.ends {
            bytes.push(b'\n');
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printer(since: Option<i64>, timestamps: bool) -> Printer {
        Printer { since, timestamps, open: Open::default(), wanted: [false; 2] }
    }

    #[test]
    fn a_line_in_pieces_gets_one_time_and_one_end() {
        let mut printer = printer(None, true);
        let lines =
            ["2026-01-01T00:00:01Z stdout P ab", "2026-01-01T00:00:02Z stderr F x", "2026-01-01T00:00:03Z stdout F c"];
        let text: Vec<u8> = lines.iter().flat_map(|l| printer.format(&Entry::parse(l.as_bytes()))).collect();
        let expected = "2026-01-01T00:00:01Z ab2026-01-01T00:00:02Z x\nc\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn lines_are_left_out_as_they_began() {
        let mut printer = printer(time::parse("2026-01-01T00:00:02Z"), false);
        let mut shown = |lines: &[&str]| -> String {
            let text: Vec<u8> = lines.iter().flat_map(|l| printer.format(&Entry::parse(l.as_bytes()))).collect();
            String::from_utf8(text).unwrap()
        };
        assert_eq!(shown(&["2026-01-01T00:00:01Z stdout F a", "2026-01-01T00:00:02Z stdout F b"]), "b\n");
        assert_eq!(shown(&["something else"]), "something else\n");
        let parts =
            ["2026-01-01T00:00:01Z stdout P c", "2026-01-01T00:00:03Z stderr P d", "2026-01-01T00:00:03Z stdout F e"];
        assert_eq!(shown(&parts), "d");
        // Its beginning lies before where printing begins.
        printer = self::printer(None, true);
        printer.open.begins(&Entry::parse(b"2026-01-01T00:00:01Z stdout P c"));
        assert!(printer.format(&Entry::parse(b"2026-01-01T00:00:03Z stdout F e")).is_empty());
        assert_eq!(printer.format(&Entry::parse(b"2026Z T stdout F e")), b"2026Z T stdout F e\n");
    }

    #[test]
    fn a_container_without_log_says_so() {
        let status = cri::ContainerStatus { id: "0123456789abcdef".into(), ..Default::default() };
        assert!(log_path(&status).unwrap_err().to_string().contains("0123456789ab keeps no log"));
    }
}
