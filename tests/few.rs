//! `linear_few`, `linear_append` and `linear_logits` against their twins.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::few::{
    Case, Data, appended, check, check_append, check_logits, data, halved, kind, random_case, run_rows, twin, unaligned,
};
use common::{
    Done, EPS, On, Place, Run, assert_all_stored_variants, on, on_core, on_form, pick, seeded, some, stored_forms,
};
use tileformer::kernels::{FewOutput, Linear, LinearFew};
use tileformer::layers::NormKind;
use tileformer::spec::cache::CacheShape;
use tileformer::{Activation, Element, Sequence, Variant, wgpu};

const ROWS: [usize; 18] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 33];

/// Rule: whatever is fused, and however many rows there are, every form gives norm, projection, activation and residual of the
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
                check(on, "few", case, &data).note(&mut reached);
            }
        }
        let (rng, place) = (&mut seeded("few unaligned", 0), unaligned(element));
        let case = Case { d_in: 66, d_out: 38, place, ..random_case(rng, 3) };
        let case = if element == Element::F16 { halved(case, 0) } else { case };
        let case = Case { place, ..case };
        let data = data(&case, rng);
        forms.iter().for_each(|on| check(on, "unaligned", case, &data).note(&mut reached));
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
            check(on(), "wide", case, &data);
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
            check(on(), "mean", case, &data);
        }
    }
}

/// Rule: a first element far from the others costs a norm no digits, near the mean either: an element is off by a few roundings, to
/// nearest, of its own. Each row of the weight lets one element through.
#[test]
fn norms_of_rows_with_a_far_first_element() {
    for (number, on) in stored_forms("linear_few", Element::F32).iter().enumerate() {
        for d_in in [64, 196, 769, 3000] {
            let case = Case {
                rows: 3,
                d_in,
                d_out: 64,
                bias: false,
                norm: Some((false, false)),
                activation: Activation::Identity,
                residual: false,
                sequences: false,
                place: Place::DENSE,
                element: Element::F32,
            };
            assert_eq!(kind(&case), NormKind::Layer);
            let mut data = data(&case, &mut seeded("far", number as u64));
            data.x.iter_mut().step_by(d_in).for_each(|first| *first = 8.0);
            data.weight.fill(0.0);
            (0..case.d_out).for_each(|n| data.weight[n * d_in + n * d_in / case.d_out] = 1.0);
            let right: Vec<f64> = twin(&case, &data, case.activation).into_iter().flatten().collect();
            for (i, (y, right)) in run_rows(on, &case, &data).f32("y").iter().zip(right).enumerate() {
                // Deviations are scaled by up to 1.8.
                let allowed = EPS * (3.0 * right.abs() + 1.0);
                assert!((f64::from(*y) - right).abs() <= allowed, "{case:?}, {i}: {y} where {right} is right");
            }
        }
    }
}

/// Rule: a row's bits are the same alone and among others, in whichever of a device's forms and tiers, aligned or not, whether others
/// rest or not.
#[test]
fn bits_depend_on_neither_rows_nor_form_nor_place() {
    let odd = Place { offset: 1, gap: 3 };
    let on_cpus = [
        ("f32x4.8x1", Place::DENSE),
        ("f32x4.1x1", Place::STRIDED),
        ("f32x4.1x1", Place::OFF_BY_ONE),
        ("f32x4.8x1", Place::OFF_BY_ONE),
        ("f32.4x1", odd),
    ];
    let on_gpus = [
        ("f32x4.8x64", Place::DENSE),
        ("f32x4.1x64", Place::STRIDED),
        ("f32x4.1x64.subgroups", Place::STRIDED),
        ("f32x4.1x64.subgroups", Place::OFF_BY_ONE),
        ("f32x4.8x64", Place::OFF_BY_ONE),
        ("f32.4x64", odd),
    ];
    let plain = [("f32x4.8x1-plain", Place::DENSE), ("f32x4.1x1-plain", Place::STRIDED), ("f32.4x1", odd)];
    let (both, none) = ([(Some((true, true)), 300), (Some((false, false)), 76), (Some((true, true)), 772)], [(None, 300)]);
    check_bits(&on_cpus, &both);
    check_bits(&on_gpus, &[&both[..], &none].concat());
    check_bits(&plain, &none);
}

/// Runs rows of each of `cases`, norm and d_in, in `forms`, the first of which runs all rows at once.
fn check_bits(forms: &[(&str, Place)], cases: &[(Option<(bool, bool)>, usize)]) {
    const D_OUT: usize = 36;
    let forms: Vec<_> = forms.iter().map(|(name, place)| (on_form(&format!("linear_few.{name}")), *place)).collect();
    let forms: Vec<_> = forms.iter().filter_map(|(form, place)| form.as_ref().map(|(pin, on)| (pin, on, *place))).collect();
    for &(norm, d_in) in cases {
        let case = Case { rows: 17, d_in, d_out: D_OUT, norm, ..random_case(&mut seeded("bits", 3), 17) };
        let case = Case { sequences: true, element: Element::F32, place: forms[0].2, ..case };
        let mut all = data(&case, &mut seeded("bits", d_in as u64));
        all.sequences = (0..17).map(|b| Sequence { q_start: b, q_len: 1, ..Sequence::default() }).collect();
        let right = run_rows(forms[0].1, &case, &all).tensor("y").bits();
        for (first, rows) in [(0, 1), (9, 1), (16, 1), (3, 2), (5, 8), (2, 15)] {
            let part = |v: &[f32], width: usize| v[first * width..(first + rows) * width].to_vec();
            let mut some = Data {
                x: part(&all.x, d_in),
                residual: part(&all.residual, D_OUT),
                ..data(&case, &mut seeded("bits", d_in as u64))
            };
            let awake = rows - rows / 5;
            some.sequences = vec![Sequence { q_start: 0, q_len: awake as u32, ..Sequence::default() }];
            let mut right = right[first * D_OUT..(first + rows) * D_OUT].to_vec();
            right[awake * D_OUT..].fill(common::POISON);
            for (pin, on, place) in &forms {
                let done = run_rows(on, &Case { rows, place: *place, ..case }, &some);
                let meant = if *place == Place::OFF_BY_ONE { pin.unaligned() } else { **pin };
                assert_eq!(done.variants, [meant], "{case:?}");
                assert!(done.tensor("y").bits() == right, "{rows} rows from {first}, {case:?} as {meant:?}");
            }
        }
    }
}

/// Rule: a form by subgroups gives the bits of the core tier, however much longer or shorter a row is than what a thread has under
/// way, behind either norm and none, for rows, caches and logits; and rows that nobody has stay as they are.
#[test]
fn subgroups_change_no_bit() {
    const HEADS: [usize; 3] = [16, 8, 12]; // q, HS, VS
    let shape = CacheShape { slots: 4, n_kv_heads: 2, capacity: 9, width: 12 };
    let forms = |kernel: &str| ["1x64.subgroups", "1x64"].map(|form| on_form(&format!("{kernel}.f32x4.{form}")));
    let (few, append, logits) = (forms("linear_few"), forms("linear_append"), forms("linear_logits"));
    for (number, d_in) in [4, 252, 256, 260, 764, 768, 772, 1796].into_iter().enumerate() {
        let rng = &mut seeded("tiers", number as u64);
        let place = [Place::DENSE, Place::STRIDED][number % 2];
        let norm = [Some((true, true)), None, Some((true, false)), Some((false, true))][number % 4];
        let case = Case { d_in, d_out: 56, norm, sequences: true, place, element: Element::F32, ..random_case(rng, 13) };
        let mut data = data(&case, rng);
        same(&few, |on| (check(on, "tiers", case, &data), ["y"; 2]));
        let case = Case { residual: false, ..case };
        same(&logits, |on| (check_logits(on, &case, &data), ["y", "maxima"]));
        data.sequences = appended(&shape, 13);
        let case = Case { activation: Activation::Identity, ..case };
        same(&append, |on| (check_append(on, &case, &data, &shape, HEADS), ["y", "cache"]));
    }
}

/// Runs in each of the forms that the adapter can run, and compares the bits of these tensors.
fn same(forms: &[Option<(Variant, On)>], run: impl Fn(&On) -> (Done, [&'static str; 2])) {
    let mut right: Option<[Vec<u32>; 2]> = None;
    for (pin, on) in forms.iter().flatten() {
        let (done, names) = run(on);
        assert_eq!(done.variants, [*pin]);
        let found = names.map(|name| done.tensor(name).bits());
        assert!(right.get_or_insert_with(|| found.clone()) == &found, "{pin:?} gives other bits");
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
                    check_append(on, &case, &data, &shape, [q, head_size, value_size]).note(&mut reached);
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
        check_append(on(), &case, &data, &shape, [8, 4, 4]);
    }
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
                check_logits(on, &case, &data).note(&mut reached);
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
        check(on, "split", case, &data);
        let done = check_logits(on, &Case { residual: false, ..case }, &data);
        assert!(done.variants.len() > 1, "not split");
        let shape = CacheShape { slots: 4, n_kv_heads: 2, capacity: 9, width: 36 };
        data.sequences = appended(&shape, 1);
        let case = Case { residual: false, activation: Activation::Identity, ..case };
        check_append(on, &case, &data, &shape, [64, 32, 36]);
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
