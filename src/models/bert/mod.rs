//! BERT (Devlin et al., arXiv 1810.04805), with its heads, and sentence embeddings from it (Reimers and Gurevych, arXiv 1908.10084).
//!
//! The encoder alone; heads are those that it was trained with and those that it is fine-tuned with.
//!
//! ```no_run
//! # fn f(gpu: &tileformer::convenience::Gpu, kernels: &tileformer::Kernels) -> Result<(), Box<dyn std::error::Error>> {
//! use tileformer::models::{Checkpoint, bert::{Bert, Output}};
//! use tileformer::{BatchShape, layers::Inputs};
//! let checkpoint = Checkpoint::open("all-MiniLM-L6-v2")?;
//! let bert = Bert::new(&checkpoint)?;
//! let program = bert.program(kernels, &Inputs::new(BatchShape::padded(8, 128)), &[Output::Embedding])?;
//! let mut bindings = gpu.upload_checkpoint(&[&program], &checkpoint, &bert.weights(), |_| {})?;
//! // then bind `ids`, `segment_ids`, `sequences` and `embedding`, and record as often as wanted
//! # Ok(()) }
//! ```

mod program;
mod reference;

pub use reference::BertInputs;

use super::{Checkpoint, Config, Source, WeightMap};
use crate::error::{Error, Result};
use crate::layers::{Embedding, EncoderLayer, FeedForward, MultiHeadAttention, Norm, Placement};
use crate::spec::{Activation, Pooling};

/// A BERT of any size: specs of [`crate::layers`], and what the heads need.
///
/// Fields may be changed before a program is made: with `layer.attention.options.key_mask`, say, the programs have an input `key_mask`
/// (B, T) too, for masks that are no lengths.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Bert {
    /// Tokens, learned positions and segments, then a norm.
    pub embedding: Embedding,
    /// A post-norm layer.
    pub layer: EncoderLayer,
    /// How many of them.
    pub n_layers: usize,
    /// Between the two projections of the masked-language head.
    pub head_activation: Activation,
    /// Whether that head projects by the token table.
    pub tied: bool,
    /// The classes of a fine-tuned head.
    pub labels: Vec<String>,
    /// What makes a sentence's embedding of its rows.
    pub pooling: Pooling,
    /// Whether embeddings are scaled to length 1.
    pub normalize: bool,
}

/// What a program of a BERT writes. Rows are those of the batch, padding like any other; C is the model's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Output {
    /// `hidden.N` (rows, C): the rows before layer N, or behind the last one.
    Hidden(usize),
    /// `attention.N` (B, NH, T, T), `f32`: the attention weights of layer N.
    Attention(usize),
    /// `pooled` (B, C): the pooler's tanh of each first row.
    Pooled,
    /// `embedding` (B, C): one row a sentence, by default the mean of its rows, of length 1. Lengths say which rows are a sentence's; with
    /// a key mask there is none.
    Embedding,
    /// `mlm_logits` (rows, V): which token stands where.
    MaskedLanguage,
    /// `nsp_logits` (B, 2): whether the second segment follows the first, or not.
    NextSentence,
    /// `sequence_logits` (B, labels): a fine-tuned classifier of sequences.
    SequenceClasses,
    /// `token_logits` (rows, labels): a fine-tuned classifier of tokens.
    TokenClasses,
    /// `span_logits` (rows, 2): how well an answer starts at a row, and how well it ends there.
    Spans,
}

impl Output {
    /// The name of the tensor.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Hidden(n) => format!("hidden.{n}"),
            Self::Attention(n) => format!("attention.{n}"),
            Self::Pooled => "pooled".into(),
            Self::Embedding => "embedding".into(),
            Self::MaskedLanguage => "mlm_logits".into(),
            Self::NextSentence => "nsp_logits".into(),
            Self::SequenceClasses => "sequence_logits".into(),
            Self::TokenClasses => "token_logits".into(),
            Self::Spans => "span_logits".into(),
        }
    }

    /// Whether it is made of the pooler's rows.
    fn is_of_pooled(self) -> bool {
        matches!(self, Self::Pooled | Self::NextSentence | Self::SequenceClasses)
    }
}

/// The token table, and that of the masked-language head where it has its own.
const TOKENS: &str = "bert.embeddings.word_embeddings.weight";
const MLM_TOKENS: &str = "cls.predictions.decoder.weight";

impl Bert {
    /// The model of a checkpoint. A masked-language head with a table of its own is not tied, whatever the configuration says.
    ///
    /// # Errors
    /// As [`Bert::from_config`].
    pub fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let mut model = Self::from_config(checkpoint.config())?;
        model.tied &= !checkpoint.differ(TOKENS, MLM_TOKENS);
        Ok(model)
    }

    /// The model that a `config.json` describes.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for another model type than `bert`, a decoder, positions that are not absolute, an activation that the crate
    /// does not have, sizes that are missing or do not divide; each by its key.
    pub fn from_config(config: &Config) -> Result<Self> {
        config.expect("model_type", &["bert"])?;
        config.expect("position_embedding_type", &["absolute"])?;
        for key in ["is_decoder", "add_cross_attention"] {
            if config.flag(key, false)? {
                return Err(config.refusal(key, "false, for an encoder"));
            }
        }
        let (d_model, n_heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
        if !d_model.is_multiple_of(n_heads) {
            return Err(config.refusal("num_attention_heads", format!("a divisor of hidden_size, {d_model}")));
        }
        let eps = config.number("layer_norm_eps")?.unwrap_or(1e-12);
        if eps < 0.0 {
            return Err(config.refusal("layer_norm_eps", "at least 0"));
        }
        let norm = Norm { eps, ..Norm::default() };
        let activation = config.activation("hidden_act", Activation::Gelu)?;
        let embedding = Embedding {
            positions: Some(config.size("max_position_embeddings")?),
            segments: Some(config.optional_size("type_vocab_size")?.unwrap_or(2)),
            norm: Some(norm),
            ..Embedding::new(config.size("vocab_size")?, d_model)
        };
        let layer = EncoderLayer {
            attention: MultiHeadAttention::new(d_model, n_heads),
            feed_forward: FeedForward {
                d_model,
                d_ff: config.size("intermediate_size")?,
                activation,
                bias: true,
                gated: false,
            },
            norm,
            placement: Placement::Post,
        };
        layer.check()?;
        Ok(Self {
            embedding,
            layer,
            n_layers: config.layers("num_hidden_layers")?,
            head_activation: activation,
            tied: config.flag("tie_word_embeddings", true)?,
            labels: config.labels()?,
            pooling: Pooling::Mean,
            normalize: true,
        })
    }

    /// For each weight of the programs, which tensors of a checkpoint it comes from: those of `BertModel`, `BertForPreTraining`, and
    /// the fine-tuned `BertFor…`, of which a checkpoint has the ones that its programs read.
    #[must_use]
    pub fn weights(&self) -> WeightMap {
        let mut map = WeightMap::new();
        for (ours, theirs) in [("token", "word"), ("position", "position"), ("segment", "token_type")] {
            let name = format!("bert.embeddings.{theirs}_embeddings.weight");
            map.insert(format!("{ours}_embedding.weight"), Source::tensor(name));
        }
        map.insert_pair("norm", "bert.embeddings.LayerNorm");
        for layer in 0..self.n_layers {
            let (ours, theirs) = (format!("layers.{layer}"), format!("bert.encoder.layer.{layer}"));
            for part in ["weight", "bias"] {
                let parts = ["query", "key", "value"].map(|name| format!("{theirs}.attention.self.{name}.{part}"));
                map.insert(format!("{ours}.self_attn.in_proj_{part}"), Source::rows(parts.map(Source::tensor)));
            }
            map.insert_pair(&format!("{ours}.self_attn.out_proj"), &format!("{theirs}.attention.output.dense"))
                .insert_pair(&format!("{ours}.norm1"), &format!("{theirs}.attention.output.LayerNorm"))
                .insert_pair(&format!("{ours}.linear1"), &format!("{theirs}.intermediate.dense"))
                .insert_pair(&format!("{ours}.linear2"), &format!("{theirs}.output.dense"))
                .insert_pair(&format!("{ours}.norm2"), &format!("{theirs}.output.LayerNorm"));
        }
        map.insert_pair("pooler", "bert.pooler.dense")
            .insert_pair("mlm.dense", "cls.predictions.transform.dense")
            .insert_pair("mlm.norm", "cls.predictions.transform.LayerNorm")
            .insert("mlm.decoder.weight", Source::tensor(MLM_TOKENS))
            .insert("mlm.bias", Source::tensor("cls.predictions.decoder.bias").or("cls.predictions.bias"))
            .insert_pair("nsp", "cls.seq_relationship")
            .insert_pair("classifier", "classifier")
            .insert_pair("spans", "qa_outputs");
        map
    }

    /// The projection's weight of the masked-language head.
    fn decoder_weight(&self) -> &'static str {
        if self.tied { "token_embedding.weight" } else { "mlm.decoder.weight" }
    }

    /// Layers that `outputs` need.
    fn layers_for(&self, outputs: &[Output]) -> usize {
        let needed = |output: &Output| match *output {
            Output::Hidden(n) => n,
            Output::Attention(n) => n.saturating_add(1),
            _ => self.n_layers,
        };
        outputs.iter().map(needed).max().unwrap_or(0)
    }

    /// Refuses layers and positions that there are not, and a mean of rows of which a mask hides some.
    fn check(&self, longest: usize, outputs: &[Output]) -> Result<()> {
        if outputs.is_empty() {
            return Err(Error::option("outputs", "at least one", 0));
        }
        let most = self.layers_for(outputs);
        if most > self.n_layers {
            return Err(Error::option("outputs", format!("layers of {}", self.n_layers), most));
        }
        if let Some(positions) = self.embedding.positions.filter(|&positions| longest > positions) {
            return Err(Error::option("longest sequence", format!("at most {positions} positions"), longest));
        }
        if self.layer.attention.options.key_mask && outputs.contains(&Output::Embedding) {
            return Err(Error::option("embedding", "sequences with lengths alone", "a key mask"));
        }
        Ok(())
    }
}
