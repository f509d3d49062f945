//! What holds for a device: the crate's options, and what it wants of an adapter.

use crate::storage::MatrixSize;
use crate::tuned::Tuned;
use crate::variant::{Emulate, Variant};

/// What holds for a whole device.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// Forbids choices by batch or row count, so that a row's bits do not depend on what else is in the batch.
    ///
    /// Where two forms of a kernel give the same bits (for any number of rows, with subgroups or without), that rests on `fma` being one
    /// operation everywhere and on sums in the order written. Vulkan's drivers keep to that; D3D12, where `fma` is HLSL's `mad`, and Metal,
    /// whose compiler has fast math by default, promise neither.
    pub batch_invariant: bool,
    /// A cache of the caller's for compiled pipelines.
    pub pipeline_cache: Option<wgpu::PipelineCache>,
    /// What `Adapter::cooperative_matrix_properties` says, which a device cannot tell. With the (experimental) feature
    /// `EXPERIMENTAL_COOPERATIVE_MATRIX`, `SHADER_F16` and `SUBGROUP` enabled, f16 products run on matrix units of these sizes.
    pub cooperative_matrices: Vec<wgpu::CooperativeMatrixProperties>,
    /// Runs large f32 projections on those matrix units as well, where there are any: operands split in two f16 each, three
    /// products, sums in f32 (Ootomo and Yokota, arXiv 2203.03341). The error is that of plain f32, unless elements of one row
    /// lie more than 2²³ apart; rows whose largest element is beyond what f16 holds are computed in plain f32, slowly. Measure it: an
    /// H100 takes 1.15 times as long as in plain f32 for a product of 4096³.
    pub f32_by_matrices: bool,
    /// Variants to prefer over the table's choice, wherever they can run.
    pub pinned: Vec<Variant>,
    /// What was measured on this device: taken over the table's choice, where nothing is pinned.
    pub tuned: Option<Tuned>,
    pub(crate) unchecked: bool,
    pub(crate) emulated_matrices: Option<(MatrixSize, Emulate)>,
}

impl Options {
    /// With batch invariance switched on or off.
    #[must_use]
    pub fn with_batch_invariant(self, batch_invariant: bool) -> Self {
        Self { batch_invariant, ..self }
    }

    /// With the cooperative matrices of the adapter.
    #[must_use]
    pub fn with_cooperative_matrices(self, matrices: Vec<wgpu::CooperativeMatrixProperties>) -> Self {
        Self { cooperative_matrices: matrices, ..self }
    }

    /// With f32 projections on matrix units switched on or off.
    ///
    /// That the error is the one of plain f32 rests on subnormal f16 keeping their values. WGSL allows a device to flush them to zero: on
    /// such a one elements below 2⁻¹⁴ count as 0.
    #[must_use]
    pub fn with_f32_by_matrices(self, f32_by_matrices: bool) -> Self {
        Self { f32_by_matrices, ..self }
    }

    /// With what the tests' `emulate` adds to kernels in place of the shared part that reaches cooperative matrices, so that their
    /// text runs on devices without them.
    #[doc(hidden)]
    #[must_use]
    pub fn with_emulated_matrices(self, size: u32, emulate: fn(&str) -> String) -> Self {
        let size = if size == 8 { MatrixSize::M8 } else { MatrixSize::M16 };
        Self { emulated_matrices: Some((size, emulate)), ..self }
    }

    /// With one more variant that is taken wherever it can run: its kernel, class and tier; storage and outputs are the
    /// tensors'. The first pinned one that can run wins.
    ///
    /// ```
    /// use tileformer::{Options, kernels};
    /// let plain = kernels::variants().into_iter().find(|variant| variant.name() == "linear.f32x4.64x64x16-plain");
    /// let options = plain.into_iter().fold(Options::default(), Options::with_pinned);
    /// assert_eq!(options.pinned.len(), 1);
    /// ```
    #[must_use]
    pub fn with_pinned(mut self, variant: Variant) -> Self {
        self.pinned.push(variant);
        self
    }

    /// With a table of what was measured on this device, in place of one that was there. It decides for the exact shapes that
    /// it has; the built-in table does for all others. Sums may come in another order then, as they do on another device.
    #[must_use]
    pub fn with_tuned(self, tuned: Tuned) -> Self {
        Self { tuned: Some(tuned), ..self }
    }

    /// With shaders that check no index: hot loops lose a clamp for each load and store.
    ///
    /// # Safety
    /// Indices come from two places: from layouts, which this crate has checked, and from data on the GPU, which it cannot
    /// check. The caller promises for every recording that the rows of every sequence (`q_start`, `q_len`, `k_start`, `k_len` of a
    /// [`Sequence`](crate::Sequence)) lie inside the tensors that are bound. Otherwise the GPU reads and writes outside of buffers, with whatever
    /// follows. Ids outside their table stay harmless.
    ///
    /// Where offsets, strides or sizes are no multiples of four, the end of a row is loaded as a whole group of four and what is too much is
    /// dropped: up to three elements behind a binding are read. Buffers with 12 bytes to spare behind the last tensor keep that inside.
    #[must_use]
    pub unsafe fn with_unchecked_shaders(self) -> Self {
        Self { unchecked: true, ..self }
    }

    /// Whether shaders check their indices, as they do by default.
    #[must_use]
    pub fn checks_shaders(&self) -> bool {
        !self.unchecked
    }

    /// With a pipeline cache.
    #[must_use]
    pub fn with_pipeline_cache(self, cache: wgpu::PipelineCache) -> Self {
        Self { pipeline_cache: Some(cache), ..self }
    }
}

/// The features of an adapter that this crate has a use for: timestamps for [`Timing`](crate::Timing), a pipeline cache, the f16 type
/// and subgroups. None is required, and none is experimental.
#[must_use]
pub fn wanted_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    let useful = wgpu::Features::TIMESTAMP_QUERY
        | wgpu::Features::PIPELINE_CACHE
        | wgpu::Features::SHADER_F16
        | wgpu::Features::SUBGROUP;
    adapter.features() & useful
}

/// The experimental features of an adapter that this crate has a use for: cooperative matrices, for f16 products on matrix units.
///
/// A device that enables them needs wgpu's `ExperimentalFeatures` token, which is unsafe to make, and
/// [`Options::cooperative_matrices`] from `Adapter::cooperative_matrix_properties`.
#[must_use]
pub fn wanted_experimental_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    adapter.features() & wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
}

/// WebGPU's default limits, with buffers, bindings and workgroup memory as large and offsets as fine as the adapter allows.
///
/// Larger weights then need no splitting, more views need no parameters of their own, and large tiles find room. Nothing beyond the
/// defaults is required.
#[must_use]
pub fn wanted_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
    let found = adapter.limits();
    wgpu::Limits {
        max_buffer_size: found.max_buffer_size,
        max_storage_buffer_binding_size: found.max_storage_buffer_binding_size,
        max_compute_workgroup_storage_size: found.max_compute_workgroup_storage_size,
        min_storage_buffer_offset_alignment: found.min_storage_buffer_offset_alignment,
        min_uniform_buffer_offset_alignment: found.min_uniform_buffer_offset_alignment,
        ..wgpu::Limits::default()
    }
}
