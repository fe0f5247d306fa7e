//! `aril`: the daemon, and the commands for people that talk to it.

mod serve;

use std::process::ExitCode;

use clap::Parser;

use aril::cli::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // With nobody to read it there is nobody to tell.
            e.print().ok();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    match &cli.command {
        Command::Serve(args) => match serve::serve(&cli.global, args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                aril::cli::complain(&with_causes(e.as_ref()));
                ExitCode::FAILURE
            }
        },
        _ => ExitCode::from(aril::cli::main(&cli)),
    }
}

/// An error with what it does not tell of its causes by itself, and the commonest remedy.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut is_refused = false;
    let mut cause = Some(error);
    while let Some(error) = cause {
        is_refused |=
            error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
        let own = error.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        cause = error.source();
    }
    if is_refused && !nix::unistd::geteuid().is_root() {
        text += "; run aril as root";
    }
    text
}
