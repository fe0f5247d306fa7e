//! On the real hierarchies of this host, as root, in cgroups of our own that are removed again.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// A cgroup below `/aril-test-<pid>-<name>`; everything below that is killed and removed at the end.
struct Bench {
    h: Hierarchies,
    top: String,
}

impl Bench {
    fn new(name: &str) -> Self {
        Self { h: Hierarchies::detect().unwrap(), top: format!("/aril-test-{}-{name}", std::process::id()) }
    }

    fn create(&self, below: &str) -> Cgroup {
        Cgroup::create(&self.h, &format!("{}{below}", self.top)).unwrap()
    }

    fn exists(&self, label: &str, below: &str) -> bool {
        let h = self.h.iter().find(|h| h.label() == label).unwrap();
        h.mount_point().join(&self.top[1..]).join(below).exists()
    }

    fn nothing_left(&self) {
        for h in self.h.iter() {
            let path = h.mount_point().join(&self.top[1..]);
            assert!(!path.exists(), "{} is left", path.display());
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        sweep(&self.h, &self.top).ok();
    }
}

/// A process born inside: its parent, a thread of ours that ends at once, entered by itself.
fn inside(cgroup: &Cgroup, program: &[&str]) -> Child {
    std::thread::scope(|scope| {
        let born = scope.spawn(|| {
            cgroup.entry().unwrap().enter().unwrap();
            let mut command = Command::new(program[0]);
            command.args(&program[1..]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        });
        let child = born.join().unwrap();
        if let Some(unified) = cgroup.hierarchies.unified() {
            file::write(cgroup.dir(unified).unwrap(), "cgroup.procs", &child.id().to_string()).unwrap();
        }
        child
    })
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn remove_soon(cgroup: &Cgroup) {
    eventually("the cgroup stays busy", || match cgroup.remove() {
        Ok(()) => true,
        Err(CgroupError::Busy { .. }) => false,
        Err(e) => panic!("{e}"),
    });
}

#[test]
fn made_everywhere_entered_killed_and_removed() {
    let bench = Bench::new("life");
    let cgroup = bench.create("/pod/ctr");
    for h in bench.h.iter() {
        assert!(bench.exists(h.label(), "pod/ctr"), "{}", h.label());
    }
    let mut child = inside(&cgroup, &["/bin/sleep", "1000"]);
    let pid = i32::try_from(child.id()).unwrap();
    let membership = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in membership.lines() {
        assert!(line.ends_with(cgroup.path()), "{line}");
    }
    assert_eq!(cgroup.pids().unwrap(), [pid]);
    assert!(matches!(cgroup.remove(), Err(CgroupError::Busy { .. })));
    cgroup.kill().unwrap();
    child.wait().unwrap();
    remove_soon(&cgroup);
    bench.nothing_left();
    // Once more is no error.
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert!(cgroup.pids().unwrap().is_empty());
}
