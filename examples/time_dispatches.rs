//! Times each dispatch of one BERT-base encoder layer (B 1, T 128) on the GPU: `cargo run --release --example time_dispatches`.

use std::error::Error;
use std::time::Instant;

use tileformer::convenience::{Gpu, Setup};
use tileformer::layers::{EncoderLayer, Inputs};
use tileformer::{Activation, BatchShape, Bindings, Dispatch, Kernels, Options, Role, Sequences};

/// The fastest of so many runs counts: others may use the device too.
const RUNS: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let gpu = Gpu::open(&Setup::default())?;
    let kernels = Kernels::new(&gpu.device, Options::default())?;

    let mut layer = EncoderLayer::new(768, 12, 3072);
    layer.feed_forward.activation = Activation::Gelu;
    let program = layer.program(&kernels, &Inputs::new(BatchShape::padded(1, 128)))?;

    // Any numbers do.
    let mut bindings = Bindings::new();
    for (name, role, element, layout) in program.tensors() {
        let view = match role {
            Role::Output => gpu.zeros(element, layout.sizes())?,
            _ if name == "sequences" => gpu.upload_u32(layout.sizes(), Sequences::padded(&[128], 128)?.words())?,
            _ => gpu.upload_f32(layout.sizes(), &numbers(layout.len()))?,
        };
        bindings.set(name, view);
    }
    let plan = program.bind(&bindings)?;
    println!("{} ({})\n{}", gpu.info.name, gpu.info.driver_info, plan.describe());

    gpu.run(&plan)?;
    let mut best: Vec<(String, f64)> = match gpu.time(&plan) {
        Ok(times) => times,
        Err(tileformer::Error::Feature { feature, .. }) => {
            let start = Instant::now();
            gpu.run(&plan)?;
            println!("{:.0} µs for the layer, submit and wait included.", start.elapsed().as_secs_f64() * 1e6);
            println!("This device lacks {feature}, so its dispatches cannot be timed apart.");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    for _ in 1..RUNS {
        for ((_, best), (_, time)) in best.iter_mut().zip(gpu.time(&plan)?) {
            *best = best.min(time);
        }
    }

    let line =
        |label: &str, time: f64, flops: u64| println!("{label:<22} {:>10.1} {:>10.2}", time / 1e3, flops as f64 / time);
    println!("{:<22} {:>10} {:>10}", "dispatch", "µs", "GFLOP/s");
    for (dispatch, (label, time)) in program.dispatches().iter().zip(&best) {
        line(label, *time, dispatch.flops());
    }
    let (time, flops) = (best.iter().map(|(_, t)| t).sum(), program.dispatches().iter().map(Dispatch::flops).sum());
    line("all", time, flops);
    Ok(())
}

/// Numbers around 0 that do not repeat soon.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.7).sin() * 0.1).collect()
}
