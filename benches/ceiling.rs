//! What the device can do at most: bytes by a large copy, FLOPs by its maker's figures, dispatches by empty ones.

use std::time::Duration;

use tileformer::convenience::Gpu;
use tileformer::{Element, Result, wgpu};

use crate::clock::Clock;
use crate::task::Work;

/// A copy this large passes every cache.
const COPY_BYTES: u64 = 1 << 30;

/// A CPU adapter's, whose memory is a part of the machine's.
const COPY_BYTES_CPU: u64 = 128 << 20;

/// Copies and empty dispatches that are timed as one.
const COPIES: u64 = 4;
const DISPATCHES: u32 = 200;

/// Ceilings are the best of so many.
const RUNS: usize = 8;

/// Peaks of known devices, dense and without sparsity: a part of the adapter's name, TFLOP/s in f32, TFLOP/s of matrix units with
/// f16 operands and f32 sums, and where the figures are from. The first match wins.
const KNOWN: [(&str, f64, f64, &str); 7] = [
    ("H100 PCIe", 51.2, 756.0, "NVIDIA H100 Tensor Core GPU Architecture, table of H100 PCIe"),
    ("H100 NVL", 60.0, 835.5, "NVIDIA H100 datasheet, H100 NVL; f16 without sparsity is half the figure given"),
    ("H100", 66.9, 989.4, "NVIDIA H100 Tensor Core GPU Architecture, table of H100 SXM5"),
    ("H200", 66.9, 989.4, "NVIDIA H200 datasheet; the compute of H100 SXM5"),
    ("A100", 19.5, 312.0, "NVIDIA A100 datasheet"),
    ("RTX 4090", 82.6, 165.2, "NVIDIA Ada GPU Architecture, table of RTX 4090"),
    ("RTX 3090", 35.6, 71.2, "NVIDIA GA102 GPU Architecture, table of RTX 3090"),
];

/// The device's peaks in FLOP/s, where they are known.
pub(crate) struct Peaks {
    f32: Option<f64>,
    f16: Option<f64>,
    source: String,
}

impl Peaks {
    /// From the caller, who goes first, or from the table.
    pub(crate) fn of(adapter: &str, f32: Option<f64>, f16: Option<f64>) -> Self {
        let known = KNOWN.iter().find(|(name, ..)| adapter.contains(name));
        let of = |given: Option<f64>, known: Option<f64>| given.or(known).map(|tera| tera * 1e12);
        let source = match known {
            _ if f32.is_some() || f16.is_some() => "given on the command line",
            Some((.., source)) => source,
            None => "no known device: give --peak-f32 and --peak-f16",
        };
        let (known_f32, known_f16) = known.map(|(_, f32, f16, _)| (*f32, *f16)).unzip();
        Self { f32: of(f32, known_f32), f16: of(f16, known_f16), source: source.to_owned() }
    }

    fn of_element(&self, element: Element) -> Option<f64> {
        if element == Element::F32 { self.f32 } else { self.f16 }
    }
}

/// What the device can do at most.
pub(crate) struct Ceiling {
    /// Bytes read and written in a second by the faster of both copies, and which one that was.
    pub(crate) copy: f64,
    pub(crate) copy_by: &'static str,
    /// Seconds of a dispatch that does next to nothing and waits for the one before it.
    pub(crate) dispatch: f64,
    peaks: Peaks,
}

impl Ceiling {
    /// Measures what can be measured.
    ///
    /// # Errors
    /// As [`Clock::time`], and [`tileformer::Error::Device`] where the device is out of memory.
    pub(crate) fn measure(gpu: &Gpu, clock: &Clock<'_>, peaks: Peaks) -> Result<Self> {
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
        Ok(Self { copy: (2 * bytes * COPIES) as f64 / time, copy_by, dispatch: dispatches / f64::from(DISPATCHES), peaks })
    }

    /// The share of the ceiling that `work` in so many seconds reaches, 1 at most, where the ceiling is known.
    pub(crate) fn share(&self, work: Work, element: Element, seconds: f64) -> Option<f64> {
        match work {
            Work::Bytes(bytes) => Some(bytes as f64 / seconds / self.copy),
            Work::Flops(flops) => self.peaks.of_element(element).map(|peak| flops as f64 / seconds / peak),
        }
    }

    /// The ceilings in words.
    pub(crate) fn describe(&self) -> String {
        let (copy, by, dispatch) = (self.copy * 1e-9, self.copy_by, self.dispatch * 1e6);
        format!("ceilings: {copy:.1} GB/s by {by}; {}\nan empty dispatch behind another: {dispatch:.2} µs", self.peaks())
    }

    /// The device's peaks in words.
    pub(crate) fn peaks(&self) -> String {
        let tera = |peak: Option<f64>| peak.map_or("unknown".into(), |peak| format!("{:.1} TFLOP/s", peak * 1e-12));
        let Peaks { f32, f16, source } = &self.peaks;
        format!("f32 {}, f16 {} ({source})", tera(*f32), tera(*f16))
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
