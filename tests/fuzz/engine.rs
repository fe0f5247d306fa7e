//! Runs a target on one input after the other, and says which one it failed on.

use std::collections::HashSet;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;

use crate::dice::{Dice, hash};
use crate::mutate::mutate;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Inputs worth changing further, at most.
const CORPUS: usize = 4096;

/// One input takes microseconds; what takes so long has no end.
const HANG: Duration = Duration::from_secs(30);

/// How often a failing input is tried with less of it.
const TRIES: usize = 3000;

/// Something to be fuzzed.
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What valid inputs are made of.
    pub words: fn() -> Vec<Vec<u8>>,
    /// Runs one input; panics if something does not hold. What it returns says how the target behaved: inputs for which
    /// that is new are changed further.
    pub run: fn(&[u8]) -> u64,
    /// Bytes that may be allocated at a time while an input of so many bytes is run.
    pub most_allocated: fn(usize) -> usize,
    /// Removes what runs left.
    pub clean: fn(),
}

/// Runs the target for a time; false if it failed.
///
/// # Errors
/// If the input that it failed on cannot be written.
pub fn run(target: &Target, time: Duration, seed: u64) -> Result<bool, Box<dyn Error>> {
    let watch = Watch::start(target.name);
    let (mut dice, words) = (Dice::new(seed), (target.words)());
    let (mut corpus, mut seen) = (Vec::new(), HashSet::new());
    let (start, mut executions) = (Instant::now(), 0_u64);
    let mut pending = (target.seeds)();
    pending.push(Vec::new());
    while !pending.is_empty() || start.elapsed() < time {
        let input = pending.pop().unwrap_or_else(|| {
            let mut input: Vec<u8> = dice.one::<Vec<u8>>(&corpus).clone();
            let other = dice.one::<Vec<u8>>(&corpus).clone();
            mutate(&mut input, &words, &other, &mut dice);
            input
        });
        watch.begin(&input);
        executions += 1;
        let Ok(behaviour) = attempt(target, &input) else {
            watch.end();
            println!("fuzz: {} failed after {executions} executions (FUZZ_SEED={seed})", target.name);
            tell(target, &shrunk(target, input, &mut dice))?;
            return Ok(false);
        };
        if seen.insert(behaviour) {
            match corpus.len() {
                CORPUS => corpus[dice.below(CORPUS)] = input,
                _ => corpus.push(input),
            }
        }
    }
    watch.end();
    let (name, took) = (target.name, start.elapsed().as_secs());
    println!("fuzz: {name}: {executions} executions in {took} s, {} kinds of behaviour", seen.len());
    Ok(true)
}

/// Runs one input; false if it failed.
pub fn again(target: &Target, input: &[u8]) -> bool {
    let done = attempt(target, input);
    let told = done.as_ref().map_or_else(|why| format!("failed, {why},"), |_| "passed".to_owned());
    println!("fuzz: {} {told} on {} bytes", target.name, input.len());
    done.is_ok()
}

/// What the input did, or that it panicked or allocated too much.
fn attempt(target: &Target, input: &[u8]) -> Result<u64, String> {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let behaviour = catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|_| "as told above")?;
    let (peak, most) = (ALLOCATOR.peak_usage().saturating_sub(before), (target.most_allocated)(input.len()));
    if peak > most {
        return Err(format!("having allocated {peak} bytes where {most} are the most"));
    }
    Ok(behaviour)
}

/// The input with everything taken out that it does not need to fail.
fn shrunk(target: &Target, mut input: Vec<u8>, dice: &mut Dice) -> Vec<u8> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for _ in 0..TRIES {
        let mut less = input.clone();
        less.drain(dice.part(input.len()));
        if less.len() < input.len() && attempt(target, &less).is_err() {
            input = less;
        }
    }
    std::panic::set_hook(hook);
    input
}

/// Prints and keeps the input.
fn tell(target: &Target, input: &[u8]) -> Result<(), Box<dyn Error>> {
    let path = keep(target.name, input)?;
    println!("fuzz: input of {} bytes: {}", input.len(), input.escape_ascii());
    println!("fuzz: FUZZ_INPUT={} cargo test --test fuzz {}", path.display(), target.name);
    again(target, input);
    Ok(())
}

fn keep(name: &str, input: &[u8]) -> Result<PathBuf, Box<dyn Error>> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{name}-{:016x}", hash(input)));
    std::fs::write(&path, input)?;
    Ok(path)
}

/// Ends the process if one input takes for ever.
struct Watch {
    input: Arc<Mutex<Vec<u8>>>,
    serial: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Watch {
    fn start(name: &'static str) -> Self {
        let watch =
            Self { input: Arc::default(), serial: Arc::new(AtomicU64::new(0)), over: Arc::new(AtomicBool::new(false)) };
        let (input, serial, over) = (Arc::clone(&watch.input), Arc::clone(&watch.serial), Arc::clone(&watch.over));
        std::thread::spawn(move || {
            let (mut last, mut since) = (0, Instant::now());
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
                let now = serial.load(Ordering::Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() > HANG && !over.load(Ordering::Relaxed) {
                    let input = input.lock().unwrap_or_else(PoisonError::into_inner);
                    println!("fuzz: {name} has no end on {:?}: {}", keep(name, &input), input.escape_ascii());
                    // The thread at work cannot be ended in any other way.
                    std::process::abort();
                }
            }
        });
        watch
    }

    fn begin(&self, input: &[u8]) {
        let mut kept = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clear();
        kept.extend_from_slice(input);
        self.serial.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
