//! Which namespaces are the container's own.

use oci_spec::runtime::{Linux, LinuxNamespaceType as Type};

use super::{CompileError, Extra, Pid};
use crate::plan::{self, namespaces::Source};

/// The namespaces that are made for the container.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Own {
    pub pid: bool,
    pub ipc: bool,
    pub net: bool,
    pub uts: bool,
    pub cgroup: bool,
}

/// Reads `linux.namespaces`.
///
/// A type that is not listed is the one of the process that clones the container, which is the
/// shim, and the shim is in the pod's.
pub(super) fn own(linux: &Linux) -> Result<Own, CompileError> {
    let mut own = Own::default();
    let mut mount = false;
    for (i, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let field = format!("linux.namespaces[{i}]");
        if namespace.path().is_some() {
            return Err(CompileError::unsupported(format!("{field}.path")));
        }
        let seen = match namespace.typ() {
            Type::Mount => &mut mount,
            Type::Pid => &mut own.pid,
            Type::Ipc => &mut own.ipc,
            Type::Network => &mut own.net,
            Type::Uts => &mut own.uts,
            Type::Cgroup => &mut own.cgroup,
            Type::User | Type::Time => return Err(CompileError::unsupported(field)),
        };
        if *seen {
            return Err(CompileError::invalid(field, "listed twice"));
        }
        *seen = true;
    }
    if !mount {
        return Err(CompileError::invalid("linux.namespaces", "a container needs a mount namespace of its own"));
    }
    Ok(own)
}

pub(super) fn compile(own: Own, extra: &Extra) -> plan::Namespaces {
    let shared = |is_own| if is_own { Source::New } else { Source::Sandbox } as i32;
    let (pid, pid_target) = match &extra.pid {
        _ if own.pid => (Source::New, String::new()),
        Pid::Sandbox => (Source::Sandbox, String::new()),
        Pid::Host => (Source::Host, String::new()),
        Pid::Container(id) => (Source::Target, id.clone()),
    };
    plan::Namespaces {
        pid: pid as i32,
        ipc: shared(own.ipc),
        net: shared(own.net),
        uts: shared(own.uts),
        cgroup: shared(own.cgroup),
        pid_target,
    }
}
