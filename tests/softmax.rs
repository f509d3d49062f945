//! `masked_softmax`, alone, against its twin.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::attention::{Case, FACTORS, MaskData, random_levels, softmax_errors};
use common::{
    Done, EPS, On, Place, Run, assert_all_variants, assert_close, largest, on, on_invariant, pick, seeded, some,
    stored_forms, uniform, widen,
};
use rand::RngExt;
use tileformer::Element;
use tileformer::kernels::MaskedSoftmax;
use tileformer::reference;

/// Raw scores, some −∞, and half of those that an option hides NaN: the other half would show in a sum.
fn scores(case: &Case, name: &str, number: u64, most: f32) -> Vec<f32> {
    let mut rng = seeded(name, number);
    let visible = case.visible();
    let mut x = uniform(&mut rng, visible.len(), -most, most);
    for (x, visible) in x.iter_mut().zip(visible) {
        if rng.random_bool(0.05) {
            *x = f32::NEG_INFINITY;
        } else if case.options.key_mask && !visible && rng.random_bool(0.5) {
            *x = f32::NAN;
        }
    }
    x
}

fn run(on: &On, case: &Case, x: &[f32]) -> Done {
    let mut run = Run::new(on, "softmax", case.place);
    let (xt, y) = (run.input("x", &case.score_sizes(), x), run.output("y", &case.score_sizes()));
    let visibility = case.visibility(&mut run);
    run.builder.masked_softmax("softmax", &MaskedSoftmax { x: xt, visibility, y }).unwrap();
    run.go()
}

fn check(name: &str, case: &Case, invariant: bool, x: &[f32]) -> Done {
    let mut all = check_on([if invariant { on_invariant() } else { on() }], name, case, x);
    all.remove(0)
}

/// Runs a case on each of `on` against one twin.
fn check_on<'a>(on: impl IntoIterator<Item = &'a On>, name: &str, case: &Case, x: &[f32]) -> Vec<Done> {
    let right32 = case.twin::<f32, _>(|att| reference::masked_softmax_options(att, x).unwrap());
    let right64 = case.twin::<f64, _>(|att| reference::masked_softmax_options(att, &widen(x)).unwrap());
    let [_, n, t, s] = case.score_sizes();
    let scale = f64::from(case.options.scale.unwrap_or(1.0).abs());
    let at = |b: usize, h: usize, i: usize, j: usize| f64::from(x[((b * n + h) * t + i) * s + j].abs());
    let product = |b, h, i, j| if at(b, h, i, j).is_finite() { 2.0 * EPS * scale * at(b, h, i, j) } else { 0.0 };
    let errors = softmax_errors(&right64, &case.score_errors(product), s);
    let visible = case.visible();
    let mut all = Vec::new();
    for on in on {
        let done = run(on, case, x);
        let found = done.f32("y");
        let name = format!("{name}: {:?} of {:?} {:?} as {:?}", case.options, case.shape, case.place, done.variants);
        assert_close(&name, &found, &right32, &right64, largest(&errors));
        for (i, visible) in visible.iter().enumerate() {
            let hidden = !visible || x[i] == f32::NEG_INFINITY;
            assert!(!hidden || found[i].to_bits() == 0, "{name}: [{i}] is {} and hidden", found[i]);
        }
        all.push(done);
    }
    all
}

/// Rule: every edge of rows and columns is right, and that of what a form keeps in registers (128, 1024 and 4096 keys), in every
/// compiled form.
#[test]
fn edges_of_rows_and_columns_in_every_form() {
    let (forms, mut reached) = (stored_forms("masked_softmax", Element::F32), BTreeSet::new());
    for (i, s) in [1, 2, 3, 4, 5, 31, 33, 97, 124, 127, 128, 132, 1023, 1024, 1028, 2305, 4096, 4100].into_iter().enumerate()
    {
        for (j, t) in [1, 3, 4, 5, 9].into_iter().enumerate().filter(|(_, t)| s < 1000 || *t < 4) {
            for (k, place) in Place::ALL.into_iter().enumerate() {
                let (batch, heads) = [(1, 1), (2, 1), (1, 3), (2, 2)][(i + j + k) % 4];
                let case = Case::plain([batch, t, s], [heads, heads], [1, 1], place);
                let x = scores(&case, "edges", (i * 24 + j * 4 + k) as u64, 5.0);
                let invariant = (j == 0).then(on_invariant);
                let some = some(&forms, t == 3, i + j + k);
                check_on(some.iter().chain(invariant), "edges", &case, &x).iter().for_each(|done| done.note(&mut reached));
            }
        }
    }
    assert_all_variants("masked_softmax", &reached);
}

/// Rule: every option does here what it does to scores, alone and with the others.
#[test]
fn options_at_random() {
    let forms = stored_forms("masked_softmax", Element::F32);
    for number in 0..100 {
        let mut rng = seeded("softmax options", number);
        let mut levels = random_levels(&mut rng);
        levels[7] = 0; // softcap belongs to scores
        let size = if number % 10 == 0 { 700 } else { pick(&mut rng, &[2, 5, 31, 32, 33, 37]) };
        levels[10] = if size == 700 { 3 } else { levels[10] };
        let mut case = Case::of(&levels, size, &mut rng);
        if size == 700 {
            // One query, more than 1024 keys.
            case = Case { options: case.options, ..Case::plain([2, 3, 1040], [case.n_heads, 1], [1, 1], case.place) };
            (case.options.key_mask, case.options.mask) = (false, None);
        }
        let x = scores(&case, "softmax data", number, 8.0);
        let on = [if levels[13] == 1 { on_invariant() } else { on() }, &forms[number as usize % forms.len()]];
        check_on(on, &format!("random {number}"), &case, &x);
    }
}

/// Rule: no shape is special.
#[test]
fn random_shapes() {
    for number in 0..40 {
        let mut rng = seeded("softmax shapes", number);
        let shape = [rng.random_range(1..4), rng.random_range(1..20), rng.random_range(1..1300)];
        let case = Case::plain(shape, pick(&mut rng, &[[1, 1], [3, 3]]), [1, 1], pick(&mut rng, &Place::ALL));
        check("shapes", &case, number % 3 == 0, &scores(&case, "shapes", number, 6.0));
    }
}

/// Rule: each option alone is right: an error of one would drown in a hundred combinations.
#[test]
fn options_one_by_one() {
    for (factor, (name, count)) in FACTORS.iter().enumerate() {
        for level in 0..*count {
            let mut levels: [usize; FACTORS.len()] = [0; FACTORS.len()];
            (levels[0], levels[factor]) = (1, level);
            levels[7] = 0;
            let case = Case::of(&levels, 19, &mut seeded("one", level as u64));
            check(name, &case, levels[13] == 1, &scores(&case, "one", level as u64, 4.0));
        }
    }
}

/// Rule: scores of ±1e4 and beyond overflow nothing.
#[test]
fn huge_scores() {
    for (number, most) in [1e4, 1e10, 1.6e38].into_iter().enumerate() {
        for s in [7, 64, 1500] {
            let case = Case::plain([1, 9, s], [2, 2], [1, 1], Place::ALL[number]);
            check("huge", &case, false, &scores(&case, "huge", number as u64, most));
        }
    }
}

/// Rule: a row of −∞ alone gives exact zeros, beside rows that are as they should be.
#[test]
fn hidden_rows_give_zeros() {
    for s in [1, 6, 40, 1100] {
        for place in Place::ALL {
            let case = Case::plain([1, 11, s], [1, 1], [1, 1], place);
            let mut x = scores(&case, "hidden", s as u64, 3.0);
            for row in [0, 4, 10] {
                x[row * s..][..s].fill(f32::NEG_INFINITY);
            }
            let y = check("hidden", &case, false, &x).f32("y");
            for row in [0, 4, 10] {
                assert!(y[row * s..][..s].iter().all(|p| p.to_bits() == 0), "row {row} of {s}");
            }
        }
    }
}

/// Rule: 0 is a largest score like any other, whichever sign it has.
#[test]
fn rows_whose_largest_score_is_zero() {
    for (number, s) in [1, 6, 40, 1100].into_iter().enumerate() {
        let case = Case::plain([1, 4, s], [1, 1], [1, 1], Place::ALL[number]);
        let mut x = uniform(&mut seeded("zeros", s as u64), 4 * s, -9.0, -0.1);
        for (row, zero) in [0.0, -0.0, 0.0, -0.0].into_iter().enumerate() {
            let scores = &mut x[row * s..][..s];
            if row < 2 { scores.fill(zero) } else { scores[s / 2] = zero }
        }
        check("zeros", &case, number % 2 == 1, &x);
    }
}

/// Rule: rows sum to one, whatever a twin says.
#[test]
fn rows_sum_to_one() {
    for s in [1, 5, 64, 1024, 2047] {
        let case = Case::plain([1, 10, s], [1, 1], [1, 1], Place::DENSE);
        let x = uniform(&mut seeded("sum", s as u64), 10 * s, -20.0, 20.0);
        for (row, y) in run(on(), &case, &x).f32("y").chunks_exact(s).enumerate() {
            let sum: f64 = y.iter().map(|p| f64::from(*p)).sum();
            assert!((sum - 1.0).abs() < 1e-5, "row {row} of {s} sums to {sum}");
        }
    }
}

/// Rule: an additive mask's −∞ hides and its −3.4e38 is added: a row of both keeps the keys that are not −∞.
#[test]
fn sentinels_are_added() {
    let mut levels = [0; FACTORS.len()];
    levels[3] = 4;
    let mut case = Case::of(&levels, 8, &mut seeded("sentinels", 0));
    if let Some((_, MaskData::Additive(values))) = &mut case.mask {
        let pattern = [common::attention::SENTINEL, f32::NEG_INFINITY];
        values.iter_mut().enumerate().for_each(|(i, v)| *v = pattern[i % 2]);
    }
    let x = uniform(&mut seeded("sentinels", 1), case.score_sizes().iter().product(), -5.0, 5.0);
    for (i, p) in run(on(), &case, &x).f32("y").into_iter().enumerate() {
        assert!((p - [0.25, 0.0][i % 2]).abs() < 1e-6, "[{i}] {p}");
    }
}
