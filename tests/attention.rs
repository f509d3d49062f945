//! The attention kernels against their twins: `attention_scores`, `masked_softmax`, `attention_values`, alone and in a chain.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::attention::{Case, Data, FACTORS, assert_scores, can_meet, covering_array, random_levels, softmax_errors};
use common::{
    Done, EPS, On, Place, Run, assert_all_stored_variants, assert_all_variants, assert_close, largest, on, on_form,
    on_halves, on_invariant, pick, seeded, storage_floor, stored, sum_floor, widen,
};
use rand::RngExt;
use tileformer::kernels::{AttentionScores, AttentionValues, MaskedSoftmax, Visibility};
use tileformer::reference::{self, Real};
use tileformer::{AttentionOptions, Element, Sequence};

/// Scores, softmax and values in one program; q, k, v and out are stored as `element`.
fn run(case: &Case, on: &On, element: Element, data: &Data) -> Done {
    let mut run = Run::stored(on, "attention", case.place, element);
    let (n, kv) = (case.n_heads, case.n_kv_heads);
    let q = run.input("q", &[case.shape.q_rows, n, case.head_size], &data.q);
    let k = run.input("k", &[case.shape.k_rows, kv, case.head_size], &data.k);
    let v = run.input("v", &[case.shape.k_rows, kv, case.value_head_size], &data.v);
    let square = case.place.layout(&case.score_sizes());
    let [scores, probs] = ["scores", "probs"].map(|name| run.output_as(name, Element::F32, square));
    let out = run.output("out", &[case.shape.q_rows, n, case.value_head_size]);
    let visibility = case.visibility(&mut run);
    run.builder.attention_scores("scores", &AttentionScores { q, k, visibility: visibility.clone(), scores }).unwrap();
    let plain = Visibility::new(AttentionOptions { scale: Some(1.0), ..AttentionOptions::default() });
    run.builder.masked_softmax("softmax", &MaskedSoftmax { x: scores, visibility: plain, y: probs }).unwrap();
    run.builder.attention_values("values", &AttentionValues { probs, v, visibility, out }).unwrap();
    run.go()
}

fn twin<T: Real>(case: &Case, data: &Data) -> (Vec<T>, Vec<T>, Vec<T>) {
    let real = |values: &[f32]| values.iter().map(|&v| T::of(v)).collect::<Vec<_>>();
    let [q, k, v] = [&data.q, &data.k, &data.v].map(|values| real(values));
    case.twin::<T, _>(|att| {
        let (out, probs) = reference::attention(att, &q, &k, &v).unwrap();
        (reference::attention_scores(att, &q, &k).unwrap(), probs, out)
    })
}

fn check(name: &str, case: &Case, invariant: bool, data: &Data) -> Done {
    check_stored(name, case, if invariant { on_invariant() } else { on() }, Element::F32, data)
}

fn check_stored(name: &str, case: &Case, on: &On, element: Element, data: &Data) -> Done {
    let done = run(case, on, element, data);
    let (scores32, probs32, out32) = twin::<f32>(case, data);
    let (scores64, probs64, out64) = twin::<f64>(case, data);
    let name = format!("{name}: {:?} of {:?} {:?}", case.options, case.shape, case.place);

    let errors = case.score_errors(case.dot_errors(&data.q, &data.k));
    let found = done.tensor("scores").bits().into_iter().map(f32::from_bits).collect::<Vec<_>>();
    assert_scores(&format!("scores of {name}"), &found, &scores32, &scores64, largest(&errors));

    let columns = case.shape.longest_k;
    let errors = softmax_errors(&probs64, &errors, columns);
    let probs = done.f32("probs");
    assert_close(&format!("probs of {name}"), &probs, &probs32, &probs64, largest(&errors));
    for (i, visible) in case.visible().into_iter().enumerate() {
        assert!(visible || probs[i].to_bits() == 0, "probs of {name}: [{i}] is {} and hidden", probs[i]);
    }

    let width = case.n_heads * case.value_head_size;
    let out = done.tensor("out").f32_where(|i| case.owns_query(i / width));
    let v: Vec<f64> = data.v.iter().map(|v| f64::from(v.abs())).collect();
    let sums = |probs: &[f64]| case.twin::<f64, _>(|att| reference::attention_values(att, probs, &v).unwrap());
    let floor = largest(&sums(&errors)) + sum_floor(&sums(&probs64)) + storage_floor(element, &out64);
    assert_close(&format!("out of {name}"), &out, &out32, &out64, floor);
    let weights = sums(&probs64);
    for (i, weight) in weights.into_iter().enumerate() {
        assert!(weight > 0.0 || out[i] == 0.0, "out of {name}: [{i}] is {} and all its keys are hidden", out[i]);
    }
    done
}

/// Rule: options combine freely, so every pair of them must be tested together.
#[test]
fn every_pair_of_options_is_covered() {
    let rows = covering_array();
    for (a, (name_a, levels_a)) in FACTORS.iter().enumerate() {
        for (b, (name_b, levels_b)) in FACTORS.iter().enumerate().filter(|(b, _)| *b != a) {
            for i in 0..*levels_a {
                for j in (0..*levels_b).filter(|&j| can_meet((a, i), (b, j))) {
                    assert!(rows.iter().any(|r| r[a] == i && r[b] == j), "{name_a} {i} with {name_b} {j}");
                }
            }
        }
    }
    assert!(rows.len() < 120, "{} rows", rows.len());
}

/// Rule: options combine freely: all pairs of them.
#[test]
fn options_pairwise() {
    for (number, levels) in covering_array().iter().enumerate() {
        let mut rng = seeded("pairwise", number as u64);
        let size = rng.random_range(3..24);
        let case = Case::of(levels, size, &mut rng);
        let data = Data::of(&case, "pairwise data", number as u64);
        check(&format!("pairwise {number}"), &case, levels[13] == 1, &data);
    }
}

/// Rule: options combine freely, at the edges of tiles too.
#[test]
fn options_at_random() {
    for number in 0..100 {
        let mut rng = seeded("options at random", number);
        let levels = random_levels(&mut rng);
        let size = pick(&mut rng, &[2, 5, 31, 32, 33, 37, 63, 64, 65]);
        let case = Case::of(&levels, size, &mut rng);
        let data = Data::of(&case, "random data", number);
        check(&format!("random {number}"), &case, levels[13] == 1, &data);
    }
}

/// Rule: every edge of a tile of scores and of values is right, in every compiled form.
#[test]
fn edges_of_tiles_in_every_form() {
    let mut reached = BTreeSet::new();
    let lengths = [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 131];
    let sizes = [1, 4, 15, 16, 17, 31, 32, 33, 63, 64, 65, 131];
    for (i, t) in lengths.into_iter().enumerate() {
        for (j, s) in lengths.into_iter().enumerate() {
            let number = i * lengths.len() + j;
            let place = Place::ALL[(i + j + i / 4) % 4];
            let heads = [sizes[number % 12], sizes[(number + 5 + i) % 12]];
            let case = Case::plain([1, t, s], [2, 1 + j % 2], heads, place);
            let data = Data::of(&case, "edges", number as u64);
            check("edges", &case, false, &data).note(&mut reached);
            if number % 4 == 0 {
                check("edges", &case, true, &data).note(&mut reached);
            }
        }
    }
    for (number, place) in Place::ALL.into_iter().enumerate() {
        for sizes in [[64, 64], [64, 68], [36, 128], [20, 32]] {
            for queries in [65, 8] {
                let case = Case::plain([2, queries, 40], [2, 1], sizes, place);
                check("heads", &case, number % 2 == 0, &Data::of(&case, "heads", number as u64)).note(&mut reached);
            }
        }
    }
    for form in ["f32x4.64x64x16-plain", "f32x4.32x64-quads.subgroups"] {
        for (number, (t, s)) in [(1, 4), (31, 36), (65, 68), (40, 132)].into_iter().enumerate() {
            let case =
                Case::plain([2, t, s], [2, 1], [[64, 36], [20, 68], [4, 128], [68, 64]][number], Place::ALL[number % 2]);
            on_both(form, &case, Element::F32, &Data::of(&case, form, number as u64), &mut reached);
        }
    }
    assert_all_variants("attention_scores", &reached);
    assert_all_variants("attention_values", &reached);
}

/// The case with a form of scores and of values pinned, where the adapter has it.
fn on_both(form: &str, case: &Case, element: Element, data: &Data, reached: &mut BTreeSet<String>) {
    for kernel in ["attention_scores", "attention_values"] {
        let Some((variant, on)) = on_form(&format!("{kernel}.{form}")) else { continue };
        let done = check_stored(form, case, &on, element, data);
        assert!(done.variants.contains(&variant), "{:?}", done.variants);
        done.note(reached);
    }
}

/// Rule: q, k, v and out in f16, as the type or in pairs, change nothing but the rounding of what is stored.
#[test]
fn f16_in_both_forms() {
    let mut reached = BTreeSet::new();
    let mut both = |name: &str, number: u64, case: &Case, place: usize| {
        for (packed, on) in on_halves() {
            // Pairs want everything even.
            let even = |size: usize| if packed { size.next_multiple_of(2) } else { size };
            let mut case = case.clone();
            (case.head_size, case.value_head_size) = (even(case.head_size), even(case.value_head_size));
            let places = if packed { [Place::DENSE, Place::STRIDED, Place::EVEN, Place::EVEN] } else { Place::ALL };
            case.place = places[place];
            let mut data = Data::of(&case, name, number);
            for values in [&mut data.q, &mut data.k, &mut data.v] {
                *values = stored(Element::F16, values);
            }
            check_stored(&format!("{name} {number}"), &case, on, Element::F16, &data).note(&mut reached);
        }
    };
    for (number, [t, s]) in [[5, 12], [20, 36], [70, 64]].into_iter().enumerate() {
        both("f16 groups of four", number as u64, &Case::plain([2, t, s], [2, 1], [16, 36], Place::DENSE), number % 2);
        both("f16", number as u64, &Case::plain([1, t, s + 1], [2, 2], [13, 41], Place::DENSE), 2 + number % 2);
    }
    for number in 0..10 {
        let mut rng = seeded("f16 options", number);
        let case = Case::of(&random_levels(&mut rng), 9, &mut rng);
        both("f16 options", number, &case, number as usize % 4);
    }
    let case = Case::plain([1, 70, 84], [2, 1], [36, 64], Place::DENSE);
    let mut data = Data::of(&case, "f16 pinned", 0);
    for values in [&mut data.q, &mut data.k, &mut data.v] {
        *values = stored(Element::F16, values);
    }
    for form in ["f16x4.64x64x16-plain", "f16x4.32x64-quads.subgroups"] {
        on_both(form, &case, Element::F16, &data, &mut reached);
    }
    assert_all_stored_variants("attention_scores", Element::F16, &reached);
    assert_all_stored_variants("attention_values", Element::F16, &reached);
}

/// Rule: no shape is special.
#[test]
fn random_shapes() {
    for number in 0..40 {
        let mut rng = seeded("attention shapes", number);
        let mut size = |most: usize| rng.random_range(1..most);
        let (shape, heads) = ([size(4), size(90), size(90)], [size(80), size(80)]);
        let (place, groups) = (pick(&mut rng, &Place::ALL), pick(&mut rng, &[[1, 1], [2, 2], [6, 3], [3, 1]]));
        let case = Case::plain(shape, groups, heads, place);
        check("shapes", &case, number % 3 == 0, &Data::of(&case, "shapes", number));
    }
}

/// Rule: logits of ±1e4 overflow nothing: the softmax subtracts the row's maximum.
#[test]
fn huge_logits() {
    for number in 0..12u64 {
        let mut rng = seeded("huge", number);
        let mut levels = random_levels(&mut rng);
        (levels[7], levels[8]) = (number as usize % 2, 1);
        // Some keys must be there to have large scores.
        (levels[0], levels[1], levels[5]) = (levels[0] % 3, 0, 0);
        let mut case = Case::of(&levels, 20, &mut rng);
        case.options.softcap = case.options.softcap.map(|_| 30.0);
        let mut data = Data::of(&case, "huge data", number);
        let factor = (1e4 / (case.head_size as f32).sqrt()).sqrt() * 1.7;
        data.q.iter_mut().chain(&mut data.k).for_each(|v| *v *= factor);
        let (scores, ..) = twin::<f64>(&case, &data);
        let finite = scores.iter().filter(|s| s.is_finite() && s.abs() < 1e30);
        let top = finite.fold(0.0f64, |m, s| m.max(s.abs()));
        assert!(case.options.softcap.is_some() || top > 5e3, "logits of {top} only");
        check(&format!("huge {number}"), &case, false, &data);
    }
}

/// Rule: a cap far above the scores costs them no digits, as an error of tanh would that it multiplies.
#[test]
fn far_caps_cost_no_digits() {
    for (number, cap) in [100.0, 1e4, 1e6].into_iter().enumerate() {
        let mut case = Case::plain([1, 3, 37], [1, 1], [1, 1], Place::ALL[number]);
        case.options = AttentionOptions { scale: Some(1.0), softcap: Some(cap), ..AttentionOptions::default() };
        let mut data = Data::of(&case, "caps", number as u64);
        data.q = vec![1.0, -2.0, 8.0];
        data.k.iter_mut().for_each(|k| *k *= 2.0);
        let found = run(&case, on(), Element::F32, &data).f32("scores");
        for (found, right) in found.iter().zip(twin::<f64>(&case, &data).0) {
            assert!(
                (f64::from(*found) - right).abs() <= 6.0 * EPS * right.abs(),
                "{found} where {right} is right, cap {cap}"
            );
        }
    }
}

/// Rule: probs behind a sequence's last key may hold anything, in a group of four with it too.
#[test]
fn probs_behind_the_last_key_reach_nothing() {
    for form in ["64x64x16-plain", "32x64-quads.subgroups"] {
        let Some((variant, on)) = on_form(&format!("attention_values.f32x4.{form}")) else { continue };
        let mut case = Case::plain([2, 5, 24], [2, 1], [4, 8], Place::DENSE);
        case.bound = true;
        (case.sequences[0].k_len, case.sequences[1].k_len) = (13, 23);
        let data = Data::of(&case, "behind", 0);
        let (sizes, rows) = (case.score_sizes(), case.n_heads * case.shape.longest_q);
        let length = |i: usize| case.sequences[i / 24 / rows].k_len as usize;
        let mut seed = seeded("behind", 1);
        let probs: Vec<f32> = (0..sizes.iter().product::<usize>()).map(|_| seed.random_range(0.0..1.0)).collect();
        let with = |behind: f32| -> Vec<f32> {
            probs.iter().enumerate().map(|(i, p)| if i % 24 < length(i) { *p } else { behind }).collect()
        };
        let found = |probs: &[f32]| {
            let mut run = Run::new(&on, "values", case.place);
            let probs = run.input("probs", &sizes, probs);
            let v = run.input("v", &[case.shape.k_rows, case.n_kv_heads, case.value_head_size], &data.v);
            let out = run.output("out", &[case.shape.q_rows, case.n_heads, case.value_head_size]);
            let visibility = case.visibility(&mut run);
            run.builder.attention_values("values", &AttentionValues { probs, v, visibility, out }).unwrap();
            let done = run.go();
            assert_eq!(done.variants, [variant]);
            done.tensor("out").bits()
        };
        assert!(found(&with(f32::NAN)) == found(&with(0.0)), "{form}");
    }
}

/// Rule: a row whose every key is hidden, by whichever option, gives exact zeros in weights and output.
#[test]
fn rows_without_a_key_give_zeros() {
    for (number, way) in
        ["length", "key mask", "boolean", "additive", "relative", "causal", "window"].into_iter().enumerate()
    {
        for place in [Place::DENSE, Place::ODD] {
            let mut levels = [0; FACTORS.len()];
            (levels[0], levels[2]) = (1, usize::from(way == "key mask"));
            levels[3] = common::attention::mask_level(way);
            let mut case = Case::of(&levels, 21, &mut seeded("fully masked", number as u64));
            case.place = place;
            match way {
                "length" => case.sequences[1].k_len = 0,
                "key mask" => case.key_mask.as_mut().unwrap().1.fill(0),
                "causal" => (case.options.causal, case.sequences[1].offset) = (true, -30),
                "window" => (case.options.window_left, case.sequences[1].offset) = (Some(3), 40),
                _ => case.mask.as_mut().unwrap().1.hide_all(),
            }
            let data = Data::of(&case, "fully masked", number as u64);
            let done = check(way, &case, false, &data);
            let [_, n_heads, t, s] = case.score_sizes();
            let second = n_heads * t * s;
            assert!(done.f32("probs")[second..2 * second].iter().all(|p| p.to_bits() == 0), "{way}: weights");
            let row = n_heads * case.value_head_size;
            let out = done.tensor("out").f32_where(|i| case.owns_query(i / row));
            assert!(out[t * row..2 * t * row].iter().all(|p| *p == 0.0), "{way}: output");
        }
    }
}

/// Rule: a finite sentinel in an additive mask is only added: alone in its row it leaves an even softmax.
#[test]
fn a_sentinel_hides_nothing_when_all_have_it() {
    let mut levels = [0; FACTORS.len()];
    levels[3] = 4;
    let mut case = Case::of(&levels, 9, &mut seeded("sentinel", 0));
    if let Some((_, common::attention::MaskData::Additive(values))) = &mut case.mask {
        values.fill(common::attention::SENTINEL);
    }
    let done = run(&case, on(), Element::F32, &Data::of(&case, "sentinel", 0));
    for p in done.f32("probs") {
        assert!((p - 1.0 / 9.0).abs() < 1e-6, "{p}");
    }
}

/// Rule: positions are right however far the offset: up to 2³⁰ either way.
#[test]
fn far_offsets() {
    for (number, offset) in [(1 << 30) - 1, -(1 << 30) + 1, 1 << 29, 70_000].into_iter().enumerate() {
        for (causal, window_left, window_right) in [
            (false, None, None),
            (true, None, None),
            (false, Some(5), None),
            (false, None, Some(1 << 30)),
            (true, Some(1 << 30), None),
        ] {
            let mut case = Case::plain([2, 5, 40], [2, 2], [8, 8], Place::DENSE);
            case.bound = true;
            case.sequences.iter_mut().for_each(|s| *s = Sequence { offset, ..*s });
            case.options = AttentionOptions { causal, window_left, window_right, ..AttentionOptions::default() };
            check(&format!("offset {offset}"), &case, false, &Data::of(&case, "far", number as u64));
        }
    }
}

/// Rule: weights that a caller gives for hidden keys do not bring those keys back, and v may be NaN there.
#[test]
fn values_alone_ignore_hidden_keys() {
    for number in 0..24u64 {
        let mut rng = seeded("values", number);
        let mut levels = random_levels(&mut rng);
        (levels[2], levels[3]) = (1 + number as usize % 3, 0);
        let case = Case::of(&levels, 37, &mut rng);
        let v = case.keys(&mut rng, case.value_head_size);
        let probs = common::floats(&mut rng, case.score_sizes().iter().product());
        let mut run = Run::new(on(), "values", case.place);
        let pt = run.input("probs", &case.score_sizes(), &probs);
        let vt = run.input("v", &[case.shape.k_rows, case.n_kv_heads, case.value_head_size], &v);
        let out = run.output("out", &[case.shape.q_rows, case.n_heads, case.value_head_size]);
        let visibility = Visibility { mask: None, ..case.visibility(&mut run) };
        run.builder.attention_values("values", &AttentionValues { probs: pt, v: vt, visibility, out }).unwrap();
        let width = case.n_heads * case.value_head_size;
        let found = run.go().tensor("out").f32_where(|i| case.owns_query(i / width));
        let right32 = case.twin::<f32, _>(|att| reference::attention_values(att, &probs, &v).unwrap());
        let values = |p: &[f64], v: &[f64]| case.twin::<f64, _>(|att| reference::attention_values(att, p, v).unwrap());
        let (p, v) = (widen(&probs), widen(&v));
        let abs = |values: &[f64]| values.iter().map(|v| v.abs()).collect::<Vec<_>>();
        let floor = sum_floor(&values(&abs(&p), &abs(&v)));
        assert_close(&format!("values {number}"), &found, &right32, &values(&p, &v), floor);
    }
}
