//! Published models over batches of texts of different length: batch invariant, a text's outputs are the same bits alone, packed and padded, and
//! padding that is NaN reaches none of them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

#[path = "common/checkpoints.rs"]
mod checkpoints;
#[path = "common/writing.rs"]
mod writing;

use std::collections::BTreeMap;

use checkpoints::{APART, BART, MARIAN, MT5, T5, VOCABULARY, bert_config, gpt2, ids, llama, seq2seq_config};
use common::{On, on_invariant};
use safetensors::tensor::Dtype;
use tileformer::layers::Inputs;
use tileformer::models::causal::{self, CausalModel};
use tileformer::models::seq2seq::{self, Seq2Seq};
use tileformer::models::{Checkpoint, bert};
use tileformer::{BatchShape, Bindings, Element, Program, Role, Sequence, Sequences};

/// The token whose rows are NaN: padding, and no text's.
const HOLE: u32 = 13;

/// Parts of the names of all token tables.
const TABLES: [&str; 4] = ["word_embeddings.", "wte.", "embed_tokens.", "shared."];

const LENGTHS: [usize; 4] = [5, 1, 11, 8];

/// A text that has nothing of the hole.
fn text(number: usize, length: usize) -> Vec<u32> {
    let others = |id: u32| if id == HOLE { id + 1 } else { id };
    ids(length, number, 39).into_iter().map(others).collect()
}

/// Texts one behind the other, each filled up to `longest` with the hole where that is given.
fn laid(texts: &[&[u32]], longest: Option<usize>) -> (Vec<u32>, Sequences) {
    let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
    let sequences = match longest {
        Some(longest) => Sequences::padded(&lengths, longest),
        None => Sequences::packed(&lengths),
    };
    let filled = |text: &&[u32]| {
        let mut text = text.to_vec();
        text.resize(longest.unwrap_or(text.len()), HOLE);
        text
    };
    (texts.iter().flat_map(filled).collect(), sequences.unwrap())
}

/// Outputs by name, with their sizes.
type Outputs = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Which part of an output is one sequence's.
#[derive(Clone, Copy, Debug)]
enum Axis {
    /// Rows of texts (true) or of sources, each as long as an output row.
    Rows(bool),
    /// (B, heads, queries, keys), of texts (true) or of sources.
    Map(bool, bool),
    /// One row a sequence.
    Text,
}

/// The part of an output that is sequence `b`'s, as bits.
fn part(values: &[f32], sizes: &[usize], axis: Axis, b: usize, [target, source]: [&Sequence; 2]) -> Vec<u32> {
    let of = |is_target: bool| if is_target { target } else { source };
    let inner = *sizes.last().unwrap();
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    match axis {
        Axis::Text => bits(&values[b * inner..][..inner]),
        Axis::Rows(is_target) => {
            let s = of(is_target);
            bits(&values[s.k_start as usize * inner..][..s.k_len as usize * inner])
        }
        Axis::Map(queries, keys) => {
            let [_, heads, longest_q, longest_k] = sizes.try_into().unwrap();
            let (q, k) = (of(queries).k_len as usize, of(keys).k_len as usize);
            let row = |row: usize| bits(&values[((b * heads + row / q) * longest_q + row % q) * longest_k..][..k]);
            (0..heads * q).flat_map(row).collect()
        }
    }
}

/// Runs a program and gives its outputs with their sizes.
fn run(on: &On, program: &Program, mut bindings: Bindings, words: &[(&str, &[u32])]) -> Outputs {
    for &(name, words) in words {
        let sizes = program.tensors().find(|(other, ..)| *other == name).unwrap().3.sizes();
        bindings.set(name, on.gpu.upload_u32(sizes, words).unwrap());
    }
    on.gpu.allocate(program, &mut bindings).unwrap();
    on.gpu.run(&program.bind(&bindings).unwrap()).unwrap();
    let outputs = program.tensors().filter(|(_, role, ..)| *role == Role::Output);
    let read = |name: &str| on.gpu.read_f32(bindings.get(name).unwrap()).unwrap();
    outputs.map(|(name, _, _, layout)| (name.to_owned(), (layout.sizes().to_vec(), read(name)))).collect()
}

/// A model with its checkpoint, over targets and sources; families without sources have empty ones.
trait Family {
    fn run(&self, on: &On, texts: (&[u32], &Sequences), sources: (&[u32], &Sequences)) -> Outputs;

    fn axis(&self, name: &str) -> Axis;
}

impl Family for (Checkpoint, bert::Bert) {
    fn run(&self, on: &On, (ids, texts): (&[u32], &Sequences), _: (&[u32], &Sequences)) -> Outputs {
        use bert::Output;
        let (checkpoint, model) = self;
        let mut outputs: Vec<Output> = (0..=model.n_layers).map(Output::Hidden).collect();
        outputs.extend((0..model.n_layers).map(Output::Attention));
        outputs.extend([Output::Pooled, Output::Embedding, Output::NextSentence, Output::SequenceClasses]);
        outputs.extend([Output::MaskedLanguage, Output::TokenClasses, Output::Spans]);
        let program = model.program(&on.kernels, &Inputs::new(texts.shape()), &outputs).unwrap();
        let bindings = on.gpu.upload_checkpoint(&[&program], checkpoint, &model.weights(), |_| {}).unwrap();
        let segments: Vec<u32> = ids.iter().map(|id| id % 2).collect();
        run(on, &program, bindings, &[("ids", ids), ("segment_ids", &segments), ("sequences", texts.words())])
    }

    fn axis(&self, name: &str) -> Axis {
        match name {
            "pooled" | "embedding" | "nsp_logits" | "sequence_logits" => Axis::Text,
            _ if name.starts_with("attention.") => Axis::Map(true, true),
            _ => Axis::Rows(true),
        }
    }
}

impl Family for (Checkpoint, CausalModel) {
    fn run(&self, on: &On, (ids, texts): (&[u32], &Sequences), _: (&[u32], &Sequences)) -> Outputs {
        use causal::Output;
        let (checkpoint, model) = self;
        let mut outputs: Vec<Output> = (0..=model.n_layers).map(Output::Hidden).collect();
        outputs.extend((0..model.n_layers).map(Output::Attention));
        outputs.push(Output::Logits);
        let program = model.program(&on.kernels, &Inputs::new(texts.shape()), &outputs).unwrap();
        let bindings = on.gpu.upload_causal(&[&program], checkpoint, model, |_| {}).unwrap();
        run(on, &program, bindings, &[("ids", ids), ("sequences", texts.words())])
    }

    fn axis(&self, name: &str) -> Axis {
        if name.starts_with("attention.") { Axis::Map(true, true) } else { Axis::Rows(true) }
    }
}

impl Family for (Checkpoint, Seq2Seq) {
    fn run(&self, on: &On, (ids, texts): (&[u32], &Sequences), (source_ids, sources): (&[u32], &Sequences)) -> Outputs {
        use seq2seq::Output;
        let (checkpoint, model) = self;
        let (encoder, decoder) = (model.encoder.n_layers, model.decoder.n_layers);
        let mut outputs: Vec<Output> = (0..=encoder).map(Output::EncoderHidden).collect();
        outputs.extend((0..=decoder).map(Output::DecoderHidden));
        outputs.extend((0..encoder).map(Output::EncoderAttention));
        outputs.extend((0..decoder).flat_map(|n| [Output::DecoderAttention(n), Output::CrossAttention(n)]));
        outputs.push(Output::Logits);
        let (own, from) = (texts.shape().to_self(), sources.shape().to_self());
        let shape = BatchShape { k_rows: from.k_rows, longest_k: from.longest_k, ..own };
        let program = model.program(&on.kernels, &Inputs::new(shape), &outputs).unwrap();
        let bindings = on.gpu.upload_checkpoint(&[&program], checkpoint, &model.weights().unwrap(), |_| {}).unwrap();
        let cross = texts.over(sources).unwrap();
        let words = [
            ("source.ids", source_ids),
            ("source.sequences", sources.words()),
            ("target.ids", ids),
            ("target.sequences", texts.words()),
            ("cross.sequences", cross.words()),
        ];
        run(on, &program, bindings, &words)
    }

    fn axis(&self, name: &str) -> Axis {
        match name.split_once('.').map_or(name, |(kind, _)| kind) {
            "encoder_hidden" => Axis::Rows(false),
            "encoder_attention" => Axis::Map(false, false),
            "decoder_attention" => Axis::Map(true, true),
            "cross_attention" => Axis::Map(true, false),
            _ => Axis::Rows(true),
        }
    }
}

/// Every model, with NaN in the token tables' row of the hole.
fn families() -> Vec<(String, Box<dyn Family>)> {
    let mut all: Vec<(String, Box<dyn Family>)> = Vec::new();
    let sizes = [24, 4, 40, 2, 3];
    let config = bert_config(sizes, r#", "tie_word_embeddings": false"#);
    let tensors = checkpoints::bert(sizes, "bert.").with_table("cls.predictions.decoder.weight", VOCABULARY, sizes[0]);
    let checkpoint = tensors.with_hole(HOLE as usize, &TABLES).checkpoint(&config, Dtype::F32);
    let model = bert::Bert::new(&checkpoint).unwrap();
    all.push(("BERT".into(), Box::new((checkpoint, model))));
    for (name, config) in
        [("GPT-2", gpt2([24, 4, 40, 2], r#", "tie_word_embeddings": false"#)), ("Llama", llama([24, 4, 2, 8, 36, 2], ""))]
    {
        let checkpoint = checkpoints::causal(&config).with_hole(HOLE as usize, &TABLES).checkpoint(&config, Dtype::F32);
        let model = CausalModel::new(&checkpoint).unwrap();
        all.push((name.into(), Box::new((checkpoint, model))));
    }
    for (name, made) in [("Marian", APART), ("BART", checkpoints::Made { more: UNTIED, ..BART }), ("mT5", MT5)] {
        let checkpoint =
            checkpoints::seq2seq(&made).with_hole(HOLE as usize, &TABLES).checkpoint(&seq2seq_config(&made), Dtype::F32);
        let model = Seq2Seq::new(&checkpoint).unwrap();
        all.push((name.into(), Box::new((checkpoint, model))));
    }
    all
}

/// A projection that the hole is no row of.
const UNTIED: &str = r#", "tie_word_embeddings": false"#;

/// Rule: every output of every family is the same bits for a text alone, in a packed batch and in padded ones whose padding is NaN.
#[test]
fn a_text_is_itself_in_every_batch() {
    let on = on_invariant();
    let texts: Vec<Vec<u32>> = LENGTHS.iter().enumerate().map(|(b, &length)| text(b, length)).collect();
    let sources: Vec<Vec<u32>> = [7, 10, 2, 4].iter().enumerate().map(|(b, &length)| text(b + 9, length)).collect();
    let [texts, sources] = [&texts, &sources].map(|all| all.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for (name, family) in families() {
        let run = |texts: &[&[u32]], sources: &[&[u32]], padded: Option<[usize; 2]>| {
            let (ids, at) = laid(texts, padded.map(|longest| longest[0]));
            let (source_ids, from) = laid(sources, padded.map(|longest| longest[1]));
            let found = family.run(on, (&ids, &at), (&source_ids, &from));
            let is_nan = |(_, values): &(Vec<usize>, Vec<f32>)| values.iter().any(|v| v.is_nan());
            assert_eq!(found.values().any(is_nan), padded.is_some(), "{name}: NaN is what padding is, and nothing else");
            let of = |b: usize| {
                let own = [&at.as_slice()[b], &from.as_slice()[b]];
                let part = |(name, (sizes, values)): (&String, &(Vec<usize>, Vec<f32>))| {
                    (name.clone(), part(values, sizes, family.axis(name), b, own))
                };
                found.iter().map(part).collect::<BTreeMap<_, _>>()
            };
            (0..texts.len()).map(of).collect::<Vec<_>>()
        };
        let alone: Vec<_> = (0..4).flat_map(|b| run(&texts[b..=b], &sources[b..=b], None)).collect();
        for (output, bits) in alone.iter().flatten() {
            assert!(bits.iter().all(|&bits| f32::from_bits(bits).is_finite()), "{name}: {output} is not finite");
        }
        for padded in [None, Some([11, 10]), Some([17, 13])] {
            for (b, found) in run(&texts, &sources, padded).iter().enumerate() {
                for (output, bits) in found {
                    assert!(*bits == alone[b][output], "{name}, padded to {padded:?}: {output} of text {b} differs");
                }
            }
        }
    }
}

/// Rule: what is written behind a prompt or a source does not depend on its neighbours, nor on padding that is NaN.
#[test]
fn a_text_is_written_alike_in_every_batch() {
    let prompts: Vec<Vec<u32>> = [5, 2, 11, 8].iter().enumerate().map(|(b, &length)| text(b, length)).collect();
    for config in [gpt2([24, 4, 40, 2], ""), llama([24, 4, 2, 8, 36, 2], "")] {
        let checkpoint = checkpoints::causal(&config).checkpoint(&config, Dtype::F32);
        let write = |prompts: &[Vec<u32>]| writing::causal(on_invariant(), &checkpoint, Element::F32, prompts, 9);
        let together = write(&prompts);
        for b in 0..prompts.len() {
            let alone = write(&prompts[b..=b]);
            assert_eq!(
                (&alone.ids[0], &alone.log_probs[0]),
                (&together.ids[b], &together.log_probs[b]),
                "{config}: text {b}"
            );
        }
    }
    for made in [MARIAN, BART, APART, T5, MT5] {
        // Sources of padding are memories of NaN, where the decoder has another table.
        let checkpoint = checkpoints::seq2seq(&made).with_hole(HOLE as usize, &["encoder.embed_tokens."]);
        let checkpoint = checkpoint.checkpoint(&seq2seq_config(&made), Dtype::F32);
        let write = |texts: &[&[u32]], longest: Option<usize>| {
            let (ids, sources) = laid(texts, longest);
            writing::seq2seq(on_invariant(), &checkpoint, Element::F32, &sources, &ids, 9)
        };
        let texts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let together = write(&texts, Some(13));
        assert_eq!(together, write(&texts, None), "{made:?}: packed");
        for b in 0..texts.len() {
            let alone = write(&texts[b..=b], None);
            assert_eq!(
                (&alone.ids[0], &alone.log_probs[0]),
                (&together.ids[b], &together.log_probs[b]),
                "{made:?}: text {b}"
            );
        }
    }
}
