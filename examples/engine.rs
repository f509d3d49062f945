//! An engine that embeds the crate: it owns the device, the queue, every buffer and the encoder, and has compute of its own before
//! and behind the transformer. `cargo run --example engine`
//!
//! One frame, one encoder, one submit, for two batch shapes that are recorded twice each:
//!
//! ```text
//! noise (the engine's) -> x -> encoder of 2 layers (the crate's) -> y -> brightest value of each row (the engine's)
//! ```
#![allow(clippy::disallowed_methods)] // This is the caller's side: it submits, polls and maps.

use std::error::Error;

use tileformer::layers::{Encoder, EncoderLayer, Inputs};
use tileformer::reference::layers::{self as reference, Weights};
use tileformer::wgpu::{self, BufferUsages};
use tileformer::{BatchShape, Bindings, Kernels, Options, Plan, Program, Scratch, Sequences, wanted_features};

/// The width of a row.
const D_MODEL: usize = 96;

/// The largest difference that f32 arithmetic explains, values being around 1.
const TOLERANCE: f64 = 2e-5;

/// The engine's own compute before the transformer: one thread writes one element, the same on any machine.
const NOISE: &str = "
@group(0) @binding(0) var<uniform> job: vec4<u32>;  // seed, elements, first row in `brightest`, width
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= job.y { return; }
  var h = (id.x ^ job.x) * 0x9E3779B1u;
  h = (h ^ (h >> 15u)) * 0x85EBCA77u;
  x[id.x] = f32((h ^ (h >> 13u)) >> 8u) * 1.1920928955078125e-7 - 1.0;  // 2^-23: exact
}";

/// And behind it: one thread reduces one row.
const REDUCE: &str = "
@group(0) @binding(0) var<uniform> job: vec4<u32>;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> brightest: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x >= job.y / job.w { return; }
  var best = y[id.x * job.w];
  for (var c = 1u; c < job.w; c++) { best = max(best, y[id.x * job.w + c]); }
  brightest[job.z + id.x] = best;
}";

/// What a frame did.
#[derive(Debug)]
pub(crate) struct Report {
    /// What it ran on.
    pub(crate) adapter: wgpu::AdapterInfo,
    /// Dispatches of one recording of each plan.
    pub(crate) dispatches: [usize; 2],
    /// Rows that came out of all four recordings.
    pub(crate) rows: usize,
    /// Bytes of the scratch that both plans share, and of what they would have had apart.
    pub(crate) scratch: [u64; 2],
    /// The largest difference from the CPU reference in f64.
    pub(crate) max_error: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Report { adapter, dispatches: [a, b], rows, scratch: [shared, apart], max_error } = run()?;
    println!("{}: 2 × {a} and 2 × {b} dispatches of the crate's in one encoder, one submit", adapter.name);
    println!("scratch: {shared} bytes shared by both plans, {apart} bytes apart");
    println!("{rows} rows, largest error against the CPU reference {max_error:.1e}");
    Ok(())
}

/// Runs one frame and checks it.
///
/// # Errors
/// What the device, the crate or the check says.
pub(crate) fn run() -> Result<Report, Box<dyn Error>> {
    let engine = Engine::open()?;
    // The crate sees the device here, and never a queue. Pipelines are compiled when a plan is bound.
    let kernels = Kernels::new(&engine.device, Options::default())?;

    // Programs hold no buffers: shapes, variants, parameters. Three padded sequences of up to 20 rows; 50 rows of two
    // sequences without padding.
    let spec = Encoder::new(EncoderLayer::new(D_MODEL, 4, 256), 2);
    let padded = (BatchShape::padded(3, 20), Sequences::padded(&[20, 7, 13], 20)?);
    let packed = Sequences::packed(&[12, 38])?;
    let packed = (packed.shape(), packed);
    let programs = [spec.program(&kernels, &Inputs::new(padded.0))?, spec.program(&kernels, &Inputs::new(packed.0))?];

    // Plans are programs on buffers. Both have the same weights, and, as they run one behind the other, the same scratch.
    let model = Model::new(&engine, spec, &programs[0])?;
    let scratch = Scratch::shared(&[&programs[0], &programs[1]])?;
    let a = Tile::new(&engine, &model, &programs[0], &scratch, padded)?;
    let b = Tile::new(&engine, &model, &programs[1], &scratch, packed)?;

    let rows = 2 * (a.rows() + b.rows());
    let brightest = engine.buffer(BufferUsages::STORAGE | BufferUsages::COPY_SRC, rows);
    let mut jobs = Vec::new();
    for (tile, seed) in [(&a, 1), (&b, 2), (&a, 3), (&b, 4)] {
        let first = jobs.last().map_or(0, |j: &Job<'_>| j.first + j.tile.rows());
        jobs.push(Job::new(&engine, tile, seed, first, &brightest)?);
    }

    let mut encoder = engine.device.create_command_encoder(&Default::default());
    for (i, job) in jobs.iter().enumerate() {
        if i % 2 == 0 {
            // In a pass of the engine's. The plan leaves its own pipeline and bind groups 0 and 1 behind.
            let mut pass = encoder.begin_compute_pass(&Default::default());
            job.make_noise(&engine, &mut pass);
            job.tile.plan.record_in(&mut pass);
            job.reduce(&engine, &mut pass);
        } else {
            // In a pass of its own.
            job.make_noise(&engine, &mut encoder.begin_compute_pass(&Default::default()));
            job.tile.plan.record(&mut encoder);
            job.reduce(&engine, &mut encoder.begin_compute_pass(&Default::default()));
        }
    }
    let readback = engine.buffer(BufferUsages::COPY_DST | BufferUsages::MAP_READ, rows);
    encoder.copy_buffer_to_buffer(&brightest, 0, &readback, 0, readback.size());
    engine.queue.submit([encoder.finish()]);

    let (send, receive) = std::sync::mpsc::channel();
    readback.slice(..).map_async(wgpu::MapMode::Read, move |result| drop(send.send(result)));
    engine.device.poll(wgpu::PollType::wait_indefinitely())?;
    receive.recv()??;
    let found: Vec<f32> = bytemuck::pod_collect_to_vec(&readback.slice(..).get_mapped_range()?);

    let mut max_error = 0.0f64;
    for job in &jobs {
        for (row, (expected, &found)) in model.expected(job)?.iter().zip(&found[job.first..]).enumerate() {
            let error = (expected - f64::from(found)).abs();
            if error.is_nan() || error > TOLERANCE {
                return Err(format!("row {row} of seed {}: expected {expected}, found {found}", job.seed).into());
            }
            max_error = max_error.max(error);
        }
    }
    Ok(Report {
        adapter: engine.adapter,
        dispatches: [a.plan.variants().len(), b.plan.variants().len()],
        rows,
        scratch: [scratch.bytes(), programs.iter().map(Program::scratch_bytes).sum()],
        max_error,
    })
}

/// The engine's device, its queue and its own two kernels.
struct Engine {
    adapter: wgpu::AdapterInfo,
    device: wgpu::Device,
    queue: wgpu::Queue,
    noise: wgpu::ComputePipeline,
    reduce: wgpu::ComputePipeline,
}

impl Engine {
    fn open() -> Result<Self, Box<dyn Error>> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = pollster::block_on(instance.request_adapter(&Default::default()))?;
        // WebGPU's default limits are all that the crate needs; features only help where they are there.
        let required_features = wanted_features(&adapter);
        let descriptor = wgpu::DeviceDescriptor { required_features, ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
        let pipeline = |label, source: &'static str| {
            let source = wgpu::ShaderSource::Wgsl(source.into());
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(label),
                layout: None,
                module: &device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some(label), source }),
                entry_point: Some("main"),
                compilation_options: Default::default(),
                cache: None,
            })
        };
        let (noise, reduce) = (pipeline("noise", NOISE), pipeline("reduce", REDUCE));
        Ok(Self { adapter: adapter.get_info(), device, queue, noise, reduce })
    }

    fn buffer(&self, usage: BufferUsages, elements: usize) -> wgpu::Buffer {
        let size = 4 * elements as u64;
        self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    }

    /// A buffer that holds `data` from the start, so that nothing is left to write at the next submit.
    fn filled<T: bytemuck::Pod>(&self, usage: BufferUsages, data: &[T]) -> Result<wgpu::Buffer, Box<dyn Error>> {
        let size = size_of_val(data) as u64;
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: true };
        let buffer = self.device.create_buffer(&descriptor);
        buffer.slice(..).get_mapped_range_mut()?.copy_from_slice(bytemuck::cast_slice(data));
        buffer.unmap();
        Ok(buffer)
    }

    fn bind(&self, pipeline: &wgpu::ComputePipeline, buffers: &[&wgpu::Buffer]) -> wgpu::BindGroup {
        let mut entries = Vec::new();
        for (binding, buffer) in (0..).zip(buffers) {
            entries.push(wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() });
        }
        let layout = &pipeline.get_bind_group_layout(0);
        self.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
    }
}

/// The weights: one behind the other in one buffer of the engine's, and on the host for the check.
struct Model {
    spec: Encoder,
    bindings: Bindings,
    values: Vec<f64>,
}

impl Model {
    /// Seeded numbers for every weight that the program names.
    fn new(engine: &Engine, spec: Encoder, program: &Program) -> Result<Self, Box<dyn Error>> {
        // Any offset works. A multiple of 256 bytes, the largest alignment that a device asks for, needs no parameters of the
        // plan's own.
        const ALIGN: u64 = 256;
        let descriptor = wgpu::BufferDescriptor {
            label: Some("weights"),
            size: program.weight_bytes(ALIGN),
            usage: BufferUsages::STORAGE,
            mapped_at_creation: true,
        };
        let buffer = engine.device.create_buffer(&descriptor);
        let bindings = program.weights_in(&buffer, 0, ALIGN)?;
        let mut values = vec![0.0f32; (buffer.size() / 4) as usize];
        for (name, view) in bindings.iter() {
            let (first, centre) = (view.offset(), if name.ends_with("weight") && name.contains("norm") { 1.0 } else { 0.0 });
            for (i, value) in (0..).zip(&mut values[first as usize..][..view.layout().len()]) {
                *value = centre + 0.2 * noise(first as u32, i);
            }
        }
        buffer.slice(..).get_mapped_range_mut()?.copy_from_slice(bytemuck::cast_slice(&values));
        buffer.unmap();
        Ok(Self { spec, bindings, values: values.into_iter().map(f64::from).collect() })
    }

    /// The rows of a job by the CPU twins, in f64.
    fn expected(&self, job: &Job<'_>) -> Result<Vec<f64>, Box<dyn Error>> {
        let mut weights = Weights::new();
        for (name, view) in self.bindings.iter() {
            let first = view.offset() as usize;
            weights.insert(name, view.layout().sizes(), &self.values[first..first + view.layout().len()])?;
        }
        let elements = (job.tile.rows() * D_MODEL) as u32;
        let x: Vec<f64> = (0..elements).map(|i| noise(job.seed, i).into()).collect();
        let (shape, sequences) = &job.tile.batch;
        let (y, _) = reference::encoder(&self.spec, &weights, "", &x, &reference::Batch::new(*shape, sequences.as_slice()))?;
        Ok(y.chunks(D_MODEL).map(|row| row.iter().copied().fold(f64::NEG_INFINITY, f64::max)).collect())
    }
}

/// What [`NOISE`] writes to element `i`.
fn noise(seed: u32, i: u32) -> f32 {
    let h = (i ^ seed).wrapping_mul(0x9E37_79B1);
    let h = (h ^ (h >> 15)).wrapping_mul(0x85EB_CA77);
    ((h ^ (h >> 13)) >> 8) as f32 * 2f32.powi(-23) - 1.0
}

/// A batch shape of the engine's: its plan and its tensors.
struct Tile {
    plan: Plan,
    x: wgpu::Buffer,
    y: wgpu::Buffer,
    batch: (BatchShape, Sequences),
}

impl Tile {
    fn new(
        engine: &Engine,
        model: &Model,
        program: &Program,
        scratch: &Scratch,
        batch: (BatchShape, Sequences),
    ) -> Result<Self, Box<dyn Error>> {
        let rows = batch.0.q_rows;
        let [x, y] = [(); 2].map(|()| engine.buffer(BufferUsages::STORAGE, rows * D_MODEL));
        let sequences = batch.1.clone().for_shape(&batch.0)?;
        let sequences = engine.filled(BufferUsages::STORAGE, sequences.words())?;
        let mut bindings = model.bindings.clone();
        for (name, buffer) in [("x", &x), ("y", &y), ("sequences", &sequences)] {
            bindings.set(name, program.view(name, buffer, 0)?);
        }
        Ok(Self { plan: program.bind_with(&bindings, scratch)?, x, y, batch })
    }

    fn rows(&self) -> usize {
        self.batch.0.q_rows
    }
}

/// One recording of a tile: the engine's own dispatches around the plan's.
struct Job<'a> {
    tile: &'a Tile,
    seed: u32,
    /// Where its rows begin in the result.
    first: usize,
    before: wgpu::BindGroup,
    behind: wgpu::BindGroup,
}

impl<'a> Job<'a> {
    fn new(
        engine: &Engine,
        tile: &'a Tile,
        seed: u32,
        first: usize,
        brightest: &wgpu::Buffer,
    ) -> Result<Self, Box<dyn Error>> {
        // A buffer that is written between two recordings of one encoder serves both with its last value: every job has one
        // of its own.
        let parameters = [seed, (tile.rows() * D_MODEL) as u32, first as u32, D_MODEL as u32];
        let parameters = engine.filled(BufferUsages::UNIFORM, &parameters)?;
        let before = engine.bind(&engine.noise, &[&parameters, &tile.x]);
        let behind = engine.bind(&engine.reduce, &[&parameters, &tile.y, brightest]);
        Ok(Self { tile, seed, first, before, behind })
    }

    fn make_noise(&self, engine: &Engine, pass: &mut wgpu::ComputePass<'_>) {
        dispatch(pass, &engine.noise, &self.before, self.tile.rows() * D_MODEL);
    }

    fn reduce(&self, engine: &Engine, pass: &mut wgpu::ComputePass<'_>) {
        dispatch(pass, &engine.reduce, &self.behind, self.tile.rows());
    }
}

fn dispatch(pass: &mut wgpu::ComputePass<'_>, pipeline: &wgpu::ComputePipeline, group: &wgpu::BindGroup, threads: usize) {
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, group, &[]);
    pass.dispatch_workgroups(threads.div_ceil(64) as u32, 1, 1);
}
