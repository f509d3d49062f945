//! Encoder and decoder on the CPU reference.

use std::collections::BTreeMap;

use super::{Output, Seq2Seq};
use crate::error::Result;
use crate::models::{Checkpoint, HostWeights};
use crate::reference::layers::{self as reference, AttentionMasks, Batch, Weights};
use crate::reference::{Linear, Real, linear};
use crate::spec::{Activation, BatchShape, Sequences};

/// What a forward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Seq2SeqInputs<'a> {
    /// (source rows)
    pub source_ids: &'a [u32],
    /// Where the sources lie.
    pub source: &'a Sequences,
    /// (target rows)
    pub target_ids: &'a [u32],
    /// Where the targets lie.
    pub target: &'a Sequences,
    /// Source positions that count (B, S), nonzero means attended, where the model's options have `key_mask`.
    pub key_mask: Option<&'a [u32]>,
}

impl Seq2Seq {
    /// The weights that `outputs` need, on the host, for [`Seq2Seq::reference`].
    ///
    /// # Errors
    /// As [`Source::resolve`](crate::models::Source::resolve).
    pub fn host_weights<T: Real>(&self, checkpoint: &Checkpoint, outputs: &[Output]) -> Result<HostWeights<T>> {
        let decodes = Self::decodes(outputs);
        let encodes = |name: &str| name.starts_with("source.") || name.starts_with("encoder.");
        self.weights()?.host(checkpoint, |name| decodes || encodes(name))
    }

    /// `outputs` by their names, as [`Seq2Seq::program`] makes them, by plain loops.
    ///
    /// # Errors
    /// As [`Seq2Seq::program`]; [`Error::Missing`](crate::Error::Missing) or [`Error::Shape`](crate::Error::Shape) for a weight,
    /// [`Error::Shape`](crate::Error::Shape) for inputs of another length, [`Error::Id`](crate::Error::Id) for an id outside its table,
    /// [`Error::Option`](crate::Error::Option) for another number of sources than targets.
    pub fn reference<T: Real>(
        &self,
        weights: &Weights<'_, T>,
        inputs: &Seq2SeqInputs<'_>,
        outputs: &[Output],
    ) -> Result<BTreeMap<String, Vec<T>>> {
        let &Seq2SeqInputs { source_ids, source, target_ids, target, key_mask } = inputs;
        let over = target.over(source)?;
        let (from, to) = (source.shape().to_self(), target.shape().to_self());
        let shape = BatchShape { k_rows: from.k_rows, longest_k: from.longest_k, ..to };
        self.check(&shape, outputs)?;
        let masks = AttentionMasks { key_mask, mask: None };
        let mut found = BTreeMap::new();
        let mut keep = |output: Output, values: &[T]| {
            if outputs.contains(&output) {
                found.insert(output.name(), values.to_vec());
            }
        };

        let layers = self.encoder_layers_for(outputs);
        let mut memory = Vec::new();
        if layers > 0 || outputs.contains(&Output::EncoderHidden(0)) {
            let items = source.as_slice();
            let batch = Batch::new(from, items).with_masks(masks);
            memory = reference::embeddings(&self.source_embedding(), weights, "source.", source_ids, None, Some(items))?;
            keep(Output::EncoderHidden(0), &memory);
            for n in 0..layers {
                let prefix = format!("encoder.layers.{n}.");
                let (y, probs) = reference::encoder_layer(&self.encoder.layer, weights, &prefix, &memory, &batch)?;
                keep(Output::EncoderAttention(n), &probs);
                memory = match self.encoder.final_norm.filter(|_| n + 1 == self.encoder.n_layers) {
                    Some(norm) => reference::norm(&norm, weights, "encoder.norm.", &y, from.k_rows, self.source.d_model)?,
                    None => y,
                };
                keep(Output::EncoderHidden(n + 1), &memory);
            }
        }
        if !Self::decodes(outputs) {
            return Ok(found);
        }

        let items = target.as_slice();
        let (batch, cross) = (Batch::new(to, items), Batch::new(shape, over.as_slice()).with_masks(masks));
        let mut x = reference::embeddings(&self.target_embedding(), weights, "target.", target_ids, None, Some(items))?;
        keep(Output::DecoderHidden(0), &x);
        for n in 0..self.decoder_layers_for(outputs) {
            let (prefix, layer) = (format!("decoder.layers.{n}."), &self.decoder.layer);
            let made = reference::decoder_layer(layer, weights, &prefix, &x, &memory, &batch, &cross)?;
            keep(Output::DecoderAttention(n), &made.self_probs);
            keep(Output::CrossAttention(n), &made.cross_probs);
            x = match self.decoder.final_norm.filter(|_| n + 1 == self.decoder.n_layers) {
                Some(norm) => reference::norm(&norm, weights, "decoder.norm.", &made.y, to.q_rows, self.target.d_model)?,
                None => made.y,
            };
            keep(Output::DecoderHidden(n + 1), &x);
        }
        if outputs.contains(&Output::Logits) {
            let (d_in, d_out) = (self.target.d_model, self.target.vocabulary);
            let logits = linear(&Linear {
                x: &x,
                weight: weights.get(self.head_weight(), &[d_out, d_in])?,
                bias: self.head_bias().map(|name| weights.get(name, &[d_out])).transpose()?,
                residual: None,
                activation: Activation::Identity,
                rows: to.q_rows,
                d_in,
                d_out,
            })?;
            keep(Output::Logits, &logits);
        }
        Ok(found)
    }
}
