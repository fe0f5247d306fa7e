//! The two state machines: a sandbox's and a container's.
//!
//! Pure: no clock, no lock, no I/O. The pod's task applies an event, persists the result, acts
//! and publishes. Every event may come twice (a shim replays what it reported while nobody
//! listened), so a replay changes nothing, and what is terminal stays.

use serde::{Deserialize, Serialize};

/// Nanoseconds since the epoch, as CRI counts.
pub type Nanos = i64;

/// An event that does not fit the state it met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {state} {object} cannot take the event {event:?}")]
pub struct Refused {
    /// "sandbox" or "container".
    pub object: &'static str,
    /// Name of the state.
    pub state: &'static str,
    /// Name of the event.
    pub event: &'static str,
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum SandboxState {
    /// The intent is on disk; whatever was made meanwhile is undone after a crash.
    Creating,
    /// Its shim holds its namespaces; containers may be made.
    Ready,
    /// Its processes are being killed; no way back.
    Stopping,
    /// Nothing of it runs any more; the statuses of its containers stay.
    NotReady {
        /// When it ended.
        since: Nanos,
        /// Why, if nobody asked for it; else empty.
        message: String,
    },
    /// Its files are being removed.
    Removing,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxEvent {
    /// The shim has made the namespaces.
    SetUp,
    /// Somebody wants it stopped.
    StopRequested,
    /// All its processes are gone and so is the shim.
    Stopped {
        /// When.
        at: Nanos,
    },
    /// The shim died, or a reboot ended it.
    Lost {
        /// When this was found.
        at: Nanos,
        /// What was found.
        message: String,
    },
    /// Somebody wants it removed, or its creation failed.
    RemoveRequested,
}

impl SandboxState {
    /// The state after `event`.
    ///
    /// # Errors
    /// [`Refused`] if the event cannot happen in this state; the state is then as before.
    pub fn apply(&self, event: &SandboxEvent) -> Result<Self, Refused> {
        use {SandboxEvent as E, SandboxState as S};
        match (self, event) {
            (S::Creating | S::Ready, E::SetUp) => Ok(S::Ready),
            (S::Creating | S::Ready | S::Stopping, E::StopRequested) => Ok(S::Stopping),
            (S::Creating | S::Ready | S::Stopping, E::Stopped { at }) => {
                Ok(S::NotReady { since: *at, message: String::new() })
            }
            (S::Creating | S::Ready, E::Lost { at, message }) => {
                Ok(S::NotReady { since: *at, message: message.clone() })
            }
            // It was on its way out: the loss is what was wanted.
            (S::Stopping, E::Lost { at, .. }) => Ok(S::NotReady { since: *at, message: String::new() }),
            (S::NotReady { .. }, E::StopRequested | E::Stopped { .. } | E::Lost { .. }) => Ok(self.clone()),
            (_, E::RemoveRequested) => Ok(S::Removing),
            (S::Removing, E::StopRequested | E::Stopped { .. } | E::Lost { .. }) => Ok(S::Removing),
            (state, event) => Err(Refused { object: "sandbox", state: state.name(), event: event.name() }),
        }
    }

    /// One word for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::NotReady { .. } => "stopped",
            Self::Removing => "removing",
        }
    }

    /// Whether containers may be made and started in it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready)
    }
}

impl SandboxEvent {
    fn name(&self) -> &'static str {
        match self {
            Self::SetUp => "set up",
            Self::StopRequested => "stop",
            Self::Stopped { .. } => "stopped",
            Self::Lost { .. } => "lost",
            Self::RemoveRequested => "remove",
        }
    }
}

/// Why a container is not running any more, in CRI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Exit code 0.
    Completed,
    /// Any other exit code.
    Error,
    /// The kernel killed a process of it for want of memory.
    OomKilled,
    /// It never got as far as its program.
    StartError,
    /// Nobody was there to see how it ended.
    Unknown,
}

impl Reason {
    /// As kubelet and people know it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}

/// Exit code of a container that could not start.
const START_ERROR_CODE: i32 = 128;
/// Exit code of a container whose end nobody saw.
const UNKNOWN_CODE: i32 = 255;

/// The end of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0 if its program never ran.
    pub started_at: Nanos,
    /// When it ended.
    pub finished_at: Nanos,
    /// Exit code, 128 + signal number if killed.
    pub code: i32,
    /// Why.
    pub reason: Reason,
    /// One sentence where there is something to say, else empty.
    pub message: String,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum ContainerState {
    /// The intent is on disk; undone after a crash.
    Creating,
    /// Its init is held right before its program.
    Created {
        /// Pid of the init, in the host's PID namespace.
        pid: i32,
    },
    /// Its program runs.
    Running {
        /// Pid of its first process, in the host's PID namespace.
        pid: i32,
        /// When the program was started.
        started_at: Nanos,
    },
    /// It ended.
    Exited(Exit),
    /// It is being removed.
    Removing {
        /// How it ended, if that is known.
        exit: Option<Exit>,
        /// When its program was started, while its end is not known; else 0.
        #[serde(default, skip_serializing_if = "is_zero")]
        started_at: Nanos,
    },
}

fn is_zero(nanos: &Nanos) -> bool {
    *nanos == 0
}

/// What happens to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// The shim holds its init ready.
    Created {
        /// Pid of the init.
        pid: i32,
    },
    /// Its program runs.
    Started {
        /// Pid of its first process.
        pid: i32,
        /// When.
        at: Nanos,
    },
    /// Its program could not be started.
    StartFailed {
        /// When.
        at: Nanos,
        /// Why, for a person.
        message: String,
    },
    /// Its first process ended.
    Exited {
        /// Exit code, 128 + signal number if killed.
        code: i32,
        /// When.
        at: Nanos,
        /// Whether the kernel killed a process of it for want of memory.
        oom_killed: bool,
    },
    /// It is gone and nobody saw how.
    Lost {
        /// When this was found.
        at: Nanos,
        /// What was found.
        message: String,
    },
    /// Somebody wants it removed, or its creation failed.
    RemoveRequested,
}

impl ContainerState {
    /// The state after `event`.
    ///
    /// Events of one container may overtake each other: an exit travels beside the reply to the
    /// start that it follows. So an exited container still learns when it had been started.
    ///
    /// # Errors
    /// [`Refused`] if the event cannot happen in this state; the state is then as before.
    pub fn apply(&self, event: &ContainerEvent) -> Result<Self, Refused> {
        use {ContainerEvent as E, ContainerState as S};
        match (self, event) {
            (S::Creating | S::Created { .. }, E::Created { pid }) => Ok(S::Created { pid: *pid }),
            (S::Running { .. } | S::Removing { .. }, E::Created { .. }) => Ok(self.clone()),
            (S::Created { .. }, E::Started { pid, at }) => Ok(S::Running { pid: *pid, started_at: *at }),
            (S::Removing { exit: None, started_at: 0 }, E::Started { at, .. }) => {
                Ok(S::Removing { exit: None, started_at: *at })
            }
            (S::Running { .. } | S::Removing { .. }, E::Started { .. }) => Ok(self.clone()),
            (S::Created { .. }, E::StartFailed { at, message }) => Ok(S::Exited(start_error(*at, message))),
            (S::Removing { .. }, E::StartFailed { .. }) => Ok(self.clone()),
            (S::Creating | S::Created { .. } | S::Running { .. }, E::Exited { code, at, oom_killed }) => {
                Ok(S::Exited(exited(self.started_at(), *code, *at, *oom_killed)))
            }
            (S::Creating | S::Created { .. } | S::Running { .. }, E::Lost { at, message }) => {
                Ok(S::Exited(lost(self.started_at(), *at, message)))
            }
            (S::Exited(exit), event) => Ok(after_exit(exit, event)),
            (S::Removing { exit: None, started_at }, E::Exited { code, at, oom_killed }) => {
                Ok(S::Removing { exit: Some(exited(*started_at, *code, *at, *oom_killed)), started_at: 0 })
            }
            (S::Removing { .. }, E::Exited { .. } | E::Lost { .. } | E::RemoveRequested) => Ok(self.clone()),
            (_, E::RemoveRequested) => Ok(S::Removing { exit: None, started_at: self.started_at() }),
            (state, event) => Err(Refused { object: "container", state: state.name(), event: event.name() }),
        }
    }

    /// One word for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created { .. } => "created",
            Self::Running { .. } => "running",
            Self::Exited(_) => "exited",
            Self::Removing { .. } => "removing",
        }
    }

    /// When its program was started; 0 if it was not, or nobody knows.
    #[must_use]
    pub fn started_at(&self) -> Nanos {
        match self {
            Self::Running { started_at, .. } | Self::Removing { exit: None, started_at } => *started_at,
            Self::Exited(exit) | Self::Removing { exit: Some(exit), .. } => exit.started_at,
            _ => 0,
        }
    }

    /// Pid of its first process while it has one.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::Created { pid } | Self::Running { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// Whether its program runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// Whether the shim may still have processes of it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self, Self::Creating | Self::Created { .. } | Self::Running { .. })
    }
}

fn start_error(at: Nanos, message: &str) -> Exit {
    Exit {
        started_at: 0,
        finished_at: at,
        code: START_ERROR_CODE,
        reason: Reason::StartError,
        message: message.to_owned(),
    }
}

fn exited(started_at: Nanos, code: i32, at: Nanos, oom_killed: bool) -> Exit {
    let reason = match code {
        _ if oom_killed => Reason::OomKilled,
        0 => Reason::Completed,
        _ => Reason::Error,
    };
    Exit { started_at, finished_at: at, code, reason, message: String::new() }
}

fn lost(started_at: Nanos, at: Nanos, message: &str) -> Exit {
    Exit { started_at, finished_at: at, code: UNKNOWN_CODE, reason: Reason::Unknown, message: message.to_owned() }
}

/// What an exited container makes of a late event: it stays exited.
fn after_exit(exit: &Exit, event: &ContainerEvent) -> ContainerState {
    let unstarted = exit.started_at == 0 && exit.reason != Reason::StartError;
    match event {
        ContainerEvent::Started { at, .. } if unstarted => {
            ContainerState::Exited(Exit { started_at: *at, ..exit.clone() })
        }
        // The exit of the init that could not start overtook the reply which says why.
        ContainerEvent::StartFailed { at, message } if unstarted => ContainerState::Exited(start_error(*at, message)),
        ContainerEvent::RemoveRequested => ContainerState::Removing { exit: Some(exit.clone()), started_at: 0 },
        _ => ContainerState::Exited(exit.clone()),
    }
}

impl ContainerEvent {
    fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "created",
            Self::Started { .. } => "started",
            Self::StartFailed { .. } => "start failed",
            Self::Exited { .. } => "exited",
            Self::Lost { .. } => "lost",
            Self::RemoveRequested => "remove",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn container_event() -> impl Strategy<Value = ContainerEvent> {
        prop_oneof![
            (1..9i32).prop_map(|pid| ContainerEvent::Created { pid }),
            (1..9i32, 1..9i64).prop_map(|(pid, at)| ContainerEvent::Started { pid, at }),
            (1..9i64).prop_map(|at| ContainerEvent::StartFailed { at, message: "no such file".into() }),
            (0..200i32, 1..9i64, any::<bool>()).prop_map(|(code, at, oom_killed)| ContainerEvent::Exited {
                code,
                at,
                oom_killed
            }),
            (1..9i64).prop_map(|at| ContainerEvent::Lost { at, message: "gone".into() }),
            Just(ContainerEvent::RemoveRequested),
        ]
    }

    fn sandbox_event() -> impl Strategy<Value = SandboxEvent> {
        prop_oneof![
            Just(SandboxEvent::SetUp),
            Just(SandboxEvent::StopRequested),
            (1..9i64).prop_map(|at| SandboxEvent::Stopped { at }),
            (1..9i64).prop_map(|at| SandboxEvent::Lost { at, message: "gone".into() }),
            Just(SandboxEvent::RemoveRequested),
        ]
    }

    fn rank(state: &ContainerState) -> u8 {
        match state {
            ContainerState::Creating => 0,
            ContainerState::Created { .. } => 1,
            ContainerState::Running { .. } => 2,
            ContainerState::Exited(_) => 3,
            ContainerState::Removing { .. } => 4,
        }
    }

    fn sandbox_rank(state: &SandboxState) -> u8 {
        match state {
            SandboxState::Creating => 0,
            SandboxState::Ready => 1,
            SandboxState::Stopping => 2,
            SandboxState::NotReady { .. } => 3,
            SandboxState::Removing => 4,
        }
    }

    proptest! {
        #[test]
        fn a_container_never_goes_back(events in prop::collection::vec(container_event(), 0..40)) {
            let mut state = ContainerState::Creating;
            for event in events {
                let Ok(next) = state.apply(&event) else { continue };
                prop_assert!(rank(&next) >= rank(&state), "{state:?} -> {next:?}");
                // Once its end is known it is not rewritten, but by why it could not start.
                if let (ContainerState::Exited(before), ContainerState::Exited(after)) = (&state, &next)
                    && after.reason != Reason::StartError
                {
                    prop_assert_eq!(before.code, after.code);
                    prop_assert_eq!(before.finished_at, after.finished_at);
                }
                prop_assert_eq!(next.apply(&event), Ok(next.clone()), "a replay changes nothing");
                state = next;
            }
        }

        #[test]
        fn a_sandbox_never_goes_back(events in prop::collection::vec(sandbox_event(), 0..40)) {
            let mut state = SandboxState::Creating;
            for event in events {
                let Ok(next) = state.apply(&event) else { continue };
                prop_assert!(sandbox_rank(&next) >= sandbox_rank(&state), "{state:?} -> {next:?}");
                prop_assert_eq!(next.apply(&event), Ok(next.clone()), "a replay changes nothing");
                state = next;
            }
        }

        #[test]
        fn states_survive_their_record(events in prop::collection::vec(container_event(), 0..10)) {
            let mut state = ContainerState::Creating;
            for event in events {
                state = state.apply(&event).unwrap_or(state);
            }
            let text = serde_json::to_string(&state).unwrap();
            prop_assert_eq!(serde_json::from_str::<ContainerState>(&text).unwrap(), state);
        }

        #[test]
        fn whatever_happened_a_container_can_be_removed(events in prop::collection::vec(container_event(), 0..10)) {
            let mut state = ContainerState::Creating;
            for event in events {
                state = state.apply(&event).unwrap_or(state);
            }
            let is_removing = matches!(
                state.apply(&ContainerEvent::RemoveRequested),
                Ok(ContainerState::Removing { .. })
            );
            prop_assert!(is_removing, "{:?}", state);
        }
    }

    #[test]
    fn an_exit_that_overtakes_its_start_keeps_both_times() {
        let exit = ContainerEvent::Exited { code: 0, at: 7, oom_killed: false };
        let start = ContainerEvent::Started { pid: 4, at: 5 };
        let created = ContainerState::Created { pid: 4 };
        let in_order = created.apply(&start).unwrap().apply(&exit).unwrap();
        let overtaken = created.apply(&exit).unwrap().apply(&start).unwrap();
        assert_eq!(in_order, overtaken);
        assert_eq!(in_order.started_at(), 5);
    }

    #[test]
    fn a_start_error_wins_over_the_exit_of_the_init() {
        let created = ContainerState::Created { pid: 4 };
        let exit = ContainerEvent::Exited { code: 1, at: 7, oom_killed: false };
        let failed = ContainerEvent::StartFailed { at: 8, message: "exec \"/x\": ENOENT".into() };
        for order in [[&exit, &failed], [&failed, &exit]] {
            let end = order.into_iter().fold(created.clone(), |s, e| s.apply(e).unwrap());
            let ContainerState::Exited(exit) = end else { panic!("{end:?}") };
            assert_eq!((exit.code, exit.reason, exit.started_at), (128, Reason::StartError, 0));
        }
    }

    #[test]
    fn reasons_are_those_of_cri() {
        let running = ContainerState::Running { pid: 1, started_at: 1 };
        for (code, oom_killed, reason) in [(0, false, "Completed"), (3, false, "Error"), (137, true, "OOMKilled")] {
            let ContainerState::Exited(exit) =
                running.apply(&ContainerEvent::Exited { code, at: 2, oom_killed }).unwrap()
            else {
                panic!("not exited")
            };
            assert_eq!(exit.reason.as_str(), reason);
        }
        let ContainerState::Exited(exit) =
            running.apply(&ContainerEvent::Lost { at: 2, message: String::new() }).unwrap()
        else {
            panic!("not exited")
        };
        assert_eq!((exit.code, exit.reason.as_str()), (255, "Unknown"));
    }

    #[test]
    fn a_running_container_cannot_fail_to_start() {
        let running = ContainerState::Running { pid: 1, started_at: 1 };
        let refused = running.apply(&ContainerEvent::StartFailed { at: 2, message: String::new() }).unwrap_err();
        assert_eq!(refused.to_string(), "a running container cannot take the event \"start failed\"");
    }
}
