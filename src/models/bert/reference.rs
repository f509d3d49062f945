//! BERT on the CPU reference.

use std::collections::BTreeMap;

use super::{Bert, Output};
use crate::error::Result;
use crate::models::{Checkpoint, HostWeights};
use crate::reference::layers::{self as reference, AttentionMasks, Batch, Weights};
use crate::reference::{Linear, Real, linear, pool};
use crate::spec::{Activation, Pooling, Sequences};

/// What a BERT reads.
#[derive(Clone, Copy, Debug)]
pub struct BertInputs<'a> {
    /// (rows)
    pub ids: &'a [u32],
    /// (rows)
    pub segment_ids: &'a [u32],
    /// Where the sequences lie.
    pub sequences: &'a Sequences,
    /// (B, T), nonzero means attended, where the model's options have `key_mask`.
    pub key_mask: Option<&'a [u32]>,
}

impl Bert {
    /// The weights that `outputs` need, on the host, for [`Bert::reference`].
    ///
    /// # Errors
    /// As [`Source::resolve`](crate::models::Source::resolve).
    pub fn host_weights<T: Real>(&self, checkpoint: &Checkpoint, outputs: &[Output]) -> Result<HostWeights<T>> {
        let layers: Vec<String> = (0..self.layers_for(outputs)).map(|n| format!("layers.{n}.")).collect();
        let any = |of: &[Output]| outputs.iter().any(|o| of.contains(o));
        let is_of = |name: &str, prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
        self.weights().host(checkpoint, |name| match name {
            _ if name.contains("_embedding.") || is_of(name, "norm") => true,
            _ if name.starts_with("layers.") => layers.iter().any(|layer| name.starts_with(layer)),
            _ if is_of(name, "pooler") => outputs.iter().any(|o| o.is_of_pooled()),
            "mlm.decoder.weight" => any(&[Output::MaskedLanguage]) && !self.tied,
            _ if is_of(name, "mlm") => any(&[Output::MaskedLanguage]),
            _ if is_of(name, "nsp") => any(&[Output::NextSentence]),
            _ if is_of(name, "classifier") => any(&[Output::SequenceClasses, Output::TokenClasses]),
            _ => any(&[Output::Spans]),
        })
    }

    /// `outputs` by their names, as [`Bert::program`] makes them, by plain loops.
    ///
    /// # Errors
    /// As [`Bert::program`]; [`Error::Missing`](crate::Error::Missing) or [`Error::Shape`](crate::Error::Shape) for a weight,
    /// [`Error::Shape`](crate::Error::Shape) for inputs of another length, [`Error::Id`](crate::Error::Id) for an id outside its table.
    pub fn reference<T: Real>(
        &self,
        weights: &Weights<'_, T>,
        inputs: &BertInputs<'_>,
        outputs: &[Output],
    ) -> Result<BTreeMap<String, Vec<T>>> {
        let &BertInputs { ids, segment_ids, sequences, key_mask } = inputs;
        let (shape, items) = (sequences.shape().to_self(), sequences.as_slice());
        self.check(shape.longest_q, outputs)?;
        let batch = Batch::new(shape, items).with_masks(AttentionMasks { key_mask, mask: None });
        let (rows, d) = (shape.q_rows, self.embedding.d_model);
        let mut found = BTreeMap::new();
        let mut keep = |output: Output, values: &[T]| {
            if outputs.contains(&output) {
                found.insert(output.name(), values.to_vec());
            }
        };

        let mut x = reference::embeddings(&self.embedding, weights, "", ids, Some(segment_ids), Some(items))?;
        keep(Output::Hidden(0), &x);
        for n in 0..self.layers_for(outputs) {
            let (y, probs) = reference::encoder_layer(&self.layer, weights, &format!("layers.{n}."), &x, &batch)?;
            keep(Output::Attention(n), &probs);
            keep(Output::Hidden(n + 1), &y);
            x = y;
        }

        let wants = |of: &[Output]| outputs.iter().any(|o| of.contains(o));
        let project = |name: &str, x: &[T], d_out: usize, activation: Activation| {
            let [weight, bias] = ["weight", "bias"].map(|part| format!("{name}.{part}"));
            dense(weights, [&weight, &bias], x, [d, d_out], activation)
        };
        let labels = self.labels.len();
        if wants(&[Output::MaskedLanguage]) {
            let dense_rows = project("mlm.dense", &x, d, self.head_activation)?;
            let normed = reference::norm(&self.layer.norm, weights, "mlm.norm.", &dense_rows, rows, d)?;
            let names = [self.decoder_weight(), "mlm.bias"];
            let logits = dense(weights, names, &normed, [d, self.embedding.vocabulary], Activation::Identity)?;
            keep(Output::MaskedLanguage, &logits);
        }
        if wants(&[Output::TokenClasses]) {
            keep(Output::TokenClasses, &project("classifier", &x, labels, Activation::Identity)?);
        }
        if wants(&[Output::Spans]) {
            keep(Output::Spans, &project("spans", &x, 2, Activation::Identity)?);
        }
        if wants(&[Output::Embedding]) {
            keep(Output::Embedding, &pool(&x, items, self.pooling, self.normalize, rows, d)?);
        }
        if outputs.iter().any(|o| o.is_of_pooled()) {
            let first = pool(&x, items, Pooling::First, false, rows, d)?;
            let pooled = project("pooler", &first, d, Activation::Tanh)?;
            keep(Output::Pooled, &pooled);
            if wants(&[Output::NextSentence]) {
                keep(Output::NextSentence, &project("nsp", &pooled, 2, Activation::Identity)?);
            }
            if wants(&[Output::SequenceClasses]) {
                keep(Output::SequenceClasses, &project("classifier", &pooled, labels, Activation::Identity)?);
            }
        }
        Ok(found)
    }
}

/// activation(x · Wᵀ + b) of rows of d_in.
fn dense<T: Real>(
    weights: &Weights<'_, T>,
    [weight, bias]: [&str; 2],
    x: &[T],
    [d_in, d_out]: [usize; 2],
    activation: Activation,
) -> Result<Vec<T>> {
    linear(&Linear {
        x,
        weight: weights.get(weight, &[d_out, d_in])?,
        bias: Some(weights.get(bias, &[d_out])?),
        residual: None,
        activation,
        rows: x.len() / d_in,
        d_in,
        d_out,
    })
}
