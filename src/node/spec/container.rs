//! A container: the pieces of its spec put together.

use std::path::PathBuf;

use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
    Process, Root, Spec, User,
};

use super::mount::{Manner, Mounts};
use super::namespace::ContainerPid;
use super::{
    Input, SpecError, capability, check, device, mount, namespace, process, resource, sandbox, security, signal, user,
};
use crate::api::cri;
use crate::compile::Extra;
use crate::plan;

/// Version of the runtime spec whose fields are used.
const OCI_VERSION: &str = "1.2.0";
/// Longest name of a container, well above what Kubernetes allows.
const MAX_NAME: usize = 253;

/// The OCI spec of a container, and what the spec has no words for.
///
/// # Errors
/// [`SpecError`] naming the field below `config`.
///
/// Source: CRI v1 `CreateContainerRequest`.
pub fn container_spec(input: &Input<'_>) -> Result<(Spec, Extra), SpecError> {
    let config = input.config;
    check_config(config)?;
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.clone().unwrap_or_default();
    let resources = linux.resources.clone().unwrap_or_default();
    let pod = namespace::pod(input.sandbox)?;
    let pid = namespace::container(pod, context.namespace_options.as_ref())?;
    namespace::user_namespace(context.namespace_options.as_ref())?;
    check_privileged(input.sandbox, &context)?;
    security::container(&context, input.defaults)?;

    let manner = Manner { pod, privileged: context.privileged, readonly_rootfs: context.readonly_rootfs };
    let mounts = mount::mounts(input, manner)?;
    let mut warnings = Vec::new();
    let user = user::user(&context, input.image.user)?;
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned());
    spec.set_hostname(None);
    spec.set_annotations(None);
    spec.set_root(Some(root(context.readonly_rootfs)));
    spec.set_process(Some(process_spec(input, &context, &resources, &user, &mut warnings)?));
    spec.set_linux(Some(linux_spec(input, &context, &resources, &pid)?));
    spec.set_mounts(Some(mounts.list.clone()));
    let stop_signal = signal::stop_signal(config.stop_signal, input.image.stop_signal, &mut warnings)?;
    let extra = Extra { stop_signal, warnings, ..extra(input, mounts, user, pid)? };
    Ok((spec, extra))
}

/// All of [`Extra`] but the stop signal and the warnings.
fn extra(input: &Input<'_>, mounts: Mounts, user: plan::User, pid: ContainerPid) -> Result<Extra, SpecError> {
    let (config, paths) = (input.config, input.paths);
    Ok(Extra {
        rootfs: plan::Rootfs {
            lower: paths.layers.clone(),
            upper: paths.upper.clone(),
            work: paths.work.clone(),
            ..Default::default()
        },
        stdio: plan::Stdio {
            log_path: log_path(input.sandbox, config)?.unwrap_or_default(),
            stdin: config.stdin,
            stdin_once: config.stdin_once,
        },
        user: Some(user),
        sandbox_shm: mounts.sandbox_shm,
        pid: match pid {
            ContainerPid::Own => crate::compile::Pid::default(),
            ContainerPid::Of(pid) => pid,
        },
        volumes: mounts.volumes,
        images: mounts.images,
        ..Default::default()
    })
}

/// Where a container's log goes: `log_path` below the pod's `log_directory`; `None` if either is
/// empty, which means that nobody wants it.
///
/// # Errors
/// [`SpecError::Invalid`] if the path is absolute or leads out of the directory.
///
/// Source: CRI v1 `ContainerConfig.log_path`.
pub fn log_path(sandbox: &cri::PodSandboxConfig, config: &cri::ContainerConfig) -> Result<Option<String>, SpecError> {
    let path = config.log_path.as_str();
    if path.is_empty() {
        return Ok(None);
    }
    check::plain("log_path", path, check::MAX_PATH)?;
    if path.starts_with('/') || path.split('/').any(|part| part == "..") || path.ends_with('/') {
        let reason = format!("{path:?} is not a file below the sandbox's log_directory");
        return Err(SpecError::invalid("log_path", reason));
    }
    if sandbox.log_directory.is_empty() {
        return Ok(None);
    }
    check::absolute("log_directory", &sandbox.log_directory)?;
    let joined = format!("{}/{path}", sandbox.log_directory.trim_end_matches('/'));
    check::plain("log_path", &joined, check::MAX_PATH)?;
    Ok(Some(joined))
}

fn check_config(config: &cri::ContainerConfig) -> Result<(), SpecError> {
    let metadata = config.metadata.as_ref().ok_or_else(|| SpecError::invalid("metadata", "missing"))?;
    if metadata.name.is_empty() {
        return Err(SpecError::invalid("metadata.name", "missing"));
    }
    check::plain("metadata.name", &metadata.name, MAX_NAME)?;
    let image = config.image.as_ref().ok_or_else(|| SpecError::invalid("image", "missing"))?;
    if image.image.is_empty() {
        return Err(SpecError::invalid("image.image", "missing"));
    }
    check::plain("image.image", &image.image, check::MAX_PATH)?;
    if config.cdi_devices.is_empty() { Ok(()) } else { Err(SpecError::unimplemented("CDI_devices", "CDI devices are")) }
}

/// Kubernetes decides by the sandbox whether a pod may have privileged containers at all.
fn check_privileged(
    sandbox: &cri::PodSandboxConfig,
    context: &cri::LinuxContainerSecurityContext,
) -> Result<(), SpecError> {
    let allowed = sandbox.linux.as_ref().and_then(|l| l.security_context.as_ref()).is_some_and(|s| s.privileged);
    if context.privileged && !allowed {
        let reason = "the sandbox is not privileged, so its containers cannot be";
        return Err(SpecError::invalid("linux.security_context.privileged", reason));
    }
    Ok(())
}

fn root(readonly: bool) -> Root {
    let mut root = Root::default();
    // The overlay's place is the shim's business; bundles call it so.
    root.set_path(PathBuf::from("rootfs"));
    root.set_readonly(Some(readonly));
    root
}

fn process_spec(
    input: &Input<'_>,
    context: &cri::LinuxContainerSecurityContext,
    resources: &cri::LinuxContainerResources,
    user: &plan::User,
    warnings: &mut Vec<String>,
) -> Result<Process, SpecError> {
    let config = input.config;
    let hostname = match input.sandbox.hostname.as_str() {
        "" => input.defaults.hostname.as_str(),
        own => own,
    };
    let mut spec = Process::default();
    spec.set_terminal(Some(config.tty));
    spec.set_user(user_spec(user));
    spec.set_args(Some(process::args(config, &input.image)?));
    spec.set_env(Some(process::env(config, &input.image, hostname)?));
    spec.set_cwd(PathBuf::from(process::working_dir(config, &input.image)?));
    spec.set_capabilities(Some(capability::capabilities(context, input.defaults, warnings)?));
    spec.set_rlimits(rlimits(input.defaults.open_files)?);
    spec.set_no_new_privileges(Some(context.no_new_privs));
    spec.set_oom_score_adj(Some(resource::oom_score_adj("linux.resources", resources)?));
    Ok(spec)
}

/// CRI has no limits of processes: a container gets what the daemon was started with.
fn rlimits(open_files: Option<(u64, u64)>) -> Result<Option<Vec<PosixRlimit>>, SpecError> {
    let Some((soft, hard)) = open_files else { return Ok(None) };
    let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(soft).hard(hard).build();
    Ok(Some(vec![limit.map_err(|e| SpecError::invalid("process.rlimits", e.to_string()))?]))
}

/// As far as it is known before the image's files are read; `Extra::user` is what counts.
fn user_spec(user: &plan::User) -> User {
    let mut spec = User::default();
    spec.set_uid(user.uid.unwrap_or(0));
    spec.set_gid(user.gid.unwrap_or(0));
    if !user.additional_gids.is_empty() {
        spec.set_additional_gids(Some(user.additional_gids.clone()));
    }
    if user.uid.is_none() {
        spec.set_username(Some(user.spec.clone()));
    }
    spec
}

fn linux_spec(
    input: &Input<'_>,
    context: &cri::LinuxContainerSecurityContext,
    resources: &cri::LinuxContainerResources,
    pid: &ContainerPid,
) -> Result<Linux, SpecError> {
    let devices = device::devices(input, context.privileged)?;
    let mut limits: LinuxResources = resource::resources_spec("linux.resources", resources, input.defaults)?;
    limits.set_devices(Some(devices.rules));
    let parent = sandbox::cgroup_parent(input.sandbox, input.defaults)?;
    let mut linux = Linux::default();
    linux.set_resources(Some(limits));
    linux.set_cgroups_path(Some(PathBuf::from(format!("{parent}/aril-{}", input.id))));
    linux.set_namespaces(Some(namespaces(pid)));
    linux.set_devices(Some(devices.nodes).filter(|nodes| !nodes.is_empty()));
    linux.set_masked_paths(hidden("masked_paths", &context.masked_paths, context.privileged)?);
    linux.set_readonly_paths(hidden("readonly_paths", &context.readonly_paths, context.privileged)?);
    Ok(linux)
}

/// Those of the container alone; what is not listed is the pod's, in which the shim is.
fn namespaces(pid: &ContainerPid) -> Vec<LinuxNamespace> {
    let mut types = vec![LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup];
    if *pid == ContainerPid::Own {
        types.push(LinuxNamespaceType::Pid);
    }
    let namespace = |typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace
    };
    types.into_iter().map(namespace).collect()
}

/// Paths to be masked or made read-only; nothing is hidden from a privileged container.
fn hidden(name: &str, paths: &[String], privileged: bool) -> Result<Option<Vec<String>>, SpecError> {
    let field = format!("linux.security_context.{name}");
    check::at_most(&field, paths, 1024)?;
    let mut list = Vec::with_capacity(paths.len());
    for (i, path) in paths.iter().enumerate() {
        list.push(check::in_container(&format!("{field}[{i}]"), path)?);
    }
    Ok(Some(list).filter(|l| !privileged && !l.is_empty()))
}
