//! The results, as a table for people and as JSON for programs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::{Result, Runtime, STEPS, Step};

/// One pull.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub wall: Duration,
    pub cpu: Duration,
    pub peak_kib: u64,
    pub written_bytes: u64,
    /// By how much the daemon's directory has grown.
    pub disk_bytes: u64,
    /// What the files of the layers occupy that were not there.
    pub unpacked_bytes: u64,
}

#[derive(Debug)]
pub struct Report {
    rounds: u32,
    versions: Vec<(Runtime, String)>,
    omitted: Vec<(Runtime, String)>,
    samples: Vec<(Runtime, Step, Sample)>,
}

/// All pulls of one step by one runtime.
struct Row {
    runtime: Runtime,
    step: Step,
    n: usize,
    min: Duration,
    p50: Duration,
    cpu: Duration,
    /// Of memory, bytes written and disk: the most of all rounds.
    peak_kib: u64,
    written_bytes: u64,
    disk_bytes: u64,
    unpacked_bytes: u64,
}

impl Report {
    pub fn new(rounds: u32) -> Report {
        Report { rounds, versions: vec![], omitted: vec![], samples: vec![] }
    }

    pub fn version(&mut self, runtime: Runtime, version: String) {
        self.versions.push((runtime, version));
    }

    /// Says why a runtime is not in the table.
    pub fn omit(&mut self, runtime: Runtime, why: &str) {
        self.omitted.push((runtime, why.to_owned()));
    }

    pub fn add(&mut self, runtime: Runtime, step: Step, sample: Sample) {
        self.samples.push((runtime, step, sample));
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for step in STEPS {
            for (runtime, _) in &self.versions {
                let of_it = self.samples.iter().filter(|(r, s, _)| r == runtime && *s == step);
                let mut samples: Vec<Sample> = of_it.map(|(_, _, sample)| *sample).collect();
                samples.sort_by_key(|sample| sample.wall);
                let Some(middle) = samples.get(samples.len() / 2) else { continue };
                let most = |of: fn(&Sample) -> u64| samples.iter().map(of).max().unwrap_or(0);
                rows.push(Row {
                    runtime: *runtime,
                    step,
                    n: samples.len(),
                    min: samples[0].wall,
                    p50: middle.wall,
                    cpu: middle.cpu,
                    peak_kib: most(|s| s.peak_kib),
                    written_bytes: most(|s| s.written_bytes),
                    disk_bytes: most(|s| s.disk_bytes),
                    unpacked_bytes: middle.unpacked_bytes,
                });
            }
        }
        rows
    }

    pub fn print(&self) {
        println!("{} rounds, each with daemons started anew; registry on loopback", self.rounds);
        for (runtime, version) in &self.versions {
            println!("  {}: {version}", runtime.name());
        }
        for (runtime, why) in &self.omitted {
            println!("  {}: left out, {why}", runtime.name());
        }
        println!("{}", self.table());
    }

    fn table(&self) -> Table {
        let header = ["image", "runtime", "min s", "p50 s", "p50 / aril", "CPU s", "peak MB", "written MB", "disk MB"];
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header);
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let rows = self.rows();
        let mut last = "";
        for row in &rows {
            let aril = rows.iter().find(|r| r.step == row.step && r.runtime == Runtime::Aril);
            let ratio = aril.map(|aril| row.p50.as_secs_f64() / aril.p50.as_secs_f64());
            let shown = if row.step.name == last { "" } else { row.step.name };
            last = row.step.name;
            table.add_row([
                shown.to_owned(),
                row.runtime.name().to_owned(),
                format!("{:.2}", row.min.as_secs_f64()),
                format!("{:.2}", row.p50.as_secs_f64()),
                ratio.map_or_else(String::new, |ratio| format!("{ratio:.1}×")),
                format!("{:.2}", row.cpu.as_secs_f64()),
                (row.peak_kib * 1024 / 1_000_000).to_string(),
                (row.written_bytes / 1_000_000).to_string(),
                format!("{} of {}", row.disk_bytes / 1_000_000, row.unpacked_bytes / 1_000_000),
            ]);
        }
        table
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "runtime": row.runtime.name(), "image": row.step.name, "n": row.n,
                "min_s": row.min.as_secs_f64(), "p50_s": row.p50.as_secs_f64(), "cpu_s": row.cpu.as_secs_f64(),
                "peak_kib": row.peak_kib, "written_bytes": row.written_bytes,
                "disk_bytes": row.disk_bytes, "unpacked_bytes": row.unpacked_bytes,
            })
        };
        json!({ "rows": self.rows().iter().map(row).collect::<Vec<_>>() })
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        fs::write(path, format!("{:#}\n", self.json())).map_err(|e| format!("write {}: {e}", path.display()))?;
        println!("\nwritten to {}", path.display());
        Ok(())
    }
}
