//! Points in time and spans, to and from text. Points are nanoseconds since the epoch, as in CRI.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

/// The beginning of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// At this point.
    At(i64),
}

impl Since {
    /// As a point in time.
    #[must_use]
    pub fn point(self, now: i64) -> i64 {
        match self {
            Self::Ago(age) => now.saturating_sub(i64::try_from(age.as_nanos()).unwrap_or(i64::MAX)),
            Self::At(point) => point,
        }
    }
}

/// Now; 0 if the clock stands before the epoch.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// An age (`10m`) or a point (RFC 3339).
pub(super) fn parse_since(text: &str) -> Result<Since, String> {
    if text.contains('T') {
        return parse(text).map(Since::At).ok_or_else(|| format!("{text:?} is not a time like 2026-01-31T12:00:00Z"));
    }
    parse_duration(text).map(Since::Ago)
}

/// `90`, `90s`, `1m30s`, `2h`, `500ms`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time span; write seconds, or 10m, 2h30m");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..end].parse().map_err(|_| wrong())?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| end + at);
        let seconds = match &rest[end..unit_end] {
            "" | "s" => Some(number),
            "ms" => {
                total += Duration::from_millis(number);
                Some(0)
            }
            "m" => number.checked_mul(60),
            "h" => number.checked_mul(3600),
            "d" => number.checked_mul(86_400),
            _ => None,
        };
        let seconds = seconds.filter(|&s| s < 1 << 40).ok_or_else(wrong)?;
        total = total.checked_add(Duration::from_secs(seconds)).ok_or_else(wrong)?;
        rest = &rest[unit_end..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// RFC 3339 with up to nine decimals and any offset, years 1970 to 2261.
#[must_use]
pub fn parse(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let field = |from: usize, to: usize| -> Option<i64> {
        let part = text.get(from..to)?;
        if part.bytes().all(|b| b.is_ascii_digit()) { part.parse().ok() } else { None }
    };
    let sign = |at: usize, allowed: &[u8]| bytes.get(at).filter(|b| allowed.contains(b)).map(drop);
    let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
    let (hour, minute, second) = (field(11, 13)?, field(14, 16)?, field(17, 19)?);
    for (at, allowed) in [(4, b"-"), (7, b"-"), (10, b"T"), (13, b":"), (16, b":")] {
        sign(at, allowed)?;
    }
    let sound = (1970..=2261).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !sound {
        return None;
    }
    let rest = &text[19..];
    let (nanoseconds, zone) = fraction(rest)?;
    let seconds = days_since_epoch(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset(zone)?;
    seconds.checked_mul(SECOND)?.checked_add(nanoseconds)
}

/// `.123456789` at the beginning of `text` in nanoseconds, and what follows it.
fn fraction(text: &str) -> Option<(i64, &str)> {
    let Some(digits) = text.strip_prefix('.') else { return Some((0, text)) };
    let end = digits.find(|c: char| !c.is_ascii_digit())?;
    if end == 0 || end > 9 {
        return None;
    }
    let scale = 10i64.pow(u32::try_from(9 - end).ok()?);
    Some((digits[..end].parse::<i64>().ok()? * scale, &digits[end..]))
}

/// `Z`, `+02:00`: seconds east.
fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let number = |s: &str| if s.len() == 2 { s.parse::<u32>().ok() } else { None };
    Some(sign * i64::from(number(hours)? * 3600 + number(minutes)? * 60))
}

/// Civil date to days: years are counted from March, so that leap days come last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

/// RFC 3339 in UTC to the millisecond; empty for 0, which is CRI's "not yet".
#[must_use]
pub fn format(point: i64) -> String {
    if point <= 0 {
        return String::new();
    }
    let (seconds, nanoseconds) = (point / SECOND, point % SECOND);
    let (days, of_day) = (seconds / DAY, seconds % DAY);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", nanoseconds / 1_000_000)
}

/// The inverse of [`days_since_epoch`].
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// How long ago, in the two largest units that matter: `42s`, `5m30s`, `3h`, `12d`.
#[must_use]
pub fn age(point: i64, now: i64) -> String {
    let seconds = now.saturating_sub(point).max(0) / SECOND;
    let two = |large: i64, large_unit, small: i64, small_unit| {
        if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small}{small_unit}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(seconds / 60, "m", seconds % 60, "s"),
        600..7200 => format!("{}m", seconds / 60),
        7200..36_000 => two(seconds / 3600, "h", seconds / 60 % 60, "m"),
        36_000..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_points() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2026-11-23T19:00:00+02:00", 1_795_453_200),
            ("2024-12-31T23:59:59-01:30", 1_735_694_999),
        ] {
            assert_eq!(parse(text), Some(seconds * SECOND), "{text}");
        }
        assert_eq!(parse("2026-01-01T00:00:00.000000001Z").unwrap() % SECOND, 1);
        assert_eq!(parse("2026-01-01T00:00:00.5+00:00").unwrap() % SECOND, SECOND / 2);
    }

    #[test]
    fn what_is_no_time() {
        for bad in
            ["", "now", "2026-13-01T00:00:00Z", "2026-01-01 00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00.Z"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse("2026-01-01T00:00:00.1234567890Z"), None);
        assert_eq!(parse("2026-01-0äT00:00:00Z"), None);
    }

    proptest! {
        #[test]
        fn formatting_and_parsing_agree(ms in 1i64..9_000_000_000_000) {
            let point = ms * 1_000_000;
            prop_assert_eq!(parse(&format(point)), Some(point));
        }

        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            let parsed = parse(&text);
            prop_assert!(parsed.is_none() || text.contains('T'));
            parse_duration(&text).ok();
        }
    }

    #[test]
    fn spans() {
        for (text, seconds) in [("0", 0), ("90", 90), ("1m30s", 90), ("2h", 7200), ("1d", 86_400)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse_duration("1s500ms"), Ok(Duration::from_millis(1500)));
        for bad in ["", "s", "1y", "-1", "1.5h", "99999999999999999999"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ages() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (330, "5m30s"),
            (300, "5m"),
            (4000, "66m"),
            (9000, "2h30m"),
            (100_000, "27h"),
            (200_000, "2d"),
        ] {
            assert_eq!(age(0, seconds * SECOND), text);
        }
        assert_eq!(age(5 * SECOND, 0), "0s");
    }

    #[test]
    fn the_beginning_of_an_interval() {
        assert_eq!(parse_since("1m").unwrap().point(100 * SECOND), 40 * SECOND);
        assert_eq!(parse_since("1970-01-01T00:00:01Z").unwrap().point(0), SECOND);
        assert!(parse_since("yesterdayT").is_err());
    }
}
