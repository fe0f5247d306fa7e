//! How much a peer lets us send on a stream, if it cares at all.
//!
//! Kubernetes' clients neither keep windows nor open them: with them, windows would only make streams stand still. So
//! what is sent is counted from the start, and counts from the moment a peer says anything about windows.

use std::collections::HashMap;

/// What each stream has before anybody opens it further.
const INITIAL: i64 = 64 << 10;

#[derive(Debug, Default)]
struct Window {
    sent: i64,
    granted: i64,
}

/// The windows of one connection.
#[derive(Debug)]
pub struct Windows {
    are_kept: bool,
    initial: i64,
    streams: HashMap<u32, Window>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { are_kept: false, initial: INITIAL, streams: HashMap::new() }
    }
}

impl Windows {
    /// How many of `wanted` bytes may be sent on a stream now; they count as sent.
    pub fn take(&mut self, stream: u32, wanted: usize) -> usize {
        let window = self.streams.entry(stream).or_default();
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        let open = if self.are_kept { self.initial + window.granted - window.sent } else { wanted };
        let taken = wanted.min(open).max(0);
        window.sent += taken;
        usize::try_from(taken).unwrap_or_default()
    }

    /// The peer opens the window of a stream further.
    pub fn open(&mut self, stream: u32, delta: u32) {
        self.are_kept = true;
        // Of streams on which nothing is sent there is nothing to know.
        if let Some(window) = self.streams.get_mut(&stream) {
            window.granted = window.granted.saturating_add(delta.into());
        }
    }

    /// There is nothing to wait for on a stream any more.
    pub fn lift(&mut self, stream: u32) {
        if let Some(window) = self.streams.get_mut(&stream) {
            window.granted = i64::MAX / 2;
        }
    }

    /// The peer says how wide windows are at first; that goes for streams there are, too.
    pub fn set_initial(&mut self, bytes: u32) {
        self.are_kept = true;
        self.initial = bytes.into();
    }

    /// Whether the peer keeps windows, and so waits for ours to open.
    #[must_use]
    pub fn are_kept(&self) -> bool {
        self.are_kept
    }

    /// A stream begins.
    pub fn begin(&mut self, stream: u32) {
        self.streams.entry(stream).or_default();
    }

    /// Nothing more is sent on a stream.
    pub fn end(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_nothing_of_windows_gets_everything() {
        let mut windows = Windows::default();
        assert_eq!(windows.take(1, 10 << 20), 10 << 20);
        assert_eq!(windows.take(1, 10 << 20), 10 << 20);
        assert!(!windows.are_kept());
    }

    #[test]
    fn who_keeps_windows_has_them_kept() {
        let mut windows = Windows::default();
        windows.begin(1);
        windows.set_initial(100);
        assert_eq!((windows.take(1, 80), windows.take(1, 80), windows.take(1, 80)), (80, 20, 0));
        windows.open(1, 50);
        assert_eq!((windows.take(1, 80), windows.take(3, 80)), (50, 80));
        // What was sent before counts.
        let mut windows = Windows::default();
        windows.take(1, 100_000);
        windows.open(1, 40_000);
        assert_eq!(windows.take(1, 10_000), 65_536 + 40_000 - 100_000);
        windows.set_initial(0);
        assert_eq!(windows.take(1, 10_000), 0);
        windows.lift(1);
        assert_eq!(windows.take(1, 10_000), 10_000);
        windows.end(1);
        assert!(windows.streams.is_empty());
        windows.open(1, u32::MAX);
        assert!(windows.streams.is_empty());
    }
}
