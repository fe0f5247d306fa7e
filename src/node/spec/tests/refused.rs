//! Requests that are refused, each by the field that is wrong.

#![allow(deprecated, reason = "the old text forms of profiles are still accepted")]

use super::{Case, strings};
use crate::api::cri::{self, NamespaceMode, security_profile::ProfileType};
use crate::node::spec::{ImageVolume, Kind, SpecError};

/// Breaks a good request in one place and gives the sandbox's error, else the container's.
fn error(break_it: impl FnOnce(&mut Case)) -> SpecError {
    let mut case = Case::new();
    break_it(&mut case);
    match case.sandbox_plan() {
        Err(e) => e,
        Ok(_) => case.spec().expect_err("an error"),
    }
}

#[track_caller]
fn invalid(field: &str, break_it: impl FnOnce(&mut Case)) {
    let e = error(break_it);
    assert_eq!(e.kind(), Kind::InvalidArgument, "{e}");
    assert!(e.to_string().starts_with(&format!("{field}: ")), "{field}: {e}");
}

#[track_caller]
fn unimplemented(field: &str, break_it: impl FnOnce(&mut Case)) {
    let e = error(break_it);
    assert_eq!(e.kind(), Kind::Unimplemented, "{e}");
    assert!(e.to_string().starts_with(&format!("{field}: ")), "{field}: {e}");
}

fn mount(host_path: &str, container_path: &str) -> cri::Mount {
    cri::Mount { host_path: host_path.to_owned(), container_path: container_path.to_owned(), ..Default::default() }
}

fn profile(profile_type: ProfileType) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: profile_type as i32, localhost_ref: "p.json".to_owned() })
}

#[test]
fn where_devices_are_not_controlled_nobody_makes_nodes_unasked() {
    let has_mknod = |case: &Case| {
        let (_, extra) = case.spec().unwrap();
        let mask = case.plan().process.unwrap().capabilities.unwrap().bounding;
        (mask >> 27 & 1 == 1, extra.warnings.iter().any(|w| w.contains("MKNOD")))
    };
    let mut case = Case::new();
    assert_eq!(has_mknod(&case), (true, false));
    case.defaults.device_rules = false;
    assert_eq!(has_mknod(&case), (false, false));
    let add_capabilities = strings(&["MKNOD"]);
    case.security().capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
    assert_eq!(has_mknod(&case), (true, true));
}

#[test]
fn a_sandbox_needs_a_name() {
    invalid("metadata", |c| c.sandbox.metadata = None);
    invalid("metadata.name", |c| c.sandbox.metadata.as_mut().unwrap().name.clear());
    invalid("metadata.uid", |c| c.sandbox.metadata.as_mut().unwrap().uid.clear());
    invalid("metadata.namespace", |c| c.sandbox.metadata.as_mut().unwrap().namespace = "a\nb".to_owned());
}

#[test]
fn nothing_may_break_out_of_a_pods_files() {
    for bad in ["a b", "a\nb", "-a", ".a", "a/b", &"x".repeat(65)] {
        invalid("hostname", |c| c.sandbox.hostname = bad.to_owned());
    }
    let dns = |servers: &[&str], options: &[&str]| cri::DnsConfig {
        servers: strings(servers),
        options: strings(options),
        ..Default::default()
    };
    invalid("dns_config.servers[1]", |c| c.sandbox.dns_config = Some(dns(&["1.1.1.1", "1\nnameserver 6.6.6.6"], &[])));
    invalid("dns_config.options[0]", |c| c.sandbox.dns_config = Some(dns(&[], &["a b"])));
    invalid("dns_config.servers", |c| c.sandbox.dns_config = Some(dns(&["1.1.1.1"; 129], &[])));
    invalid("log_directory", |c| c.sandbox.log_directory = "logs".to_owned());
}

#[test]
fn ports_are_ports() {
    let port = |container_port, host_port, host_ip: &str| {
        vec![cri::PortMapping { container_port, host_port, host_ip: host_ip.to_owned(), ..Default::default() }]
    };
    invalid("port_mappings[0].container_port", |c| c.sandbox.port_mappings = port(65536, 0, ""));
    invalid("port_mappings[0].host_port", |c| c.sandbox.port_mappings = port(80, -1, ""));
    invalid("port_mappings[0].host_ip", |c| c.sandbox.port_mappings = port(80, 80, "localhost"));
    invalid("port_mappings[0].container_port", |c| c.sandbox.port_mappings = port(0, 8080, ""));
    invalid("port_mappings[1].host_port", |c| {
        c.sandbox.port_mappings = [port(80, 8080, ""), port(81, 8080, "0.0.0.0")].concat();
    });
    for hosts in ["db", "db=", "=192.0.2.7", "d b=192.0.2.7", "db=host", "db=192.0.2.7,", "a=::1\n"] {
        invalid("annotations[\"aril/hosts\"]", |c| {
            c.sandbox.annotations.insert("aril/hosts".to_owned(), hosts.to_owned());
        });
    }
}

#[test]
fn namespaces_that_cannot_be() {
    let field = "linux.security_context.namespace_options";
    let set = |c: &mut Case, change: fn(&mut cri::NamespaceOption, i32), mode: NamespaceMode| {
        change(c.sandbox_security().namespace_options.get_or_insert_default(), mode as i32);
    };
    invalid(&format!("{field}.pid"), |c| set(c, |o, m| o.pid = m, NamespaceMode::Target));
    invalid(&format!("{field}.network"), |c| set(c, |o, m| o.network = m, NamespaceMode::Target));
    invalid(&format!("{field}.ipc"), |c| set(c, |o, m| o.ipc = m, NamespaceMode::Container));
    invalid(&format!("{field}.pid"), |c| c.sandbox_security().namespace_options.get_or_insert_default().pid = 9);
    invalid(&format!("{field}.target_id"), |c| {
        let pid = NamespaceMode::Target as i32;
        c.security().namespace_options = Some(cri::NamespaceOption { pid, ..Default::default() });
    });
    invalid(&format!("{field}.pid"), |c| {
        set(c, |o, m| o.pid = m, NamespaceMode::Container);
        c.security().namespace_options = Some(cri::NamespaceOption::default());
    });
}

#[test]
fn user_namespaces_are_checked_and_then_refused() {
    let field = "linux.security_context.namespace_options.userns_options";
    let range = |container_id, host_id, length| cri::IdMapping { container_id, host_id, length };
    let set = |mode: NamespaceMode, uids: Vec<cri::IdMapping>, gids: Vec<cri::IdMapping>| {
        move |c: &mut Case| {
            let userns_options = Some(cri::UserNamespace { mode: mode as i32, uids, gids });
            c.sandbox_security().namespace_options =
                Some(cri::NamespaceOption { userns_options, ..Default::default() });
        }
    };
    let good = || vec![range(0, 1000, 100_000)];
    invalid(&format!("{field}.mode"), set(NamespaceMode::Container, vec![], vec![]));
    invalid(&format!("{field}.mode"), set(NamespaceMode::Target, vec![], vec![]));
    invalid(field, set(NamespaceMode::Node, good(), vec![]));
    invalid(&format!("{field}.uids"), set(NamespaceMode::Pod, vec![], good()));
    invalid(&format!("{field}.uids"), set(NamespaceMode::Pod, vec![range(0, 1, 1), range(1, 9, 1)], good()));
    invalid(&format!("{field}.gids"), set(NamespaceMode::Pod, good(), vec![range(5, 1000, 10)]));
    invalid(&format!("{field}.gids"), set(NamespaceMode::Pod, good(), vec![range(0, u32::MAX, 2)]));
    invalid(&format!("{field}.gids"), set(NamespaceMode::Pod, good(), vec![range(0, 5, 0)]));
    unimplemented(field, set(NamespaceMode::Pod, good(), good()));
}

#[test]
fn sysctls_of_the_host() {
    let set = |name: &str, value: &str| {
        let entry = (name.to_owned(), value.to_owned());
        move |c: &mut Case| c.sandbox_linux().sysctls = [entry].into()
    };
    invalid("linux.sysctls[\"kernel.core_pattern\"]", set("kernel.core_pattern", "|x"));
    invalid("linux.sysctls[\"kernel.hostname\"]", set("kernel.hostname", "x"));
    invalid("linux.sysctls[\"kernel.sem\"]", set("kernel.sem", "1+2"));
    invalid("linux.sysctls[\"net.core.somaxconn\"]", |c| {
        set("net.core.somaxconn", "1")(c);
        c.sandbox_security().namespace_options =
            Some(cri::NamespaceOption { network: NamespaceMode::Node as i32, ..Default::default() });
    });
    invalid("linux.sysctls[\"net/core/somaxconn\"]", |c| {
        let both = ["net.core.somaxconn", "net/core/somaxconn"].map(|n| (n.to_owned(), "1".to_owned()));
        c.sandbox_linux().sysctls = both.into();
    });
}

#[test]
fn cgroup_parents_stay_below_their_hierarchy() {
    for bad in ["/a/../b", "..", "kubepods.slice", "/kubepods.slice/kubepods-pod1.slice/", "/a\nb"] {
        invalid("linux.cgroup_parent", |c| c.sandbox_linux().cgroup_parent = bad.to_owned());
    }
}

#[test]
fn a_container_needs_a_name_an_image_and_a_command() {
    invalid("metadata", |c| c.config.metadata = None);
    invalid("metadata.name", |c| c.config.metadata.as_mut().unwrap().name.clear());
    invalid("image", |c| c.config.image = None);
    invalid("image.image", |c| c.config.image.as_mut().unwrap().image.clear());
    invalid("command", |c| c.config.command.clear());
    invalid("command[1]", |c| c.config.command[1] = "a\0b".to_owned());
    invalid("args[0]", |c| c.config.args = vec!["x".repeat(128 * 1024)]);
    invalid("working_dir", |c| c.config.working_dir = "srv".to_owned());
    invalid("image config: WorkingDir", |c| c.working_dir = "srv");
    invalid("stop_signal", |c| c.config.stop_signal = 99);
}

#[test]
fn logs_stay_below_the_pods_directory() {
    for bad in ["/var/log/x", "../x", "a/../../x", "a\nb", "a/", ".."] {
        invalid("log_path", |c| c.config.log_path = bad.to_owned());
    }
    let mut case = Case::new();
    assert_eq!(case.spec().unwrap().1.stdio.log_path, "/var/log/pods/default_web_0b2c/app/0.log");
    case.sandbox.log_directory.clear();
    assert_eq!(case.spec().unwrap().1.stdio.log_path, "");
}

#[test]
fn mounts_that_cannot_be() {
    let one = |mount: cri::Mount| move |c: &mut Case| c.config.mounts = vec![mount];
    invalid("mounts[0].host_path", one(mount("", "/x")));
    invalid("mounts[0].host_path", one(mount("relative", "/x")));
    invalid("mounts[0].host_path", one(mount("/a\0b", "/x")));
    invalid("mounts[0].container_path", one(mount("/a", "x")));
    for target in ["/", "/a/..", "/proc", "/proc/sys", "/proc/self/attr/exec", "/x/../proc/1"] {
        invalid("mounts[0].container_path", one(mount("/a", target)));
    }
    invalid("mounts[0].propagation", one(cri::Mount { propagation: 7, ..mount("/a", "/b") }));
    invalid("mounts[0].image_sub_path", one(cri::Mount { image_sub_path: "x".to_owned(), ..mount("/a", "/b") }));
    let ids = vec![cri::IdMapping { host_id: 1, container_id: 0, length: 1 }];
    unimplemented("mounts[0].uidMappings", one(cri::Mount { uid_mappings: ids, ..mount("/a", "/b") }));
    unimplemented("mounts[0].selinux_relabel", |c| {
        c.defaults.selinux = true;
        one(cri::Mount { selinux_relabel: true, ..mount("/a", "/b") })(c);
    });
}

#[test]
fn an_image_volume_is_read_only_and_below_the_image() {
    let good = || cri::Mount {
        image: Some(cri::ImageSpec { image: "data:1".to_owned(), ..Default::default() }),
        readonly: true,
        ..mount("", "/data")
    };
    let given = |mount: cri::Mount, known: bool| {
        let mut case = Case::new();
        case.config.mounts = vec![mount];
        if known {
            let id = crate::id::Digest::sha256([7; 32]);
            case.image_volumes = vec![ImageVolume { mount: 0, id, layers: vec!["/l".to_owned(), "/e".to_owned()] }];
        }
        case.spec().map(drop)
    };
    assert_eq!(given(good(), true), Ok(()));
    assert_eq!(given(cri::Mount { image_sub_path: "a/b".to_owned(), ..good() }, true), Ok(()));
    let rro = cri::Mount { recursive_read_only: true, ..good() };
    assert_eq!(given(rro, true), Ok(()), "it is");
    for (field, mount, known) in [
        ("image", good(), false),
        ("readonly", cri::Mount { readonly: false, ..good() }, true),
        ("host_path", cri::Mount { host_path: "/etc".to_owned(), ..good() }, true),
        ("image_sub_path", cri::Mount { image_sub_path: "/a".to_owned(), ..good() }, true),
        ("image_sub_path", cri::Mount { image_sub_path: "a/../..".to_owned(), ..good() }, true),
        ("propagation", cri::Mount { propagation: 2, ..good() }, true),
    ] {
        let e = given(mount, known).unwrap_err();
        assert!(e.to_string().starts_with(&format!("ImageVolumeMountFailed: mounts[0].{field}: ")), "{e}");
        assert_eq!(e.kind(), Kind::InvalidArgument);
    }
}

#[test]
fn recursive_read_only_has_conditions() {
    let rro = |change: fn(&mut cri::Mount), defaults: fn(&mut Case)| {
        error(|c| {
            let mut mount = cri::Mount { readonly: true, recursive_read_only: true, ..mount("/a", "/b") };
            change(&mut mount);
            c.config.mounts = vec![mount];
            defaults(c);
        })
    };
    for e in [
        rro(|m| m.readonly = false, |_| {}),
        rro(|m| m.propagation = cri::MountPropagation::PropagationHostToContainer as i32, |_| {}),
        rro(|m| m.propagation = cri::MountPropagation::PropagationBidirectional as i32, |_| {}),
        rro(|_| {}, |c| c.defaults.recursive_read_only = false),
    ] {
        assert!(e.to_string().starts_with("RROUnsupported: mounts[0].recursive_read_only: "), "{e}");
    }
}

#[test]
fn rights_that_cannot_be_given() {
    let context = "linux.security_context";
    invalid(&format!("{context}.privileged"), |c| c.security().privileged = true);
    invalid(&format!("{context}.capabilities.add_capabilities[1]"), |c| {
        let add_capabilities = strings(&["NET_ADMIN", "NET_ADMIM"]);
        c.security().capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
    });
    invalid(&format!("{context}.capabilities.drop_capabilities[0]"), |c| {
        let drop_capabilities = strings(&["CAP_"]);
        c.security().capabilities = Some(cri::Capability { drop_capabilities, ..Default::default() });
    });
    let id = |value| Some(cri::Int64Value { value });
    invalid(&format!("{context}.run_as_group"), |c| c.security().run_as_group = id(5));
    invalid(&format!("{context}.run_as_user"), |c| c.security().run_as_user = id(-1));
    invalid(&format!("{context}.run_as_group"), |c| {
        c.security().run_as_user = id(1);
        c.security().run_as_group = id(1 << 32);
    });
    invalid(&format!("{context}.supplemental_groups[0]"), |c| c.security().supplemental_groups = vec![-7]);
    invalid(&format!("{context}.supplemental_groups_policy"), |c| c.security().supplemental_groups_policy = 5);
    invalid("image config: User", |c| c.user = "4294967296");
    invalid(&format!("{context}.masked_paths[0]"), |c| c.security().masked_paths = strings(&["proc"]));
}

#[test]
fn profiles_that_would_not_be_enforced() {
    let seccomp = "linux.security_context.seccomp";
    unimplemented(seccomp, |c| c.security().seccomp = profile(ProfileType::RuntimeDefault));
    unimplemented(seccomp, |c| c.security().seccomp = profile(ProfileType::Localhost));
    unimplemented(seccomp, |c| c.security().seccomp_profile_path = "localhost/p.json".to_owned());
    unimplemented(seccomp, |c| c.sandbox_security().seccomp = profile(ProfileType::Localhost));
    invalid("linux.security_context.seccomp_profile_path", |c| c.security().seccomp_profile_path = "what".to_owned());

    let apparmor = "linux.security_context.apparmor";
    invalid(apparmor, |c| c.security().apparmor = profile(ProfileType::Localhost));
    invalid(apparmor, |c| c.security().apparmor_profile = "localhost/x".to_owned());
    invalid(apparmor, |c| c.sandbox_security().apparmor = profile(ProfileType::Localhost));
    unimplemented(apparmor, |c| {
        c.defaults.apparmor = true;
        c.security().apparmor = profile(ProfileType::RuntimeDefault);
    });
    let selinux = || Some(cri::SeLinuxOption { level: "s0:c1,c2".to_owned(), ..Default::default() });
    unimplemented("linux.security_context.selinux_options", |c| {
        c.defaults.selinux = true;
        c.security().selinux_options = selinux();
    });

    let mut case = Case::new();
    case.security().selinux_options = selinux();
    case.security().seccomp = profile(ProfileType::Unconfined);
    // The new field counts where both are set.
    case.security().seccomp_profile_path = "runtime/default".to_owned();
    case.security().apparmor = profile(ProfileType::RuntimeDefault);
    case.sandbox_security().seccomp = profile(ProfileType::RuntimeDefault);
    case.sandbox_plan().unwrap();
    case.spec().unwrap();
}

#[test]
fn devices_that_are_none() {
    let one = |host_path: &str, container_path: &str, permissions: &str| {
        let device = cri::Device {
            host_path: host_path.to_owned(),
            container_path: container_path.to_owned(),
            permissions: permissions.to_owned(),
        };
        move |c: &mut Case| c.config.devices = vec![device]
    };
    invalid("devices[0].host_path", one("fuse", "/dev/fuse", ""));
    invalid("devices[0].container_path", one("/dev/fuse", "/dev", ""));
    invalid("devices[0].permissions", one("/dev/fuse", "", "rx"));
    let e = error(one("/etc/passwd", "/dev/x", ""));
    assert!(e.to_string().starts_with("devices[0].host_path: look up device /etc/passwd: ENODEV"), "{e}");
    unimplemented("CDI_devices", |c| c.config.cdi_devices = vec![cri::CdiDevice { name: "v/c=d".to_owned() }]);
}

#[test]
fn limits_out_of_range() {
    let set = |field: &str, change: fn(&mut cri::LinuxContainerResources)| {
        invalid(&format!("linux.resources.{field}"), |c| change(c.resources()));
    };
    set("cpu_shares", |r| r.cpu_shares = -1);
    set("cpu_period", |r| r.cpu_period = 999);
    set("cpu_quota", |r| r.cpu_quota = 5);
    set("cpuset_cpus", |r| r.cpuset_cpus = "0-".to_owned());
    set("cpuset_mems", |r| r.cpuset_mems = "a\n".to_owned());
    set("memory_limit_in_bytes", |r| r.memory_limit_in_bytes = -2);
    set("memory_swap_limit_in_bytes", |r| {
        r.memory_limit_in_bytes = 2;
        r.memory_swap_limit_in_bytes = 1;
    });
    set("oom_score_adj", |r| r.oom_score_adj = 1001);
    let huge = |size: &str| cri::HugepageLimit { page_size: size.to_owned(), limit: 0 };
    for size in ["2", "MB", "0MB", "2MiB", "../2MB"] {
        invalid("linux.resources.hugepage_limits[0].page_size", |c| c.resources().hugepage_limits = vec![huge(size)]);
    }
    invalid("linux.resources.hugepage_limits[1].page_size", |c| {
        c.resources().hugepage_limits = vec![huge("2MB"), huge("2MB")];
    });
    for name in ["memory", "../memory.max", "cgroup.kill", "memory.max/x", "", ".", "memory..max"] {
        let field = format!("linux.resources.unified[{name:?}]");
        invalid(&field, |c| c.resources().unified = [(name.to_owned(), "1".to_owned())].into());
    }
}
