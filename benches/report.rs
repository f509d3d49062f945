//! What the bench says: a table on standard output, and one JSON object a line in a file.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};
use tileformer::convenience::Gpu;
use tileformer::{Element, Error, Kernels, Program, Variant, wgpu};

use crate::ceiling::Ceiling;
use crate::clock::{Clock, Times};
use crate::rows::{Row, dtype};
use crate::task::Work;

/// What a row is, for the table.
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) element: Element,
    pub(crate) work: Work,
    pub(crate) what: String,
    /// Tokens that a call makes, where it decodes.
    pub(crate) tokens: Option<usize>,
}

impl From<&Row> for Entry {
    fn from(row: &Row) -> Self {
        Self { id: row.id.clone(), element: row.element, work: row.work(), what: row.task.what(), tokens: None }
    }
}

pub(crate) struct Report {
    json: Option<File>,
}

impl Report {
    /// With a file for JSON lines, or without.
    pub(crate) fn new(json: Option<&Path>) -> io::Result<Self> {
        Ok(Self { json: json.map(File::create).transpose()? })
    }

    fn line(&mut self, value: &Value) -> io::Result<()> {
        self.json.as_mut().map_or(Ok(()), |file| writeln!(file, "{value}"))
    }

    /// What everything below was measured on, and the ceilings.
    pub(crate) fn head(&mut self, gpu: &Gpu, kernels: &Kernels, clock: &Clock<'_>, ceiling: &Ceiling) -> io::Result<()> {
        let info = &gpu.info;
        let features = gpu.device.features();
        let mut with: Vec<&str> = [(wgpu::Features::SHADER_F16, "shader-f16"), (wgpu::Features::SUBGROUP, "subgroups")]
            .into_iter()
            .filter_map(|(feature, name)| features.contains(feature).then_some(name))
            .collect();
        with.extend((!gpu.cooperative_matrices.is_empty()).then_some("cooperative matrices"));
        with.push(if kernels.options().checks_shaders() { "index checks" } else { "no index checks" });
        let with = with.join(", ");
        println!("{} ({:?}, {:?}), driver {} {}", info.name, info.device_type, info.backend, info.driver, info.driver_info);
        println!("with {with}\ntimes: {}\n{}\n", clock.name(), ceiling.describe());
        println!(
            "{:<22} {:<8} {:>11} {:>11} {:>14} {:>8} {:>10} {:>11}  variants",
            "row", "dtype", "median µs", "best µs", "rate", "ceiling", "dispatches", "scratch"
        );
        self.line(&json!({
            "tileformer": env!("CARGO_PKG_VERSION"),
            "device": info.name,
            "device_type": format!("{:?}", info.device_type),
            "backend": format!("{:?}", info.backend),
            "driver": format!("{} {}", info.driver, info.driver_info),
            "with": with,
            "clock": clock.name(),
            "peaks": ceiling.peaks(),
        }))?;
        self.line(&json!({ "id": "copy", "GB_per_s": rounded(ceiling.probes.copy * 1e-9), "how": ceiling.probes.copy_by }))?;
        self.line(&json!({ "id": "empty-dispatch", "us": rounded(ceiling.probes.dispatch * 1e6) }))
    }

    pub(crate) fn row(&mut self, row: &Entry, program: &Program, times: &Times, ceiling: &Ceiling) -> io::Result<()> {
        let work = row.work;
        let share = ceiling.share(work, row.element, times.median);
        let (rate, unit) = match work {
            Work::Flops(flops) => (flops as f64 / times.median * 1e-12, "TFLOP/s"),
            Work::Bytes(bytes) => (bytes as f64 / times.median * 1e-9, "GB/s"),
        };
        let shown =
            if unit == "TFLOP/s" && rate < 0.1 { format!("{:.2} GFLOP/s", rate * 1e3) } else { format!("{rate:.2} {unit}") };
        let variants: Vec<String> = program.variants().iter().map(Variant::name).collect();
        let variants = variants.join(", ");
        println!(
            "{:<22} {:<8} {:>11.1} {:>11.1} {:>14} {:>8} {:>10} {:>11}  {variants}",
            row.id,
            dtype(row.element),
            times.median * 1e6,
            times.best * 1e6,
            shown,
            share.map_or("unknown".into(), |share| format!("{:.1} %", 100.0 * share)),
            program.dispatches().len(),
            bytes(program.scratch_bytes()),
        );
        self.line(&json!({
            "id": row.id,
            "dtype": dtype(row.element),
            "ms": rounded(times.median * 1e3),
            "best_ms": rounded(times.best * 1e3),
            "rate": rounded(rate),
            "unit": unit,
            "percent_of_ceiling": share.map(|share| rounded(100.0 * share)),
            "dispatches": program.dispatches().len(),
            "scratch_bytes": program.scratch_bytes(),
            "what": row.what,
            "tokens_per_s": row.tokens.map(|tokens| rounded(tokens as f64 / times.median)),
            "how": variants,
        }))
    }

    /// A row that the device is too small for.
    pub(crate) fn refused(&mut self, row: &Entry, error: &Error) -> io::Result<()> {
        println!("{:<22} {:<8} not run: {error}", row.id, dtype(row.element));
        self.line(&json!({ "id": row.id, "dtype": dtype(row.element), "not_run": error.to_string() }))
    }
}

/// Five digits.
fn rounded(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{:.1} KiB", count as f64 / 1024.0),
        _ => format!("{:.1} MiB", count as f64 / 1_048_576.0),
    }
}
