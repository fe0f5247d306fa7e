//! Traffic of a network namespace, from `/proc/<pid>/net/dev` of a process in it.

use std::fs::File;
use std::io::Read;

/// Longest file read: more interfaces than any pod has.
const MAX_BYTES: u64 = 256 << 10;

/// Counters of one interface since it was made, as the namespace sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Such as "eth0".
    pub name: String,
    /// What came in.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
}

/// One direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// With all headers.
    pub bytes: u64,
    /// Frames.
    pub packets: u64,
    /// Frames that were damaged.
    pub errors: u64,
    /// Frames there was no room for.
    pub dropped: u64,
}

/// The interfaces a process sees but its loopback; `None` if it is gone.
pub(super) fn of_process(pid: i32) -> Option<Vec<Interface>> {
    let mut text = String::with_capacity(4096);
    File::open(format!("/proc/{pid}/net/dev")).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    Some(parse(&text))
}

/// Two lines of headings, then a line for each interface: proc_pid_net(5).
fn parse(text: &str) -> Vec<Interface> {
    text.lines().skip(2).filter_map(line).filter(|interface| interface.name != "lo").collect()
}

fn line(line: &str) -> Option<Interface> {
    // Names have no ':', but the first number may follow it at once.
    let (name, numbers) = line.split_once(':')?;
    let mut numbers = numbers.split_ascii_whitespace().map(|n| n.parse::<u64>().ok());
    let mut traffic = || {
        let mut next = || numbers.next().flatten();
        let traffic = Traffic { bytes: next()?, packets: next()?, errors: next()?, dropped: next()? };
        // FIFO errors, framing errors or collisions, compressed or carrier, multicast or compressed.
        (0..4).try_for_each(|_| next().map(drop))?;
        Some(traffic)
    };
    Some(Interface { name: name.trim().to_owned(), received: traffic()?, sent: traffic()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:18446744073709551615 20 3 4 5 6 7 8 9 10 11 12 13 14 15 16
";

    #[test]
    fn both_directions_are_read_and_loopback_left_out() {
        let eth0 = Interface {
            name: "eth0".to_owned(),
            received: Traffic { bytes: u64::MAX, packets: 20, errors: 3, dropped: 4 },
            sent: Traffic { bytes: 9, packets: 10, errors: 11, dropped: 12 },
        };
        assert_eq!(parse(TEXT), [eth0]);
    }

    #[test]
    fn damaged_lines_are_passed_over() {
        for damaged in
            ["", "\n\n", "a\nb\neth0: 1 2 3\n", "a\nb\neth0\n", "a\nb\neth0: x 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"]
        {
            assert_eq!(parse(damaged), [], "{damaged:?}");
        }
    }

    #[test]
    fn of_a_process_that_is_not_there_nothing_is_known() {
        assert!(of_process(i32::MAX).is_none());
        assert!(of_process(std::process::id().try_into().unwrap()).is_some());
    }
}
