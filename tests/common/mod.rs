//! What all integration tests share: a device, seeded data, tensors between guards, and the comparison with the twins.
#![allow(dead_code, unused_imports, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::panic)]

pub mod attention;
pub mod cases;
pub mod choosing;
pub mod close;
pub mod few;
pub mod floors;
pub mod forms;
pub mod fused;
pub mod generating;
pub mod guarded;
pub mod matrices;
pub mod random;
pub mod refusals;
pub mod run;
pub mod storing;

pub use close::{EPS, TANH, activation_floor, assert_close, largest, storage_floor, stored, sum_floor, widen};
pub use forms::{forms, on_form, some, stored_forms};
pub use guarded::{Guarded, POISON, Place};
pub use random::{floats, pick, primes, seeded, sizes, uniform};
pub use run::{Done, On, Run, assert_all_stored_variants, assert_all_variants};

use std::sync::OnceLock;

use tileformer::convenience::{Gpu, NO_ADAPTER, Setup};
use tileformer::{Kernels, Options, wgpu};

/// A device of its own, with all that the crate has a use for, but for what `change` makes of it. A machine without any fails here: a
/// test that skips itself tests nothing.
pub fn open(change: impl FnOnce(&mut wgpu::DeviceDescriptor<'_>)) -> Gpu {
    let power_preference = wgpu::PowerPreference::HighPerformance;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions { power_preference, ..Default::default() });
    let adapter = pollster::block_on(adapter).expect(NO_ADAPTER);
    let mut descriptor = wgpu::DeviceDescriptor {
        required_features: tileformer::wanted_features(&adapter),
        required_limits: tileformer::wanted_limits(&adapter),
        ..Default::default()
    };
    change(&mut descriptor);
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).expect("a device");
    Gpu { info: adapter.get_info(), device, queue, cooperative_matrices: Vec::new() }
}

/// The device that all tests of a process share. Its bindings begin at multiples of 256 bytes, the coarsest that there are: where they
/// begin anywhere, the offsets that kernels add would all but vanish.
pub fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| open(|device| device.required_limits.min_storage_buffer_offset_alignment = 256))
}

/// The crate on [`gpu`], with default options.
pub fn on() -> &'static On {
    static ON: OnceLock<On> = OnceLock::new();
    ON.get_or_init(|| On::new(gpu().clone(), Options::default()))
}

/// The crate on [`gpu`], batch invariant.
pub fn on_invariant() -> &'static On {
    static ON: OnceLock<On> = OnceLock::new();
    ON.get_or_init(|| On::new(gpu().clone(), Options::default().with_batch_invariant(true)))
}

/// The crate on a device without optional features: f16 is stored in pairs there.
pub fn on_core() -> &'static On {
    static ON: OnceLock<On> = OnceLock::new();
    ON.get_or_init(|| {
        let gpu = Gpu::open(&Setup { core_only: true, ..Setup::default() }).expect(NO_ADAPTER);
        On::new(gpu, Options::default())
    })
}

/// Whether the adapter has f16 as a type. One that lacks it fails here unless it is said to: a part is not the suite.
pub fn has_f16() -> bool {
    let has = gpu().device.features().contains(wgpu::Features::SHADER_F16);
    let name = &gpu().info.name;
    assert!(
        has || std::env::var_os("TILEFORMER_WITHOUT_F16").is_some(),
        "{name} has no f16 type: with TILEFORMER_WITHOUT_F16=1 these tests leave out what wants it"
    );
    has
}

/// The crate on [`gpu`] where that has f16 as a type: elsewhere it is stored in pairs, which want everything even.
pub fn on_typed() -> Option<&'static On> {
    has_f16().then(on)
}

/// The crate on a device for each form of f16 that the adapter runs, and whether that is pairs.
pub fn on_halves() -> impl Iterator<Item = (bool, &'static On)> {
    on_typed().map(|on| (false, on)).into_iter().chain([(true, on_core())])
}

/// The crate on [`gpu`] with one variant pinned.
pub fn on_pinned(variant: tileformer::Variant) -> On {
    On::new(gpu().clone(), Options::default().with_pinned(variant))
}

/// The crate on a device whose storage bindings hold 16384 elements only, so that larger weights and tables are split.
pub fn on_small_bindings() -> &'static On {
    static ON: OnceLock<On> = OnceLock::new();
    ON.get_or_init(|| On::new(small_bindings_gpu(1 << 16), Options::default()))
}

/// A device of its own, with storage bindings of at most `bytes`, and without features.
pub fn small_bindings_gpu(bytes: u64) -> Gpu {
    open(|device| {
        device.required_features = wgpu::Features::empty();
        device.required_limits.max_storage_buffer_binding_size = bytes;
    })
}

/// Kernels on [`gpu`] with options of one's own; pipelines are compiled anew.
pub fn kernels(options: Options) -> Kernels {
    Kernels::new(&gpu().device, options).expect("kernels")
}
