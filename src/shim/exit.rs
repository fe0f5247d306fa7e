//! How a process ended, and the record of it that survives the shim.

use std::fmt::Write;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::disk::{self, Durability};
use crate::id::ContainerId;
use crate::wire::pb;

/// Exit code of a container whose program could not be executed.
pub const START_FAILED: i32 = 128;

/// Nanoseconds since the epoch.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Writes a container's exit record into `dir`, in one step.
///
/// # Errors
/// As writing a file.
pub fn write_record(dir: &Path, container: &ContainerId, exit: &pb::Exit) -> io::Result<()> {
    let path = dir.join(format!("{container}.json"));
    // Survives any process; what a reboot does to workloads needs no record.
    disk::write_atomic(&path, record(container, exit).as_bytes(), Durability::Process)
}

fn record(container: &ContainerId, exit: &pb::Exit) -> String {
    let pb::Exit { code, finished_at, oom_killed, message } = exit;
    let mut text = format!(
        r#"{{"version":1,"container_id":"{container}","code":{code},"finished_at":{finished_at},"oom_killed":{oom_killed}"#
    );
    if !message.is_empty() {
        text.push_str(r#","message":"#);
        push_json_string(&mut text, message);
    }
    text.push_str("}\n");
    text
}

fn push_json_string(text: &mut String, s: &str) {
    text.push('"');
    for c in s.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            // Writing to a String cannot fail.
            c if c < ' ' => write!(text, "\\u{:04x}", u32::from(c)).unwrap_or_default(),
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_json_a_person_can_read() {
        let id: ContainerId = "ab".repeat(32).parse().unwrap();
        let mut exit = pb::Exit { code: 137, finished_at: 5, oom_killed: true, message: String::new() };
        let plain =
            format!("{{\"version\":1,\"container_id\":\"{id}\",\"code\":137,\"finished_at\":5,\"oom_killed\":true}}\n");
        assert_eq!(record(&id, &exit), plain);
        exit.message = "exec \"/bin/\\x\":\n\u{1}é".into();
        assert!(record(&id, &exit).ends_with(",\"message\":\"exec \\\"/bin/\\\\x\\\":\\u000a\\u0001é\"}\n"));
        #[cfg(feature = "daemon")]
        {
            let value: serde_json::Value = serde_json::from_str(&record(&id, &exit)).unwrap();
            assert_eq!(value["message"], exit.message);
        }
        let dir = tempfile::tempdir().unwrap();
        write_record(dir.path(), &id, &exit).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join(format!("{id}.json"))).unwrap(), record(&id, &exit));
    }
}
