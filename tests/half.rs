//! Whole layers in f16: rows, weights and everything between them take half the memory, sums stay f32.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::storing::{self, Storing};
use common::{
    On, Place, Run, assert_all_stored_variants, assert_close, on, on_core, on_halves, seeded, storage_floor, stored, uniform,
};
use tileformer::kernels::EmbeddingRows;
use tileformer::layers::{EncoderLayer, Inputs, Placement};
use tileformer::reference::Real;
use tileformer::reference::layers::{Batch, Weights};
use tileformer::{Activation, BatchShape, Element, Error, Role, Sequences, wgpu};

const LENGTHS: [usize; 3] = [37, 1, 22];
const LONGEST: usize = 37;

/// A layer whose stored numbers pass through `store`.
fn twin<T: Real>(
    spec: &EncoderLayer,
    named: &[(String, Vec<usize>, Vec<f32>)],
    x: &[f32],
    store: fn(Vec<T>) -> Vec<T>,
) -> Vec<T> {
    let real = |values: &[f32]| values.iter().map(|&v| T::of(f64::from(v))).collect::<Vec<T>>();
    let values: Vec<Vec<T>> = named.iter().map(|(.., values)| real(values)).collect();
    let mut weights = Weights::new();
    for ((name, sizes, _), values) in named.iter().zip(&values) {
        weights.insert(name, sizes, values).unwrap();
    }
    let sequences = Sequences::padded(&LENGTHS, LONGEST).unwrap();
    let batch = Batch::new(BatchShape::padded(LENGTHS.len(), LONGEST), sequences.as_slice());
    Storing { weights: &weights, store }.encoder_layer(spec, "", &real(x), &batch)
}

fn check(on: &On, name: &str, spec: &EncoderLayer) {
    let mut rng = seeded(name, 0);
    let shape = BatchShape::padded(LENGTHS.len(), LONGEST);
    let program = spec.program(&on.kernels, &Inputs::new(shape).with_storage(Element::F16)).unwrap();
    let mut weights = Vec::new();
    for (name, role, element, layout) in program.tensors() {
        if role == Role::Weight {
            assert_eq!(element, Element::F16, "{name}");
            let scale = if layout.sizes().len() == 2 { (layout.sizes()[1] as f32).sqrt().recip() } else { 1.0 };
            let values = stored(Element::F16, &uniform(&mut rng, layout.len(), -scale, scale));
            weights.push((name.to_owned(), layout.sizes().to_vec(), values));
        }
    }
    let sizes = [shape.q_rows, spec.attention.d_model];
    let x = stored(Element::F16, &uniform(&mut rng, sizes[0] * sizes[1], -1.5, 1.5));
    let gpu = &on.gpu;
    let find = |name: &str| weights.iter().find(|w| w.0 == name).map(|(_, sizes, values)| (&sizes[..], &values[..]));
    let mut bindings = gpu.upload_weights(&program, find).unwrap();
    let y = gpu.upload_floats(Element::F16, &sizes, &vec![f32::NAN; x.len()]).unwrap();
    bindings
        .set("x", gpu.upload_floats(Element::F16, &sizes, &x).unwrap())
        .set("y", y.clone())
        .set("sequences", gpu.upload_sequences(&Sequences::padded(&LENGTHS, LONGEST).unwrap()).unwrap());
    gpu.run(&program.bind(&bindings).unwrap()).unwrap();
    let found = gpu.read_f32(&y).unwrap();

    let rounding = twin(spec, &weights, &x, storing::rounded);
    let exact = twin(spec, &weights, &x, storing::exact);
    assert_close(name, &found, &rounding, &exact, storage_floor(Element::F16, &exact));
}

/// Rule: a layer in f16 is no further from the exact result than twice what storing f16 costs a plain f32 computation.
#[test]
fn encoder_layers_in_both_forms() {
    for (on, form) in [(on(), "f16"), (on_core(), "f16 in pairs")] {
        for placement in [Placement::Post, Placement::Pre] {
            for (d_model, heads, d_ff) in [(96, 4, 160), (60, 6, 70)] {
                let mut spec = EncoderLayer { placement, ..EncoderLayer::new(d_model, heads, d_ff) };
                spec.feed_forward.activation = Activation::Gelu;
                check(on, &format!("{form}, {placement:?}-norm, {d_model} wide"), &spec);
            }
        }
    }
}

/// Rule: a result that f16 cannot hold is stored as the largest number that it can, in every form of storage.
#[test]
fn results_saturate() {
    let table: Vec<f32> = [6e4, -6e4, 1.0, -4e4, 4e4, -2.0, 65504.0, -65504.0, 32768.0, -32768.0, 0.5, 5e4].repeat(2);
    let right: Vec<f32> = table.iter().map(|x| (2.0 * x).clamp(-65504.0, 65504.0)).collect();
    let mut reached = std::collections::BTreeSet::new();
    for (_, on) in on_halves() {
        for place in [Place::DENSE, Place::EVEN] {
            let mut run = Run::stored(on, "saturating", place, Element::F16);
            let (token, ids) = (run.weight("token", &[2, 12], &table), run.ids("ids", &[0, 1]));
            let y = run.output("y", &[2, 12]);
            let args = EmbeddingRows { scale: 2.0, ..EmbeddingRows::new(ids, token, y) };
            run.builder.embedding("embedding", &args).unwrap();
            let done = run.go();
            assert_eq!(done.f32("y"), right, "{:?}", done.variants);
            done.note(&mut reached);
        }
    }
    assert_all_stored_variants("embedding", Element::F16, &reached);
}

/// Rule: f16 halves every buffer of a plan.
#[test]
fn f16_takes_half_the_memory() {
    let spec = EncoderLayer::new(128, 4, 256);
    let inputs = Inputs::new(BatchShape::padded(4, 64));
    let bytes = |inputs: &Inputs| {
        let program = spec.program(&on().kernels, inputs).unwrap();
        let floats = program.tensors().filter(|(_, _, element, _)| *element != Element::U32);
        floats.map(|(_, _, element, layout)| layout.extent() * element.size()).sum::<u64>()
    };
    assert_eq!(bytes(&inputs), 2 * bytes(&inputs.clone().with_storage(Element::F16)));
}

/// Rule: what pairs of f16 cannot hold is an error that says so, on devices without the type only.
#[test]
fn odd_sizes_in_pairs_are_an_error() {
    let spec = EncoderLayer::new(9, 3, 11);
    let inputs = Inputs::new(BatchShape::padded(2, 5)).with_storage(Element::F16);
    let error = spec.program(&on_core().kernels, &inputs).unwrap_err();
    assert!(matches!(&error, Error::Shape { .. }) && error.to_string().contains("pairs"), "{error}");
    if on().gpu.device.features().contains(wgpu::Features::SHADER_F16) {
        spec.program(&on().kernels, &inputs).unwrap();
    }
}

/// Rule: numbers that f16 cannot hold are refused on upload, infinities pass.
#[test]
fn uploads_refuse_what_f16_cannot_hold() {
    let gpu = &on().gpu;
    let view = gpu.upload_floats(Element::F16, &[3], &[65504.0, f32::NEG_INFINITY, 1e-9]).unwrap();
    assert_eq!(gpu.read_f32(&view).unwrap(), [65504.0, f32::NEG_INFINITY, 0.0]);
    let error = gpu.upload_floats(Element::F16, &[2], &[0.0, 65520.0]).unwrap_err();
    assert!(error.to_string().contains("65520"), "{error}");
}
