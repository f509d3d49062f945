//! GPT-2, Llama, Mistral and Qwen2 under their checkpoints' names: the forward pass against the reference, padded, packed and masked, in
//! f32 and f16; texts over caches against the forward pass; what is refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

#[path = "common/checkpoints.rs"]
mod checkpoints;

use std::collections::BTreeMap;

use checkpoints::{POSITIONS, VOCABULARY, gpt2, ids, llama};
use common::{On, assert_close, largest, on, on_core};
use safetensors::tensor::Dtype;
use tileformer::layers::{GeneratorInputs, Inputs, PrefillShape};
use tileformer::models::causal::{CausalInputs, CausalModel, Output};
use tileformer::models::{Checkpoint, Config};
use tileformer::spec::RotaryScaling;
use tileformer::spec::cache::CachedRows;
use tileformer::spec::generator::GeneratorCaches;
use tileformer::{BatchShape, Element, Error, Role, Sequences};

fn model(text: &str) -> tileformer::Result<CausalModel> {
    CausalModel::from_config(&Config::parse("config.json", text)?)
}

/// A checkpoint of random weights.
fn checkpoint(text: &str) -> Checkpoint {
    checkpoints::causal(text).checkpoint(text, Dtype::F32)
}

fn every_output(layers: usize) -> Vec<Output> {
    let mut all: Vec<Output> = (0..=layers).map(Output::Hidden).collect();
    all.extend((0..layers).map(Output::Attention));
    all.push(Output::Logits);
    all
}

/// Every output against the reference's, computed in f64; gives the reference's.
fn compare(
    on: &On,
    element: Element,
    text: &str,
    sequences: &Sequences,
    mask: Option<&[u32]>,
) -> BTreeMap<String, Vec<f64>> {
    let checkpoint = checkpoint(text);
    let mut model = CausalModel::new(&checkpoint).unwrap();
    model.layer.attention.options.key_mask = mask.is_some();
    let outputs = every_output(model.n_layers);
    let shape = sequences.shape().to_self();
    let ids = ids(shape.q_rows, 0, VOCABULARY);
    let program = model.program(&on.kernels, &Inputs::new(shape).with_storage(element), &outputs).unwrap();
    let gpu = &on.gpu;
    let mut bindings = gpu.upload_causal(&[&program], &checkpoint, &model, |_| {}).unwrap();
    bindings
        .set("ids", gpu.upload_ids("ids", &[ids.len()], &ids, VOCABULARY).unwrap())
        .set("sequences", gpu.upload_sequences(sequences).unwrap());
    if let Some(mask) = mask {
        bindings.set("key_mask", gpu.upload_u32(&[shape.sequences, shape.longest_k], mask).unwrap());
    }
    let mut views = Vec::new();
    for (name, _, element, layout) in program.tensors().filter(|(_, role, ..)| *role == Role::Output) {
        let view = gpu.upload_floats(element, layout.sizes(), &vec![f32::NAN; layout.len()]).unwrap();
        bindings.set(name, view.clone());
        views.push((name.to_owned(), view));
    }
    gpu.run(&program.bind(&bindings).unwrap()).unwrap();

    let inputs = CausalInputs { ids: &ids, sequences, key_mask: mask };
    let narrow = model.host_weights::<f32>(&checkpoint, &outputs).unwrap();
    let narrow = model.reference(&narrow.weights().unwrap(), &inputs, &outputs).unwrap();
    let wide = model.host_weights::<f64>(&checkpoint, &outputs).unwrap();
    let wide = model.reference(&wide.weights().unwrap(), &inputs, &outputs).unwrap();
    assert_eq!(views.len(), outputs.len());
    for (name, view) in views {
        let wide = &wide[&name];
        // What WGSL leaves to exp and inverseSqrt, and in f16 the rounding of what is stored, layer after layer.
        let floor = largest(wide) * if element == Element::F16 { 2e-2 } else { 4e-6 };
        let found = gpu.read_f32(&view).unwrap();
        assert_close(&format!("{name} of {text} in {element:?}"), &found, &narrow[&name], wide, floor);
    }
    wide
}

/// Keys of a Qwen2 with a window of four tokens in the layers that `which` says.
fn slides(which: &str) -> String {
    format!(r#", "use_sliding_window": true, "sliding_window": 4, {which}"#)
}

/// A model with Llama's keys.
fn of_family(family: &str, sizes: [usize; 6], more: &str) -> String {
    llama(sizes, more).replace("llama", family)
}

/// Configurations that differ in all that these models differ in.
fn configs() -> Vec<String> {
    let stretched = r#", "rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16}, "attention_bias": true, "tie_word_embeddings": true"#;
    let linear = r#", "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 100.0}, "mlp_bias": true"#;
    vec![
        gpt2([24, 4, 40, 2], ""),
        gpt2([15, 3, 29, 1], r#", "tie_word_embeddings": false, "scale_attn_weights": false"#),
        llama([24, 4, 2, 8, 36, 2], stretched),
        llama([20, 3, 1, 6, 29, 3], linear),
        of_family("mistral", [24, 4, 2, 8, 36, 2], r#", "sliding_window": 5"#),
        of_family("qwen2", [24, 4, 2, 6, 36, 2], r#", "tie_word_embeddings": true"#),
    ]
}

/// Rule: every output of every configuration is the reference's, from padded, packed and masked batches.
#[test]
fn every_output_is_the_references() {
    for text in configs() {
        compare(on(), Element::F32, &text, &Sequences::padded(&[11, 4, 8], 11).unwrap(), None);
        compare(on(), Element::F32, &text, &Sequences::packed(&[1, 9, 3]).unwrap(), None);
    }
    let mask: Vec<u32> = (0..3 * 7).map(|i| u32::from(i % 7 == 0 || i % 3 != 1)).collect();
    compare(on(), Element::F32, &configs()[2], &Sequences::padded(&[7, 7, 7], 7).unwrap(), Some(&mask));
    for text in [&configs()[0], &configs()[2]] {
        compare(on(), Element::F16, text, &Sequences::packed(&[5, 9]).unwrap(), None);
        compare(on_core(), Element::F16, text, &Sequences::padded(&[5, 9], 9).unwrap(), None);
    }
}

/// Rule: a text that goes into a cache in pieces has the rows of the forward pass, by the same weights.
#[test]
fn prefill_is_the_forward_pass() {
    let (gpu, kernels) = (&on().gpu, &on().kernels);
    for text in configs() {
        let length = 13;
        let expected = compare(on(), Element::F32, &text, &Sequences::packed(&[length]).unwrap(), None);
        let checkpoint = checkpoint(&text);
        let model = CausalModel::new(&checkpoint).unwrap();
        let expected = &expected[&Output::Hidden(model.n_layers).name()];
        let generator = model.generator();
        let inputs = GeneratorInputs::new(GeneratorCaches::new(2, length), Element::F32);
        let pieces = [5, 7, 1];
        let shape = PrefillShape { sequences: 1, rows: 7, longest: 7, hidden: true };
        let program = generator.prefill(kernels, &inputs, &shape).unwrap();
        let mut bindings = gpu.upload_causal(&[&program], &checkpoint, &model, |_| {}).unwrap();
        gpu.allocate(&program, &mut bindings).unwrap();
        let all = ids(length, 0, VOCABULARY);
        let mut past = 0;
        for new in pieces {
            let rows = CachedRows { slot: 1, past, new };
            let mut piece = all[past..past + new].to_vec();
            piece.resize(7, 0);
            let sequences = inputs.caches.of_texts(&generator).sequences(&[rows]).unwrap();
            bindings
                .set("ids", gpu.upload_u32(&[7], &piece).unwrap())
                .set("sequences", gpu.upload_sequences(&sequences).unwrap());
            gpu.run(&program.bind(&bindings).unwrap()).unwrap();
            let width = model.embedding.d_model;
            let found = gpu.read_f32(bindings.get("y").unwrap()).unwrap();
            for (i, found) in found.iter().take(new * width).enumerate() {
                let expected = expected[past * width + i];
                assert!(
                    (f64::from(*found) - expected).abs() < 2e-5,
                    "{text}: row {}: {found}, {expected}",
                    past + i / width
                );
            }
            past += new;
        }
    }
}

/// Rule: a program has the layers and weights that its outputs need, and no others; what cannot be is refused.
#[test]
fn programs_have_what_outputs_need() {
    for text in configs() {
        let model = model(&text).unwrap();
        let inputs = Inputs::new(BatchShape::padded(2, 5));
        let weights = |outputs: &[Output]| {
            let program = model.program(&on().kernels, &inputs, outputs).unwrap();
            let of_role = program.tensors().filter(|(_, role, ..)| *role == Role::Weight);
            of_role.map(|(name, ..)| name.to_owned()).collect::<Vec<_>>()
        };
        let has = |names: &[String], part: &str| names.iter().any(|name| name.starts_with(part));
        let none = weights(&[Output::Hidden(0)]);
        assert!(!has(&none, "layers.") && !has(&none, "norm.") && !has(&none, "lm_head"));
        assert!(!has(&weights(&[Output::Attention(0)]), "layers.1.") && !has(&weights(&[Output::Attention(0)]), "norm."));
        let (all, map) = (weights(&every_output(model.n_layers)), model.weights());
        assert!(all.iter().all(|name| map.get(name).is_some()) && map.iter().count() == all.len());
        assert!(all.iter().any(|name| name == "lm_head.weight") != model.tied);

        let refused = |outputs: &[Output]| model.program(&on().kernels, &inputs, outputs).map(drop).unwrap_err().to_string();
        assert_eq!(refused(&[]), "outputs: expected at least one, found 0");
        assert!(refused(&[Output::Hidden(model.n_layers + 1)]).starts_with("outputs: expected layers of"));
        let weights = model.program(&on().kernels, &inputs.clone().with_attention_weights(), &[Output::Logits]);
        assert!(matches!(weights, Err(Error::Option { .. })));
        let long = model.program(&on().kernels, &Inputs::new(BatchShape::padded(1, POSITIONS + 1)), &[Output::Logits]);
        assert_eq!(long.map(drop).unwrap_err().to_string(), "longest sequence: expected at most 24 positions, found 25");
    }
}

/// Rule: a projection that a checkpoint has beside another token table is not tied to that, whatever the configuration says.
#[test]
fn a_projection_of_its_own_is_not_tied() {
    let tie = r#", "tie_word_embeddings": true"#;
    for (text, tokens) in [
        (gpt2([24, 4, 40, 1], tie), "transformer.wte.weight"),
        (llama([24, 4, 2, 8, 36, 1], tie), "model.embed_tokens.weight"),
    ] {
        let tied = |tensors: checkpoints::Tensors| CausalModel::new(&tensors.checkpoint(&text, Dtype::F32)).unwrap().tied;
        assert!(tied(checkpoints::causal(&text)));
        assert!(tied(checkpoints::causal(&text).with_copy(tokens, "lm_head.weight")));
        assert!(!tied(checkpoints::causal(&text).with_table("lm_head.weight", VOCABULARY, 24)));
    }
}

/// Rule: a configuration that the crate cannot run is refused by its key.
#[test]
fn what_does_not_fit_is_named() {
    let scaled = |scaling: &str| llama([24, 4, 2, 8, 36, 2], &format!(r#", "rope_scaling": {scaling}"#));
    let (small_gpt2, small_llama) = ([24, 4, 40, 2], [24, 4, 2, 8, 36, 2]);
    for (text, key) in [
        (gpt2(small_gpt2, r#", "model_type": "gptj""#), "model_type"),
        (gpt2(small_gpt2, r#", "scale_attn_by_inverse_layer_idx": true"#), "scale_attn_by_inverse_layer_idx"),
        (gpt2(small_gpt2, r#", "reorder_and_upcast_attn": true"#), "reorder_and_upcast_attn"),
        (gpt2(small_gpt2, r#", "add_cross_attention": true"#), "add_cross_attention"),
        (gpt2(small_gpt2, r#", "activation_function": "mish""#), "activation_function"),
        (gpt2(small_gpt2, r#", "layer_norm_epsilon": -1"#), "layer_norm_epsilon"),
        (gpt2(small_gpt2, r#", "is_causal": false"#), "is_causal"),
        (gpt2(small_gpt2, r#", "sliding_window": 4"#), "sliding_window"),
        (gpt2(small_gpt2, r#", "num_hidden_layers": 1"#), "num_hidden_layers"),
        (llama(small_llama, r#", "is_causal": false"#), "is_causal"),
        (llama(small_llama, r#", "attention_chunk_size": 4"#), "attention_chunk_size"),
        (llama(small_llama, r#", "sliding_window": 4"#), "sliding_window"),
        (of_family("qwen2", small_llama, &slides(r#""max_window_layers": 1"#)), "sliding_window"),
        (of_family("qwen2", small_llama, &slides(r#""max_window_layers": -1"#)), "max_window_layers"),
        (of_family("qwen2", small_llama, &slides(r#""layer_types": ["sliding_attention"]"#)), "layer_types"),
        (of_family("qwen2", small_llama, &slides(r#""layer_types": [1, 2]"#)), "layer_types"),
        (of_family("mistral", small_llama, "").replace("num_key_value_heads", "none"), "num_key_value_heads"),
        (gpt2([24, 5, 40, 2], ""), "n_head"),
        (gpt2(small_gpt2, r#", "n_positions": null"#), "n_positions"),
        (gpt2(small_gpt2, r#", "n_layer": 5000"#), "n_layer"),
        (llama([24, 4, 3, 8, 36, 2], ""), "num_key_value_heads"),
        (llama([24, 4, 2, 7, 36, 2], ""), "head_dim"),
        (llama(small_llama, r#", "head_dim": null, "hidden_size": 26"#), "num_attention_heads"),
        (llama(small_llama, r#", "hidden_act": "xielu""#), "hidden_act"),
        (llama(small_llama, r#", "rope_theta": 0"#), "rope_theta"),
        (llama(small_llama, r#", "rms_norm_eps": -1"#), "rms_norm_eps"),
        (scaled("7"), "rope_scaling"),
        (scaled(r#"{"type": "longrope", "factor": 2.0}"#), "rope_scaling: type"),
        (scaled(r#"{"rope_type": "dynamic", "factor": 0.5}"#), "rope_scaling: factor"),
        (scaled(r#"{"rope_type": "yarn", "factor": 2.0}"#), "rope_scaling: rope_type"),
        (scaled(r#"{"rope_type": "linear"}"#), "rope_scaling: factor"),
        (scaled(r#"{"rope_type": "linear", "factor": 0.5}"#), "rope_scaling: factor"),
        (scaled(r#"{"rope_type": "default", "partial_rotary_factor": 0.5}"#), "rope_scaling: partial_rotary_factor"),
        (
            scaled(r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}"#),
            "rope_scaling: high_freq_factor",
        ),
        (
            scaled(r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}"#),
            "rope_scaling: original_max_position_embeddings",
        ),
    ] {
        let found = model(&text).unwrap_err().to_string();
        assert!(found.starts_with(&format!("config.json: {key}: expected")), "{found} for {text}");
    }

    let llama = model(&scaled(r#"{"type": "linear", "factor": 2.0}"#)).unwrap();
    assert_eq!(llama.frequencies.scaling, RotaryScaling::Linear { factor: 2.0 });
    let dynamic = model(&scaled(r#"{"type": "dynamic", "factor": 2.0}"#)).unwrap();
    assert_eq!(dynamic.frequencies.scaling, RotaryScaling::None);
    // What both spellings say is what the older one says, but for an empty one; sizes of the whole model come first.
    let linear = r#"{"rope_type": "linear", "factor": 4.0}"#;
    for (parameters, scaling, found) in [
        (linear, r#"{"rope_type": "default"}"#, RotaryScaling::None),
        ("{}", linear, RotaryScaling::Linear { factor: 4.0 }),
        (linear, "{}", RotaryScaling::Linear { factor: 4.0 }),
    ] {
        let more = format!(r#", "rope_parameters": {parameters}, "rope_scaling": {scaling}"#);
        assert_eq!(model(&self::llama(small_llama, &more)).unwrap().frequencies.scaling, found, "{more}");
    }
    let more = r#", "original_max_position_embeddings": 64, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}"#;
    let scaling = model(&self::llama(small_llama, more)).unwrap().frequencies.scaling;
    assert!(matches!(scaling, RotaryScaling::Llama3 { original, .. } if original == 64.0), "{scaling:?}");
    let short = llama.with_rotary_positions(9);
    assert_eq!(short.positions(), Some(9));
    assert_eq!(short.rotary_table().unwrap().map(|(sizes, table)| (sizes, table.len())), Some(([9, 8], 72)));
    assert_eq!(model(&gpt2(small_gpt2, "")).unwrap().rotary_table().unwrap(), None);
    let wide = model(&gpt2(small_gpt2, r#", "n_inner": null"#)).unwrap();
    assert_eq!(wide.layer.feed_forward.d_ff, 96);
}

/// Rule: a window is what the Transformers library makes of a family's keys: of W tokens, a token and the W − 1 before it.
#[test]
fn windows_are_those_of_the_family() {
    let all = r#""layer_types": ["sliding_attention", "sliding_attention"]"#;
    for (family, more, expected) in [
        ("mistral", r#", "sliding_window": 5"#, Some(4)),
        ("mistral", r#", "sliding_window": 1"#, Some(0)),
        ("mistral", r#", "sliding_window": null"#, None),
        ("mistral", r#", "max_position_embeddings": 9000"#, Some(4095)),
        ("mistral", "", None),
        ("qwen2", r#", "sliding_window": 4"#, None),
        ("qwen2", &slides(all).replace("true", "false"), None),
        ("qwen2", &slides(all), Some(3)),
        ("qwen2", &slides(r#""max_window_layers": 0"#), Some(3)),
        ("qwen2", &slides(r#""max_window_layers": 2"#), None),
        ("qwen2", &slides(r#""max_position_embeddings": 4, "max_window_layers": 1"#), None),
        ("llama", r#", "sliding_window": 24"#, None),
    ] {
        let model = model(&of_family(family, [24, 4, 2, 8, 36, 2], more)).unwrap();
        assert_eq!(model.layer.attention.options.window_left, expected, "{family}{more}");
    }
}
