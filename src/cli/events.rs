//! `aril events`: what happens to pods and containers, a line each.

use std::collections::BTreeMap;
use std::io;

use clap::{ArgAction, Args};
use serde::Serialize;

use super::args::Output;
use super::connect::Daemon;
use super::error::CliError;
use super::output::{self, Colour, coloured, paint, plain, short};
use super::time;
use crate::api::node::{Event, EventsRequest, event::Kind};

#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct EventsArgs {
    /// Go on with what happens from now on, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// Only what is younger: an age (10m, 2h30m) or a time (2026-01-31T12:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = time::parse_since)]
    pub since: Option<time::Since>,
    /// Only events with event=created|started|stopped|deleted, type=container|pod, container=, pod=, namespace=,
    /// image= or label=KEY[=VALUE]; of several with one key any, of several keys all
    #[arg(long = "filter", value_name = "KEY=VALUE", action = ArgAction::Append, value_parser = filter)]
    pub filters: Vec<Filter>,
}

/// What an event must be about to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    key: Key,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Event,
    Type,
    Container,
    Pod,
    Namespace,
    Image,
    Label,
}

/// `KEY=VALUE`.
fn filter(text: &str) -> Result<Filter, String> {
    let known = "event, type, container, pod, namespace, image or label";
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE; keys are {known}"))?;
    let key = match key {
        "event" => Key::Event,
        "type" => Key::Type,
        "container" => Key::Container,
        "pod" => Key::Pod,
        "namespace" => Key::Namespace,
        "image" => Key::Image,
        "label" => Key::Label,
        other => return Err(format!("{other:?} is no key; keys are {known}")),
    };
    let allowed: &[&str] = match key {
        Key::Event => &["created", "started", "stopped", "deleted"],
        Key::Type => &["container", "pod"],
        _ => &[],
    };
    if !allowed.is_empty() && !allowed.contains(&value) {
        return Err(format!("{value:?} is none of {}", allowed.join(", ")));
    }
    Ok(Filter { key, value: value.to_owned() })
}

impl Filter {
    fn fits(&self, event: &Event) -> bool {
        // As everywhere: the name, or the beginning of the id.
        let is = |name: &str, id: &str| name == self.value || !self.value.is_empty() && id.starts_with(&self.value);
        match self.key {
            Key::Event => kind(event) == self.value,
            Key::Type => subject(event) == self.value,
            Key::Container => is(&event.container, &event.container_id) && !event.container_id.is_empty(),
            Key::Pod => is(&event.pod, &event.pod_sandbox_id),
            Key::Namespace => event.namespace == self.value,
            Key::Image => event.image == self.value,
            Key::Label => match self.value.split_once('=') {
                Some((key, value)) => event.labels.get(key).is_some_and(|v| v == value),
                None => event.labels.contains_key(&self.value),
            },
        }
    }
}

/// Whether an event is wanted: by any of the filters with one key, and by each key.
fn is_wanted(filters: &[Filter], event: &Event) -> bool {
    filters.iter().all(|filter| filters.iter().any(|other| other.key == filter.key && other.fits(event)))
}

/// `aril events`.
pub(super) async fn events(daemon: &mut Daemon, args: &EventsArgs, output: Output) -> Result<(), CliError> {
    let since = args.since.map_or(0, |since| since.point(time::now()));
    let mut events = daemon.node.events(EventsRequest { follow: args.follow, since }).await?.into_inner();
    let colours = coloured(&io::stdout());
    while let Some(event) = events.message().await? {
        if is_wanted(&args.filters, &event) {
            output::print(&match output {
                Output::Json => object(&event)?,
                Output::Table | Output::Wide => line(&event, output == Output::Wide, colours),
            })?;
        }
    }
    Ok(())
}

fn kind(event: &Event) -> &'static str {
    match event.kind() {
        Kind::Created => "created",
        Kind::Started => "started",
        Kind::Stopped => "stopped",
        Kind::Deleted => "deleted",
    }
}

fn subject(event: &Event) -> &'static str {
    if event.container_id.is_empty() { "pod" } else { "container" }
}

/// When, what happened to what, and how it ended if it did.
fn line(event: &Event, wide: bool, colours: bool) -> String {
    let ended_well = event.reason.is_empty() || event.reason == "Completed";
    let colour = match event.kind() {
        Kind::Created | Kind::Deleted => None,
        Kind::Started => Some(Colour::Green),
        Kind::Stopped if ended_well => Some(Colour::Yellow),
        Kind::Stopped => Some(Colour::Red),
    };
    let word = kind(event);
    let painted = colour.map_or_else(|| word.to_owned(), |colour| paint(word, colour, colours));
    let id = |id: &str| if wide { id.to_owned() } else { short(id).to_owned() };
    let what = match subject(event) {
        "pod" => format!("{} ({})", event.pod, id(&event.pod_sandbox_id)),
        _ => format!("{}/{} ({})", event.pod, event.container, id(&event.container_id)),
    };
    let mut text = format!("{} {:9} {painted} {}", time::format(event.at), subject(event), plain(what));
    for (key, value) in [("namespace", &event.namespace), ("image", &event.image)] {
        if (wide || key == "image") && !value.is_empty() {
            text += &format!(" {key}={}", plain(value.clone()));
        }
    }
    if !event.reason.is_empty() {
        text += &format!(" exit_code={} reason={}", event.exit_code, plain(event.reason.clone()));
    }
    text + "\n"
}

/// An event as programs get it.
#[derive(Debug, Serialize)]
struct Object<'a> {
    time: String,
    time_nano: i64,
    r#type: &'static str,
    event: &'static str,
    pod: Named<'a>,
    namespace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<Named<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    labels: &'a BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Named<'a> {
    id: &'a str,
    name: &'a str,
}

/// One JSON object a line.
fn object(event: &Event) -> Result<String, CliError> {
    let is_container = !event.container_id.is_empty();
    let has_ended = !event.reason.is_empty();
    let object = Object {
        time: time::format(event.at),
        time_nano: event.at,
        r#type: subject(event),
        event: kind(event),
        pod: Named { id: &event.pod_sandbox_id, name: &event.pod },
        namespace: &event.namespace,
        container: is_container.then_some(Named { id: &event.container_id, name: &event.container }),
        image: is_container.then_some(event.image.as_str()),
        exit_code: has_ended.then_some(event.exit_code),
        reason: has_ended.then_some(event.reason.as_str()),
        labels: &event.labels,
    };
    let text = serde_json::to_string(&object).map_err(|e| CliError::Failed(format!("write JSON: {e}")))?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind) -> Event {
        Event {
            at: 1_700_000_000_000_000_000,
            kind: kind.into(),
            pod_sandbox_id: "ab".repeat(32),
            pod: "web".to_owned(),
            namespace: "prod".to_owned(),
            container_id: "cd".repeat(32),
            container: "ng\x1binx".to_owned(),
            image: "busybox".to_owned(),
            exit_code: 137,
            reason: if kind == Kind::Stopped { "OOMKilled".to_owned() } else { String::new() },
            labels: [("app".to_owned(), "a".to_owned())].into(),
        }
    }

    fn fits(filters: &[&str], event: &Event) -> bool {
        is_wanted(&filters.iter().map(|text| filter(text).unwrap()).collect::<Vec<_>>(), event)
    }

    #[test]
    fn a_line_tells_what_happened_and_cannot_drive_the_terminal() {
        let stopped = event(Kind::Stopped);
        assert_eq!(
            line(&stopped, false, false),
            "2023-11-14T22:13:20.000Z container stopped web/ng\\u{1b}inx (cdcdcdcdcdcd) image=busybox exit_code=137 \
             reason=OOMKilled\n"
        );
        assert!(line(&stopped, false, true).contains("\x1b[31mstopped\x1b[0m"));
        let pod = Event { container_id: String::new(), image: String::new(), ..event(Kind::Started) };
        assert_eq!(line(&pod, false, false), "2023-11-14T22:13:20.000Z pod       started web (abababababab)\n");
        assert!(line(&pod, true, false).ends_with(&format!("web ({}) namespace=prod\n", "ab".repeat(32))));
    }

    #[test]
    fn filters_of_one_key_are_alternatives_and_keys_add_up() {
        let started = event(Kind::Started);
        assert!(fits(&[], &started));
        assert!(fits(&["event=created", "event=started", "pod=web"], &started));
        assert!(!fits(&["event=started", "pod=db"], &started));
        assert!(fits(&["container=cdcd", "pod=abab", "type=container", "image=busybox", "namespace=prod"], &started));
        assert!(fits(&["label=app"], &started) && fits(&["label=app=a"], &started));
        assert!(!fits(&["label=app=b"], &started) && !fits(&["label=tier"], &started));
        let pod = Event { container_id: String::new(), container: String::new(), ..started };
        assert!(!fits(&["container="], &pod) && !fits(&["type=container"], &pod) && fits(&["type=pod"], &pod));
    }

    #[test]
    fn filters_that_mean_nothing_are_refused() {
        for (text, word) in
            [("started", "KEY=VALUE"), ("colour=red", "label"), ("event=oom", "stopped"), ("type=x", "pod")]
        {
            assert!(filter(text).unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn an_object_is_one_line() {
        let text = object(&event(Kind::Stopped)).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["event"], &value["exit_code"]), (&"stopped".into(), &137.into()));
        assert_eq!(value["container"]["id"], "cd".repeat(32));
        let value: serde_json::Value = serde_json::from_str(&object(&event(Kind::Started)).unwrap()).unwrap();
        assert!(value.get("exit_code").is_none() && value["time"] == "2023-11-14T22:13:20.000Z");
    }
}
