//! The decoder layer and the stack of them.

use super::{Batch, Weights, feed_forward, multi_head_attention, norm, positions_before_layer, residual};
use crate::error::Result;
use crate::reference::{Real, expect_len};
use crate::shape::nonzero;
use crate::spec::layers::{Decoder, DecoderLayer};

/// What a decoder layer gives.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderLayerOutput<T> {
    /// (rows, d_model)
    pub y: Vec<T>,
    /// Weights of the self-attention (B, NH, T, T).
    pub self_probs: Vec<T>,
    /// Weights of the cross-attention (B, NH, T, S).
    pub cross_probs: Vec<T>,
}

/// What a decoder gives.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderOutput<T> {
    /// (rows, d_model)
    pub y: Vec<T>,
    /// Each layer's weights of the self-attention (B, NH, T, T).
    pub self_probs: Vec<Vec<T>>,
    /// Each layer's weights of the cross-attention (B, NH, T, S).
    pub cross_probs: Vec<Vec<T>>,
}

/// y (rows, d_model) and both attentions' weights of x (rows, d_model) and memory (k_rows, k_width), `batch` being the
/// self-attention's and `cross` the cross-attention's:
///
/// ```text
/// x -> self-attention (self_attn., norm1.) -> cross-attention (multihead_attn., norm2.)
///   -> feed-forward (linear1., linear2., norm3.) -> y
/// ```
///
/// # Errors
/// As [`DecoderLayer::check`] and [`multi_head_attention`].
pub fn decoder_layer<T: Real>(
    spec: &DecoderLayer,
    weights: &Weights<'_, T>,
    prefix: &str,
    x: &[T],
    memory: &[T],
    batch: &Batch<'_, T>,
    cross: &Batch<'_, T>,
) -> Result<DecoderLayerOutput<T>> {
    spec.check()?;
    let (rows, d) = (batch.shape.q_rows, spec.attention.d_model);
    expect_len("x", &[rows, d], x.len())?;
    let norm = |name: &str, x: &[T]| norm(&spec.norm, weights, &format!("{prefix}{name}."), x, rows, d);

    let (mut self_probs, mut cross_probs) = (Vec::new(), Vec::new());
    let attend = |x: &[T]| {
        let y;
        (y, self_probs) = multi_head_attention(&spec.attention, weights, &format!("{prefix}self_attn."), x, x, x, batch)?;
        Ok(y)
    };
    let attend_memory = |x: &[T]| {
        let y;
        let prefix = format!("{prefix}multihead_attn.");
        (y, cross_probs) = multi_head_attention(&spec.cross_attention, weights, &prefix, x, memory, memory, cross)?;
        Ok(y)
    };
    let forward = |x: &[T]| feed_forward(&spec.feed_forward, weights, prefix, x, rows);
    let x = residual(spec.placement, x, |x| norm("norm1", x), attend)?;
    let x = residual(spec.placement, &x, |x| norm("norm2", x), attend_memory)?;
    let y = residual(spec.placement, &x, |x| norm("norm3", x), forward)?;
    Ok(DecoderLayerOutput { y, self_probs, cross_probs })
}

/// y (rows, d_model) and every layer's attention weights.
///
/// Layers are `layers.0.`, `layers.1.`, …, then comes `norm.` where there is a final norm. `position_embedding.weight` is added before every
/// layer where the stack says so.
///
/// # Errors
/// As [`decoder_layer`]; [`crate::Error::Option`] for no layers.
pub fn decoder<T: Real>(
    spec: &Decoder,
    weights: &Weights<'_, T>,
    prefix: &str,
    x: &[T],
    memory: &[T],
    batch: &Batch<'_, T>,
    cross: &Batch<'_, T>,
) -> Result<DecoderOutput<T>> {
    nonzero("n_layers", spec.n_layers)?;
    let (rows, d) = (batch.shape.q_rows, spec.layer.attention.d_model);
    let mut out = DecoderOutput { y: x.to_vec(), self_probs: Vec::new(), cross_probs: Vec::new() };
    for layer in 0..spec.n_layers {
        let x = positions_before_layer(spec.positions_every_layer, weights, prefix, out.y, batch, d)?;
        let prefix = format!("{prefix}layers.{layer}.");
        let layer = decoder_layer(&spec.layer, weights, &prefix, &x, memory, batch, cross)?;
        out.y = layer.y;
        out.self_probs.push(layer.self_probs);
        out.cross_probs.push(layer.cross_probs);
    }
    if let Some(final_norm) = &spec.final_norm {
        out.y = norm(final_norm, weights, &format!("{prefix}norm."), &out.y, rows, d)?;
    }
    Ok(out)
}
