//! `aril system reset`: this machine as it was before the first pod.

use std::io::{self, BufRead, IsTerminal, Read};

use serde_json::json;

use super::args::{Output, ResetArgs};
use super::connect::Daemon;
use super::error::CliError;
use super::find::Objects;
use super::output;
use super::remove;
use super::request;
use crate::api::cri;
use crate::api::node::SystemResetRequest;

/// `aril system reset`.
pub(super) async fn reset(daemon: &mut Daemon, args: &ResetArgs, output: Output) -> Result<(), CliError> {
    let objects = Objects::fetch(daemon).await?;
    let running = objects.containers.iter().filter(|c| c.state() == cri::ContainerState::ContainerRunning).count();
    if running > 0 && !args.stop {
        let message = format!("{running} containers are running; stop them first, or with --stop here");
        return Err(CliError::Failed(message));
    }
    let images = match args.all {
        true => daemon.images.list_images(cri::ListImagesRequest::default()).await?.into_inner().images,
        false => Vec::new(),
    };
    if !args.force {
        confirm(&format!("remove {} pods, their network and {} images", objects.pods.len(), images.len()))?;
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
            output::print(&format!("removed {pods} pods, their network and {images} images\n"))
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
