//! The twins of the layers: the kernels' twins chained as [`crate::spec::layers`] describes, with weights under PyTorch's names.
//!
//! Each function takes the names' prefix, empty or with its dot (`"encoder.layers.0."`), and says what it reads below it.

mod attention;
mod decoder;
mod embeddings;
mod encoder;
mod weights;

pub use attention::multi_head_attention;
pub use decoder::{DecoderLayerOutput, DecoderOutput, decoder, decoder_layer};
pub use embeddings::embeddings;
pub use encoder::{encoder, encoder_layer};
pub use weights::Weights;

use super::{LayerNorm, Linear, MaskValues, Real, add_positions, gate, layer_norm, linear, rms_norm};
use crate::error::Result;
use crate::spec::layers::{FeedForward, Norm, NormKind, Placement};
use crate::spec::{Activation, BatchShape, Sequence};

/// The masks of one attention, each bound exactly where its options say so.
#[derive(Clone, Copy, Debug)]
pub struct AttentionMasks<'a, T> {
    /// (B, S), nonzero means attended.
    pub key_mask: Option<&'a [u32]>,
    /// Over (B, NH, T, S).
    pub mask: Option<MaskValues<'a, T>>,
}

impl<T> Default for AttentionMasks<'_, T> {
    fn default() -> Self {
        Self { key_mask: None, mask: None }
    }
}

/// The batch that one attention runs over: what queries, what keys, which masks.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a, T> {
    /// B, T and S, and the rows of queries and keys.
    pub shape: BatchShape,
    /// Where each sequence lies (B).
    pub sequences: &'a [Sequence],
    /// The masks.
    pub masks: AttentionMasks<'a, T>,
}

impl<'a, T> Batch<'a, T> {
    /// A batch without masks.
    #[must_use]
    pub fn new(shape: BatchShape, sequences: &'a [Sequence]) -> Self {
        Self { shape, sequences, masks: AttentionMasks::default() }
    }

    /// The same batch with masks.
    #[must_use]
    pub fn with_masks(self, masks: AttentionMasks<'a, T>) -> Self {
        Self { masks, ..self }
    }
}

/// Position-wise feed-forward network, `linear2(activation(linear1(x)))`:
///
/// ```text
/// x (rows, d_model) -> hidden (rows, d_ff) -> y (rows, d_model)
/// ```
///
/// Reads `linear1.weight` (d_ff, d_model), or (2 · d_ff, d_model) where it is gated, and `linear2.weight` (d_model, d_ff), and
/// `linear1.bias` and `linear2.bias` where there are biases.
///
/// # Errors
/// [`crate::Error::Missing`] or [`crate::Error::Shape`] for a weight, [`crate::Error::Shape`] for an x of another length.
pub fn feed_forward<T: Real>(
    spec: &FeedForward,
    weights: &Weights<'_, T>,
    prefix: &str,
    x: &[T],
    rows: usize,
) -> Result<Vec<T>> {
    let FeedForward { d_model, d_ff, activation, bias, gated } = *spec;
    let (width, first) = if gated { (d_ff.saturating_mul(2), Activation::Identity) } else { (d_ff, activation) };
    let mut hidden = linear(&Linear {
        x,
        weight: weights.get(&format!("{prefix}linear1.weight"), &[width, d_model])?,
        bias: weights.get_if(bias, &format!("{prefix}linear1.bias"), &[width])?,
        residual: None,
        activation: first,
        rows,
        d_in: d_model,
        d_out: width,
    })?;
    if gated {
        let half =
            |from: usize| hidden.chunks_exact(width).flat_map(|row| row[from..from + d_ff].to_vec()).collect::<Vec<T>>();
        hidden = gate(&half(0), &half(d_ff), activation)?;
    }
    linear(&Linear {
        x: &hidden,
        weight: weights.get(&format!("{prefix}linear2.weight"), &[d_model, d_ff])?,
        bias: weights.get_if(bias, &format!("{prefix}linear2.bias"), &[d_model])?,
        residual: None,
        activation: Activation::Identity,
        rows,
        d_in: d_ff,
        d_out: d_model,
    })
}

/// norm(x) over rows of d, with `weight` and `bias` below `prefix` (`"norm1."`) where the norm has them.
///
/// # Errors
/// [`crate::Error::Missing`] or [`crate::Error::Shape`] for a weight, and as [`layer_norm()`].
pub fn norm<T: Real>(spec: &Norm, weights: &Weights<'_, T>, prefix: &str, x: &[T], rows: usize, d: usize) -> Result<Vec<T>> {
    let weight = weights.get_if(spec.weight, &format!("{prefix}weight"), &[d])?;
    let bias = weights.get_if(spec.bias, &format!("{prefix}bias"), &[d])?;
    let args = LayerNorm { x, residual: None, weight, bias, eps: spec.eps, rows, d };
    let normed = match spec.kind {
        NormKind::Layer => layer_norm(&args),
        NormKind::Rms => rms_norm(&args),
    };
    Ok(normed?.y)
}

/// One sublayer with its residual and its norm: x + f(norm(x)) or norm(x + f(x)).
fn residual<T: Real>(
    placement: Placement,
    x: &[T],
    norm: impl Fn(&[T]) -> Result<Vec<T>>,
    f: impl FnOnce(&[T]) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let add = |f_x: Vec<T>| -> Vec<T> { x.iter().zip(f_x).map(|(&x, f_x)| x + f_x).collect() };
    match placement {
        Placement::Pre => Ok(add(f(&norm(x)?)?)),
        Placement::Post => norm(&add(f(x)?)),
    }
}

/// What a stack does before each layer: x + `position_embedding.weight`, where the stack has such a table.
fn positions_before_layer<T: Real>(
    positions: Option<usize>,
    weights: &Weights<'_, T>,
    prefix: &str,
    x: Vec<T>,
    batch: &Batch<'_, T>,
    d_model: usize,
) -> Result<Vec<T>> {
    let Some(positions) = positions else { return Ok(x) };
    let table = weights.get(&format!("{prefix}position_embedding.weight"), &[positions, d_model])?;
    add_positions(&x, table, Some(batch.sequences), batch.shape.q_rows, positions, d_model)
}

#[cfg(test)]
mod tests;
