//! `aril start`, `stop` and `rm`: each for several objects, none of which keeps the others from their turn.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::{KillArgs, RmArgs, StopArgs, Targets};
use super::connect::Daemon;
use super::error::CliError;
use super::find::{LOG_DIRECTORY, OWN_POD, Objects, Target, pod_name};
use super::inspect;
use super::output::{self, short};
use super::run;
use crate::api::cri;

/// Does `act` for every name, printing those done and complaining of the others.
pub(super) async fn each<'a, F>(names: &'a [String], mut act: impl FnMut(&'a str) -> F) -> Result<(), CliError>
where
    F: Future<Output = Result<(), CliError>>,
{
    each_told(names, |name| {
        let done = act(name);
        async move { done.await.map(|()| format!("{name}\n")) }
    })
    .await
}

/// Does `act` for every name, printing what it tells and complaining of failures.
pub(super) async fn each_told<'a, F>(names: &'a [String], mut act: impl FnMut(&'a str) -> F) -> Result<(), CliError>
where
    F: Future<Output = Result<String, CliError>>,
{
    let mut failed = 0;
    for name in names {
        match act(name).await {
            Ok(told) => output::print(&told)?,
            Err(e) if names.len() == 1 => return Err(e),
            Err(e) => {
                output::complain(&e.to_string());
                failed += 1;
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(CliError::Several { failed, of: names.len() }) }
}

/// `aril start`.
pub(super) async fn start(daemon: &Daemon, targets: &Targets) -> Result<(), CliError> {
    let objects = Objects::fetch(&mut daemon.clone()).await?;
    each(&targets.names, |name| {
        let (mut daemon, objects) = (daemon.clone(), &objects);
        async move {
            let container = objects.container(name)?;
            if container.state() == cri::ContainerState::ContainerExited {
                let message = format!("container {name} has run and ended; make a new one with `aril run`");
                return Err(CliError::Failed(message));
            }
            run::start(&mut daemon, &container.id).await
        }
    })
    .await
}

/// `aril stop`.
pub(super) async fn stop(daemon: &Daemon, args: &StopArgs) -> Result<(), CliError> {
    let objects = Objects::fetch(&mut daemon.clone()).await?;
    each(&args.targets.names, |name| {
        let (mut daemon, objects) = (daemon.clone(), &objects);
        async move {
            match objects.target(name)? {
                Target::Container(container) => stop_container(&mut daemon, &container.id, args.grace).await,
                Target::Pod(pod) => stop_pod(&mut daemon, objects, pod, args.grace).await,
            }
        }
    })
    .await
}

async fn stop_container(daemon: &mut Daemon, id: &str, grace: Duration) -> Result<(), CliError> {
    // Whole seconds, up: half a second of grace must not become none.
    let timeout = i64::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
    daemon.runtime.stop_container(cri::StopContainerRequest { container_id: id.to_owned(), timeout }).await?;
    Ok(())
}

/// Every container gets its grace, all at the same time; stopping a pod kills what is left.
async fn stop_pod(
    daemon: &mut Daemon,
    objects: &Objects,
    pod: &cri::PodSandbox,
    grace: Duration,
) -> Result<(), CliError> {
    let running = objects.of_pod(pod).filter(|c| c.state() == cri::ContainerState::ContainerRunning);
    let stops: Vec<_> = running
        .map(|container| {
            let (mut daemon, id) = (daemon.clone(), container.id.clone());
            tokio::spawn(async move { stop_container(&mut daemon, &id, grace).await })
        })
        .collect();
    for stop in stops {
        stop.await.map_err(|e| CliError::Failed(format!("stop a container: {e}")))??;
    }
    daemon.runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() }).await?;
    Ok(())
}

/// `aril kill`.
pub(super) async fn kill(daemon: &Daemon, args: &KillArgs) -> Result<(), CliError> {
    let objects = Objects::fetch(&mut daemon.clone()).await?;
    each(&args.targets.names, |name| {
        let (mut daemon, objects) = (daemon.clone(), &objects);
        async move {
            let container = objects.container(name)?;
            if inspect::signal(&mut daemon, &container.id, args.signal).await? {
                return Ok(());
            }
            Err(CliError::Failed(format!("container {name} does not run; see `aril ps -a`")))
        }
    })
    .await
}

/// `aril rm`.
pub(super) async fn rm(daemon: &Daemon, args: &RmArgs) -> Result<(), CliError> {
    each(&args.targets.names, |name| {
        let mut daemon = daemon.clone();
        async move {
            // Anew for each: a pod may have gone with its container.
            let objects = Objects::fetch(&mut daemon).await?;
            match objects.target(name)? {
                Target::Container(container) => remove_one(&mut daemon, &objects, container, args.force).await,
                Target::Pod(pod) => {
                    refuse_running(objects.of_pod(pod), args.force)?;
                    remove_pod(&mut daemon, &pod.id, &log_directory(pod)).await
                }
            }
        }
    })
    .await
}

async fn remove_one(
    daemon: &mut Daemon,
    objects: &Objects,
    container: &cri::Container,
    force: bool,
) -> Result<(), CliError> {
    refuse_running([container], force)?;
    let pod = objects.pod_of(container).filter(|p| p.annotations.contains_key(OWN_POD));
    match pod.filter(|p| objects.of_pod(p).count() == 1) {
        Some(pod) => remove_pod(daemon, &pod.id, &log_directory(pod)).await,
        None => remove_container(daemon, &container.id).await,
    }
}

fn refuse_running<'a>(containers: impl IntoIterator<Item = &'a cri::Container>, force: bool) -> Result<(), CliError> {
    let mut running = containers.into_iter().filter(|c| c.state() == cri::ContainerState::ContainerRunning);
    match running.next() {
        Some(container) if !force => Err(CliError::Failed(format!(
            "container {} is running; stop it first, or remove it with -f",
            short(&container.id)
        ))),
        _ => Ok(()),
    }
}

/// Takes away a container that `aril run` made, with the pod if that was made for it.
pub(super) async fn remove_made(daemon: &mut Daemon, container: &str, pod: Option<&String>) -> Result<(), CliError> {
    let Some(pod) = pod else { return remove_container(daemon, container).await };
    let objects = Objects::fetch(daemon).await?;
    let logs = objects.pods.iter().find(|p| p.id == *pod).and_then(log_directory);
    remove_pod(daemon, pod, &logs).await
}

async fn remove_container(daemon: &mut Daemon, id: &str) -> Result<(), CliError> {
    daemon.runtime.remove_container(cri::RemoveContainerRequest { container_id: id.to_owned() }).await?;
    Ok(())
}

/// Stops and removes a pod with all that is in it, and the logs that were ours to keep.
pub(super) async fn remove_pod(daemon: &mut Daemon, id: &str, logs: &Option<PathBuf>) -> Result<(), CliError> {
    let id = id.to_owned();
    daemon.runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
    daemon.runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
    remove_logs(logs.as_deref());
    Ok(())
}

/// Where `aril` had the pod's logs written. A pod that only says so, in some other place, loses nothing.
pub(super) fn log_directory(pod: &cri::PodSandbox) -> Option<PathBuf> {
    let path = PathBuf::from(pod.annotations.get(LOG_DIRECTORY)?);
    let uid = &pod.metadata.as_ref()?.uid;
    let ours = path.file_name()? == uid.as_str() && path.parent()?.file_name()? == "logs" && is_uid(uid);
    if !ours {
        output::remark(&format!("the logs of pod {} stay in {}", pod_name(pod), path.display()));
        return None;
    }
    Some(path)
}

/// As `request::random_hex` makes them.
fn is_uid(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Removes a pod's log directory; one that is gone is fine.
pub(super) fn remove_logs(logs: Option<&Path>) {
    let Some(logs) = logs else { return };
    match std::fs::remove_dir_all(logs) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            output::complain(&CliError::io(format!("remove logs {}", logs.display()), e).to_string());
        }
        _ => {
            // The last pod's logs leave an empty directory behind; one that others use stays.
            logs.parent().map(std::fs::remove_dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, logs: &str) -> cri::PodSandbox {
        cri::PodSandbox {
            metadata: Some(cri::PodSandboxMetadata { uid: uid.into(), ..Default::default() }),
            annotations: [(LOG_DIRECTORY.to_owned(), logs.to_owned())].into(),
            ..Default::default()
        }
    }

    #[test]
    fn only_logs_of_ours_are_removed() {
        let uid = "0123456789abcdef".repeat(2);
        let ours = format!("/var/lib/aril/logs/{uid}");
        assert_eq!(log_directory(&pod(&uid, &ours)), Some(ours.into()));
        for (uid, logs) in [(uid.as_str(), "/etc"), ("logs", "/var/logs"), ("..", "/a/logs/.."), ("", "/logs/")] {
            assert_eq!(log_directory(&pod(uid, logs)), None, "{logs}");
        }
        assert_eq!(log_directory(&cri::PodSandbox::default()), None);
    }

    #[test]
    fn what_runs_is_removed_by_force_only() {
        let running = cri::Container { id: "0123456789abcdef".into(), state: 1, ..Default::default() };
        let ended = cri::Container { state: 2, ..Default::default() };
        assert!(refuse_running([&ended, &running], false).unwrap_err().to_string().contains("0123456789ab is running"));
        assert!(refuse_running([&running], true).is_ok());
        assert!(refuse_running([&ended], false).is_ok());
    }

    #[test]
    fn removing_the_last_logs_leaves_no_directory() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs").join("a");
        std::fs::create_dir_all(&logs).unwrap();
        std::fs::write(logs.join("x.log"), "x").unwrap();
        remove_logs(Some(&logs));
        assert!(!dir.path().join("logs").exists());
        remove_logs(Some(&logs));
        remove_logs(None);
    }
}
