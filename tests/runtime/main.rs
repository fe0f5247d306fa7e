//! The runtime core against the real kernel, without daemon or shim.
//!
//! A case clones containers from its own process, which must have one thread, so each runs in a process of its own:
//! this program started again with the case's name.

#![allow(clippy::unwrap_used)]

mod cases;
mod support;

use std::process::{Command, ExitCode, Stdio};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = args.as_slice()
        && flag == "--case"
    {
        return run_case(name);
    }
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen: Vec<_> =
        cases::ALL.iter().filter(|(name, _)| filters.is_empty() || filters.iter().any(|f| name.contains(*f))).collect();
    let mut failed = Vec::new();
    for (name, _) in &chosen {
        let ok = run_in_own_process(name);
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        if !ok {
            failed.push(*name);
        }
    }
    println!("runtime: {} passed, {} failed", chosen.len() - failed.len(), failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_case(name: &str) -> ExitCode {
    let Some((_, case)) = cases::ALL.iter().find(|(n, _)| *n == name) else {
        eprintln!("no case {name}");
        return ExitCode::FAILURE;
    };
    case();
    ExitCode::SUCCESS
}

fn run_in_own_process(name: &str) -> bool {
    let program = std::env::current_exe().expect("own path");
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "30"]).arg(program).args(["--case", name]);
    let output = command.stdin(Stdio::null()).output().expect("start timeout(1)");
    if !output.status.success() {
        println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}
