//! Causal language models on the GPU: the forward pass.

use super::{CausalModel, Output};
use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{Batch, Inputs};
use crate::models::wiring::{attention, hidden, only_shape};
use crate::pipeline::Kernels;
use crate::program::{Program, Tensor};
use crate::shape::Layout;

impl CausalModel {
    /// Ids to `outputs`, in one program:
    ///
    /// ```text
    /// ids (rows), sequences (B, 8) -> hidden.0 -> layer 0 -> hidden.1 -> … -> layer L - 1 -> final norm -> hidden.L (rows, C) -> logits (rows, V)
    /// ```
    ///
    /// `ids` are `u32`; with rotary positions there is an input `rotary_table` too ([`CausalModel::rotary_table`]). Batches are padded or packed, as
    /// [`Sequences`](crate::Sequences) says. Layers that no output needs are left out, and so are their weights.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for no outputs, layers that there are not, sequences longer than the model has positions, a
    /// mask's layout, or `inputs.attention_weights` ([`Output::Attention`] is the way to them); as [`Builder::encoder_layer`].
    pub fn program(&self, kernels: &Kernels, inputs: &Inputs, outputs: &[Output]) -> Result<Program> {
        let shape = only_shape(inputs)?.to_self();
        let mut b = Builder::new(kernels, "causal model").storing(inputs.storage, inputs.weights)?;
        let attention = &self.layer.attention;
        let batch = b.batch("", &attention.options, attention.n_heads, shape, None)?;
        self.append(&mut b, &batch, outputs)?;
        b.finish()
    }

    /// As [`CausalModel::program`], as a part of the caller's: gives the rows (rows, C) that the last of `outputs` is made of.
    ///
    /// # Errors
    /// As [`CausalModel::program`].
    pub fn append(&self, b: &mut Builder, batch: &Batch, outputs: &[Output]) -> Result<Tensor> {
        let shape = batch.shape;
        self.check(shape.longest_q, outputs)?;
        let named = |output: Output| outputs.contains(&output).then(|| output.name());
        let rows = [shape.q_rows, self.embedding.d_model];
        let maps = [shape.sequences, self.layer.attention.n_heads, shape.longest_q, shape.longest_k];
        let mut x = hidden(b, named(Output::Hidden(0)), rows)?;
        b.embed("", &self.embedding, batch, x)?;
        for n in 0..self.layers_for(outputs) {
            let weights = attention(b, named(Output::Attention(n)), maps)?;
            // What stands behind the last layer is an output only behind its norm.
            let is_last = n + 1 == self.n_layers;
            let y = hidden(b, named(Output::Hidden(n + 1)).filter(|_| !is_last), rows)?;
            b.encoder_layer(&format!("layers.{n}."), &self.layer, batch, x, weights, y)?;
            x = y;
        }
        if self.is_normed_for(outputs) {
            let y = hidden(b, named(Output::Hidden(self.n_layers)), rows)?;
            b.norm("norm.", &self.final_norm, x, y)?;
            x = y;
        }
        if outputs.contains(&Output::Logits) {
            let layout = Layout::contiguous(&[shape.q_rows, self.embedding.vocabulary])?;
            let logits = b.output(&Output::Logits.name(), b.storage(), layout)?;
            b.head(self.head_weight(), None, x, logits)?;
        }
        Ok(x)
    }
}
