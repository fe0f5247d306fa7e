//! Who a container's process is and what it may do.

use aril::api::cri::security_profile::ProfileType;
use aril::api::cri::{
    Capability, Int64Value, LinuxContainerSecurityContext, SecurityProfile, SupplementalGroupsPolicy,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{ContainerBuilder, TestNode, read_proc, refused};

fn user(id: i64) -> Option<Int64Value> {
    Some(Int64Value { value: id })
}

fn id_words(report: &Value) -> (&Value, &Value, &Value) {
    (&report["uids"], &report["gids"], &report["groups"])
}

fn four(id: &str) -> Value {
    json!([id, id, id, id])
}

fn capabilities(add: &[&str], drop: &[&str]) -> impl FnOnce(&mut LinuxContainerSecurityContext) {
    let owned = |list: &[&str]| list.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
    let capability =
        Capability { add_capabilities: owned(add), drop_capabilities: owned(drop), ..Capability::default() };
    move |s| s.capabilities = Some(capability)
}

fn mask(report: &Value, name: &str) -> u64 {
    u64::from_str_radix(report[name].as_str().unwrap(), 16).unwrap()
}

#[test]
fn by_default_the_user_is_root_with_few_capabilities() {
    let node = TestNode::start();
    let report = node.run_pod("default").container(["x"]).report();
    assert_eq!(id_words(&report), (&four("0"), &four("0"), &json!(["0"])));
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW,
    // SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
    assert_eq!(mask(&report, "cap_effective"), 0xa804_25fb);
    assert_eq!(mask(&report, "cap_bounding"), 0xa804_25fb);
    assert_eq!((mask(&report, "cap_inheritable"), mask(&report, "cap_ambient")), (0, 0));
    assert_eq!(report["no_new_privs"], "0");
    node.finish();
}

#[test]
fn a_user_by_number_has_the_group_of_its_passwd_entry() {
    let node = TestNode::start();
    let pod = node.run_pod("user");
    let known = pod.container(["x"]).security(|s| s.run_as_user = user(1000)).report();
    assert_eq!((&known["uids"], &known["gids"]), (&four("1000"), &four("1000")));
    let unknown = pod.container(["x"]).security(|s| s.run_as_user = user(4242)).report();
    assert_eq!((&unknown["uids"], &unknown["gids"]), (&four("4242"), &four("0")));
    let group = pod.container(["x"]).security(|s| (s.run_as_user, s.run_as_group) = (user(4242), user(77))).report();
    assert_eq!((&group["uids"], &group["gids"]), (&four("4242"), &four("77")));
    // Not root: its capabilities are a bound, and not in effect.
    assert_eq!((mask(&known, "cap_effective"), mask(&known, "cap_permitted")), (0, 0));
    assert_eq!(mask(&known, "cap_bounding"), 0xa804_25fb);
    node.finish();
}

#[test]
fn a_user_by_name_is_looked_up_in_the_image() {
    let node = TestNode::start();
    let pod = node.run_pod("name");
    let report = pod.container(["x"]).security(|s| s.run_as_username = "worker".to_owned()).report();
    assert_eq!(report["uids"], four("1001"));
    assert!(report["environment"].to_string().contains("HOME=/home/worker"));
    let unknown = pod.container(["x"]).security(|s| s.run_as_username = "nosuchuser".to_owned());
    refused(unknown.try_run(), Code::InvalidArgument, &["nosuchuser"]);
    assert_eq!(node.container_ids().len(), 1);
    node.finish();
}

#[test]
fn the_images_user_is_the_default() {
    let node = TestNode::start();
    let pod = node.run_pod("image");
    for (name, uid, gid) in
        [("user-uid", 1002, 0), ("user-name", 33, 33), ("user-uid-gid", 1003, 1004), ("user-name-group", 33, 100)]
    {
        let image = node.import(name);
        let container = pod.container(["sleep", "100000"]).image(&image).run();
        assert_eq!(container.sh("id -u; id -g"), format!("{uid}\n{gid}"), "{name}");
        let shown = container.status().user.unwrap().linux.unwrap();
        assert_eq!((shown.uid, shown.gid), (uid, gid), "{name}");
    }
    for name in ["user-unknown", "user-too-large"] {
        let image = node.import(name);
        assert!(pod.container(["true"]).image(&image).try_run().is_err(), "{name}");
    }
    assert_eq!(node.container_ids().len(), 4);
    node.finish();
}

#[test]
fn supplemental_groups_are_merged_or_strict() {
    let node = TestNode::start();
    let pod = node.run_pod("groups");
    let with = |policy: SupplementalGroupsPolicy| -> (String, Vec<i64>) {
        let container = pod.container(["sleep", "100000"]).security(|s| {
            s.run_as_user = user(1000);
            s.supplemental_groups = vec![1234];
            s.supplemental_groups_policy = policy.into();
        });
        let container = container.run();
        (container.sh("id -G"), container.status().user.unwrap().linux.unwrap().supplemental_groups)
    };
    let (seen, mut told) = with(SupplementalGroupsPolicy::Merge);
    told.sort_unstable();
    assert_eq!((seen.as_str(), told), ("1000 1234 50000", vec![1000, 1234, 50000]));
    let (seen, mut told) = with(SupplementalGroupsPolicy::Strict);
    told.sort_unstable();
    assert_eq!((seen.as_str(), told), ("1000 1234", vec![1000, 1234]));
    node.finish();
}

#[test]
fn bad_users_are_refused() {
    let node = TestNode::start();
    let pod = node.run_pod("bad");
    let with = |change: &dyn Fn(&mut LinuxContainerSecurityContext)| -> ContainerBuilder<'_> {
        pod.container(["true"]).security(change)
    };
    refused(with(&|s| s.run_as_group = user(5)).try_create(), Code::InvalidArgument, &["run_as_group"]);
    refused(with(&|s| s.run_as_user = user(-1)).try_create(), Code::InvalidArgument, &["run_as_user"]);
    refused(with(&|s| s.run_as_user = user(1 << 32)).try_create(), Code::InvalidArgument, &["run_as_user"]);
    refused(with(&|s| s.supplemental_groups = vec![-5]).try_create(), Code::InvalidArgument, &["supplemental_groups"]);
    refused(
        with(&|s| (s.run_as_user, s.run_as_username) = (user(1), "root".to_owned())).try_create(),
        Code::InvalidArgument,
        &["run_as_user"],
    );
    refused(
        with(&|s| s.run_as_username = "a\nb:c".to_owned()).try_create(),
        Code::InvalidArgument,
        &["run_as_username"],
    );
    node.finish();
}

#[test]
fn capabilities_are_added_and_dropped() {
    let node = TestNode::start();
    let pod = node.run_pod("capabilities");
    let effective = |add: &[&str], drop: &[&str]| {
        mask(&pod.container(["x"]).security(capabilities(add, drop)).report(), "cap_effective")
    };
    let (net_admin, net_raw) = (1 << 12, 1 << 13);
    assert_eq!(effective(&["NET_ADMIN"], &[]), 0xa804_25fb | net_admin);
    assert_eq!(effective(&["CAP_NET_ADMIN"], &["cap_net_raw"]), (0xa804_25fb | net_admin) & !net_raw);
    assert_eq!(effective(&[], &["ALL"]), 0);
    assert_eq!(effective(&["NET_ADMIN"], &["ALL"]), net_admin);
    let all = effective(&["ALL"], &[]);
    assert_eq!(effective(&["ALL"], &["NET_RAW"]), all & !net_raw);
    assert!(all.count_ones() > 30);
    let wrong = pod.container(["true"]).security(capabilities(&["NO_SUCH"], &[]));
    refused(wrong.try_create(), Code::InvalidArgument, &["NO_SUCH"]);
    node.finish();
}

#[test]
fn ambient_capabilities_reach_a_plain_user() {
    let node = TestNode::start();
    let report = node
        .run_pod("ambient")
        .container(["x"])
        .security(|s| {
            s.run_as_user = user(1000);
            s.capabilities = Some(Capability {
                add_ambient_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
                ..Capability::default()
            });
        })
        .report();
    assert_eq!(mask(&report, "cap_ambient"), 1 << 10);
    assert_eq!(mask(&report, "cap_effective"), 1 << 10);
    node.finish();
}

#[test]
fn no_new_privs_disarms_setuid_programs() {
    let node = TestNode::start();
    let (image, pod) = (node.import("nonewprivs"), node.run_pod("nnp"));
    let run = |no_new_privs: bool| {
        let container =
            pod.container([]).image(&image).security(|s| (s.no_new_privs, s.run_as_user) = (no_new_privs, user(1000)));
        let container = container.run();
        container.wait_exited();
        container.log()
    };
    assert_eq!(run(true), "Effective uid: 1000\n");
    assert_eq!(run(false), "Effective uid: 0\n");
    node.finish();
}

#[test]
fn a_read_only_root_keeps_its_mounts_writable() {
    let node = TestNode::start();
    let container = node.run_pod("ro").container(["sleep", "100000"]).mount(&node.path("data"), "/data");
    let container = container.security(|s| s.readonly_rootfs = true).run();
    for path in ["/file", "/etc/file", "/made/up"] {
        assert_ne!(container.exec(["touch", path]).code, 0, "{path}");
    }
    container.sh("touch /data/file /dev/shm/file");
    node.finish();
}

#[test]
fn masked_paths_are_hidden_and_read_only_ones_kept() {
    let node = TestNode::start();
    let container = node.run_pod("paths").container(["sleep", "100000"]).security(|s| {
        s.masked_paths = ["/bin/ls", "/srv", "/proc/keys", "/not/there"].map(str::to_owned).to_vec();
        s.readonly_paths = ["/tmp", "/proc/sys", "/nor/this"].map(str::to_owned).to_vec();
    });
    let container = container.run();
    assert_eq!(container.sh("cat /bin/ls /proc/keys; find /srv -type f"), "");
    assert_ne!(container.exec(["touch", "/srv/file"]).code, 0);
    let output = container.exec(["touch", "/tmp/file"]);
    assert!(output.stderr.contains("Read-only file system"), "{output:?}");
    assert_ne!(container.exec(["umount", "/srv"]).code, 0);
    node.finish();
}

#[test]
fn a_privileged_container_has_it_all() {
    let node = TestNode::start();
    let pod = node.pod("privileged").linux(|l| l.security_context.as_mut().unwrap().privileged = true).run();
    let container = pod.container(["sleep", "100000"]).security(|s| s.privileged = true).run();
    container.sh("ip link add bridge7 type bridge && ip link del bridge7");
    container.sh("mkdir /m && mount -t tmpfs m /m && umount /m");
    container.sh("touch /sys/fs/cgroup/../cgroup >/dev/null");
    assert!(container.sh("ls /dev").lines().count() > 20);
    let daemon = read_proc(node.daemon_pid(), "status");
    let all = daemon.lines().find_map(|l| l.strip_prefix("CapEff:\t")).unwrap();
    assert_eq!(container.report()["cap_effective"], all);
    let plain = node.run_pod("plain").container(["true"]).security(|s| s.privileged = true);
    refused(plain.try_create(), Code::InvalidArgument, &["privileged"]);
    node.finish();
}

#[test]
fn devices_are_made_and_allowed_as_asked() {
    let node = TestNode::start();
    let pod = node.run_pod("devices");
    let container = pod
        .container(["sleep", "100000"])
        .device("/dev/null", "/dev/mine", "rwm")
        .device("/dev/kmsg", "/dev/kmsg", "r")
        .run();
    assert_eq!(container.sh("stat -c %t:%T /dev/mine && echo x > /dev/mine"), "1:3");
    assert_eq!(container.sh("stat -c %F /dev/kmsg"), "character special file");
    // One that was not asked for may be made, since MKNOD is a default, but not opened.
    let output = container.exec(["sh", "-c", "mknod /tmp/vda b 254 0; cat /tmp/vda"]);
    assert!(output.code != 0 && output.stderr.contains("Operation not permitted"), "{output:?}");
    let missing = pod.container(["true"]).device("/dev/no-such-device", "/dev/x", "rwm");
    let error = missing.try_create().err().expect("refused");
    assert!(error.message().contains("/dev/no-such-device"), "{}", error.message());
    refused(
        pod.container(["true"]).device("/dev/null", "/dev/x", "xyz").try_create(),
        Code::InvalidArgument,
        &["permissions"],
    );
    node.finish();
}

#[test]
fn oom_score_adj_is_set() {
    let node = TestNode::start();
    let container = node.run_pod("oom").container(["sleep", "100000"]).resources(|r| r.oom_score_adj = 987).run();
    assert_eq!(container.sh("cat /proc/1/oom_score_adj; cat /proc/self/oom_score_adj"), "987\n987");
    node.finish();
}

#[test]
fn seccomp_is_off_when_nothing_or_unconfined_is_asked() {
    let node = TestNode::start();
    let pod = node.run_pod("seccomp");
    let unconfined = SecurityProfile { profile_type: ProfileType::Unconfined.into(), ..SecurityProfile::default() };
    for profile in [None, Some(unconfined)] {
        assert_eq!(pod.container(["x"]).security(|s| s.seccomp = profile).report()["seccomp"], "0");
    }
    let localhost =
        SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref: "/none.json".to_owned() };
    assert!(pod.container(["true"]).security(|s| s.seccomp = Some(localhost)).try_create().is_err());
    node.finish();
}

#[test]
fn an_exec_has_the_credentials_of_its_container() {
    let node = TestNode::start();
    let container = node.run_pod("exec").container(["sleep", "100000"]).env("FROM", "container");
    let container = container.security(|s| {
        (s.run_as_user, s.no_new_privs) = (user(1000), true);
        s.supplemental_groups = vec![1234];
    });
    let container = container.with(|c| c.working_dir = "/tmp".to_owned()).run();
    let report = container.report();
    assert_eq!(id_words(&report), (&four("1000"), &four("1000"), &json!(["1000", "1234", "50000"])));
    assert_eq!((mask(&report, "cap_effective"), mask(&report, "cap_bounding")), (0, 0xa804_25fb));
    assert_eq!((&report["no_new_privs"], &report["cwd"]), (&json!("1"), &json!("/tmp")));
    assert!(report["environment"].to_string().contains("FROM=container"));
    node.finish();
}
