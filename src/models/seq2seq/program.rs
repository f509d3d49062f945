//! Encoder and decoder on the GPU.

use super::{Output, Seq2Seq};
use crate::builder::Builder;
use crate::error::Result;
use crate::layers::{DecoderRows, Inputs};
use crate::models::wiring::{attention, hidden, only_shape};
use crate::pipeline::Kernels;
use crate::program::{Program, Tensor};
use crate::shape::Layout;
use crate::spec::BatchShape;
use crate::tensor::Element;

impl Seq2Seq {
    /// Source and target ids to `outputs`, in one program:
    ///
    /// ```text
    /// source.ids (k_rows), source.sequences (B, 8)   -> encoder_hidden.0 -> layer 0 -> … -> encoder_hidden.L (k_rows, C), the memory
    /// target.ids (q_rows), target.sequences (B, 8),
    /// cross.sequences (B, 8), memory                 -> decoder_hidden.0 -> layer 0 -> … -> decoder_hidden.L (q_rows, C) -> logits (q_rows, V)
    /// ```
    ///
    /// The query rows of `inputs` are the target's, its key rows the source's. Ids are `u32`; a target begins with
    /// [`Tokens::start`](super::Tokens). Batches are padded or packed, as [`Sequences`](crate::Sequences) says; those of cross-attention have the
    /// target's rows as queries and the source's as keys ([`Sequences::over`](crate::Sequences::over)). Layers that no output needs are
    /// left out, and so are their weights and inputs.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for no outputs, layers that there are not, sequences longer than the model has positions, a
    /// mask's layout, or `inputs.attention_weights` (outputs are the way to them); as [`Builder::encoder_layer`] and [`Builder::decoder_layer`].
    pub fn program(&self, kernels: &Kernels, inputs: &Inputs, outputs: &[Output]) -> Result<Program> {
        let shape = only_shape(inputs)?;
        self.check(&shape, outputs)?;
        let mut b = Builder::new(kernels, "sequence to sequence").storing(inputs.storage, inputs.weights)?;
        let layers = self.encoder_layers_for(outputs);
        let encodes = layers > 0 || outputs.contains(&Output::EncoderHidden(0));
        let memory = match encodes {
            true => Some(self.append_encoder(&mut b, &shape, outputs, None)?),
            false => None,
        };
        if Self::decodes(outputs) {
            self.append_decoder(&mut b, &shape, outputs, memory)?;
        }
        b.finish()
    }

    /// `source.ids` and `source.sequences` to `memory` (rows, C), which [`Generator::remember`](crate::spec::generator::Generator::remember) reads.
    ///
    /// # Errors
    /// As [`Seq2Seq::program`].
    pub fn encode(&self, kernels: &Kernels, inputs: &Inputs) -> Result<Program> {
        let own = only_shape(inputs)?.to_self();
        let outputs = [Output::EncoderHidden(self.encoder.n_layers)];
        self.check(&own, &outputs)?;
        let mut b = Builder::new(kernels, "encode").storing(inputs.storage, inputs.weights)?;
        let memory = b.output("memory", b.storage(), Layout::contiguous(&[own.k_rows, self.source.d_model])?)?;
        self.append_encoder(&mut b, &own, &outputs, Some(memory))?;
        b.finish()
    }

    /// Appends the source's embedding and the encoder's layers that `outputs` need, the last one's rows to `memory` where that is
    /// given: gives those.
    fn append_encoder(
        &self,
        b: &mut Builder,
        shape: &BatchShape,
        outputs: &[Output],
        memory: Option<Tensor>,
    ) -> Result<Tensor> {
        let &BatchShape { sequences, k_rows, longest_k, .. } = shape;
        let own = BatchShape { q_rows: k_rows, longest_q: longest_k, ..*shape };
        let layer = &self.encoder.layer;
        let batch = b.batch("source.", &layer.attention.options, layer.attention.n_heads, own, None)?;
        let layers = self.encoder_layers_for(outputs);
        let named = |output: Output| outputs.contains(&output).then(|| output.name());
        let rows = |b: &mut Builder, n: usize| match memory.filter(|_| n == layers) {
            Some(memory) => Ok(memory),
            None => hidden(b, named(Output::EncoderHidden(n)), [k_rows, self.source.d_model]),
        };
        let mut x = rows(b, 0)?;
        let ids = b.input("source.ids", Element::U32, Layout::contiguous(&[k_rows])?)?;
        let table = Layout::contiguous(&[self.source.vocabulary, self.source.d_model])?;
        let table = b.weight(self.source_table(), table)?;
        b.embed_from("source.", &self.source_embedding(), &batch, (ids, table), x)?;
        for n in 0..layers {
            let sizes = [sequences, layer.attention.n_heads, longest_k, longest_k];
            let weights = attention(b, named(Output::EncoderAttention(n)), sizes)?;
            let prefix = format!("encoder.layers.{n}.");
            match self.encoder.final_norm.filter(|_| n + 1 == self.encoder.n_layers) {
                None => {
                    let y = rows(b, n + 1)?;
                    b.encoder_layer(&prefix, layer, &batch, x, weights, y)?;
                    x = y;
                }
                Some(norm) => {
                    let behind = hidden(b, None, [k_rows, self.source.d_model])?;
                    b.encoder_layer(&prefix, layer, &batch, x, weights, behind)?;
                    x = rows(b, n + 1)?;
                    b.norm("encoder.norm.", &norm, behind, x)?;
                }
            }
        }
        Ok(x)
    }

    /// Appends the target's embedding, the decoder's layers that `outputs` need, and the projection to logits.
    fn append_decoder(&self, b: &mut Builder, shape: &BatchShape, outputs: &[Output], memory: Option<Tensor>) -> Result<()> {
        let &BatchShape { sequences, q_rows, longest_q, longest_k, .. } = shape;
        let own = BatchShape { k_rows: q_rows, longest_k: longest_q, ..*shape };
        let layer = &self.decoder.layer;
        let (attends, crosses) = (&layer.attention, &layer.cross_attention);
        let batch = b.batch("target.", &attends.options, attends.n_heads, own, None)?;
        let sizes = [q_rows, self.target.d_model];
        let named = |output: Output| outputs.contains(&output).then(|| output.name());
        let mut x = hidden(b, named(Output::DecoderHidden(0)), sizes)?;
        b.embed("target.", &self.target_embedding(), &batch, x)?;
        if let Some(memory) = memory.filter(|_| self.decoder_layers_for(outputs) > 0) {
            let cross = b.batch("cross.", &crosses.options, crosses.n_heads, *shape, None)?;
            for n in 0..self.decoder_layers_for(outputs) {
                let own = [sequences, attends.n_heads, longest_q, longest_q];
                let other = [sequences, crosses.n_heads, longest_q, longest_k];
                let weights = [
                    attention(b, named(Output::DecoderAttention(n)), own)?,
                    attention(b, named(Output::CrossAttention(n)), other)?,
                ];
                let norm = self.decoder.final_norm.filter(|_| n + 1 == self.decoder.n_layers);
                let output = named(Output::DecoderHidden(n + 1));
                let y = hidden(b, output.clone().filter(|_| norm.is_none()), sizes)?;
                let rows = DecoderRows { x, batch, memory, cross, y };
                b.decoder_layer(&format!("decoder.layers.{n}."), layer, &rows, weights)?;
                x = y;
                if let Some(norm) = norm {
                    x = hidden(b, output, sizes)?;
                    b.norm("decoder.norm.", &norm, y, x)?;
                }
            }
        }
        if outputs.contains(&Output::Logits) {
            let layout = Layout::contiguous(&[q_rows, self.target.vocabulary])?;
            let logits = b.output(&Output::Logits.name(), b.storage(), layout)?;
            b.head(self.head_weight(), self.head_bias(), x, logits)?;
        }
        Ok(())
    }
}
