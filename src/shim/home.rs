//! The cgroup the shims of a machine share, away from the limits of their pods.
//!
//! Moving into a cgroup v2 can keep a process waiting for some milliseconds, so a shim moves when it has had nothing to
//! do for a moment. The last one to leave removes the cgroup.

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::poll::Timer;
use super::server::Server;
use crate::runtime::cgroup::{Cgroup, CgroupError, Hierarchies};

/// Without requests for this long, a moment's waiting goes unnoticed.
const QUIET: Duration = Duration::from_millis(200);
/// Others may remove the cgroup between its making and the entering.
const TRIES: u32 = 3;

/// Where a shim belongs.
#[derive(Debug, Default)]
pub struct Home {
    /// Empty: it stays where it was started.
    path: String,
    entered: bool,
    /// Of the last request.
    busy: Option<Instant>,
}

impl Home {
    /// A request has come.
    pub fn stay_awake(&mut self) {
        self.busy = Some(Instant::now());
    }
}

impl Server {
    /// Has the shim enter the cgroup of shims as soon as nobody waits for it.
    pub fn go_home(&mut self, path: &str) {
        path.clone_into(&mut self.home.path);
        if !path.is_empty() {
            self.timers.set(Timer::Home, QUIET);
        }
    }

    /// It may be quiet enough now.
    pub fn at_home(&mut self) {
        let quiet = self.home.busy.is_none_or(|busy| busy.elapsed() >= QUIET);
        if !quiet {
            return self.timers.set(Timer::Home, QUIET);
        }
        match enter(self.pod.hierarchies(), &self.home.path) {
            Ok(()) => self.home.entered = true,
            Err(e) => self.warn("", format!("the shim stays in the cgroup it was started in: {e}")),
        }
    }

    /// Leaves the cgroup of shims, and removes it if this was the last. For a shim that is about to end.
    pub fn leave_home(&self) {
        if !self.home.entered {
            return;
        }
        for hierarchy in self.pod.hierarchies().iter() {
            let file = if hierarchy.is_v2() { "cgroup.procs" } else { "tasks" };
            // What fails here keeps the cgroup until the next shim ends.
            fs::write(hierarchy.mount_point().join(file), "0").ok();
        }
        if let Ok(cgroup) = Cgroup::open(self.pod.hierarchies(), &self.home.path) {
            cgroup.remove().ok();
        }
    }
}

fn enter(hierarchies: &Hierarchies, path: &str) -> Result<(), CgroupError> {
    let mut tries = 0;
    loop {
        // Not in the pod's book of cgroups: others are in it.
        let entered = Cgroup::create(hierarchies, path)?.entry().and_then(|entry| {
            entry.enter_all().map_err(|e| CgroupError::Kernel {
                step: "enter cgroup",
                object: path.to_owned(),
                errno: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
                hint: "",
            })
        });
        tries += 1;
        match entered {
            Err(e) if e.errno() == Some(Errno::ENODEV) && tries < TRIES => {}
            done => return done,
        }
    }
}
