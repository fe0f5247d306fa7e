//! Writes the small images that tests, benchmarks and demonstrations run.
//!
//! `cargo run --example rootfs-fixtures -- OUTDIR [NAME…]` writes `OUTDIR/NAME.tar`, OCI image layouts that
//! `aril image import` and `ctr image import` read; without names, all of them. `--list` names them.

mod fixtures;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--list"] => {
            for image in fixtures::catalogue() {
                println!("{:<18} {}", image.name, image.references.join(" "));
            }
            ExitCode::SUCCESS
        }
        [] | ["-h" | "--help"] => {
            eprintln!("usage: rootfs-fixtures OUTDIR [NAME...]   write images as OUTDIR/NAME.tar");
            eprintln!("       rootfs-fixtures --list             name them and their references");
            if arguments.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        [out, names @ ..] => match fixtures::write(Path::new(out), names) {
            Ok(paths) => {
                paths.iter().for_each(|p| println!("{}", p.display()));
                ExitCode::SUCCESS
            }
            Err(e) => {
                eprintln!("rootfs-fixtures: {e}");
                ExitCode::FAILURE
            }
        },
    }
}
