//! The only place that builds shader modules and pipelines.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::{Error, Result};
use crate::options::Options;
use crate::scratch::checked;
use crate::storage::DeviceClass;
use crate::tensor::Element;
use crate::tuned::Tuned;
use crate::variant::{Binding, GRID_FOLD, Variant};

/// Bytes bound in place of an absent tensor.
const NOTHING_BYTES: u64 = 256;

/// More than any kernel's last binding number.
const BINDINGS: u64 = 8;

/// A compiled variant.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) groups: [wgpu::BindGroupLayout; 2],
}

/// The crate on one device: holds its compiled pipelines. A clone is another handle of the same.
///
/// Makes no device of its own and never sees a queue. Compilation happens when a plan is bound, or ahead of it by
/// [`Kernels::warm_up`], which alone can wait for what a browser says of a shader.
#[derive(Clone)]
pub struct Kernels {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    device: wgpu::Device,
    limits: wgpu::Limits,
    class: DeviceClass,
    options: Options,
    pipelines: Arc<Mutex<HashMap<Variant, Pipeline>>>,
    /// Stand in for tensors that are left out: inputs, outputs.
    nothing: [wgpu::Buffer; 2],
}

impl fmt::Debug for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernels").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl Kernels {
    /// The crate on `device`.
    ///
    /// # Errors
    /// [`Error::Limit`] for a device below WebGPU's default limits where the core tier needs them, [`Error::Option`] for a table
    /// that was measured on another device or by another version of this crate, or that names variants that there are not.
    pub fn new(device: &wgpu::Device, options: Options) -> Result<Self> {
        let limits = device.limits();
        for (limit, needed, allowed) in [
            ("max_storage_buffers_per_shader_stage", 8, limits.max_storage_buffers_per_shader_stage.into()),
            ("max_uniform_buffers_per_shader_stage", 1, limits.max_uniform_buffers_per_shader_stage.into()),
            ("max_uniform_buffer_binding_size", 16_384, limits.max_uniform_buffer_binding_size),
            ("max_bind_groups", 2, limits.max_bind_groups.into()),
            ("max_bindings_per_bind_group", 2 * BINDINGS, limits.max_bindings_per_bind_group.into()),
            ("max_compute_invocations_per_workgroup", 256, limits.max_compute_invocations_per_workgroup.into()),
            ("max_compute_workgroup_size_x", 256, limits.max_compute_workgroup_size_x.into()),
            ("max_compute_workgroup_storage_size", 16_384, limits.max_compute_workgroup_storage_size.into()),
            ("max_compute_workgroups_per_dimension", GRID_FOLD.into(), limits.max_compute_workgroups_per_dimension.into()),
        ] {
            if allowed < needed {
                return Err(Error::Limit { what: "the core tier".into(), limit, needed, allowed });
            }
        }
        let nothing_step = NOTHING_BYTES.max(limits.min_storage_buffer_offset_alignment.into());
        let nothing = checked(device, "buffers in place of absent tensors", || {
            [1, BINDINGS].map(|bindings| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("tileformer: no tensor"),
                    size: nothing_step * bindings,
                    usage: wgpu::BufferUsages::STORAGE,
                    mapped_at_creation: false,
                })
            })
        })?;
        let mut class = DeviceClass::of(device, &options.cooperative_matrices);
        class.f32_by_matrices = options.f32_by_matrices;
        if let Some((size, _)) = options.emulated_matrices {
            class.matrix = Some(size);
            class.features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        }
        if let Some(tuned) = &options.tuned {
            tuned.check(&Tuned::new(device, &class))?;
        }
        let inner = Inner { device: device.clone(), limits, class, options, pipelines: Arc::default(), nothing };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The same, its compiled pipelines too, with another table of what was measured.
    #[cfg(feature = "convenience")]
    pub(crate) fn with_tuned(&self, tuned: Tuned) -> Self {
        let options = self.options().clone().with_tuned(tuned);
        Self { inner: Arc::new(Inner { options, ..(*self.inner).clone() }) }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The options that were given.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    pub(crate) fn limits(&self) -> &wgpu::Limits {
        &self.inner.limits
    }

    pub(crate) fn class(&self) -> &DeviceClass {
        &self.inner.class
    }

    /// Elements between two places where the binding of a tensor may begin.
    pub(crate) fn tensor_step(&self, element: Element) -> u64 {
        u64::from(self.inner.limits.min_storage_buffer_offset_alignment) / element.size()
    }

    /// Bytes between two places for parameters.
    pub(crate) fn parameter_step(&self) -> usize {
        self.inner.limits.min_uniform_buffer_offset_alignment.max(16) as usize
    }

    /// What is bound in place of an absent tensor: buffer, offset, bytes. Outputs have a buffer of their own, and a part of it
    /// each: no memory may be bound for writing twice.
    pub(crate) fn nothing(&self, binding: &Binding) -> (&wgpu::Buffer, u64, u64) {
        let [read, written] = &self.inner.nothing;
        if binding.writes {
            let step = written.size() / BINDINGS;
            (written, step * (u64::from(binding.binding) % BINDINGS), NOTHING_BYTES)
        } else {
            (read, 0, NOTHING_BYTES)
        }
    }

    pub(crate) fn pipelines(&self) -> MutexGuard<'_, HashMap<Variant, Pipeline>> {
        // A panic elsewhere leaves the map as it was: entries are inserted whole.
        self.inner.pipelines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The compiled variant, compiled now if it is not yet.
    pub(crate) fn pipeline(&self, variant: &Variant) -> Result<Pipeline> {
        if let Some(pipeline) = self.pipelines().get(variant) {
            return Ok(pipeline.clone());
        }
        let pipeline = if cfg!(target_family = "wasm") {
            self.build(variant) // nobody hears a scope here, as in `checked`
        } else {
            let Compile { pipeline, check } = self.compile(variant);
            let refused = now(check).flatten().map(|message| Error::Compile { variant: variant.name(), message });
            refused.map_or(Ok(pipeline), Err)?
        };
        self.pipelines().insert(*variant, pipeline.clone());
        Ok(pipeline)
    }

    /// Compiles a variant, and asks the device what it has against it.
    pub(crate) fn compile(&self, variant: &Variant) -> Compile<impl Future<Output = Option<String>> + use<>> {
        // Errors that no scope takes are panics by default, and drivers report theirs as internal ones.
        let filters = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation];
        let [memory, internal, validation] = filters.map(|filter| self.inner.device.push_error_scope(filter));
        let pipeline = self.build(variant);
        let failures = [validation.pop(), internal.pop(), memory.pop()];
        let check = async move {
            for failure in failures {
                if let Some(error) = failure.await {
                    return Some(error.to_string());
                }
            }
            None
        };
        Compile { pipeline, check }
    }

    fn build(&self, variant: &Variant) -> Pipeline {
        let device = &self.inner.device;
        let name = variant.name();
        let checks = match self.inner.options.unchecked {
            true => wgpu::ShaderRuntimeChecks::unchecked(),
            false => wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() },
        };
        let source = variant.source_with(self.inner.options.emulated_matrices.map(|(_, emulate)| emulate));
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(&name), source: wgpu::ShaderSource::Wgsl(source.into()) };
        // SAFETY: index checks are off only where the caller of `with_unchecked_shaders` has promised that no index leaves its
        // tensor. The bounding of loops is off everywhere: every loop of the shaders counts up to a constant or to a parameter that
        // the host computed; lengths read from GPU buffers are clamped to such a parameter first. The tests
        // `hostile_sequences_end` and `…_over_caches` run every kernel that reads lengths with all bits set.
        let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
        let groups = [0, 1].map(|group| {
            let storage = variant.bindings().filter(|b| b.group == group).map(|b| layout_entry(b.binding, b.writes));
            let uniform = (group == 0).then(uniform_entry);
            let entries: Vec<_> = uniform.into_iter().chain(storage).collect();
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&name), entries: &entries })
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&name),
            bind_group_layouts: &[Some(&groups[0]), Some(&groups[1])],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: self.inner.options.pipeline_cache.as_ref(),
        });
        Pipeline { pipeline, groups }
    }
}

/// A pipeline, and what its error scopes will say.
pub(crate) struct Compile<F> {
    pub(crate) pipeline: Pipeline,
    pub(crate) check: F,
}

fn uniform_entry() -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding: 0,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Uniform,
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}

fn layout_entry(binding: u32, writes: bool) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: !writes },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}

/// The value of a future that is ready, as error scopes are everywhere but in a browser, where nobody asks for it; else `None`.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
