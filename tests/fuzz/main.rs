//! Parsers of what strangers send, under inputs nobody would write.
//!
//! Each target runs for `FUZZ_SECONDS` (60) in a process of its own, all at the same time. A failure prints the input,
//! made small, and leaves it in `target/fuzz`; `FUZZ_INPUT=FILE cargo test --test fuzz TARGET` runs that one again.
//! Inputs are mutations of valid ones; whatever makes a target behave in a way not seen before is mutated further.
//! `FUZZ_SEED` begins elsewhere.

// What targets find is told by panics.
#![allow(clippy::unwrap_used)]

mod dice;
mod engine;
mod logs;
mod mutate;
mod spdy;
mod websocket;

use std::error::Error;
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use crate::engine::Target;

/// Before the name of the target that a process is for.
const ROLE: &str = "fuzz-target";

const TARGETS: &[&Target] = &[&spdy::TARGET, &websocket::TARGET, &logs::TARGET];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [role, name] if role == ROLE => one(name),
        _ => all(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every target that the arguments name, or all; as with other tests, any part of a name will do.
fn all(arguments: &[String]) -> Result<bool, Box<dyn Error>> {
    let words: Vec<&String> = arguments.iter().filter(|word| !word.starts_with('-')).collect();
    let chosen = |target: &&&Target| words.is_empty() || words.iter().any(|word| target.name.contains(word.as_str()));
    let mut running: Vec<(&str, Child)> = Vec::new();
    for target in TARGETS.iter().filter(chosen) {
        running.push((target.name, Command::new(std::env::current_exe()?).args([ROLE, target.name]).spawn()?));
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, mut child) in running {
        let status = child.wait()?;
        if status.success() {
            passed += 1;
        } else {
            failed += 1;
            println!("test {name} ... FAILED");
            println!("fuzz: {name} ended with {status}");
        }
    }
    println!("fuzz: {passed} passed, {failed} failed");
    Ok(failed == 0)
}

fn one(name: &str) -> Result<bool, Box<dyn Error>> {
    let target = TARGETS.iter().find(|target| target.name == name).ok_or("there is no such target")?;
    let done = begin(target);
    (target.clean)();
    done
}

fn begin(target: &Target) -> Result<bool, Box<dyn Error>> {
    if let Some(path) = std::env::var_os("FUZZ_INPUT") {
        return Ok(engine::again(target, &std::fs::read(Path::new(&path))?));
    }
    let number = |name: &str, default: u64| std::env::var(name).map_or(Ok(default), |text| text.parse());
    let (seconds, seed) = (number("FUZZ_SECONDS", 60)?, number("FUZZ_SEED", 1)?);
    engine::run(target, Duration::from_secs(seconds), seed)
}
