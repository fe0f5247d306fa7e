//! `aril inspect`: all that the daemon tells about an object.

use std::os::fd::AsFd;

use serde_json::{Map, Value, json};

use super::args::{InspectArgs, Output};
use super::connect::Daemon;
use super::error::CliError;
use super::find::{Objects, Target};
use super::list::{container_state, pod_state};
use super::output;
use super::request;
use super::time;
use super::timeline::{self, Form, Timeline};
use crate::api::cri;
use crate::sys;

/// `aril inspect`.
pub(super) async fn inspect(daemon: &mut Daemon, args: &InspectArgs, output: Output) -> Result<(), CliError> {
    let objects = Objects::fetch(daemon).await?;
    let names = &args.names;
    if let Some(form) = args.timeline {
        return timelines(daemon, &objects, names, form, output).await;
    }
    let mut found = Vec::new();
    for name in names {
        found.push(match objects.target(name) {
            Ok(Target::Container(c)) => container(daemon, &c.id).await?,
            Ok(Target::Pod(p)) => pod(daemon, &p.id).await?,
            Err(CliError::NotFound { .. }) => match image(daemon, name).await? {
                Some(image) => image,
                None => {
                    let kind = "container, pod or image";
                    return Err(CliError::NotFound { kind, name: name.clone(), list: "aril ps -a" });
                }
            },
            Err(e) => return Err(e),
        });
    }
    print(&found, output)
}

/// Pods with all their containers, containers with their pods: the start of one is the start of both.
async fn timelines(
    daemon: &mut Daemon,
    objects: &Objects,
    names: &[String],
    form: Form,
    output: Output,
) -> Result<(), CliError> {
    let mut found = Vec::new();
    for name in names {
        let (sandbox, mut containers) = match objects.target(name)? {
            Target::Pod(p) => (p.id.as_str(), objects.of_pod(p).collect::<Vec<_>>()),
            Target::Container(c) => (c.pod_sandbox_id.as_str(), vec![c]),
        };
        containers.sort_by_key(|c| c.created_at);
        found.push(Timeline::new(&pod(daemon, sandbox).await?)?);
        for c in containers {
            found.push(Timeline::new(&container(daemon, &c.id).await?)?);
        }
    }
    timeline::print(&found, form, output)
}

/// `aril image inspect`.
pub(super) async fn images(daemon: &mut Daemon, names: &[String], output: Output) -> Result<(), CliError> {
    let mut found = Vec::new();
    for name in names {
        let unknown = || CliError::NotFound { kind: "image", name: name.clone(), list: "aril image ls" };
        found.push(image(daemon, name).await?.ok_or_else(unknown)?);
    }
    print(&found, output)
}

/// What a person looks for, before everything else by the alphabet.
const FIRST: [&str; 4] = ["kind", "id", "state", "metadata"];

pub(super) fn print(found: &[Value], output: Output) -> Result<(), CliError> {
    if output == Output::Json {
        return output::print(&output::json(&found)?);
    }
    let texts: Vec<String> = found
        .iter()
        .map(|value| {
            let mut text = String::new();
            let mut rest = value.clone();
            for key in FIRST {
                if let Some(value) = rest.as_object_mut().and_then(|map| map.remove(key)) {
                    outline(&json!({ key: value }), 0, &mut text);
                }
            }
            outline(&rest, 0, &mut text);
            text
        })
        .collect();
    output::print(&texts.join("\n"))
}

/// `key: value` lines, what is inside something indented below it; nothing where there is nothing to tell.
fn outline(value: &Value, depth: usize, to: &mut String) {
    let pairs: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (format!("{key}:"), value)).collect(),
        Value::Array(list) => list.iter().map(|value| ("-".to_owned(), value)).collect(),
        _ => return,
    };
    let indent = "  ".repeat(depth);
    for (label, value) in pairs {
        match value {
            Value::Null => {}
            Value::Object(map) if map.is_empty() => {}
            Value::Array(list) if list.is_empty() => {}
            Value::String(text) if text.is_empty() => {}
            Value::Object(_) | Value::Array(_) => {
                to.push_str(&format!("{indent}{label}\n"));
                outline(value, depth + 1, to);
            }
            Value::String(text) => to.push_str(&format!("{indent}{label} {}\n", text.escape_debug())),
            Value::Bool(_) | Value::Number(_) => to.push_str(&format!("{indent}{label} {value}\n")),
        }
    }
}

async fn container(daemon: &mut Daemon, id: &str) -> Result<Value, CliError> {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = daemon.runtime.container_status(request).await?.into_inner();
    let status = answer.status.unwrap_or_default();
    let state = container_state(status.state());
    let mut value = object(&status)?;
    value.insert("state".to_owned(), json!(state));
    for key in ["created_at", "started_at", "finished_at"] {
        readable_time(&mut value, key);
    }
    if state != "exited" {
        value.remove("exit_code");
    }
    Ok(whole("container", value, answer.info))
}

async fn pod(daemon: &mut Daemon, id: &str) -> Result<Value, CliError> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    let answer = daemon.runtime.pod_sandbox_status(request).await?.into_inner();
    let status = answer.status.unwrap_or_default();
    let mut value = object(&status)?;
    value.insert("state".to_owned(), json!(pod_state(status.state())));
    readable_time(&mut value, "created_at");
    Ok(whole("pod", value, answer.info))
}

async fn image(daemon: &mut Daemon, name: &str) -> Result<Option<Value>, CliError> {
    let request = cri::ImageStatusRequest { image: Some(request::image(name)), verbose: true };
    let answer = daemon.images.image_status(request).await?.into_inner();
    let Some(image) = answer.image else { return Ok(None) };
    Ok(Some(whole("image", object(&image)?, answer.info)))
}

fn object(message: &impl serde::Serialize) -> Result<Map<String, Value>, CliError> {
    match serde_json::to_value(message) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Ok(Map::new()),
        Err(e) => Err(CliError::Failed(format!("write JSON: {e}"))),
    }
}

/// Kind first, then the status, then what the daemon tells beyond CRI, which comes as JSON in text.
fn whole(kind: &str, status: Map<String, Value>, info: impl IntoIterator<Item = (String, String)>) -> Value {
    let mut value = Map::from_iter([("kind".to_owned(), json!(kind))]);
    value.extend(status);
    let mut beyond = Map::new();
    for (key, text) in info {
        match (key.as_str(), parsed(text)) {
            // What CRI's tools look for under that name is the only thing there.
            ("info", Value::Object(all)) => beyond.extend(all),
            (_, told) => drop(beyond.insert(key, told)),
        }
    }
    value.insert("info".to_owned(), Value::Object(beyond));
    Value::Object(value)
}

fn parsed(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

fn readable_time(value: &mut Map<String, Value>, key: &str) {
    if let Some(point) = value.get(key).and_then(Value::as_i64) {
        value.insert(key.to_owned(), json!(time::format(point)));
    }
}

/// The number of the container's first process while it runs.
pub(super) async fn pid(daemon: &mut Daemon, id: &str) -> Result<Option<i32>, CliError> {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = match daemon.runtime.container_status(request).await {
        Ok(answer) => answer.into_inner(),
        // Removed since it was listed.
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(None),
        Err(status) => return Err(status.into()),
    };
    let running = answer.status.is_some_and(|s| s.state() == cri::ContainerState::ContainerRunning);
    Ok(if running { pid_of(&answer.info) } else { None })
}

/// Sends a signal to a container's first process; false if it does not run any more.
pub(super) async fn signal(daemon: &mut Daemon, id: &str, number: i32) -> Result<bool, CliError> {
    let Some(first) = pid(daemon, id).await? else { return Ok(false) };
    // Opened before looking again: if the container still runs then, the descriptor is its process's.
    let Ok(pidfd) = sys::process::pidfd_open(first) else { return Ok(false) };
    let is_same = pid(daemon, id).await? == Some(first);
    Ok(is_same && sys::process::pidfd_signal(pidfd.as_fd(), number).is_ok())
}

/// `pid`, by itself or in one of the JSON objects.
fn pid_of(info: &std::collections::BTreeMap<String, String>) -> Option<i32> {
    let number = |value: &Value| value.as_i64().and_then(|n| i32::try_from(n).ok()).filter(|&n| n > 0);
    info.iter().find_map(|(key, text)| {
        let value: Value = serde_json::from_str(text).ok()?;
        if key == "pid" { number(&value) } else { value.get("pid").and_then(number) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outline_leaves_out_what_says_nothing() {
        let value = json!({"kind": "pod", "labels": {"a": "b\u{1b}"}, "empty": {}, "none": null, "text": "",
            "list": [1, {"x": true}]});
        let mut text = String::new();
        outline(&value, 0, &mut text);
        assert_eq!(text, "kind: pod\nlabels:\n  a: b\\u{1b}\nlist:\n  - 1\n  -\n    x: true\n");
    }

    #[test]
    fn what_is_told_beyond_cri_is_taken_apart() {
        let info = [("a".to_owned(), "{\"pid\":7}".to_owned()), ("b".to_owned(), "plain".to_owned())];
        let value = whole("container", Map::new(), info);
        assert_eq!(value["info"]["a"]["pid"], 7);
        assert_eq!(value["info"]["b"], "plain");
        let info = [("info".to_owned(), "{\"pid\":7}".to_owned())];
        assert_eq!(whole("container", Map::new(), info)["info"]["pid"], 7);
    }

    #[test]
    fn a_pid_is_found_where_it_is_told() {
        let info = |key: &str, text: &str| [(key.to_owned(), text.to_owned())].into();
        assert_eq!(pid_of(&info("pid", "12")), Some(12));
        assert_eq!(pid_of(&info("info", "{\"pid\":12}")), Some(12));
        assert_eq!(pid_of(&info("info", "{\"pid\":0}")), None);
        assert_eq!(pid_of(&info("x", "nonsense")), None);
    }
}
