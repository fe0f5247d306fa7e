//! Requests and the exact spec and plan they become.
//!
//! `ARIL_GOLDEN=write cargo test golden` writes the files anew; the difference is then for review.

#![allow(deprecated, reason = "the old text forms of profiles are still accepted")]

use std::fs;
use std::path::PathBuf;

use super::{Case, ImageVolume, strings};
use crate::api::cri::{self, NamespaceMode, security_profile::ProfileType};
use crate::id::Digest;

/// Compares with `golden/<name>.json` (the OCI spec) and `golden/<name>.plan` (sandbox and container).
fn check(name: &str, case: &Case) {
    let sandbox = case.sandbox_plan().unwrap();
    let (spec, extra) = case.spec().unwrap();
    let mut json = serde_json::to_value(&spec).unwrap();
    sort_sets(&mut json);
    compare(&format!("{name}.json"), &format!("{json:#}\n"));
    let warnings = extra.warnings.iter().map(|w| format!("warning: {w}\n")).collect::<String>();
    compare(&format!("{name}.plan"), &format!("{sandbox:#?}\n{:#?}\n{warnings}", case.plan()));
}

/// Capability sets have no order of their own.
fn sort_sets(spec: &mut serde_json::Value) {
    let Some(sets) = spec.pointer_mut("/process/capabilities").and_then(|c| c.as_object_mut()) else { return };
    for set in sets.values_mut().filter_map(|s| s.as_array_mut()) {
        set.sort_by_key(ToString::to_string);
    }
}

fn compare(file: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/node/spec/golden").join(file);
    if std::env::var_os("ARIL_GOLDEN").is_some_and(|v| v == "write") {
        fs::write(&path, text).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    for (i, (want, got)) in expected.lines().zip(text.lines()).enumerate() {
        assert_eq!(want, got, "{file}:{}", i + 1);
    }
    assert_eq!(expected.lines().count(), text.lines().count(), "{file}: length");
}

/// Nothing asked for: the sandbox's namespaces, the default rights, no limits.
#[test]
fn minimal() {
    check("minimal", &Case::new());
}

/// As kubelet asks for an ordinary pod.
#[test]
fn kubelet() {
    let mut case = Case::new();
    case.sandbox.hostname = "web-7d4b9".to_owned();
    case.sandbox.dns_config = Some(cri::DnsConfig {
        servers: strings(&["10.96.0.10"]),
        searches: strings(&["default.svc.cluster.local", "cluster.local"]),
        options: strings(&["ndots:5"]),
    });
    case.sandbox.port_mappings = vec![cri::PortMapping { container_port: 80, ..Default::default() }];
    case.sandbox_linux().cgroup_parent = "/kubepods/burstable/pod0b2c".to_owned();
    let options = cri::NamespaceOption { pid: NamespaceMode::Container as i32, ..Default::default() };
    case.namespaces(options);
    case.sandbox_security().seccomp =
        Some(cri::SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, ..Default::default() });
    let security = case.security();
    security.seccomp =
        Some(cri::SecurityProfile { profile_type: ProfileType::Unconfined as i32, ..Default::default() });
    security.run_as_user = Some(cri::Int64Value { value: 0 });
    security.masked_paths = strings(&["/proc/asound", "/proc/kcore", "/sys/firmware"]);
    security.readonly_paths = strings(&["/proc/bus", "/proc/sys", "/proc/sysrq-trigger"]);
    *case.resources() = cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 256,
        memory_limit_in_bytes: 128 << 20,
        oom_score_adj: 992,
        hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".to_owned(), limit: 0 }],
        ..Default::default()
    };
    case.config.command.clear();
    case.entrypoint = strings(&["/docker-entrypoint.sh"]);
    case.cmd = strings(&["nginx", "-g", "daemon off;"]);
    case.stop_signal = "SIGQUIT";
    case.env = vec![("PATH".to_owned(), "/usr/sbin:/usr/bin:/bin".to_owned())];
    case.config.envs = [("KUBERNETES_PORT", "tcp://10.96.0.1:443"), ("PATH", "/bin")]
        .map(|(k, v)| cri::KeyValue { key: k.to_owned(), value: v.as_bytes().to_vec() })
        .to_vec();
    let volume = |host: &str, container: &str, readonly| cri::Mount {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        readonly,
        ..Default::default()
    };
    case.config.mounts = vec![
        volume("/var/lib/kubelet/pods/0b2c/volumes/token", "/var/run/secrets/kubernetes.io/serviceaccount", true),
        volume("/var/lib/kubelet/pods/0b2c/etc-hosts", "/etc/hosts", false),
        volume("/var/lib/kubelet/pods/0b2c/containers/app/1", "/dev/termination-log", false),
    ];
    check("kubelet", &case);
}

/// The host's namespaces, all devices, every right.
#[test]
fn privileged_on_the_host() {
    let mut case = Case::new();
    let node = NamespaceMode::Node as i32;
    case.namespaces(cri::NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() });
    case.sandbox_security().privileged = true;
    case.security().privileged = true;
    case.security().masked_paths = strings(&["/proc/kcore"]);
    case.security().seccomp_profile_path = "runtime/default".to_owned();
    case.config.devices = vec![cri::Device {
        host_path: "/dev/snd".to_owned(),
        container_path: "/dev/sound".to_owned(),
        permissions: "r".to_owned(),
    }];
    case.defaults.capabilities &= !(1 << 24);
    check("privileged", &case);
}

/// Users, groups, rights and terminals.
#[test]
fn somebody_else() {
    let mut case = Case::new();
    case.user = "www-data:33";
    case.working_dir = "/srv";
    case.config.tty = true;
    case.config.stdin = true;
    case.config.stop_signal = cri::Signal::Sigrtminplus3 as i32;
    let security = case.security();
    security.run_as_username = "app".to_owned();
    security.run_as_group = Some(cri::Int64Value { value: 2000 });
    security.supplemental_groups = vec![5, 6, 5];
    security.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict as i32;
    security.readonly_rootfs = true;
    security.no_new_privs = true;
    security.capabilities = Some(cri::Capability {
        add_capabilities: strings(&["NET_ADMIN", "cap_sys_resource"]),
        drop_capabilities: strings(&["ALL"]),
        add_ambient_capabilities: strings(&["CAP_NET_BIND_SERVICE"]),
    });
    case.defaults.capabilities &= !(1 << 24);
    check("somebody", &case);
}

/// Volumes of all kinds, over the kernel's filesystems and the pod's files too.
#[test]
fn volumes() {
    let mut case = Case::new();
    let volume = |host: &str, container: &str| cri::Mount {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        ..Default::default()
    };
    let propagation =
        |mount: cri::Mount, propagation: cri::MountPropagation| cri::Mount { propagation: propagation as i32, ..mount };
    case.config.mounts = vec![
        volume("/data/deep", "/data/a/b"),
        volume("/data", "/data//"),
        propagation(volume("/mnt/slave", "/slave"), cri::MountPropagation::PropagationHostToContainer),
        propagation(volume("/mnt/shared", "/shared"), cri::MountPropagation::PropagationBidirectional),
        cri::Mount { readonly: true, selinux_relabel: true, ..volume("/ro", "/ro") },
        cri::Mount { readonly: true, recursive_read_only: true, ..volume("/rro", "/rro") },
        volume("/dev", "/dev"),
        volume("/sys", "/sys"),
        volume("/run/shm", "/dev/shm"),
        volume("/etc/resolv.conf", "/etc/resolv.conf"),
        volume("/var/lib/lxcfs/meminfo", "/proc/meminfo"),
        cri::Mount {
            image: Some(cri::ImageSpec { image: "data:1".to_owned(), ..Default::default() }),
            image_sub_path: "models/small".to_owned(),
            readonly: true,
            ..volume("", "/models")
        },
    ];
    let layers = strings(&["/layers/data/fs", "/empty"]);
    case.image_volumes = vec![ImageVolume { mount: 11, id: Digest::sha256([0xda; 32]), layers }];
    case.config.devices = vec![cri::Device { host_path: "/dev/fuse".to_owned(), ..Default::default() }];
    check("volumes", &case);
}

/// All limits, and kernel parameters of the pod.
#[test]
fn limits() {
    let mut case = Case::new();
    case.sandbox_linux().sysctls = [("kernel.shm_rmid_forced", "1"), ("net/ipv4/ip_unprivileged_port_start", "80")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    *case.resources() = cri::LinuxContainerResources {
        cpu_quota: -1,
        cpuset_cpus: "0-1,3".to_owned(),
        cpuset_mems: "0".to_owned(),
        memory_limit_in_bytes: 1 << 20,
        memory_swap_limit_in_bytes: 2 << 20,
        oom_score_adj: -5,
        hugepage_limits: vec![cri::HugepageLimit { page_size: "1GB".to_owned(), limit: u64::MAX }],
        unified: [("memory.oom.group", "1"), ("memory.high", "900000")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        ..Default::default()
    };
    check("limits", &case);
}

/// An ephemeral container that looks at another one.
#[test]
fn debugger() {
    let mut case = Case::new();
    case.namespaces(cri::NamespaceOption { pid: NamespaceMode::Container as i32, ..Default::default() });
    case.security().namespace_options = Some(cri::NamespaceOption {
        pid: NamespaceMode::Target as i32,
        target_id: "d1".repeat(32),
        ..Default::default()
    });
    case.config.log_path.clear();
    check("debugger", &case);
}
