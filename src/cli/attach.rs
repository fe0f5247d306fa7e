//! `aril attach`, and `aril start` with the container's streams: a container made before, looked on at.

use std::io::{self, IsTerminal};

use super::args::{AttachArgs, StartArgs};
use super::connect::Daemon;
use super::error::CliError;
use super::find::Objects;
use super::foreground::{self, End, Streams};
use super::output;
use super::session::Signals;
use crate::api::cri;

/// Joins a running container; its exit code if it ends meanwhile. Signals end this, and not the container.
pub(super) async fn attach(daemon: &mut Daemon, args: &AttachArgs) -> Result<u8, CliError> {
    let name = &args.container;
    let container = find(daemon, name).await?;
    match container.state() {
        cri::ContainerState::ContainerRunning => {}
        cri::ContainerState::ContainerCreated => {
            return Err(CliError::Failed(format!(
                "container {name} is not started yet; `aril start -a {name}` does both"
            )));
        }
        cri::ContainerState::ContainerExited | cri::ContainerState::ContainerUnknown => {
            return Err(CliError::Failed(format!("container {name} does not run; see `aril logs {name}`")));
        }
    }
    let streams = streams(daemon, &container.id, name, args.interactive).await?;
    let mut signals = Signals::listen()?;
    let end = foreground::attach(daemon, &container.id, streams, &mut signals).await?;
    Ok(tell(name, end))
}

/// `aril start -a` and `-i`: as `aril run` does with a container it made.
pub(super) async fn start(daemon: &mut Daemon, args: &StartArgs) -> Result<u8, CliError> {
    let [name] = &args.targets.names[..] else {
        let message = "-a and -i are for one container; start several without, and `aril attach` to each";
        return Err(CliError::Usage(message.to_owned()));
    };
    let container = find(daemon, name).await?;
    match container.state() {
        cri::ContainerState::ContainerCreated => {}
        cri::ContainerState::ContainerRunning => {
            return Err(CliError::Failed(format!("container {name} runs already; `aril attach {name}` joins it")));
        }
        cri::ContainerState::ContainerExited | cri::ContainerState::ContainerUnknown => {
            let message = format!("container {name} has run and ended; make a new one with `aril run`");
            return Err(CliError::Failed(message));
        }
    }
    let streams = streams(daemon, &container.id, name, args.interactive).await?;
    let mut signals = Signals::listen()?;
    let end = foreground::run(daemon, &container.id, name, streams, &mut signals).await?;
    Ok(tell(name, end))
}

/// The exit code of `end`, after the person was told if the container goes on.
fn tell(name: &str, end: End) -> u8 {
    if let End::Left | End::GivenUp(_) = end {
        output::remark(&format!("\r\nleft {name} running; join it again with `aril attach {name}`"));
    }
    end.code()
}

async fn find(daemon: &mut Daemon, name: &str) -> Result<cri::Container, CliError> {
    Objects::fetch(daemon).await?.container(name).cloned()
}

/// What there is to join: how the container was made says whether it has a terminal, and whether it reads anything.
async fn streams(daemon: &mut Daemon, id: &str, name: &str, interactive: bool) -> Result<Streams, CliError> {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = daemon.runtime.container_status(request).await?.into_inner();
    let (stdin, tty) = made_with(answer.info.get("info").map_or("", String::as_str));
    if interactive && !stdin {
        let message = format!("container {name} was made without -i and reads no input; leave out -i");
        return Err(CliError::Usage(message));
    }
    if interactive && tty && !io::stdin().is_terminal() {
        let message = format!("container {name} has a terminal, and standard input is none; leave out -i");
        return Err(CliError::Usage(message));
    }
    Ok(Streams { interactive, tty })
}

/// Whether a container has an input and a terminal, of what the daemon tells beside its status.
fn made_with(info: &str) -> (bool, bool) {
    let info: serde_json::Value = serde_json::from_str(info).unwrap_or_default();
    let is = |field: &str| info["config"][field].as_bool().unwrap_or_default();
    (is("stdin"), is("tty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_was_made_with() {
        assert_eq!(made_with(r#"{"config": {"stdin": true, "tty": false}}"#), (true, false));
        assert_eq!(made_with(r#"{"config": {"stdin": true, "tty": true}}"#), (true, true));
        assert_eq!(made_with("{}"), (false, false));
        assert_eq!(made_with("no JSON"), (false, false));
    }
}
