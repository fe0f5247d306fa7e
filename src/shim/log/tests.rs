use super::*;
use proptest::prelude::*;

#[derive(Default)]
struct Kept(Vec<u8>, usize);

impl Sink for Kept {
    fn write(&mut self, lines: &[u8]) {
        assert_eq!(lines.last(), Some(&b'\n'));
        self.0.extend_from_slice(lines);
        self.1 += 1;
    }
}

const STAMP: Stamp = *b"2026-11-23T10:20:30.123456789Z";

/// The log of output that was read in these pieces, without its times.
fn log_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut splitter = Splitter::new(Stream::Stdout);
    let (mut sink, mut batch) = (Kept::default(), Vec::new());
    for piece in pieces {
        splitter.push(piece, &STAMP, &mut batch, &mut sink);
    }
    splitter.finish(&STAMP, &mut batch, &mut sink);
    let lines = sink.0.split_inclusive(|&b| b == b'\n');
    lines.map(|line| line.strip_prefix(b"2026-11-23T10:20:30.123456789Z stdout ").unwrap().to_vec()).collect()
}

fn line(tag: u8, len: usize) -> Vec<u8> {
    [&[tag, b' '][..], &vec![b'x'; len], b"\n"].concat()
}

#[test]
fn lines_are_full_and_the_rest_is_partial() {
    assert_eq!(log_of([&b"one\n\ntwo\r\nthree"[..]]), [&b"F one\n"[..], b"F \n", b"F two\r\n", b"P three\n"]);
    assert!(log_of([&b""[..]]).is_empty());
    assert_eq!(log_of([&b"\n"[..]]), [b"F \n"]);
}

#[test]
fn long_lines_are_cut_at_16_kib() {
    let x = |len| vec![b'x'; len];
    let with_feed = |len| [x(len), b"\n".to_vec()].concat();
    assert_eq!(log_of([&with_feed(MAX_LINE_BYTES)[..]]), [line(b'F', MAX_LINE_BYTES)]);
    assert_eq!(log_of([&with_feed(MAX_LINE_BYTES + 1)[..]]), [line(b'P', MAX_LINE_BYTES), line(b'F', 1)]);
    assert_eq!(log_of([&with_feed(2 * MAX_LINE_BYTES)[..]]), [line(b'P', MAX_LINE_BYTES), line(b'F', MAX_LINE_BYTES)]);
    assert_eq!(log_of([&x(MAX_LINE_BYTES)[..]]), [line(b'P', MAX_LINE_BYTES)]);
    assert_eq!(log_of([&x(MAX_LINE_BYTES + 5)[..]]), [line(b'P', MAX_LINE_BYTES), line(b'P', 5)]);
}

#[test]
fn one_read_is_one_write() {
    let mut splitter = Splitter::new(Stream::Stderr);
    let (mut sink, mut batch) = (Kept::default(), Vec::new());
    splitter.push(&b"line of output\n".repeat(500), &STAMP, &mut batch, &mut sink);
    assert_eq!(sink.1, 1);
    assert!(sink.0.starts_with(b"2026-11-23T10:20:30.123456789Z stderr F line of output\n"));
    // Line feeds alone grow 43-fold; they are written in pieces instead of being collected.
    splitter.push(&b"\n".repeat(16 * 1024), &STAMP, &mut batch, &mut sink);
    assert!(sink.1 > 2);
    assert!(batch.capacity() < 128 * 1024);
}

#[test]
fn a_long_line_leaves_no_memory_behind() {
    let mut splitter = Splitter::new(Stream::Stdout);
    let (mut sink, mut batch) = (Kept::default(), Vec::new());
    splitter.push(&vec![b'x'; MAX_LINE_BYTES], &STAMP, &mut batch, &mut sink);
    splitter.push(b"\nshort", &STAMP, &mut batch, &mut sink);
    assert!(splitter.open.capacity() <= 1024);
}

#[test]
fn times_are_written_out() {
    let mut clock = Clock::default();
    let mut at = |secs, nanos| String::from_utf8(clock.stamp_at(Duration::new(secs, nanos)).to_vec()).unwrap();
    assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
    assert_eq!(at(951_782_399, 999_999_999), "2000-02-28T23:59:59.999999999Z");
    assert_eq!(at(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
    assert_eq!(at(1_795_430_096, 123_456_789), "2026-11-23T10:34:56.123456789Z");
    assert_eq!(at(1_795_430_096, 5), "2026-11-23T10:34:56.123456789Z", "noise of the clock");
    assert_eq!(at(4_107_542_399, 0), "2100-02-28T23:59:59.000000000Z");
    assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    assert_eq!(at(1_000_000_000, 0), "2001-09-09T01:46:40.000000000Z", "set back for good");
}

proptest! {
    /// Where reads cut the output is not to be seen in the log.
    #[test]
    fn any_cuts_give_the_same_log(
        parts in proptest::collection::vec((0usize..20_000, any::<bool>()), 0..8),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut output = Vec::new();
        for (len, feed) in parts {
            output.extend(std::iter::repeat_n(b'y', len));
            if feed {
                output.push(b'\n');
            }
        }
        let mut at: Vec<_> = cuts.iter().map(|c| c.index(output.len() + 1)).collect();
        at.extend([0, output.len()]);
        at.sort_unstable();
        let pieces = at.windows(2).map(|pair| &output[pair[0]..pair[1]]);
        let log = log_of(pieces);
        prop_assert_eq!(&log, &log_of([&output[..]]));
        // Nothing is lost, nothing is added.
        let back: Vec<u8> = log.iter().flat_map(|line| {
            let body = &line[2..line.len() - 1];
            prop_assert_body(body);
            [body, if line[0] == b'F' { b"\n" } else { b"" }].concat()
        }).collect();
        prop_assert_eq!(back, output);
    }

    /// Each time is text of one form, and none is before the one told before.
    #[test]
    fn times_do_not_go_back(steps in proptest::collection::vec((0u64..3, 0u32..1_000_000_000), 1..50)) {
        let mut clock = Clock::default();
        let (mut now, mut last) = (Duration::from_secs(1_700_000_000), Stamp::default());
        for (secs, nanos) in steps {
            now += Duration::new(secs, nanos);
            let stamp = clock.stamp_at(now);
            prop_assert!(stamp >= last);
            let form: Vec<u8> = stamp.iter().map(|b| if b.is_ascii_digit() { b'0' } else { *b }).collect();
            prop_assert_eq!(&form, b"0000-00-00T00:00:00.000000000Z");
            last = stamp;
        }
    }
}

fn prop_assert_body(body: &[u8]) {
    assert!(body.len() <= MAX_LINE_BYTES);
}
