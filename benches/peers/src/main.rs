//! Times the rows of the speed table with other crates, alternating with tileformer on the same adapter.
//!
//! `cargo run --release` in this folder; README.md says how each row is done by each crate.
#![recursion_limit = "256"]

#[path = "../../clock.rs"]
mod clock;
#[path = "../../rows.rs"]
#[allow(dead_code)] // The bench uses all of it.
mod rows;
#[path = "../../task.rs"]
#[allow(dead_code)]
mod task;
#[path = "../../work.rs"]
mod work;

#[cfg(feature = "burn")]
mod burn_peer;
mod ferrotensor_peer;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use clock::{Batch, Clock, Times};
use rows::Row;
use serde_json::{Value, json};
use tileformer::convenience::{Gpu, Setup};
use tileformer::{Error, Kernels, Program, Role, wgpu};

#[cfg(feature = "burn")]
use burn_peer::Burn;
use ferrotensor_peer::Ferrotensor;

/// Times the rows of the speed table with burn and ferrotensor-backend, alternating with tileformer.
#[derive(Parser)]
struct Arguments {
    /// Only rows with one of these in their id; all without any.
    rows: Vec<String>,
    /// Part of the adapter's name.
    #[arg(long)]
    adapter: Option<String>,
    /// Batches timed for each row, fewer on a CPU adapter where they take more than seconds.
    #[arg(long, default_value_t = 25)]
    samples: usize,
    /// Writes one JSON object a row and peer to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a peer needs to know of a row beside its task.
struct Load {
    /// Sets of inputs and weights to rotate over.
    copies: u64,
    /// What one call reads.
    input_bytes: u64,
    /// What one call writes.
    output_bytes: u64,
}

/// A crate that can do some of the rows.
trait Peer {
    /// Its name and version, and what else tells its figures from others.
    fn name(&self) -> String;

    /// The row, ready to be timed, or why it is not compared.
    fn prepare(&self, row: &Row, load: &Load) -> Result<Box<dyn Entrant>, String>;
}

/// A row of a peer, warmed up.
trait Entrant {
    /// What it calls.
    fn how(&self) -> String;

    /// Seconds of a call, the mean of one batch.
    fn time(&self) -> Result<f64, String>;
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let setup = Setup { adapter: arguments.adapter.clone(), ..Setup::default() };
    // SAFETY: a bug in wgpu's cooperative matrices reaches no further than this program.
    let gpu = unsafe { Gpu::open_experimental(&setup) }?;
    let kernels = Kernels::new(&gpu.device, gpu.options())?;
    let clock = Clock::new(&gpu);
    let mut peers: Vec<Box<dyn Peer>> = Vec::new();
    #[cfg(feature = "burn")]
    match Burn::open(&gpu.info) {
        Ok(burn) => peers.push(Box::new(burn)),
        Err(why) => println!("burn: {why}"),
    }
    match Ferrotensor::open(&gpu.info) {
        Ok(ferrotensor) => peers.push(Box::new(ferrotensor)),
        Err(why) => println!("ferrotensor-backend: {why}"),
    }

    let wanted = |row: &Row| arguments.rows.is_empty() || arguments.rows.iter().any(|part| row.id.contains(part));
    let on_cpu = gpu.info.device_type == wgpu::DeviceType::Cpu;
    let rows = if on_cpu { rows::small() } else { rows::full() };

    println!("{} ({:?}), driver {} {}", gpu.info.name, gpu.info.backend, gpu.info.driver, gpu.info.driver_info);
    println!("ours: {}; ratio: the peer's time over ours\n", clock.name());
    println!("{:<22} {:<8} {:<28} {:>11} {:>11} {:>7}  how", "row", "dtype", "peer", "peer µs", "ours µs", "ratio");
    let mut json = arguments.json.as_deref().map(File::create).transpose()?;
    for row in rows.iter().filter(|row| wanted(row)) {
        match row.program(&kernels) {
            Ok(program) => compare(row, &program, &gpu, &clock, &peers, arguments.samples, &mut json)?,
            Err(error @ Error::Limit { .. }) => println!("{:<22} {:<8} not run: {error}", row.id, rows::dtype(row.element)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Times one row of every peer that does it, in turn with ours.
fn compare(
    row: &Row,
    program: &Program,
    gpu: &Gpu,
    clock: &Clock<'_>,
    peers: &[Box<dyn Peer>],
    samples: usize,
    json: &mut Option<File>,
) -> Result<(), Box<dyn std::error::Error>> {
    let written = program.tensors().filter(|(_, role, ..)| *role == Role::Output);
    let input_bytes = rows::cacheable_bytes(program);
    let load = Load {
        copies: rows::copies(gpu, input_bytes),
        input_bytes,
        output_bytes: written.map(|(.., element, layout)| layout.extent() * element.size()).sum(),
    };
    for peer in peers {
        let name = peer.name();
        let entrant = match peer.prepare(row, &load) {
            Ok(entrant) => entrant,
            Err(why) => {
                println!("{:<22} {:<8} {name:<28} not compared: {why}", row.id, rows::dtype(row.element));
                continue;
            }
        };
        let ours = Batch::new(clock, row.plans(gpu, program)?)?;
        let (start, mut our_times, mut their_times) = (Instant::now(), Vec::new(), Vec::new());
        while clock.wants_more(our_times.len(), samples, start) {
            our_times.push(ours.time()?);
            their_times.push(entrant.time()?);
        }
        let (ours, theirs) = (Times::of(our_times), Times::of(their_times));
        let ratio = theirs.median / ours.median;
        println!(
            "{:<22} {:<8} {name:<28} {:>11.1} {:>11.1} {ratio:>7.2}  {}",
            row.id,
            rows::dtype(row.element),
            theirs.median * 1e6,
            ours.median * 1e6,
            entrant.how(),
        );
        line(
            json,
            &json!({
                "by": name,
                "id": row.id,
                "dtype": rows::dtype(row.element),
                "ms": theirs.median * 1e3,
                "best_ms": theirs.best * 1e3,
                "ours_ms": ours.median * 1e3,
                "ours_best_ms": ours.best * 1e3,
                "how": entrant.how(),
            }),
        )?;
    }
    Ok(())
}

fn line(json: &mut Option<File>, value: &Value) -> io::Result<()> {
    json.as_mut().map_or(Ok(()), |file| writeln!(file, "{value}"))
}

/// Calls that are timed as one: at least [`clock::CALLS`], and for 20 ms, but no longer than half a second.
fn calls(seconds: f64, load: &Load) -> u64 {
    let fit = |time: f64| (time / seconds.max(1e-9)) as u64;
    // Every output of a batch is alive at once, so that no call is left out.
    let most = fit(0.5).min((2 << 30) / load.output_bytes.max(1));
    clock::CALLS.max(fit(0.02)).min(most).max(3.min(fit(2.0)).max(1))
}
