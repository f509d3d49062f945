//! The encoder layer and the stack of them.

use super::{Batch, Weights, feed_forward, multi_head_attention, norm, positions_before_layer, residual};
use crate::error::Result;
use crate::reference::{Real, expect_len};
use crate::shape::nonzero;
use crate::spec::layers::{Encoder, EncoderLayer};

/// y (rows, d_model) and the attention weights (B, NH, T, S) of x (rows, d_model):
///
/// ```text
/// x -> self-attention (self_attn., norm1.) -> feed-forward (linear1., linear2., norm2.) -> y
/// ```
///
/// # Errors
/// As [`EncoderLayer::check`] and [`multi_head_attention`].
pub fn encoder_layer<T: Real>(
    spec: &EncoderLayer,
    weights: &Weights<'_, T>,
    prefix: &str,
    x: &[T],
    batch: &Batch<'_, T>,
) -> Result<(Vec<T>, Vec<T>)> {
    spec.check()?;
    let (rows, d) = (batch.shape.q_rows, spec.attention.d_model);
    expect_len("x", &[rows, d], x.len())?;
    let norm = |name: &str, x: &[T]| norm(&spec.norm, weights, &format!("{prefix}{name}."), x, rows, d);

    let mut probs = Vec::new();
    let attend = |x: &[T]| {
        let y;
        (y, probs) = multi_head_attention(&spec.attention, weights, &format!("{prefix}self_attn."), x, x, x, batch)?;
        Ok(y)
    };
    let forward = |x: &[T]| feed_forward(&spec.feed_forward, weights, prefix, x, rows);
    let x = residual(spec.placement, x, |x| norm("norm1", x), attend)?;
    let y = residual(spec.placement, &x, |x| norm("norm2", x), forward)?;
    Ok((y, probs))
}

/// y (rows, d_model) and each layer's attention weights (B, NH, T, S).
///
/// Layers are `layers.0.`, `layers.1.`, …, then comes `norm.` where there is a final norm. `position_embedding.weight` is added before every
/// layer where the stack says so.
///
/// # Errors
/// As [`encoder_layer`]; [`crate::Error::Option`] for no layers.
pub fn encoder<T: Real>(
    spec: &Encoder,
    weights: &Weights<'_, T>,
    prefix: &str,
    x: &[T],
    batch: &Batch<'_, T>,
) -> Result<(Vec<T>, Vec<Vec<T>>)> {
    nonzero("n_layers", spec.n_layers)?;
    let (rows, d) = (batch.shape.q_rows, spec.layer.attention.d_model);
    let (mut y, mut probs) = (x.to_vec(), Vec::new());
    for layer in 0..spec.n_layers {
        y = positions_before_layer(spec.positions_every_layer, weights, prefix, y, batch, d)?;
        let layer_probs;
        (y, layer_probs) = encoder_layer(&spec.layer, weights, &format!("{prefix}layers.{layer}."), &y, batch)?;
        probs.push(layer_probs);
    }
    if let Some(final_norm) = &spec.final_norm {
        y = norm(final_norm, weights, &format!("{prefix}norm."), &y, rows, d)?;
    }
    Ok((y, probs))
}
