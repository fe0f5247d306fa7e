//! `aril exec`: a process with streams in a running container.

use super::args::ExecArgs;
use super::connect::Daemon;
use super::error::CliError;
use super::find::Objects;
use super::output;
use super::run;
use super::session::{self, Received, Shown, Signals};
use super::terminal::{self, Raw};
use crate::api::node::{ExecRequest, ExecStart, exec_request};

/// Runs it; its exit code, or 128 + the number of the signal that ended us.
pub(super) async fn exec(daemon: &mut Daemon, args: &ExecArgs) -> Result<u8, CliError> {
    let objects = Objects::fetch(daemon).await?;
    let container_id = objects.container(&args.container)?.id.clone();
    if args.tty && args.interactive {
        terminal::require()?;
    }
    let start = ExecStart {
        container_id,
        command: args.command.clone(),
        tty: args.tty,
        stdin: args.interactive,
        size: if args.tty { terminal::size() } else { None },
        env: args.env.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        working_dir: args.workdir.clone().unwrap_or_default(),
        user: args.user.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    let first = ExecRequest { body: Some(exec_request::Body::Start(start)) };
    let mut signals = Signals::listen()?;
    let mut sending = session::send(first, args.interactive, args.tty)?;
    let mut streams = daemon.streams();
    let answer = tokio::select! {
        answer = streams.exec(sending.requests) => answer.map_err(run::not_started)?,
        Some(number) = signals.arrivals.recv() => return Ok(exit_code(128 + number)),
    };
    let mut responses = answer.into_inner();
    // If it has ended already, nobody waits for this any more.
    sending.running.send(()).ok();
    // Raw only from here on: before, Ctrl-C shall end a hanging connection.
    let _raw = if args.tty && args.interactive { Some(Raw::enter()?) } else { None };
    let mut shown = Shown::default();
    loop {
        tokio::select! {
            received = session::show_next(&mut responses, &mut shown) => match received? {
                Received::Output => {}
                Received::Exit(code) => return Ok(exit_code(code)),
                Received::Broken(status) => return Err(run::not_started(status)),
                Received::End => return Err(CliError::Failed("the session ended without an exit code".to_owned())),
            },
            Some(()) = sending.detached.recv() => {
                output::remark("\r\nleft; the command was ended");
                return Ok(0);
            }
            // The daemon ends the command when this connection closes.
            Some(number) = signals.arrivals.recv() => return Ok(exit_code(128 + number)),
        }
    }
}

/// What a shell can be told: the low eight bits, as wait(2) has it.
pub(super) fn exit_code(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_fit_a_shell() {
        assert_eq!([exit_code(0), exit_code(137), exit_code(256), exit_code(-1)], [0, 137, 0, 255]);
    }
}
