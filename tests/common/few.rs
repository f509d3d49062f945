//! `linear_few`, `linear_append` and `linear_logits`: cases, their data, and the comparison with the twins.

use super::cases::below;
use super::{
    Done, EPS, On, Place, Run, activation_floor, assert_close, floats, largest, pick, storage_floor, stored, sum_floor,
    widen,
};
use rand::RngExt;
use rand::rngs::StdRng;
use tileformer::kernels::{FewOutput, FusedNorm, Linear, LinearFew};
use tileformer::layers::NormKind;
use tileformer::reference::{self, Real};
use tileformer::spec::cache::CacheShape;
use tileformer::{Activation, Element, Sequence};

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub rows: usize,
    pub d_in: usize,
    pub d_out: usize,
    pub bias: bool,
    /// Whether there is a norm, and its weight and bias.
    pub norm: Option<(bool, bool)>,
    pub activation: Activation,
    pub residual: bool,
    /// Whether some rows rest.
    pub sequences: bool,
    pub place: Place,
    pub element: Element,
}

pub struct Data {
    pub x: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub norm_weight: Vec<f32>,
    pub norm_bias: Vec<f32>,
    pub residual: Vec<f32>,
    pub sequences: Vec<Sequence>,
}

/// Rows in sequences: as a decode step has them, some resting, or pieces of several rows in any order, with gaps.
pub fn sequences(rng: &mut StdRng, rows: usize) -> Vec<Sequence> {
    if rng.random() {
        return (0..rows as u32)
            .map(|b| Sequence { q_start: b, q_len: rng.random_range(0..2), ..Sequence::default() })
            .collect();
    }
    let mut all = Vec::new();
    let mut from = below(rng, 2);
    while from < rows {
        let length = below(rng, 5).min(rows - from);
        all.insert(
            below(rng, all.len() + 1),
            Sequence { q_start: from as u32, q_len: length as u32, ..Sequence::default() },
        );
        from += length + below(rng, 3);
    }
    all.push(Sequence::default());
    all
}

pub fn data(case: &Case, rng: &mut StdRng) -> Data {
    let Case { rows, d_in, d_out, .. } = *case;
    let mut make = |len: usize| stored(case.element, &floats(rng, len));
    let [x, weight, bias, norm_weight, norm_bias, residual] =
        [rows * d_in, d_out * d_in, d_out, d_in, d_in, rows * d_out].map(&mut make);
    Data { x, weight, bias, norm_weight, norm_bias, residual, sequences: sequences(rng, rows) }
}

pub fn twin<T: Real>(case: &Case, data: &Data, activation: Activation) -> Vec<Option<T>> {
    let real = |values: &[f32]| values.iter().map(|&v| T::of(v)).collect::<Vec<T>>();
    let [x, weight, bias, residual] = [&data.x, &data.weight, &data.bias, &data.residual].map(|v| real(v));
    let (gain, offset) = (real(&data.norm_weight), real(&data.norm_bias));
    let linear = reference::Linear {
        x: &x,
        weight: &weight,
        bias: case.bias.then_some(&bias[..]),
        residual: case.residual.then_some(&residual[..]),
        activation,
        rows: case.rows,
        d_in: case.d_in,
        d_out: case.d_out,
    };
    let norm = case.norm.map(|(weight, bias)| reference::FusedNorm {
        kind: kind(case),
        weight: weight.then_some(&gain[..]),
        bias: bias.then_some(&offset[..]),
        eps: 1e-5,
    });
    reference::linear_few(&linear, norm, case.sequences.then_some(&data.sequences[..])).unwrap()
}

/// Both norms take turns.
pub fn kind(case: &Case) -> NormKind {
    if (case.d_in + case.d_out).is_multiple_of(3) { NormKind::Rms } else { NormKind::Layer }
}

/// 2⁻²² of the terms of the sums, what the activation may leave, and what the norm may leave in each x, times the weights.
pub fn floor(case: &Case, data: &Data) -> f64 {
    let Case { rows, d_in, d_out, .. } = *case;
    let (x, weight) = (widen(&data.x), widen(&data.weight));
    let (mut normed, mut error) = (x.clone(), 0.0);
    if let Some((gain, offset)) = case.norm {
        let (gains, offsets) = (widen(&data.norm_weight), widen(&data.norm_bias));
        let args = reference::LayerNorm {
            x: &x,
            residual: None,
            weight: gain.then_some(&gains[..]),
            bias: offset.then_some(&offsets[..]),
            eps: 1e-5,
            rows,
            d: d_in,
        };
        let layer = kind(case) == NormKind::Layer;
        let out = if layer { reference::layer_norm(&args) } else { reference::rms_norm(&args) }.unwrap();
        for (row, deviation) in x.chunks_exact(d_in).zip(&out.inverse_deviation) {
            let first = if layer { row[0] } else { 0.0 };
            let shifted = largest(&row.iter().map(|v| v - first).collect::<Vec<_>>());
            error = f64::max(error, (4.0 + 3.0) * EPS * shifted * deviation + 2.0 * EPS);
        }
        normed = out.y;
    }
    let abs = |values: &[f64]| values.iter().map(|v| v.abs()).collect::<Vec<_>>();
    let (normed, weight, bias, residual) =
        (abs(&normed), abs(&weight), abs(&widen(&data.bias)), abs(&widen(&data.residual)));
    let terms = reference::Linear {
        x: &normed,
        weight: &weight,
        bias: case.bias.then_some(&bias[..]),
        residual: case.residual.then_some(&residual[..]),
        activation: Activation::Identity,
        rows,
        d_in,
        d_out,
    };
    let before: Vec<f64> = twin::<f64>(&Case { residual: false, sequences: false, ..*case }, data, Activation::Identity)
        .into_iter()
        .flatten()
        .collect();
    let weights = weight.chunks_exact(d_in).map(|row| row.iter().sum::<f64>()).fold(0.0, f64::max);
    sum_floor(&reference::linear(&terms).unwrap()) + activation_floor(&before, case.activation) + error * weights
}

/// Names the tensors of a case but for its outputs; the output is yet `x`.
pub fn operands(run: &mut Run, case: &Case, data: &Data) -> LinearFew {
    let Case { rows, d_in, d_out, .. } = *case;
    let (x, weight) = (run.input("x", &[rows, d_in], &data.x), run.weight("weight", &[d_out, d_in], &data.weight));
    let norm = case.norm.map(|(gain, offset)| FusedNorm {
        kind: kind(case),
        weight: gain.then(|| run.weight("norm_weight", &[d_in], &data.norm_weight)),
        bias: offset.then(|| run.weight("norm_bias", &[d_in], &data.norm_bias)),
        eps: 1e-5,
    });
    let linear = Linear {
        bias: case.bias.then(|| run.weight("bias", &[d_out], &data.bias)),
        residual: case.residual.then(|| run.input("residual", &[rows, d_out], &data.residual)),
        activation: case.activation,
        ..Linear::new(x, weight, x)
    };
    let words = bytemuck::cast_slice(&data.sequences);
    let sequences = case.sequences.then(|| run.words("sequences", &[data.sequences.len(), 8], words));
    LinearFew { norm, sequences, ..LinearFew::new(linear) }
}

/// Values that are there are near the twins', the others as they were.
pub fn compare(name: &str, found: &[f32], twin32: &[Option<f32>], twin64: &[Option<f64>], floor: f64) {
    let zeros = |v: &Option<f32>| v.unwrap_or_default();
    let right: Vec<f64> = twin64.iter().map(|v| v.unwrap_or_default()).collect();
    assert_close(name, found, &twin32.iter().map(zeros).collect::<Vec<_>>(), &right, floor);
}

pub fn run_rows(on: &On, case: &Case, data: &Data) -> Done {
    let mut run = Run::stored(on, "few", case.place, case.element);
    let mut few = operands(&mut run, case, data);
    few.linear.y = run.output("y", &[case.rows, case.d_out]);
    run.builder.linear_few("few", &few).unwrap();
    run.go()
}

pub fn check(on: &On, name: &str, case: Case, data: &Data) -> Done {
    let done = run_rows(on, &case, data);
    let (found, right) = (twin::<f32>(&case, data, case.activation), twin::<f64>(&case, data, case.activation));
    let floor =
        floor(&case, data) + storage_floor(case.element, &right.iter().map(|v| v.unwrap_or_default()).collect::<Vec<_>>());
    let y = done.tensor("y").f32_where(|i| right[i].is_some());
    compare(&format!("{name}: {case:?} as {:?}", done.variants), &y, &found, &right, floor);
    done
}

pub const ACTIVATIONS: [Activation; 6] =
    [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Tanh];

pub fn random_case(rng: &mut StdRng, rows: usize) -> Case {
    const SIZES: [usize; 7] = [1, 3, 4, 63, 64, 65, 132];
    Case {
        rows,
        d_in: pick(rng, &SIZES),
        d_out: pick(rng, &SIZES),
        bias: rng.random(),
        norm: rng.random_bool(0.7).then(|| (rng.random(), rng.random())),
        activation: pick(rng, &ACTIVATIONS),
        residual: rng.random(),
        sequences: rng.random(),
        place: pick(rng, &Place::ALL),
        element: Element::F32,
    }
}

/// A case as f16, in sizes and places that pairs allow, in groups of four every other time.
pub fn halved(case: Case, number: usize) -> Case {
    let of = [4, 2][number % 2];
    let place = [Place::STRIDED, Place::EVEN][number % 2];
    let [d_in, d_out] = [case.d_in, case.d_out].map(|size| size.next_multiple_of(of));
    Case { d_in, d_out, place, element: Element::F16, ..case }
}

/// Where no group of four survives, and pairs do in f16.
pub fn unaligned(element: Element) -> Place {
    if element == Element::F16 { Place::EVEN } else { Place::OFF_BY_ONE }
}

/// Texts in odd slots: one in the middle, one that rests, one that overflows, one with more rows than keys; for a single row, one
/// of them alone.
pub fn appended(shape: &CacheShape, rows: usize) -> Vec<Sequence> {
    let word = |slot: usize| (slot * shape.n_kv_heads * shape.capacity) as u32;
    if rows == 1 {
        return vec![Sequence { q_len: 1, k_start: word(2), k_len: 9, ..Sequence::default() }];
    }
    vec![
        Sequence { q_start: 2, q_len: 3, k_start: word(3), k_len: 7, ..Sequence::default() },
        Sequence { q_start: 0, q_len: 0, k_start: word(1), k_len: 5, ..Sequence::default() },
        Sequence { q_start: 5, q_len: 4, k_start: word(0), k_len: 11, ..Sequence::default() },
        Sequence { q_start: 9, q_len: 2, k_start: word(2), k_len: 1, ..Sequence::default() },
    ]
}

pub fn check_append(
    on: &On,
    case: &Case,
    data: &Data,
    shape: &CacheShape,
    [q, head_size, value_head_size]: [usize; 3],
) -> Done {
    let mut run = Run::stored(on, "append", case.place, case.element);
    let mut few = operands(&mut run, case, data);
    few.linear.y = run.output("y", &[case.rows, q]);
    run.place = Place { gap: 0, ..case.place };
    let cache = run.output("cache", &[2, shape.slots, shape.n_kv_heads, shape.capacity, shape.width]);
    few.out = FewOutput::Append { cache, head_size, value_head_size };
    run.builder.linear_few("append", &few).unwrap();
    let done = run.go();

    let (found, right) = (twin::<f32>(case, data, case.activation), twin::<f64>(case, data, case.activation));
    let floor =
        floor(case, data) + storage_floor(case.element, &right.iter().map(|v| v.unwrap_or_default()).collect::<Vec<_>>());
    let name = format!("{case:?}, heads of {head_size} and {value_head_size}, as {:?}", done.variants);
    let (found, found_cache) = split(case, data, shape, [q, head_size, value_head_size], &found);
    let (right, right_cache) = split(case, data, shape, [q, head_size, value_head_size], &right);
    let y = done.tensor("y").f32_where(|i| right[i].is_some());
    compare(&name, &y, &found, &right, floor);
    let written = done.tensor("cache").f32_where(|i| right_cache[i].is_some());
    compare(&format!("cache of {name}"), &written, &found_cache, &right_cache, floor);
    done
}

/// q, and the cache with k and v in it.
pub fn split<T: Copy>(
    case: &Case,
    data: &Data,
    shape: &CacheShape,
    [q, head_size, value_size]: [usize; 3],
    y: &[Option<T>],
) -> (Vec<Option<T>>, Vec<Option<T>>) {
    let columns = |first: usize, size: usize| {
        y.chunks_exact(case.d_out).flat_map(|row| row[first..first + size].to_vec()).collect::<Vec<_>>()
    };
    let keys = shape.n_kv_heads * head_size;
    let (k, v) = (columns(q, keys), columns(q + keys, shape.n_kv_heads * value_size));
    let mut cache = vec![None; 2 * shape.slots * shape.n_kv_heads * shape.capacity * shape.width];
    reference::cache_append(shape, (&k, head_size), (&v, value_size), &data.sequences, &mut cache).unwrap();
    (columns(0, q), cache)
}

pub fn check_logits(on: &On, case: &Case, data: &Data) -> Done {
    let (rows, d_out) = (case.rows, case.d_out);
    let mut run = Run::stored(on, "logits", case.place, case.element);
    let mut few = operands(&mut run, case, data);
    few.linear.y = run.output_as("y", Element::F32, case.place.layout(&[rows, d_out]));
    let groups = run.builder.logit_groups(few.linear.weight).unwrap();
    let maxima = run.output_as("maxima", Element::U32, case.place.layout(&[rows, groups, 2]));
    few.out = FewOutput::Logits { maxima };
    run.builder.linear_few("logits", &few).unwrap();
    let done = run.go();
    let (found, right) = (twin::<f32>(case, data, case.activation), twin::<f64>(case, data, case.activation));
    let name = format!("{case:?} as {:?}", done.variants);
    let y = done.tensor("y").f32_where(|i| right[i].is_some());
    compare(&name, &y, &found, &right, floor(case, data));

    let all = reference::maxima(&y, rows, d_out, 64).unwrap();
    let bits = done.tensor("maxima").bits();
    assert_eq!(bits.len(), all.len(), "{name}");
    for (i, (found, right_bits)) in bits.iter().zip(&all).enumerate() {
        let written = right[i / (2 * groups) * d_out].is_some();
        let right = if written { *right_bits } else { super::POISON };
        assert_eq!(*found, right, "maxima[{i}] of {name}");
    }
    done
}
