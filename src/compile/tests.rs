//! Bundles as other programs write them.

use serde_json::{Value, json};

use super::*;
use crate::plan::Propagation;
use crate::plan::mount::Kind;
use crate::plan::namespaces::Source;

/// A bundle's config that runs `true`, changed by a merge patch (RFC 7386).
fn spec(patch: Value) -> Spec {
    let mut config = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "/bundle/rootfs"},
        "process": {"args": ["true"], "cwd": "/", "user": {"uid": 1, "gid": 2, "umask": 63}},
        "linux": {"namespaces": [{"type": "mount"}], "cgroupsPath": "/c"},
    });
    merge(&mut config, patch);
    serde_json::from_value(config).unwrap()
}

fn merge(into: &mut Value, patch: Value) {
    match patch {
        Value::Object(fields) => {
            if !into.is_object() {
                *into = json!({});
            }
            for (name, value) in fields {
                if value.is_null() {
                    into.as_object_mut().unwrap().remove(&name);
                } else {
                    merge(&mut into[name], value);
                }
            }
        }
        other => *into = other,
    }
}

fn compiled(patch: Value) -> plan::Container {
    compile(&spec(patch), &Extra::default()).unwrap()
}

#[track_caller]
fn fails(patch: Value, field: &str) {
    let error = compile(&spec(patch), &Extra::default()).unwrap_err().to_string();
    assert!(error.starts_with(field), "{field}: {error}");
}

fn mount(options: &[&str]) -> Result<plan::Mount, CompileError> {
    let patch = json!({"mounts": [{"destination": "/m", "source": "/s", "type": "bind", "options": options}]});
    compile(&spec(patch), &Extra::default()).map(|c| c.mounts[0].clone())
}

#[test]
fn a_bundles_root_is_used_as_it_is() {
    let plan = compiled(json!({"root": {"readonly": true}}));
    let rootfs = plan.rootfs.unwrap();
    assert_eq!((rootfs.path.as_str(), rootfs.readonly), ("/bundle/rootfs", true));
    assert_eq!(plan.stop_signal, 15);
    fails(json!({"root": {"path": "rootfs"}}), "root.path");
    fails(json!({"root": null}), "root");
    fails(json!({"process": null}), "process");
    fails(json!({"linux": null}), "linux");
}

#[test]
fn words_become_bits() {
    let m = mount(&["rbind", "ro", "nosuid", "nodev", "noexec", "noatime", "nosymfollow", "rslave"]).unwrap();
    assert_eq!((m.kind(), m.recursive, m.attr_recursive), (Kind::Bind, true, false));
    assert_eq!((m.attr_set, m.attr_clear), (0x20_001f, 0x70));
    assert_eq!(m.propagation(), Propagation::Slave);
    let m = mount(&["bind", "rro", "rnoexec"]).unwrap();
    assert_eq!((m.recursive, m.attr_recursive, m.attr_set), (false, true, 9));
    // The last word counts.
    let m = mount(&["ro", "rw", "strictatime", "relatime"]).unwrap();
    assert_eq!((m.attr_set, m.attr_clear), (0, 0x71));
}

#[test]
fn words_a_bind_mount_does_not_know_are_refused() {
    for words in [&["bind", "mode=755"][..], &["size=1m"], &["rro", "nosuid"], &["tmpcopyup"], &["idmap"], &["remount"]]
    {
        let error = mount(words).unwrap_err().to_string();
        assert!(error.starts_with("mounts[0].options"), "{error}");
    }
}

#[test]
fn kinds_of_mounts() {
    let plan = compiled(json!({"mounts": [
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=1m", "nosuid"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup"},
        {"destination": "/x", "type": "none", "source": "/y", "options": ["rbind"]},
    ]}));
    let kinds: Vec<_> = plan.mounts.iter().map(|m| (m.target.as_str(), m.kind())).collect();
    assert_eq!(
        kinds,
        [("/dev", Kind::Dev), ("/dev/shm", Kind::Filesystem), ("/sys/fs/cgroup", Kind::Cgroup), ("/x", Kind::Bind)]
    );
    assert_eq!(plan.mounts[1].options, ["size=1m"]);
    assert!(!plan.mounts[3].create_source, "only what CRI calls a volume is made");
}

#[test]
fn a_devpts_without_our_dev_is_a_filesystem() {
    let plan = compiled(json!({"mounts": [{"destination": "/dev/pts", "type": "devpts", "options": ["newinstance"]}]}));
    assert_eq!(plan.mounts[0].kind(), Kind::Filesystem);
    assert_eq!(plan.mounts[0].options, ["newinstance"]);
}

#[test]
fn no_node_is_made_in_the_hosts_dev() {
    let device = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
    assert_eq!(compiled(json!({"linux": {"devices": device}})).devices.len(), 1);
    let mounts = json!([{"destination": "/dev", "source": "/dev", "options": ["rbind"]}]);
    assert!(compiled(json!({"linux": {"devices": device}, "mounts": mounts})).devices.is_empty());
}

#[test]
fn default_nodes_need_no_making() {
    let node = |path: &str, major, minor| json!({"path": path, "type": "c", "major": major, "minor": minor});
    let list = json!([node("/dev/null", 1, 3), node("/dev/ptmx", 5, 2), node("/dev/zero", 1, 3)]);
    let devices = compiled(json!({"linux": {"devices": list}})).devices;
    assert_eq!(devices.iter().map(|d| d.path.as_str()).collect::<Vec<_>>(), ["/dev/zero"]);
}

#[test]
fn mounts_that_cannot_be() {
    let one = |mount: Value| json!({"mounts": [mount]});
    fails(one(json!({"destination": "m", "type": "tmpfs"})), "mounts[0].destination");
    fails(one(json!({"destination": "/a/../../m", "type": "tmpfs"})), "mounts[0].destination");
    fails(one(json!({"destination": "/m"})), "mounts[0].type");
    fails(one(json!({"destination": "/m", "options": ["bind"]})), "mounts[0].source");
    fails(one(json!({"destination": "/m", "source": "s", "options": ["bind"]})), "mounts[0].source");
    let ids = json!([{"hostID": 0, "containerID": 0, "size": 1}]);
    fails(one(json!({"destination": "/m", "source": "/s", "uidMappings": ids, "gidMappings": ids})), "mounts[0].uid");
}

#[test]
fn namespaces_not_listed_are_shared() {
    let namespaces = json!([{"type": "mount"}, {"type": "pid"}, {"type": "network"}, {"type": "uts"}]);
    let plan = compiled(json!({"linux": {"namespaces": namespaces}, "hostname": "h"}));
    let got = plan.namespaces.unwrap();
    assert_eq!((got.pid(), got.net(), got.ipc(), got.uts()), (Source::New, Source::New, Source::Sandbox, Source::New));
    assert_eq!(plan.hostname, "h");
    fails(json!({"hostname": "h"}), "hostname");
    fails(json!({"linux": {"namespaces": []}}), "linux.namespaces");
    fails(json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "mount"}]}}), "linux.namespaces[1]");
    fails(json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "user"}]}}), "linux.namespaces[1]");
    fails(json!({"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}}), "linux.namespaces[0].path");
}

#[test]
fn sysctls_only_of_own_namespaces() {
    let own = json!([{"type": "mount"}, {"type": "network"}]);
    let sysctl = json!({"net.core.somaxconn": "5"});
    let plan = compiled(json!({"linux": {"namespaces": own, "sysctl": sysctl}}));
    assert_eq!(plan.sysctls[0].name, "net/core/somaxconn");
    fails(json!({"linux": {"sysctl": sysctl}}), "linux.sysctl[\"net.core.somaxconn\"]");
}

#[test]
fn what_no_plan_can_carry_is_refused_by_name() {
    for (patch, field) in [
        (json!({"hooks": {"prestart": [{"path": "/x"}]}}), "hooks"),
        (json!({"domainname": "d"}), "domainname"),
        (json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}}), "linux.seccomp"),
        (json!({"linux": {"uidMappings": [{"hostID": 0, "containerID": 0, "size": 1}]}}), "linux.uidMappings"),
        (json!({"linux": {"rootfsPropagation": "shared"}}), "linux.rootfsPropagation"),
        (json!({"linux": {"personality": {"domain": "LINUX"}}}), "linux.personality"),
        (json!({"linux": {"resources": {"blockIO": {"weight": 10}}}}), "linux.resources.blockIO"),
        (json!({"linux": {"resources": {"memory": {"swappiness": 1}}}}), "linux.resources.memory.swappiness"),
        (json!({"linux": {"resources": {"cpu": {"realtimeRuntime": 1}}}}), "linux.resources.cpu.realtimeRuntime"),
        (json!({"process": {"apparmorProfile": "p"}}), "process.apparmorProfile"),
        (json!({"process": {"selinuxLabel": "system_u:system_r:container_t:s0"}}), "process.selinuxLabel"),
        (json!({"process": {"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1}}}), "process.ioPriority"),
    ] {
        fails(patch, field);
    }
}

#[test]
fn a_process_is_taken_over_whole() {
    let plan = compiled(json!({"process": {
        "args": ["a", "b"], "env": ["A=1"], "cwd": "/w", "terminal": true, "consoleSize": {"height": 24, "width": 80},
        "noNewPrivileges": true, "oomScoreAdj": -7, "apparmorProfile": "unconfined",
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 6}],
        "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]},
    }}));
    let process = plan.process.unwrap();
    assert_eq!((process.args.len(), process.env.len(), process.cwd.as_str()), (2, 1, "/w"));
    assert_eq!((process.tty, process.tty_rows, process.tty_cols), (true, 24, 80));
    assert_eq!((process.no_new_privs, process.oom_score_adj, process.umask), (true, Some(-7), Some(0o77)));
    assert_eq!(process.rlimits, [plan::Rlimit { resource: 7, soft: 5, hard: 6 }]);
    assert_eq!(process.capabilities.unwrap().bounding, 0b10_0001);
    let user = process.user.unwrap();
    assert_eq!((user.uid, user.gid, user.merge_image_groups), (Some(1), Some(2), false));
}

#[test]
fn processes_that_cannot_be() {
    fails(json!({"process": {"args": []}}), "process.args");
    fails(json!({"process": {"args": ["a\0"]}}), "process.args[0]");
    fails(json!({"process": {"cwd": "w"}}), "process.cwd");
    fails(json!({"process": {"env": ["A"]}}), "process.env");
    fails(json!({"process": {"env": ["=A"]}}), "process.env");
    let limit = |soft, hard| json!({"type": "RLIMIT_CORE", "soft": soft, "hard": hard});
    fails(json!({"process": {"rlimits": [limit(2, 1)]}}), "process.rlimits[0]");
    fails(json!({"process": {"rlimits": [limit(1, 1), limit(1, 1)]}}), "process.rlimits[1]");
    fails(json!({"process": {"terminal": true, "consoleSize": {"height": 70000, "width": 1}}}), "process.consoleSize");
}

#[test]
fn device_rules_end_with_what_everybody_may_use() {
    let rules =
        |devices: Value| compiled(json!({"linux": {"resources": {"devices": devices}}})).cgroup.unwrap().devices;
    let list = rules(json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10}]));
    assert_eq!(list.len(), 13);
    assert_eq!((list[0].kind.as_str(), list[0].allow, list[0].major), ("a", false, -1));
    assert_eq!((list[1].major, list[1].minor, list[1].access.as_str()), (10, -1, "rwm"));
    assert_eq!(rules(json!([{"allow": true, "access": "rwm"}])).len(), 1);
    fails(json!({"linux": {"resources": {"devices": [{"allow": true, "access": "x"}]}}}), "linux.resources.devices[0]");
}

#[test]
fn a_request_beats_the_spec_where_the_spec_has_no_words() {
    let user = plan::User { spec: "app".to_owned(), ..Default::default() };
    let extra = Extra {
        user: Some(user.clone()),
        stop_signal: 10,
        pid: Pid::Container("x".to_owned()),
        sandbox_shm: true,
        volumes: vec![0],
        ..Default::default()
    };
    let mounts = json!([
        {"destination": "/v", "source": "/s", "options": ["rbind", "rshared"]},
        {"destination": "/dev/shm", "type": "tmpfs"},
    ]);
    let plan = compile(&spec(json!({"mounts": mounts})), &extra).unwrap();
    assert_eq!(plan.process.unwrap().user.unwrap(), user);
    assert_eq!(plan.stop_signal, 10);
    assert_eq!(plan.namespaces.as_ref().unwrap().pid(), Source::Target);
    assert!(plan.mounts[0].create_source && plan.mounts[0].need_peer);
    assert_eq!(plan.mounts[1].kind(), Kind::SandboxShm);
}

#[test]
fn equal_plans_have_equal_bytes() {
    use prost::Message;
    let annotations: serde_json::Map<_, _> = (0..50).map(|i| (format!("k{i}"), json!(i.to_string()))).collect();
    let patch = json!({"annotations": annotations, "linux": {"resources": {"unified": {"b.x": "1", "a.x": "2"}}}});
    assert_eq!(compiled(patch.clone()).encode_to_vec(), compiled(patch).encode_to_vec());
}
