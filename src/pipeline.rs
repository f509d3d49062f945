//! The only place that builds shader modules and pipelines.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::{Error, Result};
use crate::tuning::{Class, Lanes};

/// The grid's x dimension where one line of workgroups is folded over two: the largest that every device has.
pub(crate) const GRID_FOLD: u32 = 65_535;

/// One binding of a kernel.
#[derive(Debug)]
pub(crate) struct Binding {
    /// The variable's name in WGSL.
    pub(crate) name: &'static str,
    /// 0 for weights, 1 for activations.
    pub(crate) group: u32,
    pub(crate) binding: u32,
    pub(crate) writes: bool,
    /// Whether it is loaded in groups of [`Lanes`], and so must be aligned as they are.
    pub(crate) grouped: bool,
    /// Where the element offset stands in the parameters, in bytes.
    pub(crate) offset_at: usize,
    /// Bit of [`Variant::outputs`] that must be set for the binding to exist; 0 for always.
    pub(crate) output: u8,
}

impl Binding {
    /// An `f32` input, loaded in groups.
    pub(crate) const fn read(name: &'static str, group: u32, binding: u32, offset_at: usize) -> Self {
        Self { name, group, binding, writes: false, grouped: true, offset_at, output: 0 }
    }

    /// An output, stored in groups.
    pub(crate) const fn write(name: &'static str, binding: u32, offset_at: usize) -> Self {
        Self { writes: true, ..Self::read(name, 1, binding, offset_at) }
    }

    /// The same binding, element by element.
    pub(crate) const fn single(self) -> Self {
        Self { grouped: false, ..self }
    }

    /// The same binding, there only where bit `output` of the variant's outputs is set.
    pub(crate) const fn optional(self, output: u8) -> Self {
        Self { output, ..self }
    }
}

/// A file under `shaders/`, in the binary and by its path.
#[derive(Debug)]
pub(crate) struct Source {
    #[cfg_attr(not(any(debug_assertions, feature = "live-shaders")), allow(dead_code))]
    pub(crate) path: &'static str,
    pub(crate) text: &'static str,
}

/// Names a WGSL file under `shaders/`.
macro_rules! wgsl {
    ($path:literal) => {
        $crate::pipeline::Source { path: $path, text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path)) }
    };
}
pub(crate) use wgsl;

pub(crate) const STORAGE: [Source; 2] = [wgsl!("shared/storage_f32.wgsl"), wgsl!("shared/storage_f32x4.wgsl")];
pub(crate) const GRID: Source = wgsl!("shared/grid.wgsl");
pub(crate) const TILE: Source = wgsl!("shared/tile.wgsl");
pub(crate) const ROWS: Source = wgsl!("shared/rows.wgsl");
pub(crate) const ACTIVATE: Source = wgsl!("shared/activate.wgsl");
pub(crate) const ATTENTION: Source = wgsl!("shared/attention.wgsl");
pub(crate) const SCORES: Source = wgsl!("shared/scores.wgsl");

/// What a kernel is to the host: its name, its WGSL, its bindings and the layout of its parameters.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    pub(crate) shared: &'static [&'static Source],
    /// Parts that an output bit chooses: without it, with it.
    pub(crate) parts: &'static [(u8, Source, Source)],
    pub(crate) source: Source,
    pub(crate) bindings: &'static [Binding],
    pub(crate) params_size: usize,
    /// Names and byte offsets of the parameters, for the test that compares them with WGSL's.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(crate) params_fields: &'static [(&'static str, usize)],
}

/// One compiled form of a kernel: what specialises its shader. All else is in the parameters.
#[derive(Clone, Copy)]
pub struct Variant {
    pub(crate) kernel: &'static Kernel,
    pub(crate) class: &'static Class,
    pub(crate) lanes: Lanes,
    /// Optional outputs that are bound, a bit each.
    pub(crate) outputs: u8,
}

impl Variant {
    fn key(&self) -> (&'static str, &'static str, Lanes, u8) {
        (self.kernel.name, self.class.name, self.lanes, self.outputs)
    }

    /// Kernel, storage, tile and outputs, as in `linear.f32x4.64x64x16`.
    #[must_use]
    pub fn name(&self) -> String {
        let outputs = if self.outputs == 0 { String::new() } else { format!(".outputs{}", self.outputs) };
        format!("{}.{}.{}{outputs}", self.kernel.name, self.lanes.name(), self.class.name)
    }

    /// The complete WGSL: a header of constants, the storage type, the shared parts, the kernel.
    ///
    /// With `TILEFORMER_SHADERS=DIR` in the environment, builds with debug assertions or the feature `live-shaders` read the
    /// files from `DIR` instead of the ones compiled in.
    #[must_use]
    pub fn source(&self) -> String {
        let mut text = format!("// {}\n\nconst GRID_FOLD: u32 = {GRID_FOLD}u;\n", self.name());
        for (name, value) in self.class.constants {
            text += &format!("const {name}: u32 = {value}u;\n");
        }
        let mut add = |source: &Source| {
            text += "\n";
            text += &live_text(source);
        };
        add(&STORAGE[usize::from(self.lanes == Lanes::Four)]);
        add(&GRID);
        self.kernel.shared.iter().for_each(|s| add(s));
        for (bit, without, with) in self.kernel.parts {
            add(if self.outputs & bit == 0 { without } else { with });
        }
        add(&self.kernel.source);
        text
    }

    /// The bindings that this variant has.
    pub(crate) fn bindings(&self) -> impl Iterator<Item = &'static Binding> + use<> {
        let outputs = self.outputs;
        self.kernel.bindings.iter().filter(move |b| b.output == 0 || b.output & outputs != 0)
    }

    /// Storage buffers that one stage binds.
    #[must_use]
    pub fn storage_buffers(&self) -> usize {
        self.bindings().count()
    }
}

impl PartialEq for Variant {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Variant {}

impl std::hash::Hash for Variant {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Debug for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(any(debug_assertions, feature = "live-shaders"))]
fn live_text(source: &Source) -> std::borrow::Cow<'static, str> {
    match std::env::var_os("TILEFORMER_SHADERS").map(|dir| std::path::Path::new(&dir).join(source.path)) {
        Some(path) => std::fs::read_to_string(path).map_or(source.text.into(), Into::into),
        None => source.text.into(),
    }
}

#[cfg(not(any(debug_assertions, feature = "live-shaders")))]
fn live_text(source: &Source) -> &'static str {
    source.text
}

/// What holds for a whole device.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// Forbids choices by batch or row count, so that a row's bits do not depend on what else is in the batch.
    pub batch_invariant: bool,
    /// A cache of the caller's for compiled pipelines.
    pub pipeline_cache: Option<wgpu::PipelineCache>,
}

impl Options {
    /// With batch invariance switched on or off.
    #[must_use]
    pub fn with_batch_invariant(self, batch_invariant: bool) -> Self {
        Self { batch_invariant, ..self }
    }

    /// With a pipeline cache.
    #[must_use]
    pub fn with_pipeline_cache(self, cache: wgpu::PipelineCache) -> Self {
        Self { pipeline_cache: Some(cache), ..self }
    }
}

/// The features of an adapter that this crate has a use for: timestamps for [`Timing`](crate::Timing), and a pipeline cache. None is
/// required, and none is experimental.
#[must_use]
pub fn wanted_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    adapter.features() & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE)
}

/// WebGPU's default limits, with buffers and bindings as large as the adapter allows: larger weights then need no splitting.
/// Nothing beyond the defaults is required.
#[must_use]
pub fn wanted_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
    let found = adapter.limits();
    wgpu::Limits {
        max_buffer_size: found.max_buffer_size,
        max_storage_buffer_binding_size: found.max_storage_buffer_binding_size,
        min_storage_buffer_offset_alignment: found.min_storage_buffer_offset_alignment,
        min_uniform_buffer_offset_alignment: found.min_uniform_buffer_offset_alignment,
        ..wgpu::Limits::default()
    }
}

/// A compiled variant.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) groups: [wgpu::BindGroupLayout; 2],
}

/// The crate on one device: holds its compiled pipelines. A clone is another handle of the same.
///
/// Makes no device of its own and never sees a queue. Compilation happens when a plan is bound, or ahead of it by
/// [`Kernels::warm_up`].
#[derive(Clone)]
pub struct Kernels {
    inner: Arc<Inner>,
}

struct Inner {
    device: wgpu::Device,
    limits: wgpu::Limits,
    options: Options,
    pipelines: Mutex<HashMap<Variant, Pipeline>>,
    /// Stands in for optional inputs that are left out.
    nothing: wgpu::Buffer,
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
    /// [`Error::Limit`] for a device below WebGPU's default limits where the core tier needs them.
    pub fn new(device: &wgpu::Device, options: Options) -> Result<Self> {
        let limits = device.limits();
        for (limit, needed, allowed) in [
            ("max_storage_buffers_per_shader_stage", 8, limits.max_storage_buffers_per_shader_stage),
            ("max_compute_invocations_per_workgroup", 256, limits.max_compute_invocations_per_workgroup),
            ("max_compute_workgroup_size_x", 256, limits.max_compute_workgroup_size_x),
            ("max_compute_workgroup_storage_size", 16_384, limits.max_compute_workgroup_storage_size),
            ("max_compute_workgroups_per_dimension", GRID_FOLD, limits.max_compute_workgroups_per_dimension),
            ("max_bind_groups", 2, limits.max_bind_groups),
        ] {
            if allowed < needed {
                let (needed, allowed) = (u64::from(needed), u64::from(allowed));
                return Err(Error::Limit { what: "the core tier".into(), limit, needed, allowed });
            }
        }
        let nothing = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("tileformer: no tensor"),
            size: 256,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let inner = Inner { device: device.clone(), limits, options, pipelines: Mutex::default(), nothing };
        Ok(Self { inner: Arc::new(inner) })
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

    pub(crate) fn nothing(&self) -> &wgpu::Buffer {
        &self.inner.nothing
    }

    fn pipelines(&self) -> MutexGuard<'_, HashMap<Variant, Pipeline>> {
        // A panic elsewhere leaves the map as it was: entries are inserted whole.
        self.inner.pipelines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The compiled variant, compiled now if it is not yet.
    pub(crate) fn pipeline(&self, variant: &Variant) -> Result<Pipeline> {
        if let Some(pipeline) = self.pipelines().get(variant) {
            return Ok(pipeline.clone());
        }
        let compile = self.compile(variant);
        let pipeline = now(compile.check)
            .flatten()
            .map_or(Ok(compile.pipeline), |message| Err(Error::Compile { variant: variant.name(), message }))?;
        self.pipelines().insert(*variant, pipeline.clone());
        Ok(pipeline)
    }

    fn compile(&self, variant: &Variant) -> Compile<impl Future<Output = Option<String>> + use<>> {
        let device = &self.inner.device;
        let name = variant.name();
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(&name), source: wgpu::ShaderSource::Wgsl(variant.source().into()) };
        // SAFETY: only the bounding of loops is off. Every loop of the shaders counts up to a constant or to a parameter that
        // the host computed; lengths read from GPU buffers are clamped to such a parameter first. The test
        // `hostile_sequences_end` runs every kernel that reads lengths with all bits set.
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
        let failure = scope.pop();
        let check = async move { failure.await.map(|e| e.to_string()) };
        Compile { pipeline: Pipeline { pipeline, groups }, check }
    }

    /// Compiles `variants` one step at a time, so that nothing freezes; take them from [`Program::variants`](crate::Program::variants).
    ///
    /// ```no_run
    /// # async fn f(kernels: &tileformer::Kernels, program: &tileformer::Program) -> tileformer::Result<()> {
    /// let mut warm_up = kernels.warm_up(program.variants());
    /// while let Some(progress) = warm_up.step().await? {
    ///     println!("{} of {}: {}", progress.done, progress.total, progress.variant);
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn warm_up(&self, variants: impl IntoIterator<Item = Variant>) -> WarmUp {
        let mut waiting: Vec<Variant> = Vec::new();
        for variant in variants {
            if !waiting.contains(&variant) {
                waiting.push(variant);
            }
        }
        WarmUp { kernels: self.clone(), waiting, done: 0 }
    }
}

struct Compile<F> {
    pipeline: Pipeline,
    check: F,
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

/// The value of a future that is ready, as error scopes are everywhere but in a browser; `None` where it is not: there the
/// page's own error handler reports.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Compilation ahead of use, one variant a step: see [`Kernels::warm_up`].
#[derive(Debug)]
pub struct WarmUp {
    kernels: Kernels,
    waiting: Vec<Variant>,
    done: usize,
}

/// How far a warm-up is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Variants that are compiled.
    pub done: usize,
    /// Variants in all.
    pub total: usize,
    /// The one that this step compiled.
    pub variant: String,
}

impl WarmUp {
    /// Compiles the next variant; `None` when all are.
    ///
    /// # Errors
    /// [`Error::Compile`] with what the device said. The next step goes on with the next variant.
    pub async fn step(&mut self) -> Result<Option<Progress>> {
        let Some(variant) = self.waiting.get(self.done).copied() else { return Ok(None) };
        self.done += 1;
        if !self.kernels.pipelines().contains_key(&variant) {
            let compile = self.kernels.compile(&variant);
            if let Some(message) = compile.check.await {
                return Err(Error::Compile { variant: variant.name(), message });
            }
            self.kernels.pipelines().insert(variant, compile.pipeline);
        }
        Ok(Some(Progress { done: self.done, total: self.waiting.len(), variant: variant.name() }))
    }
}
