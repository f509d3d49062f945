//! Encoder and decoder layers and stacks as programs, against their twins.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::cases::{Data, Made, Side, judge, kernels, run};
use common::floors::{self, Sublayer};
use common::seeded;
use tileformer::layers::{
    Decoder, DecoderLayer, Encoder, EncoderLayer, FeedForward, Inputs, Norm, NormKind, Placement, Projection,
};
use tileformer::reference::layers::{decoder, decoder_layer, encoder, encoder_layer, feed_forward};
use tileformer::{Activation, AttentionOptions, BatchShape, Bindings, Builder, Element, Layout, Mask, Program, Sequences};

const ACTIVATIONS: [Activation; 6] =
    [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Tanh];

fn padded(lengths: &[usize], longest: usize) -> Side {
    Side::own(Sequences::padded(lengths, longest).unwrap()).shaped(BatchShape::padded(lengths.len(), longest))
}

/// A program run on random weights and rows, with what the twins need.
struct Case {
    made: Made,
    x: Data,
    memory: Data,
    found: std::collections::BTreeMap<String, Vec<f32>>,
}

fn run_case(program: &Program, d_model: usize, own: &Side, cross: Option<(&Side, usize)>, seed: u64) -> Case {
    let mut seed = seeded("layers", seed);
    let made = Made::of(program, &mut seed);
    let x = Data::random(&[own.shape.q_rows, d_model], 1.5, &mut seed);
    let mut memory = Data::random(&[1, 1], 1.0, &mut seed);
    let mut bindings = Bindings::new();
    made.bind(&mut bindings);
    own.bind("", &mut bindings);
    bindings.set("x", x.upload());
    if let Some((cross, width)) = cross {
        memory = Data::random(&[cross.shape.k_rows, width], 1.5, &mut seed);
        cross.bind("cross_", &mut bindings);
        bindings.set("memory", memory.upload());
    }
    let found = run(program, &bindings);
    Case { made, x, memory, found }
}

fn encoder_floor(spec: &EncoderLayer, case: &Case, side: &Side, prefix: &str, x: &[f64]) -> f64 {
    let batch = side.twin();
    let attention = Sublayer {
        spec: &spec.attention,
        prefix: format!("{prefix}self_attn."),
        norm: format!("{prefix}norm1."),
        memory: None,
        batch: &batch,
    };
    floors::layer(&[attention], &spec.feed_forward, &spec.norm, spec.placement, &case.made.weights(), prefix, x)
}

fn check_encoder_layer(what: &str, spec: &EncoderLayer, side: &Side, weights: bool, seed: u64) {
    let inputs = Inputs { mask: side.mask_layout(), attention_weights: weights, ..Inputs::new(side.shape) };
    let program = spec.program(kernels(), &inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
    let d = spec.attention.d_model;
    let case = run_case(&program, d, side, None, seed);
    let (twin, twin_probs) = encoder_layer(spec, &case.made.weights(), "", &case.x.f32, &side.twin()).unwrap();
    let (right, right_probs) = encoder_layer(spec, &case.made.weights(), "", &case.x.f64, &side.twin()).unwrap();
    let floor = encoder_floor(spec, &case, side, "", &case.x.f64);
    judge(what, &case.found["y"], &twin, &right, floor, d, |row| side.has_row(row));
    if weights {
        let what = format!("{what}: weights");
        judge(&what, &case.found["weights"], &twin_probs, &right_probs, floor, side.shape.longest_k, |_| true);
    }
}

/// The network alone, with and without a residual, at the row counts of every form of the projection.
#[test]
fn feed_forward_networks() {
    for (n, (rows, d_model, d_ff)) in [(1, 4, 16), (5, 7, 30), (33, 96, 64), (65, 12, 5)].into_iter().enumerate() {
        for (m, activation) in ACTIVATIONS.into_iter().enumerate() {
            let bias = (n + m) % 2 == 0;
            let spec = FeedForward { d_model, d_ff, activation, bias, gated: false };
            let mut b = Builder::new(kernels(), "feed-forward");
            let layout = Layout::contiguous(&[rows, d_model]).unwrap();
            let x = b.input("x", Element::F32, layout).unwrap();
            let y = b.output("y", Element::F32, layout).unwrap();
            b.feed_forward("ff.", &spec, x, bias.then_some(x), y).unwrap();
            let side = padded(&[rows], rows);
            let program = b.finish().unwrap();
            let mut seed = seeded("layers", (10 * n + m) as u64);
            let made = Made::of(&program, &mut seed);
            let x = Data::random(&[rows, d_model], 1.5, &mut seed);
            let mut bindings = Bindings::new();
            made.bind(&mut bindings);
            bindings.set("x", x.upload());
            let found = run(&program, &bindings);
            let mut twin = feed_forward(&spec, &made.weights(), "ff.", &x.f32, rows).unwrap();
            let mut right = feed_forward(&spec, &made.weights(), "ff.", &x.f64, rows).unwrap();
            if bias {
                twin.iter_mut().zip(&x.f32).for_each(|(y, x)| *y += x);
                right.iter_mut().zip(&x.f64).for_each(|(y, x)| *y += x);
            }
            let floor = floors::network(&spec, &made.weights(), "ff.", &x.f64);
            judge(&format!("{spec:?} of {rows} rows"), &found["y"], &twin, &right, floor, d_model, |row| side.has_row(row));
        }
    }
}

/// Both placements, every activation, with and without biases, padded and packed, at awkward sizes.
#[test]
fn encoder_layers() {
    let shapes = [
        (4, 2, 8, vec![1]),
        (15, 3, 32, vec![5, 2]),
        (21, 3, 7, vec![31, 33]),
        (64, 1, 96, vec![65]),
        (96, 32, 20, vec![12, 0, 33]),
    ];
    for (n, (d_model, n_heads, d_ff, lengths)) in shapes.into_iter().enumerate() {
        for (m, placement) in [Placement::Post, Placement::Pre].into_iter().enumerate() {
            let mut spec = EncoderLayer { placement, ..EncoderLayer::new(d_model, n_heads, d_ff) };
            spec.feed_forward.activation = ACTIVATIONS[(1 + 2 * n + m) % 6];
            if (n + m) % 3 == 2 {
                spec = spec.without_bias();
            }
            let longest = lengths.iter().copied().max().unwrap();
            let seed = (20 * n + m) as u64;
            check_encoder_layer(&format!("{spec:?} padded {lengths:?}"), &spec, &padded(&lengths, longest), m == 0, seed);
            let packed = Side::own(Sequences::packed(&lengths).unwrap());
            check_encoder_layer(&format!("{spec:?} packed {lengths:?}"), &spec, &packed, m == 1, seed + 10);
        }
    }
}

/// A layer passes its attention's options and masks on; norms without weight, without bias, with another eps.
#[test]
fn encoder_layers_with_masks_and_norms() {
    for (n, (mask, weight, bias, eps)) in
        [(Mask::Boolean, true, false, 1e-12), (Mask::Additive, false, true, 0.1), (Mask::Additive, false, false, 1e-6)]
            .into_iter()
            .enumerate()
    {
        let mut spec = EncoderLayer::new(18, 2, 24);
        let kind = if n == 1 { NormKind::Rms } else { NormKind::Layer };
        spec.norm = Norm { kind, eps, weight, bias };
        spec.attention.options = AttentionOptions {
            key_mask: true,
            mask: Some(mask),
            alibi: vec![0.5, 0.25],
            window_left: Some(12),
            ..AttentionOptions::causal()
        };
        let broadcast = [false, n != 0, false, false];
        let side = padded(&[21, 9], 21).masked(&spec.attention.options, 2, broadcast, &mut seeded("layers", n as u64));
        check_encoder_layer(&format!("{spec:?}"), &spec, &side, true, 200 + n as u64);
    }
}

fn decoder_sublayers<'a>(
    spec: &'a DecoderLayer,
    prefix: &str,
    memory: &'a [f64],
    batches: [&'a tileformer::reference::layers::Batch<'a, f64>; 2],
) -> [Sublayer<'a>; 2] {
    let sublayer = |spec, name: &str, n, memory, batch| Sublayer {
        spec,
        prefix: format!("{prefix}{name}."),
        norm: format!("{prefix}norm{n}."),
        memory,
        batch,
    };
    [
        sublayer(&spec.attention, "self_attn", 1, None, batches[0]),
        sublayer(&spec.cross_attention, "multihead_attn", 2, Some(memory), batches[1]),
    ]
}

fn check_decoder_layer(what: &str, spec: &DecoderLayer, own: &Side, cross: &Side, weights: bool, seed: u64) {
    let inputs = Inputs {
        mask: own.mask_layout(),
        cross_mask: cross.mask_layout(),
        attention_weights: weights,
        ..Inputs::new(cross.shape)
    };
    let program = spec.program(kernels(), &inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
    let d = spec.attention.d_model;
    let case = run_case(&program, d, own, Some((cross, spec.cross_attention.k_width)), seed);
    let (x, memory) = (&case.x, &case.memory);
    let twin = decoder_layer(spec, &case.made.weights(), "", &x.f32, &memory.f32, &own.twin(), &cross.twin()).unwrap();
    let (batch, cross_batch) = (own.twin(), cross.twin());
    let weights64 = case.made.weights();
    let right = decoder_layer(spec, &weights64, "", &x.f64, &memory.f64, &batch, &cross_batch).unwrap();
    let sublayers = decoder_sublayers(spec, "", &memory.f64, [&batch, &cross_batch]);
    let floor = floors::layer(&sublayers, &spec.feed_forward, &spec.norm, spec.placement, &weights64, "", &x.f64);
    judge(what, &case.found["y"], &twin.y, &right.y, floor, d, |row| own.has_row(row));
    if weights {
        let probs = |name: &str, twin: &[f32], right: &[f64], width: usize| {
            judge(&format!("{what}: {name}"), &case.found[name], twin, right, floor, width, |_| true);
        };
        probs("weights", &twin.self_probs, &right.self_probs, own.shape.longest_k);
        probs("cross_weights", &twin.cross_probs, &right.cross_probs, cross.shape.longest_k);
    }
}

/// Both placements, every activation, with and without biases, over a memory of other lengths, zero among them.
#[test]
fn decoder_layers() {
    let shapes = [
        (4, 2, 8, 1, vec![3]),
        (15, 3, 16, 5, vec![33, 0]),
        (20, 4, 7, 31, vec![1, 2]),
        (64, 1, 32, 33, vec![65]),
        (96, 12, 64, 5, vec![7, 5, 12]),
        (14, 2, 20, 65, vec![31]),
    ];
    for (n, (d_model, n_heads, d_ff, longest_q, lengths)) in shapes.into_iter().enumerate() {
        for (m, placement) in [Placement::Post, Placement::Pre].into_iter().enumerate() {
            let mut spec = DecoderLayer { placement, ..DecoderLayer::new(d_model, n_heads, d_ff) };
            spec.feed_forward.activation = ACTIVATIONS[(n + 3 * m) % 6];
            if (n + m) % 3 == 1 {
                spec = spec.without_bias();
            }
            let longest_k = lengths.iter().copied().max().unwrap();
            let own = padded(&vec![longest_q; lengths.len()], longest_q);
            let sequences = Sequences::cross(lengths.len(), longest_q, &lengths, longest_k).unwrap();
            let cross = Side::own(sequences).shaped(BatchShape::cross(lengths.len(), longest_q, longest_k));
            let seed = (300 + 10 * n + m) as u64;
            check_decoder_layer(&format!("{spec:?} over {lengths:?}"), &spec, &own, &cross, m == n % 2, seed);
        }
    }
}

/// Masks of both attentions at once, a memory of another width, grouped heads.
#[test]
fn decoder_layers_with_masks() {
    for (n, mask) in [Mask::Boolean, Mask::Additive].into_iter().enumerate() {
        let mut spec = DecoderLayer::new(12, 4, 16);
        spec.attention.n_kv_heads = 2;
        spec.attention.options = AttentionOptions { key_mask: true, mask: Some(mask), ..AttentionOptions::causal() };
        let cross = &mut spec.cross_attention;
        (cross.projection, cross.k_width, cross.v_width) = (Projection::Separate, 10, 10);
        cross.options = AttentionOptions { key_mask: true, mask: Some(mask), softcap: Some(2.0), ..Default::default() };
        let mut seed = seeded("layers", 40 + n as u64);
        let own = padded(&[9, 6], 9).masked(&spec.attention.options, 4, [false, true, false, false], &mut seed);
        let sequences = Sequences::cross(2, 9, &[14, 5], 14).unwrap();
        let cross = Side::own(sequences).shaped(BatchShape::cross(2, 9, 14));
        let cross = cross.masked(&spec.cross_attention.options, 4, [true, false, false, false], &mut seed);
        check_decoder_layer(&format!("{mask:?} masks"), &spec, &own, &cross, true, 400 + n as u64);
    }
}

/// Layers in a row under their names, with a final norm and with positions before every layer.
#[test]
fn encoder_stacks() {
    for (n, placement) in [Placement::Post, Placement::Pre].into_iter().enumerate() {
        let mut spec = Encoder::new(EncoderLayer { placement, ..EncoderLayer::new(12, 3, 20) }, 3);
        spec.final_norm = (n == 1).then_some(Norm::default());
        spec.positions_every_layer = (n == 1).then_some(19);
        let side = if n == 0 { Side::own(Sequences::packed(&[17, 4]).unwrap()) } else { padded(&[17, 4], 17) };
        let program = spec.program(kernels(), &Inputs::new(side.shape).with_attention_weights()).unwrap();
        let case = run_case(&program, 12, &side, None, 500 + n as u64);
        let (twin, twin_probs) = encoder(&spec, &case.made.weights(), "", &case.x.f32, &side.twin()).unwrap();
        let (right, right_probs) = encoder(&spec, &case.made.weights(), "", &case.x.f64, &side.twin()).unwrap();
        // The floor of a layer, as often as there are layers: the twin's own error carries what they do to each other.
        let mut floor = 3.0 * encoder_floor(&spec.layer, &case, &side, "layers.2.", &case.x.f64);
        if let Some(norm) = &spec.final_norm {
            let before = Encoder { final_norm: None, ..spec.clone() };
            let (y, _) = encoder(&before, &case.made.weights(), "", &case.x.f64, &side.twin()).unwrap();
            floor *= floors::norm_scale(norm, &case.made.weights(), "norm.", &y, 12);
        }
        judge(&format!("{spec:?}"), &case.found["y"], &twin, &right, floor, 12, |row| side.has_row(row));
        for i in 0..3 {
            let name = format!("layers.{i}.weights");
            judge(&name, &case.found[&name], &twin_probs[i], &right_probs[i], floor, side.shape.longest_k, |_| true);
        }
    }
}

/// As for encoders, with the cross-attention's weights beside the others.
#[test]
fn decoder_stacks() {
    for (n, placement) in [Placement::Post, Placement::Pre].into_iter().enumerate() {
        let mut spec = Decoder::new(DecoderLayer { placement, ..DecoderLayer::new(20, 4, 12) }, 2);
        spec.final_norm = (n == 1).then_some(Norm::default());
        spec.positions_every_layer = (n == 0).then_some(11);
        let own = padded(&[11, 11], 11);
        let cross = Side::own(Sequences::cross(2, 11, &[6, 13], 13).unwrap()).shaped(BatchShape::cross(2, 11, 13));
        let program = spec.program(kernels(), &Inputs::new(cross.shape).with_attention_weights()).unwrap();
        let case = run_case(&program, 20, &own, Some((&cross, 20)), 600 + n as u64);
        let (x, memory) = (&case.x, &case.memory);
        let twin = decoder(&spec, &case.made.weights(), "", &x.f32, &memory.f32, &own.twin(), &cross.twin()).unwrap();
        let (weights, batch, cross_batch) = (case.made.weights(), own.twin(), cross.twin());
        let right = decoder(&spec, &weights, "", &x.f64, &memory.f64, &batch, &cross_batch).unwrap();
        let layer = &spec.layer;
        let sublayers = decoder_sublayers(layer, "layers.1.", &memory.f64, [&batch, &cross_batch]);
        let mut floor =
            2.0 * floors::layer(&sublayers, &layer.feed_forward, &layer.norm, placement, &weights, "layers.1.", &x.f64);
        if let Some(norm) = &spec.final_norm {
            let before = Decoder { final_norm: None, ..spec.clone() };
            let y = decoder(&before, &weights, "", &x.f64, &memory.f64, &batch, &cross_batch).unwrap().y;
            floor *= floors::norm_scale(norm, &weights, "norm.", &y, 20);
        }
        judge(&format!("{spec:?}"), &case.found["y"], &twin.y, &right.y, floor, 20, |row| own.has_row(row));
        for i in 0..2 {
            for (name, twin, right, width) in [
                (format!("layers.{i}.weights"), &twin.self_probs[i], &right.self_probs[i], 11),
                (format!("layers.{i}.cross_weights"), &twin.cross_probs[i], &right.cross_probs[i], 13),
            ] {
                judge(&name, &case.found[&name], twin, right, floor, width, |_| true);
            }
        }
    }
}
