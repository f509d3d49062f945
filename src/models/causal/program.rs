//! Causal language models on the GPU: the forward pass.

use super::{CausalModel, Output};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::layers::{Batch, Inputs};
use crate::pipeline::Kernels;
use crate::program::{Program, Tensor};
use crate::shape::Layout;
use crate::tensor::Element;

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
    /// [`Error::Option`] for no outputs, layers that there are not, sequences longer than the model has positions, a mask's layout, or
    /// `inputs.weights` ([`Output::Attention`] is the way to them); as [`Builder::encoder_layer`].
    pub fn program(&self, kernels: &Kernels, inputs: &Inputs, outputs: &[Output]) -> Result<Program> {
        if inputs.mask.is_some() || inputs.cross_mask.is_some() || inputs.weights {
            return Err(Error::option("inputs", "a shape and a storage alone", "masks or weights"));
        }
        let mut b = Builder::new(kernels, "causal model").with_storage(inputs.storage)?;
        let attention = &self.layer.attention;
        let batch = b.batch("", &attention.options, attention.n_heads, inputs.shape.to_self(), None)?;
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
        let mut x = self.hidden(b, batch, outputs, 0)?;
        b.embed("", &self.embedding, batch, x)?;
        for n in 0..self.layers_for(outputs) {
            let weights = match outputs.contains(&Output::Attention(n)) {
                true => {
                    let sizes = [shape.sequences, self.layer.attention.n_heads, shape.longest_q, shape.longest_k];
                    Some(b.output(&Output::Attention(n).name(), Element::F32, Layout::contiguous(&sizes)?)?)
                }
                false => None,
            };
            // What stands behind the last layer is an output only behind its norm.
            let y = match n + 1 == self.n_layers {
                true => b.scratch("hidden", b.storage(), self.rows(shape.q_rows)?)?,
                false => self.hidden(b, batch, outputs, n + 1)?,
            };
            b.encoder_layer(&format!("layers.{n}."), &self.layer, batch, x, weights, y)?;
            x = y;
        }
        if self.is_normed_for(outputs) {
            let y = self.hidden(b, batch, outputs, self.n_layers)?;
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

    /// Where the rows of [`Output::Hidden`] `n` are: an output of the caller's, or scratch.
    fn hidden(&self, b: &mut Builder, batch: &Batch, outputs: &[Output], n: usize) -> Result<Tensor> {
        let layout = self.rows(batch.shape.q_rows)?;
        match outputs.contains(&Output::Hidden(n)) {
            true => b.output(&Output::Hidden(n).name(), b.storage(), layout),
            false => b.scratch("hidden", b.storage(), layout),
        }
    }
}
