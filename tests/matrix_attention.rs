//! `attention_matrix` against the twins, on matrix units where the adapter has them and on plain arrays elsewhere.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::attention::{Case, Data, FACTORS, Levels, MaskData, SENTINEL, assert_scores, random_levels, softmax_errors};
use common::fused::{run, twin};
use common::matrices::{by_fewer_subgroups, deepest, on_each_class};
use common::{EPS, On, Place, assert_close, largest, pick, seeded, storage_floor, stored, sum_floor};
use rand::RngExt;
use tileformer::reference;
use tileformer::{Element, Mask, Variant};

/// Half an ULP of a weight near 1 in f16, relative to it.
const WEIGHT: f64 = 1.0 / 2048.0;

/// Keys of the smallest tile: a row's reference may change, and its sums be scaled, that often.
const TILE: usize = 16;

/// Runs a case on what f16 leaves of `data`, and compares out and log-sum-exp.
fn check(name: &str, variant: &Variant, on: &On, case: &Case, data: &Data) {
    check_scores(name, variant, on, case, data, false);
}

/// The same, where `exact` for scores that f32 holds.
fn check_scores(name: &str, variant: &Variant, on: &On, case: &Case, data: &Data, exact: bool) {
    let [q, k, v] = [&data.q, &data.k, &data.v].map(|values| stored(Element::F16, values));
    let data = Data { q, k, v };
    let done = run(case, on, Element::F16, &data);
    let [.., s] = case.score_sizes();
    let name = format!("{variant:?} {name}: {:?} of {:?} {:?}", case.options, case.shape, case.place);
    let (ran, wanted) = (done.variants[0].name(), variant.name());
    let same = ran.split('.').zip(wanted.split('.')).enumerate().all(|(i, (a, b))| i == 1 || a == b);
    assert!(same, "{name} ran {ran}");

    let (twin32, twin64) = (twin::<f32>(case, &data), twin::<f64>(case, &data));
    // A score that is off moves its weight, and the sum by as much; so does each scaling of the sums. Weights are f16.
    let mut errors = case.score_errors(case.dot_errors(&data.q, &data.k));
    if exact {
        errors.fill(0.0);
    }
    let steps = s.div_ceil(TILE) as f64 * 4.0 * EPS;
    let sane = |values: &[f64]| largest(&values.iter().map(|v| if v.abs() < 1e30 { *v } else { 0.0 }).collect::<Vec<_>>());
    let magnitude = sane(&twin64.sums);
    let distance = magnitude + sane(&twin64.scores);
    let exp = 3.0 + 2.0 * (s as f64).ln().min(distance);
    let floor = largest(&errors) + steps + (2.0 * magnitude + exp) * EPS + WEIGHT;
    let sums = done.tensor("sums").bits().into_iter().map(f32::from_bits).collect::<Vec<_>>();
    assert_scores(&format!("log_sum_exp of {name}"), &sums, &twin32.sums, &twin64.sums, floor);

    let errors = softmax_errors(&twin64.probs, &errors, s);
    let width = case.n_heads * case.value_head_size;
    let out = done.tensor("out").f32_where(|i| case.owns_query(i / width));
    let v: Vec<f64> = data.v.iter().map(|v| f64::from(v.abs())).collect();
    let weigh = |probs: &[f64]| case.twin::<f64, _>(|att| reference::attention_values(att, probs, &v).unwrap());
    let weights = weigh(&twin64.probs);
    let floor = largest(&weigh(&errors))
        + sum_floor(&weights)
        + (steps + WEIGHT) * largest(&weights)
        + storage_floor(Element::F16, &twin64.out);
    assert_close(&format!("out of {name}"), &out, &twin32.out, &twin64.out, floor);
    for (i, weight) in weights.into_iter().enumerate() {
        assert!(weight > 0.0 || out[i] == 0.0, "out of {name}: [{i}] is {} and all its keys are hidden", out[i]);
    }
}

/// The largest head of a variant's class.
fn head_of(variant: &Variant) -> usize {
    let name = variant.name();
    let head = name.split(".h").nth(1).unwrap();
    head.split('m').next().unwrap().parse().unwrap()
}

fn options_at_random(variant: &Variant, on: &On, cases: u64) {
    let head = head_of(variant);
    for number in 0..cases {
        let mut rng = seeded("matrix options at random", number);
        let mut levels: Levels = random_levels(&mut rng);
        // Each level of each factor in turn, whatever the draw.
        let factor = number as usize % FACTORS.len();
        levels[factor] = number as usize / FACTORS.len() % FACTORS[factor].1;
        if levels[0] == 0 {
            levels[1] = 0;
        }
        let size = pick(&mut rng, &[2, 9, 15, 17, 31, 32, 33, 37, 63, 64, 65, 97]).min(deepest() / 2);
        let mut case = Case::of(&levels, size, &mut rng);
        if case.head_size > head {
            case.head_size = head - 4;
        }
        check(&format!("random {number}"), variant, on, &case, &Data::of(&case, "matrix random data", number));
    }
}

fn edges(variant: &Variant, on: &On) {
    let head = head_of(variant);
    let lengths = [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 127, 129];
    let sizes = [1, 6, 8, 15, 16, 18, head / 2 + 1, head - 3, head - 1, head];
    for (i, &t) in lengths.iter().enumerate() {
        let s = lengths[(5 * i + 3) % lengths.len()].min(deepest());
        let heads = [sizes[3 * i % sizes.len()], sizes[(7 * i + 1) % sizes.len()]];
        let case = Case::plain([1, t, s], [2, 1 + i % 2], heads, Place::ALL[i % 4]);
        check("edges", variant, on, &case, &Data::of(&case, "matrix edges", i as u64));
        let t = t.min(deepest());
        let mut case = Case::plain([1, t, t], [1, 1], [head, head], Place::ALL[(i + 1) % 4]);
        case.options.causal = true;
        check("causal", variant, on, &case, &Data::of(&case, "matrix causal", i as u64));
    }
}

/// Rows whose maximum grows at each tile by much, by little, or not at all; rows of huge scores; and rows that see sentinels first.
fn growing_rows(variant: &Variant, on: &On) {
    for (number, place) in [Place::DENSE, Place::ODD].into_iter().enumerate() {
        let (t, s, d) = (70, 150.min(deepest()), 16);
        let mut case = Case::plain([1, t, s], [1, 1], [d, d], place);
        case.options.scale = Some(1.0);
        let mut data = Data::of(&case, "matrix growth", number as u64);
        for (i, q) in data.q.chunks_exact_mut(d).enumerate() {
            q.fill(0.0);
            q[i % d] = [0.5, 0.1, -0.3, 0.01, 1.5, 1.9][i % 6];
        }
        for (j, k) in data.k.chunks_exact_mut(d).enumerate() {
            k.fill(j as f32 / 4.0);
        }
        check("growth", variant, on, &case, &data);

        // One product a score, which f32 holds: 2^31 and more, with neighbours 256 apart.
        let mut huge = Data { q: data.q.clone(), k: data.k.clone(), v: data.v.clone() };
        for (i, q) in huge.q.chunks_exact_mut(d).enumerate() {
            q[i % d] = (61_472.0 - 32.0 * i as f32) * [1.0, -1.0][i % 2];
        }
        for (j, k) in huge.k.chunks_exact_mut(d).enumerate() {
            k.fill(40_032.0 + 32.0 * (j % 7) as f32);
        }
        check_scores("huge", variant, on, &case, &huge, true);

        let mut rng = seeded("matrix sentinels", number as u64);
        let mask = (0..t * s).map(|n| {
            let (i, j) = (n / s, n % s);
            if j < [0, 20, 70, s][i % 4] { SENTINEL } else { rng.random_range(-1.0..1.0) }
        });
        case.mask = Some(([1, 1, t, s], MaskData::Additive(mask.collect())));
        case.options.mask = Some(Mask::Additive);
        check("sentinels", variant, on, &case, &data);
    }
}

/// Rows of one large score and many small ones, of whose values alone out is made: their weights are 2^-21 of the largest and more,
/// which f16 holds with all its digits once the largest is 2^7.
fn long_tails(variant: &Variant, on: &On) {
    let (t, s, d) = (70, 4096.min(deepest()), 16);
    let mut case = Case::plain([1, t, s], [1, 1], [d, d], Place::DENSE);
    case.options.scale = Some(1.0);
    let mut data = Data::of(&case, "matrix tails", 0);
    data.q.fill(0.0);
    data.q.chunks_exact_mut(d).enumerate().for_each(|(i, q)| q[0] = [-14.5, -13.4, -12.0][i % 3]);
    for (j, (k, v)) in data.k.chunks_exact_mut(d).zip(data.v.chunks_exact_mut(d)).enumerate() {
        k.fill(if j == 0 { 0.0 } else { 1.0 });
        v.fill(if j == 0 { 0.0 } else { 60_000.0 });
    }
    let data = Data { q: stored(Element::F16, &data.q), ..data };
    let right = twin::<f64>(&case, &data).out;
    for (i, (found, right)) in run(&case, on, Element::F16, &data).f32("out").into_iter().zip(right).enumerate() {
        // Half an ULP of a weight and of the result, and what exp may be off by.
        let floor = right * (2.0 * WEIGHT + 40.0 * EPS);
        let error = (f64::from(found) - right).abs();
        assert!(error <= floor, "{variant:?} tails: [{i}] is {found}, not {right}");
    }
}

/// Rule: options combine freely, every edge of a tile is right, and sums survive any growth of a row's maximum.
#[test]
fn attention_on_matrices() {
    on_each_class("attention_matrix", &["64x16.h64m16"], |variant, on| {
        growing_rows(variant, on);
        long_tails(variant, on);
        edges(variant, on);
        options_at_random(variant, on, 70);
    });
}

/// Rule: queries for which there is no subgroup are walked through by the ones that there are.
#[test]
fn attention_by_fewer_subgroups_than_parts() {
    by_fewer_subgroups("attention_matrix.f16x4.64x16.h64m16.matrix", |variant, on| {
        growing_rows(variant, on);
        edges(variant, on);
    });
}
