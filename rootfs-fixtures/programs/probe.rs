//! Looks around from inside a container, and behaves as a test wants it to.
//!
//! Each word group is one step; `then` separates steps: `probe report then term 3`.
//!
//! | step | does |
//! |---|---|
//! | `report` | one line of JSON: ids, groups, capabilities, namespaces, mounts, descriptors, environment, … |
//! | `say TEXT` / `err TEXT` | one line on stdout / stderr |
//! | `exit CODE` | ends with the code |
//! | `term CODE` | "ready", then waits; ends with the code at SIGTERM |
//! | `stubborn` | "ready", then ignores SIGTERM, SIGINT, SIGHUP for ever |
//! | `signals` | "ready", then "signal N" for each signal that comes, for ever |
//! | `sleep MILLISECONDS` | waits |
//! | `alloc BYTES` | touches so much memory and keeps it, "allocated N" |
//! | `fork N` | N sleeping children, "child PID" each |
//! | `orphan N` | N sleeping grandchildren left to the nearest reaper, "orphan PID" each |
//! | `flood LINES LENGTH` | so many lines of so many characters to stdout, as fast as it takes them |
//! | `spin MILLISECONDS` | uses one CPU |
//! | `cat` | stdin to stdout until its end, then "eof" |
//! | `tty` | "tty FD ROWS COLUMNS" for each of the three descriptors that is a terminal |
//! | `stat PATH` | "PATH TYPE MODE UID GID SIZE RDEV" or "PATH error ERRNO" |
//! | `read PATH` | the file's bytes |
//! | `write PATH TEXT` | "wrote PATH" or "PATH error ERRNO" |
//! | `list PATH` | the entries of a directory, sorted, one a line |
//! | `abort` | SIGABRT on itself |

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Command, exit};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

unsafe extern "C" {
    // SAFETY: plain numbers, and handlers that live as long as the program.
    safe fn signal(number: i32, handler: usize) -> usize;
    // SAFETY: takes nothing; returns after a signal was handled.
    safe fn pause() -> i32;
    // SAFETY: a plain number; never returns.
    safe fn _exit(code: i32) -> !;
    fn ioctl(fd: i32, request: u64, argument: *mut [u16; 4]) -> i32;
}

const SIG_IGN: usize = 1;
const TIOCGWINSZ: u64 = 0x5413;

static EXIT_CODE: AtomicI32 = AtomicI32::new(0);

extern "C" fn leave(_: i32) {
    // Not `exit`, which would flush an output that the interrupted code may be flushing.
    _exit(EXIT_CODE.load(Ordering::Relaxed));
}

extern "C" fn tell(number: i32) {
    // One write, no lock: the interrupted code may hold stdout's.
    let line = [b"signal ".as_slice(), number.to_string().as_bytes(), b"\n"].concat();
    if let Ok(mut out) = fs::OpenOptions::new().write(true).open("/proc/self/fd/1") {
        out.write_all(&line).ok();
    }
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        arguments.push("report".to_owned());
    }
    for step in arguments.split(|word| word == "then") {
        let words: Vec<&str> = step.iter().map(String::as_str).collect();
        run(&words);
        io::stdout().flush().ok();
    }
}

fn run(words: &[&str]) {
    match words {
        ["report"] => println!("{}", report()),
        ["say", text] => println!("{text}"),
        ["err", text] => eprintln!("{text}"),
        ["exit", code] => exit(number(code) as i32),
        ["term", code] => {
            EXIT_CODE.store(number(code) as i32, Ordering::Relaxed);
            let handler: extern "C" fn(i32) = leave;
            signal(15, handler as usize);
            wait_ready();
        }
        ["stubborn"] => {
            for number in [1, 2, 15] {
                signal(number, SIG_IGN);
            }
            wait_ready();
        }
        ["signals"] => {
            let handler: extern "C" fn(i32) = tell;
            // Not SIGKILL, SIGSTOP (nobody's), SIGCHLD (the report would be noise), 32, 33 (the C library's).
            for number in (1..=64).filter(|n| ![9, 17, 19, 32, 33].contains(n)) {
                signal(number, handler as usize);
            }
            wait_ready();
        }
        ["sleep", milliseconds] => sleep(Duration::from_millis(number(milliseconds))),
        ["alloc", bytes] => allocate(number(bytes)),
        ["fork", count] => (0..number(count)).for_each(|_| println!("child {}", sleeper())),
        ["orphan", count] => {
            for _ in 0..number(count) {
                let output = Command::new("/proc/self/exe").args(["fork", "1"]).output().expect("fork");
                print!("{}", String::from_utf8_lossy(&output.stdout).replace("child", "orphan"));
            }
        }
        ["flood", lines, length] => flood(number(lines), number(length) as usize),
        ["spin", milliseconds] => {
            let end = Instant::now() + Duration::from_millis(number(milliseconds));
            while Instant::now() < end {
                std::hint::spin_loop();
            }
        }
        ["cat"] => {
            io::copy(&mut io::stdin().lock(), &mut io::stdout().lock()).expect("copy");
            println!("eof");
        }
        ["tty"] => (0..3).for_each(terminal),
        ["abort"] => std::process::abort(),
        files => file_step(files),
    }
}

fn file_step(words: &[&str]) {
    let failed = |path: &str, e: &io::Error| println!("{path} error {}", e.raw_os_error().unwrap_or(0));
    match words {
        ["stat", path] => match fs::symlink_metadata(path) {
            Ok(m) => println!(
                "{path} {} {:o} {} {} {} {}:{}",
                kind(&m),
                m.mode() & 0o7777,
                m.uid(),
                m.gid(),
                m.size(),
                m.rdev() >> 8 & 0xfff,
                m.rdev() & 0xff
            ),
            Err(e) => failed(path, &e),
        },
        ["read", path] => match fs::File::open(path).and_then(|mut f| io::copy(&mut f, &mut io::stdout().lock())) {
            Ok(_) => {}
            Err(e) => failed(path, &e),
        },
        ["write", path, text] => match fs::write(path, format!("{text}\n")) {
            Ok(()) => println!("wrote {path}"),
            Err(e) => failed(path, &e),
        },
        ["list", path] => match fs::read_dir(path) {
            Ok(entries) => {
                let mut names: Vec<_> = entries.flatten().map(|e| e.file_name()).collect();
                names.sort();
                names.iter().for_each(|n| println!("{}", n.display()));
            }
            Err(e) => failed(path, &e),
        },
        other => {
            eprintln!("probe: no step {other:?}");
            exit(64);
        }
    }
}

fn kind(m: &fs::Metadata) -> &'static str {
    let t = m.file_type();
    match () {
        () if t.is_dir() => "directory",
        () if t.is_file() => "file",
        () if t.is_symlink() => "symlink",
        () if t.is_char_device() => "char",
        () if t.is_block_device() => "block",
        () if t.is_fifo() => "fifo",
        () => "socket",
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| {
        eprintln!("probe: {word:?} is no number");
        exit(64);
    })
}

fn wait_ready() {
    println!("ready");
    io::stdout().flush().ok();
    loop {
        pause();
    }
}

fn allocate(bytes: u64) {
    let mut memory = vec![0_u8; bytes as usize];
    // Written page by page, with different bytes, so that the kernel must back each.
    memory.iter_mut().step_by(4096).enumerate().for_each(|(i, b)| *b = i as u8 | 1);
    std::hint::black_box(&memory);
    std::mem::forget(memory);
    println!("allocated {bytes}");
}

fn sleeper() -> u32 {
    // Its own stdout would keep a reader of ours waiting.
    let null = std::process::Stdio::null;
    let child = Command::new("/proc/self/exe").args(["sleep", "1000000000"]).stdout(null()).stderr(null()).spawn();
    child.expect("fork").id()
}

fn flood(lines: u64, length: usize) {
    let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let line = "x".repeat(length);
    for _ in 0..lines {
        if writeln!(out, "{line}").is_err() {
            exit(1);
        }
    }
}

fn terminal(fd: i32) {
    let mut size = [0_u16; 4];
    // SAFETY: `size` has the layout of `struct winsize` and lives through the call.
    if unsafe { ioctl(fd, TIOCGWINSZ, &mut size) } == 0 {
        println!("tty {fd} {} {}", size[0], size[1]);
    }
}

fn report() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim).unwrap_or_default()
    };
    let words = |name: &str| list(field(name).split_whitespace().map(str::to_owned));
    let mut pairs: Vec<(&str, String)> = vec![
        ("pid", std::process::id().to_string()),
        ("ppid", quote(field("PPid"))),
        ("uids", words("Uid")),
        ("gids", words("Gid")),
        ("groups", words("Groups")),
    ];
    for (key, name) in [
        ("cap_inheritable", "CapInh"),
        ("cap_permitted", "CapPrm"),
        ("cap_effective", "CapEff"),
        ("cap_bounding", "CapBnd"),
        ("cap_ambient", "CapAmb"),
        ("no_new_privs", "NoNewPrivs"),
        ("seccomp", "Seccomp"),
        ("umask", "Umask"),
        ("signals_blocked", "SigBlk"),
        ("signals_ignored", "SigIgn"),
    ] {
        pairs.push((key, quote(field(name))));
    }
    let text = |path: &str| quote(fs::read_to_string(path).unwrap_or_default().trim_end());
    pairs.push(("namespaces", namespaces()));
    pairs.push(("hostname", text("/proc/sys/kernel/hostname")));
    pairs.push(("cwd", quote(&std::env::current_dir().map(|p| p.display().to_string()).unwrap_or_default())));
    pairs.push(("arguments", list(std::env::args())));
    pairs.push(("environment", list(std::env::vars_os().map(|(k, v)| format!("{}={}", k.display(), v.display())))));
    pairs.push(("descriptors", descriptors()));
    pairs.push(("mounts", lines("/proc/self/mountinfo")));
    pairs.push(("cgroup", lines("/proc/self/cgroup")));
    pairs.push(("limits", lines("/proc/self/limits")));
    pairs.push(("oom_score_adj", text("/proc/self/oom_score_adj")));
    pairs.push(("devices", list(names("/dev"))));
    object(pairs)
}

fn namespaces() -> String {
    let names = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    object(names.map(|name| (name, quote(&link(&format!("/proc/self/ns/{name}"))))))
}

/// "FD TARGET" of each open descriptor, without the one that reads the directory.
fn descriptors() -> String {
    let mut open: Vec<(i32, String)> = names("/proc/self/fd")
        .filter_map(|n| Some((n.parse().ok()?, fs::read_link(format!("/proc/self/fd/{n}")).ok()?)))
        .map(|(fd, target)| (fd, target.display().to_string()))
        .collect();
    open.sort();
    list(open.into_iter().map(|(fd, target)| format!("{fd} {target}")))
}

fn names(dir: &str) -> impl Iterator<Item = String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().display().to_string()).collect();
    names.sort();
    names.into_iter()
}

fn lines(path: &str) -> String {
    let mut text = String::new();
    fs::File::open(path).and_then(|mut f| f.read_to_string(&mut text)).ok();
    list(text.lines().map(str::to_owned))
}

fn link(path: &str) -> String {
    fs::read_link(path).map(|p| p.display().to_string()).unwrap_or_default()
}

fn object<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let inner: Vec<String> = pairs.into_iter().map(|(k, v)| format!("{}:{v}", quote(k))).collect();
    format!("{{{}}}", inner.join(","))
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.map(|i| quote(&i)).collect::<Vec<_>>().join(","))
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
