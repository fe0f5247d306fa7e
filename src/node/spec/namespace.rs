//! Which namespaces a pod has of its own, and which of them a container shares.

use super::{SpecError, check};
use crate::api::cri::{self, NamespaceMode as Mode};
use crate::compile::Pid;

const FIELD: &str = "linux.security_context.namespace_options";

/// What a pod's `namespace_options` come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pod {
    pub host_network: bool,
    pub host_ipc: bool,
    pub pid: PodPid,
}

/// Processes of which containers see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PodPid {
    /// Those of the pod.
    Shared,
    /// Those of one container.
    Separate,
    /// All of the machine.
    Host,
}

/// Where a container's PID namespace comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ContainerPid {
    Own,
    Of(Pid),
}

/// Reads the sandbox's options; none at all mean the pod's own network and IPC and one PID
/// namespace for all of it, as the enumeration's zero says.
pub(super) fn pod(config: &cri::PodSandboxConfig) -> Result<Pod, SpecError> {
    let options = config.linux.as_ref().and_then(|l| l.security_context.as_ref()?.namespace_options.as_ref());
    let Some(options) = options else {
        return Ok(Pod { host_network: false, host_ipc: false, pid: PodPid::Shared });
    };
    let pid = match mode("pid", options.pid)? {
        Mode::Pod => PodPid::Shared,
        Mode::Container => PodPid::Separate,
        Mode::Node => PodPid::Host,
        Mode::Target => {
            let reason = "TARGET is for a container: a sandbox joins nobody's";
            return Err(SpecError::invalid(format!("{FIELD}.pid"), reason));
        }
    };
    Ok(Pod { host_network: shared("network", options.network)?, host_ipc: shared("ipc", options.ipc)?, pid })
}

/// Reads a container's PID mode. Its network and IPC are the pod's whatever it says.
pub(super) fn container(pod: Pod, options: Option<&cri::NamespaceOption>) -> Result<ContainerPid, SpecError> {
    let of_pod = match pod.pid {
        PodPid::Shared => ContainerPid::Of(Pid::Sandbox),
        PodPid::Separate => ContainerPid::Own,
        PodPid::Host => ContainerPid::Of(Pid::Host),
    };
    let Some(options) = options else {
        return Ok(of_pod);
    };
    shared("network", options.network)?;
    shared("ipc", options.ipc)?;
    match mode("pid", options.pid)? {
        Mode::Pod if pod.pid == PodPid::Separate => {
            let reason = "POD, but the sandbox was made with CONTAINER and so has no PID namespace to share";
            Err(SpecError::invalid(format!("{FIELD}.pid"), reason))
        }
        Mode::Pod => Ok(of_pod),
        Mode::Container => Ok(ContainerPid::Own),
        Mode::Node => Ok(ContainerPid::Of(Pid::Host)),
        Mode::Target => match options.target_id.parse::<crate::id::ContainerId>() {
            Ok(id) => Ok(ContainerPid::Of(Pid::Container(id.as_str().to_owned()))),
            Err(e) => Err(SpecError::invalid(format!("{FIELD}.target_id"), e.to_string())),
        },
    }
}

fn mode(name: &str, value: i32) -> Result<Mode, SpecError> {
    check::known(&format!("{FIELD}.{name}"), value)
}

/// Network and IPC belong to the pod or to the host, never to one container: `true` for the host.
fn shared(name: &str, value: i32) -> Result<bool, SpecError> {
    match mode(name, value)? {
        Mode::Pod => Ok(false),
        Mode::Node => Ok(true),
        Mode::Container | Mode::Target => {
            let reason = "only POD and NODE apply: a pod's containers share it";
            Err(SpecError::invalid(format!("{FIELD}.{name}"), reason))
        }
    }
}

/// Checks `userns_options`; a pod in the host's user namespace is all there is so far.
pub(super) fn user_namespace(options: Option<&cri::NamespaceOption>) -> Result<(), SpecError> {
    let field = format!("{FIELD}.userns_options");
    let Some(userns) = options.and_then(|o| o.userns_options.as_ref()) else {
        return Ok(());
    };
    match check::known(&format!("{field}.mode"), userns.mode)? {
        Mode::Node if userns.uids.is_empty() && userns.gids.is_empty() => Ok(()),
        Mode::Node => Err(SpecError::invalid(field, "NODE means the host's user namespace, which has no mappings")),
        Mode::Pod => {
            mapping(&format!("{field}.uids"), &userns.uids)?;
            mapping(&format!("{field}.gids"), &userns.gids)?;
            Err(SpecError::unimplemented(field, "user namespaces are"))
        }
        Mode::Container | Mode::Target => {
            Err(SpecError::invalid(format!("{field}.mode"), "only POD and NODE apply to user namespaces"))
        }
    }
}

/// One range that starts with the container's root and stays within 32 bits.
fn mapping(field: &str, list: &[cri::IdMapping]) -> Result<(), SpecError> {
    let [range] = list else {
        return Err(SpecError::invalid(field, format!("has {} mappings; exactly one is needed", list.len())));
    };
    if range.container_id != 0 {
        return Err(SpecError::invalid(field, "does not map the container's id 0"));
    }
    if range.length == 0 || range.host_id.checked_add(range.length).is_none() {
        return Err(SpecError::invalid(field, "is empty or runs past the last 32-bit id"));
    }
    Ok(())
}
