//! Every operation on a device with WebGPU's default limits and no features.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::refusals::{Env, Tensors, layout};
use common::{on, seeded, uniform};
use tileformer::convenience::Gpu;
use tileformer::kernels::{
    ActivationRows, Argmax, AttentionScores, BeamCandidates, CacheAppend, CacheGather, Choose, FewOutput, FusedNorm, Gate,
    LayerNorm, Linear, LinearFew, MarkSeen, MaskedSoftmax, Pool, Rotary, RotaryPositions, Visibility,
};
use tileformer::layers::{
    AttentionRows, Decoder, DecoderLayer, DecoderRows, Embedding, Encoder, EncoderLayer, MultiHeadAttention, Norm, NormKind,
    Projection, Score,
};
use tileformer::spec::blocks::row_words;
use tileformer::spec::{Pooling, RotaryOrder};
use tileformer::{
    Activation, AttentionOptions, BatchShape, Bindings, Builder, Element, Kernels, Mask, Options, Program, Result, Role,
    Sampling, Sequences, Tensor, wgpu,
};

const ROWS: usize = 40;
const D: usize = 24;
const VOCABULARY: usize = 1100;
const BLOCK_ROWS: usize = 7;

/// A translation model with one of everything in it: embeddings, an encoder stack, attention of every score over it, a decoder
/// stack, a head, its temperature and its choice.
fn everything(kernels: &Kernels) -> Result<Program> {
    let mut b = Builder::new(kernels, "everything");
    let shape = BatchShape::padded(2, ROWS / 2);
    let masked = AttentionOptions {
        key_mask: true,
        mask: Some(Mask::Additive),
        alibi: vec![0.5, 0.25, 0.125],
        softcap: Some(4.0),
        window_left: Some(15),
        ..AttentionOptions::causal()
    };
    let batch = b.batch("", &masked, 3, shape, None)?;
    let plain = b.batch("plain_", &AttentionOptions::default(), 3, shape, None)?;
    let rows = |b: &mut Builder, name: &str| b.scratch(name, Element::F32, layout(&[ROWS, D]));

    let spec =
        Embedding { positions: Some(25), segments: Some(2), norm: Some(Norm::default()), ..Embedding::new(VOCABULARY, D) };
    let embedded = rows(&mut b, "embedded")?;
    b.embed("", &spec, &plain, embedded)?;

    let mut layer = EncoderLayer::new(D, 3, 50);
    layer.attention.options = masked.clone();
    layer.feed_forward.activation = Activation::Gelu;
    let encoder = Encoder { positions_every_layer: Some(25), ..Encoder::new(layer, 2).with_final_norm(Norm::default()) };
    let encoded = rows(&mut b, "encoded")?;
    b.encoder("encoder.", &encoder, &batch, embedded, true, encoded)?;

    let mut x = encoded;
    for (n, score) in [Score::Dot, Score::General, Score::Additive { width: 9 }].into_iter().enumerate() {
        let spec = MultiHeadAttention {
            score,
            projection: Projection::Separate,
            value_head_size: 5,
            options: masked.clone(),
            ..MultiHeadAttention::new(D, 3)
        };
        let y = rows(&mut b, "attended")?;
        let attention = AttentionRows { residual: Some(x), ..AttentionRows::cross(x, embedded, y) };
        b.multi_head_attention(&format!("attention.{n}."), &spec, &batch, &attention)?;
        x = y;
    }
    let decoder = Decoder::new(DecoderLayer::new(D, 3, 30), 1);
    let decoded = rows(&mut b, "decoded")?;
    let decoding = DecoderRows { x: embedded, batch: plain, memory: x, cross: plain, y: decoded };
    b.decoder("decoder.", &decoder, &decoding, false)?;

    // the last rows alone, as a decoding step has them: few of them, and one
    let (normed, sum, statistics) = (rows(&mut b, "normed")?, b.out("sum", &[ROWS, D]), b.out("statistics", &[ROWS, 2]));
    let norm =
        LayerNorm { residual: Some(x), sum: Some(sum), statistics: Some(statistics), ..LayerNorm::new(decoded, normed) };
    b.layer_norm("norm", &norm)?;
    let active = rows(&mut b, "active")?;
    b.activation("silu", &ActivationRows { x: normed, activation: Activation::Silu, y: active })?;
    let logits = b.out("logits", &[ROWS, VOCABULARY]);
    b.head("token_embedding.weight", None, active, logits)?;
    for (name, rows) in [("few", 5), ("one", 1)] {
        let logits = b.out(name, &[rows, 64]);
        b.head("head.weight", Some("head.bias"), active.narrow(0, 3, rows)?, logits)?;
    }
    sample(&mut b, logits, normed)?;
    llama(&mut b, normed, plain.sequences)?;
    blocks(&mut b, normed)?;
    let (sequences, y) = (plain.sequences, b.out("pooled", &[2, D]));
    b.pool("pool", &Pool { x: normed, sequences, longest: ROWS / 2, pooling: Pooling::Mean, normalize: true, y })?;
    let slots = b.u32("slots", &[2, 8]);
    cache(&mut b, normed, slots)?;
    step(&mut b, normed, slots)?;
    choose(&mut b, logits, plain.sequences)?;
    b.finish()
}

/// What Llama's layers have beside: RMS norm, rotary positions, gates.
fn llama(b: &mut Builder, rows: Tensor, sequences: Tensor) -> Result<()> {
    let [normed, turned, gated] = ["rms", "turned", "gated"].map(|name| b.out(name, &[ROWS, D]));
    b.rms_norm("rms", &LayerNorm::new(rows, normed))?;
    let heads = |t: Tensor| t.split_heads(3, D / 3);
    let table = b.f32("table", &[30, D / 3]);
    let positions = RotaryPositions::Sequences(sequences, ROWS / 2);
    b.rotary("turn", &Rotary { x: heads(rows)?, table, order: RotaryOrder::Halves, positions, y: heads(turned)? })?;
    b.gate("gate", &Gate { gate: rows, up: normed, activation: Activation::Silu, y: gated })
}

/// A weight in blocks, for few rows and for many.
fn blocks(b: &mut Builder, x: Tensor) -> Result<()> {
    let weight = b.weight_as("blocks", Element::Int8, layout(&[BLOCK_ROWS, row_words(Element::Int8, D)]))?;
    for (name, rows) in [("of blocks", 5), ("of unpacked blocks", ROWS)] {
        let y = b.out(name, &[rows, BLOCK_ROWS]);
        b.linear(name, &Linear::new(x.narrow(0, 0, rows)?, weight, y))?;
    }
    Ok(())
}

/// What a decode step has: norms in front of projections, keys and values appended, logits with their maxima.
fn step(b: &mut Builder, x: Tensor, sequences: Tensor) -> Result<()> {
    let norm = Some(FusedNorm { kind: NormKind::Layer, weight: Some(b.w("norm", &[D])), bias: None, eps: 1e-5 });
    let (weight, y, cache) = (b.w("qkv", &[3 * D, D]), b.out("q", &[ROWS, D]), b.out("kept", &[2, 2, 3, ROWS / 2, D / 3]));
    let out = FewOutput::Append { cache, head_size: D / 3, value_head_size: D / 3 };
    let few = LinearFew { norm, sequences: Some(sequences), out, ..LinearFew::new(Linear::new(x, weight, y)) };
    b.linear_few("qkv", &few)?;
    let (weight, y) = (b.w("words", &[130, D]), b.out("word_logits", &[ROWS, 130]));
    let groups = b.logit_groups(weight)?;
    let maxima = b.output("maxima", Element::U32, layout(&[ROWS, groups, 2]))?;
    let out = FewOutput::Logits { maxima };
    b.linear_few("words", &LinearFew { norm, out, ..LinearFew::new(Linear::new(x, weight, y)) })
}

/// Rows as keys and values of a cache, and its slots in another one.
fn cache(b: &mut Builder, rows: Tensor, sequences: Tensor) -> Result<()> {
    let k = rows.split_heads(3, D / 3)?;
    let sizes = [2, 2, 3, ROWS / 2, D / 3];
    let (cache, gathered) = (b.out("cache", &sizes), b.out("gathered", &sizes));
    b.cache_append("append", &CacheAppend { k, v: k, sequences, longest: ROWS / 2, cache })?;
    let parents = b.input("parents", Element::U32, layout(&[2]))?;
    b.cache_gather("gather", &CacheGather { from: cache, parents, lengths: None, to: gathered })
}

/// A token of every row by its options, and what was seen of two texts.
fn choose(b: &mut Builder, logits: Tensor, sequences: Tensor) -> Result<()> {
    let sampling = b.u32("sampling", &[ROWS, 16]);
    let state = b.state("state", Element::U32, layout(&[2 * ROWS, 8]))?;
    let seen = b.output("seen", Element::U32, layout(&[ROWS, VOCABULARY.div_ceil(32)]))?;
    let ids = b.u32("token_ids", &[ROWS]);
    b.mark_seen("seen", &MarkSeen { ids, sequences, longest: ROWS / 2, seen: seen.narrow(0, 0, 2)? })?;
    let tokens = b.output("tokens", Element::U32, layout(&[1, ROWS]))?;
    let log_probs = Some(b.out("log_probs", &[1, ROWS]));
    let args = Choose { seen: Some(seen), log_probs, ..Choose::new(logits, sampling, state, 100, tokens) };
    b.choose("choose", &args)?;
    let candidates = b.output("candidates", Element::U32, layout(&[ROWS, 8, 2]))?;
    let renormalized = true;
    b.beam_candidates("beams", &BeamCandidates { renormalized, ..BeamCandidates::new(logits, candidates) })
}

/// Probabilities at a temperature, of a query and of the next token, and the most probable one.
fn sample(b: &mut Builder, logits: Tensor, rows: Tensor) -> Result<()> {
    let scores = b.out("scores", &[1, 3, ROWS, ROWS]);
    let (q, k) = (rows.split_heads(3, D / 3)?, rows.split_heads(3, D / 3)?);
    b.attention_scores("scores", &AttentionScores { q, k, visibility: Visibility::default(), scores })?;
    let probs = b.out("probs", &[1, 3, ROWS, ROWS]);
    let warm = Visibility::new(AttentionOptions { scale: Some(1.0 / 0.7), ..AttentionOptions::default() });
    b.masked_softmax("probs", &MaskedSoftmax { x: scores, visibility: warm.clone(), y: probs })?;
    let (long, next) = (b.f32("long", &[1, 1, 3, 1500]), b.out("next", &[1, 1, 3, 1500]));
    b.masked_softmax("next", &MaskedSoftmax { x: long, visibility: warm, y: next })?;
    let ids = b.output("ids_out", Element::U32, layout(&[ROWS]))?;
    b.argmax("argmax", &Argmax { x: logits, ids })
}

/// Rows of nine keys before their first step.
fn state() -> Vec<u32> {
    let (sequence, own) = ([0, 1, 0, 9, 8, 0, 0, 0], [0; 8]);
    [sequence.repeat(ROWS), own.repeat(ROWS)].concat()
}

/// Runs the program on seeded data and gives the bits of every output.
fn run(gpu: &Gpu, program: &Program) -> BTreeMap<String, Vec<u32>> {
    let mut bindings = Bindings::new();
    let mut outputs = Vec::new();
    for (name, role, element, layout) in program.tensors() {
        let mut rng = seeded(name, 0);
        let n = layout.len();
        let view = match (role, element, name) {
            (Role::Output, ..) => gpu.zeros(element, layout.sizes()),
            (_, Element::Int8, _) => {
                gpu.upload_floats(element, &[BLOCK_ROWS, D], &uniform(&mut rng, BLOCK_ROWS * D, -0.5, 0.5))
            }
            (_, Element::F32, _) => gpu.upload_f32(layout.sizes(), &uniform(&mut rng, n, -0.5, 0.5)),
            // the second text has its keys behind the three heads of the first
            (_, _, "slots") => gpu.upload_u32(&[2, 8], &[0, 20, 0, 20, 0, 0, 0, 0, 20, 11, 60, 11, 0, 0, 0, 0]),
            (_, _, "sequences" | "plain_sequences") => {
                gpu.upload_u32(&[2, 8], Sequences::padded(&[20, 11], ROWS / 2).unwrap().words())
            }
            (_, _, "sampling") => {
                let sampled = Sampling::sampled(5).with_top_k(20).with_top_p(0.9).unwrap();
                let both = [sampled.with_repetition_penalty(1.5).unwrap(), Sampling::greedy()];
                gpu.upload_u32(layout.sizes(), Sampling::words(&both.repeat(ROWS / 2)))
            }
            (_, _, "state") => gpu.upload_u32(layout.sizes(), &state()),
            _ => gpu.upload_u32(layout.sizes(), &(0..n as u32).map(|i| i * 7 % 2 + i % 2).collect::<Vec<_>>()),
        }
        .unwrap();
        bindings.set(name, view.clone());
        if role == Role::Output {
            outputs.push((name.to_owned(), view));
        }
    }
    gpu.run(&program.bind(&bindings).unwrap()).unwrap();
    let size = |view: &tileformer::TensorView| view.layout().extent() * 4;
    let read = |view: &tileformer::TensorView| gpu.read_bytes(view.buffer(), 0, size(view)).unwrap();
    let words = |bytes: Vec<u8>| bytes.chunks(4).map(|b| u32::from_ne_bytes(b.try_into().unwrap())).collect();
    outputs.into_iter().map(|(name, view)| (name, words(read(&view)))).collect()
}

/// The core tier needs nothing beyond WebGPU's defaults, and gives what a device with more gives.
#[test]
fn every_operation_runs_on_the_core_tier() {
    let env = Env::core();
    assert_eq!(env.gpu.device.features(), wgpu::Features::empty());
    assert_eq!(env.gpu.device.limits().max_storage_buffers_per_shader_stage, 8);
    let kernel = |variant: &tileformer::Variant| variant.name().split('.').next().unwrap().to_owned();
    let of_core = |v: &tileformer::Variant| v.features().is_empty();
    let core: Vec<_> = tileformer::kernels::variants().into_iter().filter(of_core).collect();
    // The shapes are small: pins bring in the forms of linear that the table has for larger ones.
    let pin = |name: &str| {
        core.iter().find(|v| v.name() == name).map_or(Options::default(), |v| Options::default().with_pinned(*v))
    };
    let mut used: BTreeSet<String> = BTreeSet::new();
    let pins = ["linear.f32.64x64x16-plain", "linear_split.f32.64x64x16-plain", "attention_split.f32.8x128"].map(pin);
    for options in std::iter::once(Options::default()).chain(pins) {
        let [here, there] = [&env.gpu, &on().gpu].map(|gpu| Kernels::new(&gpu.device, options.clone()).unwrap());
        let program = everything(&here).unwrap();
        used.extend(program.variants().iter().map(kernel));
        let found = run(&env.gpu, &program);
        assert!(env.uncaptured().is_empty(), "{:?}", env.uncaptured());
        let other = run(&on().gpu, &everything(&there).unwrap());
        for (name, bits) in &found {
            // scores hold −∞ nowhere here: nothing is hidden without a mask
            assert!(
                ["ids_out", "maxima", "seen", "tokens"].contains(&name.as_str())
                    || bits.iter().all(|b| f32::from_bits(*b).is_finite()),
                "{name}"
            );
            assert!(bits.iter().any(|b| *b != 0), "{name} is all zeros");
            assert!(*bits == other[name], "{name} differs from the device with more");
        }
        assert!(found["ids_out"].iter().all(|id| (*id as usize) < VOCABULARY));
    }
    assert_eq!(used, core.iter().map(kernel).collect(), "every kernel of the core tier");
}

/// Rule: without index checks the same bits come out, as long as the sequences lie inside their tensors.
#[test]
fn unchecked_shaders_give_the_same_bits() {
    // SAFETY: the sequences that `run` uploads lie inside every tensor of the program.
    let unchecked = unsafe { Options::default().with_unchecked_shaders() };
    assert!(Options::default().checks_shaders() && !unchecked.checks_shaders());
    let kernels = Kernels::new(&on().gpu.device, unchecked).unwrap();
    let checked = run(&on().gpu, &everything(&on().kernels).unwrap());
    for (name, bits) in run(&on().gpu, &everything(&kernels).unwrap()) {
        assert!(bits == checked[&name], "{name} differs without index checks");
    }
}
