//! Output of a container as lines of a CRI log: `<RFC 3339 time> <stdout|stderr> <P|F> <bytes>`.
//!
//! A line of the output becomes one full line (`F`); one longer than [`MAX_LINE_BYTES`] becomes partial lines (`P`)
//! of that length and a last full one. What has no line feed at the end of the output is partial. How the output
//! happens to be cut into reads leaves no trace in the log. Nothing here knows files; see [`super::logfile`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest piece of output in one line of the log.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

/// Which of a container's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b" stdout ",
            Self::Stderr => b" stderr ",
        }
    }
}

/// A time as text: `2006-01-02T15:04:05.000000000Z`.
pub type Stamp = [u8; 30];

/// Tells the time as text; writes the date out once a second.
#[derive(Debug)]
pub struct Clock {
    second: u64,
    last: Duration,
    text: Stamp,
}

/// Up to this much, a clock set back is taken as noise and the last time told again.
const NOISE: Duration = Duration::from_secs(1);

impl Default for Clock {
    fn default() -> Self {
        Self { second: u64::MAX, last: Duration::ZERO, text: *b"0000-00-00T00:00:00.000000000Z" }
    }
}

impl Clock {
    /// Now, never a moment before the last call's answer unless the clock was set back.
    pub fn stamp(&mut self) -> Stamp {
        self.stamp_at(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    fn stamp_at(&mut self, mut now: Duration) -> Stamp {
        if now < self.last && self.last - now < NOISE {
            now = self.last;
        }
        self.last = now;
        if now.as_secs() != self.second {
            self.second = now.as_secs();
            write_second(&mut self.text, self.second);
        }
        write_digits(&mut self.text[20..29], now.subsec_nanos().into());
        self.text
    }
}

fn write_second(text: &mut Stamp, second: u64) {
    let (year, month, day) = civil(second / 86_400);
    let of_day = second % 86_400;
    write_digits(&mut text[0..4], year);
    write_digits(&mut text[5..7], month);
    write_digits(&mut text[8..10], day);
    write_digits(&mut text[11..13], of_day / 3600);
    write_digits(&mut text[14..16], of_day / 60 % 60);
    write_digits(&mut text[17..19], of_day % 60);
}

fn write_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Counts years from March on, so that a leap day is the last of its year, in eras of 400 years.
fn civil(day: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970: u64 = 719_468;
    let day = day + DAYS_TO_1970;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day_of_month)
}

/// Where finished lines of a log go.
pub trait Sink {
    /// Takes whole lines of the log.
    fn write(&mut self, lines: &[u8]);
}

/// Collected before a sink is bothered: one write for a read, unless its lines are very short.
const BATCH_BYTES: usize = 32 * 1024;

/// Cuts one stream into lines.
#[derive(Debug)]
pub struct Splitter {
    stream: Stream,
    /// Output since the last line feed, not logged yet; at most [`MAX_LINE_BYTES`].
    open: Vec<u8>,
}

impl Splitter {
    /// For this stream.
    #[must_use]
    pub fn new(stream: Stream) -> Self {
        Self { stream, open: Vec::new() }
    }

    /// Takes what was read at `stamp`; gives `sink` the lines that are whole. `batch` is scratch space.
    pub fn push(&mut self, mut data: &[u8], stamp: &Stamp, batch: &mut Vec<u8>, sink: &mut impl Sink) {
        batch.clear();
        while !data.is_empty() {
            let room = MAX_LINE_BYTES - self.open.len();
            // The line feed may come right behind a line of the greatest length.
            let window = &data[..data.len().min(room + 1)];
            let (tag, taken, skipped) = match window.iter().position(|&b| b == b'\n') {
                Some(at) => (b'F', at, 1),
                None if window.len() > room => (b'P', room, 0),
                None => break,
            };
            self.line(tag, &data[..taken], stamp, batch);
            data = &data[taken + skipped..];
            if batch.len() >= BATCH_BYTES {
                sink.write(batch);
                batch.clear();
            }
        }
        self.keep(data);
        if !batch.is_empty() {
            sink.write(batch);
        }
    }

    /// Ends the stream: what is left without a line feed is a partial line.
    pub fn finish(&mut self, stamp: &Stamp, batch: &mut Vec<u8>, sink: &mut impl Sink) {
        if self.open.is_empty() {
            return;
        }
        batch.clear();
        self.line(b'P', &[], stamp, batch);
        sink.write(batch);
        self.keep(&[]);
    }

    fn line(&mut self, tag: u8, rest: &[u8], stamp: &Stamp, batch: &mut Vec<u8>) {
        batch.extend_from_slice(stamp);
        batch.extend_from_slice(self.stream.name());
        batch.extend_from_slice(&[tag, b' ']);
        batch.extend_from_slice(&self.open);
        batch.extend_from_slice(rest);
        batch.push(b'\n');
        self.open.clear();
    }

    /// Keeps an unfinished line, and no more memory than it needs once it was a long one.
    fn keep(&mut self, data: &[u8]) {
        if self.open.is_empty() && self.open.capacity() > 1024 {
            self.open = Vec::new();
        }
        self.open.extend_from_slice(data);
    }
}

#[cfg(test)]
mod tests;
