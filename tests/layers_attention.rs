//! `MultiHeadAttention` as a program, against its twin: shapes, projections, scores and masks.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::cases::{Data, Made, Side, below, judge, kernels, run};
use common::floors;
use common::{seeded, uniform};
use rand::rngs::StdRng;
use tileformer::layers::{Inputs, MultiHeadAttention, Projection, Score};
use tileformer::reference::layers::multi_head_attention;
use tileformer::{AttentionOptions, BatchShape, Bindings, Mask, Sequences};

const NO_BROADCAST: [bool; 4] = [false; 4];

/// Runs an attention over `side` and judges y and the attention weights by rule 5. `cross` is whether keys are rows of their
/// own.
fn check(what: &str, spec: &MultiHeadAttention, side: &Side, cross: bool, weights: bool, seed: u64) {
    let mut seed = seeded("layers_attention", seed);
    let inputs = Inputs { mask: side.mask_layout(), attention_weights: weights, ..Inputs::new(side.shape) };
    let program = if cross { spec.cross_program(kernels(), &inputs) } else { spec.program(kernels(), &inputs) };
    let program = program.unwrap_or_else(|e| panic!("{what}: {e}"));
    let made = Made::of(&program, &mut seed);
    let x = Data::random(&[side.shape.q_rows, spec.d_model], 1.5, &mut seed);
    let memory_k = Data::random(&[side.shape.k_rows, spec.k_width], 1.5, &mut seed);
    let memory_v = Data::random(&[side.shape.k_rows, spec.v_width], 1.5, &mut seed);
    let (k, v) = if cross { (&memory_k, &memory_v) } else { (&x, &x) };

    let mut bindings = Bindings::new();
    made.bind(&mut bindings);
    side.bind("", &mut bindings);
    bindings.set("x", x.upload());
    if cross {
        bindings.set("memory_k", k.upload()).set("memory_v", v.upload());
    }
    let found = run(&program, &bindings);

    let (weights64, batch64) = (made.weights(), side.twin());
    let (twin, twin_probs) = multi_head_attention(spec, &made.weights(), "", &x.f32, &k.f32, &v.f32, &side.twin()).unwrap();
    let (right, right_probs) = multi_head_attention(spec, &weights64, "", &x.f64, &k.f64, &v.f64, &batch64).unwrap();
    let floor = floors::attention(spec, &weights64, "", [&x.f64, &k.f64, &v.f64], &batch64);
    judge(&format!("{what}: y"), &found["y"], &twin, &right, floor, spec.d_model, |row| side.has_row(row));
    if weights {
        // The attention weights are at most 1, so that their floor is that of the scores' largest change.
        judge(
            &format!("{what}: weights"),
            &found["weights"],
            &twin_probs,
            &right_probs,
            floor,
            side.shape.longest_k,
            |_| true,
        );
        for (i, (found, right)) in found["weights"].iter().zip(&right_probs).enumerate() {
            assert!(*right != 0.0 || *found == 0.0, "{what}: weights[{i}] is {found} where the key is hidden");
        }
    }
}

fn padded(lengths: &[usize], longest: usize) -> Side {
    Side::own(Sequences::padded(lengths, longest).unwrap()).shaped(BatchShape::padded(lengths.len(), longest))
}

/// Sizes that are multiples of nothing: every head size and length takes the right path.
#[test]
fn self_attention_at_awkward_sizes() {
    for (n, (d_model, n_heads, lengths, longest)) in [
        (4, 1, vec![1], 1),
        (6, 2, vec![5, 3], 5),
        (15, 3, vec![31, 1, 17], 31),
        (28, 4, vec![33], 33),
        (64, 1, vec![65, 12], 65),
        (96, 12, vec![33, 0, 20], 33),
        (5, 5, vec![7, 7], 7),
    ]
    .into_iter()
    .enumerate()
    {
        let spec = MultiHeadAttention::new(d_model, n_heads);
        check(
            &format!("{d_model} wide, {n_heads} heads, T {longest}"),
            &spec,
            &padded(&lengths, longest),
            false,
            true,
            n as u64,
        );
        let bare = MultiHeadAttention { bias: false, ..spec };
        let packed = Side::own(Sequences::packed(&lengths).unwrap());
        check(&format!("{d_model} wide, {n_heads} heads, packed, no bias"), &bare, &packed, false, false, 70 + n as u64);
    }
}

/// Head sizes that d_model does not say, values wider and narrower than keys, key heads shared by groups.
#[test]
fn head_sizes_and_groups() {
    for (n, (d_model, n_heads, n_kv_heads, head_size, value_head_size)) in
        [(8, 2, 1, 3, 3), (12, 6, 3, 5, 7), (20, 4, 2, 7, 64), (16, 3, 3, 64, 5), (10, 8, 2, 1, 9), (24, 4, 1, 16, 8)]
            .into_iter()
            .enumerate()
    {
        let spec =
            MultiHeadAttention { n_kv_heads, head_size, value_head_size, ..MultiHeadAttention::new(d_model, n_heads) };
        let what = format!("{n_heads} heads over {n_kv_heads}, sizes {head_size} and {value_head_size}");
        check(&what, &spec, &padded(&[13, 18], 18), false, n % 2 == 0, 100 + n as u64);
    }
}

/// Keys and values from rows of another count and width, lengths of their own, zero among them.
#[test]
fn cross_attention() {
    for (n, (d_model, n_heads, longest_q, lengths, longest_k)) in
        [(8, 2, 1, vec![5], 5), (24, 4, 5, vec![33, 0, 7], 33), (16, 1, 33, vec![1, 3], 3), (96, 3, 7, vec![65], 65)]
            .into_iter()
            .enumerate()
    {
        let sequences = Sequences::cross(lengths.len(), longest_q, &lengths, longest_k).unwrap();
        let side = Side::own(sequences).shaped(BatchShape::cross(lengths.len(), longest_q, longest_k));
        let spec = MultiHeadAttention::new(d_model, n_heads);
        let what = format!("{longest_q} queries over {lengths:?} keys");
        check(&what, &spec, &side, true, true, 200 + n as u64);
        let separate = MultiHeadAttention { projection: Projection::Separate, k_width: 7, v_width: 18, ..spec };
        check(&format!("{what}, separate"), &separate, &side, true, false, 220 + n as u64);
    }
    let spec = MultiHeadAttention { projection: Projection::Separate, ..MultiHeadAttention::new(12, 3) };
    check("separate over its own rows", &spec, &padded(&[9, 4], 9), false, true, 240);
}

/// Causal and windowed attention over more keys than queries, at the positions of a cache and at negative ones.
#[test]
fn cross_attention_at_offsets() {
    for (n, offset) in [28, 3, 0, -2, -40].into_iter().enumerate() {
        let sequences = Sequences::cross(2, 5, &[33, 20], 33).unwrap().with_offset(offset);
        let side = Side::own(sequences).shaped(BatchShape::cross(2, 5, 33));
        for (m, options) in [
            AttentionOptions::causal(),
            AttentionOptions { window_left: Some(6), alibi: vec![0.5, 0.25], ..AttentionOptions::causal() },
            AttentionOptions { window_left: Some(2), window_right: Some(4), ..AttentionOptions::default() },
        ]
        .into_iter()
        .enumerate()
        {
            let spec = MultiHeadAttention { options, ..MultiHeadAttention::new(14, 2) };
            check(&format!("{:?} at {offset}", spec.options), &spec, &side, true, true, 260 + (10 * n + m) as u64);
        }
    }
}

/// The score functions of Luong and Bahdanau.
#[test]
fn general_and_additive_scores() {
    for (n, score) in [Score::General, Score::Additive { width: 6 }, Score::Additive { width: 21 }].into_iter().enumerate() {
        for (m, options) in [
            AttentionOptions::default(),
            AttentionOptions { key_mask: true, scale: Some(0.7), ..AttentionOptions::causal() },
            AttentionOptions { alibi: vec![0.5, 0.25, 0.125], softcap: Some(3.0), ..Default::default() },
        ]
        .into_iter()
        .enumerate()
        {
            let spec = MultiHeadAttention { score, options, head_size: 5, ..MultiHeadAttention::new(12, 3) };
            let seed = 300 + (10 * n + m) as u64;
            let side = padded(&[11, 6], 11).masked(&spec.options, 3, NO_BROADCAST, &mut seeded("layers_attention", seed));
            check(&format!("{score:?}, options {m}"), &spec, &side, false, true, seed);
        }
    }
}

/// Every mask option alone, over a padded batch with lengths; T is no multiple of four, and one row may see nothing.
#[test]
fn each_option_alone() {
    let none = AttentionOptions::default();
    let alibi = vec![0.5, 0.125];
    for (n, options) in [
        AttentionOptions::causal(),
        AttentionOptions { window_left: Some(3), ..none.clone() },
        AttentionOptions { window_right: Some(0), ..none.clone() },
        AttentionOptions { window_left: Some(2), window_right: Some(1), ..none.clone() },
        AttentionOptions { scale: Some(0.3), ..none.clone() },
        AttentionOptions { softcap: Some(1.5), ..none.clone() },
        AttentionOptions { alibi, ..none.clone() },
        AttentionOptions { key_mask: true, ..none.clone() },
        AttentionOptions { mask: Some(Mask::Boolean), ..none.clone() },
        AttentionOptions { mask: Some(Mask::Additive), ..none.clone() },
        AttentionOptions { mask: Some(Mask::Relative { reach: 11 }), ..none.clone() },
    ]
    .into_iter()
    .enumerate()
    {
        let spec = MultiHeadAttention { options, ..MultiHeadAttention::new(10, 2) };
        let seed = 400 + n as u64;
        let side = padded(&[37, 0, 19], 37).masked(&spec.options, 2, NO_BROADCAST, &mut seeded("layers_attention", seed));
        check(&format!("{:?}", spec.options), &spec, &side, false, true, seed);
    }
}

/// Options a few at a time, drawn at random: masks broadcast along random dimensions, offsets of either sign, packed batches.
#[test]
fn options_together() {
    let mut seed = seeded("layers_attention", 5);
    for n in 0..24u64 {
        let flip = |seed: &mut StdRng| below(seed, 3) == 0;
        let n_heads = 1 + below(&mut seed, 4);
        let options = AttentionOptions {
            scale: flip(&mut seed).then_some(0.4),
            softcap: flip(&mut seed).then_some(2.0),
            alibi: if flip(&mut seed) { uniform(&mut seed, n_heads, -0.5, 0.5) } else { Vec::new() },
            causal: flip(&mut seed),
            window_left: flip(&mut seed).then_some(below(&mut seed, 9) as u32),
            window_right: flip(&mut seed).then_some(below(&mut seed, 9) as u32),
            key_mask: flip(&mut seed),
            mask: [None, Some(Mask::Boolean), Some(Mask::Additive), Some(Mask::Relative { reach: 6 })][below(&mut seed, 4)],
        };
        let broadcast = [(); 4].map(|()| flip(&mut seed));
        let lengths: Vec<usize> = (0..1 + below(&mut seed, 3)).map(|_| 1 + below(&mut seed, 40)).collect();
        let longest = lengths.iter().copied().max().unwrap();
        let offset = below(&mut seed, 7) as i32 - 3;
        let packed = n % 2 == 0;
        let sequences = if packed { Sequences::packed(&lengths) } else { Sequences::padded(&lengths, longest) };
        let shape = if packed { sequences.as_ref().unwrap().shape() } else { BatchShape::padded(lengths.len(), longest) };
        let side = Side::own(sequences.unwrap().with_offset(offset)).shaped(shape);
        let spec = MultiHeadAttention {
            options,
            head_size: 1 + below(&mut seed, 9),
            value_head_size: 1 + below(&mut seed, 9),
            ..MultiHeadAttention::new(4 + below(&mut seed, 20), n_heads)
        };
        let side = side.masked(&spec.options, n_heads, broadcast, &mut seed);
        let what = format!("{n}: {:?} at {offset}, {lengths:?}, mask broadcast {broadcast:?}", spec.options);
        check(&what, &spec, &side, false, n % 3 == 0, 500 + n);
    }
}

/// One program serves every batch up to its shape: smaller batches leave rows, keys and whole sequences unused.
#[test]
fn smaller_batches_on_the_same_program() {
    let shape = BatchShape { sequences: 4, q_rows: 60, longest_q: 33, k_rows: 60, longest_k: 33 };
    for (n, lengths) in [vec![33, 5, 20, 2], vec![1, 1, 1, 1], vec![0, 12, 0, 0]].into_iter().enumerate() {
        let side = Side::own(Sequences::packed(&lengths).unwrap()).shaped(shape);
        let spec = MultiHeadAttention { options: AttentionOptions::causal(), ..MultiHeadAttention::new(12, 3) };
        check(&format!("packed {lengths:?}"), &spec, &side, false, true, 600 + n as u64);
    }
}
