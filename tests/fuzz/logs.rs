//! Lines of logs: written by the shim, rotated as kubelet does, read by `aril logs`; and files that anybody wrote.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aril::cli::logfile::{Entry, LogFile, Open, Stream};
use aril::shim::log::{Clock, MAX_LINE_BYTES, Splitter, Stream as Output};
use aril::shim::logfile::LogFile as Writer;

use crate::dice::Dice;
use crate::engine::Target;

pub const TARGET: Target = Target { name: "log_lines", seeds, words, run, most_allocated, clean };

/// In memory, where there is such a place.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let above = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let directory = above.join(format!("aril-fuzz-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    directory
});

fn clean() {
    fs::remove_dir_all(&*DIRECTORY).unwrap();
}

/// The first byte of an input for [`written`]; with any other it is a file.
const SCRIPT: u8 = 0xff;

fn seeds() -> Vec<Vec<u8>> {
    let file = b"2026-01-01T00:00:00.000000001Z stdout F one\n2026-01-01T00:00:00.000000001Z stdout P tw\n\
        2026-01-01T00:00:00.000000001Z stderr F err\n2026-01-01T00:00:00.000000001Z stdout F o\nodd\n";
    // Output of both kinds, rotations and looks at the file.
    let script =
        [&[SCRIPT][..], b"\x00\x05one\ntwo\x01\x03err\x04\x00\x09\x40long\x05\x03\x00\x01\n\x02\x10x\n\x04\x03\x05"];
    vec![
        file.to_vec(),
        script.concat(),
        [&[SCRIPT][..], b"\x0a\xff0123456789abcdef\x0b\xff0123456789\x03\x04\n"].concat(),
    ]
}

fn words() -> Vec<Vec<u8>> {
    let words: [&[u8]; 10] = [
        b"2026-01-01T00:00:00.000000001Z stdout F ",
        b"2026-01-01T00:00:00.000000001Z stderr P ",
        b"T stdout F\n",
        b" P:tag ",
        b"\n",
        b"\n\n",
        b"\x03",
        b"\x04",
        b"\x00\x04line",
        b"\x08\xff\n",
    ];
    words.map(<[u8]>::to_vec).to_vec()
}

fn most_allocated(input: usize) -> usize {
    // Two readers with 64 KiB each, a batch of lines, and what is kept here of output that one byte can make 256 of.
    (4 << 20) + 64 * input
}

fn run(input: &[u8]) -> u64 {
    match input.split_first() {
        Some((&SCRIPT, script)) => written(script),
        _ => strange(input),
    }
}

fn path(name: &str) -> PathBuf {
    DIRECTORY.join(name)
}

/// What was printed of each stream, as its container wrote it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Printed([Vec<u8>; 2]);

impl Printed {
    fn add(&mut self, entry: &Entry<'_>) {
        let all = &mut self.0[usize::from(entry.stream == Stream::Stderr)];
        all.extend_from_slice(entry.bytes);
        if entry.ends {
            all.push(b'\n');
        }
    }
}

/// A container's output under a clock that a script sets: nothing is lost, doubled or in another order.
fn written(mut script: &[u8]) -> u64 {
    let at = path("log");
    fs::remove_file(&at).ok();
    let mut writer = Writer::open("", at.to_str().unwrap()).unwrap();
    let (mut reader, mut printed) = (LogFile::open(&at).unwrap(), Printed::default());
    let mut splitters = [Splitter::new(Output::Stdout), Splitter::new(Output::Stderr)];
    let (mut clock, mut batch, mut output) = (Clock::default(), Vec::new(), [Vec::new(), Vec::new()]);
    let (mut kinds, mut rotations, mut steps) = (DefaultHasher::new(), 0, 0);
    while let Some((&step, rest)) = script.split_first() {
        script = rest;
        steps += 1;
        if steps < 32 {
            (step % 6).hash(&mut kinds);
        }
        match step % 6 {
            // Output, the bytes that follow, once or many times.
            kind @ 0..=2 => {
                let Some((&length, rest)) = script.split_first() else { break };
                let (bytes, rest) = rest.split_at(usize::from(length % 32).min(rest.len()));
                script = rest;
                let bytes = bytes.repeat(1 << (length / 32));
                let stream = usize::from(kind == 1);
                splitters[stream].push(&bytes, &clock.stamp(), &mut batch, &mut writer);
                output[stream].extend(bytes);
                if steps < 32 {
                    output[stream].len().max(1).ilog2().hash(&mut kinds);
                }
            }
            3 => {
                // Who follows looks often enough to see each file.
                look(&mut reader, &mut printed);
                fs::rename(&at, path(&format!("log.{rotations}"))).unwrap();
                rotations += 1;
                writer.reopen().unwrap();
            }
            4 => look(&mut reader, &mut printed),
            _ => {
                // Renamed, and not yet reopened.
                let away = path("away");
                fs::rename(&at, &away).unwrap();
                look(&mut reader, &mut printed);
                fs::rename(&away, &at).unwrap();
            }
        }
    }
    for splitter in &mut splitters {
        splitter.finish(&clock.stamp(), &mut batch, &mut writer);
    }
    look(&mut reader, &mut printed);
    assert_eq!(writer.take_note(), None);
    check("followed", &printed, &output);
    // The files one after the other say the same.
    let mut printed = Printed::default();
    for file in (0..rotations).map(|n| path(&format!("log.{n}"))).chain([at]) {
        whole(&file, &mut printed);
        fs::remove_file(file).unwrap();
    }
    check("read", &printed, &output);
    kinds.finish()
}

fn check(what: &str, Printed(printed): &Printed, output: &[Vec<u8>; 2]) {
    let sizes = |streams: &[Vec<u8>; 2]| [streams[0].len(), streams[1].len()];
    assert!(printed == output, "{what}: {:?} bytes of {:?}", sizes(printed), sizes(output));
}

/// As `aril logs -f` does.
fn look(reader: &mut LogFile, printed: &mut Printed) {
    let mut add = |_: u64, entry: Entry<'_>| {
        printed.add(&entry);
        Ok::<(), io::Error>(())
    };
    reader.read(&mut add).unwrap();
    while reader.follow(&mut add).unwrap() {
        reader.read(&mut add).unwrap();
    }
}

/// A file of the shim's, line by line.
fn whole(file: &Path, printed: &mut Printed) {
    let bytes = fs::read(file).unwrap();
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\n").expect("every line ends");
        let entry = Entry::parse(line);
        assert!(entry.time.len() == 30 && entry.bytes.len() <= MAX_LINE_BYTES, "{}", line.escape_ascii());
        printed.add(&entry);
    }
}

/// A file that anybody may have written: read in the same way whenever one looks, and by its end as by its beginning.
fn strange(input: &[u8]) -> u64 {
    let mut dice = Dice::of(input);
    let at = path("strange");
    let mut file = File::create(&at).unwrap();
    let mut reader = LogFile::open(&at).unwrap();
    let (mut kinds, mut cut) = (DefaultHasher::new(), Vec::new());
    for piece in dice.cut(input) {
        file.write_all(piece).unwrap();
        cut.extend(entries(&mut reader));
    }
    let all = entries(&mut LogFile::open(&at).unwrap());
    assert_eq!(all, cut, "looks make a difference");
    // Every whole line is there, whatever it is.
    let lines: Vec<&[u8]> = input.split(|&byte| byte == b'\n').collect();
    assert_eq!(all.len(), lines.len() - 1);
    let mut open = Open::default();
    let begins: Vec<usize> =
        all.iter().enumerate().filter(|(_, e)| open.begins(&e.entry())).map(|(at, _)| at).collect();
    let count = dice.below(begins.len() + 2);
    let mut reader = LogFile::open(&at).unwrap();
    reader.tail(count, |_| true).unwrap();
    let first = begins.len().checked_sub(count).map_or(begins.first(), |first| begins.get(first));
    assert_eq!(entries(&mut reader), all[first.map_or(all.len(), |at| *at)..], "the last {count} lines");
    for entry in all.iter().take(24) {
        (entry.ends, entry.is_error, entry.time.len(), entry.bytes.len().max(1).ilog2()).hash(&mut kinds);
    }
    kinds.finish()
}

/// An [`Entry`] that is kept.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    time: String,
    is_error: bool,
    ends: bool,
    bytes: Vec<u8>,
}

impl Kept {
    fn entry(&self) -> Entry<'_> {
        let stream = if self.is_error { Stream::Stderr } else { Stream::Stdout };
        Entry { time: &self.time, stream, ends: self.ends, bytes: &self.bytes }
    }
}

fn entries(reader: &mut LogFile) -> Vec<Kept> {
    let mut all = Vec::new();
    let add = |_: u64, entry: Entry<'_>| {
        let (time, is_error) = (entry.time.to_owned(), entry.stream == Stream::Stderr);
        all.push(Kept { time, is_error, ends: entry.ends, bytes: entry.bytes.to_vec() });
        Ok::<(), io::Error>(())
    };
    reader.read(add).unwrap();
    all
}
