//! `linear_few`, `linear_append` and `linear_logits` against their twins.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::cases::below;
use common::{
    Done, EPS, On, Place, Run, assert_all_stored_variants, assert_close, floats, largest, on, on_core, pick, seeded, some,
    storage_floor, stored, stored_forms, sum_floor, widen,
};
use rand::RngExt;
use rand::rngs::StdRng;
use tileformer::kernels::{FewOutput, FusedNorm, Linear, LinearFew};
use tileformer::layers::NormKind;
use tileformer::reference::{self, Real};
use tileformer::spec::cache::CacheShape;
use tileformer::{Activation, Element, Options, Sequence, wgpu};

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    d_in: usize,
    d_out: usize,
    bias: bool,
    /// Whether there is a norm, and its weight and bias.
    norm: Option<(bool, bool)>,
    activation: Activation,
    residual: bool,
    /// Whether some rows rest.
    sequences: bool,
    place: Place,
    element: Element,
}

struct Data {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    norm_weight: Vec<f32>,
    norm_bias: Vec<f32>,
    residual: Vec<f32>,
    sequences: Vec<Sequence>,
}

/// Rows in sequences: as a decode step has them, some resting, or pieces of several rows in any order, with gaps.
fn sequences(rng: &mut StdRng, rows: usize) -> Vec<Sequence> {
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

fn data(case: &Case, rng: &mut StdRng) -> Data {
    let Case { rows, d_in, d_out, .. } = *case;
    let mut make = |len: usize| stored(case.element, &floats(rng, len));
    let [x, weight, bias, norm_weight, norm_bias, residual] =
        [rows * d_in, d_out * d_in, d_out, d_in, d_in, rows * d_out].map(&mut make);
    Data { x, weight, bias, norm_weight, norm_bias, residual, sequences: sequences(rng, rows) }
}

fn twin<T: Real>(case: &Case, data: &Data, activation: Activation) -> Vec<Option<T>> {
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
fn kind(case: &Case) -> NormKind {
    if (case.d_in + case.d_out).is_multiple_of(3) { NormKind::Rms } else { NormKind::Layer }
}

/// 2⁻²² of the terms of the sums, what the activation may leave, and what the norm may leave in each x, times the weights.
fn floor(case: &Case, data: &Data) -> f64 {
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
    sum_floor(&reference::linear(&terms).unwrap()) + common::activation_floor(&before, case.activation) + error * weights
}

/// Names the tensors of a case but for its outputs; the output is yet `x`.
fn operands(run: &mut Run, case: &Case, data: &Data) -> LinearFew {
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
fn compare(name: &str, found: &[f32], twin32: &[Option<f32>], twin64: &[Option<f64>], floor: f64) {
    let zeros = |v: &Option<f32>| v.unwrap_or_default();
    let right: Vec<f64> = twin64.iter().map(|v| v.unwrap_or_default()).collect();
    assert_close(name, found, &twin32.iter().map(zeros).collect::<Vec<_>>(), &right, floor);
}

fn run_rows(on: &On, case: &Case, data: &Data) -> Done {
    let mut run = Run::stored(on, "few", case.place, case.element);
    let mut few = operands(&mut run, case, data);
    few.linear.y = run.output("y", &[case.rows, case.d_out]);
    run.builder.linear_few("few", &few).unwrap();
    run.go()
}

fn check(on: &On, name: &str, case: Case, data: &Data, reached: &mut BTreeSet<String>) {
    let done = run_rows(on, &case, data);
    let (found, right) = (twin::<f32>(&case, data, case.activation), twin::<f64>(&case, data, case.activation));
    let floor =
        floor(&case, data) + storage_floor(case.element, &right.iter().map(|v| v.unwrap_or_default()).collect::<Vec<_>>());
    let y = done.tensor("y").f32_where(|i| right[i].is_some());
    compare(&format!("{name}: {case:?} as {:?}", done.variants), &y, &found, &right, floor);
    done.note(reached);
}

const ACTIVATIONS: [Activation; 6] =
    [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Tanh];

fn random_case(rng: &mut StdRng, rows: usize) -> Case {
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
fn halved(case: Case, number: usize) -> Case {
    let of = [4, 2][number % 2];
    let place = [Place::STRIDED, Place::EVEN][number % 2];
    let [d_in, d_out] = [case.d_in, case.d_out].map(|size| size.next_multiple_of(of));
    Case { d_in, d_out, place, element: Element::F16, ..case }
}

const ROWS: [usize; 18] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 33];

/// Rule: whatever is fused, and however many rows there are, every form gives norm, projection, activation and residual of the
/// Where no group of four survives, and pairs do in f16.
fn unaligned(element: Element) -> Place {
    if element == Element::F16 { Place::EVEN } else { Place::OFF_BY_ONE }
}

/// rows that some sequence has, and writes no other.
#[test]
fn every_number_of_rows_in_every_form() {
    for element in [Element::F32, Element::F16] {
        let (forms, mut reached) = (stored_forms("linear_few", element), BTreeSet::new());
        for (i, rows) in ROWS.into_iter().enumerate().flat_map(|(i, rows)| [(2 * i, rows), (2 * i + 1, rows)]) {
            let rng = &mut seeded("few", i as u64);
            let case = random_case(rng, rows);
            // Every form meets one row and many, aligned and not.
            let case = if element == Element::F16 { halved(case, i) } else { case };
            let case = if i < 8 { Case { d_in: 132, d_out: 64, place: Place::DENSE, ..case } } else { case };
            let data = data(&case, rng);
            for on in some(&forms, i < 8, i) {
                check(on, "few", case, &data, &mut reached);
            }
        }
        let (rng, place) = (&mut seeded("few unaligned", 0), unaligned(element));
        let case = Case { d_in: 66, d_out: 38, place, ..random_case(rng, 3) };
        let case = if element == Element::F16 { halved(case, 0) } else { case };
        let case = Case { place, ..case };
        let data = data(&case, rng);
        forms.iter().for_each(|on| check(on, "unaligned", case, &data, &mut reached));
        assert_all_stored_variants("linear_few", element, &reached);
    }
}

/// Rule: at GPT-2's width too, with everything fused.
#[test]
fn a_width_of_768() {
    for (number, (rows, d_in, d_out)) in [(1, 768, 65), (8, 64, 768), (3, 768, 64), (1, 768, 768)].into_iter().enumerate() {
        for element in [Element::F32, Element::F16] {
            let case = Case {
                rows,
                d_in,
                d_out: usize::next_multiple_of(d_out, if element == Element::F16 { 2 } else { 1 }),
                bias: true,
                norm: Some((true, true)),
                activation: Activation::GeluTanh,
                residual: true,
                sequences: false,
                place: Place::DENSE,
                element,
            };
            let data = data(&case, &mut seeded("wide", number as u64));
            check(on(), "wide", case, &data, &mut BTreeSet::new());
        }
    }
}

/// Rule: a norm in front of a projection loses no digits to a large mean, and a constant row is the norm's bias.
#[test]
fn norms_of_large_means_and_of_constants() {
    for (number, mean) in [1e4f32, -1e5].into_iter().enumerate() {
        for d_in in [64, 61] {
            let case = Case { rows: 9, d_in, d_out: 4, residual: false, ..random_case(&mut seeded("mean", 1), 9) };
            let case = Case {
                norm: Some((true, true)),
                activation: Activation::Identity,
                sequences: false,
                place: Place::DENSE,
                ..case
            };
            let mut data = data(&case, &mut seeded("mean", number as u64));
            data.x.iter_mut().for_each(|x| *x += mean);
            data.x[d_in..2 * d_in].fill(mean);
            check(on(), "mean", case, &data, &mut BTreeSet::new());
        }
    }
}

/// Rule: a row's bits are the same alone and among others, in whichever of a device's forms, whether others rest or not.
#[test]
fn bits_do_not_depend_on_the_number_of_rows() {
    let pinned = |class: &str| {
        let name = format!("linear_few.f32x4.{class}");
        let variant = tileformer::kernels::variants().into_iter().find(|v| v.name() == name).expect(class);
        On::new(common::gpu().clone(), Options::default().with_pinned(variant))
    };
    let unaligned = Place { offset: 1, gap: 3 };
    for (forms, place) in [(["1x1", "8x1"], Place::DENSE), (["1x64", "8x64"], Place::STRIDED), (["1x1", "8x64"], unaligned)]
    {
        let forms = forms.map(pinned);
        for (norm, d_in) in [(None, 300), (Some((true, true)), 300), (Some((false, false)), 77)] {
            let case = Case { rows: 17, d_in, d_out: 37, norm, place, ..random_case(&mut seeded("bits", 3), 17) };
            let case = Case { sequences: true, element: Element::F32, ..case };
            let mut all = data(&case, &mut seeded("bits", d_in as u64));
            all.sequences = (0..17).map(|b| Sequence { q_start: b, q_len: 1, ..Sequence::default() }).collect();
            let right = run_rows(&forms[1], &case, &all).tensor("y").bits();
            for (first, rows) in [(0, 1), (9, 1), (16, 1), (3, 2), (5, 8), (2, 15)] {
                let part = |v: &[f32], width: usize| v[first * width..(first + rows) * width].to_vec();
                let mut some = Data {
                    x: part(&all.x, d_in),
                    residual: part(&all.residual, 37),
                    ..data(&case, &mut seeded("bits", d_in as u64))
                };
                some.sequences = vec![Sequence { q_start: 0, q_len: rows as u32, ..Sequence::default() }];
                for form in &forms {
                    let found = run_rows(form, &Case { rows, ..case }, &some).tensor("y").bits();
                    assert!(found == right[first * 37..(first + rows) * 37], "{rows} rows from {first}, {case:?}");
                }
            }
        }
    }
}

/// Rule: keys and values go where their sequence says, overflow and resting rows nowhere, and not a bit else changes.
#[test]
fn keys_and_values_go_into_the_cache() {
    const HEADS: [[usize; 4]; 7] =
        [[1, 1, 1, 1], [4, 2, 4, 8], [3, 3, 8, 4], [4, 1, 5, 3], [2, 2, 64, 64], [3, 1, 6, 6], [2, 2, 2, 10]];
    for element in [Element::F32, Element::F16] {
        let (forms, mut reached) = (stored_forms("linear_append", element), BTreeSet::new());
        for (number, [heads, kv_heads, head_size, value_size]) in HEADS.into_iter().enumerate() {
            let odd = head_size % 2 + value_size % 2 > 0;
            for (i, rows) in [1, 13, 17].into_iter().enumerate() {
                let rng = &mut seeded("append", (number * 3 + i) as u64);
                let (q, kv) = (heads * head_size, kv_heads * (head_size + value_size));
                let case = Case { d_out: q + kv, residual: false, sequences: true, ..random_case(rng, rows) };
                let case = if element == Element::F16 { halved(case, number + i) } else { case };
                let case = Case { d_out: q + kv, activation: Activation::Identity, ..case };
                let mut data = data(&case, rng);
                let shape = CacheShape { slots: 4, n_kv_heads: kv_heads, capacity: 9, width: head_size.max(value_size) };
                data.sequences = appended(&shape, rows);
                for on in some(&forms, head_size == 64 || number < 2, number + i) {
                    if odd && element == Element::F16 && !on.gpu.device.features().contains(wgpu::Features::SHADER_F16) {
                        continue;
                    }
                    check_append(on, &case, &data, &shape, [q, head_size, value_size], &mut reached);
                }
            }
        }
        assert_all_stored_variants("linear_append", element, &reached);
    }
}

/// Rule: slots of a single key are slots: each text's key goes into its own.
#[test]
fn slots_of_one_key_are_apart() {
    for kv_heads in [1, 2] {
        let rng = &mut seeded("one key", kv_heads as u64);
        let shape = CacheShape { slots: 3, n_kv_heads: kv_heads, capacity: 1, width: 4 };
        let (d_out, activation) = (8 + kv_heads * 8, Activation::Identity);
        let (place, element) = (Place::DENSE, Element::F32);
        let case = Case { d_out, activation, residual: false, sequences: true, place, element, ..random_case(rng, 2) };
        let mut data = data(&case, rng);
        let word = |slot: usize| (slot * kv_heads) as u32;
        let own = |b: u32, slot| Sequence { q_start: b, q_len: 1, k_start: word(slot), k_len: 1, ..Sequence::default() };
        data.sequences = vec![own(0, 2), own(1, 0)];
        check_append(on(), &case, &data, &shape, [8, 4, 4], &mut BTreeSet::new());
    }
}

/// Texts in odd slots: one in the middle, one that rests, one that overflows, one with more rows than keys; for a single row, one
/// of them alone.
fn appended(shape: &CacheShape, rows: usize) -> Vec<Sequence> {
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

fn check_append(
    on: &On,
    case: &Case,
    data: &Data,
    shape: &CacheShape,
    [q, head_size, value_head_size]: [usize; 3],
    reached: &mut BTreeSet<String>,
) {
    let mut run = Run::stored(on, "append", case.place, case.element);
    let mut few = operands(&mut run, case, data);
    few.linear.y = run.output("y", &[case.rows, q]);
    run.place = Place { gap: 0, ..case.place };
    let cache = run.output("cache", &[2, shape.slots, shape.n_kv_heads, shape.capacity, shape.width]);
    few.out = FewOutput::Append { cache, head_size, value_head_size };
    run.builder.linear_few("append", &few).unwrap();
    let done = run.go();
    done.note(reached);

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
}

/// q, and the cache with k and v in it.
fn split<T: Copy>(
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

/// Rule: logits are f32 whatever is stored, and the maxima are those of the logits that were written.
#[test]
fn logits_and_their_maxima() {
    for element in [Element::F32, Element::F16] {
        let (forms, mut reached) = (stored_forms("linear_logits", element), BTreeSet::new());
        for (i, rows) in [1, 2, 5, 8, 9, 17].into_iter().enumerate().flat_map(|(i, r)| [(2 * i, r), (2 * i + 1, r)]) {
            let rng = &mut seeded("logits", i as u64);
            let d_out = pick(rng, &[1, 63, 64, 65, 130, 300]);
            let case = Case { residual: false, ..random_case(rng, rows) };
            let case = if element == Element::F16 { halved(case, i) } else { case };
            let aligned = if i < 4 { Case { d_in: 132, bias: false, place: Place::DENSE, ..case } } else { case };
            let case = Case { d_out, bias: aligned.bias && d_out.is_multiple_of(4), ..aligned };
            let mut data = data(&case, rng);
            if i % 3 == 0 {
                // Equal logits: the lowest column wins.
                let row = data.weight[..case.d_in].to_vec();
                data.weight.chunks_exact_mut(case.d_in).for_each(|w| w.copy_from_slice(&row));
                data.bias.fill(0.25);
            }
            for on in some(&forms, i < 4, i) {
                let done = check_logits(on, &case, &data);
                done.note(&mut reached);
            }
        }
        let (rng, place) = (&mut seeded("logits unaligned", 0), unaligned(element));
        let case = Case { residual: false, ..random_case(rng, 3) };
        let case = if element == Element::F16 { halved(case, 0) } else { case };
        let case = Case { d_in: 66, d_out: 130, place, ..case };
        let data = data(&case, rng);
        forms.iter().for_each(|on| check_logits(on, &case, &data).note(&mut reached));
        assert_all_stored_variants("linear_logits", element, &reached);
    }
}

fn check_logits(on: &On, case: &Case, data: &Data) -> Done {
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
        let right = if written { *right_bits } else { common::POISON };
        assert_eq!(*found, right, "maxima[{i}] of {name}");
    }
    done
}

/// Rule: a weight that no binding holds is split, and groups, columns, keys and values go on where the last part ended.
#[test]
fn a_weight_larger_than_a_binding_is_split() {
    let on = common::on_small_bindings();
    for (number, place) in Place::ALL.into_iter().enumerate() {
        let rng = &mut seeded("split", number as u64);
        let case = Case {
            rows: 3,
            d_in: 200,
            d_out: 200,
            bias: true,
            norm: Some((true, true)),
            residual: true,
            sequences: true,
            place,
            ..random_case(rng, 3)
        };
        let mut data = data(&case, rng);
        check(on, "split", case, &data, &mut BTreeSet::new());
        let done = check_logits(on, &Case { residual: false, ..case }, &data);
        assert!(done.variants.len() > 1, "not split");
        let shape = CacheShape { slots: 4, n_kv_heads: 2, capacity: 9, width: 36 };
        data.sequences = appended(&shape, 1);
        let case = Case { residual: false, activation: Activation::Identity, ..case };
        check_append(on, &case, &data, &shape, [64, 32, 36], &mut BTreeSet::new());
    }
}

/// Rule: in pairs of f16 too, a vocabulary may be odd, its bias with it.
#[test]
fn odd_vocabularies_in_pairs() {
    for columns in [1, 37, 131] {
        let rng = &mut seeded("odd vocabulary", columns as u64);
        let (d_in, d_out, element) = (12, columns, Element::F16);
        let (bias, residual, sequences, place) = (true, false, false, Place::EVEN);
        let case = Case { d_in, d_out, element, bias, residual, sequences, place, ..random_case(rng, 5) };
        let data = data(&case, rng);
        check_logits(on_core(), &case, &data);
    }
}

/// Rule: NaN is never the largest logit, and a group of nothing else gives its first column.
#[test]
fn nan_is_never_the_largest() {
    let (d_in, d_out) = (4, 130);
    let mut weight = vec![1.0; d_out * d_in];
    weight[..64 * d_in].fill(f32::NAN);
    weight[64 * d_in..66 * d_in].fill(f32::NAN);
    let mut run = Run::new(on(), "nan", Place::DENSE);
    let (x, w) = (run.input("x", &[1, d_in], &[-1.0; 4]), run.weight("weight", &[d_out, d_in], &weight));
    let y = run.output("y", &[1, d_out]);
    let maxima = run.output_as("maxima", Element::U32, Place::DENSE.layout(&[1, 3, 2]));
    let few = LinearFew { out: FewOutput::Logits { maxima }, ..LinearFew::new(Linear::new(x, w, y)) };
    run.builder.linear_few("nan", &few).unwrap();
    let key = 0x8000_0000 - 4.0f32.to_bits();
    assert_eq!(run.go().tensor("maxima").bits(), [0, 0, key, 66, key, 128]);
}
