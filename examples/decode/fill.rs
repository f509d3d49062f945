//! Seeded random tensors, made on the GPU: a model of any size is there in no time, and nothing of it was ever on the host.

use tileformer::convenience::Gpu;
use tileformer::{Element, Result, TensorView, wgpu};

/// Words that one dispatch fills: 64 MiB, which every device binds at once.
const PART_WORDS: u32 = 16 << 20;

/// Makes random tensors.
pub(crate) struct Fill<'a> {
    gpu: &'a Gpu,
    pipeline: wgpu::ComputePipeline,
    seed: u32,
}

impl<'a> Fill<'a> {
    /// Tensors that are the same for the same seed and order.
    pub(crate) fn new(gpu: &'a Gpu, seed: u32) -> Self {
        let module = gpu.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("fill"),
            source: wgpu::ShaderSource::Wgsl(include_str!("fill.wgsl").into()),
        });
        let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("fill"),
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        Self { gpu, pipeline, seed }
    }

    /// A contiguous tensor of uniform numbers in −scale … scale.
    ///
    /// # Errors
    /// As [`Gpu::zeros`].
    pub(crate) fn tensor(&mut self, element: Element, sizes: &[usize], scale: f32) -> Result<TensorView> {
        let view = self.gpu.zeros(element, sizes)?;
        let words = (view.layout().extent() * element.size()).div_ceil(4) as u32;
        self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for first in (0..words).step_by(PART_WORDS as usize) {
            let size = PART_WORDS.min(words - first);
            let params = [size, self.seed, u32::from(element == Element::F16), scale.to_bits(), first, 0, 0, 0];
            let params = self.uniform(bytemuck::cast_slice(&params));
            let part = wgpu::BufferBinding {
                buffer: view.buffer(),
                offset: 4 * u64::from(first),
                size: std::num::NonZeroU64::new(4 * u64::from(size)),
            };
            let group = self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("fill"),
                layout: &self.pipeline.get_bind_group_layout(0),
                entries: &[
                    wgpu::BindGroupEntry { binding: 0, resource: params.as_entire_binding() },
                    wgpu::BindGroupEntry { binding: 1, resource: wgpu::BindingResource::Buffer(part) },
                ],
            });
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &group, &[]);
            let groups = size.div_ceil(64);
            pass.dispatch_workgroups(groups.min(32768), groups.div_ceil(32768), 1);
        }
        self.gpu.queue.submit([encoder.finish()]);
        Ok(view)
    }

    fn uniform(&self, bytes: &[u8]) -> wgpu::Buffer {
        let buffer = self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("fill"),
            size: bytes.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.gpu.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }
}
