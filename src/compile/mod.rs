//! OCI runtime spec → plan: everything the shim would otherwise have to decide.
//!
//! Owns the meaning of `config.json`: mount options become attribute bits, names become numbers,
//! defaults the spec leaves to the runtime (device rules) are filled in. Pure: looks at nothing but
//! its arguments, so the same spec always gives the same plan. A part of the spec that this runtime
//! cannot honour is refused by name; none is dropped.
//!
//! Follows the OCI runtime spec 1.2, `config.md` and `config-linux.md`.

mod capability;
mod mount;
mod namespace;
mod process;
mod resources;
pub mod sysctl;

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::{Hooks, Linux, Spec};

pub use capability::{from_mask, number_of, parse};
pub use process::compile_process;
pub use resources::compile_resources;

use crate::plan;

/// What a container needs beside its OCI spec, because the spec has no words for it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extra {
    /// Overlay directories; `readonly` is taken from the spec. Without layers the spec's `root.path`
    /// is the root itself.
    pub rootfs: plan::Rootfs,
    /// Where output goes; `stdin` likewise.
    pub stdio: plan::Stdio,
    /// Set: replaces the spec's `process.user`, which knows no names.
    pub user: Option<plan::User>,
    /// Linux signal number; 0: SIGTERM.
    pub stop_signal: i32,
    /// The tmpfs at `/dev/shm` is the pod's, not one of the container's own.
    pub sandbox_shm: bool,
    /// Whose PID namespace it is if the spec asks for no new one.
    pub pid: Pid,
    /// Positions in `spec.mounts` of volumes: a missing source is made as a directory, and
    /// propagation the source cannot give is an error.
    pub volumes: Vec<usize>,
    /// Mounts by their positions in `spec.mounts` that show the files of an image.
    pub images: BTreeMap<usize, plan::ImageTree>,
    /// What was done less well than asked, one sentence each; for the log, not for the plan.
    pub warnings: Vec<String>,
}

/// A PID namespace that is not the container's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Pid {
    /// The pod's, with its reaper.
    #[default]
    Sandbox,
    /// The host's.
    Host,
    /// That of the container with this id.
    Container(String),
}

/// Why a spec cannot become a plan. `field` is the path in `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The spec lacks what a container cannot be without.
    #[error("{field}: missing")]
    Missing {
        /// Path in `config.json`.
        field: String,
    },
    /// It says what cannot be.
    #[error("{field}: {reason}")]
    Invalid {
        /// Path in `config.json`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It asks for what this runtime does not do.
    #[error("{field}: not supported by this runtime")]
    Unsupported {
        /// Path in `config.json`.
        field: String,
    },
}

impl CompileError {
    fn missing(field: impl Into<String>) -> Self {
        Self::Missing { field: field.into() }
    }

    fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    fn unsupported(field: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into() }
    }
}

/// The plan of one container.
///
/// # Errors
/// [`CompileError`] naming the field of the spec.
///
/// Source: OCI runtime spec, `config.md`.
pub fn compile(spec: &Spec, extra: &Extra) -> Result<plan::Container, CompileError> {
    let linux = spec.linux().as_ref().ok_or_else(|| CompileError::missing("linux"))?;
    let process = spec.process().as_ref().ok_or_else(|| CompileError::missing("process"))?;
    refuse_general(spec)?;
    refuse_linux(linux)?;

    let mut process = compile_process(process)?;
    if let Some(user) = &extra.user {
        process.user = Some(user.clone());
    }
    let own = namespace::own(linux)?;
    let mounts = mount::compile(spec.mounts().as_deref().unwrap_or_default(), extra)?;
    // In a /dev that is the host's, the host's nodes are there already, and making one would change it.
    let devices = if mount::binds_dev(&mounts) { Vec::new() } else { resources::devices(linux)? };
    Ok(plan::Container {
        rootfs: Some(rootfs(spec, extra)?),
        mounts,
        devices,
        namespaces: Some(namespace::compile(own, extra)),
        cgroup: Some(resources::cgroup(linux)?),
        process: Some(process),
        masked_paths: container_paths("linux.maskedPaths", linux.masked_paths().as_deref())?,
        readonly_paths: container_paths("linux.readonlyPaths", linux.readonly_paths().as_deref())?,
        hostname: hostname(spec, own)?,
        sysctls: sysctls(linux, own)?,
        stdio: Some(extra.stdio.clone()),
        stop_signal: if extra.stop_signal == 0 { 15 } else { extra.stop_signal },
        annotations: spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
    })
}

fn rootfs(spec: &Spec, extra: &Extra) -> Result<plan::Rootfs, CompileError> {
    let root = spec.root().as_ref().ok_or_else(|| CompileError::missing("root"))?;
    let mut rootfs = plan::Rootfs { readonly: root.readonly().unwrap_or(false), ..extra.rootfs.clone() };
    if rootfs.lower.is_empty() && rootfs.path.is_empty() {
        rootfs.path = text("root.path", root.path())?;
        if !rootfs.path.starts_with('/') {
            return Err(CompileError::invalid("root.path", "not absolute; join it with the bundle's directory first"));
        }
    }
    Ok(rootfs)
}

fn hostname(spec: &Spec, own: namespace::Own) -> Result<String, CompileError> {
    let name = spec.hostname().clone().unwrap_or_default();
    if !name.is_empty() && !own.uts {
        return Err(CompileError::invalid("hostname", "set without a UTS namespace of the container's own"));
    }
    Ok(name)
}

fn sysctls(linux: &Linux, own: namespace::Own) -> Result<Vec<plan::Sysctl>, CompileError> {
    let owned = sysctl::Owned { net: own.net, ipc: own.ipc, uts: own.uts };
    let mut list = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let checked = sysctl::check(name, value, owned)
            .map_err(|e| CompileError::invalid(format!("linux.sysctl[{name:?}]"), e.to_string()))?;
        list.push(checked);
    }
    list.sort_by(|a: &plan::Sysctl, b| a.name.cmp(&b.name));
    Ok(list)
}

/// Parts of the spec outside `linux` that no plan can carry.
fn refuse_general(spec: &Spec) -> Result<(), CompileError> {
    let asked = [
        ("hooks", spec.hooks().as_ref().is_some_and(has_hooks)),
        ("domainname", spec.domainname().as_ref().is_some_and(|s| !s.is_empty())),
        ("vm", spec.vm().is_some()),
        ("windows", spec.windows().is_some()),
        ("solaris", spec.solaris().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    refuse(&asked)
}

fn has_hooks(hooks: &Hooks) -> bool {
    *hooks != Hooks::default()
}

/// The same for `linux`.
fn refuse_linux(linux: &Linux) -> Result<(), CompileError> {
    let filled = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|l| !l.is_empty());
    let asked = [
        ("linux.seccomp", linux.seccomp().is_some()),
        ("linux.uidMappings", filled(linux.uid_mappings())),
        ("linux.gidMappings", filled(linux.gid_mappings())),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.personality", linux.personality().is_some()),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|m| !m.is_empty())),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|m| !m.is_empty())),
        ("linux.mountLabel", linux.mount_label().as_ref().is_some_and(|s| !s.is_empty())),
        // Mounts are attached to a tree of the container's own, which is private by birth.
        (
            "linux.rootfsPropagation",
            linux.rootfs_propagation().as_deref().is_some_and(|p| !matches!(p, "" | "private" | "rprivate")),
        ),
    ];
    refuse(&asked)
}

fn refuse(asked: &[(&str, bool)]) -> Result<(), CompileError> {
    match asked.iter().find(|(_, is_asked)| *is_asked) {
        Some((field, _)) => Err(CompileError::unsupported(*field)),
        None => Ok(()),
    }
}

fn container_paths(field: &str, paths: Option<&[String]>) -> Result<Vec<String>, CompileError> {
    let paths = paths.unwrap_or_default();
    for (i, path) in paths.iter().enumerate() {
        absolute(&format!("{field}[{i}]"), path)?;
    }
    Ok(paths.to_vec())
}

/// A path below the container's root: absolute, and nothing in it leads up.
fn absolute(field: &str, path: &str) -> Result<(), CompileError> {
    if !path.starts_with('/') {
        return Err(CompileError::invalid(field, format!("{path:?} is not absolute")));
    }
    if path.contains('\0') {
        return Err(CompileError::invalid(field, "contains a NUL"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(CompileError::invalid(field, format!("{path:?} contains \"..\"")));
    }
    Ok(())
}

fn text(field: &str, path: &Path) -> Result<String, CompileError> {
    path.to_str().map(str::to_owned).ok_or_else(|| CompileError::invalid(field, "not UTF-8"))
}

#[cfg(test)]
mod tests;
