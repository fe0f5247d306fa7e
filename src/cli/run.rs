//! `aril run` and `aril create`: a container, in a pod of its own or in one that is there.
//!
//! In the foreground the streams are joined before the program starts, so that nothing it writes is missed. Should
//! the daemon have dropped us for reading too slowly, the rest is taken from the log, which has everything.

use std::path::{Path, PathBuf};

use super::args::{ContainerArgs, Network, Output, PidMode, PodCreateArgs, RunArgs, SandboxArgs};
use super::connect::Daemon;
use super::error::CliError;
use super::find::{LOG_DIRECTORY, OWN_POD, Objects, container_name, pod_name};
use super::foreground::{self, End, Streams};
use super::output::{self, short};
use super::pull;
use super::remove;
use super::request::{self, NewPod};
use super::session::{self, Signals};
use crate::api::cri;
use crate::api::node::InfoRequest;

/// A container just made, not started yet.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) container: String,
    pub(super) sandbox: String,
    /// The pod was made for it and goes with it.
    pub(super) own_pod: bool,
    /// What other commands know it by.
    pub(super) name: String,
}

/// `aril run`: the container's exit code, or 0 if it was left running.
pub(super) async fn run(daemon: &mut Daemon, args: &RunArgs, output: Output) -> Result<u8, CliError> {
    if args.container.tty && args.container.interactive && !args.detach {
        super::terminal::require()?;
    }
    if args.detach && args.rm {
        let message = "--rm with -d: nobody stays to remove it; leave out --rm, and `aril rm -f NAME` it in the end";
        return Err(CliError::Usage(message.to_owned()));
    }
    let made = make(daemon, &args.container).await?;
    if args.detach {
        if let Err(e) = start(daemon, &made.container).await {
            discard(daemon, &made).await;
            return Err(e);
        }
        print_id(&made, output)?;
        return Ok(0);
    }
    let name = made.name.as_str();
    let mut signals = Signals::listen()?;
    let streams = Streams { interactive: args.container.interactive, tty: args.container.tty };
    let result = foreground::run(daemon, &made.container, name, streams, &mut signals).await;
    let is_over = match &result {
        Ok(End::Left | End::GivenUp(_)) => {
            let stop = if args.rm { format!("rm -f {name}") } else { format!("stop {name}") };
            output::remark(&format!("\r\nleft {name} running; end it with `aril {stop}`"));
            false
        }
        // It never ran: there is nothing to look at.
        Ok(End::NotBegun(_)) | Err(CliError::Start { .. }) => true,
        Ok(End::Exited(_)) | Err(_) => args.rm,
    };
    if is_over {
        let so_far = signals.asked.borrow().0;
        tokio::select! {
            () = discard(daemon, &made) => {}
            number = session::asked_to_end(&mut signals.asked, so_far + 1) => {
                output::remark(&format!("{name} may be left; remove it with `aril rm -f {name}`"));
                return Ok(End::GivenUp(number).code());
            }
        }
    }
    result.map(End::code)
}

/// `aril create`.
pub(super) async fn create(daemon: &mut Daemon, args: &ContainerArgs, output: Output) -> Result<(), CliError> {
    let made = make(daemon, args).await?;
    print_id(&made, output)
}

fn print_id(made: &Made, output: Output) -> Result<(), CliError> {
    let json = serde_json::json!({"container": made.container, "pod": made.sandbox});
    output::print(&if output == Output::Json { output::json(&json)? } else { format!("{}\n", made.container) })
}

/// `aril pod create`.
pub(super) async fn create_pod(daemon: &mut Daemon, args: &PodCreateArgs, output: Output) -> Result<(), CliError> {
    request::check_ports(&args.sandbox)?;
    let objects = Objects::fetch(daemon).await?;
    check_pod_name(&objects, &args.name)?;
    let pod = make_pod(daemon, &args.name, &args.sandbox, false, false).await?;
    let json = serde_json::json!({"pod": pod.id});
    output::print(&if output == Output::Json { output::json(&json)? } else { format!("{}\n", pod.id) })
}

/// Makes the container and, unless one is named, its pod.
async fn make(daemon: &mut Daemon, args: &ContainerArgs) -> Result<Made, CliError> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => request::invented_name(&args.image)?,
    };
    request::check_name(&name)?;
    request::check_ports(&args.sandbox)?;
    // Asked for before a pod is made: a wrong name is the commonest mistake.
    pull::provide(daemon, &args.image, args.pull).await?;
    let objects = Objects::fetch(daemon).await?;
    let (pod, own_pod) = match &args.pod {
        Some(pod) => (existing_pod(daemon, &objects, pod, &name).await?, false),
        None => {
            check_pod_name(&objects, &name)?;
            (make_pod(daemon, &name, &args.sandbox, true, args.privileged).await?, true)
        }
    };
    let made = create_container(daemon, &pod, &name, args).await;
    match made {
        Ok(container) => {
            let name = if own_pod { name } else { format!("{}/{name}", pod.config.metadata.unwrap_or_default().name) };
            Ok(Made { container, sandbox: pod.id, own_pod, name })
        }
        Err(e) => {
            if own_pod {
                remove::remove_pod(daemon, &pod.id, &pod.logs).await.ok();
            }
            Err(e)
        }
    }
}

async fn create_container(
    daemon: &mut Daemon,
    pod: &Pod,
    name: &str,
    args: &ContainerArgs,
) -> Result<String, CliError> {
    let mut config = request::container(name, args, pod.pid)?;
    if pod.config.log_directory.is_empty() {
        // Somebody else's pod: where its logs belong is not known to us.
        config.log_path.clear();
    }
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(config),
        sandbox_config: Some(pod.config.clone()),
    };
    Ok(daemon.runtime.create_container(request).await?.into_inner().container_id)
}

/// The pod a container is made in.
struct Pod {
    id: String,
    config: cri::PodSandboxConfig,
    /// Which processes its containers see.
    pid: PidMode,
    /// Where its logs go, if `aril` chose the place.
    logs: Option<PathBuf>,
}

async fn make_pod(
    daemon: &mut Daemon,
    name: &str,
    args: &SandboxArgs,
    own: bool,
    privileged: bool,
) -> Result<Pod, CliError> {
    let root = daemon.node.info(InfoRequest {}).await?.into_inner().root_dir;
    let uid = request::random_hex()?;
    let logs = request::log_directory(&root, &uid);
    make_private(&logs)?;
    let config = request::sandbox(&NewPod { name, uid: &uid, own, logs: &logs }, args, privileged);
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    match daemon.runtime.run_pod_sandbox(request).await {
        Ok(answer) => {
            let id = answer.into_inner().pod_sandbox_id;
            if args.network == Network::Pod {
                tell_of_missing_network(daemon, name, &id).await;
            }
            Ok(Pod { id, config, pid: args.pid, logs: Some(logs) })
        }
        Err(status) => {
            remove::remove_logs(Some(&logs));
            Err(status.into())
        }
    }
}

/// Says so if a pod that was to be connected is not. The pod is there, so a question that is not answered fails nothing.
async fn tell_of_missing_network(daemon: &mut Daemon, name: &str, id: &str) {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let Ok(answer) = daemon.runtime.pod_sandbox_status(request).await else { return };
    let network = answer.into_inner().status.and_then(|status| status.network);
    if network.is_some_and(|network| !network.ip.is_empty()) {
        return;
    }
    let Ok(answer) = daemon.node.info(InfoRequest {}).await else { return };
    let problem = answer.into_inner().network_problem;
    // A plugin may connect a pod without giving it an address.
    if !problem.is_empty() {
        output::warn(&format!("pod {name} has no network but loopback: {problem}; `--network none` asks for that"));
    }
}

fn make_private(dir: &Path) -> Result<(), CliError> {
    crate::disk::private_dir(dir).map_err(|e| CliError::io(format!("make directory {}", dir.display()), e))
}

async fn existing_pod(daemon: &mut Daemon, objects: &Objects, pod: &str, name: &str) -> Result<Pod, CliError> {
    let found = objects.pod(pod)?;
    if let Some(taken) = objects.of_pod(found).find(|c| container_name(c) == name) {
        return Err(CliError::Failed(format!(
            "pod {} has a container called {name} already ({}); choose another --name",
            pod_name(found),
            short(&taken.id)
        )));
    }
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: found.id.clone(), verbose: false };
    let status = daemon.runtime.pod_sandbox_status(request).await?.into_inner().status.unwrap_or_default();
    let options = status.linux.and_then(|l| l.namespaces).and_then(|n| n.options).unwrap_or_default();
    let pid = match options.pid() {
        cri::NamespaceMode::Pod => PidMode::Pod,
        cri::NamespaceMode::Node => PidMode::Host,
        cri::NamespaceMode::Container | cri::NamespaceMode::Target => PidMode::Container,
    };
    let logs = status.annotations.get(LOG_DIRECTORY).map(PathBuf::from);
    let config = cri::PodSandboxConfig {
        metadata: status.metadata,
        log_directory: logs.as_deref().map(|l| l.to_string_lossy().into_owned()).unwrap_or_default(),
        labels: status.labels,
        annotations: status.annotations,
        ..Default::default()
    };
    Ok(Pod { id: found.id.clone(), config, pid, logs })
}

fn check_pod_name(objects: &Objects, name: &str) -> Result<(), CliError> {
    request::check_name(name)?;
    let Some(taken) = objects.pods.iter().find(|p| pod_name(p) == name) else { return Ok(()) };
    let own = taken.annotations.contains_key(OWN_POD);
    let advice = if own { "remove it with `aril rm`, or choose another --name" } else { "choose another name" };
    Err(CliError::Failed(format!("a pod called {name} is there already ({}); {advice}", short(&taken.id))))
}

/// Starts the container; a program that cannot be run has the exit codes shells have for that.
pub(super) async fn start(daemon: &mut Daemon, container: &str) -> Result<(), CliError> {
    let request = cri::StartContainerRequest { container_id: container.to_owned() };
    match daemon.runtime.start_container(request).await {
        Ok(_) => Ok(()),
        Err(status) => Err(not_started(status)),
    }
}

/// The error of a program that was to be started: with a code of its own if it is the program's fault.
pub(super) fn not_started(status: tonic::Status) -> CliError {
    match start_code(status.message()) {
        Some(code) => CliError::Start { code, message: status.message().to_owned() },
        None => status.into(),
    }
}

/// 127 for a program that is not there, 126 for one that cannot be executed.
fn start_code(message: &str) -> Option<u8> {
    let has = |names: &[&str]| message.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| names.contains(&word));
    match () {
        // As the last of the init's steps calls itself; the program's name follows in quotes.
        () if !message.contains("start \"") => None,
        () if has(&["ENOENT"]) => Some(127),
        () if has(&["EACCES", "ENOEXEC", "EISDIR", "ENOTDIR", "EPERM", "ELOOP", "ETXTBSY"]) => Some(126),
        () => None,
    }
}

/// Takes away what was made, telling of failures but not failing.
async fn discard(daemon: &mut Daemon, made: &Made) {
    let result = remove::remove_made(daemon, &made.container, made.own_pod.then_some(&made.sandbox)).await;
    if let Err(e) = result {
        output::complain(&e.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_of_programs_that_cannot_run() {
        assert_eq!(start_code("start container of 0123: start \"/nope\": ENOENT (No such file)"), Some(127));
        assert_eq!(start_code("exec in container of 0123: start \"/etc/passwd\": EACCES"), Some(126));
        assert_eq!(start_code("start container of 0123: mount proc: EPERM"), None);
        assert_eq!(start_code("start \"x\": EIO"), None);
    }

    #[test]
    fn a_pod_name_is_given_once() {
        let metadata = cri::PodSandboxMetadata { name: "web".into(), ..Default::default() };
        let pod = cri::PodSandbox { id: "0123456789abcdef".into(), metadata: Some(metadata), ..Default::default() };
        let objects = Objects { pods: vec![pod], containers: vec![] };
        let error = check_pod_name(&objects, "web").unwrap_err().to_string();
        assert!(error.contains("web is there already (0123456789ab)"), "{error}");
        assert!(check_pod_name(&objects, "other").is_ok());
    }
}
