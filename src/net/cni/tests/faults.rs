//! Plugins that fail, hang, die, lie, or do not stop talking.

use std::time::{Duration, Instant};

use super::super::Deadlines;
use super::super::error::Failure;
use super::super::exec::Run;
use super::kit::{Kit, RESULT, good, request};
use crate::net::NetError;

fn shell(script: &str, limit: Duration) -> Result<super::super::exec::Ended, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plugin");
    std::fs::write(dir.path().join(".plugin"), format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(dir.path().join(".plugin"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(dir.path().join(".plugin"), &path).unwrap();
    let path_variable = ("PATH", std::env::var("PATH").unwrap());
    Run { program: &path, environment: &[path_variable], input: b"input", limit }.wait()
}

const LONG: Duration = Duration::from_secs(20);

/// Whether a process with this pid is still there, and is no zombie.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

fn assert_gone(pid: &str) {
    let start = Instant::now();
    while is_running(pid) {
        assert!(start.elapsed() < Duration::from_secs(5), "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn input_output_and_log_go_through() {
    let ended = shell("cat; echo log >&2; exit 3", LONG).unwrap();
    assert_eq!(
        (ended.output.as_slice(), ended.log.as_slice(), ended.status.code()),
        (&b"input"[..], &b"log\n"[..], Some(3))
    );
    let ended = shell("head -c 1048576 /dev/zero; head -c 1048576 /dev/zero >&2", LONG).unwrap();
    assert_eq!((ended.output.len(), ended.log.len()), (1 << 20, 64 << 10));
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let start = Instant::now();
    let script = format!("sleep 1000 & echo $! > {0}; sleep 1000 & echo $! >> {0}; wait", pids.display());
    let failure = shell(&script, Duration::from_millis(600)).unwrap_err();
    assert_eq!(failure, Failure::Deadline(Duration::from_millis(600)));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let pids = std::fs::read_to_string(pids).unwrap();
    assert_eq!(pids.lines().count(), 2);
    pids.lines().for_each(assert_gone);
}

#[test]
fn a_child_that_keeps_the_output_is_not_waited_for() {
    let start = Instant::now();
    let ended = shell("echo answer; sleep 1000 & echo $! >&2", LONG).unwrap();
    assert_eq!(ended.output, b"answer\n");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_gone(std::str::from_utf8(&ended.log).unwrap());
    // One with a session of its own is a daemon, and stays; it does not hold us up either.
    let start = Instant::now();
    let ended = shell("setsid sleep 1000 & sleep 0.2; echo $!; echo answer", LONG).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    let text = String::from_utf8(ended.output).unwrap();
    let daemon = text.lines().next().unwrap();
    assert!(is_running(daemon), "{text}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.parse().unwrap()), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
}

#[test]
fn endless_output_is_stopped() {
    for (script, what) in [("cat /dev/zero", "its output"), ("cat /dev/zero >&2", "its log")] {
        let start = Instant::now();
        let Err(Failure::Broken(reason)) = shell(script, LONG) else { panic!("{script} ended") };
        assert!(reason.starts_with("killed") && reason.contains(what), "{reason}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn no_zombies_and_no_descriptors_remain() {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let of_ours = || {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        children.split_whitespace().count()
    };
    let mut most = 0;
    for round in 0..20 {
        drop(shell("exit 1", LONG));
        drop(shell("sleep 100", Duration::from_millis(20)));
        assert_eq!(of_ours(), 0);
        // Other tests open files meanwhile; what leaks here grows with each round.
        if round == 0 {
            most = count() + 60;
        }
    }
    assert!(count() < most, "{} descriptors", count());
}

/// The error of an ADD by one plugin that does this.
fn add_fails(script: &str) -> String {
    let kit = Kit::new(&[("bad", script)]);
    let error = kit.setup(&request(1)).unwrap_err().to_string();
    let prefix = "CNI plugin bad of network pods, ADD: ";
    assert!(!error.contains('\n') && error.len() < 700, "{error}");
    assert!(error.starts_with(prefix), "{error}");
    error[prefix.len()..].to_owned()
}

#[test]
fn what_a_plugin_says_becomes_one_sentence() {
    assert_eq!(
        add_fails(r#"printf %s '{"code":11,"msg":"no address","details":"pool\nis\tfull"}'; exit 1"#),
        "no address: pool is full (code 11: try again later)"
    );
    assert_eq!(add_fails(r#"echo '{"code":999,"msg":"x","details":"x"}'; exit 1"#), "x (code 999)");
    assert_eq!(add_fails(r#"echo '{"code":5}' >&2; exit 2"#), "no reason given (code 5)");
    assert_eq!(add_fails("echo sorry >&2; exit 4"), "failed with exit code 4 and said \"sorry\"");
    assert_eq!(add_fails("exit 1"), "failed with exit code 1 and said nothing");
    assert_eq!(add_fails("kill -SEGV $$"), "was ended by SIGSEGV and said nothing");
    let long = add_fails("head -c 100000 /dev/urandom; exit 1");
    assert!(long.chars().count() < 300, "{long}");
}

#[test]
fn an_answer_that_is_no_result_is_quoted() {
    assert!(add_fails("echo hello; exit 0").contains("answered with no result"));
    assert!(add_fails("exit 0").ends_with("but nothing"));
    assert!(add_fails("echo '[]'").contains("no object"));
    assert!(add_fails("printf '\\377'").contains("not UTF-8"));
    assert!(add_fails("echo '{}'").contains("no address for eth0"));
}

#[test]
fn lies_about_addresses_are_found() {
    for (from, to, words) in [
        ("10.0.0.5/24", "10.0.0.5", "no address with its length"),
        ("10.0.0.5/24", "10.0.0.5/33", "no address with its length"),
        ("10.0.0.5/24", "127.0.0.1/8", "cannot be a pod's address"),
        ("10.0.0.5/24", "0.0.0.0/0", "cannot be a pod's address"),
        ("10.0.0.5/24", "ff02::1/64", "cannot be a pod's address"),
        ("\"interface\":1", "\"interface\":7", "interface 7, which is not listed"),
        ("\"interface\":1", "\"interface\":-1", "its result"),
        ("\"interface\":1", "\"interface\":0", "no address for eth0"),
        ("02:00:00:00:00:01", "rm -rf", "no hardware address"),
        ("10.0.0.1", "gateway", "no address"),
        ("0.0.0.0/0", "all", "no network"),
        ("\"1.0.0\"", "\"0.2.0\"", "cniVersion \"0.2.0\""),
        ("\"dns\":{}", "\"dns\":{\"search\":[\"a b\"]}", "no domain"),
    ] {
        let error = add_fails(&format!("echo '{}'", RESULT.replace(from, to)));
        assert!(error.contains(words), "{to}: {error}");
    }
}

#[test]
fn a_plugin_that_is_not_there_is_named_with_the_places_searched() {
    let kit = Kit::new(&[("good", &good())]);
    kit.configure(r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"good"},{"type":"cilium-cni"}]}"#);
    let error = kit.setup(&request(1)).unwrap_err().to_string();
    let bin = kit.path("bin").display().to_string();
    assert!(error.contains("CNI plugin cilium-cni of network pods, ADD: no program of that name in"), "{error}");
    assert!(error.contains(&bin) && error.contains("installer"), "{error}");
    assert_eq!(kit.calls(), ["good ADD"]);
    let left = kit.teardown(&request(1));
    assert!(left.len() == 1 && left[0].what.contains("cilium-cni"), "{left:?}");
    assert_eq!(kit.calls(), ["good DEL"], "the others are deleted all the same");
    kit.plugin("cilium-cni", &good());
    assert_eq!(kit.teardown(&request(1)), []);
}

#[test]
fn an_add_that_fails_half_way_is_undone_with_what_was_done() {
    let kit = Kit::new(&[("one", &good()), ("two", "[ $CNI_COMMAND = ADD ] && exit 1; exit 0"), ("three", &good())]);
    kit.setup(&request(1)).unwrap_err();
    assert_eq!(kit.calls(), ["one ADD", "two ADD"]);
    assert!(kit.check(&request(1)).is_ok(), "there is nothing whole to be checked");
    assert_eq!(kit.teardown(&request(1)), []);
    assert_eq!(kit.calls(), ["three DEL", "two DEL", "one DEL"]);
    assert_eq!(kit.json("two.DEL")["prevResult"]["ips"][0]["address"], "10.0.0.5/24");
}

#[test]
fn del_goes_on_past_failures_until_all_is_gone() {
    let twice = format!(
        "[ $CNI_COMMAND = DEL ] && {{ echo x >> $dir/dels; [ $(wc -l < $dir/dels) -gt 2 ] || {{ echo '{{\"code\":100,\"msg\":\"busy\"}}'; exit 1; }}; exit 0; }}; {}",
        good()
    );
    let mut kit = Kit::new(&[("one", &good()), ("two", &twice)]);
    kit.setup(&request(1)).unwrap();
    kit.calls();
    for _ in 0..2 {
        let left = kit.teardown(&request(1));
        assert_eq!(left.len(), 1);
        assert_eq!(
            (left[0].what.as_str(), left[0].reason.as_str()),
            ("CNI DEL by two of network pods", "busy (code 100)")
        );
        assert_eq!(kit.calls(), ["two DEL", "one DEL"]);
        kit.reopen();
        assert_eq!(kit.driver_known(), [request(1).id]);
    }
    assert_eq!(kit.teardown(&request(1)), []);
    assert_eq!(kit.driver_known(), []);
    // "The container is unknown" is as good as done.
    let kit = Kit::new(&[("one", &format!("[ $CNI_COMMAND = DEL ] && echo '{{\"code\":3}}' && exit 1; {}", good()))]);
    kit.setup(&request(1)).unwrap();
    assert_eq!(kit.teardown(&request(1)), []);
}

#[test]
fn a_hung_plugin_costs_its_deadline_and_names_itself() {
    let hangs = format!("[ $CNI_COMMAND = ADD ] && sleep 1000; {}", good());
    let kit = Kit::hasty(&[("slow", &hangs)]);
    let start = Instant::now();
    let error = kit.setup(&request(1)).unwrap_err();
    assert!(matches!(error, NetError::Deadline { .. }), "{error}");
    assert!(error.to_string().starts_with("CNI plugin slow of network pods, ADD: no answer within"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(4));
    assert_eq!(kit.teardown(&request(1)), []);
}

#[test]
fn a_hung_status_is_asked_for_by_one_caller() {
    let hangs = "[ $CNI_COMMAND = STATUS ] && sleep 1000; exit 0";
    let kit = Kit::hasty_with("1.1.0", &[("slow", hangs)]);
    let driver = &kit.driver;
    std::thread::scope(|scope| {
        use crate::net::Driver;
        let first = scope.spawn(|| driver.status().unwrap_err().to_string());
        std::thread::sleep(Duration::from_millis(250));
        let start = Instant::now();
        let others = driver.status().unwrap_err().to_string();
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
        assert!(others.contains("have not answered yet"), "{others}");
        assert!(first.join().unwrap().contains("STATUS: no answer within"));
        assert!(driver.status().unwrap_err().to_string().contains("no answer within"));
    });
}

#[test]
fn a_plugin_of_a_former_daemon_does_not_finish_its_work() {
    let slow = format!("[ $CNI_COMMAND = ADD ] && {{ touch $dir/begun; sleep 2; touch $dir/late; }}; {}", good());
    let mut kit = Kit::new(&[("slow", &slow)]);
    let other = Kit::new(&[("slow", &slow)]);
    std::thread::scope(|scope| {
        let (dead, living) = (scope.spawn(|| kit.setup(&request(1))), scope.spawn(|| other.setup(&request(1))));
        while !(kit.path("begun").exists() && other.path("begun").exists()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(kit.another());
        assert!(dead.join().unwrap().unwrap_err().to_string().contains("SIGKILL"));
        living.join().unwrap().unwrap();
    });
    assert!(other.path("late").exists() && !kit.path("late").exists(), "nor do its children");
    kit.reopen();
    assert_eq!(kit.teardown(&request(1)), []);
}

#[test]
fn a_hung_gc_costs_its_deadline_once() {
    use crate::net::Driver;
    let hangs = "[ $CNI_COMMAND = GC ] && sleep 1000; exit 0";
    let kit = Kit::hasty_with("1.1.0", &[("slow", hangs), ("next", hangs)]);
    let left = kit.driver.reconcile(&[]);
    assert!(left.len() == 1 && left[0].reason.contains("no answer within"), "{left:?}");
    assert_eq!(kit.calls(), ["slow GC"]);
    assert_eq!(kit.driver.reconcile(&[]), []);
    assert_eq!(kit.calls(), Vec::<String>::new());
}

#[test]
fn deadlines_fit_into_kubelets() {
    let all = Deadlines::default();
    // Four minutes for RunPodSandbox, two for StopPodSandbox, which may wait for a reconciliation before.
    assert!(all.total < Duration::from_secs(240) && all.total + all.total_of_others < Duration::from_secs(120));
    assert!(all.add <= all.total && all.del <= all.total && all.gc <= all.total_of_others);
}

#[test]
fn a_program_everybody_can_write_is_not_run() {
    let kit = Kit::new(&[("one", &good())]);
    std::fs::set_permissions(kit.path("bin/one"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let error = kit.setup(&request(1)).unwrap_err().to_string();
    assert!(error.contains("can be written by everybody"), "{error}");
    assert_eq!(kit.calls(), Vec::<String>::new());
}

#[test]
fn plugins_that_all_hang_cost_no_more_than_their_time_together() {
    let hangs = format!("[ $CNI_COMMAND = DEL ] && [ ! -e $dir/well ] && sleep 1000; {}", good());
    let total = Duration::from_millis(1500);
    let kit = Kit::limited(total, &[("one", &hangs), ("two", &hangs), ("three", &good()), ("four", &hangs)]);
    kit.setup(&request(1)).unwrap();
    kit.calls();
    let start = Instant::now();
    let left = kit.teardown(&request(1));
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    let what: Vec<&str> = left.iter().map(|left| left.what.as_str()).collect();
    let of = |kind: &str| format!("CNI DEL by {kind} of network pods");
    assert_eq!(what, [of("four"), of("three"), of("two"), of("one")], "what was not tried is left, too");
    let reason = "no answer within the 1.5 s that all plugins of the network have together";
    assert!(left.iter().all(|left| left.reason == reason), "{left:?}");
    assert_eq!(kit.calls(), ["four DEL"]);
    std::fs::write(kit.path("well"), b"").unwrap();
    assert_eq!(kit.teardown(&request(1)), []);
    assert_eq!(kit.calls(), ["four DEL", "three DEL", "two DEL", "one DEL"]);
}

#[test]
fn an_add_whose_time_is_up_names_plugin_and_step() {
    let slow = format!("[ $CNI_COMMAND = ADD ] && sleep 1000; {}", good());
    let kit = Kit::limited(Duration::from_millis(1500), &[("one", &good()), ("two", &slow), ("three", &good())]);
    let start = Instant::now();
    let error = kit.setup(&request(1)).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(matches!(error, NetError::Late { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("CNI plugin two of network pods, ADD: no answer within the 1.5 s"), "{text}");
    assert_eq!(kit.teardown(&request(1)), []);
}

#[test]
fn a_plugin_that_did_not_tell_its_versions_is_asked_again() {
    use super::super::plugin::{Budget, Plugins};
    use super::super::version::Version;
    let kit = Kit::new(&[("one", "[ -e $dir/well ] || exit 1; echo '{\"supportedVersions\":[\"1.0.0\"]}'")]);
    let mut plugins = Plugins::new(vec![kit.path("bin")], kit.path("books"), Deadlines::default());
    plugins.silence = Duration::from_millis(300);
    let ask = || plugins.versions("one", Budget::new(LONG)).unwrap();
    assert_eq!((ask(), ask()), (None, None));
    assert_eq!(kit.calls().len(), 1, "not at once: it may have hung");
    std::fs::write(kit.path("well"), b"").unwrap();
    std::thread::sleep(Duration::from_millis(350));
    assert_eq!(ask(), Some(vec![Version::V1_0_0]));
    std::thread::sleep(Duration::from_millis(350));
    assert_eq!((ask(), kit.calls().len()), (Some(vec![Version::V1_0_0]), 1));
}
