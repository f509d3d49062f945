//! Fused attention against the twins of the separate kernels.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::attention::{Case, Data, FACTORS, MaskData, SENTINEL, covering_array, mask_level, random_levels};
use common::fused::{check, check_stored, check_weights, run};
use common::{
    On, Place, assert_all_stored_variants, assert_all_variants, on, on_core, on_form, on_halves, on_invariant, pick, seeded,
    stored,
};
use rand::RngExt;
use tileformer::{AttentionOptions, Element, Options, Sequence};

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
    for number in 0..60 {
        let mut rng = seeded("fused options at random", number);
        let levels = random_levels(&mut rng);
        let size = pick(&mut rng, &[2, 9, 31, 32, 33, 37, 63, 64, 65, 97]);
        let case = Case::of(&levels, size, &mut rng);
        let data = Data::of(&case, "random data", number);
        check(&format!("random {number}"), &case, levels[13] == 1, &data);
    }
}

/// Rule: the same of the tiles of 64 keys that GPUs take: keys of a thread in two groups finish, and pass their weights on, like one.
#[test]
fn options_at_random_with_more_keys() {
    let (_, on) = on_form("attention.f32x4.64x64.v64").expect("a form of the core tier");
    for number in 0..40 {
        let mut rng = seeded("fused keys at random", number);
        let mut case = Case::of(&random_levels(&mut rng), pick(&mut rng, &[2, 31, 33, 63, 64, 65, 97, 130]), &mut rng);
        (case.head_size, case.value_head_size) = (case.head_size.min(64), case.value_head_size.min(64));
        let data = Data::of(&case, "keys data", number);
        check_stored(&format!("keys {number}"), &case, &on, Element::F32, &data);
    }
}

/// Rule: the second pass gives the weights of the first, in every form, under any options and at logits of ±1e4: zeros where
/// hidden, and for rows and keys that a sequence lacks.
#[test]
fn weights_in_a_second_pass() {
    let (mut wide, mut narrow) = (BTreeSet::new(), BTreeSet::new());
    for number in 0..40 {
        let mut rng = seeded("weights", number);
        let mut levels = random_levels(&mut rng);
        if number % 4 == 3 {
            (levels[0], levels[1], levels[5]) = (levels[0] % 3, 0, 0);
        }
        let size = pick(&mut rng, &[2, 9, 31, 33, 63, 64, 65, 97]);
        let mut case = Case::of(&levels, size, &mut rng);
        let mut data = Data::of(&case, "weights", number);
        if number % 4 == 3 {
            case.options.softcap = None;
            let factor = (1e4 / (case.head_size as f32).sqrt()).sqrt() * 1.7;
            data.q.iter_mut().chain(&mut data.k).for_each(|v| *v *= factor);
        }
        let on = if levels[13] == 1 { on_invariant() } else { on() };
        check_weights(&format!("random {number}"), &case, on, Element::F32, &data).note(&mut wide);
    }
    for (number, place) in Place::ALL.into_iter().enumerate() {
        let case = Case::plain([2, 70, 132], [2, 1], [36, 64], place);
        let data = Data::of(&case, "weights", number as u64);
        check_weights("f32", &case, on(), Element::F32, &data).note(&mut wide);
        for (packed, on) in on_halves() {
            let places = if packed { [Place::DENSE, Place::STRIDED, Place::EVEN, Place::EVEN] } else { Place::ALL };
            let case = Case { place: places[number], ..case.clone() };
            let mut data = Data::of(&case, "weights", number as u64);
            for values in [&mut data.q, &mut data.k, &mut data.v] {
                *values = stored(Element::F16, values);
            }
            check_weights("f16", &case, on, Element::F16, &data).note(&mut narrow);
        }
    }
    assert_all_variants("attention_weights", &wide);
    assert_all_stored_variants("attention_weights", Element::F16, &narrow);
}

/// Rule: few queries over parts of the keys give what whole tiles give: at the seams of parts, with parts that no query sees, with
/// any options, in every form.
#[test]
fn few_queries_over_parts_of_the_keys() {
    let (mut wide, mut narrow) = (BTreeSet::new(), BTreeSet::new());
    // CPU adapters take parts for one query alone.
    let (form, pinned) = on_form("attention_split.f32x4.8x128").unwrap();
    let check = |name: &str, case: &Case, data: &Data| {
        let on = if case.shape.longest_q == 1 { on() } else { &pinned };
        check_stored(name, case, on, Element::F32, data)
    };
    let keys = [1, 7, 127, 128, 129, 255, 257, 400, 1025];
    for (number, &s) in keys.iter().enumerate() {
        for (t, heads) in [(1, [64, 64]), (1, [36, 20]), (3, [13, 7]), (8, [64, 128]), (5, [256, 256])] {
            let place = Place::ALL[(number + t) % 4];
            let case = Case::plain([2, t, s], [2, 1], heads, place);
            check("parts", &case, &Data::of(&case, "parts", number as u64)).note(&mut wide);
        }
    }
    // More parts than are put together at a time, of which only the last are seen, or only the first.
    for (t, offset) in [(1, 1250), (6, 1190), (1, 60), (6, 130)] {
        let mut case = Case::plain([1, t, 1300], [2, 1], [16, 20], Place::DENSE);
        case.bound = true;
        case.sequences[0].offset = offset;
        case.options = AttentionOptions { window_left: Some(40), window_right: Some(9), ..AttentionOptions::default() };
        check("parts out of sight", &case, &Data::of(&case, "parts out of sight", offset as u64)).note(&mut wide);
    }
    for number in 0..40 {
        let mut rng = seeded("parts of keys", number);
        let levels = random_levels(&mut rng);
        let size = pick(&mut rng, &[2, 8, 60, 130, 200]);
        let mut case = Case::of(&levels, size, &mut rng);
        // As many queries as there are, up to eight: lengths, offsets and masks stay.
        case.shape.longest_q = case.shape.longest_q.min(8);
        for sequence in &mut case.sequences {
            sequence.q_len = sequence.q_len.min(8);
        }
        if let Some((sizes, data @ (MaskData::Boolean(_) | MaskData::Additive(_)))) = &mut case.mask {
            cut_rows(sizes, data, case.shape.longest_q);
        }
        if !case.bound {
            let full = Case::plain(
                [case.shape.sequences, case.shape.longest_q, case.shape.longest_k],
                [1, 1],
                [1, 1],
                Place::DENSE,
            );
            (case.sequences, case.shape.q_rows) = (full.sequences, full.shape.q_rows);
        }
        let data = Data::of(&case, "parts of keys", number);
        let done = check(&format!("parts {number}"), &case, &data);
        assert!(done.variants[0].name().starts_with("attention_split"), "{:?}", done.variants);
        done.note(&mut wide);
        check_weights(&format!("parts {number}"), &case, on(), Element::F32, &data);
    }
    for (number, place) in Place::ALL.into_iter().enumerate() {
        for (packed, halves) in on_halves() {
            let places = if packed { [Place::DENSE, Place::STRIDED, Place::EVEN, Place::EVEN] } else { Place::ALL };
            for t in [1, 6] {
                let case = Case {
                    place: if packed { places[number] } else { place },
                    ..Case::plain([2, t, 150], [2, 1], [64, 64], place)
                };
                let mut data = Data::of(&case, "parts f16", number as u64);
                for values in [&mut data.q, &mut data.k, &mut data.v] {
                    *values = stored(Element::F16, values);
                }
                let on = On::new(halves.gpu.clone(), Options::default().with_pinned(form));
                let on = if t == 1 { halves } else { &on };
                check_stored("parts f16", &case, on, Element::F16, &data).note(&mut narrow);
            }
        }
    }
    for kernel in ["attention_split", "attention_reduce"] {
        assert_all_variants(kernel, &wide);
        assert_all_stored_variants(kernel, Element::F16, &narrow);
    }
}

/// Keeps the first `rows` rows of a mask's third dimension, where it has as many.
fn cut_rows(sizes: &mut [usize; 4], data: &mut MaskData, rows: usize) {
    let [outer, t, s] = [sizes[0] * sizes[1], sizes[2], sizes[3]];
    if t <= rows {
        return;
    }
    let kept = |n: usize| n / s % t < rows;
    match data {
        MaskData::Boolean(values) => *values = (0..outer * t * s).filter(|&n| kept(n)).map(|n| values[n]).collect(),
        MaskData::Additive(values) => *values = (0..outer * t * s).filter(|&n| kept(n)).map(|n| values[n]).collect(),
        MaskData::Relative(..) => panic!("a mask without rows"),
    }
    sizes[2] = rows;
}

/// Rule: every edge of a tile is right, in every compiled form: queries, keys, head sizes of both kinds.
#[test]
fn edges_of_tiles_in_every_form() {
    let mut reached = BTreeSet::new();
    let lengths = [1, 9, 31, 33, 40, 63, 64, 65, 81, 127, 129];
    let sizes = [1, 15, 16, 17, 31, 32, 33, 64, 65, 76, 80, 81, 96, 97, 128, 129, 252, 256];
    for (i, value_size) in sizes.into_iter().enumerate() {
        for (j, t) in lengths.into_iter().enumerate().filter(|(j, _)| (i + j) % 5 == 0) {
            let s = lengths[(5 * i + 3 * j) % lengths.len()];
            let heads = [sizes[(7 * i + j) % sizes.len()], value_size];
            let number = (i * lengths.len() + j) as u64;
            let case = Case::plain([1 + j % 2, t, s], [2, 1 + j % 2], heads, Place::ALL[(i + j) % 4]);
            check("edges", &case, number.is_multiple_of(5), &Data::of(&case, "edges", number)).note(&mut reached);
        }
    }
    for (number, place) in Place::ALL.into_iter().enumerate() {
        for size in [32, 64, 80, 96, 128, 256] {
            for causal in [false, true] {
                let mut case = Case::plain([1, 70, 150], [2, 1], [size, size], place);
                case.options.causal = causal;
                check("classes", &case, false, &Data::of(&case, "classes", number as u64)).note(&mut reached);
            }
        }
    }
    // The table has one class for these heads on CPU adapters, and another on GPUs.
    for (name, sizes) in [
        ("attention.f32x4.64x40.v80", [76, 80, 80, 68]),
        ("attention.f32x4.64x64.v64", [64, 36, 64, 60]),
        ("attention.f32x4.64x32.v64", [64, 36, 64, 60]),
        ("attention.f32x4.64x32.v32", [32, 12, 28, 32]),
        ("attention.f32x4.64x48.v96", [96, 84, 92, 96]),
        ("attention.f32x4.64x64.v128", [128, 100, 124, 128]),
    ] {
        let Some((_, on)) = on_form(name) else { continue };
        for (number, (t, size)) in [1, 39, 70, 129].into_iter().zip(sizes).enumerate() {
            let mut case = Case::plain([2, t, 81], [2, 1], [size, size], Place::ALL[number % 2]);
            case.options.causal = number % 2 == 1;
            let data = Data::of(&case, "pinned", number as u64);
            check_stored("pinned", &case, &on, Element::F32, &data).note(&mut reached);
        }
    }
    assert_all_variants("attention", &reached);
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
    for (number, size) in [64, 128, 256].into_iter().enumerate() {
        both("f16 groups of four", number as u64, &Case::plain([1, 70, 81], [2, 1], [36, size], Place::DENSE), number % 2);
    }
    both("f16", 0, &Case::plain([1, 65, 70], [2, 2], [13, 41], Place::DENSE), 2);
    both("f16", 1, &Case::plain([1, 65, 70], [1, 1], [70, 129], Place::DENSE), 3);
    for number in 0..10 {
        let mut rng = seeded("fused f16 options", number);
        let case = Case::of(&random_levels(&mut rng), 20, &mut rng);
        both("f16 options", number, &case, number as usize % 4);
    }
    for name in [
        "attention.f16x4.64x32.v64",
        "attention.f16x4.64x64.v64",
        "attention.f16x4.64x64.v128",
        "attention.packedx4.64x64.v64",
        "attention.f16x4.64x32.v64-quads.subgroups",
    ] {
        let Some((variant, on)) = on_form(name) else { continue };
        let packed = name.contains("packed");
        let on = if packed { On::new(on_core().gpu.clone(), Options::default().with_pinned(variant)) } else { on };
        let case = Case::plain([1, 70, 81], [2, 1], [36, 64], Place::DENSE);
        let mut data = Data::of(&case, "f16 pinned", 0);
        for values in [&mut data.q, &mut data.k, &mut data.v] {
            *values = stored(Element::F16, values);
        }
        check_stored("f16 pinned", &case, &on, Element::F16, &data).note(&mut reached);
    }
    assert_all_stored_variants("attention", Element::F16, &reached);
}

/// Rule: logits of ±1e4 overflow nothing, whatever tile the largest is in.
#[test]
fn huge_logits() {
    for number in 0..12u64 {
        let mut rng = seeded("huge", number);
        let mut levels = random_levels(&mut rng);
        (levels[7], levels[8]) = (number as usize % 2, 1);
        (levels[0], levels[1], levels[5]) = (levels[0] % 3, 0, 0);
        let mut case = Case::of(&levels, 20 + 13 * number as usize, &mut rng);
        case.options.softcap = case.options.softcap.map(|_| 30.0);
        let mut data = Data::of(&case, "huge data", number);
        let factor = (1e4 / (case.head_size as f32).sqrt()).sqrt() * 1.7;
        data.q.iter_mut().chain(&mut data.k).for_each(|v| *v *= factor);
        check(&format!("huge {number}"), &case, false, &data);
    }
}

/// Rule: a row whose every key is hidden, by whichever option, gives exact zeros and a log-sum-exp of −∞.
#[test]
fn rows_without_a_key_give_zeros() {
    for (number, way) in
        ["length", "key mask", "boolean", "additive", "relative", "causal", "window"].into_iter().enumerate()
    {
        for (place, size) in [(Place::DENSE, 21), (Place::ODD, 70)] {
            let mut levels = [0; FACTORS.len()];
            (levels[0], levels[2]) = (1, usize::from(way == "key mask"));
            levels[3] = mask_level(way);
            let mut case = Case::of(&levels, size, &mut seeded("fully masked", number as u64));
            case.place = place;
            match way {
                "length" => case.sequences[1].k_len = 0,
                "key mask" => case.key_mask.as_mut().unwrap().1.fill(0),
                "causal" => (case.options.causal, case.sequences[1].offset) = (true, -100),
                "window" => (case.options.window_left, case.sequences[1].offset) = (Some(3), 150),
                _ => case.mask.as_mut().unwrap().1.hide_all(),
            }
            let done = check(way, &case, false, &Data::of(&case, "fully masked", number as u64));
            let [_, n_heads, t, _] = case.score_sizes();
            let sums = done.tensor("sums").bits();
            assert!(sums[n_heads * t..2 * n_heads * t].iter().all(|s| *s == 0xff80_0000), "{way}: log_sum_exp");
            let row = n_heads * case.value_head_size;
            let out = done.tensor("out").f32_where(|i| case.owns_query(i / row));
            assert!(out[t * row..2 * t * row].iter().all(|p| *p == 0.0), "{way}: output");
        }
    }
}

/// Rule: a finite sentinel in an additive mask is only added: alone in its row it leaves an even softmax, f32's lowest too.
#[test]
fn a_sentinel_hides_nothing_when_all_have_it() {
    for sentinel in [SENTINEL, f32::MIN] {
        let mut levels = [0; FACTORS.len()];
        levels[3] = 4;
        let mut case = Case::of(&levels, 70, &mut seeded("sentinel", 0));
        if let Some((_, MaskData::Additive(values))) = &mut case.mask {
            values.fill(sentinel);
        }
        let mut data = Data::of(&case, "sentinel", 0);
        // Scores that vanish in either sentinel; values that count their rows.
        let width = case.n_kv_heads * case.value_head_size;
        data.v.iter_mut().enumerate().for_each(|(i, v)| *v = (i / width % case.shape.longest_k) as f32);
        let mean = (case.shape.longest_k - 1) as f32 / 2.0;
        for out in run(&case, on(), Element::F32, &data).f32("out") {
            assert!((out - mean).abs() < 1e-4, "{out} where {mean} is right");
        }
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
            let mut case = Case::plain([2, 5, 100], [2, 2], [8, 8], Place::DENSE);
            case.bound = true;
            case.sequences.iter_mut().for_each(|s| *s = Sequence { offset, ..*s });
            case.options = AttentionOptions { causal, window_left, window_right, ..AttentionOptions::default() };
            check(&format!("offset {offset}"), &case, false, &Data::of(&case, "far", number as u64));
        }
    }
}

/// Rule: windows that begin and end anywhere inside tiles see exactly their keys.
#[test]
fn windows_across_tiles() {
    for number in 0..24u64 {
        let mut rng = seeded("windows", number);
        let mut size = |most: usize| rng.random_range(1..most);
        let mut case = Case::plain([1, size(150), size(300)], [1, 1], [8, 8], Place::DENSE);
        case.bound = true;
        case.sequences[0].offset = size(200) as i32 - 60;
        let (left, right) = (size(140) as u32, size(140) as u32);
        case.options = AttentionOptions {
            causal: number % 3 == 0,
            window_left: (number % 4 != 0).then_some(left),
            window_right: (number % 4 != 1).then_some(right),
            ..AttentionOptions::default()
        };
        check(&format!("windows {number}"), &case, number % 2 == 0, &Data::of(&case, "windows", number));
    }
}

/// Rule: no shape is special.
#[test]
fn random_shapes() {
    for number in 0..30 {
        let mut rng = seeded("fused shapes", number);
        let mut size = |most: usize| rng.random_range(1..most);
        let (shape, heads) = ([size(4), size(90), size(300)], [size(140), size(257)]);
        let (place, groups) = (pick(&mut rng, &Place::ALL), pick(&mut rng, &[[1, 1], [2, 2], [6, 3], [3, 1]]));
        let case = Case::plain(shape, groups, heads, place);
        check("shapes", &case, number % 3 == 0, &Data::of(&case, "shapes", number));
    }
}

/// Rule: quads change no bit, and what is hidden from all rows of a tile stays hidden though they take keys in fours.
#[test]
fn quads_change_no_bit() {
    for (number, (s, causal, value_size)) in
        [(81, false, 60), (70, true, 60), (81, true, 124), (70, false, 128)].into_iter().enumerate()
    {
        let mut case = Case::plain([2, 70, s], [2, 1], [52, value_size], Place::DENSE);
        case.options.causal = causal;
        let data = Data::of(&case, "quads", number as u64);
        let class = if value_size > 64 { "64x64.v128" } else { "64x32.v64" };
        let bits = |name: &str| {
            let (variant, on) = on_form(name)?;
            let done = check_stored(name, &case, &on, Element::F32, &data);
            assert_eq!(done.variants[0], variant);
            Some(done.tensor("out").bits())
        };
        let plain = bits(&format!("attention.f32x4.{class}"));
        let quads = bits(&format!("attention.f32x4.{class}-quads.subgroups"));
        assert!(quads.is_none() || quads == plain, "{s} keys");
    }
}
