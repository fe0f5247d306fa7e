//! Stop signals, as CRI and image configs write them.

use super::{SpecError, check};
use crate::api::cri;

/// SIGTERM on Linux.
const TERM: i32 = 15;
/// The first and last real-time signal a program can use; the C library keeps the two before.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Names without `SIG` and numbers on x86-64, arm64 and riscv64 (`asm-generic/signal.h`).
const TABLE: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", TERM),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The Linux number of a CRI signal, which is numbered by its place in an alphabet.
/// `None`: the runtime's own choice is wanted.
#[must_use]
pub fn signal_number(signal: cri::Signal) -> Option<i32> {
    // CRI writes SIGRTMINPLUS3 and SIGRTMAXMINUS2 where everybody else writes SIGRTMIN+3 and SIGRTMAX-2.
    let name = signal.as_str_name().replace("PLUS", "+").replace("MINUS", "-");
    image_signal(&name)
}

/// The Linux number of a signal as an image names it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`,
/// `RTMAX-2`; any case. `None` for anything else.
#[must_use]
pub fn image_signal(text: &str) -> Option<i32> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|n| (1..=RTMAX).contains(n));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(RTMIN, offset, '+');
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(RTMAX, offset, '-');
    }
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

fn real_time(base: i32, offset: &str, sign: char) -> Option<i32> {
    if offset.is_empty() {
        return Some(base);
    }
    let digits = offset.strip_prefix(sign).filter(|d| (1..=2).contains(&d.len()))?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let distance: i32 = digits.parse().ok()?;
    let number = if sign == '+' { base + distance } else { base - distance };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// What a plain stop sends: the request's signal, else the image's, else SIGTERM.
///
/// An image may carry any text; one that names no signal costs a warning, not the container.
pub(super) fn stop_signal(requested: i32, image: &str, warnings: &mut Vec<String>) -> Result<i32, SpecError> {
    let requested: cri::Signal = check::known("stop_signal", requested)?;
    if let Some(number) = signal_number(requested) {
        return Ok(number);
    }
    if image.is_empty() {
        return Ok(TERM);
    }
    Ok(image_signal(image).unwrap_or_else(|| {
        let shown: String = image.chars().take(40).collect();
        warnings.push(format!("image's stop signal {shown:?} is no signal; SIGTERM is used"));
        TERM
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_cri_signal_but_the_default_has_a_number() {
        assert_eq!(signal_number(cri::Signal::RuntimeDefault), None);
        for value in 1..=65 {
            let signal = cri::Signal::try_from(value).unwrap();
            assert!(signal_number(signal).is_some(), "{signal:?}");
        }
        for (signal, number) in [
            (cri::Signal::Sigterm, 15),
            (cri::Signal::Sigabrt, 6),
            (cri::Signal::Sigcld, 17),
            (cri::Signal::Sigrtmin, 34),
            (cri::Signal::Sigrtminplus15, 49),
            (cri::Signal::Sigrtmaxminus14, 50),
            (cri::Signal::Sigrtmax, 64),
        ] {
            assert_eq!(signal_number(signal), Some(number), "{signal:?}");
        }
    }

    #[test]
    fn image_signals_in_all_their_spellings() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("TERM", Some(15)),
            ("sigquit", Some(3)),
            ("15", Some(15)),
            ("64", Some(64)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-2", Some(62)),
            ("SIGRTMIN", Some(34)),
            ("", None),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("99999999999", None),
            ("SIGSIGTERM", None),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN+-1", None),
            ("RTMAX+1", None),
            ("SIG", None),
        ] {
            assert_eq!(image_signal(text), number, "{text:?}");
        }
    }

    #[test]
    fn an_images_nonsense_is_a_warning() {
        let mut warnings = Vec::new();
        assert_eq!(stop_signal(0, "SIGWHAT", &mut warnings), Ok(15));
        assert_eq!(warnings.len(), 1);
        assert_eq!(stop_signal(29, "SIGWHAT", &mut warnings), Ok(10));
        assert!(stop_signal(66, "", &mut warnings).is_err());
    }

    proptest! {
        #[test]
        fn a_number_is_always_a_signal(text in "(SIG)?(RTMIN|RTMAX)?[+-]?[0-9A-Z]{0,4}") {
            if let Some(number) = image_signal(&text) {
                prop_assert!((1..=64).contains(&number));
            }
        }
    }
}
