//! The same inputs give the same bits; batch invariant, a row's bits do not depend on what else is in the batch.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::cases::{Data, Made, Side, below, invariant_kernels, kernels};
use common::{gpu, seeded, uniform};
use tileformer::layers::{DecoderLayer, EncoderLayer, Inputs, Placement};
use tileformer::{
    Activation, AttentionOptions, BatchShape, Bindings, Kernels, Plan, Program, Sequence, Sequences, TensorView,
};

/// A layer of either kind, with the weights that all its batches share.
struct Layer {
    kernels: &'static Kernels,
    kind: Kind,
    made: Made,
    d_model: usize,
}

enum Kind {
    Encoder(EncoderLayer),
    Decoder(DecoderLayer),
}

impl Layer {
    fn new(kernels: &'static Kernels, kind: Kind, seed: u64) -> Self {
        let d_model = match &kind {
            Kind::Encoder(layer) => layer.attention.d_model,
            Kind::Decoder(layer) => layer.attention.d_model,
        };
        let mut layer = Self { kernels, kind, made: Made::default(), d_model };
        layer.made = Made::of(&layer.program(BatchShape::padded(1, 1)), &mut seeded("invariance", seed));
        layer
    }

    fn program(&self, shape: BatchShape) -> Program {
        match &self.kind {
            Kind::Encoder(layer) => layer.program(self.kernels, &Inputs::new(shape)).unwrap(),
            Kind::Decoder(layer) => layer.program(self.kernels, &Inputs::new(shape)).unwrap(),
        }
    }

    /// A plan of `own` rows x, over `cross` rows of memory where it is a decoder, and its output.
    fn plan(&self, own: &Side, x: &[f32], memory: Option<(&Side, &[f32])>) -> (Plan, TensorView) {
        let shape = memory.map_or(own.shape, |(cross, _)| cross.shape);
        let program = self.program(shape);
        let y = gpu().upload_f32(&[own.shape.q_rows, self.d_model], &vec![f32::NAN; x.len()]).unwrap();
        let mut bindings = Bindings::new();
        self.made.bind(&mut bindings);
        own.bind("", &mut bindings);
        bindings.set("x", Data::new(&[own.shape.q_rows, self.d_model], x.to_vec()).upload()).set("y", y.clone());
        if let Some((cross, memory)) = memory {
            cross.bind("cross_", &mut bindings);
            bindings.set("memory", Data::new(&[cross.shape.k_rows, self.d_model], memory.to_vec()).upload());
        }
        (program.bind(&bindings).unwrap(), y)
    }

    fn run(&self, own: &Side, x: &[f32], memory: Option<(&Side, &[f32])>) -> Vec<u32> {
        let (plan, y) = self.plan(own, x, memory);
        gpu().run(&plan).unwrap();
        gpu().read_f32(&y).unwrap().into_iter().map(f32::to_bits).collect()
    }
}

/// Rows of a sequence: its own, and its memory's.
#[derive(Clone)]
struct Text {
    x: Vec<f32>,
    memory: Vec<f32>,
    rows: usize,
    keys: usize,
}

/// How the sequences of a batch lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Batching {
    Packed,
    /// Padded to this many rows (0 for the longest), the padding holding this value.
    Padded(usize, f32),
}

/// Runs `texts` as one batch and gives the bits of each one's rows.
fn run_batch(layer: &Layer, texts: &[Text], batching: Batching) -> Vec<Vec<u32>> {
    let d = layer.d_model;
    let most = |f: fn(&Text) -> usize| texts.iter().map(f).max().unwrap();
    let (longest_q, longest_k) = (most(|t| t.rows), most(|t| t.keys));
    let mut items = Vec::new();
    let (mut x, mut memory) = (Vec::new(), Vec::new());
    for text in texts {
        let (q_start, k_start) = (x.len() / d, memory.len() / d);
        items.push((q_start, k_start));
        x.extend(&text.x);
        memory.extend(&text.memory);
        if let Batching::Padded(to, fill) = batching {
            x.resize((q_start + longest_q.max(to)) * d, fill);
            memory.resize((k_start + longest_k.max(to)) * d, fill);
        }
    }
    // The padding rows of a padded batch are queries like any other, as `Sequences::padded` has it.
    let sequences = |k_of: &dyn Fn(usize) -> (usize, usize)| {
        let sequence = |(b, &(q_start, _)): (usize, &(usize, usize))| {
            let (k_start, k_len) = k_of(b);
            let q_len = if batching == Batching::Packed { texts[b].rows } else { x.len() / d / texts.len() };
            let [q_start, q_len, k_start, k_len] = [q_start, q_len, k_start, k_len].map(|v| v as u32);
            Sequence { q_start, q_len, k_start, k_len, ..Sequence::default() }
        };
        Sequences::new(items.iter().enumerate().map(sequence).collect()).unwrap()
    };
    let own = Side::own(sequences(&|b| (items[b].0, texts[b].rows)));
    let own_rows = x.len() / d;
    let shape = BatchShape { q_rows: own_rows, k_rows: own_rows, ..own.shape };
    let own = own.shaped(shape);
    let y = match layer.kind {
        Kind::Encoder(_) => layer.run(&own, &x, None),
        Kind::Decoder(_) => {
            let cross = Side::own(sequences(&|b| (items[b].1, texts[b].keys)));
            let shape = BatchShape { k_rows: memory.len() / d, longest_k, ..shape };
            layer.run(&own, &x, Some((&cross.shaped(shape), &memory)))
        }
    };
    texts.iter().zip(&items).map(|(text, &(start, _))| y[start * d..][..text.rows * d].to_vec()).collect()
}

fn texts(layer: &Layer, lengths: &[(usize, usize)], seed: u64) -> Vec<Text> {
    let mut rng = seeded("texts", seed);
    let mut rows = |n: usize| uniform(&mut rng, n * layer.d_model, -1.5, 1.5);
    lengths.iter().map(|&(n, k)| Text { x: rows(n), memory: rows(k), rows: n, keys: k }).collect()
}

fn layers(kernels: &'static Kernels) -> Vec<(String, Layer)> {
    let mut all = Vec::new();
    for (n, (d_model, n_heads, d_ff)) in [(12, 4, 20), (15, 3, 33), (64, 1, 70), (96, 12, 64)].into_iter().enumerate() {
        let placement = if n % 2 == 0 { Placement::Post } else { Placement::Pre };
        let mut encoder = EncoderLayer { placement, ..EncoderLayer::new(d_model, n_heads, d_ff) };
        encoder.feed_forward.activation = Activation::Gelu;
        if n == 1 {
            encoder.attention.options = AttentionOptions { alibi: vec![0.5, 0.25, 0.125], ..AttentionOptions::causal() };
        }
        let decoder = DecoderLayer { placement, ..DecoderLayer::new(d_model, n_heads, d_ff) };
        let what = format!("{d_model} wide, {n_heads} heads");
        all.push((format!("encoder layer {what}"), Layer::new(kernels, Kind::Encoder(encoder), n as u64)));
        all.push((format!("decoder layer {what}"), Layer::new(kernels, Kind::Decoder(decoder), n as u64)));
    }
    all
}

/// Lengths of the rows and keys of the sequences of a batch.
const LENGTHS: [(usize, usize); 7] = [(1, 3), (33, 70), (2, 1), (70, 32), (31, 31), (8, 9), (64, 65)];

/// The same plan run fifty times gives the same bits, whatever the tuning.
#[test]
fn fifty_runs_give_the_same_bits() {
    for (what, layer) in layers(kernels()) {
        let texts = texts(&layer, &LENGTHS[..4], 1);
        let first = run_batch(&layer, &texts, Batching::Packed);
        assert!(first.iter().flatten().all(|bits| f32::from_bits(*bits).is_finite()), "{what}");
        let x: Vec<f32> = texts.iter().flat_map(|t| t.x.clone()).collect();
        let memory: Vec<f32> = texts.iter().flat_map(|t| t.memory.clone()).collect();
        let own = Side::own(Sequences::packed(&texts.iter().map(|t| t.rows).collect::<Vec<_>>()).unwrap());
        let (mut q_start, mut k_start) = (0, 0);
        let mut over = Vec::new();
        for text in &texts {
            let (q_len, k_len) = (text.rows as u32, text.keys as u32);
            over.push(Sequence { q_start, q_len, k_start, k_len, ..Sequence::default() });
            (q_start, k_start) = (q_start + q_len, k_start + k_len);
        }
        let cross =
            Side { shape: Sequences::new(over.clone()).unwrap().shape(), ..Side::own(Sequences::new(over).unwrap()) };
        let memory = matches!(layer.kind, Kind::Decoder(_)).then_some((&cross, &memory[..]));
        let (plan, y) = layer.plan(&own, &x, memory);
        let expected = first.concat();
        for run in 0..50 {
            gpu().run(&plan).unwrap();
            let bits: Vec<u32> = gpu().read_f32(&y).unwrap().into_iter().map(f32::to_bits).collect();
            assert!(bits == expected, "{what}: run {run} differs");
        }
    }
}

/// A sequence alone, in a packed batch and in padded batches gives the same bits, whatever the padding holds, in whatever
/// order the batch is.
#[test]
fn a_row_does_not_depend_on_its_batch() {
    for (n, (what, layer)) in layers(invariant_kernels()).into_iter().enumerate() {
        let texts = texts(&layer, &LENGTHS, n as u64);
        let alone: Vec<_> =
            texts.iter().flat_map(|t| run_batch(&layer, std::slice::from_ref(t), Batching::Packed)).collect();
        assert!(alone.iter().flatten().all(|bits| f32::from_bits(*bits).is_finite()), "{what}");
        let batchings =
            [Batching::Packed, Batching::Padded(0, 0.0), Batching::Padded(0, 3e38), Batching::Padded(77, f32::NAN)];
        for batching in batchings {
            for (b, bits) in run_batch(&layer, &texts, batching).iter().enumerate() {
                assert!(*bits == alone[b], "{what}, {batching:?}: sequence {b} of {:?} differs", LENGTHS[b]);
            }
        }
        let mut order: Vec<usize> = (0..texts.len()).collect();
        let mut rng = seeded("order", n as u64);
        for batching in batchings {
            (1..order.len()).for_each(|i| order.swap(i, below(&mut rng, i + 1)));
            let shuffled: Vec<Text> = order.iter().map(|&b| texts[b].clone()).collect();
            for (bits, &b) in run_batch(&layer, &shuffled, batching).iter().zip(&order) {
                assert!(*bits == alone[b], "{what}, {batching:?} as {order:?}: sequence {b} differs");
            }
        }
    }
}

/// Every length from 1 to 70 alone and beside a longer one.
#[test]
fn every_length_alone_and_in_company() {
    let layer = Layer::new(invariant_kernels(), Kind::Encoder(EncoderLayer::new(20, 4, 24)), 9);
    let lengths: Vec<(usize, usize)> = (1..=70).map(|n| (n, 1)).collect();
    let texts = texts(&layer, &lengths, 9);
    let together = run_batch(&layer, &texts, Batching::Padded(0, f32::NAN));
    let packed = run_batch(&layer, &texts, Batching::Packed);
    for (n, text) in texts.iter().enumerate() {
        let alone = run_batch(&layer, std::slice::from_ref(text), Batching::Packed);
        assert!(alone[0] == together[n], "length {}: padded differs", n + 1);
        assert!(alone[0] == packed[n], "length {}: packed differs", n + 1);
    }
}

/// A neighbour with so many keys that a softmax over them alone would take another form.
#[test]
fn a_neighbour_of_a_thousand_keys() {
    let layer = Layer::new(invariant_kernels(), Kind::Decoder(DecoderLayer::new(12, 3, 16)), 10);
    let texts = texts(&layer, &[(2, 5), (3, 1200), (40, 33)], 10);
    for batching in [Batching::Packed, Batching::Padded(0, f32::NAN)] {
        let together = run_batch(&layer, &texts, batching);
        for (b, text) in texts.iter().enumerate() {
            assert!(run_batch(&layer, std::slice::from_ref(text), Batching::Packed)[0] == together[b], "{batching:?}: {b}");
        }
    }
}
