//! Capabilities: names, numbers, sets.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use crate::plan;

use Capability as C;

/// Every capability by its kernel number (`include/uapi/linux/capability.h`), with its name after `CAP_`.
const TABLE: [(Capability, &str); 41] = [
    (C::Chown, "CHOWN"),
    (C::DacOverride, "DAC_OVERRIDE"),
    (C::DacReadSearch, "DAC_READ_SEARCH"),
    (C::Fowner, "FOWNER"),
    (C::Fsetid, "FSETID"),
    (C::Kill, "KILL"),
    (C::Setgid, "SETGID"),
    (C::Setuid, "SETUID"),
    (C::Setpcap, "SETPCAP"),
    (C::LinuxImmutable, "LINUX_IMMUTABLE"),
    (C::NetBindService, "NET_BIND_SERVICE"),
    (C::NetBroadcast, "NET_BROADCAST"),
    (C::NetAdmin, "NET_ADMIN"),
    (C::NetRaw, "NET_RAW"),
    (C::IpcLock, "IPC_LOCK"),
    (C::IpcOwner, "IPC_OWNER"),
    (C::SysModule, "SYS_MODULE"),
    (C::SysRawio, "SYS_RAWIO"),
    (C::SysChroot, "SYS_CHROOT"),
    (C::SysPtrace, "SYS_PTRACE"),
    (C::SysPacct, "SYS_PACCT"),
    (C::SysAdmin, "SYS_ADMIN"),
    (C::SysBoot, "SYS_BOOT"),
    (C::SysNice, "SYS_NICE"),
    (C::SysResource, "SYS_RESOURCE"),
    (C::SysTime, "SYS_TIME"),
    (C::SysTtyConfig, "SYS_TTY_CONFIG"),
    (C::Mknod, "MKNOD"),
    (C::Lease, "LEASE"),
    (C::AuditWrite, "AUDIT_WRITE"),
    (C::AuditControl, "AUDIT_CONTROL"),
    (C::Setfcap, "SETFCAP"),
    (C::MacOverride, "MAC_OVERRIDE"),
    (C::MacAdmin, "MAC_ADMIN"),
    (C::Syslog, "SYSLOG"),
    (C::WakeAlarm, "WAKE_ALARM"),
    (C::BlockSuspend, "BLOCK_SUSPEND"),
    (C::AuditRead, "AUDIT_READ"),
    (C::Perfmon, "PERFMON"),
    (C::Bpf, "BPF"),
    (C::CheckpointRestore, "CHECKPOINT_RESTORE"),
];

/// The number of a capability named with or without `CAP_`, in any case; `None` if there is none of that name.
#[must_use]
pub fn parse(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    (0u32..).zip(TABLE).find(|(_, (_, known))| *known == short).map(|(number, _)| number)
}

/// The kernel's number of a capability.
#[must_use]
pub fn number_of(capability: Capability) -> u32 {
    (0u32..).zip(TABLE).find(|(_, (known, _))| *known == capability).map_or(0, |(number, _)| number)
}

/// The capabilities whose bits are set; bits without a name are left out.
#[must_use]
pub fn from_mask(mask: u64) -> Capabilities {
    TABLE.into_iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, (c, _))| c).collect()
}

fn mask(set: Option<&Capabilities>) -> u64 {
    set.into_iter().flatten().fold(0, |mask, c| mask | (1 << number_of(*c)))
}

pub(super) fn compile(sets: Option<&LinuxCapabilities>) -> plan::Capabilities {
    let Some(sets) = sets else {
        return plan::Capabilities::default();
    };
    plan::Capabilities {
        bounding: mask(sets.bounding().as_ref()),
        effective: mask(sets.effective().as_ref()),
        permitted: mask(sets.permitted().as_ref()),
        inheritable: mask(sets.inheritable().as_ref()),
        ambient: mask(sets.ambient().as_ref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_prefix_have_the_kernels_numbers() {
        for (name, number) in [("CHOWN", 0), ("cap_net_admin", 12), ("CAP_SYS_ADMIN", 21), ("CHECKPOINT_RESTORE", 40)] {
            assert_eq!(parse(name), Some(number), "{name}");
        }
        for unknown in ["", "CAP_", "ALL", "CAP_CAP_CHOWN", "NET ADMIN"] {
            assert_eq!(parse(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn a_mask_becomes_a_set_and_a_mask_again() {
        let all = (1u64 << TABLE.len()) - 1;
        for wanted in [0, 1, 0xa80_425fb, all] {
            assert_eq!(mask(Some(&from_mask(wanted))), wanted);
        }
        assert_eq!(from_mask(u64::MAX).len(), TABLE.len());
    }
}
