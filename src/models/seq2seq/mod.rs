//! From one text to another: an encoder, and a decoder that attends to it, of the shape that [`super::marian`], [`super::bart`] and
//! [`super::t5`] share.
//!
//! A forward pass over a source and a target that is known is one program, [`Seq2Seq::program`]. To write a target,
//! [`Seq2Seq::encode`] makes `memory`, and [`Seq2Seq::generator`] has the programs that go on from there:
//! [`Generator::remember`], [`Generator::prefill`] and [`Generator::step`], or [`Generator::beam_step`] for the search that
//! [`Seq2Seq::beam_search`] reads from a checkpoint.
//!
//! ```no_run
//! # fn f(gpu: &tileformer::convenience::Gpu, kernels: &tileformer::Kernels) -> Result<(), Box<dyn std::error::Error>> {
//! use tileformer::layers::{GeneratorInputs, Inputs, StepShape};
//! use tileformer::models::{Checkpoint, seq2seq::Seq2Seq};
//! use tileformer::spec::generator::GeneratorCaches;
//! use tileformer::{BatchShape, Element};
//! let checkpoint = Checkpoint::open("opus-mt-de-en")?;
//! let model = Seq2Seq::new(&checkpoint)?;
//! let (generator, source) = (model.generator(), BatchShape::padded(8, 64));
//! let inputs = GeneratorInputs::new(GeneratorCaches::new(8, 96).with_memory(64), Element::F32);
//! let encode = model.encode(kernels, &Inputs::new(source))?;
//! let remember = generator.remember(kernels, &inputs, 8, source.q_rows)?;
//! let step = generator.step(kernels, &inputs, &StepShape::new(8, 96))?;
//! let programs = [&encode, &remember, &step];
//! let mut bindings = gpu.upload_checkpoint(&programs, &checkpoint, &model.weights()?, |_| {})?;
//! // then bind `source.ids` and the rest, encode and remember once a source, and step as often as there are tokens to write
//! # Ok(()) }
//! ```

mod beams;
mod family;
mod program;
mod reference;
mod weights;

pub(super) use family::Family;
pub use reference::Seq2SeqInputs;
pub(super) use weights::{MOST_COMPUTED, Names};

use super::{Checkpoint, Config, bart, marian, t5};
use crate::error::{Error, Result};
use crate::layers::{Decoder, Embedding, Encoder};
use crate::spec::generator::{Generator, GeneratorStack};
use crate::spec::{BatchShape, SinusoidOrder};

/// An encoder and a decoder of any size: specs of [`crate::layers`], and what is around them.
///
/// Fields may be changed before a program is made: with `options.key_mask` of the encoder's attention and the decoder's cross-attention,
/// say, [`Seq2Seq::program`] has inputs `source.key_mask` and `cross.key_mask` (B, S) too, for masks that are no lengths.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Seq2Seq {
    /// Ids of a source to rows.
    pub source: Embedding,
    /// Those to memory.
    pub encoder: Encoder,
    /// Ids of a target to rows.
    pub target: Embedding,
    /// Those to what is projected to the vocabulary.
    pub decoder: Decoder,
    /// Whether source and target have one token table.
    pub shared: bool,
    /// Whether the projection to the vocabulary is the target's token table.
    pub tied: bool,
    /// Whether that projection has a bias, `final_logits_bias`.
    pub logits_bias: bool,
    /// What products with the projection are multiplied by: 1/√d_model in T5, else 1.
    pub(super) logits_scale: f32,
    /// The order of position tables that are computed, where the checkpoint does not have them.
    pub sinusoids: Option<SinusoidOrder>,
    /// Tokens that mean something.
    pub tokens: Tokens,
    /// How a checkpoint calls its tensors.
    pub(super) names: Names,
}

/// Tokens that mean something to a model, where its configuration names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tokens {
    /// The one that every target begins with; it is not a part of the text.
    pub start: Option<u32>,
    /// The one that ends a text.
    pub end: Option<u32>,
    /// The one that fills up.
    pub padding: Option<u32>,
    /// The one that a target has as its first, whatever its logits say.
    pub forced_first: Option<u32>,
    /// The one that a target of the greatest length has as its last, whatever its logits say.
    pub forced_last: Option<u32>,
}

/// What a program writes. Rows are those of the batch, padding like any other; C is the model's width, T a target's length, S a
/// source's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Output {
    /// `encoder_hidden.N` (source rows, C): the rows before the encoder's layer N, or behind the last one and its final norm.
    EncoderHidden(usize),
    /// `encoder_attention.N` (B, NH, S, S), `f32`: the attention weights of the encoder's layer N.
    EncoderAttention(usize),
    /// `decoder_hidden.N` (target rows, C): the rows before the decoder's layer N, or behind the last one and its final norm.
    DecoderHidden(usize),
    /// `decoder_attention.N` (B, NH, T, T), `f32`: the self-attention weights of the decoder's layer N.
    DecoderAttention(usize),
    /// `cross_attention.N` (B, NH, T, S), `f32`: how the decoder's layer N attends to the source.
    CrossAttention(usize),
    /// `logits` (target rows, V): which token comes next.
    Logits,
}

impl Output {
    /// The name of the tensor.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::EncoderHidden(n) => format!("encoder_hidden.{n}"),
            Self::EncoderAttention(n) => format!("encoder_attention.{n}"),
            Self::DecoderHidden(n) => format!("decoder_hidden.{n}"),
            Self::DecoderAttention(n) => format!("decoder_attention.{n}"),
            Self::CrossAttention(n) => format!("cross_attention.{n}"),
            Self::Logits => "logits".into(),
        }
    }
}

/// The tables of a checkpoint: the encoder's, the decoder's, both's, and the projection's.
const SOURCE_TOKENS: &str = "model.encoder.embed_tokens.weight";
const TARGET_TOKENS: &str = "model.decoder.embed_tokens.weight";
const SHARED_TOKENS: &str = "model.shared.weight";
const HEAD: &str = "lm_head.weight";

impl Seq2Seq {
    /// The model of a checkpoint. Sinusoidal positions are computed where it has none, its logits have the bias that it has, and tables that
    /// differ are not tied, whatever the configuration says.
    ///
    /// # Errors
    /// As [`Seq2Seq::from_config`]; [`Error::Checkpoint`] for tables of tokens or positions of which one part's alone is there.
    pub fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let mut model = Self::from_config(checkpoint.config())?;
        let first = |names: &[&'static str]| names.iter().copied().find(|name| checkpoint.has(name)).unwrap_or(HEAD);
        let target = first(&[TARGET_TOKENS, SHARED_TOKENS]);
        let head = if model.shared { first(&[HEAD, SHARED_TOKENS]) } else { HEAD };
        model.tied &= !checkpoint.differ(head, target);
        if model.shared && checkpoint.differ(first(&[SOURCE_TOKENS, SHARED_TOKENS]), target) {
            if ![SOURCE_TOKENS, TARGET_TOKENS].iter().all(|name| checkpoint.has(name)) {
                let expected = format!("both {SOURCE_TOKENS} and {TARGET_TOKENS} where they are not shared");
                return Err(checkpoint.config().refusal("tie_word_embeddings", expected));
            }
            model.shared = false;
        }
        model.logits_bias = checkpoint.has("final_logits_bias");
        let positions = ["encoder", "decoder"].map(|part| format!("model.{part}.embed_positions.weight"));
        let missing = positions.iter().find(|name| !checkpoint.has(name));
        match missing {
            None => model.sinusoids = None,
            Some(name) if model.sinusoids.is_some() && positions.iter().any(|name| checkpoint.has(name)) => {
                return Err(Error::checkpoint(name, "no tensor of this name, beside positions of the other part"));
            }
            Some(_) => {}
        }
        Ok(model)
    }

    /// The model that a `config.json` describes, by its `model_type`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for another type than `marian`, `bart`, `t5` and `mt5`; as [`marian::from_config`], [`bart::from_config`] and
    /// [`t5::from_config`].
    pub fn from_config(config: &Config) -> Result<Self> {
        match config.text("model_type")? {
            Some("marian") => marian::from_config(config),
            Some("bart") => bart::from_config(config),
            Some("t5" | "mt5") => t5::from_config(config),
            _ => Err(config.refusal("model_type", "marian, bart, t5 or mt5")),
        }
    }

    /// What writes targets, token by token: the programs that go on from [`Seq2Seq::encode`], over the same weights.
    #[must_use]
    pub fn generator(&self) -> Generator {
        Generator {
            embedding_prefix: "target.".into(),
            stack_prefix: "decoder.".into(),
            head_weight: self.head_weight().into(),
            head_bias: self.head_bias().map(str::to_owned),
            ..Generator::new(self.target_embedding(), GeneratorStack::Decoder(self.decoder.clone()))
        }
    }

    /// The embedding of sources over the table that [`Seq2Seq::weights`] has: where that is scaled, for the logits, it is undone here.
    #[must_use]
    pub fn source_embedding(&self) -> Embedding {
        Embedding { scale: self.source.scale / self.table_scale(true), ..self.source }
    }

    /// The embedding of targets, likewise.
    #[must_use]
    pub fn target_embedding(&self) -> Embedding {
        Embedding { scale: self.target.scale / self.table_scale(false), ..self.target }
    }

    /// What the token table of sources, or that of targets, is multiplied by where it is read.
    fn table_scale(&self, source: bool) -> f32 {
        if self.tied && (self.shared || !source) { self.logits_scale } else { 1.0 }
    }

    /// The name of the source's token table in the programs.
    fn source_table(&self) -> &'static str {
        if self.shared { "target.token_embedding.weight" } else { "source.token_embedding.weight" }
    }

    fn head_weight(&self) -> &'static str {
        if self.tied { "target.token_embedding.weight" } else { "head.weight" }
    }

    fn head_bias(&self) -> Option<&'static str> {
        self.logits_bias.then_some("head.bias")
    }

    /// Layers of the encoder that `outputs` need.
    fn encoder_layers_for(&self, outputs: &[Output]) -> usize {
        let needed = |output: &Output| match *output {
            Output::EncoderHidden(n) => n,
            Output::EncoderAttention(n) => n.saturating_add(1),
            Output::DecoderHidden(0) => 0,
            _ => self.encoder.n_layers,
        };
        outputs.iter().map(needed).max().unwrap_or(0)
    }

    /// Layers of the decoder that `outputs` need.
    fn decoder_layers_for(&self, outputs: &[Output]) -> usize {
        let needed = |output: &Output| match *output {
            Output::EncoderHidden(_) | Output::EncoderAttention(_) => 0,
            Output::DecoderHidden(n) => n,
            Output::DecoderAttention(n) | Output::CrossAttention(n) => n.saturating_add(1),
            Output::Logits => self.decoder.n_layers,
        };
        outputs.iter().map(needed).max().unwrap_or(0)
    }

    /// Whether `outputs` need any row of the decoder.
    fn decodes(outputs: &[Output]) -> bool {
        outputs.iter().any(|output| !matches!(output, Output::EncoderHidden(_) | Output::EncoderAttention(_)))
    }

    /// Refuses layers and positions that there are not.
    fn check(&self, shape: &BatchShape, outputs: &[Output]) -> Result<()> {
        if outputs.is_empty() {
            return Err(Error::option("outputs", "at least one", 0));
        }
        let layers = [
            ("encoder", self.encoder.n_layers, self.encoder_layers_for(outputs)),
            ("decoder", self.decoder.n_layers, self.decoder_layers_for(outputs)),
        ];
        for (part, there, most) in layers {
            if most > there {
                return Err(Error::option("outputs", format!("layers of the {part}'s {there}"), most));
            }
        }
        let decoded = if Self::decodes(outputs) { shape.longest_q } else { 0 };
        for (name, embedding, longest) in
            [("longest source", &self.source, shape.longest_k), ("longest target", &self.target, decoded)]
        {
            if let Some(positions) = positions(embedding).filter(|&positions| longest > positions) {
                return Err(Error::option(name, format!("at most {positions} positions"), longest));
            }
        }
        Ok(())
    }
}

/// The longest text of an embedding whose positions are a table.
fn positions(embedding: &Embedding) -> Option<usize> {
    embedding.positions.map(|rows| rows.saturating_sub(embedding.first_position))
}
