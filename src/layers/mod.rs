//! Kernels chained into layers, layers into stacks.
//!
//! A layer's configuration is in [`crate::spec::layers`]. There are two ways to run one: `program` makes a [`Program`](crate::Program)
//! with tensors of fixed names, and the methods of [`Builder`] append the layer to a program of the caller's. Weights keep the
//! names that PyTorch gives them.
//!
//! | name | tensor |
//! |---|---|
//! | `x`, `y` | (q_rows, d_model): rows in, rows out, as [`Inputs::storage`] says |
//! | `memory` | (k_rows, k_width): the encoder's output, in a decoder |
//! | `ids`, `segment_ids` | `u32` (q_rows): what an embedding reads |
//! | `sequences`, `cross_sequences` | `u32` (B, 8): see [`Sequences`](crate::Sequences) |
//! | `key_mask`, `cross_key_mask` | `u32` (B, S), where the options have `key_mask` |
//! | `mask`, `cross_mask` | (B, NH, T, S), where the options have `mask`, but for a relative one |
//! | `relative_position_bias` | weight, `f32` (NH, 2 · reach + 1), of an attention whose `mask` is relative |
//! | `rotary_table` | `f32` (positions, columns), where attention has rotary positions |
//! | `weights`, `cross_weights` | (B, NH, T, S): attention weights, where asked for; in a stack `layers.N.weights` |

mod attention;
mod beams;
mod cached;
mod decoder;
mod embedding;
mod encoder;
mod generator;

pub use attention::AttentionRows;
pub use beams::BeamStepShape;
pub use cached::{CachedLayer, CachedMemory};
pub use decoder::DecoderRows;
pub use generator::{GeneratorInputs, PrefillShape, StepShape};

pub use crate::spec::layers::*;
pub use crate::spec::{RotaryOrder, RotaryScaling, SinusoidOrder};

use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::kernels::{Gate, LayerNorm, Linear};
use crate::program::Tensor;
use crate::shape::Layout;
use crate::spec::layers::check_prefix;
use crate::spec::{Activation, AttentionOptions, BatchShape, Mask, SEQUENCE_WORDS};
use crate::tensor::Element;

/// What a program of a layer is made for.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The largest batch; a smaller one runs on the same plan, filled up by [`Sequences::for_shape`](crate::Sequences::for_shape). Where keys come from `memory`, its key rows are the memory's; self-attention alone has as many key
    /// rows as query rows, the larger of both numbers ([`BatchShape::to_self`]).
    pub shape: BatchShape,
    /// The layout of `mask`; `None` is (B, NH, T, S) without gaps.
    pub mask: Option<Layout>,
    /// The layout of `cross_mask`; `None` is (B, NH, T, S) without gaps.
    pub cross_mask: Option<Layout>,
    /// Whether the attention weights are outputs. They are `f32` whatever the storage.
    pub attention_weights: bool,
    /// What rows, weights and everything between them is stored as: [`Element::F32`], or [`Element::F16`] for half the memory and its traffic;
    /// sums are `f32` in both. Weights are converted once, on upload: by
    /// [`Gpu::upload_weights`](crate::convenience::Gpu::upload_weights), or by the caller as [`Element::F16`] says.
    pub storage: Element,
    /// What weights of projections are stored as: as all else, or in blocks ([`Builder::with_weights`]).
    pub weights: Option<Element>,
}

impl Inputs {
    /// Full masks where the options have any, no attention weights.
    #[must_use]
    pub fn new(shape: BatchShape) -> Self {
        Self { shape, mask: None, cross_mask: None, attention_weights: false, storage: Element::F32, weights: None }
    }

    /// With attention weights as outputs.
    #[must_use]
    pub fn with_attention_weights(self) -> Self {
        Self { attention_weights: true, ..self }
    }

    /// With rows, weights and everything between them stored as `element`.
    #[must_use]
    pub fn with_storage(self, element: Element) -> Self {
        Self { storage: element, ..self }
    }

    /// With weights of projections as `element`.
    #[must_use]
    pub fn with_weights(self, element: Element) -> Self {
        Self { weights: Some(element), ..self }
    }

    /// The layout of `mask` for a layer whose one attention knows no `cross_mask`.
    fn only_mask(&self) -> Result<Option<Layout>> {
        match self.cross_mask {
            Some(layout) => Err(Error::option("cross_mask", "no layout outside a decoder", layout)),
            None => Ok(self.mask),
        }
    }
}

/// A batch as one attention of a program sees it.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// The largest batch.
    pub shape: BatchShape,
    /// `u32` (B, 8)
    pub sequences: Tensor,
    /// `u32` (B, S), where the options have `key_mask`
    pub key_mask: Option<Tensor>,
    /// (B, NH, T, S), where the options have a boolean or an additive mask; one by distances is a weight of each layer
    pub mask: Option<Tensor>,
}

impl Builder {
    /// The inputs `sequences`, `key_mask` and `mask` of an attention with these options, under names that begin with `prefix`.
    ///
    /// # Errors
    /// [`Error::Option`] for a size of 0, a longest sequence with more rows than there are, or a layout for a mask that the
    /// options do not have.
    pub fn batch(
        &mut self,
        prefix: &str,
        options: &AttentionOptions,
        n_heads: usize,
        shape: BatchShape,
        mask: Option<Layout>,
    ) -> Result<Batch> {
        shape.check()?;
        let sequences = Layout::contiguous(&[shape.sequences, SEQUENCE_WORDS])?;
        let sequences = self.input(&format!("{prefix}sequences"), Element::U32, sequences)?;
        self.batch_of(prefix, options, n_heads, shape, mask, sequences)
    }

    /// As [`Builder::batch`], of sequences that are there already.
    pub(crate) fn batch_of(
        &mut self,
        prefix: &str,
        options: &AttentionOptions,
        n_heads: usize,
        shape: BatchShape,
        mask: Option<Layout>,
        sequences: Tensor,
    ) -> Result<Batch> {
        shape.check()?;
        let (b, t, s) = (shape.sequences, shape.longest_q, shape.longest_k);
        let key_mask = match options.key_mask {
            true => Some(self.input(&format!("{prefix}key_mask"), Element::U32, Layout::contiguous(&[b, s])?)?),
            false => None,
        };
        let element = match options.mask {
            Some(Mask::Boolean) => Some(Element::U32),
            Some(Mask::Additive) => Some(Element::F32),
            Some(Mask::Relative { .. }) | None => None,
        };
        let mask = match (element, mask) {
            (Some(element), layout) => {
                let layout = layout.map_or_else(|| Layout::contiguous(&[b, n_heads, t, s]), Ok)?;
                Some(self.input(&format!("{prefix}mask"), element, layout)?)
            }
            (None, Some(layout)) => {
                return Err(Error::option(format!("{prefix}mask"), "no layout, as the options have no such mask", layout));
            }
            (None, None) => None,
        };
        Ok(Batch { shape, sequences, key_mask, mask })
    }

    /// The output for attention weights (B, NH, T, S), where they are wanted.
    fn weights_output(&mut self, wanted: bool, name: &str, n_heads: usize, shape: BatchShape) -> Result<Option<Tensor>> {
        if !wanted {
            return Ok(None);
        }
        let layout = Layout::contiguous(&[shape.sequences, n_heads, shape.longest_q, shape.longest_k])?;
        self.output(name, Element::F32, layout).map(Some)
    }

    /// Rows (rows, columns) that the caller binds.
    fn input_rows(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        self.input(name, self.storage(), Layout::contiguous(&[rows, columns])?)
    }

    /// Rows (rows, columns) that the caller receives.
    fn output_rows(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        self.output(name, self.storage(), Layout::contiguous(&[rows, columns])?)
    }

    /// Scratch of the same layout as `like`, without gaps.
    fn scratch_like(&mut self, name: &str, like: Tensor) -> Result<Tensor> {
        self.scratch(name, self.storage(), Layout::contiguous(like.layout().sizes())?)
    }

    /// A weight vector `name`, where there is one.
    fn vector(&mut self, wanted: bool, name: &str, size: usize) -> Result<Option<Tensor>> {
        if wanted { self.weight(name, Layout::contiguous(&[size])?).map(Some) } else { Ok(None) }
    }

    /// Appends y = norm(x), with `weight` and `bias` under `prefix`.
    ///
    /// # Errors
    /// As [`Builder::layer_norm`]; [`Error::Option`] for a prefix that does not end in a dot.
    pub fn norm(&mut self, prefix: &str, norm: &Norm, x: Tensor, y: Tensor) -> Result<()> {
        check_prefix(prefix)?;
        let columns = x.layout().sizes().last().copied().unwrap_or(0);
        let weight = self.vector(norm.weight, &format!("{prefix}weight"), columns)?;
        let bias = self.vector(norm.bias, &format!("{prefix}bias"), columns)?;
        let label = prefix.trim_end_matches('.');
        let args = LayerNorm { weight, bias, eps: norm.eps, ..LayerNorm::new(x, y) };
        match norm.kind {
            NormKind::Layer => self.layer_norm(label, &args),
            NormKind::Rms => self.rms_norm(label, &args),
        }
    }

    /// Appends y = `linear2`(activation(`linear1`(x))) + residual.
    ///
    /// # Errors
    /// As [`Builder::linear`]; [`Error::Option`] for a size of 0, or a prefix that does not end in a dot.
    pub fn feed_forward(
        &mut self,
        prefix: &str,
        spec: &FeedForward,
        x: Tensor,
        residual: Option<Tensor>,
        y: Tensor,
    ) -> Result<()> {
        let ([label1, label2], [first, second]) = self.feed_forward_parts(prefix, spec, x, residual, y)?;
        self.linear(&label1, &first)?;
        self.gate_hidden(prefix, spec, &first, &second)?;
        self.linear(&label2, &second)
    }

    /// The labels and the two projections of a feed-forward network, with scratch between them.
    fn feed_forward_parts(
        &mut self,
        prefix: &str,
        spec: &FeedForward,
        x: Tensor,
        residual: Option<Tensor>,
        y: Tensor,
    ) -> Result<([String; 2], [Linear; 2])> {
        check_prefix(prefix)?;
        let &FeedForward { d_model, d_ff, activation, bias, gated } = spec;
        crate::shape::nonzero("d_model", d_model)?;
        crate::shape::nonzero("d_ff", d_ff)?;
        let rows = x.layout().sizes()[0];
        let [label1, label2] = ["linear1", "linear2"].map(|name| format!("{prefix}{name}"));
        // A gate and what goes through it lie side by side.
        let (width1, activation) = if gated { (d_ff.saturating_mul(2), Activation::Identity) } else { (d_ff, activation) };
        let weight1 = self.projection_weight(&format!("{label1}.weight"), [width1, d_model])?;
        let bias1 = self.vector(bias, &format!("{label1}.bias"), width1)?;
        let weight2 = self.projection_weight(&format!("{label2}.weight"), [d_model, d_ff])?;
        let bias2 = self.vector(bias, &format!("{label2}.bias"), d_model)?;
        let projected = self.scratch("projected", self.storage(), Layout::contiguous(&[rows, width1])?)?;
        let hidden = match gated {
            true => self.scratch("hidden", self.storage(), Layout::contiguous(&[rows, d_ff])?)?,
            false => projected,
        };
        let first = Linear { bias: bias1, activation, ..Linear::new(x, weight1, projected) };
        let second = Linear { bias: bias2, residual, ..Linear::new(hidden, weight2, y) };
        Ok(([label1, label2], [first, second]))
    }

    /// What stands between the two projections of a gated network: hidden = activation(gate) · up.
    fn gate_hidden(&mut self, prefix: &str, spec: &FeedForward, first: &Linear, second: &Linear) -> Result<()> {
        if !spec.gated {
            return Ok(());
        }
        let [gate, up] = [0, spec.d_ff].map(|from| first.y.narrow(1, from, spec.d_ff));
        let args = Gate { gate: gate?, up: up?, activation: spec.activation, y: second.x };
        self.gate(&format!("{prefix}gate"), &args)
    }

    /// Appends logits = x · Wᵀ (+ bias): the projection to a vocabulary, W being `weight` (V, d_model). Name the token embedding's
    /// weight to tie it. Logits are stored as the rows are, or in f32 in any case: in a [`Builder::with_storage`] of f16 that is what a softmax or
    /// a choice on the CPU wants.
    ///
    /// # Errors
    /// As [`Builder::linear`].
    #[doc(alias("lm_head", "unembedding"))]
    pub fn head(&mut self, weight: &str, bias: Option<&str>, x: Tensor, logits: Tensor) -> Result<()> {
        let vocabulary = logits.layout().sizes().last().copied().unwrap_or(0);
        let d_model = x.layout().sizes().last().copied().unwrap_or(0);
        let table = self.weight(weight, Layout::contiguous(&[vocabulary, d_model])?)?;
        let bias = bias.map(|name| self.weight(name, Layout::contiguous(&[vocabulary])?)).transpose()?;
        let linear = Linear { bias, ..Linear::new(x, table, logits) };
        if self.storage() == Element::F16 && self.element(logits) == Element::F32 {
            return self.logits("head", None, &linear, None).map(drop);
        }
        self.linear("head", &linear)
    }
}
