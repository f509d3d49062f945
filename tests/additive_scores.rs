//! `additive_scores` against its twin.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::attention::{Case, assert_scores, random_levels};
use common::{
    Done, EPS, On, Place, Run, assert_all_stored_variants, assert_all_variants, floats, largest, on, on_core, on_invariant,
    on_typed, pick, seeded, stored,
};
use rand::RngExt;
use tileformer::Element;
use tileformer::kernels::AdditiveScores;
use tileformer::reference::{self, Real};

/// The twin's scores; q or k may hold NaN where no option lets it be seen.
fn twin<T: Real>(case: &Case, q: &[f32], k: &[f32], vector: &[f32]) -> Vec<T> {
    let real = |values: &[f32]| values.iter().map(|&v| T::of(v)).collect::<Vec<_>>();
    case.twin::<T, _>(|att| reference::additive_scores(att, &real(q), &real(k), &real(vector)).unwrap())
}

fn check(name: &str, number: u64, case: &Case, invariant: bool) -> Done {
    check_stored(name, number, case, if invariant { on_invariant() } else { on() }, Element::F32)
}

fn check_stored(name: &str, number: u64, case: &Case, on: &On, element: Element) -> Done {
    let mut case = case.clone();
    // The kernel's default scale is the dot product's; the twin's is 1.
    case.options.scale = case.options.scale.or(Some(1.0));
    let mut rng = seeded(name, number);
    let (n, d) = (case.n_heads, case.head_size);
    let (q, k) = (case.queries(&mut rng), case.keys(&mut rng, d));
    let vector = floats(&mut rng, n * d);
    let [q, k, vector] = [q, k, vector].map(|values| stored(element, &values));
    let mut run = Run::stored(on, "additive", case.place, element);
    let qt = run.input("q", &[case.shape.q_rows, n, d], &q);
    let kt = run.input("k", &[case.shape.k_rows, n, d], &k);
    let vt = run.weight("vector", &[n, d], &vector);
    let scores = run.output_as("scores", Element::F32, case.place.layout(&case.score_sizes()));
    let visibility = case.visibility(&mut run);
    run.builder.additive_scores("scores", &AdditiveScores { q: qt, k: kt, vector: vt, visibility, scores }).unwrap();
    let done = run.go();
    let found: Vec<f32> = done.tensor("scores").bits().into_iter().map(f32::from_bits).collect();
    let (right32, right64) = (twin::<f32>(&case, &q, &k, &vector), twin::<f64>(&case, &q, &k, &vector));
    // A term is v · tanh(q + k), |q + k| < 2: tanh's few roundings, the argument's and 2⁻²² of the sum.
    let scale = f64::from(case.options.scale.unwrap_or(1.0).abs());
    let terms = |h: usize| vector[h * d..][..d].iter().map(|v| f64::from(v.abs())).sum::<f64>();
    let errors = case.score_errors(|_, h, _, _| scale * terms(h) * 10.0 * EPS);
    let name = format!("{name} {number}: {:?} of {:?} {:?}", case.options, case.shape, case.place);
    assert_scores(&name, &found, &right32, &right64, largest(&errors));
    done
}

/// Rule: every edge is right, in every compiled form.
#[test]
fn edges_in_every_form() {
    let mut reached = BTreeSet::new();
    let lengths = [1, 3, 4, 5, 16, 31, 61];
    for (i, t) in lengths.into_iter().enumerate() {
        for (j, s) in lengths.into_iter().enumerate() {
            for d in [[1, 4], [3, 16], [33, 64]][(i + j) % 3] {
                let place = Place::ALL[(i + j * 3) % 4];
                let case = Case::plain([1 + j % 2, t, s], [1 + i % 3, 1 + i % 3], [d, 1], place);
                check("edges", (i * 10 + j) as u64, &case, false).note(&mut reached);
            }
        }
    }
    assert_all_variants("additive_scores", &reached);
}

/// Rule: q, k and vector in f16, as the type or in pairs, change nothing but their own rounding.
#[test]
fn f16_in_both_forms() {
    let mut reached = BTreeSet::new();
    for number in 0..12u64 {
        let t = 1 + number as usize * 3;
        let size = [4, 16, 33, 6][number as usize % 4];
        let case = Case::plain([2, t, 16 + number as usize % 3], [2, 2], [size, 1], Place::ALL[number as usize / 3]);
        if let Some(on) = on_typed() {
            check_stored("f16", number, &case, on, Element::F16).note(&mut reached);
        }
        let place = [Place::DENSE, Place::STRIDED, Place::EVEN][number as usize % 3];
        let case = Case { place, head_size: size.next_multiple_of(2), ..case };
        check_stored("f16 in pairs", number, &case, on_core(), Element::F16).note(&mut reached);
    }
    assert_all_stored_variants("additive_scores", Element::F16, &reached);
}

/// Rule: every option does here what it does to a dot product.
#[test]
fn options_at_random() {
    for number in 0..60 {
        let mut rng = seeded("additive options", number);
        let mut levels = random_levels(&mut rng);
        levels[9] = [0, 3][number as usize % 2]; // no grouped heads
        let size = pick(&mut rng, &[2, 5, 17, 31, 33]);
        check("options", number, &Case::of(&levels, size, &mut rng), levels[13] == 1);
    }
}

/// Rule: no shape is special.
#[test]
fn random_shapes() {
    for number in 0..40 {
        let mut rng = seeded("additive shapes", number);
        let heads = rng.random_range(1..5);
        let shape = [rng.random_range(1..4), rng.random_range(1..50), rng.random_range(1..50)];
        let case = Case::plain(shape, [heads, heads], [rng.random_range(1..50), 1], pick(&mut rng, &Place::ALL));
        check("shapes", number, &case, false);
    }
}
