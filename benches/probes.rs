//! What a device does at most, measured: bytes by a large copy, dispatches by empty ones.

use std::time::Duration;

use tileformer::convenience::Gpu;
use tileformer::{Element, Result, wgpu};

use crate::clock::Clock;

/// A copy this large passes every cache.
const COPY_BYTES: u64 = 1 << 30;

/// A CPU adapter's, whose memory is a part of the machine's.
const COPY_BYTES_CPU: u64 = 128 << 20;

/// Copies and empty dispatches that are timed as one.
const COPIES: u64 = 4;
const DISPATCHES: u32 = 200;

/// The best of so many counts.
const RUNS: usize = 8;

/// What a device does at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probes {
    /// Bytes read and written in a second by the faster of both copies, and which one that was.
    pub(crate) copy: f64,
    pub(crate) copy_by: &'static str,
    /// Seconds of a dispatch that does next to nothing and waits for the one before it.
    pub(crate) dispatch: f64,
}

impl Probes {
    /// Measures what can be measured.
    ///
    /// # Errors
    /// As [`Clock::time`], and [`tileformer::Error::Device`] where the device is out of memory.
    pub(crate) fn measure(gpu: &Gpu, clock: &Clock<'_>) -> Result<Self> {
        let largest = if gpu.info.device_type == wgpu::DeviceType::Cpu { COPY_BYTES_CPU } else { COPY_BYTES };
        let limits = gpu.device.limits();
        let bytes = largest.min(limits.max_storage_buffer_binding_size).min(limits.max_buffer_size) >> 22 << 22;
        let words = [(bytes / 4) as usize];
        let (from, to) = (gpu.zeros(Element::F32, &words)?, gpu.zeros(Element::F32, &words)?);

        let kernel = Pipeline::new(gpu, COPY, &[from.buffer(), to.buffer()]);
        // 4 KiB a workgroup, in rows of 1024 workgroups.
        let by_kernel =
            best(|| clock.time(|pass| (0..COPIES).for_each(|_| kernel.dispatch(pass, [1024, (bytes >> 22) as u32, 1]))))?;
        let by_command = best(|| {
            let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            (0..COPIES).for_each(|_| encoder.copy_buffer_to_buffer(from.buffer(), 0, to.buffer(), 0, bytes));
            clock.time_commands(encoder)
        })?;
        let (copy_by, time) =
            if by_kernel < by_command { ("a copy kernel", by_kernel) } else { ("copy_buffer_to_buffer", by_command) };

        let cells = gpu.zeros(Element::U32, &[1])?;
        let empty = Pipeline::new(gpu, EMPTY, &[cells.buffer()]);
        let dispatches = best(|| clock.time(|pass| (0..DISPATCHES).for_each(|_| empty.dispatch(pass, [1, 1, 1]))))?;
        Ok(Self { copy: (2 * bytes * COPIES) as f64 / time, copy_by, dispatch: dispatches / f64::from(DISPATCHES) })
    }
}

/// Seconds of the best of [`RUNS`].
fn best(mut run: impl FnMut() -> Result<Duration>) -> Result<f64> {
    let times: Result<Vec<Duration>> = (0..RUNS).map(|_| run()).collect();
    Ok(times?.iter().min().map_or(f64::NAN, Duration::as_secs_f64))
}

const COPY: &str = "
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let n = (group.y * 1024u + group.x) * 256u + thread;
  y[n] = x[n];
}";

const EMPTY: &str = "
@group(0) @binding(0) var<storage, read_write> cells: array<u32>;
@compute @workgroup_size(1)
fn main() {
  cells[0] += 1u;
}";

/// A pipeline on its buffers.
struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
}

impl Pipeline {
    fn new(gpu: &Gpu, source: &str, buffers: &[&wgpu::Buffer]) -> Self {
        let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("ceiling"),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("ceiling"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let resources = buffers.iter().map(|buffer| buffer.as_entire_binding());
        let entries: Vec<_> =
            (0..).zip(resources).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
        let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("ceiling"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Self { pipeline, group }
    }

    fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>, [x, y, z]: [u32; 3]) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}
