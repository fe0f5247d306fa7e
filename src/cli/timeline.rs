//! `aril inspect --timeline`: where the time went, as a drawing or for trace viewers.
//!
//! Follows the Trace Event Format, as chrome://tracing and Perfetto read it.

use std::io;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::Output;
use super::error::CliError;
use super::output::{self, Colour, coloured, paint, plain, short};
use super::{terminal, time};

/// How a timeline is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Bars for people; with -o json, numbers for programs
    Bars,
    /// JSON for chrome://tracing and Perfetto
    Chrome,
}

/// Columns of a drawing where nobody knows how many there are.
const COLUMNS: usize = 80;
/// Bars are no longer than that: nobody reads further.
const MAX_BAR: usize = 120;
/// The time of the operation stands there.
const MIN_BAR: usize = 24;
/// A time takes so much: "999.9 ms".
const TIME: usize = 8;

/// An object and what was done to it.
#[derive(Debug, Serialize)]
pub(super) struct Timeline {
    kind: String,
    id: String,
    name: String,
    timeline: Vec<Operation>,
}

/// As the daemon tells it.
#[derive(Debug, Serialize, Deserialize)]
struct Operation {
    operation: String,
    at: i64,
    elapsed_us: u64,
    steps: Vec<Step>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Step {
    name: String,
    start_us: u64,
    elapsed_us: u64,
}

impl Timeline {
    /// Out of what `aril inspect` knows of an object.
    pub(super) fn new(object: &Value) -> Result<Self, CliError> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let timeline = object["info"].get("timeline").cloned().unwrap_or_else(|| json!([]));
        let unknown = |e| CliError::Failed(format!("the daemon tells of time in another way than this program: {e}"));
        Ok(Self {
            kind: text(&object["kind"]),
            id: text(&object["id"]),
            name: text(&object["metadata"]["name"]),
            timeline: serde_json::from_value(timeline).map_err(unknown)?,
        })
    }
}

/// Prints the timelines of several objects.
pub(super) fn print(timelines: &[Timeline], form: Form, output: Output) -> Result<(), CliError> {
    output::print(&match (form, output) {
        (Form::Chrome, _) => output::json(&trace(timelines))?,
        (Form::Bars, Output::Json) => output::json(&timelines)?,
        (Form::Bars, _) => {
            let columns = terminal::size().filter(|_| coloured(&io::stdout())).map(|size| size.cols);
            let columns = columns.and_then(|columns| usize::try_from(columns).ok()).unwrap_or(COLUMNS);
            timelines.iter().map(|timeline| draw(timeline, columns, coloured(&io::stdout()))).collect::<String>()
        }
    })
}

/// A bar a step, below each other as in a waterfall.
fn draw(timeline: &Timeline, columns: usize, colours: bool) -> String {
    let mut text = format!("{} {} ({})\n", timeline.kind, plain(timeline.name.clone()), short(&timeline.id));
    if timeline.timeline.is_empty() {
        text += "  nothing is known of its operations\n";
    }
    for operation in &timeline.timeline {
        let steps = || operation.steps.iter();
        let longest = steps().map(|step| label(&step.name).chars().count()).max().unwrap_or(0);
        let labels = longest.max(operation.operation.chars().count());
        // Indent, label, two blanks, bar, two blanks, time.
        let bar = columns.saturating_sub(2 + labels + 2 + 2 + TIME).clamp(MIN_BAR, MAX_BAR);
        let head = plain(operation.operation.clone());
        let at = time::format(operation.at);
        let elapsed = duration(operation.elapsed_us);
        text += &format!("  {head:labels$}  {at:bar$}  {elapsed:>TIME$}\n");
        for step in steps() {
            let label = plain(label(&step.name));
            let (before, length) = cells(step, operation.elapsed_us, bar);
            let drawn = paint(&"█".repeat(length), Colour::Green, colours);
            let after = bar - before - length;
            let elapsed = duration(step.elapsed_us);
            text += &format!("  {label:labels$}  {:before$}{drawn}{:after$}  {elapsed:>TIME$}\n", "", "");
        }
    }
    text
}

/// Parts of a step stand below it.
fn label(name: &str) -> String {
    let depth = name.matches('/').count();
    let last = name.rsplit('/').next().unwrap_or(name);
    format!("{}{last}", "  ".repeat(depth + 1))
}

/// Where a step's bar begins and how long it is, in cells: never nothing, and within the whole.
fn cells(step: &Step, whole_us: u64, bar: usize) -> (usize, usize) {
    let wide = |us: u64| u128::from(us) * bar as u128;
    let whole = u128::from(whole_us.max(1));
    let cell = |us: u64| usize::try_from(wide(us) / whole).unwrap_or(bar);
    let before = cell(step.start_us).min(bar - 1);
    let end = cell(step.start_us.saturating_add(step.elapsed_us)).clamp(before + 1, bar);
    (before, end - before)
}

/// In the unit that fits.
fn duration(us: u64) -> String {
    // Only for people, to three digits.
    #[allow(clippy::cast_precision_loss)]
    let ms = us as f64 / 1000.0;
    match us {
        0..1000 => format!("{us} µs"),
        1000..10_000 => format!("{ms:.2} ms"),
        10_000..1_000_000 => format!("{ms:.1} ms"),
        _ => format!("{:.2} s", ms / 1000.0),
    }
}

/// Each object is a process of the trace, each operation and step a complete event. Steps side by side are on threads
/// of their own, since events of one thread must lie in each other or apart.
fn trace(timelines: &[Timeline]) -> Value {
    let mut events = Vec::new();
    for (pid, timeline) in timelines.iter().enumerate() {
        let name = format!("{} {} ({})", timeline.kind, timeline.name, short(&timeline.id));
        events.push(json!({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}));
        events.push(json!({"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}));
        for operation in &timeline.timeline {
            let event = |name: &str, tid: usize, start_us: u64, elapsed_us: u64| {
                let begun_us = u64::try_from(operation.at / 1000).unwrap_or(0);
                json!({"ph": "X", "cat": timeline.kind, "name": name, "pid": pid, "tid": tid,
                    "ts": begun_us.saturating_add(start_us), "dur": elapsed_us})
            };
            events.push(event(&operation.operation, 0, 0, operation.elapsed_us));
            for (step, tid) in operation.steps.iter().zip(lanes(&operation.steps)) {
                events.push(event(&step.name, tid, step.start_us, step.elapsed_us));
            }
        }
    }
    json!({"displayTimeUnit": "ms", "traceEvents": events})
}

/// For each step the first lane that no step beside it is on; parts are where their step is.
fn lanes(steps: &[Step]) -> Vec<usize> {
    let mut ends: Vec<u64> = Vec::new();
    let mut lanes: Vec<usize> = Vec::new();
    for step in steps {
        let whole = step.name.rsplit_once('/').and_then(|(whole, _)| steps.iter().position(|s| s.name == whole));
        let lane = whole.and_then(|at| lanes.get(at).copied()).unwrap_or_else(|| {
            let lane = ends.iter().position(|end| *end <= step.start_us).unwrap_or(ends.len());
            ends.resize(ends.len().max(lane + 1), 0);
            ends[lane] = step.start_us.saturating_add(step.elapsed_us);
            lane
        });
        lanes.push(lane);
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline() -> Timeline {
        Timeline::new(&json!({
            "kind": "pod", "id": "ab".repeat(32), "metadata": {"name": "we\u{1b}b"},
            "info": {"timeline": [{
                "operation": "RunPodSandbox", "at": 1_700_000_000_123_456_789_i64, "elapsed_us": 4000,
                "steps": [
                    {"name": "plan", "start_us": 0, "elapsed_us": 90},
                    {"name": "network", "start_us": 400, "elapsed_us": 2600},
                    {"name": "network/namespace", "start_us": 500, "elapsed_us": 500},
                    {"name": "network/driver", "start_us": 1000, "elapsed_us": 2000},
                    {"name": "shim", "start_us": 400, "elapsed_us": 1600},
                    {"name": "sandbox", "start_us": 3000, "elapsed_us": 1000},
                ],
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn a_drawing_is_as_wide_as_it_may_be() {
        let golden = "\
pod we\\u{1b}b (abababababab)
  RunPodSandbox  2023-11-14T22:13:20.123Z                      4.00 ms
    plan         █                                               90 µs
    network          ████████████████████████████              2.60 ms
      namespace       █████                                     500 µs
      driver               ██████████████████████              2.00 ms
    shim             █████████████████                         1.60 ms
    sandbox                                      ███████████   1.00 ms
";
        assert_eq!(draw(&timeline(), 70, false), golden);
        assert!(draw(&timeline(), 70, true).contains("\x1b[32m█\x1b[0m"));
        // However narrow the terminal, and however wide.
        for (columns, bar) in [(0, MIN_BAR), (10_000, MAX_BAR)] {
            let drawn = draw(&timeline(), columns, false);
            assert!(drawn.lines().skip(1).all(|line| line.chars().count() == 27 + bar), "{drawn}");
        }
        let nothing = Timeline { timeline: Vec::new(), ..timeline() };
        assert!(draw(&nothing, 70, false).contains("nothing is known"));
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        for (us, text) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1000, "1.00 ms"),
            (12_345, "12.3 ms"),
            (999_900, "999.9 ms"),
            (1_500_000, "1.50 s"),
        ] {
            assert_eq!(duration(us), text);
        }
    }

    #[test]
    fn a_bar_is_never_nothing_and_never_outside() {
        for (start_us, elapsed_us) in [(0, 0), (10, 0), (5, 100), (u64::MAX, u64::MAX)] {
            let (before, length) = cells(&Step { name: String::new(), start_us, elapsed_us }, 10, 20);
            assert!(length > 0 && before + length <= 20, "{start_us} {elapsed_us}: {before} {length}");
        }
        assert_eq!(cells(&Step { name: String::new(), start_us: 0, elapsed_us: 0 }, 0, 20), (0, 1));
    }

    #[test]
    fn a_trace_has_side_by_side_steps_on_threads_of_their_own() {
        let trace = trace(&[timeline(), timeline()]);
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events[0]["args"]["name"], "pod we\u{1b}b (abababababab)");
        let of_first: Vec<&Value> = events.iter().filter(|e| e["ph"] == "X" && e["pid"] == 0).collect();
        let placed: Vec<(&str, u64)> =
            of_first.iter().map(|e| (e["name"].as_str().unwrap(), e["tid"].as_u64().unwrap())).collect();
        assert_eq!(
            placed,
            [
                ("RunPodSandbox", 0),
                ("plan", 0),
                ("network", 0),
                ("network/namespace", 0),
                ("network/driver", 0),
                ("shim", 1),
                ("sandbox", 0)
            ]
        );
        assert_eq!((&of_first[5]["ts"], &of_first[5]["dur"]), (&json!(1_700_000_000_123_856_u64), &json!(1600)));
        assert_eq!(events.len(), 2 * (2 + 7));
    }

    #[test]
    fn what_an_older_daemon_tells_is_no_timeline() {
        let object = json!({"info": {"timeline": [{"name": "cgroup", "elapsed_us": 5}]}});
        assert!(Timeline::new(&object).is_err());
        assert!(Timeline::new(&json!({"info": {}})).unwrap().timeline.is_empty());
    }
}
