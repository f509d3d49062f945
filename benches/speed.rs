//! Times every kernel and layer at the rows of the speed table: `cargo bench --bench speed`, or
//! `cargo bench --bench speed -- linear` for those with `linear` in their id.
//!
//! A CPU adapter runs the small rows, any other the full ones; `TILEFORMER_ROWS=small` or `full` chooses. `TILEFORMER_ADAPTER`
//! holds a part of the adapter's name. Criterion's elements are FLOPs.
#![allow(clippy::disallowed_methods)] // A bench is a caller: it submits and waits.

mod clock;
mod rows;
mod work;

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::Duration;

use clock::Clock;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use rows::{Row, Work};
use tileformer::convenience::{Gpu, Setup};
use tileformer::{Error, Kernels, Options, Plan, Program, Result, wgpu};

/// What a row's inputs overflow together: larger than the last-level cache of any GPU of today.
const CACHE_BYTES: u64 = 64 << 20;

/// As many calls are timed as one, unless they take longer than [`LONGEST`].
const CALLS: u64 = 20;

/// No submission lasts longer, as far as one call allows: drivers give up on those that take seconds.
const LONGEST: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("speed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let gpu = Gpu::open(&Setup { adapter: std::env::var("TILEFORMER_ADAPTER").ok(), ..Setup::default() })?;
    let kernels = Kernels::new(&gpu.device, Options::default())?;
    let clock = Clock::new(&gpu);
    let wgpu::AdapterInfo { name, driver, driver_info, backend, device_type, .. } = &gpu.info;
    println!("adapter: {name} ({device_type:?}, {backend:?}), driver: {driver} {driver_info}");
    println!("clock: {}", clock.name());

    let on_cpu = *device_type == wgpu::DeviceType::Cpu;
    let rows = match std::env::var("TILEFORMER_ROWS").as_deref() {
        Ok("small") => rows::small(),
        Ok("full") => rows::full(),
        _ if on_cpu => rows::small(),
        _ => rows::full(),
    };
    let mut ready = Vec::with_capacity(rows.len());
    for row in rows {
        match row.program(&kernels) {
            Ok(program) => {
                describe(&row, &program);
                ready.push((row, program));
            }
            Err(error @ Error::Limit { .. }) => println!("{}: not run: {error}", row.id),
            Err(error) => return Err(error),
        }
    }

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group(format!("speed on {name}"));
    group.sampling_mode(SamplingMode::Flat).sample_size(if on_cpu { 10 } else { 20 });
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(if on_cpu { 2 } else { 3 }));
    let copies = |program: &Program| match rows::cacheable_bytes(program) {
        _ if on_cpu => 1,
        bytes => (1 + 3 * CACHE_BYTES / bytes.max(1)).min(CALLS) as usize,
    };
    let mut results = Vec::new();
    for (row, program) in &ready {
        let times = bench(&mut group, row, || Timed::new(&gpu, &clock, row, program, copies(program)))?;
        results.push((row, program, times));
    }
    group.finish();
    criterion.final_summary();
    summary(&results);
    Ok(())
}

/// One line on what runs in a row.
fn describe(row: &Row, program: &Program) {
    let variants: Vec<String> = program.variants().iter().map(tileformer::Variant::name).collect();
    let (count, scratch) = (program.dispatches().len(), program.scratch_bytes());
    println!("{}: {}\n    {count} dispatches, {scratch} bytes of scratch: {}", row.id, row.what, variants.join(", "));
}

/// A row on its buffers, with the number of calls that are timed as one.
struct Timed<'a> {
    clock: &'a Clock<'a>,
    plans: Vec<Plan>,
    calls: u64,
}

impl<'a> Timed<'a> {
    fn new(gpu: &Gpu, clock: &'a Clock<'a>, row: &Row, program: &Program, copies: usize) -> Result<Self> {
        let plans = row.plans(gpu, program, copies)?;
        clock.time(&plans[..1], 1)?;
        let one = clock.time(&plans[..1], 1)?;
        let calls = (LONGEST.as_nanos() / one.as_nanos().max(1)).clamp(1, u128::from(CALLS)) as u64;
        Ok(Self { clock, plans, calls })
    }

    /// Nanoseconds of each call: the mean of as many batches as hold `calls`.
    fn time(&self, calls: u64) -> Result<f64> {
        let batches = calls.div_ceil(self.calls);
        let times: Result<Vec<Duration>> = (0..batches).map(|_| self.clock.time(&self.plans, self.calls)).collect();
        let total: Duration = times?.iter().sum();
        Ok(total.as_nanos() as f64 / (batches * self.calls) as f64)
    }
}

/// Hands a row to criterion, and returns the nanoseconds of a call in every batch. Nothing is made for a row that criterion's
/// filter leaves out.
fn bench<'a>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    row: &Row,
    prepare: impl Fn() -> Result<Timed<'a>>,
) -> Result<Vec<f64>> {
    group.throughput(match row.work {
        Work::Flops(flops) => Throughput::Elements(flops),
        Work::Bytes(bytes) => Throughput::BytesDecimal(bytes),
    });
    // Criterion's closure has no way to fail: the first error waits here, and the calls behind it do nothing.
    let failed = RefCell::new(None);
    let mut times = Vec::new();
    let mut timed = None;
    group.bench_function(&row.id, |bencher| {
        if timed.is_none() && failed.borrow().is_none() {
            prepare().map_or_else(|error| *failed.borrow_mut() = Some(error), |ready| timed = Some(ready));
        }
        bencher.iter_custom(|calls| {
            let time = match &timed {
                Some(timed) if failed.borrow().is_none() => timed.time(calls),
                _ => return Duration::from_secs(1),
            };
            let nanoseconds = time.unwrap_or_else(|error| {
                *failed.borrow_mut() = Some(error);
                1e9
            });
            times.push(nanoseconds);
            Duration::from_secs_f64(nanoseconds * 1e-9 * calls as f64)
        });
    });
    failed.into_inner().map_or(Ok(times), Err)
}

/// The table: median and best time of a call over all batches, and the rate of each.
fn summary(results: &[(&Row, &Program, Vec<f64>)]) {
    println!("{:<22} {:>12} {:>12} {:>12} {:>12}  dispatches", "row", "median µs", "best µs", "median rate", "best rate");
    for (row, program, times) in results {
        let mut times = times.clone();
        times.sort_by(f64::total_cmp);
        let (Some(&best), Some(&median)) = (times.first(), times.get(times.len() / 2)) else { continue };
        let rate = |nanoseconds: f64| match row.work {
            Work::Flops(flops) => format!("{:.2} GFLOP/s", flops as f64 / nanoseconds),
            Work::Bytes(bytes) => format!("{:.2} GB/s", bytes as f64 / nanoseconds),
        };
        let count = program.dispatches().len();
        let (us, best_us) = (median / 1e3, best / 1e3);
        println!("{:<22} {us:>12.1} {best_us:>12.1} {:>12} {:>12}  {count}", row.id, rate(median), rate(best));
    }
}
