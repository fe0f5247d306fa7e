//! `aril version` and `aril info`.

use serde_json::{Value, json};

use super::args::Output;
use super::connect::Daemon;
use super::error::CliError;
use super::output;
use super::time;
use crate::api::cri;
use crate::api::node::{InfoRequest, InfoResponse};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `aril version`: without a daemon it is this program's alone.
pub(super) async fn version(daemon: Result<Daemon, CliError>, output: Output) -> Result<(), CliError> {
    let mut daemon = match daemon {
        Ok(daemon) => Some(daemon),
        Err(CliError::NoDaemon { .. }) => None,
        Err(e) => return Err(e),
    };
    let answer = match &mut daemon {
        Some(daemon) => Some(daemon.runtime.version(cri::VersionRequest::default()).await?.into_inner()),
        None => None,
    };
    output::print(&if output == Output::Json {
        output::json(&version_json(answer.as_ref()))?
    } else {
        version_text(answer.as_ref())
    })
}

fn version_json(daemon: Option<&cri::VersionResponse>) -> Value {
    let daemon =
        daemon.map(|v| json!({"name": v.runtime_name, "version": v.runtime_version, "cri": v.runtime_api_version}));
    json!({"version": VERSION, "daemon": daemon})
}

fn version_text(daemon: Option<&cri::VersionResponse>) -> String {
    let daemon = match daemon {
        Some(v) => format!("{} {} (CRI {})", v.runtime_name, v.runtime_version, v.runtime_api_version),
        None => "not running".to_owned(),
    };
    output::sheet(&[("aril", VERSION.to_owned()), ("daemon", daemon)])
}

/// `aril info`.
pub(super) async fn info(daemon: &mut Daemon, output: Output) -> Result<(), CliError> {
    let info = daemon.node.info(InfoRequest {}).await?.into_inner();
    let status = daemon.runtime.status(cri::StatusRequest::default()).await?.into_inner().status.unwrap_or_default();
    output::print(&match output {
        Output::Json => output::json(&info_json(&info, &status))?,
        Output::Table | Output::Wide => info_text(&info, &status, time::now()),
    })
}

fn info_json(info: &InfoResponse, status: &cri::RuntimeStatus) -> Value {
    json!({
        "version": info.version, "pid": info.pid, "started_at": time::format(info.started_at),
        "root": info.root_dir, "state": info.state_dir,
        "cgroup_driver": info.cgroup_driver, "cgroup_version": info.cgroup_version,
        "pods": info.pods, "containers": info.containers, "images": info.images,
        "conditions": status.conditions,
    })
}

fn info_text(info: &InfoResponse, status: &cri::RuntimeStatus, now: i64) -> String {
    let mut lines = vec![
        ("version", info.version.clone()),
        ("pid", info.pid.to_string()),
        ("running for", time::age(info.started_at, now)),
        ("root", info.root_dir.clone()),
        ("state", info.state_dir.clone()),
        ("cgroups", format!("{}, driver {}", info.cgroup_version, info.cgroup_driver)),
        ("pods", info.pods.to_string()),
        ("containers", info.containers.to_string()),
        ("images", info.images.to_string()),
    ];
    for condition in &status.conditions {
        let told = [&condition.reason, &condition.message].into_iter().filter(|t| !t.is_empty());
        let why = told.cloned().collect::<Vec<_>>().join(": ");
        let state = if condition.status { "yes" } else { "no" };
        lines.push((&condition.r#type, if why.is_empty() { state.to_owned() } else { format!("{state}, {why}") }));
    }
    output::sheet(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_daemon_is_said() {
        assert!(version_text(None).ends_with("daemon: not running\n"));
        assert_eq!(version_json(None)["daemon"], Value::Null);
        let daemon = cri::VersionResponse {
            runtime_name: "aril".into(),
            runtime_version: "1.2.3".into(),
            runtime_api_version: "v1".into(),
            ..Default::default()
        };
        assert!(version_text(Some(&daemon)).contains("aril 1.2.3 (CRI v1)"));
    }

    #[test]
    fn info_has_the_conditions() {
        let condition = cri::RuntimeCondition { r#type: "RuntimeReady".into(), status: true, ..Default::default() };
        let status = cri::RuntimeStatus { conditions: vec![condition] };
        let info = InfoResponse { pid: 5, cgroup_version: "v2".into(), started_at: 1, ..Default::default() };
        let text = info_text(&info, &status, 3_000_000_001);
        assert!(text.contains("pid:          5\n") && text.contains("RuntimeReady: yes\n"), "{text}");
        assert_eq!(info_json(&info, &status)["conditions"][0]["type"], "RuntimeReady");
    }
}
