//! Published models that write in f16: weights, rows and caches take half the memory, and the tokens are those of exact arithmetic on the
//! same weights wherever f16 can tell them apart.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

#[path = "common/checkpoints.rs"]
mod checkpoints;
#[path = "common/writing.rs"]
mod writing;

use checkpoints::{BART, MARIAN, VOCABULARY, gpt2, ids, llama, seq2seq_config};
use common::storing::{Storing, exact, rounded};
use common::{largest, on, on_core, storage_floor};
use safetensors::tensor::Dtype;
use tileformer::models::causal::{self, CausalModel};
use tileformer::models::seq2seq::{Output, Seq2Seq};
use tileformer::reference::layers::{self as twin, Batch, Weights};
use tileformer::reference::{Linear, Real, linear};
use tileformer::{Activation, BatchShape, Element, Sequences};
use writing::Written;

const STEPS: usize = 10;

/// Logits (rows, V), which are f32 whatever the storage.
fn head<T: Real>(weights: &Weights<'_, T>, weight: &str, bias: Option<&str>, x: &[T], d_in: usize) -> Vec<T> {
    let weight = weights.get(weight, &[VOCABULARY, d_in]).unwrap();
    let bias = bias.map(|bias| weights.get(bias, &[VOCABULARY]).unwrap());
    let (activation, rows) = (Activation::Identity, x.len() / d_in);
    linear(&Linear { x, weight, bias, residual: None, activation, rows, d_in, d_out: VOCABULARY }).unwrap()
}

/// The logits behind every token of a text.
fn causal_logits<T: Real>(
    model: &CausalModel,
    weights: &Weights<'_, T>,
    ids: &[u32],
    store: fn(Vec<T>) -> Vec<T>,
) -> Vec<T> {
    let on = Storing { weights, store };
    let text = Sequences::packed(&[ids.len()]).unwrap();
    let batch = Batch::new(text.shape(), text.as_slice());
    let mut x = store(twin::embeddings(&model.embedding, weights, "", ids, None, Some(text.as_slice())).unwrap());
    for n in 0..model.n_layers {
        x = on.encoder_layer(&model.layer, &format!("layers.{n}."), &x, &batch);
    }
    let x = on.norm(&model.final_norm, "norm.", &x, model.embedding.d_model);
    let weight = if model.tied { "token_embedding.weight" } else { "lm_head.weight" };
    head(weights, weight, None, &x, model.embedding.d_model)
}

/// The logits behind every token of a target.
fn target_logits<T: Real>(
    model: &Seq2Seq,
    weights: &Weights<'_, T>,
    [source_ids, ids]: [&[u32]; 2],
    store: fn(Vec<T>) -> Vec<T>,
) -> Vec<T> {
    let on = Storing { weights, store };
    let embed = |spec, prefix: &str, ids: &[u32], items: &Sequences| {
        store(twin::embeddings(spec, weights, prefix, ids, None, Some(items.as_slice())).unwrap())
    };
    let [source, target] = [source_ids, ids].map(|ids| Sequences::packed(&[ids.len()]).unwrap());
    let batch = Batch::new(source.shape(), source.as_slice());
    let mut memory = embed(&model.source, "source.", source_ids, &source);
    for n in 0..model.encoder.n_layers {
        memory = on.encoder_layer(&model.encoder.layer, &format!("encoder.layers.{n}."), &memory, &batch);
    }
    let over = target.over(&source).unwrap();
    let batch = Batch::new(target.shape(), target.as_slice());
    let cross = Batch::new(BatchShape::cross(1, ids.len(), source_ids.len()), over.as_slice());
    let mut x = embed(&model.target, "target.", ids, &target);
    for n in 0..model.decoder.n_layers {
        let prefix = format!("decoder.layers.{n}.");
        x = on.decoder_layer(&model.decoder.layer, &prefix, [&x, &memory], [&batch, &cross]);
    }
    let bias = model.logits_bias.then_some("head.bias");
    head(weights, "target.token_embedding.weight", bias, &x, model.target.d_model)
}

/// Tokens behind the first `given` of a text: none is further from the best than twice the allowance of a logit, which is twice what storing f16 costs
/// a plain computation; log-probabilities are the exact ones within the same.
fn follow(name: &str, given: usize, written: (&[u32], &[f32]), rounding: &[f32], right: &[f64]) {
    let own = rounding.iter().zip(right).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
    let allowance = 2.0 * own + storage_floor(Element::F16, right);
    assert!(own > 0.0 && allowance < 0.05 * largest(right), "{name}: an allowance of {allowance} says nothing");
    let rows = right.chunks_exact(VOCABULARY).skip(given - 1);
    for (step, (row, (&id, &found))) in rows.zip(written.0.iter().zip(written.1)).enumerate() {
        let best = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let chosen = row[id as usize];
        assert!(best - chosen <= 2.0 * allowance, "{name}, step {step}: token {id} has {chosen}, the best {best}");
        let log_prob = chosen - best - row.iter().map(|l| (l - best).exp()).sum::<f64>().ln();
        let error = (f64::from(found) - log_prob).abs();
        assert!(error <= 2.0 * allowance, "{name}, step {step}: log-probability {found}, not {log_prob}");
    }
}

/// Rule: GPT-2's and Llama's texts in f16, of prompts of different length together, with the type and in pairs.
#[test]
fn causal_models_write_in_f16() {
    let stretched = r#", "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}, "attention_bias": true, "tie_word_embeddings": true"#;
    let prompts: Vec<Vec<u32>> = [9, 2, 5].iter().map(|&rows| ids(rows, rows, VOCABULARY)).collect();
    for config in [gpt2([24, 4, 40, 2], ""), llama([24, 4, 2, 8, 36, 2], stretched), llama([32, 4, 1, 8, 40, 2], "")] {
        // Published in f16, so that the device's weights are the reference's.
        let checkpoint = checkpoints::causal(&config).checkpoint(&config, Dtype::F16);
        let model = CausalModel::new(&checkpoint).unwrap();
        let outputs = [causal::Output::Logits];
        let narrow = model.host_weights::<f32>(&checkpoint, &outputs).unwrap();
        let wide = model.host_weights::<f64>(&checkpoint, &outputs).unwrap();
        for (form, on) in [("f16", on()), ("f16 in pairs", on_core())] {
            let Written { ids, log_probs } = writing::causal(on, &checkpoint, Element::F16, &prompts, STEPS);
            for (row, prompt) in prompts.iter().enumerate() {
                let whole = [&prompt[..], &ids[row][..STEPS - 1]].concat();
                let rounding = causal_logits(&model, &narrow.weights().unwrap(), &whole, rounded);
                let right = causal_logits(&model, &wide.weights().unwrap(), &whole, exact);
                follow(
                    &format!("{config} in {form}, text {row}"),
                    prompt.len(),
                    (&ids[row], &log_probs[row]),
                    &rounding,
                    &right,
                );
            }
        }
    }
}

/// Rule: Marian's and BART's texts in f16, over sources of different length, padded and packed.
#[test]
fn translations_are_written_in_f16() {
    let lengths = [6, 2, 9];
    for (made, source) in [(MARIAN, Sequences::packed(&lengths).unwrap()), (BART, Sequences::padded(&lengths, 9).unwrap())] {
        let checkpoint = checkpoints::seq2seq(&made).checkpoint(&seq2seq_config(&made), Dtype::F16);
        let model = Seq2Seq::new(&checkpoint).unwrap();
        let source_ids = ids(source.shape().k_rows, 3, VOCABULARY);
        let narrow = model.host_weights::<f32>(&checkpoint, &[Output::Logits]).unwrap();
        let wide = model.host_weights::<f64>(&checkpoint, &[Output::Logits]).unwrap();
        for (form, on) in [("f16", on()), ("f16 in pairs", on_core())] {
            let Written { ids, log_probs } = writing::seq2seq(on, &checkpoint, Element::F16, &source, &source_ids, STEPS);
            for (row, s) in source.as_slice().iter().enumerate() {
                let own = &source_ids[s.k_start as usize..][..s.k_len as usize];
                let target = [&[0], &ids[row][..STEPS - 1]].concat();
                let rounding = target_logits(&model, &narrow.weights().unwrap(), [own, &target], rounded);
                let right = target_logits(&model, &wide.weights().unwrap(), [own, &target], exact);
                follow(&format!("{made:?} in {form}, text {row}"), 1, (&ids[row], &log_probs[row]), &rounding, &right);
            }
        }
    }
}
