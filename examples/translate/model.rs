//! The model's file: what it is (sizes, vocabularies) and its weights, under the names that the programs use.

use std::collections::BTreeMap;
use std::error::Error;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tileformer::spec::layers::{Decoder, DecoderLayer, Embedding, Encoder, EncoderLayer, Norm};
use tileformer::spec::{SinusoidOrder, sinusoidal_positions};

use crate::text::{SourceVocabulary, TargetVocabulary};

/// The model that comes with the example.
pub(crate) const DATES: &[u8] = include_bytes!("dates.safetensors");

/// The sizes, as the training script writes them.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) d_model: usize,
    pub(crate) n_heads: usize,
    pub(crate) d_ff: usize,
    pub(crate) n_encoder_layers: usize,
    pub(crate) n_decoder_layers: usize,
    pub(crate) layer_norm_eps: f32,
    /// The longest source, in characters.
    pub(crate) max_source: usize,
    /// The longest target with `<bos>` and `<eos>`.
    pub(crate) max_target: usize,
}

/// A weight's sizes and its elements, row major.
#[derive(Clone, Debug)]
pub(crate) struct Weight {
    pub(crate) sizes: Vec<usize>,
    pub(crate) data: Vec<f32>,
}

/// An encoder-decoder Transformer of 2017 that reads and writes characters.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) config: Config,
    pub(crate) source: SourceVocabulary,
    pub(crate) target: TargetVocabulary,
    /// By the names that the programs bind: `source.token_embedding.weight`, `encoder.layers.0.linear1.bias`, …
    pub(crate) weights: BTreeMap<String, Weight>,
}

impl Model {
    /// Reads a file that `train.py` has written. Weights of 16 bits become `f32`; the two tables of positions, which are no
    /// weights, are computed.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Box<dyn Error>> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |name: &str| metadata.get(name).ok_or_else(|| format!("the model file has no {name} in its metadata"));
        let config = Config::parse(&serde_json::from_str(entry("config")?)?)?;
        let source = SourceVocabulary::new(serde_json::from_str(entry("source_vocabulary")?)?, config.max_source)?;
        let target = TargetVocabulary::new(serde_json::from_str(entry("target_vocabulary")?)?)?;

        let mut weights = BTreeMap::new();
        for (name, tensor) in SafeTensors::deserialize(bytes)?.tensors() {
            let data = widen(&name, tensor.dtype(), tensor.data())?;
            weights.insert(program_name(&name), Weight { sizes: tensor.shape().to_vec(), data });
        }
        for (name, rows) in [("source", config.max_source), ("target", config.max_target)] {
            let data = sinusoidal_positions(rows, config.d_model, SinusoidOrder::Interleaved)?;
            weights.insert(format!("{name}.position_embedding.weight"), Weight { sizes: vec![rows, config.d_model], data });
        }
        Ok(Self { config, source, target, weights })
    }

    /// Characters to rows: √d_model · token + position. Its names begin with `source.`.
    pub(crate) fn source_embedding(&self) -> Embedding {
        self.embedding(self.source.len(), self.config.max_source)
    }

    /// The same for the target, `target.`; its token table is also the projection to logits.
    pub(crate) fn target_embedding(&self) -> Embedding {
        self.embedding(self.target.len(), self.config.max_target)
    }

    fn embedding(&self, vocabulary: usize, positions: usize) -> Embedding {
        let d_model = self.config.d_model;
        let scale = (d_model as f32).sqrt();
        Embedding { positions: Some(positions), scale, ..Embedding::new(vocabulary, d_model) }
    }

    /// The encoder, `encoder.`.
    pub(crate) fn encoder(&self) -> Encoder {
        let layer = EncoderLayer::new(self.config.d_model, self.config.n_heads, self.config.d_ff);
        Encoder::new(EncoderLayer { norm: self.norm(), ..layer }, self.config.n_encoder_layers)
    }

    /// The causal decoder, `decoder.`.
    pub(crate) fn decoder(&self) -> Decoder {
        let layer = DecoderLayer::new(self.config.d_model, self.config.n_heads, self.config.d_ff);
        Decoder::new(DecoderLayer { norm: self.norm(), ..layer }, self.config.n_decoder_layers)
    }

    fn norm(&self) -> Norm {
        Norm { eps: self.config.layer_norm_eps, ..Norm::default() }
    }

    /// How many tokens a translation makes at most: all of the target but `<bos>`.
    pub(crate) fn steps(&self) -> usize {
        self.config.max_target - 1
    }
}

impl Config {
    /// Reads the configuration, refusing what this example does not build and sizes that cannot be meant.
    fn parse(json: &Value) -> Result<Self, String> {
        for (name, expected) in [("activation", "relu"), ("norm", "post"), ("positions", "sinusoidal interleaved")] {
            if json[name] != expected {
                return Err(format!("the model's {name} is {}; this example builds {expected:?} only", json[name]));
            }
        }
        let size = |name: &str, least: u64| match json[name].as_u64() {
            Some(size) if (least..=1 << 16).contains(&size) => Ok(size as usize),
            _ => Err(format!("the model's {name} is {}; a size of at least {least} is needed", json[name])),
        };
        let eps = json["layer_norm_eps"].as_f64().ok_or("the model has no layer_norm_eps")?;
        Ok(Self {
            d_model: size("d_model", 1)?,
            n_heads: size("n_heads", 1)?,
            d_ff: size("d_ff", 1)?,
            n_encoder_layers: size("n_encoder_layers", 1)?,
            n_decoder_layers: size("n_decoder_layers", 1)?,
            layer_norm_eps: eps as f32,
            max_source: size("max_source", 1)?,
            max_target: size("max_target", 2)?,
        })
    }
}

/// The name in the programs of a weight in the file: the layers' names are PyTorch's in both.
fn program_name(name: &str) -> String {
    match name {
        "src_embed.weight" => "source.token_embedding.weight".into(),
        "tgt_embed.weight" => "target.token_embedding.weight".into(),
        other => other.into(),
    }
}

/// Little-endian bytes to `f32`.
fn widen(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, String> {
    match dtype {
        Dtype::F16 => Ok(bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::BF16 => Ok(bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()),
        Dtype::F32 => Ok(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()),
        other => Err(format!("{name}: weights of type {other:?}; F16, BF16 and F32 are read")),
    }
}
