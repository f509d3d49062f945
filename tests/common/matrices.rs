//! Kernels on cooperative matrices, anywhere: where the adapter lacks them, their text runs on a shared part of the same interface
//! that computes in plain arrays (emulated_matrices.wgsl).

use std::collections::BTreeSet;
use std::sync::OnceLock;

use super::On;
use tileformer::convenience::{Gpu, NO_ADAPTER, Setup};
use tileformer::{Options, Variant, kernels};

/// The device: its matrix units, where it has any, are what these tests run on.
pub fn matrix_gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        // SAFETY: a test may use experimental features; what they break, fails.
        unsafe { Gpu::open_experimental(&Setup::default()) }.expect(NO_ADAPTER)
    })
}

/// The shared part on plain arrays, for matrices of `size` and the adapter's subgroups.
fn emulated(size: u32) -> &'static str {
    let held = size.div_ceil(matrix_gpu().info.subgroup_min_size);
    let text = format!("const HELD: u32 = {held}u;\n{}", include_str!("emulated_matrices.wgsl"));
    Box::leak(text.into_boxed_str())
}

/// The classes of a kernel, with a crate that prefers each: all of them on matrix units of their size, else those in `emulated`.
pub fn on_each_class(kernel: &str, classes: &[&str]) -> Vec<(Variant, On)> {
    let gpu = matrix_gpu();
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    for variant in kernels::variants() {
        let name = variant.name();
        // kernel.storage.class.matrix, the class with a dot in it or not
        let mut parts = name.trim_end_matches(".matrix").splitn(3, '.');
        let (Some(of), Some(_), Some(class)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if of != kernel || !seen.insert(class.to_owned()) {
            continue;
        }
        let size = if class.ends_with("m8") { 8 } else { 16 };
        let real = gpu.cooperative_matrices.iter().any(|m| [m.m_size, m.n_size, m.k_size] == [size; 3]);
        if real {
            all.push((variant, On::new(gpu.clone(), gpu.options().with_f32_by_matrices(true).with_pinned(variant))));
        } else if classes.contains(&class) {
            let options = Options::default().with_emulated_matrices(size, emulated(size));
            all.push((variant, On::new(gpu.clone(), options.with_f32_by_matrices(true).with_pinned(variant))));
        }
    }
    assert!(all.len() >= classes.len(), "{kernel} has no {classes:?}");
    all
}
