//! The kernels on cooperative matrices against their twins, on any adapter: where it lacks them, their text runs on a shared part
//! of the same interface that computes in plain arrays (common/emulated_matrices.wgsl). Tiles, edges, masks, scaling and
//! epilogues are the kernels' own either way.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use common::{
    On, Place, Run, activation_floor, assert_close, floats, pick, seeded, storage_floor, stored, sum_floor, widen,
};
use rand::RngExt;
use tileformer::convenience::{Gpu, NO_ADAPTER, Setup};
use tileformer::{Activation, Element, Kernels, Options, Variant, kernels, reference, wgpu};

/// The device: its matrix units, where it has any, are what these tests run on.
fn matrix_gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| {
        // SAFETY: a test may use experimental features; what they break, fails.
        unsafe { Gpu::open_experimental(&Setup::default()) }.expect(NO_ADAPTER)
    })
}

/// The shared part on plain arrays, for matrices of `size` and the adapter's subgroups.
fn emulated(size: u32) -> &'static str {
    let held = size.div_ceil(matrix_gpu().info.subgroup_min_size);
    let text = format!("const HELD: u32 = {held}u;\n{}", include_str!("common/emulated_matrices.wgsl"));
    Box::leak(text.into_boxed_str())
}

/// The classes of a kernel, with a crate that prefers each: all of them on matrix units of their size, else those in `emulated`.
fn on_each_class(kernel: &str, classes: &[&str]) -> Vec<(Variant, On)> {
    let gpu = matrix_gpu();
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    for variant in kernels::variants() {
        let name = variant.name();
        let parts: Vec<&str> = name.split('.').collect();
        if parts[0] != kernel || !seen.insert(parts[2].to_owned()) {
            continue;
        }
        let size = if parts[2].ends_with("m8") { 8 } else { 16 };
        let real = gpu.cooperative_matrices.iter().any(|m| [m.m_size, m.n_size, m.k_size] == [size; 3]);
        if real {
            all.push((variant, On::new(gpu.clone(), gpu.options().with_pinned(variant))));
        } else if classes.contains(&parts[2]) {
            let options = Options::default().with_emulated_matrices(size, emulated(size));
            all.push((variant, On::new(gpu.clone(), options.with_pinned(variant))));
        }
    }
    assert!(all.len() >= classes.len(), "{kernel} has no {classes:?}");
    all
}

/// What software adapters run of `linear_matrix` by default: compiling a class takes them ten seconds.
const LINEAR: &[&str] = &["64x64x32m16"];

/// All that they can.
const EVERY_LINEAR: &[&str] = &["64x64x32m16", "32x64x64m16", "64x64x32m8", "32x64x64m8"];

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    d_in: usize,
    d_out: usize,
    bias: bool,
    activation: Activation,
    residual: bool,
    place: Place,
}

const ACTIVATIONS: [Activation; 6] =
    [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Tanh];

/// Runs a case in f16 and compares it with the twins on what f16 left of the inputs.
fn check_linear(variant: &Variant, on: &On, seed: &str, number: u64, case: Case) -> String {
    let Case { rows, d_in, d_out, activation, .. } = case;
    let mut rng = seeded(seed, number);
    let mut halves = |len| stored(Element::F16, &floats(&mut rng, len));
    let (x, weight, bias, residual) = (halves(rows * d_in), halves(d_out * d_in), halves(d_out), halves(rows * d_out));
    let mut run = Run::stored(on, "linear", case.place, Element::F16);
    let linear = kernels::Linear {
        x: run.input("x", &[rows, d_in], &x),
        weight: run.weight("weight", &[d_out, d_in], &weight),
        bias: case.bias.then(|| run.weight("bias", &[d_out], &bias)),
        activation,
        residual: case.residual.then(|| run.input("residual", &[rows, d_out], &residual)),
        y: run.output("y", &[rows, d_out]),
    };
    run.builder.linear("linear", &linear).unwrap();
    let done = run.go();

    let (bias, residual) = (case.bias.then_some(bias), case.residual.then_some(residual));
    let twin = reference::Linear {
        x: &x,
        weight: &weight,
        bias: bias.as_deref(),
        residual: residual.as_deref(),
        activation,
        rows,
        d_in,
        d_out,
    };
    let y32 = reference::linear(&twin).unwrap();
    let linear64 = |map: fn(f64) -> f64, residual: Option<&Vec<f32>>, activation| {
        let wide = |x: &[f32]| widen(x).into_iter().map(map).collect::<Vec<_>>();
        let (bias, residual) = (bias.as_deref().map(wide), residual.map(|r| wide(r)));
        let (x, weight) = (&wide(&x)[..], &wide(&weight)[..]);
        let (bias, residual) = (bias.as_deref(), residual.as_deref());
        reference::linear(&reference::Linear { x, weight, bias, residual, activation, rows, d_in, d_out }).unwrap()
    };
    let y64 = linear64(|v| v, residual.as_ref(), activation);
    let before = linear64(|v| v, None, Activation::Identity);
    let terms = linear64(f64::abs, residual.as_ref(), Activation::Identity);
    let floor = sum_floor(&terms) + activation_floor(&before, activation) + storage_floor(Element::F16, &y64);
    let name = format!("{variant:?} {seed} {number}: {case:?}");
    assert_close(&name, &done.f32("y"), &y32, &y64, floor);
    let ran = done.variants[0].name();
    let class = variant.name().split('.').nth(2).unwrap().to_owned();
    assert!(ran.starts_with("linear_matrix") && ran.contains(&class), "{name} ran {ran}");
    ran
}

/// Edges of tiles in every dimension, aligned or not, and every epilogue at shapes of no special kind.
fn check_linear_classes(classes: &[(Variant, On)]) {
    for (variant, on) in classes {
        let mut reached = BTreeSet::new();
        let rows = [1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129];
        let columns = [1, 4, 15, 17, 63, 64, 66, 131, 8, 32];
        let depths = [1, 3, 4, 16, 17, 31, 32, 33, 36, 64, 65, 97];
        for (i, &rows) in rows.iter().enumerate() {
            for j in 0..2 {
                let d_out = columns[(i * 3 + j * 4) % columns.len()];
                let d_in = depths[(i * 5 + j * 7) % depths.len()];
                let place = Place::ALL[(i + j) % 4];
                let case =
                    Case { rows, d_in, d_out, bias: j == 1, activation: Activation::Identity, residual: i % 2 == 1, place };
                reached.insert(check_linear(variant, on, "edges", (i * 2 + j) as u64, case));
            }
        }
        assert!(reached.len() >= 2, "aligned and not: {reached:?}");
        for number in 0..20 {
            let mut rng = seeded("matrix epilogues", number);
            let case = Case {
                rows: rng.random_range(1..200),
                d_in: rng.random_range(1..200),
                d_out: rng.random_range(1..200),
                bias: rng.random(),
                activation: ACTIVATIONS[number as usize % ACTIVATIONS.len()],
                residual: rng.random(),
                place: pick(&mut rng, &Place::ALL),
            };
            check_linear(variant, on, "epilogues", number, case);
        }
    }
}

/// Rule: tiles of matrices are right at every edge, in every dimension, with every epilogue.
#[test]
fn linear_on_matrices() {
    check_linear_classes(&on_each_class("linear_matrix", LINEAR));
}

/// Rule: so is every class that the adapter's workgroup memory holds.
#[test]
#[ignore = "software adapters compile these for minutes"]
fn linear_on_matrices_of_every_class() {
    check_linear_classes(&on_each_class("linear_matrix", EVERY_LINEAR));
}

/// Rule: the real text, matrices and all, makes pipelines: on wgpu's device without a driver, which validates like any other.
#[test]
fn every_variant_makes_a_pipeline() {
    let matrix: Vec<Variant> = kernels::variants().into_iter().filter(|v| v.name().contains(".matrix")).collect();
    let features = matrix.iter().fold(wgpu::Features::empty(), |all, v| all | v.features());
    let (device, _) = wgpu::Device::noop(&wgpu::DeviceDescriptor {
        required_features: features,
        required_limits: wgpu::Limits { max_compute_workgroup_storage_size: 49_152, ..wgpu::Limits::default() },
        // SAFETY: nothing runs on this device.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        ..Default::default()
    });
    let mut warm_up = Kernels::new(&device, Options::default()).unwrap().warm_up(matrix.iter().copied());
    let mut done = 0;
    while let Some(progress) = pollster::block_on(warm_up.step()).unwrap() {
        done = progress.done;
    }
    assert_eq!(done, matrix.len());
}
