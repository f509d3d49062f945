//! Causal language models on the CPU reference.

use std::collections::BTreeMap;

use super::{CausalModel, Output};
use crate::error::Result;
use crate::models::{Checkpoint, HostWeights, Source};
use crate::reference::layers::{self as reference, AttentionMasks, Batch, Weights};
use crate::reference::{Linear, Real, linear};
use crate::spec::{Activation, Sequences};

/// What a forward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct CausalInputs<'a> {
    /// (rows)
    pub ids: &'a [u32],
    /// Where the sequences lie.
    pub sequences: &'a Sequences,
    /// (B, T), nonzero means attended, where the model's options have `key_mask`.
    pub key_mask: Option<&'a [u32]>,
}

impl CausalModel {
    /// The weights that `outputs` need, on the host, for [`CausalModel::reference`], and the rotary table where there is one.
    ///
    /// # Errors
    /// As [`Source::resolve`] and [`CausalModel::rotary_table`].
    pub fn host_weights<T: Real>(&self, checkpoint: &Checkpoint, outputs: &[Output]) -> Result<HostWeights<T>> {
        let layers: Vec<String> = (0..self.layers_for(outputs)).map(|n| format!("layers.{n}.")).collect();
        let mut map = self.weights();
        if let Some((sizes, table)) = self.rotary_table()? {
            map.insert("rotary_table", Source::values(&sizes, table));
        }
        map.host(checkpoint, |name| match name {
            "lm_head.weight" => outputs.contains(&Output::Logits),
            _ if name.starts_with("norm.") => self.is_normed_for(outputs),
            _ if name.starts_with("layers.") => layers.iter().any(|layer| name.starts_with(layer)),
            _ => true,
        })
    }

    /// `outputs` by their names, as [`CausalModel::program`] makes them, by plain loops.
    ///
    /// # Errors
    /// As [`CausalModel::program`]; [`Error::Missing`](crate::Error::Missing) or [`Error::Shape`](crate::Error::Shape) for a weight,
    /// [`Error::Shape`](crate::Error::Shape) for inputs of another length, [`Error::Id`](crate::Error::Id) for an id outside its table.
    pub fn reference<T: Real>(
        &self,
        weights: &Weights<'_, T>,
        inputs: &CausalInputs<'_>,
        outputs: &[Output],
    ) -> Result<BTreeMap<String, Vec<T>>> {
        let &CausalInputs { ids, sequences, key_mask } = inputs;
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

        let mut x = reference::embeddings(&self.embedding, weights, "", ids, None, Some(items))?;
        keep(Output::Hidden(0), &x);
        for n in 0..self.layers_for(outputs) {
            let (y, probs) = reference::encoder_layer(&self.layer, weights, &format!("layers.{n}."), &x, &batch)?;
            keep(Output::Attention(n), &probs);
            if n + 1 < self.n_layers {
                keep(Output::Hidden(n + 1), &y);
            }
            x = y;
        }
        if self.is_normed_for(outputs) {
            x = reference::norm(&self.final_norm, weights, "norm.", &x, rows, d)?;
            keep(Output::Hidden(self.n_layers), &x);
        }
        if outputs.contains(&Output::Logits) {
            let vocabulary = self.embedding.vocabulary;
            let logits = linear(&Linear {
                x: &x,
                weight: weights.get(self.head_weight(), &[vocabulary, d])?,
                bias: None,
                residual: None,
                activation: Activation::Identity,
                rows,
                d_in: d,
                d_out: vocabulary,
            })?;
            keep(Output::Logits, &logits);
        }
        Ok(found)
    }
}
