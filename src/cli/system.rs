//! `aril system`: end the daemon, or have this machine as it was before the first pod.

use std::io::{self, BufRead, IsTerminal, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::args::{Output, ResetArgs};
use super::connect::Daemon;
use super::error::CliError;
use super::find::Objects;
use super::output;
use super::remove;
use super::request;
use crate::api::cri;
use crate::api::node::{InfoRequest, SystemResetRequest};
use crate::sys::process;

/// `aril system reset`.
pub(super) async fn reset(daemon: &mut Daemon, args: &ResetArgs, output: Output) -> Result<(), CliError> {
    let objects = Objects::fetch(daemon).await?;
    let running = objects.containers.iter().filter(|c| c.state() == cri::ContainerState::ContainerRunning).count();
    if running > 0 && !args.stop {
        let message = match running {
            1 => "1 container is running; stop it first, or with --stop here".to_owned(),
            _ => format!("{running} containers are running; stop them first, or with --stop here"),
        };
        return Err(CliError::Failed(message));
    }
    let images = match args.all {
        true => daemon.images.list_images(cri::ListImagesRequest::default()).await?.into_inner().images,
        false => Vec::new(),
    };
    if !args.force {
        let (pods, images) = (output::count(objects.pods.len(), "pod"), output::count(images.len(), "image"));
        confirm(&format!("remove {pods} with their network, and {images}"))?;
    }
    let mut left = Vec::new();
    for pod in &objects.pods {
        // One that cannot be removed keeps no other.
        if let Err(e) = remove::remove_pod(daemon, &pod.id, &remove::log_directory(pod)).await {
            left.push(e.to_string());
        }
    }
    match daemon.node.system_reset(SystemResetRequest {}).await {
        Ok(answer) => left.extend(answer.into_inner().left),
        Err(status) => left.push(CliError::from(status).to_string()),
    }
    for image in &images {
        let request = cri::RemoveImageRequest { image: Some(request::image(&image.id)) };
        if let Err(status) = daemon.images.remove_image(request).await {
            left.push(CliError::from(status).to_string());
        }
    }
    tell(objects.pods.len(), images.len(), &left, output)
}

/// How long a daemon may take to end: it first answers what it was asked.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// `aril system stop`.
pub(super) async fn stop(daemon: &mut Daemon, output: Output) -> Result<(), CliError> {
    let failed = |doing: &str, pid: i32, e| CliError::io(format!("{doing} daemon {pid}"), e);
    let about = daemon.node.info(InfoRequest {}).await?.into_inner();
    let process = process::pidfd_open(about.pid).map_err(|e| failed("find", about.pid, e))?;
    // It still answers, so the process that was found is the one that was meant.
    let again = daemon.node.info(InfoRequest {}).await?.into_inner();
    if again.pid != about.pid {
        return Err(CliError::Failed("the daemon was replaced by another one meanwhile; try again".to_owned()));
    }
    process::pidfd_signal(process.as_fd(), Signal::SIGTERM as i32).map_err(|e| failed("end", about.pid, e))?;
    // tokio's other constructors are unsafe because a type might change its descriptor under way; an `OwnedFd` cannot.
    #[allow(deprecated)]
    let watched = AsyncFd::with_interest(process, Interest::READABLE).map_err(|e| failed("watch", about.pid, e))?;
    let over = tokio::time::timeout(END_DEADLINE, watched.readable()).await;
    let Ok(over) = over else {
        let limit = END_DEADLINE.as_secs();
        let message = format!("daemon {} was told to end, and has not within {limit} s; look at its log", about.pid);
        return Err(CliError::Failed(message));
    };
    over.map(drop).map_err(|e| failed("watch", about.pid, e))?;
    let pods = usize::try_from(about.pods).unwrap_or(usize::MAX);
    output::print(&match output {
        Output::Json => output::json(&json!({"pid": about.pid, "pods": pods}))?,
        Output::Table | Output::Wide if pods == 0 => format!("stopped daemon {}\n", about.pid),
        Output::Table | Output::Wide => {
            let pods = output::count(pods, "pod");
            format!("stopped daemon {}; what it served stays as it is ({pods}), and the next one finds it\n", about.pid)
        }
    })
}

fn tell(pods: usize, images: usize, left: &[String], output: Output) -> Result<(), CliError> {
    if output == Output::Json {
        output::print(&output::json(&json!({"pods": pods, "images": images, "left": left}))?)?;
    }
    if !left.is_empty() {
        return Err(CliError::Failed(format!("not all could be removed; try again: {}", left.join("; "))));
    }
    match output {
        Output::Json => Ok(()),
        Output::Table | Output::Wide => {
            let (pods, images) = (output::count(pods, "pod"), output::count(images, "image"));
            output::print(&format!("removed {pods} with their network, and {images}\n"))
        }
    }
}

/// Asks a person, who must be there.
fn confirm(what: &str) -> Result<(), CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::Usage(format!(
            "this would {what}; standard input is no terminal, so say it with --force"
        )));
    }
    output::write(&mut io::stderr().lock(), format!("This will {what}. Go on? [y/N] ").as_bytes())?;
    let mut answer = String::new();
    io::stdin().lock().take(16).read_line(&mut answer).map_err(|e| CliError::io("read from the terminal", e))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CliError::Failed("nothing was removed".to_owned())),
    }
}
