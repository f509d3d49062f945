//! Times every kernel and layer at the rows of the speed table, and lays each beside the device's ceiling:
//! `cargo bench --bench speed`, or `cargo bench --bench speed -- linear` for the rows with `linear` in their id.
//!
//! A CPU adapter runs the small rows, any other the full ones. benches/README.md says what the numbers mean.
#![allow(clippy::disallowed_methods)] // A bench is a caller: it submits and waits.

mod ceiling;
mod clock;
mod decode;
#[path = "../examples/decode/fill.rs"]
mod fill;
#[path = "../examples/decode/model.rs"]
mod model;
mod probes;
mod report;
mod rows;
mod task;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use ceiling::{Ceiling, Peaks};
use clap::{Parser, ValueEnum};
use clock::{Batch, Clock, Times};
use report::{Entry, Report};
use rows::Row;
use tileformer::convenience::{Gpu, Setup};
use tileformer::{Element, Error, Kernels, Options, Program, Result, Variant, wgpu};

/// Times the rows of the speed table.
#[derive(Parser)]
struct Arguments {
    /// Only rows with one of these in their id; all without any.
    rows: Vec<String>,
    /// Which list: by default the small one on a CPU adapter, the full one on any other.
    #[arg(long)]
    list: Option<List>,
    /// Only rows of this type.
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Part of the adapter's name.
    #[arg(long)]
    adapter: Option<String>,
    /// Opens the device with WebGPU's defaults: the core tier.
    #[arg(long)]
    core: bool,
    /// Without cooperative matrices, which wgpu counts as experimental.
    #[arg(long)]
    no_matrices: bool,
    /// Without index checks in shaders.
    #[arg(long)]
    unchecked: bool,
    /// Times a row also with each variant pinned that has one of these in its name, where the row can run it.
    #[arg(long = "try", value_name = "PART", num_args = 1..)]
    tries: Vec<String>,
    /// Batches timed for each row, fewer on a CPU adapter where they take more than seconds.
    #[arg(long, default_value_t = 25)]
    samples: usize,
    /// The device's f32 peak in TFLOP/s, where the bench does not know it.
    #[arg(long, value_name = "TFLOPS")]
    peak_f32: Option<f64>,
    /// The device's f16 peak in TFLOP/s, with f32 sums and dense operands.
    #[arg(long, value_name = "TFLOPS")]
    peak_f16: Option<f64>,
    /// Writes one JSON object a row to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F16,
}

#[derive(Clone, Copy, ValueEnum)]
enum List {
    Small,
    Full,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("speed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let setup = Setup { adapter: arguments.adapter.clone(), core_only: arguments.core };
    let gpu = match arguments.core || arguments.no_matrices {
        true => Gpu::open(&setup)?,
        // SAFETY: a bug in wgpu's cooperative matrices reaches no further than this bench.
        false => unsafe { Gpu::open_experimental(&setup) }?,
    };
    let mut options = gpu.options();
    if arguments.unchecked {
        // SAFETY: the sequences of every row lie inside its tensors.
        options = unsafe { options.with_unchecked_shaders() };
    }
    let kernels = Kernels::new(&gpu.device, options)?;
    let clock = Clock::new(&gpu);
    let small = match arguments.list {
        Some(list) => matches!(list, List::Small),
        None => gpu.info.device_type == wgpu::DeviceType::Cpu,
    };
    let typed = |element| arguments.dtype.is_none_or(|dtype| matches!(dtype, Dtype::F16) == (element == Element::F16));
    let named = |id: &str| arguments.rows.is_empty() || arguments.rows.iter().any(|part| id.contains(part));
    let wanted = |id: &str, element| named(id) && typed(element);
    let rows = if small { rows::small() } else { rows::full() };
    let decoding = if small { decode::small() } else { decode::full() };

    let peaks = Peaks::of(&gpu.info.name, arguments.peak_f32, arguments.peak_f16);
    let ceiling = Ceiling::measure(&gpu, &clock, peaks)?;
    let mut report = Report::new(arguments.json.as_deref())?;
    report.head(&gpu, &kernels, &clock, &ceiling)?;
    let mut say = |entry: &Entry, timed: Result<(Program, Times)>| match timed {
        Ok((program, times)) => Ok(report.row(entry, &program, &times, &ceiling)?),
        Err(error @ Error::Limit { .. }) => Ok(report.refused(entry, &error)?),
        Err(error) => Err(Box::<dyn std::error::Error>::from(error)),
    };
    let tried = tried(&gpu, kernels.options(), &arguments.tries)?;
    for row in rows.iter().filter(|row| wanted(&row.id, row.element)) {
        let timed = |program: Program| {
            let times = time(&gpu, &clock, row, &program, arguments.samples)?;
            Ok((program, times))
        };
        let program = row.program(&kernels);
        let mut seen: Vec<_> = program.iter().map(Program::variants).collect();
        say(&row.into(), program.and_then(timed))?;
        for kernels in &tried {
            let Ok(program) = row.program(kernels) else { continue };
            let variants = program.variants();
            if !seen.contains(&variants) {
                seen.push(variants);
                say(&row.into(), timed(program))?;
            }
        }
    }
    for row in decoding.iter().filter(|row| wanted(&row.id, row.element)) {
        say(&row.entry(), row.time(&gpu, &clock, &kernels, arguments.samples))?;
    }
    Ok(())
}

/// The crate with one variant pinned, for each that has one of `parts` in its name.
fn tried(gpu: &Gpu, options: &Options, parts: &[String]) -> Result<Vec<Kernels>> {
    let wanted = |variant: &Variant| parts.iter().any(|part| variant.name().contains(part.as_str()));
    let pinned = |variant| Kernels::new(&gpu.device, options.clone().with_pinned(variant));
    tileformer::kernels::variants().into_iter().filter(wanted).map(pinned).collect()
}

/// Times a row on buffers of its own, which are gone before the next row's are made.
fn time(gpu: &Gpu, clock: &Clock<'_>, row: &Row, program: &Program, samples: usize) -> Result<Times> {
    let batch = Batch::new(clock, row.plans(gpu, program)?)?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while clock.wants_more(times.len(), samples, start) {
        times.push(batch.time()?);
    }
    Ok(Times::of(times))
}
