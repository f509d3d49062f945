//! BERT under its checkpoint's names: the GPU against the reference, padded, packed and masked, in f32 and f16; what is refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

#[path = "common/checkpoints.rs"]
mod checkpoints;

use std::collections::BTreeMap;

use checkpoints::{BertSizes, POSITIONS, VOCABULARY, bert_config};
use common::{On, assert_close, largest, on, on_core, on_typed};
use safetensors::tensor::Dtype;
use tileformer::layers::Inputs;
use tileformer::models::bert::{Bert, BertInputs, Output};
use tileformer::models::{Checkpoint, Config, Source};
use tileformer::{BatchShape, Element, Error, Program, Sequences};

/// The table of a masked-language head that has its own.
const MLM_TOKENS: &str = "cls.predictions.decoder.weight";

/// A checkpoint of random weights with every head, its names beginning with `prefix`.
fn checkpoint(sizes: BertSizes, prefix: &str, dtype: Dtype, more: &str) -> Checkpoint {
    let mut tensors = checkpoints::bert(sizes, prefix);
    if more.contains(r#""tie_word_embeddings": false"#) {
        tensors = tensors.with_table(MLM_TOKENS, VOCABULARY, sizes[0]);
    }
    tensors.checkpoint(&bert_config(sizes, more), dtype)
}

/// Every output of a model of `layers` layers.
fn every_output(layers: usize) -> Vec<Output> {
    let mut all: Vec<Output> = (0..=layers).map(Output::Hidden).collect();
    all.extend((0..layers).map(Output::Attention));
    all.extend([Output::Pooled, Output::Embedding, Output::MaskedLanguage, Output::NextSentence]);
    all.extend([Output::SequenceClasses, Output::TokenClasses, Output::Spans]);
    all
}

/// Runs a program over these inputs and reads what it wrote.
fn run(on: &On, program: &Program, bert: &Bert, checkpoint: &Checkpoint, inputs: &BertInputs) -> BTreeMap<String, Vec<f32>> {
    let gpu = &on.gpu;
    let mut bindings = gpu.upload_checkpoint(&[program], checkpoint, &bert.weights(), |_| {}).unwrap();
    let rows = [inputs.ids.len()];
    bindings
        .set("ids", gpu.upload_ids("ids", &rows, inputs.ids, VOCABULARY).unwrap())
        .set("segment_ids", gpu.upload_u32(&rows, inputs.segment_ids).unwrap())
        .set("sequences", gpu.upload_sequences(inputs.sequences).unwrap());
    if let Some(mask) = inputs.key_mask {
        bindings.set("key_mask", gpu.upload_u32(&[inputs.sequences.as_slice().len(), mask.len() / 3], mask).unwrap());
    }
    let mut views = Vec::new();
    for (name, role, element, layout) in program.tensors() {
        if role == tileformer::Role::Output {
            let view = gpu.upload_floats(element, layout.sizes(), &vec![f32::NAN; layout.len()]).unwrap();
            bindings.set(name, view.clone());
            views.push((name.to_owned(), view));
        }
    }
    gpu.run(&program.bind(&bindings).unwrap()).unwrap();
    views.into_iter().map(|(name, view)| (name, gpu.read_f32(&view).unwrap())).collect()
}

struct Text {
    ids: Vec<u32>,
    segments: Vec<u32>,
}

fn text(rows: usize) -> Text {
    let word = |i: usize| (i * 7 + i * i % 11) as u32;
    Text {
        ids: (0..rows).map(|i| word(i) % VOCABULARY as u32).collect(),
        segments: (0..rows).map(|i| word(i + 3) % 2).collect(),
    }
}

/// Every output against the reference's, computed in f64.
fn compare(
    on: &On,
    element: Element,
    sizes: BertSizes,
    checkpoint: &Checkpoint,
    sequences: &Sequences,
    mask: Option<&[u32]>,
) {
    let mut bert = Bert::new(checkpoint).unwrap();
    bert.layer.attention.options.key_mask = mask.is_some();
    let mut outputs = every_output(sizes[3]);
    outputs.retain(|output| mask.is_none() || *output != Output::Embedding);
    let shape = sequences.shape().to_self();
    let text = text(shape.q_rows);
    let inputs = BertInputs { ids: &text.ids, segment_ids: &text.segments, sequences, key_mask: mask };
    let program = bert.program(&on.kernels, &Inputs::new(shape).with_storage(element), &outputs).unwrap();
    let found = run(on, &program, &bert, checkpoint, &inputs);

    let narrow = bert.host_weights::<f32>(checkpoint, &outputs).unwrap();
    let narrow = bert.reference(&narrow.weights().unwrap(), &inputs, &outputs).unwrap();
    let wide = bert.host_weights::<f64>(checkpoint, &outputs).unwrap();
    let wide = bert.reference(&wide.weights().unwrap(), &inputs, &outputs).unwrap();
    assert_eq!(found.len(), outputs.len());
    for output in outputs {
        let name = output.name();
        let wide = &wide[&name];
        // What WGSL leaves to exp and inverseSqrt, and in f16 the rounding of what is stored, layer after layer.
        let floor = largest(wide) * if element == Element::F16 { 2e-2 } else { 4e-6 };
        assert_close(&format!("{name} of {sizes:?} in {element:?}"), &found[&name], &narrow[&name], wide, floor);
    }
}

/// Rule: every output of every size is the reference's, from padded, packed and masked batches, from names with and without a
/// prefix.
#[test]
fn every_output_is_the_references() {
    let sizes = [[24, 4, 40, 2, 3], [20, 2, 36, 3, 2], [15, 3, 29, 1, 5]];
    for (number, sizes) in sizes.into_iter().enumerate() {
        let prefix = ["bert.", "", "model."][number];
        let c = checkpoint(sizes, prefix, Dtype::F32, "");
        compare(on(), Element::F32, sizes, &c, &Sequences::padded(&[11, 4, 8], 11).unwrap(), None);
        compare(on(), Element::F32, sizes, &c, &Sequences::packed(&[1, 9, 3]).unwrap(), None);
    }
    let c = checkpoint(sizes[0], "bert.", Dtype::F32, r#", "tie_word_embeddings": false"#);
    let mask: Vec<u32> = (0..3 * 7).map(|i| u32::from(i % 7 == 0 || i % 3 != 1)).collect();
    compare(on(), Element::F32, sizes[0], &c, &Sequences::padded(&[7, 7, 7], 7).unwrap(), Some(&mask));
    if let Some(on) = on_typed() {
        compare(on, Element::F16, sizes[0], &c, &Sequences::packed(&[5, 9]).unwrap(), None);
    }
    let (even, c) = ([24, 4, 40, 2, 4], checkpoint([24, 4, 40, 2, 4], "", Dtype::F16, ""));
    compare(on_core(), Element::F16, even, &c, &Sequences::padded(&[5, 9], 9).unwrap(), None);
}

/// Rule: a head's table beside another token table is not tied to that, whatever the configuration says, and its bias is the head's own.
#[test]
fn a_table_of_its_own_is_not_tied() {
    let sizes = [24, 4, 40, 1, 2];
    let tensors = || checkpoints::bert(sizes, "bert.");
    for (tensors, tied) in [
        (tensors(), true),
        (tensors().with_copy("bert.embeddings.word_embeddings.weight", MLM_TOKENS), true),
        (tensors().with_table(MLM_TOKENS, VOCABULARY, sizes[0]), false),
    ] {
        let tensors = tensors.with_copy("cls.predictions.bias", "cls.predictions.decoder.bias");
        let c = tensors.with_vector("cls.predictions.bias", VOCABULARY).checkpoint(&bert_config(sizes, ""), Dtype::F32);
        let model = Bert::new(&c).unwrap();
        assert_eq!(model.tied, tied);
        let weights = model.weights();
        let bias = weights.get("mlm.bias").unwrap().resolve(&c).unwrap();
        let own = Source::tensor("cls.predictions.decoder.bias");
        let [own, bias] = [own.resolve(&c).unwrap(), bias].map(|found| {
            let mut values = vec![0.0; found.len()];
            found.read(0, &mut values);
            values
        });
        assert!(own == bias);
        compare(on(), Element::F32, sizes, &c, &Sequences::packed(&[5, 3]).unwrap(), None);
    }
}

/// Rule: a program has the layers and weights that its outputs need, and no others.
#[test]
fn programs_have_what_outputs_need() {
    let sizes = [24, 4, 40, 3, 2];
    let bert = Bert::from_config(&Config::parse("config.json", &bert_config(sizes, "")).unwrap()).unwrap();
    let inputs = Inputs::new(BatchShape::padded(2, 5));
    let weights = |outputs: &[Output]| {
        let program = bert.program(&on().kernels, &inputs, outputs).unwrap();
        let of_role = program.tensors().filter(|(_, role, ..)| *role == tileformer::Role::Weight);
        of_role.map(|(name, ..)| name.to_owned()).collect::<Vec<_>>()
    };
    let has = |names: &[String], part: &str| names.iter().any(|name| name.contains(part));
    let early = weights(&[Output::Hidden(1), Output::Attention(1)]);
    assert!(has(&early, "layers.1.") && !has(&early, "layers.2.") && !has(&early, "pooler"));
    assert!(!has(&weights(&[Output::Hidden(0)]), "layers."));
    assert!(!has(&weights(&[Output::MaskedLanguage]), "mlm.decoder"));
    assert!(has(&weights(&[Output::NextSentence]), "pooler") && !has(&weights(&[Output::Embedding]), "pooler"));
    let map = bert.weights();
    assert!(weights(&every_output(3)).iter().all(|name| map.get(name).is_some()));

    let refused = |outputs: &[Output]| bert.program(&on().kernels, &inputs, outputs).map(drop).unwrap_err().to_string();
    assert_eq!(refused(&[]), "outputs: expected at least one, found 0");
    assert_eq!(refused(&[Output::Attention(3)]), "outputs: expected layers of 3, found 4");
    assert!(refused(&[Output::Hidden(usize::MAX)]).starts_with("outputs"));
    let weights = bert.program(&on().kernels, &inputs.clone().with_attention_weights(), &[Output::Embedding]);
    assert!(matches!(weights, Err(Error::Option { .. })));
    let long = bert.program(&on().kernels, &Inputs::new(BatchShape::padded(1, POSITIONS + 1)), &[Output::Embedding]);
    assert_eq!(long.map(drop).unwrap_err().to_string(), "longest sequence: expected at most 24 positions, found 25");
    let mut masked = bert.clone();
    masked.layer.attention.options.key_mask = true;
    let masked = masked.program(&on().kernels, &inputs, &[Output::Embedding]).map(drop).unwrap_err().to_string();
    assert_eq!(masked, "embedding: expected sequences with lengths alone, found a key mask");
}

/// Rule: a configuration that the crate cannot run is refused by its key, a checkpoint that does not fit it by its tensor.
#[test]
fn what_does_not_fit_is_named() {
    let sizes = [24, 4, 40, 2, 2];
    let read = |text: String| Bert::from_config(&Config::parse("config.json", &text)?);
    assert!(read(bert_config(sizes, "")).is_ok());
    for (more, key) in [
        (r#""model_type": "roberta""#, "model_type"),
        (r#""position_embedding_type": "relative_key""#, "position_embedding_type"),
        (r#""hidden_act": "quick_gelu""#, "hidden_act"),
        (r#""is_decoder": true"#, "is_decoder"),
        (r#""num_attention_heads": 5"#, "num_attention_heads"),
        (r#""num_hidden_layers": 0"#, "num_hidden_layers"),
        (r#""num_hidden_layers": 1000000000"#, "num_hidden_layers"),
        (r#""hidden_size": 1e300"#, "hidden_size"),
        (r#""vocab_size": null"#, "vocab_size"),
        (r#""intermediate_size": -3"#, "intermediate_size"),
        (r#""layer_norm_eps": "small""#, "layer_norm_eps"),
        (r#""layer_norm_eps": -1"#, "layer_norm_eps"),
        (r#""id2label": []"#, "id2label"),
    ] {
        let found = read(bert_config(sizes, &format!(", {more}"))).unwrap_err().to_string();
        assert!(found.starts_with(&format!("config.json: {key}: expected")), "{found}");
    }

    // A model that its checkpoint does not fit: wider, deeper, with more words.
    let c = checkpoint(sizes, "bert.", Dtype::F32, "");
    let refused = |other: BertSizes, more: &str| {
        let bert = read(bert_config(other, more)).unwrap();
        let program =
            bert.program(&on().kernels, &Inputs::new(BatchShape::padded(1, 4)), &[Output::Hidden(other[3])]).unwrap();
        on().gpu.upload_checkpoint(&[&program], &c, &bert.weights(), |_| {}).map(drop).unwrap_err().to_string()
    };
    let deeper = "bert.encoder.layer.2.intermediate.dense.bias: the checkpoint has no tensor of this name";
    assert_eq!(refused([24, 4, 40, 3, 2], ""), deeper);
    let wider = refused([24, 4, 44, 2, 2], "");
    assert_eq!(wider, "bert.encoder.layer.0.intermediate.dense.bias (for layers.0.linear1.bias): expected [44], found [40]");
    let words = refused(sizes, r#", "vocab_size": 48"#);
    assert!(
        words.starts_with("bert.embeddings.word_embeddings.weight (for token_embedding.weight): expected [48, 24]"),
        "{words}"
    );
}
