//! Marian, BART and T5 under their checkpoints' names: the GPU against the reference, padded, packed and masked, in f32 and f16; texts
//! through caches; what is refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

#[path = "common/checkpoints.rs"]
mod checkpoints;
#[path = "common/writing.rs"]
mod writing;

use std::collections::BTreeMap;

use checkpoints::{APART, BART, MARIAN, MT5, Made, POSITIONS, T5, VOCABULARY, ids, seq2seq_config as config};
use common::{On, assert_close, largest, on, on_core};
use safetensors::tensor::Dtype;
use tileformer::layers::Inputs;
use tileformer::models::seq2seq::{Output, Seq2Seq, Seq2SeqInputs};
use tileformer::models::{Checkpoint, Config, Source, t5};
use tileformer::{BatchShape, Element, Error, Role, Sequences};

fn read(text: &str) -> Result<Seq2Seq, Error> {
    Seq2Seq::from_config(&Config::parse("config.json", text)?)
}

/// A checkpoint of random weights.
fn checkpoint(made: &Made) -> Checkpoint {
    checkpoints::seq2seq(made).checkpoint(&config(made), Dtype::F32)
}

fn every_output(model: &Seq2Seq) -> Vec<Output> {
    let (encoder, decoder) = (model.encoder.n_layers, model.decoder.n_layers);
    let mut all: Vec<Output> = (0..=encoder).map(Output::EncoderHidden).collect();
    all.extend((0..=decoder).map(Output::DecoderHidden));
    all.extend((0..encoder).map(Output::EncoderAttention));
    all.extend((0..decoder).flat_map(|n| [Output::DecoderAttention(n), Output::CrossAttention(n)]));
    all.push(Output::Logits);
    all
}

/// Every output against the reference's, computed in f64.
fn compare(on: &On, element: Element, made: &Made, source: &Sequences, target: &Sequences, mask: Option<&[u32]>) {
    compare_stored(on, element, made, &checkpoint(made), source, target, mask);
}

/// The same of what is stored.
fn compare_stored(
    on: &On,
    element: Element,
    made: &Made,
    checkpoint: &Checkpoint,
    source: &Sequences,
    target: &Sequences,
    mask: Option<&[u32]>,
) {
    let mut model = Seq2Seq::new(checkpoint).unwrap();
    model.encoder.layer.attention.options.key_mask = mask.is_some();
    model.decoder.layer.cross_attention.options.key_mask = mask.is_some();
    let outputs = every_output(&model);
    let (from, to) = (source.shape().to_self(), target.shape().to_self());
    let shape = BatchShape { k_rows: from.k_rows, longest_k: from.longest_k, ..to };
    let source_ids = ids(from.q_rows, 1, model.source.vocabulary);
    let target_ids = ids(to.q_rows, 2, model.target.vocabulary);

    let program = model.program(&on.kernels, &Inputs::new(shape).with_storage(element), &outputs).unwrap();
    let gpu = &on.gpu;
    let mut bindings = gpu.upload_checkpoint(&[&program], checkpoint, &model.weights().unwrap(), |_| {}).unwrap();
    bindings
        .set("source.ids", gpu.upload_u32(&[source_ids.len()], &source_ids).unwrap())
        .set("target.ids", gpu.upload_u32(&[target_ids.len()], &target_ids).unwrap())
        .set("source.sequences", gpu.upload_sequences(source).unwrap())
        .set("target.sequences", gpu.upload_sequences(target).unwrap())
        .set("cross.sequences", gpu.upload_sequences(&target.over(source).unwrap()).unwrap());
    if let Some(mask) = mask {
        for name in ["source.key_mask", "cross.key_mask"] {
            bindings.set(name, gpu.upload_u32(&[from.sequences, from.longest_k], mask).unwrap());
        }
    }
    let mut views = Vec::new();
    for (name, _, element, layout) in program.tensors().filter(|(_, role, ..)| *role == Role::Output) {
        let view = gpu.upload_floats(element, layout.sizes(), &vec![f32::NAN; layout.len()]).unwrap();
        bindings.set(name, view.clone());
        views.push((name.to_owned(), view));
    }
    gpu.run(&program.bind(&bindings).unwrap()).unwrap();
    let found: BTreeMap<_, _> = views.into_iter().map(|(name, view)| (name, gpu.read_f32(&view).unwrap())).collect();

    let inputs = Seq2SeqInputs { source_ids: &source_ids, source, target_ids: &target_ids, target, key_mask: mask };
    let narrow = model.host_weights::<f32>(checkpoint, &outputs).unwrap();
    let narrow = model.reference(&narrow.weights().unwrap(), &inputs, &outputs).unwrap();
    let wide = model.host_weights::<f64>(checkpoint, &outputs).unwrap();
    let wide = model.reference(&wide.weights().unwrap(), &inputs, &outputs).unwrap();
    assert_eq!(found.len(), outputs.len());
    for output in outputs {
        let name = output.name();
        let wide = &wide[&name];
        // What WGSL leaves to exp and inverseSqrt, and in f16 the rounding of what is stored, layer after layer.
        let floor = largest(wide) * if element == Element::F16 { 2e-2 } else { 4e-6 };
        assert_close(&format!("{name} of {made:?} in {element:?}"), &found[&name], &narrow[&name], wide, floor);
    }
}

/// Rule: every output of every family is the reference's, from padded, packed and masked batches, with tables and projections
/// shared or apart.
#[test]
fn every_output_is_the_references() {
    let padded = |lengths: &[usize], longest: usize| Sequences::padded(lengths, longest).unwrap();
    let packed = |lengths: &[usize]| Sequences::packed(lengths).unwrap();
    for made in [MARIAN, BART, APART, T5, MT5] {
        compare(on(), Element::F32, &made, &padded(&[11, 4, 8], 11), &padded(&[7, 7, 3], 7), None);
        compare(on(), Element::F32, &made, &packed(&[1, 9, 3]), &packed(&[5, 1, 12]), None);
    }
    let mask: Vec<u32> = (0..3 * 7).map(|i| u32::from(i % 7 == 0 || i % 3 != 1)).collect();
    for made in [BART, T5] {
        compare(on(), Element::F32, &made, &padded(&[7, 7, 7], 7), &padded(&[9, 2, 5], 9), Some(&mask));
    }
    compare(on(), Element::F16, &MARIAN, &packed(&[5, 9]), &padded(&[4, 6], 6), None);
    compare(on_core(), Element::F16, &BART, &padded(&[5, 9], 9), &packed(&[3, 8]), None);
    compare(on(), Element::F16, &MT5, &packed(&[5, 9]), &padded(&[4, 6], 6), None);
    compare(on_core(), Element::F16, &MT5, &padded(&[5, 9], 9), &packed(&[3, 8]), None);
}

fn source_of_two() -> Sequences {
    Sequences::packed(&[2]).unwrap()
}

/// Rule: a table that a checkpoint has is the one that is read, tied or not; those that are the same are shared, and a table that is
/// missing is the shared one.
#[test]
fn tables_are_those_of_the_checkpoint() {
    let [source, target] = [[3, 5], [4, 2]].map(|lengths| Sequences::packed(&lengths).unwrap());
    let (encoder, decoder, head) =
        ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight");
    let c = MARIAN.sizes[0];
    let untied = Made { more: r#", "tie_word_embeddings": false"#, ..MARIAN };
    for (made, own, copies, shared, tied) in [
        (MARIAN, &[][..], &[encoder, decoder, head][..], true, true),
        (MARIAN, &[encoder, decoder], &[], false, false),
        (MARIAN, &[encoder, decoder], &[head], false, false),
        (MARIAN, &[head], &[], true, false),
        (untied, &[encoder, decoder], &[], false, false),
        (untied, &[], &[encoder, decoder], true, false),
    ] {
        let mut tensors = own.iter().fold(checkpoints::seq2seq(&made), |t, name| t.with_table(name, VOCABULARY, c));
        tensors = copies.iter().fold(tensors, |t, name| t.with_copy("model.shared.weight", name));
        let stored = tensors.checkpoint(&config(&made), Dtype::F32);
        let model = Seq2Seq::new(&stored).unwrap();
        assert_eq!((model.shared, model.tied), (shared, tied), "{made:?} with {own:?} and {copies:?}");
        compare_stored(on(), Element::F32, &made, &stored, &source, &target, None);
        let weights = model.weights().unwrap();
        for (ours, theirs) in [("source", encoder), ("target", decoder)] {
            let read = weights.get(&format!("{ours}.token_embedding.weight")).unwrap();
            let read = read.resolve(&stored).unwrap();
            let wanted = if stored.has(theirs) { theirs } else { "model.shared.weight" };
            let wanted = Source::tensor(wanted);
            let values = [read, wanted.resolve(&stored).unwrap()].map(|found| {
                let mut values = vec![0.0; found.len()];
                found.read(0, &mut values);
                values
            });
            assert!(values[0] == values[1], "{ours} of {made:?} with {own:?} and {copies:?}");
        }
    }
    // T5's logits are scaled where its configuration was tied, whatever the checkpoint has; mT5's never are.
    let one = Made { more: r#", "d_kv": 12, "tie_word_embeddings": false, "scale_decoder_outputs": true"#, ..T5 };
    let tied = Made { more: r#", "d_kv": 12, "scale_decoder_outputs": true"#, ..MT5 };
    for (made, own, scaled) in [
        (T5, &[head][..], true),
        (T5, &[], true),
        (one, &[], true),
        (MT5, &[encoder, decoder], false),
        (MT5, &[], false),
        (tied, &[], false),
    ] {
        let tensors = own.iter().fold(checkpoints::seq2seq(&made), |t, name| t.with_table(name, VOCABULARY, made.sizes[0]));
        let stored = tensors.checkpoint(&config(&made), Dtype::F32);
        let model = Seq2Seq::new(&stored).unwrap();
        let untied = own.contains(&head) || made.more.contains("tie_word_embeddings");
        assert_eq!((model.tied, model.shared), (!untied, own.len() < 2), "{made:?}");
        compare_stored(on(), Element::F32, &made, &stored, &source, &target, None);
        let host = model.host_weights::<f64>(&stored, &[Output::Logits]).unwrap();
        let (outputs, ids) = ([Output::DecoderHidden(model.decoder.n_layers), Output::Logits], [3, 1, 4]);
        let three = Sequences::packed(&[3]).unwrap();
        let inputs = Seq2SeqInputs { source_ids: &ids, source: &three, target_ids: &ids, target: &three, key_mask: None };
        let found = model.reference(&host.weights().unwrap(), &inputs, &outputs).unwrap();
        let rows = &found[&outputs[0].name()];
        let table = Source::tensor(if untied { head } else { "shared.weight" });
        let table = table.resolve(&stored).unwrap();
        let mut weight = vec![0.0; made.sizes[0]];
        table.read(0, &mut weight);
        let product: f64 = rows.iter().zip(&weight).map(|(x, &w)| x * f64::from(w)).sum();
        let scale = if scaled { (made.sizes[0] as f64).sqrt().recip() } else { 1.0 };
        assert!((found["logits"][0] - scale * product).abs() < 1e-6, "{made:?}: {} of {product}", found["logits"][0]);
    }
    // Whoever changes what is tied, or asks the family itself, gets embeddings that fit.
    let stored = checkpoints::seq2seq(&T5).with_copy("shared.weight", head).checkpoint(&config(&T5), Dtype::F32);
    let own = Seq2Seq::new(&stored).unwrap();
    let from_config = t5::from_config(stored.config()).unwrap();
    let mut untied = own.clone();
    untied.tied = false;
    let logits = [&own, &from_config, &untied].map(|model| {
        let host = model.host_weights::<f64>(&stored, &[Output::Logits]).unwrap();
        let inputs = Seq2SeqInputs {
            source_ids: &[3, 1],
            source: &source_of_two(),
            target_ids: &[0, 7],
            target: &source_of_two(),
            key_mask: None,
        };
        model.reference(&host.weights().unwrap(), &inputs, &[Output::Logits]).unwrap().remove("logits").unwrap()
    });
    for other in &logits[1..] {
        assert!(other.iter().zip(&logits[0]).all(|(a, b)| (a - b).abs() < 1e-6));
    }
    let half = checkpoints::seq2seq(&MARIAN).with_table(decoder, VOCABULARY, c).checkpoint(&config(&MARIAN), Dtype::F32);
    assert!(Seq2Seq::new(&half).unwrap_err().to_string().contains("model.encoder.embed_tokens.weight"));
    let positions = "model.encoder.embed_positions.weight";
    let half = checkpoints::seq2seq(&MARIAN).with_table(positions, POSITIONS, c).checkpoint(&config(&MARIAN), Dtype::F32);
    assert!(Seq2Seq::new(&half).unwrap_err().to_string().contains("model.decoder.embed_positions.weight"));
}

/// Rule: texts that are written token by token, over memories of packed sources, are those that the reference writes.
#[test]
fn texts_are_the_references() {
    const STEPS: usize = 12;
    for made in [MARIAN, BART, APART, T5, MT5] {
        let checkpoint = checkpoint(&made);
        let model = Seq2Seq::new(&checkpoint).unwrap();
        let source = Sequences::packed(&[6, 2, 9]).unwrap();
        let source_ids = ids(17, 3, model.source.vocabulary);
        let written = writing::seq2seq(on(), &checkpoint, Element::F32, &source, &source_ids, STEPS);
        let texts: Vec<Vec<u32>> = written.ids.iter().map(|ids| [&[0], &ids[..]].concat()).collect();

        // What the reference would choose behind each token.
        let target_ids: Vec<u32> = texts.iter().flat_map(|text| &text[..STEPS]).copied().collect();
        let target = Sequences::packed(&[STEPS; 3]).unwrap();
        let host = model.host_weights::<f64>(&checkpoint, &[Output::Logits]).unwrap();
        let inputs = Seq2SeqInputs {
            source_ids: &source_ids,
            source: &source,
            target_ids: &target_ids,
            target: &target,
            key_mask: None,
        };
        let logits =
            model.reference(&host.weights().unwrap(), &inputs, &[Output::Logits]).unwrap().remove("logits").unwrap();
        let chosen = texts.iter().flat_map(|text| &text[1..]);
        for (at, (logits, &id)) in logits.chunks_exact(model.target.vocabulary).zip(chosen).enumerate() {
            let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert!(most - logits[id as usize] < 1e-4, "{made:?}: token {at} of {texts:?}");
        }
        assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    }
}

/// Rule: a program has the layers, inputs and weights that its outputs need, and no others.
#[test]
fn programs_have_what_outputs_need() {
    let model = read(&config(&BART)).unwrap();
    let inputs = Inputs::new(BatchShape::cross(2, 5, 6));
    let names = |outputs: &[Output]| {
        let program = model.program(&on().kernels, &inputs, outputs).unwrap();
        program.tensors().map(|(name, ..)| name.to_owned()).collect::<Vec<_>>()
    };
    let has = |names: &[String], part: &str| names.iter().any(|name| name.starts_with(part));
    let encoded = names(&[Output::EncoderHidden(1)]);
    assert!(has(&encoded, "encoder.layers.0.") && !has(&encoded, "target.ids") && !has(&encoded, "decoder."));
    let embedded = names(&[Output::DecoderHidden(0)]);
    assert!(has(&embedded, "target.ids") && !has(&embedded, "source.") && !has(&embedded, "cross."));
    let early = names(&[Output::CrossAttention(0)]);
    assert!(has(&early, "decoder.layers.0.") && !has(&early, "decoder.layers.1.") && !has(&early, "head"));
    assert!(!has(&names(&every_output(&model)), "source.token_embedding"));

    let refused = |inputs: &Inputs, outputs: &[Output]| {
        model.program(&on().kernels, inputs, outputs).map(drop).unwrap_err().to_string()
    };
    assert_eq!(refused(&inputs, &[]), "outputs: expected at least one, found 0");
    assert_eq!(refused(&inputs, &[Output::CrossAttention(2)]), "outputs: expected layers of the decoder's 2, found 3");
    assert!(refused(&inputs, &[Output::EncoderHidden(usize::MAX)]).starts_with("outputs"));
    assert!(refused(&inputs.clone().with_attention_weights(), &[Output::Logits]).starts_with("inputs"));
    // The first two rows of BART's table are no positions.
    let long = |t: usize, s: usize| refused(&Inputs::new(BatchShape::cross(1, t, s)), &[Output::Logits]);
    assert_eq!(long(POSITIONS + 1, 3), "longest target: expected at most 24 positions, found 25");
    assert_eq!(long(3, POSITIONS + 1), "longest source: expected at most 24 positions, found 25");
}

/// Rule: a configuration that the crate cannot run is refused by its key, a checkpoint that does not fit it by its tensor.
#[test]
fn what_does_not_fit_is_named() {
    let with = |made: &Made, more: &str| {
        let text = config(made);
        format!("{}, {more}}}", text.strip_suffix('}').unwrap())
    };
    let both = [
        r#""model_type": "mbart""#,
        r#""activation_function": "quick_gelu""#,
        r#""normalize_before": true"#,
        r#""add_final_layer_norm": true"#,
        r#""encoder_attention_heads": 7"#,
        r#""decoder_attention_heads": 0"#,
        r#""encoder_layers": 0"#,
        r#""decoder_layers": 100000"#,
        r#""d_model": 1e300"#,
        r#""decoder_ffn_dim": null"#,
        r#""vocab_size": -3"#,
        r#""decoder_vocab_size": 45"#,
        r#""scale_embedding": 2"#,
        r#""decoder_start_token_id": 46"#,
        r#""pad_token_id": -1"#,
        r#""is_causal": false"#,
        r#""num_hidden_layers": 7"#,
        r#""num_attention_heads": 1"#,
        r#""eos_token_id": "end""#,
    ];
    let marian = [r#""static_position_embeddings": false"#, r#""normalize_embedding": true"#];
    let bart = [r#""static_position_embeddings": true"#, r#""normalize_embedding": false"#, r#""extra_pos_embeddings": 1"#];
    let t5 = [
        r#""model_type": "umt5""#,
        r#""is_encoder_decoder": false"#,
        r#""is_decoder": true"#,
        r#""hidden_size": 23"#,
        r#""num_attention_heads": 1"#,
        r#""head_dim": 7"#,
        r#""d_kv": null"#,
        r#""num_heads": 0"#,
        r#""num_decoder_layers": 1025"#,
        r#""layer_norm_epsilon": -1"#,
        r#""feed_forward_proj": "gated-quick_gelu""#,
        r#""feed_forward_proj": "gated""#,
        r#""dense_act_fn": "silu""#,
        r#""is_gated_act": true"#,
        r#""relative_attention_num_buckets": 6"#,
        r#""relative_attention_max_distance": 4"#,
        r#""relative_attention_max_distance": 65537"#,
        r#""scale_decoder_outputs": 1"#,
        r#""pad_token_id": 46"#,
    ];
    for (made, more) in [(MARIAN, &marian[..]), (MARIAN, &both), (BART, &bart), (BART, &both), (T5, &t5)] {
        for more in more {
            let found = read(&with(&made, more)).unwrap_err().to_string();
            let key = more.split('"').nth(1).unwrap();
            assert!(found.starts_with(&format!("config.json: {key}: expected")), "{found}");
        }
    }
    assert!(read(&with(&MARIAN, r#""static_position_embeddings": true"#)).is_ok());

    // A model that its checkpoint does not fit: deeper, wider.
    let c = checkpoint(&MARIAN);
    let refused = |sizes: [usize; 7]| {
        let model = read(&config(&Made { sizes, ..MARIAN })).unwrap();
        let inputs = Inputs::new(BatchShape::cross(1, 4, 4));
        let program = model.program(&on().kernels, &inputs, &[Output::Logits]).unwrap();
        let loaded = on().gpu.upload_checkpoint(&[&program], &c, &model.weights().unwrap(), |_| {});
        loaded.map(drop).unwrap_err().to_string()
    };
    let deeper = refused([24, 4, 3, 40, 36, 2, 2]);
    assert_eq!(deeper, "model.decoder.layers.1.fc1.bias: the checkpoint has no tensor of this name");
    let wider = refused([24, 4, 3, 44, 36, 2, 1]);
    assert_eq!(wider, "model.encoder.layers.0.fc1.bias (for encoder.layers.0.linear1.bias): expected [44], found [40]");
}
