//! Decoder layers and stacks.

use super::{AttentionRows, Batch, Inputs};
use crate::builder::Builder;
use crate::error::Result;
use crate::pipeline::Kernels;
use crate::program::{Program, Tensor};
use crate::spec::layers::{Decoder, DecoderLayer, MultiHeadAttention, Placement};

/// What a decoder attends to beside itself, and what it tells of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory<'a> {
    /// (k_rows, k_width)
    rows: Tensor,
    /// Its batch as cross-attention sees it.
    batch: &'a Batch,
}

/// The program's tensors around one layer or a stack: x, memory, y and both batches.
struct Frame {
    builder: Builder,
    batch: Batch,
    cross: Batch,
    x: Tensor,
    memory: Tensor,
    y: Tensor,
}

fn frame(name: &str, layer: &DecoderLayer, kernels: &Kernels, inputs: &Inputs) -> Result<Frame> {
    layer.check()?;
    let crate::BatchShape { sequences, q_rows, longest_q, .. } = inputs.shape;
    let own = crate::BatchShape { sequences, q_rows, longest_q, k_rows: q_rows, longest_k: longest_q };
    let (attention, cross) = (&layer.attention, &layer.cross_attention);
    let mut b = Builder::new(kernels, name);
    let batch = b.batch("", &attention.options, attention.n_heads, own, inputs.mask)?;
    let cross_batch = b.batch("cross_", &cross.options, cross.n_heads, inputs.shape, inputs.cross_mask)?;
    let x = b.input_rows("x", q_rows, attention.d_model)?;
    let memory = b.input_rows("memory", inputs.shape.k_rows, cross.k_width)?;
    let y = b.output_rows("y", q_rows, attention.d_model)?;
    Ok(Frame { builder: b, batch, cross: cross_batch, x, memory, y })
}

impl DecoderLayer {
    /// The layer as a program: `x` and `memory` to `y`, names as in [`crate::layers`], weights without a prefix. The shape's query rows
    /// are the decoder's, its key rows the memory's.
    ///
    /// # Errors
    /// As [`DecoderLayer::check`]; [`Error::Limit`](crate::Error::Limit) for tensors that exceed a binding.
    pub fn program(&self, kernels: &Kernels, inputs: &Inputs) -> Result<Program> {
        let Frame { builder: mut b, batch, cross, x, memory, y } = frame("decoder layer", self, kernels, inputs)?;
        let weights = layer_weights(&mut b, inputs.weights, "", self, &batch, &cross)?;
        b.decoder_layer("", self, [&batch, &cross], x, memory, weights, y)?;
        b.finish()
    }
}

impl Decoder {
    /// The stack as a program, as [`DecoderLayer::program`].
    ///
    /// # Errors
    /// As [`DecoderLayer::program`]; [`Error::Option`](crate::Error::Option) for a stack without layers.
    pub fn program(&self, kernels: &Kernels, inputs: &Inputs) -> Result<Program> {
        let Frame { builder: mut b, batch, cross, x, memory, y } = frame("decoder", &self.layer, kernels, inputs)?;
        b.decoder("", self, [&batch, &cross], x, memory, inputs.weights, y)?;
        b.finish()
    }
}

/// The outputs `weights` and `cross_weights` of a layer, where they are wanted.
fn layer_weights(
    b: &mut Builder,
    wanted: bool,
    prefix: &str,
    spec: &DecoderLayer,
    batch: &Batch,
    cross: &Batch,
) -> Result<[Option<Tensor>; 2]> {
    let own = b.weights_output(wanted, &format!("{prefix}weights"), spec.attention.n_heads, batch.shape)?;
    let other = b.weights_output(wanted, &format!("{prefix}cross_weights"), spec.cross_attention.n_heads, cross.shape)?;
    Ok([own, other])
}

impl Builder {
    /// Appends a decoder layer over the batches of its self-attention and its cross-attention:
    ///
    /// ```text
    /// post-norm: a = norm1(x + self_attn(x)) ; h = norm2(a + multihead_attn(a, memory)) ; y = norm3(h + feed_forward(h))
    /// pre-norm:  a = x + self_attn(norm1(x)) ; h = a + multihead_attn(norm2(a), memory) ; y = h + feed_forward(norm3(h))
    /// ```
    ///
    /// `weights` are the attention weights of both as outputs.
    ///
    /// # Errors
    /// As [`DecoderLayer::check`] and [`Builder::multi_head_attention`].
    #[allow(clippy::too_many_arguments)]
    pub fn decoder_layer(
        &mut self,
        prefix: &str,
        spec: &DecoderLayer,
        [batch, cross]: [&Batch; 2],
        x: Tensor,
        memory: Tensor,
        weights: [Option<Tensor>; 2],
        y: Tensor,
    ) -> Result<()> {
        spec.check()?;
        let memory = Memory { rows: memory, batch: cross };
        let attentions: [(&str, &MultiHeadAttention, Option<Memory<'_>>); 2] =
            [("self_attn.", &spec.attention, None), ("multihead_attn.", &spec.cross_attention, Some(memory))];
        let mut x = x;
        for (i, (name, attention, memory)) in attentions.into_iter().enumerate() {
            let norm = format!("{prefix}norm{}.", i + 1);
            let (sum, normed) = (self.scratch_like("sum", x)?, self.scratch_like("normed", x)?);
            let (from, batch) =
                (if spec.placement == Placement::Pre { normed } else { x }, memory.map_or(batch, |m| m.batch));
            if spec.placement == Placement::Pre {
                self.norm(&norm, &spec.norm, x, normed)?;
            }
            let rows = memory.map_or(from, |m| m.rows);
            let rows = AttentionRows { residual: Some(x), weights: weights[i], ..AttentionRows::cross(from, rows, sum) };
            self.multi_head_attention(&format!("{prefix}{name}"), attention, batch, &rows)?;
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
    #[allow(clippy::too_many_arguments)]
    pub fn decoder(
        &mut self,
        prefix: &str,
        spec: &Decoder,
        [batch, cross]: [&Batch; 2],
        x: Tensor,
        memory: Tensor,
        weights: bool,
        y: Tensor,
    ) -> Result<()> {
        self.stack(prefix, spec, batch, x, y, |b, prefix, x, y| {
            let weights = layer_weights(b, weights, prefix, &spec.layer, batch, cross)?;
            b.decoder_layer(prefix, &spec.layer, [batch, cross], x, memory, weights, y)
        })
    }
}
