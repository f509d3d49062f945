//! Models of random weights as they would be published, small enough for tests: configurations and checkpoints of every family.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::path::PathBuf;

use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use tileformer::models::causal::CausalModel;
use tileformer::models::seq2seq::Seq2Seq;
use tileformer::models::{Checkpoint, Config};
use tileformer::spec::blocks;
use tileformer::{Element, Error};

use crate::common::{floats, seeded};

pub const VOCABULARY: usize = 46;
pub const POSITIONS: usize = 24;

/// The tensors of a checkpoint.
#[derive(Default)]
pub struct Tensors {
    all: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Tensors {
    /// Adds a tensor of numbers of −`scale` .. `scale` around `middle`.
    fn around(&mut self, name: String, sizes: &[usize], middle: f32, scale: f32) {
        let values = floats(&mut seeded(&name, 7), sizes.iter().product());
        self.all.push((name, sizes.to_vec(), values.into_iter().map(|v| middle + scale * v).collect()));
    }

    /// Adds the weight of a projection of `d_in` columns, or of a table, whose results are around 1.
    fn matrix(&mut self, name: String, sizes: [usize; 2], d_in: usize) {
        self.around(name, &sizes, 0.0, 1.5 / (d_in as f32).sqrt());
    }

    /// Adds weight and bias of a norm.
    fn norm(&mut self, name: &str, size: usize) {
        self.around(format!("{name}.weight"), &[size], 1.0, 0.2);
        self.around(format!("{name}.bias"), &[size], 0.0, 1.0);
    }

    /// The same with one more table, or another one in its place.
    pub fn with_table(mut self, name: &str, rows: usize, columns: usize) -> Self {
        self.all.retain(|(other, ..)| other != name);
        self.matrix(name.to_owned(), [rows, columns], columns);
        self
    }

    /// The same with other numbers in a vector's place.
    pub fn with_vector(mut self, name: &str, size: usize) -> Self {
        self.all.retain(|(other, ..)| other != name);
        self.around(name.to_owned(), &[size], 2.0, 1.0);
        self
    }

    /// The same with another name for a tensor of the same numbers, beside its own.
    pub fn with_copy(mut self, of: &str, name: &str) -> Self {
        let (_, sizes, values) = self.all.iter().find(|(other, ..)| other == of).expect(of).clone();
        self.all.push((name.to_owned(), sizes, values));
        self
    }

    /// The same with what blocks of the weights of projections stand for in their place; GPT-2's matrices are (in, out).
    pub fn in_blocks(mut self, element: Element) -> Self {
        const NO_PROJECTIONS: [&str; 10] =
            ["embed", "shared", "wte", "wpe", "lm_head", "relative", "pooler", "cls.", "classifier", "qa_outputs"];
        let table = |name: &str| NO_PROJECTIONS.iter().any(|part| name.contains(part));
        for (name, sizes, values) in self.all.iter_mut().filter(|(name, sizes, _)| sizes.len() == 2 && !table(name)) {
            let (rows, columns) = (sizes[0], sizes[1]);
            let turn = |values: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect()
            };
            let stored = |values: &[f32], columns: usize| {
                blocks::unpack(element, columns, &blocks::pack(element, columns, values).unwrap()).unwrap()
            };
            *values = match name.starts_with("transformer.h") {
                true => turn(&stored(&turn(values, rows, columns), rows), columns, rows),
                false => stored(values, columns),
            };
        }
        self
    }

    /// The same with NaN in row `id` of the tables whose names have one of these parts: a text has nothing of it, or shows it.
    pub fn with_hole(mut self, id: usize, tables: &[&str]) -> Self {
        for (_, sizes, values) in self.all.iter_mut().filter(|(name, ..)| tables.iter().any(|table| name.contains(table))) {
            values[id * sizes[1]..(id + 1) * sizes[1]].fill(f32::NAN);
        }
        self
    }

    /// As a checkpoint with this `config.json`.
    pub fn checkpoint(&self, config: &str, dtype: Dtype) -> Checkpoint {
        let bytes = |(_, _, values): &(String, Vec<usize>, Vec<f32>)| -> Vec<u8> {
            match dtype {
                Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            }
        };
        let bytes: Vec<Vec<u8>> = self.all.iter().map(bytes).collect();
        let views = self.all.iter().zip(&bytes);
        let views = views.map(|((name, sizes, _), b)| (name, TensorView::new(dtype, sizes.clone(), b).unwrap()));
        let file = safetensors::serialize(views, None).unwrap();
        Checkpoint::from_bytes(config, vec![("model.safetensors".into(), file)]).unwrap()
    }
}

/// A BERT's C, NH, F, layers, labels.
pub type BertSizes = [usize; 5];

pub fn bert_config([c, heads, f, layers, labels]: BertSizes, more: &str) -> String {
    let labels: Vec<String> = (0..labels).map(|i| format!(r#""{i}": "L{i}""#)).collect();
    format!(
        r#"{{"model_type": "bert", "hidden_size": {c}, "num_attention_heads": {heads}, "intermediate_size": {f},
            "num_hidden_layers": {layers}, "vocab_size": {VOCABULARY}, "max_position_embeddings": {POSITIONS},
            "hidden_act": "gelu", "id2label": {{{}}}{more}}}"#,
        labels.join(", ")
    )
}

/// A BERT with every head, its names beginning with `prefix`; the token table is that of the masked-language head.
pub fn bert([c, _, f, layers, labels]: BertSizes, prefix: &str) -> Tensors {
    let mut all = Tensors::default();
    for (name, rows) in [("word", VOCABULARY), ("position", POSITIONS), ("token_type", 2)] {
        all.matrix(format!("{prefix}embeddings.{name}_embeddings.weight"), [rows, c], c);
    }
    let dense = |all: &mut Tensors, name: String, d_out: usize, d_in: usize| {
        all.matrix(format!("{name}.weight"), [d_out, d_in], d_in);
        all.around(format!("{name}.bias"), &[d_out], 0.0, 1.0);
    };
    all.norm(&format!("{prefix}embeddings.LayerNorm"), c);
    dense(&mut all, format!("{prefix}pooler.dense"), c, c);
    for n in 0..layers {
        let layer = format!("{prefix}encoder.layer.{n}");
        for name in ["self.query", "self.key", "self.value", "output.dense"] {
            dense(&mut all, format!("{layer}.attention.{name}"), c, c);
        }
        dense(&mut all, format!("{layer}.intermediate.dense"), f, c);
        dense(&mut all, format!("{layer}.output.dense"), c, f);
        all.norm(&format!("{layer}.attention.output.LayerNorm"), c);
        all.norm(&format!("{layer}.output.LayerNorm"), c);
    }
    for (name, rows) in [("cls.seq_relationship", 2), ("classifier", labels), ("qa_outputs", 2)] {
        dense(&mut all, name.into(), rows, c);
    }
    dense(&mut all, "cls.predictions.transform.dense".into(), c, c);
    all.norm("cls.predictions.transform.LayerNorm", c);
    all.around("cls.predictions.bias".into(), &[VOCABULARY], 0.0, 1.0);
    all
}

/// A GPT-2's configuration: C, NH, F, layers.
pub fn gpt2([c, heads, f, layers]: [usize; 4], more: &str) -> String {
    format!(
        r#"{{"model_type": "gpt2", "n_embd": {c}, "n_head": {heads}, "n_inner": {f}, "n_layer": {layers},
            "vocab_size": {VOCABULARY}, "n_positions": {POSITIONS}, "activation_function": "gelu_new"{more}}}"#
    )
}

/// A Llama's configuration: C, NH, NH_kv, head size, F, layers.
pub fn llama([c, heads, kv_heads, head, f, layers]: [usize; 6], more: &str) -> String {
    format!(
        r#"{{"model_type": "llama", "hidden_size": {c}, "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads},
            "head_dim": {head}, "intermediate_size": {f}, "num_hidden_layers": {layers}, "vocab_size": {VOCABULARY},
            "max_position_embeddings": {POSITIONS}, "hidden_act": "silu"{more}}}"#
    )
}

/// The GPT-2 or Llama of a configuration; GPT-2's matrices are (in, out).
pub fn causal(config: &str) -> Tensors {
    let model = CausalModel::from_config(&Config::parse("config.json", config).unwrap()).unwrap();
    let (attention, c, f) = (&model.layer.attention, model.embedding.d_model, model.layer.feed_forward.d_ff);
    let [q, k, v] = attention.widths();
    let mut all = Tensors::default();
    if config.contains("gpt2") {
        all.matrix("transformer.wte.weight".into(), [VOCABULARY, c], c);
        all.matrix("transformer.wpe.weight".into(), [POSITIONS, c], c);
        for n in 0..model.n_layers {
            let layer = format!("transformer.h.{n}");
            for (name, d_in, d_out) in
                [("attn.c_attn", c, q + k + v), ("attn.c_proj", v, c), ("mlp.c_fc", c, f), ("mlp.c_proj", f, c)]
            {
                all.matrix(format!("{layer}.{name}.weight"), [d_in, d_out], d_in);
                all.around(format!("{layer}.{name}.bias"), &[d_out], 0.0, 1.0);
            }
            all.norm(&format!("{layer}.ln_1"), c);
            all.norm(&format!("{layer}.ln_2"), c);
        }
        all.norm("transformer.ln_f", c);
    } else {
        all.matrix("model.embed_tokens.weight".into(), [VOCABULARY, c], c);
        all.around("model.norm.weight".into(), &[c], 1.0, 0.2);
        for n in 0..model.n_layers {
            let layer = format!("model.layers.{n}");
            let attends =
                [("self_attn.q", c, q), ("self_attn.k", c, k), ("self_attn.v", c, v)].map(|part| (part, attention.bias));
            let o = (
                ("self_attn.o", q / attention.head_size * attention.value_head_size, c),
                attention.bias && !config.contains("qwen2"),
            );
            let feeds =
                [("mlp.gate", c, f), ("mlp.up", c, f), ("mlp.down", f, c)].map(|part| (part, model.layer.feed_forward.bias));
            for ((name, d_in, d_out), bias) in attends.into_iter().chain([o]).chain(feeds) {
                all.matrix(format!("{layer}.{name}_proj.weight"), [d_out, d_in], d_in);
                if bias {
                    all.around(format!("{layer}.{name}_proj.bias"), &[d_out], 0.0, 1.0);
                }
            }
            all.around(format!("{layer}.input_layernorm.weight"), &[c], 1.0, 0.2);
            all.around(format!("{layer}.post_attention_layernorm.weight"), &[c], 1.0, 0.2);
        }
    }
    if !model.tied {
        all.matrix("lm_head.weight".into(), [VOCABULARY, c], c);
    }
    all
}

/// A Marian's, BART's or T5's sizes and options.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    pub family: &'static str,
    /// C, encoder heads, decoder heads, encoder F, decoder F, encoder layers, decoder layers. T5's stacks have the encoder's heads and F.
    pub sizes: [usize; 7],
    /// In front of the names of the base model.
    pub prefix: &'static str,
    /// Whether the checkpoint has position tables.
    pub positions: bool,
    /// Further options.
    pub more: &'static str,
}

pub const MARIAN: Made =
    Made { family: "marian", sizes: [24, 4, 3, 40, 36, 2, 1], prefix: "model.", positions: false, more: "" };
pub const BART: Made = Made { family: "bart", sizes: [20, 2, 5, 36, 28, 1, 2], prefix: "", positions: true, more: "" };
/// Two vocabularies, and a projection of its own.
pub const APART: Made = Made {
    more: r#", "share_encoder_decoder_embeddings": false, "decoder_vocab_size": 39, "tie_word_embeddings": false,
        "activation_function": "swish", "scale_embedding": true"#,
    ..MARIAN
};

/// Heads together wider than the model.
pub const T5: Made = Made {
    family: "t5",
    sizes: [24, 3, 3, 36, 36, 2, 1],
    prefix: "",
    positions: false,
    more: r#", "d_kv": 9, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6"#,
};
/// A gated network, and a projection of its own.
pub const MT5: Made =
    Made { family: "mt5", sizes: [24, 2, 2, 28, 28, 1, 2], more: r#", "d_kv": 12, "tie_word_embeddings": false"#, ..T5 };

pub fn seq2seq_config(made: &Made) -> String {
    let [c, heads, decoder_heads, f, decoder_f, layers, decoder_layers] = made.sizes;
    if made.family.ends_with("t5") {
        return format!(
            r#"{{"model_type": "{}", "d_model": {c}, "num_heads": {heads}, "d_ff": {f}, "num_layers": {layers},
                "num_decoder_layers": {decoder_layers}, "vocab_size": {VOCABULARY}, "decoder_start_token_id": 0, "eos_token_id": 1{}}}"#,
            made.family, made.more
        );
    }
    format!(
        r#"{{"model_type": "{}", "d_model": {c}, "encoder_attention_heads": {heads}, "decoder_attention_heads": {decoder_heads},
            "encoder_ffn_dim": {f}, "decoder_ffn_dim": {decoder_f}, "encoder_layers": {layers},
            "decoder_layers": {decoder_layers}, "vocab_size": {VOCABULARY}, "max_position_embeddings": {POSITIONS},
            "decoder_start_token_id": 0, "eos_token_id": 1{}}}"#,
        made.family, made.more
    )
}

pub fn seq2seq(made: &Made) -> Tensors {
    let model = Seq2Seq::from_config(&Config::parse("config.json", &seq2seq_config(made)).unwrap()).unwrap();
    if made.family.ends_with("t5") {
        return t5(&model, if made.more.contains("num_buckets") { 8 } else { 32 });
    }
    let ([c, _, _, f, decoder_f, layers, decoder_layers], prefix) = (made.sizes, made.prefix);
    let mut all = Tensors::default();
    let dense = |all: &mut Tensors, name: String, d_out: usize, d_in: usize| {
        // A decoder must listen to its source, or texts test no cross-attention.
        let listening = if name.contains("encoder_attn") { 4.0 } else { 1.0 };
        all.around(format!("{name}.weight"), &[d_out, d_in], 0.0, listening * 1.5 / (d_in as f32).sqrt());
        all.around(format!("{name}.bias"), &[d_out], 0.0, 0.1);
    };
    let norm = |all: &mut Tensors, name: &str| {
        all.around(format!("{name}.weight"), &[c], 1.0, 0.2);
        all.around(format!("{name}.bias"), &[c], 0.0, 0.1);
    };
    for (part, layers, f) in [("encoder", layers, f), ("decoder", decoder_layers, decoder_f)] {
        for n in 0..layers {
            let layer = format!("{prefix}{part}.layers.{n}");
            let attentions: &[&str] = if part == "decoder" { &["self_attn", "encoder_attn"] } else { &["self_attn"] };
            for name in attentions {
                for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                    dense(&mut all, format!("{layer}.{name}.{projection}"), c, c);
                }
                norm(&mut all, &format!("{layer}.{name}_layer_norm"));
            }
            dense(&mut all, format!("{layer}.fc1"), f, c);
            dense(&mut all, format!("{layer}.fc2"), c, f);
            norm(&mut all, &format!("{layer}.final_layer_norm"));
        }
        let embedding = if part == "encoder" { &model.source } else { &model.target };
        if made.positions {
            all.matrix(format!("{prefix}{part}.embed_positions.weight"), [embedding.positions.unwrap(), c], c);
        }
        if embedding.norm.is_some() {
            norm(&mut all, &format!("{prefix}{part}.layernorm_embedding"));
        }
        if !model.shared {
            all.matrix(format!("{prefix}{part}.embed_tokens.weight"), [embedding.vocabulary, c], c);
        }
    }
    if model.shared {
        all.matrix(format!("{prefix}shared.weight"), [VOCABULARY, c], c);
    }
    if !model.tied {
        all.matrix("lm_head.weight".into(), [model.target.vocabulary, c], c);
    }
    // BART's own checkpoints of the base model have none.
    if !prefix.is_empty() {
        all.around("final_logits_bias".into(), &[1, model.target.vocabulary], 0.0, 0.1);
    }
    all
}

fn t5(model: &Seq2Seq, buckets: usize) -> Tensors {
    let (c, mut all) = (model.source.d_model, Tensors::default());
    let (encoder, decoder) = (&model.encoder, &model.decoder);
    let parts =
        [("encoder", encoder.n_layers, &encoder.layer.attention), ("decoder", decoder.n_layers, &decoder.layer.attention)];
    for (part, layers, attention) in parts {
        let width = attention.widths()[0];
        for n in 0..layers {
            let layer = format!("{part}.block.{n}.layer");
            let attentions: &[_] =
                if part == "decoder" { &["0.SelfAttention", "1.EncDecAttention"] } else { &["0.SelfAttention"] };
            for name in attentions {
                // Scores are not scaled, and a decoder must listen to its source.
                let listening = if name.contains("EncDec") { 2.0 } else { 1.0 };
                let sharp = listening / (attention.head_size as f32).sqrt().sqrt();
                for projection in ["q", "k"] {
                    let scale = sharp * 1.5 / (c as f32).sqrt();
                    all.around(format!("{layer}.{name}.{projection}.weight"), &[width, c], 0.0, scale);
                }
                all.matrix(format!("{layer}.{name}.v.weight"), [width, c], c);
                all.matrix(format!("{layer}.{name}.o.weight"), [c, width], width);
            }
            let (last, feed_forward) = (attentions.len(), &encoder.layer.feed_forward);
            for up in if feed_forward.gated { &["wi_0", "wi_1"][..] } else { &["wi"] } {
                all.matrix(format!("{layer}.{last}.DenseReluDense.{up}.weight"), [feed_forward.d_ff, c], c);
            }
            all.matrix(format!("{layer}.{last}.DenseReluDense.wo.weight"), [c, feed_forward.d_ff], feed_forward.d_ff);
            for at in 0..=last {
                all.around(format!("{layer}.{at}.layer_norm.weight"), &[c], 1.0, 0.2);
            }
        }
        let biases = format!("{part}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        all.around(biases, &[buckets, attention.n_heads], 0.0, 1.0);
        all.around(format!("{part}.final_layer_norm.weight"), &[c], 1.0, 0.2);
    }
    // Small beside what layers add, or a text of tied tables repeats its token.
    all.around("shared.weight".into(), &[VOCABULARY, c], 0.0, 0.2);
    if !model.tied {
        all.matrix("lm_head.weight".into(), [VOCABULARY, c], c);
    }
    all
}

/// Ids of a text.
pub fn ids(rows: usize, seed: usize, vocabulary: usize) -> Vec<u32> {
    (0..rows).map(|i| ((i * 7 + i * i % 11 + 5 * seed) % vocabulary) as u32).collect()
}

/// A checkpoint of one file.
pub fn open(bytes: Vec<u8>) -> Result<Checkpoint, Error> {
    Checkpoint::from_bytes("{}", vec![("model.safetensors".into(), bytes)])
}

/// A file with this header in front of `data` bytes of zeros.
pub fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// An empty folder of a test's own.
pub fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tileformer-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}
