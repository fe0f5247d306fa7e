//! Requests nobody wrote: none panics, and whatever passes can be carried out.

use proptest::prelude::*;

use super::{Case, strings};
use crate::api::cri;
use crate::compile::compile;

/// Texts that are mostly right, with what breaks parsers mixed in.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("/dev/fuse".to_owned()),
        Just("/dev".to_owned()),
        "(/[a-z.]{0,3}){1,5}",
        "[a-z0-9:.=+-]{0,12}",
        ".{0,6}",
    ]
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), -2i64..4, Just(100_000), Just(-1), any::<i64>()]
}

fn mount() -> impl Strategy<Value = cri::Mount> {
    (text(), text(), -1i32..4, any::<bool>(), any::<bool>()).prop_map(
        |(host_path, container_path, propagation, readonly, recursive_read_only)| cri::Mount {
            host_path,
            container_path,
            propagation,
            readonly,
            recursive_read_only,
            ..Default::default()
        },
    )
}

fn resources() -> impl Strategy<Value = cri::LinuxContainerResources> {
    (proptest::array::uniform6(number()), text(), text(), any::<u64>()).prop_map(|(n, cpus, name, limit)| {
        cri::LinuxContainerResources {
            cpu_period: n[0],
            cpu_quota: n[1],
            cpu_shares: n[2],
            memory_limit_in_bytes: n[3],
            memory_swap_limit_in_bytes: n[4],
            oom_score_adj: n[5],
            cpuset_cpus: cpus,
            hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".to_owned(), limit }],
            unified: if name.is_empty() { Default::default() } else { [(name, "1".to_owned())].into() },
            ..Default::default()
        }
    })
}

proptest! {
    #[test]
    fn what_passes_compiles(
        command in proptest::collection::vec(text(), 0..3),
        (working_dir, log_path, hostname, cgroup_parent) in (text(), text(), text(), text()),
        env in proptest::collection::vec((text(), text()), 0..3),
        mounts in proptest::collection::vec(mount(), 0..4),
        device in proptest::option::of((text(), text(), "[rwmx]{0,3}")),
        hidden in proptest::collection::vec(text(), 0..2),
        (uid, gid, privileged) in (proptest::option::of(number()), proptest::option::of(number()), any::<bool>()),
        resources in proptest::option::of(resources()),
        (sysctl, value, stop_signal) in (text(), text(), -1i32..70),
    ) {
        let mut case = Case::new();
        case.entrypoint = strings(&["/entry"]);
        case.sandbox.hostname = hostname;
        case.sandbox_linux().cgroup_parent = cgroup_parent;
        case.sandbox_linux().sysctls = [(sysctl, value)].into();
        case.sandbox_security().privileged = privileged;
        case.config.command = command;
        case.config.working_dir = working_dir;
        case.config.log_path = log_path;
        case.config.stop_signal = stop_signal;
        case.config.envs = env.into_iter().map(|(key, value)| cri::KeyValue { key, value: value.into_bytes() }).collect();
        case.config.mounts = mounts;
        case.config.devices = device
            .map(|(host_path, container_path, permissions)| cri::Device { host_path, container_path, permissions })
            .into_iter()
            .collect();
        case.linux().resources = resources;
        let security = case.security();
        security.masked_paths = hidden;
        security.privileged = privileged;
        security.run_as_user = uid.map(|value| cri::Int64Value { value });
        security.run_as_group = gid.map(|value| cri::Int64Value { value });

        if let Ok(sandbox) = case.sandbox_plan() {
            prop_assert!(sandbox.hostname.len() <= 64);
            prop_assert!(!sandbox.cgroup_parent.contains("..") || !sandbox.cgroup_parent.split('/').any(|p| p == ".."));
        }
        match case.spec() {
            Ok((spec, extra)) => {
                let plan = compile(&spec, &extra).map_err(|e| TestCaseError::fail(e.to_string()))?;
                prop_assert!(plan.mounts.iter().all(|m| m.target.starts_with('/') && m.target != "/"));
                prop_assert!(!plan.process.unwrap().args[0].is_empty());
            }
            Err(e) => prop_assert!(!e.to_string().chars().any(char::is_control), "{e:?}"),
        }
    }
}
