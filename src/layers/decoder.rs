//! Decoder layers and stacks.

use super::{AttentionRows, Batch, Inputs};
use crate::builder::Builder;
use crate::error::Result;
use crate::pipeline::Kernels;
use crate::program::{Program, Tensor};
use crate::spec::layers::{Decoder, DecoderLayer, Placement};

/// The tensors of a decoder: its own rows, and those that it attends to.
#[derive(Clone, Copy, Debug)]
pub struct DecoderRows {
    /// (q_rows, d_model)
    pub x: Tensor,
    /// The batch of x as self-attention sees it.
    pub batch: Batch,
    /// (k_rows, k_width): the encoder's output
    pub memory: Tensor,
    /// The batch as cross-attention sees it: the queries are those of x, the keys those of the memory.
    pub cross: Batch,
    /// (q_rows, d_model)
    pub y: Tensor,
}

/// A builder with the tensors around one layer or a stack.
fn frame(name: &str, layer: &DecoderLayer, kernels: &Kernels, inputs: &Inputs) -> Result<(Builder, DecoderRows)> {
    layer.check()?;
    let crate::BatchShape { sequences, q_rows, longest_q, .. } = inputs.shape;
    let own = crate::BatchShape { sequences, q_rows, longest_q, k_rows: q_rows, longest_k: longest_q };
    let (attention, cross) = (&layer.attention, &layer.cross_attention);
    let mut b = Builder::new(kernels, name).storing(inputs.storage, inputs.weights)?;
    let batch = b.batch("", &attention.options, attention.n_heads, own, inputs.mask)?;
    let cross_batch = b.batch("cross_", &cross.options, cross.n_heads, inputs.shape, inputs.cross_mask)?;
    let x = b.input_rows("x", q_rows, attention.d_model)?;
    let memory = b.input_rows("memory", inputs.shape.k_rows, cross.k_width)?;
    let y = b.output_rows("y", q_rows, attention.d_model)?;
    Ok((b, DecoderRows { x, batch, memory, cross: cross_batch, y }))
}

impl DecoderLayer {
    /// The layer as a program: `x` and `memory` to `y`, names as in [`crate::layers`], weights without a prefix. The shape's query rows
    /// are the decoder's, its key rows the memory's.
    ///
    /// # Errors
    /// As [`DecoderLayer::check`]; [`Error::Limit`](crate::Error::Limit) for tensors that exceed a binding.
    pub fn program(&self, kernels: &Kernels, inputs: &Inputs) -> Result<Program> {
        let (mut b, rows) = frame("decoder layer", self, kernels, inputs)?;
        let weights = layer_weights(&mut b, inputs.attention_weights, "", self, &rows)?;
        b.decoder_layer("", self, &rows, weights)?;
        b.finish()
    }
}

impl Decoder {
    /// The stack as a program, as [`DecoderLayer::program`].
    ///
    /// # Errors
    /// As [`DecoderLayer::program`]; [`Error::Option`](crate::Error::Option) for a stack without layers.
    pub fn program(&self, kernels: &Kernels, inputs: &Inputs) -> Result<Program> {
        let (mut b, rows) = frame("decoder", &self.layer, kernels, inputs)?;
        b.decoder("", self, &rows, inputs.attention_weights)?;
        b.finish()
    }
}

/// The outputs `weights` and `cross_weights` of a layer, where they are wanted.
fn layer_weights(
    b: &mut Builder,
    wanted: bool,
    prefix: &str,
    spec: &DecoderLayer,
    rows: &DecoderRows,
) -> Result<[Option<Tensor>; 2]> {
    let (heads, cross_heads) = (spec.attention.n_heads, spec.cross_attention.n_heads);
    let own = b.weights_output(wanted, &format!("{prefix}weights"), heads, rows.batch.shape)?;
    let other = b.weights_output(wanted, &format!("{prefix}cross_weights"), cross_heads, rows.cross.shape)?;
    Ok([own, other])
}

impl Builder {
    /// Appends a decoder layer:
    ///
    /// ```text
    /// post-norm: a = norm1(x + self_attn(x)) ; h = norm2(a + multihead_attn(a, memory)) ; y = norm3(h + feed_forward(h))
    /// pre-norm:  a = x + self_attn(norm1(x)) ; h = a + multihead_attn(norm2(a), memory) ; y = h + feed_forward(norm3(h))
    /// ```
    ///
    /// `weights` are the attention weights of self-attention and of cross-attention as outputs.
    ///
    /// # Errors
    /// As [`DecoderLayer::check`] and [`Builder::multi_head_attention`].
    pub fn decoder_layer(
        &mut self,
        prefix: &str,
        spec: &DecoderLayer,
        rows: &DecoderRows,
        weights: [Option<Tensor>; 2],
    ) -> Result<()> {
        spec.check()?;
        let &DecoderRows { x, batch, memory, cross, y } = rows;
        let attentions =
            [("self_attn.", &spec.attention, batch, None), ("multihead_attn.", &spec.cross_attention, cross, Some(memory))];
        let mut x = x;
        for (i, (name, attention, batch, memory)) in attentions.into_iter().enumerate() {
            let norm = format!("{prefix}norm{}.", i + 1);
            let (sum, normed) = (self.scratch_like("sum", x)?, self.scratch_like("normed", x)?);
            let from = if spec.placement == Placement::Pre { normed } else { x };
            if spec.placement == Placement::Pre {
                self.norm(&norm, &spec.norm, x, normed)?;
            }
            let memory = memory.unwrap_or(from);
            let rows = AttentionRows { residual: Some(x), weights: weights[i], ..AttentionRows::cross(from, memory, sum) };
            self.multi_head_attention(&format!("{prefix}{name}"), attention, &batch, &rows)?;
            x = if spec.placement == Placement::Post {
                self.norm(&norm, &spec.norm, sum, normed)?;
                normed
            } else {
                sum
            };
        }
        let norm = format!("{prefix}norm3.");
        let between = self.scratch_like("between", x)?;
        match spec.placement {
            Placement::Post => {
                self.feed_forward(prefix, &spec.feed_forward, x, Some(x), between)?;
                self.norm(&norm, &spec.norm, between, y)
            }
            Placement::Pre => {
                self.norm(&norm, &spec.norm, x, between)?;
                self.feed_forward(prefix, &spec.feed_forward, between, Some(x), y)
            }
        }
    }

    /// Appends a stack of decoder layers, with `layers.N.weights` and `layers.N.cross_weights` under `prefix` as outputs where `weights`
    /// is set.
    ///
    /// # Errors
    /// As [`Builder::decoder_layer`]; [`Error::Option`](crate::Error::Option) for a stack without layers.
    pub fn decoder(&mut self, prefix: &str, spec: &Decoder, rows: &DecoderRows, weights: bool) -> Result<()> {
        self.stack(prefix, spec, &rows.batch, rows.x, rows.y, |b, prefix, x, y| {
            let weights = layer_weights(b, weights, prefix, &spec.layer, rows)?;
            b.decoder_layer(prefix, &spec.layer, &DecoderRows { x, y, ..*rows }, weights)
        })
    }
}
