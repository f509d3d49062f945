//! Causal language models: ids to the logits of what comes next, in one forward pass over whole texts or token by token over caches.
//!
//! [`gpt2`] and [`llama`] read configurations; what they give is the same kind of model.
//!
//! ```no_run
//! # fn f(gpu: &tileformer::convenience::Gpu, kernels: &tileformer::Kernels) -> Result<(), Box<dyn std::error::Error>> {
//! use tileformer::layers::{GeneratorInputs, StepShape};
//! use tileformer::models::{Checkpoint, causal::CausalModel};
//! use tileformer::{Element, spec::generator::GeneratorCaches};
//! let checkpoint = Checkpoint::open("gpt2")?;
//! let model = CausalModel::new(&checkpoint)?;
//! let inputs = GeneratorInputs::new(GeneratorCaches::new(1, 512), Element::F32);
//! let step = model.generator().step(kernels, &inputs, &StepShape::new(1, 100))?;
//! let mut bindings = gpu.upload_causal(&[&step], &checkpoint, &model, |_| {})?;
//! // then bind state, sampling and caches, as `Generator::step` says, and decode
//! # Ok(()) }
//! ```

mod program;
mod reference;

pub use reference::CausalInputs;

use super::{Checkpoint, Config, WeightMap, gpt2, llama};
use crate::error::{Error, Result};
use crate::layers::{Embedding, Encoder, EncoderLayer, Norm};
use crate::spec::generator::{Generator, GeneratorStack};
use crate::spec::{RotaryScaling, rotary_table};

/// A causal language model of any size: specs of [`crate::layers`], and whose names its checkpoint has. Fields may be changed before a
/// program is made: with `layer.attention.options.key_mask`, say, the forward pass has an input `key_mask` (B, T) too, for masks that are
/// no lengths.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CausalModel {
    /// Tokens, and learned positions where there are any.
    pub embedding: Embedding,
    /// A causal pre-norm layer.
    pub layer: EncoderLayer,
    /// How many of them.
    pub n_layers: usize,
    /// Behind the last one.
    pub final_norm: Norm,
    /// Whether the logits are projected by the token table.
    pub tied: bool,
    /// Of what the rotary table is made, where attention has rotary positions.
    pub frequencies: RotaryFrequencies,
    pub(super) family: Family,
}

/// What the rotary positions of a model turn by: see [`rotary_table`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotaryFrequencies {
    /// θ, 10000 as published.
    pub base: f64,
    /// How frequencies are stretched for long texts.
    pub scaling: RotaryScaling,
}

impl Default for RotaryFrequencies {
    fn default() -> Self {
        Self { base: 10000.0, scaling: RotaryScaling::None }
    }
}

/// Which family a checkpoint is of: its names, and what configurations leave unsaid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Gpt2,
    Llama,
    Mistral,
    Qwen2,
}

/// What a forward pass writes. Rows are those of the batch, padding like any other; C is the model's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Output {
    /// `hidden.N` (rows, C): the rows before layer N; behind the last layer, the rows behind the final norm.
    Hidden(usize),
    /// `attention.N` (B, NH, T, T), `f32`: the attention weights of layer N.
    Attention(usize),
    /// `logits` (rows, V): which token follows each row.
    Logits,
}

impl Output {
    /// The name of the tensor.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Hidden(n) => format!("hidden.{n}"),
            Self::Attention(n) => format!("attention.{n}"),
            Self::Logits => "logits".into(),
        }
    }
}

impl CausalModel {
    /// The model of a checkpoint.
    ///
    /// # Errors
    /// As [`CausalModel::from_config`].
    pub fn new(checkpoint: &Checkpoint) -> Result<Self> {
        let mut model = Self::from_config(checkpoint.config())?;
        let tokens = match model.family {
            Family::Gpt2 => gpt2::TOKENS,
            Family::Llama | Family::Mistral | Family::Qwen2 => llama::TOKENS,
        };
        model.tied &= !checkpoint.differ(tokens, "lm_head.weight");
        Ok(model)
    }

    /// The model that a `config.json` describes, by its `model_type`: `gpt2`, `llama`, `mistral` or `qwen2`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for another model type; as [`gpt2::from_config`] and [`llama::from_config`].
    pub fn from_config(config: &Config) -> Result<Self> {
        match config.text("model_type")? {
            Some("gpt2") => gpt2::from_config(config),
            Some("llama" | "mistral" | "qwen2") => llama::from_config(config),
            _ => Err(config.refusal("model_type", "gpt2, llama, mistral or qwen2")),
        }
    }

    /// The model as what makes text token by token: [`Generator::prefill`] and [`Generator::step`], over the same weights as the forward
    /// pass.
    #[must_use]
    pub fn generator(&self) -> Generator {
        let stack = Encoder::new(self.layer.clone(), self.n_layers).with_final_norm(self.final_norm);
        let head_weight = self.head_weight().into();
        Generator { head_weight, ..Generator::new(self.embedding, GeneratorStack::Encoder(stack)) }
    }

    /// The most tokens of a text: rows of the position table, learned or rotary; `None` for any number.
    #[must_use]
    pub fn positions(&self) -> Option<usize> {
        let rotary = self.layer.attention.rotary.map(|rotary| rotary.positions);
        self.embedding.positions.into_iter().chain(rotary).min()
    }

    /// With a rotary table of at most `positions` rows, for less memory than the longest text would need. Learned positions stay as
    /// the checkpoint has them.
    #[must_use]
    pub fn with_rotary_positions(mut self, positions: usize) -> Self {
        if let Some(rotary) = &mut self.layer.attention.rotary {
            rotary.positions = rotary.positions.min(positions);
        }
        self
    }

    /// The input `rotary_table` of every program, with its sizes (positions, columns), where attention has rotary positions.
    ///
    /// # Errors
    /// As [`rotary_table`].
    pub fn rotary_table(&self) -> Result<Option<([usize; 2], Vec<f32>)>> {
        let Some(rotary) = self.layer.attention.rotary else { return Ok(None) };
        let RotaryFrequencies { base, scaling } = self.frequencies;
        let table = rotary_table(rotary.positions, rotary.columns, base, scaling)?;
        Ok(Some(([rotary.positions, rotary.columns], table)))
    }

    /// For each weight of the programs, which tensors of a checkpoint it comes from.
    #[must_use]
    pub fn weights(&self) -> WeightMap {
        match self.family {
            Family::Gpt2 => gpt2::weights(self),
            Family::Llama | Family::Mistral | Family::Qwen2 => llama::weights(self),
        }
    }

    /// The projection's weight.
    pub(super) fn head_weight(&self) -> &'static str {
        if self.tied { "token_embedding.weight" } else { "lm_head.weight" }
    }

    /// Layers that `outputs` need.
    fn layers_for(&self, outputs: &[Output]) -> usize {
        let needed = |output: &Output| match *output {
            Output::Hidden(n) => n,
            Output::Attention(n) => n.saturating_add(1),
            Output::Logits => self.n_layers,
        };
        outputs.iter().map(needed).max().unwrap_or(0)
    }

    /// Whether `outputs` need the final norm.
    fn is_normed_for(&self, outputs: &[Output]) -> bool {
        [Output::Hidden(self.n_layers), Output::Logits].iter().any(|output| outputs.contains(output))
    }

    /// Refuses layers and positions that there are not.
    fn check(&self, longest: usize, outputs: &[Output]) -> Result<()> {
        if outputs.is_empty() {
            return Err(Error::option("outputs", "at least one", 0));
        }
        let most = self.layers_for(outputs);
        if most > self.n_layers {
            return Err(Error::option("outputs", format!("layers of {}", self.n_layers), most));
        }
        if let Some(positions) = self.positions().filter(|&positions| longest > positions) {
            return Err(Error::option("longest sequence", format!("at most {positions} positions"), longest));
        }
        Ok(())
    }
}
