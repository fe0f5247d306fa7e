//! Kernel parameters a pod may set: those that belong to a namespace of its own.
//!
//! Anything else would change the machine, so the rule is a table of what is allowed. Names and
//! values are written to files, never passed to a program, and still have to be plain text.

use crate::plan;

/// Longest value that any parameter of the table takes, and more.
const MAX_LEN: usize = 4096;

/// The namespaces that are not the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    /// Network.
    pub net: bool,
    /// System V IPC and POSIX message queues.
    pub ipc: bool,
    /// Host and domain name.
    pub uts: bool,
}

/// Why a parameter is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SysctlError {
    /// Empty, too long, or with a part that is empty, `.` or `..`, or other characters than
    /// letters, digits, `_`, `-`, and the separators.
    #[error("not a name of a kernel parameter")]
    Name,
    /// Too long, or with a control character or `+`.
    #[error("value has a control character, a '+', or more than {MAX_LEN} bytes")]
    Value,
    /// Known to belong to the machine, or not known to belong to a namespace.
    #[error("not a parameter of a namespace: setting it would change the host")]
    NotNamespaced,
    /// The pod shares the namespace with the host.
    #[error("the pod shares the host's {0} namespace, so setting it would change the host")]
    HostNamespace(&'static str),
    /// There is another way to say it.
    #[error("set by the sandbox's hostname, not as a kernel parameter")]
    Hostname,
}

/// System V parameters of the IPC namespace (`kernel/`).
const KERNEL_IPC: [&str; 12] = [
    "auto_msgmni",
    "msg_next_id",
    "msgmax",
    "msgmnb",
    "msgmni",
    "sem",
    "sem_next_id",
    "shm_next_id",
    "shm_rmid_forced",
    "shmall",
    "shmmax",
    "shmmni",
];

/// Checks a parameter and gives it as it is to be written: its name as a path below `/proc/sys`.
///
/// The name may be written with dots (`net.ipv4.ip_forward`) or slashes; as sysctl(8) has it, the
/// first separator decides, and the other one is then part of a name (`net/ipv4/conf/eth0.7/…`).
///
/// # Errors
/// [`SysctlError`].
pub fn check(name: &str, value: &str, owned: Owned) -> Result<plan::Sysctl, SysctlError> {
    let path = path(name)?;
    if value.len() > MAX_LEN || value.chars().any(|c| c.is_control() || c == '+') {
        return Err(SysctlError::Value);
    }
    let parts: Vec<&str> = path.split('/').collect();
    let (is_owned, namespace) = match parts.as_slice() {
        ["net", _, ..] => (owned.net, "network"),
        ["kernel", "hostname"] => return Err(SysctlError::Hostname),
        ["kernel", "domainname"] => (owned.uts, "UTS"),
        ["kernel", parameter] if KERNEL_IPC.contains(parameter) => (owned.ipc, "IPC"),
        ["fs", "mqueue", _] => (owned.ipc, "IPC"),
        _ => return Err(SysctlError::NotNamespaced),
    };
    if !is_owned {
        return Err(SysctlError::HostNamespace(namespace));
    }
    Ok(plan::Sysctl { name: path, value: value.to_owned() })
}

/// The file below `/proc/sys`.
fn path(name: &str) -> Result<String, SysctlError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    if name.is_empty() || name.len() > MAX_LEN || !name.chars().all(is_plain) {
        return Err(SysctlError::Name);
    }
    let path: String = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    };
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(SysctlError::Name);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Owned = Owned { net: true, ipc: true, uts: true };
    const NONE: Owned = Owned { net: false, ipc: false, uts: false };

    #[test]
    fn either_separator_names_the_same_file() {
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.7/rp_filter", "net/ipv4/conf/eth0.7/rp_filter"),
            ("net.ipv4.conf.eth0/7.rp_filter", "net/ipv4/conf/eth0.7/rp_filter"),
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
            ("kernel.domainname", "kernel/domainname"),
        ] {
            assert_eq!(check(name, "1", ALL).unwrap().name, path, "{name}");
        }
    }

    #[test]
    fn parameters_of_the_machine_are_refused() {
        for name in ["kernel.core_pattern", "vm.overcommit_memory", "fs.file-max", "kernel.shm", "net", "kernel.sem.x"]
        {
            assert_eq!(check(name, "1", ALL), Err(SysctlError::NotNamespaced), "{name}");
        }
        assert_eq!(check("kernel.hostname", "x", ALL), Err(SysctlError::Hostname));
    }

    #[test]
    fn a_namespace_shared_with_the_host_is_not_touched() {
        for name in ["net.core.somaxconn", "kernel.msgmax", "fs.mqueue.queues_max", "kernel.domainname"] {
            assert!(matches!(check(name, "1", NONE), Err(SysctlError::HostNamespace(_))), "{name}");
        }
    }

    #[test]
    fn odd_names_and_values_are_refused() {
        for name in ["", ".", "net..x", "net.ipv4.", "/net/x", "net/../kernel/core_pattern", "net.ipv4.a+b", "net.a\nb"]
        {
            assert_eq!(check(name, "1", ALL), Err(SysctlError::Name), "{name:?}");
        }
        for value in ["1+kernel.core_pattern=|x", "1\n2", "\0", &"1".repeat(MAX_LEN + 1)] {
            assert_eq!(check("net.core.somaxconn", value, ALL), Err(SysctlError::Value), "{value:?}");
        }
        assert!(check("net.ipv4.ping_group_range", "0 2147483647", ALL).is_ok());
    }

    proptest! {
        #[test]
        fn whatever_passes_stays_below_an_allowed_directory(name in "(net|kernel|fs|vm)?[./a-z_+\\-]{0,30}", value in ".*") {
            if let Ok(sysctl) = check(&name, &value, ALL) {
                prop_assert!(["net/", "kernel/", "fs/mqueue/"].iter().any(|p| sysctl.name.starts_with(p)));
                prop_assert!(sysctl.name.split('/').all(|part| !matches!(part, "" | "." | "..")));
                prop_assert!(!sysctl.value.chars().any(char::is_control));
            }
        }
    }
}
