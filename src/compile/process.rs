//! The process: who runs what, with which rights and limits.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType as Limit, Process, User};

use super::{CompileError, capability, text};
use crate::plan;

/// The plan of one process, be it a container's first or one of an exec session.
///
/// # Errors
/// [`CompileError`] naming the field of the spec.
///
/// Source: OCI runtime spec, `config.md`, "Process".
pub fn compile_process(process: &Process) -> Result<plan::Process, CompileError> {
    refuse(process)?;
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(CompileError::missing("process.args"));
    }
    let env = process.env().clone().unwrap_or_default();
    no_nul("process.args", &args)?;
    no_nul("process.env", &env)?;
    if let Some(entry) = env.iter().find(|e| !e.contains('=') || e.starts_with('=')) {
        let name = entry.split('=').next().unwrap_or_default();
        return Err(CompileError::invalid("process.env", format!("entry {name:?} is not NAME=value")));
    }
    let cwd = text("process.cwd", process.cwd())?;
    if !cwd.starts_with('/') {
        return Err(CompileError::invalid("process.cwd", format!("{cwd:?} is not absolute")));
    }
    let size = process.console_size().unwrap_or_default();
    Ok(plan::Process {
        args,
        env,
        cwd,
        user: Some(user(process.user())),
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        capabilities: Some(capability::compile(process.capabilities().as_ref())),
        rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default())?,
        oom_score_adj: process.oom_score_adj(),
        tty: process.terminal().unwrap_or(false),
        apparmor_profile: String::new(),
        selinux_label: String::new(),
        tty_rows: cells("process.consoleSize.height", size.height())?,
        tty_cols: cells("process.consoleSize.width", size.width())?,
        umask: process.user().umask(),
    })
}

fn user(user: &User) -> plan::User {
    plan::User {
        spec: String::new(),
        uid: Some(user.uid()),
        gid: Some(user.gid()),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        merge_image_groups: false,
    }
}

fn refuse(process: &Process) -> Result<(), CompileError> {
    let wanted = |label: &Option<String>| label.as_ref().is_some_and(|l| !matches!(l.as_str(), "" | "unconfined"));
    super::refuse(&[
        ("process.apparmorProfile", wanted(process.apparmor_profile())),
        ("process.selinuxLabel", wanted(process.selinux_label())),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
        ("process.commandLine", process.command_line().is_some()),
    ])
}

fn no_nul(field: &str, list: &[String]) -> Result<(), CompileError> {
    match list.iter().position(|s| s.contains('\0')) {
        Some(i) => Err(CompileError::invalid(format!("{field}[{i}]"), "contains a NUL")),
        None => Ok(()),
    }
}

/// The kernel counts a terminal's rows and columns in 16 bits.
fn cells(field: &str, count: u64) -> Result<u32, CompileError> {
    u16::try_from(count).map(u32::from).map_err(|_| CompileError::invalid(field, format!("{count} is above 65535")))
}

fn rlimits(list: &[PosixRlimit]) -> Result<Vec<plan::Rlimit>, CompileError> {
    let mut limits: Vec<plan::Rlimit> = Vec::with_capacity(list.len());
    for (i, limit) in list.iter().enumerate() {
        let field = format!("process.rlimits[{i}]");
        let resource = rlimit_number(limit.typ());
        if limits.iter().any(|l| l.resource == resource) {
            return Err(CompileError::invalid(field, format!("{} is listed twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            let reason = format!("soft limit {} is above hard limit {}", limit.soft(), limit.hard());
            return Err(CompileError::invalid(field, reason));
        }
        limits.push(plan::Rlimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(limits)
}

/// `RLIMIT_*` of x86-64, arm64 and riscv64 (`asm-generic/resource.h`).
fn rlimit_number(limit: Limit) -> u32 {
    match limit {
        Limit::RlimitCpu => 0,
        Limit::RlimitFsize => 1,
        Limit::RlimitData => 2,
        Limit::RlimitStack => 3,
        Limit::RlimitCore => 4,
        Limit::RlimitRss => 5,
        Limit::RlimitNproc => 6,
        Limit::RlimitNofile => 7,
        Limit::RlimitMemlock => 8,
        Limit::RlimitAs => 9,
        Limit::RlimitLocks => 10,
        Limit::RlimitSigpending => 11,
        Limit::RlimitMsgqueue => 12,
        Limit::RlimitNice => 13,
        Limit::RlimitRtprio => 14,
        Limit::RlimitRttime => 15,
    }
}
