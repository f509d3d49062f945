//! Encoder layers and stacks.

use super::{AttentionRows, Batch, Inputs};
use crate::builder::Builder;
use crate::error::Result;
use crate::pipeline::Kernels;
use crate::program::{Program, Tensor};
use crate::shape::nonzero;
use crate::spec::layers::{Encoder, EncoderLayer, Placement, Stack, check_prefix};

impl EncoderLayer {
    /// The layer as a program: `x` to `y`, names as in [`crate::layers`], weights without a prefix.
    ///
    /// # Errors
    /// As [`EncoderLayer::check`]; [`Error::Limit`](crate::Error::Limit) for tensors that exceed a binding.
    pub fn program(&self, kernels: &Kernels, inputs: &Inputs) -> Result<Program> {
        self.check()?;
        let shape = inputs.shape.to_self();
        let mut b = Builder::new(kernels, "encoder layer").storing(inputs.storage, inputs.weights)?;
        let batch = b.batch("", &self.attention.options, self.attention.n_heads, shape, inputs.only_mask()?)?;
        let x = b.input_rows("x", shape.q_rows, self.attention.d_model)?;
        let y = b.output_rows("y", shape.q_rows, self.attention.d_model)?;
        let weights = b.weights_output(inputs.attention_weights, "weights", self.attention.n_heads, shape)?;
        b.encoder_layer("", self, &batch, x, weights, y)?;
        b.finish()
    }
}

impl Encoder {
    /// The stack as a program: `x` to `y`, names as in [`crate::layers`].
    ///
    /// # Errors
    /// As [`EncoderLayer::program`]; [`Error::Option`](crate::Error::Option) for a stack without layers.
    pub fn program(&self, kernels: &Kernels, inputs: &Inputs) -> Result<Program> {
        self.layer.check()?;
        let shape = inputs.shape.to_self();
        let attention = &self.layer.attention;
        let mut b = Builder::new(kernels, "encoder").storing(inputs.storage, inputs.weights)?;
        let batch = b.batch("", &attention.options, attention.n_heads, shape, inputs.only_mask()?)?;
        let x = b.input_rows("x", shape.q_rows, attention.d_model)?;
        let y = b.output_rows("y", shape.q_rows, attention.d_model)?;
        b.encoder("", self, &batch, x, inputs.attention_weights, y)?;
        b.finish()
    }
}

impl Builder {
    /// Appends an encoder layer:
    ///
    /// ```text
    /// post-norm: h = norm1(x + self_attn(x)) ; y = norm2(h + feed_forward(h))
    /// pre-norm:  h = x + self_attn(norm1(x)) ; y = h + feed_forward(norm2(h))
    /// ```
    ///
    /// # Errors
    /// As [`EncoderLayer::check`] and [`Builder::multi_head_attention`].
    pub fn encoder_layer(
        &mut self,
        prefix: &str,
        spec: &EncoderLayer,
        batch: &Batch,
        x: Tensor,
        weights: Option<Tensor>,
        y: Tensor,
    ) -> Result<()> {
        spec.check()?;
        let attend = |b: &mut Self, x: Tensor, y: Tensor, residual: Tensor| {
            let rows = AttentionRows { residual: Some(residual), weights, ..AttentionRows::self_attention(x, y) };
            b.multi_head_attention(&format!("{prefix}self_attn."), &spec.attention, batch, &rows)
        };
        let sum = self.scratch_like("sum", x)?;
        let normed = self.scratch_like("normed", x)?;
        match spec.placement {
            Placement::Post => {
                attend(self, x, sum, x)?;
                self.norm(&format!("{prefix}norm1."), &spec.norm, sum, normed)?;
                let sum = self.scratch_like("sum", x)?;
                self.feed_forward(prefix, &spec.feed_forward, normed, Some(normed), sum)?;
                self.norm(&format!("{prefix}norm2."), &spec.norm, sum, y)
            }
            Placement::Pre => {
                self.norm(&format!("{prefix}norm1."), &spec.norm, x, normed)?;
                attend(self, normed, sum, x)?;
                let normed = self.scratch_like("normed", x)?;
                self.norm(&format!("{prefix}norm2."), &spec.norm, sum, normed)?;
                self.feed_forward(prefix, &spec.feed_forward, normed, Some(sum), y)
            }
        }
    }

    /// Appends a stack of encoder layers, with `layers.N.weights` under `prefix` as outputs where `weights` is set.
    ///
    /// # Errors
    /// As [`Builder::encoder_layer`]; [`Error::Option`](crate::Error::Option) for a stack without layers.
    pub fn encoder(
        &mut self,
        prefix: &str,
        spec: &Encoder,
        batch: &Batch,
        x: Tensor,
        weights: bool,
        y: Tensor,
    ) -> Result<()> {
        self.stack(prefix, spec, batch, x, y, |b, prefix, x, y| {
            let n_heads = spec.layer.attention.n_heads;
            let weights = b.weights_output(weights, &format!("{prefix}weights"), n_heads, batch.shape)?;
            b.encoder_layer(prefix, &spec.layer, batch, x, weights, y)
        })
    }

    /// Appends the layers of a stack one after another, with positions before each and a norm behind the last where the stack
    /// has them.
    pub(super) fn stack<L>(
        &mut self,
        prefix: &str,
        spec: &Stack<L>,
        batch: &Batch,
        x: Tensor,
        y: Tensor,
        mut layer: impl FnMut(&mut Self, &str, Tensor, Tensor) -> Result<()>,
    ) -> Result<()> {
        check_prefix(prefix)?;
        nonzero("n_layers", spec.n_layers)?;
        let mut x = x;
        for i in 0..spec.n_layers {
            if let Some(positions) = spec.positions_every_layer {
                let placed = self.scratch_like("placed", x)?;
                self.add_positions(prefix, positions, batch, x, placed)?;
                x = placed;
            }
            let last = i + 1 == spec.n_layers && spec.final_norm.is_none();
            let out = if last { y } else { self.scratch_like("layer", x)? };
            layer(self, &format!("{prefix}layers.{i}."), x, out)?;
            x = out;
        }
        spec.final_norm.as_ref().map_or(Ok(()), |norm| self.norm(&format!("{prefix}norm."), norm, x, y))
    }
}
