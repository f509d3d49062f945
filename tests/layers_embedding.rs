//! Embeddings and heads against their twins, tied, untied and split where a binding is too small for the table.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::cases::{Data, Made, Side, below, judge, kernels, run};
use common::{On, floors, on, on_small_bindings, seeded};
use rand::rngs::StdRng;
use tileformer::layers::{Embedding, Norm};
use tileformer::reference::layers::embeddings;
use tileformer::reference::{Linear, Real, linear};
use tileformer::spec::sinusoidal_positions;
use tileformer::{
    Activation, AttentionOptions, BatchShape, Bindings, Builder, Element, Layout, Program, Sequences, SinusoidOrder,
};

fn padded(lengths: &[usize], longest: usize, offset: i32) -> Side {
    let shape = BatchShape::padded(lengths.len(), longest);
    Side::own(Sequences::padded(lengths, longest).unwrap().with_offset(offset)).shaped(shape)
}

/// Ids below `rows`, a few of them outside.
fn ids(n: usize, rows: usize, rng: &mut StdRng) -> Vec<u32> {
    let outside = [rows as u32, u32::MAX, rows as u32 + 7];
    (0..n).map(|_| if below(rng, 9) == 0 { outside[below(rng, 3)] } else { below(rng, rows) as u32 }).collect()
}

fn upload_u32(data: &[u32]) -> tileformer::TensorView {
    on().gpu.upload_u32(&[data.len()], data).unwrap()
}

fn check(what: &str, spec: &Embedding, side: &Side, seed: u64) {
    let mut rng = seeded("embedding", seed);
    let program = spec.program(kernels(), side.shape).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut made = Made::of(&program, &mut rng);
    if let (Some(rows), 0) = (spec.positions, seed % 2) {
        let table = sinusoidal_positions(rows, spec.d_model, SinusoidOrder::Halves).unwrap();
        made.all.insert("position_embedding.weight".into(), Data::new(&[rows, spec.d_model], table));
    }
    let rows = side.shape.q_rows;
    let tokens = ids(rows, spec.vocabulary, &mut rng);
    let segments = spec.segments.map(|n| ids(rows, n, &mut rng));
    let mut bindings = Bindings::new();
    made.bind(&mut bindings);
    side.bind("", &mut bindings);
    bindings.set("ids", upload_u32(&tokens));
    if let Some(segments) = &segments {
        bindings.set("segment_ids", upload_u32(segments));
    }
    let found = run(&program, &bindings);
    let sequences = Some(side.sequences.as_slice());
    let twin = embeddings::<f32>(spec, &made.weights(), "", &tokens, segments.as_deref(), sequences).unwrap();
    let right = embeddings::<f64>(spec, &made.weights(), "", &tokens, segments.as_deref(), sequences).unwrap();
    // Three terms, each at most what its table and the scale allow.
    let terms = |name: &str| made.all.get(&format!("{name}_embedding.weight")).map_or(0.0, |d| common::largest(&d.f64));
    let sum = f64::from(spec.scale).abs() * terms("token") + terms("position") + terms("segment");
    let mut floor = common::sum_floor(&[sum]);
    if let Some(norm) = &spec.norm {
        let bare = Embedding { norm: None, ..*spec };
        let y = embeddings::<f64>(&bare, &made.weights(), "", &tokens, segments.as_deref(), sequences).unwrap();
        // A row of zeros, of an id outside its table, stays one whatever the norm's scale.
        let live: Vec<f64> = y.chunks(spec.d_model).filter(|row| row.iter().any(|v| *v != 0.0)).flatten().copied().collect();
        floor *= floors::norm_scale(norm, &made.weights(), "norm.", &live, spec.d_model);
    }
    judge(what, &found["y"], &twin, &right, floor, spec.d_model, |row| side.has_row(row));
}

/// Every part alone and all together; ids and positions outside their tables give rows of zeros.
#[test]
fn embedding_options() {
    let norm = Some(Norm { eps: 1e-12, ..Norm::default() });
    for (n, d_model) in [4, 7, 33, 64, 96].into_iter().enumerate() {
        let tokens = Embedding::new(19, d_model);
        let all = Embedding { positions: Some(40), first_position: 2, segments: Some(3), scale: 3.5, ..tokens };
        for (m, spec) in [
            tokens,
            Embedding { scale: -2.0, ..tokens },
            Embedding { positions: Some(5), ..tokens },
            Embedding { positions: Some(33), first_position: 3, ..tokens },
            Embedding { segments: Some(2), ..tokens },
            Embedding { norm, ..tokens },
            all,
            Embedding { norm, ..all },
        ]
        .into_iter()
        .enumerate()
        {
            let seed = (10 * n + m) as u64;
            check(&format!("{spec:?} padded"), &spec, &padded(&[31, 5], 31, 0), seed);
            check(&format!("{spec:?} at −2"), &spec, &padded(&[3], 3, -2), seed);
            let packed = Side::own(Sequences::packed(&[1, 0, 33, 5]).unwrap().with_offset(4));
            check(&format!("{spec:?} packed"), &spec, &packed, seed);
        }
    }
}

/// Tokens and positions, then a head over the same rows: logits, the embedding's own weight or one with a bias.
fn language_model(on: &On, spec: &Embedding, side: &Side, tied: bool) -> Program {
    let mut b = Builder::new(&on.kernels, "embedding and head");
    let batch = b.batch("", &AttentionOptions::default(), 1, side.shape, None).unwrap();
    let rows = side.shape.q_rows;
    let x = b.scratch("x", Element::F32, Layout::contiguous(&[rows, spec.d_model]).unwrap()).unwrap();
    b.embed("", spec, &batch, x).unwrap();
    let logits = b.output("logits", Element::F32, Layout::contiguous(&[rows, spec.vocabulary]).unwrap()).unwrap();
    let (weight, bias) = if tied { ("token_embedding.weight", None) } else { ("head.weight", Some("head.bias")) };
    b.head(weight, bias, x, logits).unwrap();
    b.finish().unwrap()
}

fn logits<T: common::cases::Twin + Real>(spec: &Embedding, made: &Made, side: &Side, tokens: &[u32], tied: bool) -> Vec<T> {
    let weights = made.weights::<T>();
    let x = embeddings(spec, &weights, "", tokens, None, Some(side.sequences.as_slice())).unwrap();
    let (vocabulary, d) = (spec.vocabulary, spec.d_model);
    let name = if tied { "token_embedding.weight" } else { "head.weight" };
    linear(&Linear {
        x: &x,
        weight: weights.get(name, &[vocabulary, d]).unwrap(),
        bias: weights.get_if(!tied, "head.bias", &[vocabulary]).unwrap(),
        residual: None,
        activation: Activation::Identity,
        rows: tokens.len(),
        d_in: d,
        d_out: vocabulary,
    })
    .unwrap()
}

/// Σ|terms| of logits is at most d_model times the largest row and weight.
fn logits_floor(spec: &Embedding, made: &Made) -> f64 {
    let of = |name: &str| made.all.get(name).map_or(0.0, |data| common::largest(&data.f64));
    let x = of("token_embedding.weight") + of("position_embedding.weight");
    let weight = of("token_embedding.weight").max(of("head.weight"));
    common::sum_floor(&[spec.d_model as f64 * x * weight / 4.0 + of("head.bias")])
}

/// A tied head reads the embedding's weight, which is bound once; an untied one has its own, with a bias.
#[test]
fn heads_tied_and_untied() {
    for (n, (d_model, vocabulary)) in [(4, 9), (15, 50), (64, 131), (96, 64)].into_iter().enumerate() {
        for tied in [true, false] {
            let spec = Embedding { positions: Some(40), ..Embedding::new(vocabulary, d_model) };
            let side = padded(&[33, 7], 33, 0);
            let program = language_model(on(), &spec, &side, tied);
            let weights = program.tensors().filter(|t| t.1 == tileformer::Role::Weight).count();
            assert_eq!(weights, if tied { 2 } else { 4 });
            let mut rng = seeded("heads", n as u64);
            let made = Made::of(&program, &mut rng);
            let tokens = ids(66, vocabulary, &mut rng);
            let mut bindings = Bindings::new();
            made.bind(&mut bindings);
            side.bind("", &mut bindings);
            bindings.set("ids", upload_u32(&tokens));
            let found = run(&program, &bindings);
            let (twin, right) = (logits(&spec, &made, &side, &tokens, tied), logits(&spec, &made, &side, &tokens, tied));
            let what = format!("{d_model} wide, {vocabulary} tokens, tied {tied}");
            judge(&what, &found["logits"], &twin, &right, logits_floor(&spec, &made), vocabulary, |_| true);
        }
    }
}

/// A token table larger than a binding is split over dispatches, for lookups and for the head, and gives the same bits; the
/// parts need not be aligned to groups of four.
#[test]
fn tables_larger_than_a_binding() {
    for (n, (d_model, vocabulary)) in [(64, 700), (30, 1301), (96, 512), (7, 5003)].into_iter().enumerate() {
        for tied in [true, false] {
            let spec = Embedding { positions: Some(40), ..Embedding::new(vocabulary, d_model) };
            let side = Side::own(Sequences::packed(&[2, 1]).unwrap());
            let (whole, split) =
                (language_model(on(), &spec, &side, tied), language_model(on_small_bindings(), &spec, &side, tied));
            assert_eq!(whole.dispatches().len(), 2);
            assert!(split.dispatches().len() >= 6, "{}", split.describe());
            let mut rng = seeded("split", n as u64);
            let made = Made::of(&whole, &mut rng);
            let tokens = ids(3, vocabulary, &mut rng);
            let results = [(on(), &whole), (on_small_bindings(), &split)].map(|(on, program)| {
                let gpu = &on.gpu;
                let mut bindings = Bindings::new();
                for (name, data) in &made.all {
                    bindings.set(name, gpu.upload_f32(&data.sizes, &data.f32).unwrap());
                }
                bindings.set("ids", gpu.upload_u32(&[3], &tokens).unwrap());
                bindings.set("sequences", gpu.upload_u32(&[2, 8], side.sequences.words()).unwrap());
                let y = gpu.upload_f32(&[3, vocabulary], &vec![f32::NAN; 3 * vocabulary]).unwrap();
                bindings.set("logits", y.clone());
                gpu.run(&program.bind(&bindings).unwrap_or_else(|e| panic!("{d_model} {vocabulary}: {e}"))).unwrap();
                gpu.read_f32(&y).unwrap()
            });
            let (twin, right) = (logits(&spec, &made, &side, &tokens, tied), logits(&spec, &made, &side, &tokens, tied));
            let what = format!("{d_model} wide, {vocabulary} tokens, tied {tied}");
            judge(&what, &results[1], &twin, &right, logits_floor(&spec, &made), vocabulary, |_| true);
            let bits = results.map(|r| r.into_iter().map(f32::to_bits).collect::<Vec<_>>());
            assert!(bits[0] == bits[1], "{what}: split and whole differ");
        }
    }
}
