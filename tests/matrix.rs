//! The kernels on cooperative matrices against their twins, on any adapter: where it lacks them, their text runs on a shared part
//! of the same interface that computes in plain arrays (common/emulated_matrices.wgsl). Tiles, edges, masks, scaling and
//! epilogues are the kernels' own either way.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::matrices::{by_fewer_subgroups, deepest, on_each_class};
use common::{
    On, Place, Run, activation_floor, assert_close, floats, pick, seeded, storage_floor, stored, sum_floor, widen,
};
use rand::RngExt;
use tileformer::{Activation, Element, Kernels, Options, Variant, kernels, reference, wgpu};

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

/// Runs a case and compares it with the twins on what the variant's storage left of the inputs. `scale` is that of x, and its
/// inverse that of the weight.
fn check_linear(variant: &Variant, on: &On, seed: &str, number: u64, case: Case, scale: f32) -> String {
    // Parts of k are short, whatever its length.
    let deepest = if variant.name().starts_with("linear_matrix_split") { usize::MAX } else { deepest() };
    let case = Case { d_in: case.d_in.min(deepest), ..case };
    let Case { rows, d_in, d_out, activation, .. } = case;
    let element = if variant.name().starts_with("linear_halves") { Element::F32 } else { Element::F16 };
    let mut rng = seeded(seed, number);
    let mut drawn = |len, scale: f32| {
        let values: Vec<f32> = floats(&mut rng, len).iter().map(|v| v * scale).collect();
        stored(element, &values)
    };
    let (x, weight) = (drawn(rows * d_in, scale), drawn(d_out * d_in, 1.0 / scale));
    let (bias, residual) = (drawn(d_out, 1.0), drawn(rows * d_out, 1.0));
    let mut run = Run::stored(on, "linear", case.place, element);
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
    let floor = sum_floor(&terms) + activation_floor(&before, activation) + storage_floor(element, &y64);
    let name = format!("{variant:?} {seed} {number}: {case:?}");
    assert_close(&name, &done.f32("y"), &y32, &y64, floor);
    let ran = done.variants[0].name();
    let class = variant.name().split('.').nth(2).unwrap().to_owned();
    let kernel = variant.name().split('.').next().unwrap().to_owned();
    assert!(ran.starts_with(&kernel) && ran.contains(&class), "{name} ran {ran}");
    ran
}

/// Edges of tiles in every dimension, aligned or not, and every epilogue at shapes of no special kind.
fn check_linear_class(variant: &Variant, on: &On) {
    let rows = [1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129];
    let columns = [1, 4, 15, 17, 63, 64, 66, 131, 8, 32];
    let depths = [1, 3, 4, 16, 17, 31, 32, 33, 36, 64, 65, 97];
    // Whole groups of four.
    let (whole_columns, whole_depths) = ([4, 132, 64, 20, 36, 68], [4, 64, 28, 72, 32, 44, 100]);
    for (i, &rows) in rows.iter().enumerate() {
        let edges = |number: usize, d_in, d_out, place| {
            let [bias, residual] = [number % 2 == 1, i % 2 == 1];
            let case = Case { rows, d_in, d_out, bias, activation: Activation::Identity, residual, place };
            check_linear(variant, on, "edges", number as u64, case, 1.0)
        };
        for j in 0..2 {
            let (d_in, d_out) = (depths[(i * 5 + j * 7) % depths.len()], columns[(i * 3 + j * 4) % columns.len()]);
            edges(i * 3 + j, d_in, d_out, Place::ALL[(i + j) % 4]);
        }
        let place = [Place::DENSE, Place::STRIDED][i / 2 % 2];
        let ran = edges(i * 3 + 2, whole_depths[i % 7], whole_columns[i % 6], place);
        assert!(ran.contains("x4"), "{rows} rows ran {ran}, not in groups");
    }
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
        check_linear(variant, on, "epilogues", number, case, 1.0);
    }
}

/// Rule: tiles of matrices are right at every edge, in every dimension, with every epilogue.
#[test]
fn linear_on_matrices() {
    on_each_class("linear_matrix", &["64x64x32m16"], check_linear_class);
}

/// Rule: parts of a tile for which there is no subgroup are made by the ones that there are.
#[test]
fn linear_by_fewer_subgroups_than_parts() {
    by_fewer_subgroups("linear_matrix.f16x4.64x64x32m16.matrix", check_linear_class);
}

/// Rule: parts of k on matrices are each right where they begin and end, and are added up once.
#[test]
fn linear_in_parts_on_matrices() {
    on_each_class("linear_matrix_split", &[], |variant, on| {
        check_linear_class(variant, on);
        for (number, [rows, d_in, d_out]) in
            [[33, 700, 40], [20, 257, 65], [64, 1025, 32], [9, 1000, 36]].into_iter().enumerate()
        {
            let activation = ACTIVATIONS[number + 1];
            let place = Place::ALL[number];
            let case = Case { rows, d_in, d_out, bias: true, activation, residual: number % 2 == 0, place };
            check_linear(variant, on, "parts", number as u64, case, 1.0);
        }
    });
}

fn check_halves(variant: &Variant, on: &On) {
    check_linear_class(variant, on);
    let plain = Case {
        rows: 70,
        d_in: 150,
        d_out: 66,
        bias: false,
        activation: Activation::Identity,
        residual: false,
        place: Place::DENSE,
    };
    // From where f16 loses digits to where it ends, and beyond both.
    let scales = [1e-30, 1e-12, 1e-6, 1e-4, 1e-3, 0.05, 30.0, 1e3, 1e4, 1e5, 1e9, 1e30];
    for (number, scale) in scales.into_iter().enumerate() {
        check_linear(variant, on, "scales", number as u64, plain, scale);
    }
    rows_stand_alone(on);
}

/// Rows of huge, tiny or no numbers leave the bits of all others as they are, and rows of the weight those of other columns.
fn rows_stand_alone(on: &On) {
    let (rows, d_in, d_out) = (66, 40, 65);
    let mut rng = seeded("rows alone", 0);
    let (x, weight) = (floats(&mut rng, rows * d_in), floats(&mut rng, d_out * d_in));
    let run = |x: &[f32], weight: &[f32]| {
        let mut run = Run::new(on, "linear", Place::DENSE);
        let (x, weight) = (run.input("x", &[rows, d_in], x), run.weight("weight", &[d_out, d_in], weight));
        let y = run.output("y", &[rows, d_out]);
        run.builder.linear("linear", &kernels::Linear::new(x, weight, y)).unwrap();
        run.go().tensor("y").bits()
    };
    let alone = run(&x, &weight);
    let mut mixed = x.clone();
    for (row, value) in [(3, 1e30), (17, 1e-20), (18, f32::NAN), (64, f32::INFINITY)] {
        mixed[row * d_in..][..d_in].fill(value);
    }
    let mixed = run(&mixed, &weight);
    for row in (0..rows).filter(|r| ![3, 17, 18, 64].contains(r)) {
        assert_eq!(alone[row * d_out..][..d_out], mixed[row * d_out..][..d_out], "row {row}");
    }

    let huge: Vec<f32> = weight.iter().map(|w| w * 1e20).collect();
    let is_huge = |column: usize| [1, 6, 11, 20, 33, 35, 64].contains(&column);
    let mixed: Vec<f32> = (0..d_out * d_in).map(|i| if is_huge(i / d_in) { huge[i] } else { weight[i] }).collect();
    let (huge, mixed) = (run(&x, &huge), run(&x, &mixed));
    for (i, found) in mixed.into_iter().enumerate() {
        let right = if is_huge(i % d_out) { huge[i] } else { alone[i] };
        assert_eq!(found, right, "row {}, column {}", i / d_out, i % d_out);
    }
}

/// Rule: f32 results of matrix units are as good as f32, at any scale of the operands. Emulated in loops alone: written out, a software
/// adapter compiles one class for three minutes.
#[test]
fn linear_in_halves() {
    on_each_class("linear_halves", &[], check_halves);
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
