//! A container's capabilities.

use oci_spec::runtime::LinuxCapabilities;

use super::{Defaults, SpecError};
use crate::api::cri;
use crate::compile::{from_mask, parse};

/// What a container has that asks for nothing: enough for package managers and servers written for
/// root, nothing that reaches the host. The same set as other runtimes give.
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const FIELD: &str = "linux.security_context.capabilities";

/// The sets of a container's first process.
///
/// `ALL` comes before single names: adding it gives all the daemon has, dropping it then takes all;
/// single additions and, last, single drops follow. A capability the daemon lacks cannot be given
/// and costs a warning. `MKNOD` is no default where no controller keeps a container from the nodes it makes.
pub(super) fn capabilities(
    security: &cri::LinuxContainerSecurityContext,
    defaults: &Defaults,
    warnings: &mut Vec<String>,
) -> Result<LinuxCapabilities, SpecError> {
    if security.privileged {
        return Ok(sets(defaults.capabilities, 0));
    }
    let none = cri::Capability::default();
    let asked = security.capabilities.as_ref().unwrap_or(&none);
    let add = List::read("add_capabilities", &asked.add_capabilities)?;
    let drop = List::read("drop_capabilities", &asked.drop_capabilities)?;
    let ambient = List::read("add_ambient_capabilities", &asked.add_ambient_capabilities)?;

    let mut mask = DEFAULT.iter().filter_map(|name| parse(name)).fold(0, |mask, n| mask | 1 << n);
    let mknod = parse("MKNOD").map_or(0, |n| 1 << n);
    if !defaults.device_rules {
        mask &= !mknod;
    }
    if add.all || ambient.all {
        mask |= defaults.capabilities;
    }
    if drop.all {
        mask = 0;
    }
    mask = (mask | add.mask | ambient.mask) & !drop.mask;

    let lacking = (add.mask | ambient.mask) & mask & !defaults.capabilities;
    for capability in from_mask(lacking) {
        warnings.push(format!("{FIELD}: {capability} was left out because the daemon does not have it itself"));
    }
    warnings.sort();
    mask &= defaults.capabilities;
    if !defaults.device_rules && mask & mknod != 0 {
        warnings.push(format!("{FIELD}: MKNOD opens every device of this host, which has no v1 devices controller"));
    }
    Ok(sets(mask, if ambient.all { mask } else { ambient.mask & mask }))
}

/// One of the request's lists.
#[derive(Default)]
struct List {
    all: bool,
    mask: u64,
}

impl List {
    fn read(name: &str, names: &[String]) -> Result<Self, SpecError> {
        let mut list = Self::default();
        for (i, text) in names.iter().enumerate() {
            if text.eq_ignore_ascii_case("ALL") {
                list.all = true;
                continue;
            }
            let number = parse(text).ok_or_else(|| {
                let shown: String = text.chars().take(60).collect();
                SpecError::invalid(format!("{FIELD}.{name}[{i}]"), format!("{shown:?} is no capability"))
            })?;
            list.mask |= 1 << number;
        }
        Ok(list)
    }
}

/// Inheritable is what ambient needs by kernel rule and nothing more: with it, a program's file
/// capabilities would come alive in children that should have none.
fn sets(mask: u64, ambient: u64) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(from_mask(mask)));
    sets.set_effective(Some(from_mask(mask)));
    sets.set_permitted(Some(from_mask(mask)));
    sets.set_inheritable(Some(from_mask(ambient)));
    sets.set_ambient(Some(from_mask(ambient)));
    sets
}
