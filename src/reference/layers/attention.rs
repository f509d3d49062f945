//! Multi-head attention with its projections.

use super::{Batch, Weights};
use crate::error::{Error, Result};
use crate::reference::{
    Attention, Linear, MaskValues, Real, additive_scores, attention_scores, attention_values, expect_len, linear,
    masked_softmax, rotary,
};
use crate::spec::layers::{MultiHeadAttention, Projection, RotaryOptions, Score};
use crate::spec::{Activation, Mask};

/// y (q_rows, d_model) and probs (B, NH, T, S):
///
/// ```text
/// x (q_rows, d_model)        -> q (q_rows, NH, head_size)
/// memory_k (k_rows, k_width) -> k (k_rows, n_kv_heads, head_size)
/// memory_v (k_rows, v_width) -> v (k_rows, n_kv_heads, value_head_size)
/// q, k -> scores -> probs;  probs, v -> out (q_rows, NH, value_head_size) -> y (q_rows, d_model)
/// ```
///
/// Self-attention is x in all three places. Reads `in_proj_weight` or `q_proj_weight`, `k_proj_weight` and `v_proj_weight`;
/// `out_proj.weight`; `rotary_table` where there are rotary positions; `relative_position_bias` where the mask is relative;
/// `in_proj_bias` and `out_proj.bias` where there are biases; what its [`Score`] needs.
///
/// # Errors
/// As [`MultiHeadAttention::check`] and [`Attention::check`]; [`crate::Error::Missing`] or [`crate::Error::Shape`] for a
/// weight, [`crate::Error::Shape`] for an input of another length.
pub fn multi_head_attention<T: Real>(
    spec: &MultiHeadAttention,
    weights: &Weights<'_, T>,
    prefix: &str,
    x: &[T],
    memory_k: &[T],
    memory_v: &[T],
    batch: &Batch<'_, T>,
) -> Result<(Vec<T>, Vec<T>)> {
    spec.check()?;
    let (q_rows, k_rows) = (batch.shape.q_rows, batch.shape.k_rows);
    expect_len("x", &[q_rows, spec.d_model], x.len())?;
    expect_len("memory_k", &[k_rows, spec.k_width], memory_k.len())?;
    expect_len("memory_v", &[k_rows, spec.v_width], memory_v.len())?;

    // pass 1: q, k, v
    let [w_q, w_k, w_v] = in_projections(spec, weights, prefix)?;
    let q = project(x, q_rows, spec.d_model, w_q)?;
    let k = project(memory_k, k_rows, spec.k_width, w_k)?;
    let v = project(memory_v, k_rows, spec.v_width, w_v)?;

    let (q, k) = match &spec.rotary {
        Some(rotary) => (
            turned(spec, rotary, batch, weights, &q, spec.n_heads)?,
            turned(spec, rotary, batch, weights, &k, spec.n_kv_heads)?,
        ),
        None => (q, k),
    };

    // pass 2: scores (B, NH, T, S)
    let options = spec.scored_options();
    let mask = match options.mask {
        Some(Mask::Relative { reach }) => {
            if batch.masks.mask.is_some() {
                return Err(Error::option("mask", "none beside a relative position bias, which is a weight", "one"));
            }
            let sizes = [spec.n_heads, Mask::distances(reach)];
            let values = weights.get(&format!("{prefix}relative_position_bias"), &sizes)?;
            Some(MaskValues::Relative { reach, values })
        }
        _ => batch.masks.mask,
    };
    let att = Attention {
        shape: batch.shape,
        n_heads: spec.n_heads,
        n_kv_heads: spec.n_kv_heads,
        head_size: spec.head_size,
        value_head_size: spec.value_head_size,
        options: &options,
        sequences: batch.sequences,
        key_mask: batch.masks.key_mask,
        mask,
    };
    let scores = match spec.score {
        Score::Dot => attention_scores(&att, &q, &k)?,
        Score::General => {
            let [q_width, k_width, _] = spec.widths();
            let weight = weights.get(&format!("{prefix}score_weight"), &[q_width, k_width])?;
            let k = project(&k, k_rows, k_width, Projected { weight, bias: None, width: q_width })?;
            attention_scores(&Attention { n_kv_heads: spec.n_heads, ..att }, &q, &k)?
        }
        Score::Additive { width } => {
            let [q_width, k_width, _] = spec.widths();
            let w_q = weights.get(&format!("{prefix}score_query_weight"), &[width, q_width])?;
            let w_k = weights.get(&format!("{prefix}score_key_weight"), &[width, k_width])?;
            let head_size = width / spec.n_heads;
            let vector = weights.get(&format!("{prefix}score_vector"), &[spec.n_heads, head_size])?;
            let q = project(&q, q_rows, q_width, Projected { weight: w_q, bias: None, width })?;
            let k = project(&k, k_rows, k_width, Projected { weight: w_k, bias: None, width })?;
            additive_scores(&Attention { head_size, ..att }, &q, &k, vector)?
        }
    };

    // pass 3: probs (B, NH, T, S)
    let [sequences, n_heads, longest_q, longest_k] = att.score_sizes();
    let probs = masked_softmax(&scores, sequences * n_heads * longest_q, longest_k, 1.0)?;

    // pass 4: out (q_rows, NH · value_head_size), and its projection
    let out = attention_values(&att, &probs, &v)?;
    let out_width = spec.n_heads * spec.value_head_size;
    let weight = weights.get(&format!("{prefix}out_proj.weight"), &[spec.d_model, out_width])?;
    let bias = weights.get_if(spec.bias, &format!("{prefix}out_proj.bias"), &[spec.d_model])?;
    let y = project(&out, q_rows, out_width, Projected { weight, bias, width: spec.d_model })?;
    Ok((y, probs))
}

/// Heads (rows, heads · head_size) turned by their row's position, by the table `rotary_table` (positions, columns) among the weights.
fn turned<T: Real>(
    spec: &MultiHeadAttention,
    options: &RotaryOptions,
    batch: &Batch<'_, T>,
    weights: &Weights<'_, T>,
    x: &[T],
    heads: usize,
) -> Result<Vec<T>> {
    let table = weights.get("rotary_table", &[options.positions, options.columns])?;
    let rows = x.len() / (heads * spec.head_size);
    let mut positions = vec![-1; rows];
    for s in batch.sequences {
        for t in 0..s.q_len.min(batch.shape.longest_q as u32) {
            if let Some(position) = positions.get_mut(s.q_start as usize + t as usize) {
                *position = i64::from(s.offset) + i64::from(t);
            }
        }
    }
    rotary(x, [rows, heads, spec.head_size], (table, options.columns), options.order, &positions)
}

/// A projection's weight (width, inputs) and bias (width).
#[derive(Clone, Copy)]
struct Projected<'a, T> {
    weight: &'a [T],
    bias: Option<&'a [T]>,
    width: usize,
}

fn project<T: Real>(x: &[T], rows: usize, d_in: usize, to: Projected<'_, T>) -> Result<Vec<T>> {
    let Projected { weight, bias, width } = to;
    linear(&Linear { x, weight, bias, residual: None, activation: Activation::Identity, rows, d_in, d_out: width })
}

/// The projections of q, k and v; a stacked weight's rows, and the bias, are cut where q, k and v end.
fn in_projections<'a, T>(
    spec: &MultiHeadAttention,
    weights: &Weights<'a, T>,
    prefix: &str,
) -> Result<[Projected<'a, T>; 3]> {
    let [q, k, v] = spec.widths();
    let all = q.saturating_add(k).saturating_add(v);
    let [w_q, w_k, w_v] = match spec.projection {
        Projection::Stacked => {
            let stacked = weights.get(&format!("{prefix}in_proj_weight"), &[all, spec.d_model])?;
            let (w_q, w_kv) = stacked.split_at(q * spec.d_model);
            let (w_k, w_v) = w_kv.split_at(k * spec.d_model);
            [w_q, w_k, w_v]
        }
        Projection::Separate => [
            weights.get(&format!("{prefix}q_proj_weight"), &[q, spec.d_model])?,
            weights.get(&format!("{prefix}k_proj_weight"), &[k, spec.k_width])?,
            weights.get(&format!("{prefix}v_proj_weight"), &[v, spec.v_width])?,
        ],
    };
    let bias = weights.get_if(spec.bias, &format!("{prefix}in_proj_bias"), &[all])?;
    let cut = |start: usize, width: usize| bias.map(|b| &b[start..start + width]);
    Ok([
        Projected { weight: w_q, bias: cut(0, q), width: q },
        Projected { weight: w_k, bias: cut(q, k), width: k },
        Projected { weight: w_v, bias: cut(q + k, v), width: v },
    ])
}
