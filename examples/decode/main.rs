//! Decodes with a model of GPT-2's kind whose weights are random, made on the GPU, and says how fast and how near to what the
//! device can do.
//!
//! ```text
//! cargo run --release --example decode                                   # GPT-2 124M, one text
//! cargo run --release --example decode -- --batch 32 --f16 --context 128,1024
//! ```
#![allow(clippy::disallowed_methods)] // An example is a caller: it submits and waits.

#[path = "../../benches/clock.rs"]
#[allow(dead_code)]
mod clock;
mod fill;
mod model;
#[path = "../../benches/probes.rs"]
mod probes;

use std::process::ExitCode;

use clap::Parser;
use clock::Clock;
use model::{Decode, Run, Sizes};
use probes::Probes;
use tileformer::convenience::{CHUNK_STEPS, Gpu, Setup};
use tileformer::spec::sampling::Sampling;
use tileformer::{Element, Error, Kernels};

/// Decodes with a model of random weights.
#[derive(Parser)]
struct Arguments {
    /// Layers.
    #[arg(long, default_value_t = 12)]
    layers: usize,
    /// Width of a row.
    #[arg(long, default_value_t = 768)]
    d_model: usize,
    /// Heads.
    #[arg(long, default_value_t = 12)]
    heads: usize,
    /// Width of the feed-forward network; four times the row's without it.
    #[arg(long)]
    d_ff: Option<usize>,
    /// Tokens that there are.
    #[arg(long, default_value_t = 50257)]
    vocabulary: usize,
    /// Texts that are decoded at once.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens that a text has before the first step; several are run one after the other.
    #[arg(long, default_value = "128", value_delimiter = ',')]
    context: Vec<usize>,
    /// New tokens.
    #[arg(long, default_value_t = 128)]
    steps: usize,
    /// Steps in one submission.
    #[arg(long, default_value_t = CHUNK_STEPS)]
    chunk: usize,
    /// Weights and caches in f16.
    #[arg(long)]
    f16: bool,
    /// The same bits alone or in a batch, in one prefill or in several.
    #[arg(long)]
    batch_invariant: bool,
    /// 0 for the likeliest token.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// How many of the likeliest tokens are drawn from; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    /// The probability that the tokens which are drawn from have together.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Of the weights.
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// Part of the adapter's name.
    #[arg(long)]
    adapter: Option<String>,
    /// Times a step of a beam search beside, from an empty text: this many beams each of as many texts as give --batch rows
    #[arg(long, value_name = "N")]
    beams: Option<usize>,
    /// Times a step without caches beside, one text, all of its rows anew.
    #[arg(long)]
    uncached: bool,
    /// Prints the dispatches of a step, and the time of each in the first one.
    #[arg(long)]
    describe: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("decode: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let gpu = Gpu::open(&Setup { adapter: arguments.adapter.clone(), ..Setup::default() })?;
    let options = gpu.options().with_batch_invariant(arguments.batch_invariant);
    let kernels = Kernels::new(&gpu.device, options)?;
    let probes = Probes::measure(&gpu, &Clock::new(&gpu))?;
    let &Arguments { layers: n_layers, d_model, heads: n_heads, vocabulary, batch, steps, .. } = arguments;
    let sizes = Sizes { n_layers, d_model, n_heads, d_ff: arguments.d_ff.unwrap_or(4 * d_model), vocabulary };
    let element = if arguments.f16 { Element::F16 } else { Element::F32 };
    let sampling = |row: u64| {
        let sampled = Sampling::sampled(row).with_temperature(arguments.temperature)?;
        sampled.with_top_k(arguments.top_k).with_top_p(arguments.top_p)
    };
    println!(
        "{}, {} layers of {d_model}, V {vocabulary}, B {batch}, {}; {:.1} GB/s by {}, an empty dispatch {:.2} µs",
        gpu.info.name,
        n_layers,
        element.name(),
        probes.copy * 1e-9,
        probes.copy_by,
        probes.dispatch * 1e6,
    );
    let longest = arguments.context.iter().max().copied().unwrap_or(0);
    let generator = sizes.generator(longest + steps);
    let weights = model::weights(&gpu, &kernels, &generator, element, arguments.seed)?;
    println!(
        "{:>8} {:>12} {:>12} {:>11} {:>14} {:>12} {:>10} {:>13} {:>11}",
        "context",
        "tokens/s",
        "ms a step",
        "dispatches",
        "bytes a token",
        "roofline ms",
        "reached",
        "host µs/step",
        "prefill ms"
    );
    for &context in &arguments.context {
        let run = Run { batch, context, steps };
        let decode = Decode::new(&gpu, &kernels, (&generator, &weights, element), run, sampling)?;
        if arguments.describe {
            println!("{}", decode.step.describe());
            decode.decode(arguments.chunk)?;
            for (label, nanoseconds) in decode.time_step()? {
                println!("{label:<34} {:>10.1} µs", nanoseconds * 1e-3);
            }
        }
        // The first run compiles what the driver left; a second prefill is without that too.
        let decode = Decode::new(&gpu, &kernels, (&generator, &weights, element), run, sampling)?;
        decode.decode(arguments.chunk)?;
        let (time, _) = decode.decode(arguments.chunk)?;
        let dispatches = decode.step.program().dispatches().len();
        let host = decode.record(arguments.chunk)?.as_secs_f64() / arguments.chunk as f64;
        let step = time.as_secs_f64() / steps as f64;
        let bytes = sizes.bytes(&run, element);
        // A copy's bytes are read and written: reading alone goes as fast.
        let least = bytes as f64 / probes.copy + dispatches as f64 * probes.dispatch;
        println!(
            "{context:>8} {:>12.1} {:>12.3} {dispatches:>11} {:>14} {:>12.3} {:>9.1} % {:>12.1} {:>11.1}",
            batch as f64 / step,
            step * 1e3,
            bytes / batch as u64,
            least * 1e3,
            100.0 * least / step,
            host * 1e6,
            decode.prefill.as_secs_f64() * 1e3,
        );
        if arguments.uncached {
            let without = model::uncached(&gpu, &kernels, (&generator, &weights, element), context)?;
            let times = without / (step / batch as f64);
            println!(
                "{:>8} {:>12.1} {:>12.3}   without caches: {times:.1} times the time of a token",
                "",
                1.0 / without,
                without * 1e3
            );
        }
    }
    if let Some(beams) = arguments.beams {
        let (seconds, dispatches) = model::beams(&gpu, &kernels, (&generator, &weights, element), [batch, beams, steps])?;
        println!(
            "{:>8} {:>12.1} {:>12.3} {dispatches:>11}   {beams} beams of {} texts",
            0,
            (batch / beams.max(1)) as f64 / seconds,
            seconds * 1e3,
            batch / beams.max(1)
        );
    }
    Ok(())
}
