//! BERT on the GPU.

use super::{Bert, Output};
use crate::builder::Builder;
use crate::error::Result;
use crate::kernels::{Linear, Pool};
use crate::layers::{Batch, Inputs};
use crate::models::wiring::{attention, hidden, only_shape};
use crate::pipeline::Kernels;
use crate::program::{Program, Tensor};
use crate::shape::Layout;
use crate::spec::{Activation, Pooling};

impl Bert {
    /// Ids to `outputs`, in one program:
    ///
    /// ```text
    /// ids (rows), segment_ids (rows), sequences (B, 8) -> hidden.0 -> layer 0 -> hidden.1 -> … -> hidden.L (rows, C)
    /// hidden.L -> embedding, pooled (B, C) ; hidden.L -> mlm_logits (rows, V), token_logits, span_logits ; pooled -> nsp_logits, sequence_logits
    /// ```
    ///
    /// `ids` and `segment_ids` are `u32`; text of one segment has zeros. Batches are padded or packed, as
    /// [`Sequences`](crate::Sequences) says. Layers that no output needs are left out, and so are their weights.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for no outputs, layers that there are not, sequences longer than the model has positions, an
    /// embedding with a key mask, a mask's layout, or `inputs.attention_weights` ([`Output::Attention`] is the way to them); as
    /// [`Builder::encoder_layer`].
    pub fn program(&self, kernels: &Kernels, inputs: &Inputs, outputs: &[Output]) -> Result<Program> {
        let shape = only_shape(inputs)?.to_self();
        let mut b = Builder::new(kernels, "BERT").storing(inputs.storage, inputs.weights)?;
        let attention = &self.layer.attention;
        let batch = b.batch("", &attention.options, attention.n_heads, shape, None)?;
        self.append(&mut b, &batch, outputs)?;
        b.finish()
    }

    /// As [`Bert::program`], as a part of the caller's: gives the rows (rows, C) behind the last layer that `outputs` need.
    ///
    /// # Errors
    /// As [`Bert::program`].
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
            let y = hidden(b, named(Output::Hidden(n + 1)), rows)?;
            b.encoder_layer(&format!("layers.{n}."), &self.layer, batch, x, weights, y)?;
            x = y;
        }
        let on_rows = Rows { b, rows: shape.q_rows, x };
        self.row_heads(on_rows, outputs)?;
        self.sequence_heads(b, batch, x, outputs)?;
        Ok(x)
    }

    /// The heads that say something about every row.
    fn row_heads(&self, mut on: Rows<'_>, outputs: &[Output]) -> Result<()> {
        let d_model = self.embedding.d_model;
        if outputs.contains(&Output::MaskedLanguage) {
            let [dense, normed] = ["mlm.dense", "mlm.norm"].map(|name| on.scratch(name, d_model));
            let (dense, normed) = (dense?, normed?);
            on.project("mlm.dense", self.head_activation, dense)?;
            on.b.norm("mlm.norm.", &self.layer.norm, dense, normed)?;
            let logits = on.output(Output::MaskedLanguage, self.embedding.vocabulary)?;
            on.b.head(self.decoder_weight(), Some("mlm.bias"), normed, logits)?;
        }
        if outputs.contains(&Output::TokenClasses) {
            let logits = on.output(Output::TokenClasses, self.labels.len())?;
            on.project("classifier", Activation::Identity, logits)?;
        }
        if outputs.contains(&Output::Spans) {
            let logits = on.output(Output::Spans, 2)?;
            on.project("spans", Activation::Identity, logits)?;
        }
        Ok(())
    }

    /// The heads that say something about every sequence.
    fn sequence_heads(&self, b: &mut Builder, batch: &Batch, x: Tensor, outputs: &[Output]) -> Result<()> {
        let (d_model, rows) = (self.embedding.d_model, batch.shape.sequences);
        let (sequences, longest) = (batch.sequences, batch.shape.longest_k);
        if outputs.contains(&Output::Embedding) {
            let y = Rows { b, rows, x }.output(Output::Embedding, d_model)?;
            let pool = Pool { x, sequences, longest, pooling: self.pooling, normalize: self.normalize, y };
            b.pool("embedding", &pool)?;
        }
        if !outputs.iter().any(|o| o.is_of_pooled()) {
            return Ok(());
        }
        let mut on = Rows { b, rows, x };
        let first = on.scratch("first", d_model)?;
        on.b.pool("first", &Pool { x, sequences, longest, pooling: Pooling::First, normalize: false, y: first })?;
        let pooled = match outputs.contains(&Output::Pooled) {
            true => on.output(Output::Pooled, d_model)?,
            false => on.scratch("pooled", d_model)?,
        };
        on.x = first;
        on.project("pooler", Activation::Tanh, pooled)?;
        on.x = pooled;
        for (output, name, columns) in
            [(Output::NextSentence, "nsp", 2), (Output::SequenceClasses, "classifier", self.labels.len())]
        {
            if outputs.contains(&output) {
                let logits = on.output(output, columns)?;
                on.project(name, Activation::Identity, logits)?;
            }
        }
        Ok(())
    }
}

/// Rows that heads project.
struct Rows<'a> {
    b: &'a mut Builder,
    rows: usize,
    /// (rows, C)
    x: Tensor,
}

impl Rows<'_> {
    fn scratch(&mut self, name: &str, columns: usize) -> Result<Tensor> {
        self.b.scratch(name, self.b.storage(), Layout::contiguous(&[self.rows, columns])?)
    }

    fn output(&mut self, output: Output, columns: usize) -> Result<Tensor> {
        self.b.output(&output.name(), self.b.storage(), Layout::contiguous(&[self.rows, columns])?)
    }

    /// y = activation(x · Wᵀ + b), by the weights under `name`.
    fn project(&mut self, name: &str, activation: Activation, y: Tensor) -> Result<()> {
        let [d_in, d_out] = [self.x, y].map(|t| t.layout().sizes()[1]);
        let weight = self.b.weight(&format!("{name}.weight"), Layout::contiguous(&[d_out, d_in])?)?;
        let bias = Some(self.b.weight(&format!("{name}.bias"), Layout::contiguous(&[d_out])?)?);
        self.b.linear(name, &Linear { bias, activation, ..Linear::new(self.x, weight, y) })
    }
}
