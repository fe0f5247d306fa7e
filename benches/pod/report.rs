//! The results, as a table for people and as JSON for programs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::memory::Reading;
use crate::samples::{Samples, Summary, op};
use crate::streams::Figure;
use crate::{Result, Runtime};

/// A table: its name, whom the others are compared with, and who is in it.
type Heat = (&'static str, Runtime, &'static [Runtime]);

/// containerd's pods are connected by the plugins only, and compared with both of aril's ways.
const HEATS: &[Heat] = &[
    ("host network", Runtime::Aril, &[Runtime::Floor, Runtime::Aril, Runtime::ContainerdRunc, Runtime::ContainerdCrun]),
    (
        "own network namespace: aril's built-in bridge, containerd with the CNI plugins bridge, host-local, portmap",
        Runtime::ArilBridge,
        &[Runtime::ArilBridge, Runtime::ContainerdRuncCni, Runtime::ContainerdCrunCni],
    ),
    (
        "own network namespace: the same CNI plugins for all",
        Runtime::ArilCni,
        &[Runtime::CniPlugins, Runtime::ArilCni, Runtime::ContainerdRuncCni, Runtime::ContainerdCrunCni],
    ),
];

/// A start that takes longer than this fails `--smoke`, on however busy a machine.
const SMOKE_LIMIT: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Report {
    iterations: u32,
    versions: Vec<(Runtime, String)>,
    omitted: Vec<(Runtime, String)>,
    rows: Vec<(Runtime, &'static str, Summary)>,
    memory: Vec<(Runtime, Reading)>,
    figures: Vec<(Runtime, Figure)>,
}

impl Report {
    pub fn new(iterations: u32) -> Report {
        Report { iterations, versions: vec![], omitted: vec![], rows: vec![], memory: vec![], figures: vec![] }
    }

    pub fn version(&mut self, runtime: Runtime, version: String) {
        self.versions.push((runtime, version));
    }

    pub fn figure(&mut self, runtime: Runtime, figure: Figure) {
        self.figures.push((runtime, figure));
    }

    /// Says why a runtime is not in the table.
    pub fn omit(&mut self, runtime: Runtime, why: &str) {
        self.omitted.push((runtime, why.to_owned()));
    }

    pub fn memory(&mut self, runtime: Runtime, reading: Reading) {
        self.memory.push((runtime, reading));
    }

    pub fn rows(&mut self, runtimes: &[Runtime], samples: &Samples) {
        for &op in op::ALL {
            for &runtime in runtimes {
                self.rows.extend(samples.summary(runtime, op).map(|summary| (runtime, op, summary)));
            }
        }
    }

    fn p50(&self, runtime: Runtime, op: &str) -> Option<Duration> {
        self.rows.iter().find(|row| row.0 == runtime && row.1 == op).map(|row| row.2.p50)
    }

    pub fn print(&self) {
        println!("{} pods each, one at a time; milliseconds", self.iterations);
        for (runtime, version) in &self.versions {
            println!("  {}: {version}", runtime.name());
        }
        for (runtime, why) in &self.omitted {
            println!("  {}: left out, {why}", runtime.name());
        }
        for heat in HEATS.iter().filter(|heat| self.p50(heat.1, op::RUN).is_some()) {
            println!("\n{}\n{}", heat.0, self.times(heat));
        }
        if let Some((run, up)) = self.own_share() {
            println!("\nwhat aril-cni adds to the plugins' own time: {:.2} ms in RunPodSandbox", millis(run));
            println!("and, without the floor's, {:.2} ms in run+create+start", millis(up));
        }
        if !self.memory.is_empty() {
            println!("\nmemory (PSS); per pod: all processes beside daemon and workload\n{}", self.memories());
        }
        if !self.figures.is_empty() {
            println!("\nstreams, logs and lists\n{}", self.figures_table());
        }
    }

    /// What of RunPodSandbox with CNI is not the plugins' own time, and what of a pod's start is neither theirs nor the
    /// kernel's.
    fn own_share(&self) -> Option<(Duration, Duration)> {
        let plugins = self.p50(Runtime::CniPlugins, op::RUN)?;
        let run = self.p50(Runtime::ArilCni, op::RUN)?.saturating_sub(plugins);
        let kernel = self.p50(Runtime::Floor, op::UP)?;
        Some((run, self.p50(Runtime::ArilCni, op::UP)?.saturating_sub(plugins + kernel)))
    }

    fn times(&self, (_, base, members): &Heat) -> Table {
        let mut table = table(&["operation", "runtime", "min", "p50", "p99", "p50 / aril"], 2);
        let mut last = "";
        for (runtime, op, summary) in self.rows.iter().filter(|row| members.contains(&row.0)) {
            let ratio = self.p50(*base, op).map(|aril| summary.p50.as_secs_f64() / aril.as_secs_f64());
            let shown = if *op == last { "" } else { op };
            last = op;
            table.add_row([
                shown.to_owned(),
                runtime.name().to_owned(),
                format!("{:.2}", millis(summary.min)),
                format!("{:.2}", millis(summary.p50)),
                format!("{:.2}", millis(summary.p99)),
                ratio.map_or_else(String::new, |ratio| format!("{ratio:.1}×")),
            ]);
        }
        table
    }

    fn figures_table(&self) -> Table {
        let mut table = table(&["what", "unit", "runtime", "value"], 3);
        let mut names: Vec<&str> = self.figures.iter().map(|(_, figure)| figure.name).collect();
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(*name));
        for name in names {
            for (runtime, figure) in self.figures.iter().filter(|(_, figure)| figure.name == name) {
                let value = format!("{:.2}", figure.value);
                table.add_row([name.to_owned(), figure.unit.to_owned(), runtime.name().to_owned(), value]);
            }
        }
        table
    }

    fn memories(&self) -> Table {
        let mut table = table(&["runtime", "pods", "daemon KiB", "per pod KiB"], 1);
        for (runtime, reading) in &self.memory {
            let per_pod = if reading.pods == 0 { String::new() } else { format!("{:.0}", reading.per_pod_pss_kib) };
            let (pods, daemon) = (reading.pods.to_string(), reading.daemon_pss_kib.to_string());
            table.add_row([runtime.name().to_owned(), pods, daemon, per_pod]);
        }
        table
    }

    fn json(&self) -> Value {
        let row = |(runtime, op, summary): &(Runtime, &str, Summary)| {
            json!({
                "runtime": runtime.name(), "network": runtime.network().name(), "op": op, "n": summary.n,
                "min_ms": millis(summary.min), "p50_ms": millis(summary.p50), "p99_ms": millis(summary.p99),
            })
        };
        let memory = |(runtime, reading): &(Runtime, Reading)| {
            json!({
                "runtime": runtime.name(), "pods": reading.pods,
                "daemon_pss_kib": reading.daemon_pss_kib, "per_pod_pss_kib": reading.per_pod_pss_kib,
            })
        };
        let figure = |(runtime, figure): &(Runtime, Figure)| {
            json!({
                "runtime": runtime.name(), "what": figure.name, "unit": figure.unit, "value": figure.value,
            })
        };
        json!({
            "figures": self.figures.iter().map(figure).collect::<Vec<_>>(),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "memory": self.memory.iter().map(memory).collect::<Vec<_>>(),
        })
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        fs::write(path, format!("{:#}\n", self.json())).map_err(|e| format!("write {}: {e}", path.display()))?;
        println!("\nwritten to {}", path.display());
        Ok(())
    }

    /// Holds on any machine: every row is there, and a pod's start is far from that of the peers.
    pub fn check_smoke(&self, runtimes: &[Runtime]) -> Result<()> {
        for &runtime in runtimes {
            for &op in op::ALL {
                let p50 = self.p50(runtime, op).ok_or_else(|| format!("no row {op} of {}", runtime.name()))?;
                if op == op::UP && p50 > SMOKE_LIMIT {
                    return Err(format!("{op} of {} took {p50:?}, more than {SMOKE_LIMIT:?}", runtime.name()).into());
                }
            }
        }
        Ok(())
    }
}

/// With a header, its columns from `numbers` on set to the right.
fn table(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// To the microsecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
