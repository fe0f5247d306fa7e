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
                aril::cli::complain(&e.to_string());
                ExitCode::FAILURE
            }
        },
        _ => ExitCode::from(aril::cli::main(&cli)),
    }
}
