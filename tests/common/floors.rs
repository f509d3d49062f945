//! Floors for whole layers, from the f64 twin: 2⁻²² · max Σ|terms| of the sums that the output comes from (the output
//! projection of an attention; the second projection of a feed-forward network with its residual, times the scale of the norm
//! behind it), plus WGSL's allowances carried to there:
//!
//! - exp, 3 + 2|x| ULP: Σ p (3 + 2 ln 1/p) ≤ 3 + 2 ln S of the weights of a row, in numerator and denominator, on the largest
//!   |attention output|;
//! - tanh, 8 ULP of 1: in additive scores and softcaps a change of the score, and so twice of every
//!   weight; in tanh-GELU half of it on each hidden element, through the second projection.
//!
//! All floors stay below 1e-3 of the outputs, which are about 1: a kernel that is wrong is off by much more.

use super::{EPS, TANH, largest};
use tileformer::reference::layers::{Batch, Weights, feed_forward, multi_head_attention, norm};
use tileformer::reference::{self, LayerNorm, Linear};
use tileformer::spec::Activation;
use tileformer::spec::layers::{FeedForward, MultiHeadAttention, Norm, Placement, Score};

/// 2⁻²².
const UNIT: f64 = 2.0 * EPS;

fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| v.abs()).collect()
}

/// The largest Σ|x||W| + |bias| of a projection.
fn terms(x: &[f64], weight: &[f64], bias: Option<&[f64]>, [rows, d_in, d_out]: [usize; 3]) -> Vec<f64> {
    let bias = bias.map(absolute);
    let args = Linear {
        x: &absolute(x),
        weight: &absolute(weight),
        bias: bias.as_deref(),
        residual: None,
        activation: Activation::Identity,
        rows,
        d_in,
        d_out,
    };
    reference::linear(&args).expect("sizes of the case")
}

/// What one attention adds to the floor, of its three inputs.
pub fn attention(
    spec: &MultiHeadAttention,
    weights: &Weights<'_, f64>,
    prefix: &str,
    [x, memory_k, memory_v]: [&[f64]; 3],
    batch: &Batch<'_, f64>,
) -> f64 {
    let (rows, d, width) = (batch.shape.q_rows, spec.d_model, spec.n_heads * spec.value_head_size);
    let name = format!("{prefix}out_proj.weight");
    let projection = weights.get(&name, &[d, width]).expect("a weight");
    let bias = weights.get_if(spec.bias, &format!("{prefix}out_proj.bias"), &[d]).expect("a bias");
    // The heads, d columns at a time, are what an output projection of ones and zeros gives.
    let mut heads = vec![0.0; rows * width];
    let plain = vec![0.0; d];
    for first in (0..width).step_by(d) {
        let pick: Vec<f64> = (0..d * width).map(|i| f64::from(u8::from(i % width == first + i / width))).collect();
        let mut picking = weights.clone();
        picking.insert(&*name, &[d, width], &pick).expect("a weight");
        picking.insert(format!("{prefix}out_proj.bias"), &[d], &plain).expect("a bias");
        let (part, _) = multi_head_attention(spec, &picking, prefix, x, memory_k, memory_v, batch).expect("an attention");
        for (row, part) in part.chunks_exact(d).enumerate() {
            let columns = d.min(width - first);
            heads[row * width + first..][..columns].copy_from_slice(&part[..columns]);
        }
    }
    let terms = largest(&terms(&heads, projection, bias, [rows, width, d]));
    let exp = (3.0 + 2.0 * (batch.shape.longest_k as f64).ln()) * EPS;
    let scale = f64::from(spec.scored_options().scale.unwrap_or(1.0)).abs();
    let tanh = match spec.score {
        Score::Additive { width } => {
            let vector = weights.get(&format!("{prefix}score_vector"), &[spec.n_heads, width / spec.n_heads]);
            let sums =
                vector.expect("a vector").chunks(width / spec.n_heads).map(|v| v.iter().map(|v| v.abs()).sum::<f64>());
            scale * TANH * sums.fold(0.0, f64::max)
        }
        _ => 0.0,
    } + spec.options.softcap.map_or(0.0, |cap| f64::from(cap) * TANH);
    UNIT * terms + (exp + 2.0 * tanh) * terms
}

/// The floor of x + feed-forward(x).
pub fn network(spec: &FeedForward, weights: &Weights<'_, f64>, prefix: &str, x: &[f64]) -> f64 {
    let FeedForward { d_model: d, d_ff, activation, bias, gated: _ } = *spec;
    let rows = x.len() / d;
    let get = |name: &str, sizes: &[usize]| weights.get(&format!("{prefix}{name}"), sizes).expect("a weight");
    let first = Linear {
        x,
        weight: get("linear1.weight", &[d_ff, d]),
        bias: bias.then(|| get("linear1.bias", &[d_ff])),
        residual: None,
        activation,
        rows,
        d_in: d,
        d_out: d_ff,
    };
    let hidden = reference::linear(&first).expect("sizes of the case");
    let before = reference::linear(&Linear { activation: Activation::Identity, ..first }).expect("sizes of the case");
    let weight = get("linear2.weight", &[d, d_ff]);
    let sums = terms(&hidden, weight, bias.then(|| get("linear2.bias", &[d])), [rows, d_ff, d]);
    let sums: Vec<f64> = sums.iter().zip(x).map(|(s, x)| s + x.abs()).collect();
    let tanh = match activation {
        Activation::GeluTanh => 0.5 * TANH * largest(&terms(&before, weight, None, [rows, d_ff, d])),
        Activation::Tanh => TANH * largest(&terms(&vec![1.0; rows * d_ff], weight, None, [rows, d_ff, d])),
        _ => 0.0,
    };
    UNIT * largest(&sums) + tanh
}

/// How much a norm can enlarge a deviation of its input: max 1/√(variance + eps) · max|weight|.
pub fn norm_scale(spec: &Norm, weights: &Weights<'_, f64>, prefix: &str, x: &[f64], d: usize) -> f64 {
    let weight = weights.get_if(spec.weight, &format!("{prefix}weight"), &[d]).expect("a weight").map_or(1.0, largest);
    let args = LayerNorm { x, residual: None, weight: None, bias: None, eps: spec.eps, rows: x.len() / d, d };
    weight * largest(&reference::layer_norm(&args).expect("a norm").inverse_deviation)
}

/// What one attention of a layer is: its spec, its name with the prefix, the number of its norm, what it attends to.
pub struct Sublayer<'a> {
    pub spec: &'a MultiHeadAttention,
    pub prefix: String,
    pub norm: String,
    pub memory: Option<&'a [f64]>,
    pub batch: &'a Batch<'a, f64>,
}

/// A layer's floor: that of its last sublayer, and what its attentions add through their residuals.
#[allow(clippy::too_many_arguments)]
pub fn layer(
    attentions: &[Sublayer<'_>],
    spec: &FeedForward,
    norms: &Norm,
    placement: Placement,
    weights: &Weights<'_, f64>,
    prefix: &str,
    x: &[f64],
) -> f64 {
    let d = spec.d_model;
    let mut x = x.to_vec();
    let mut carried = 0f64;
    for Sublayer { spec, prefix, norm: name, memory, batch } in attentions {
        let rows = batch.shape.q_rows;
        let normed = norm(norms, weights, name, &x, rows, d).expect("a norm");
        let from = if placement == Placement::Pre { &normed } else { &x };
        let memory = memory.unwrap_or(from);
        carried += attention(spec, weights, prefix, [from, memory, memory], batch);
        let (y, _) = multi_head_attention(spec, weights, prefix, from, memory, memory, batch).expect("an attention");
        let sum: Vec<f64> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        x = match placement {
            Placement::Pre => sum,
            Placement::Post => {
                carried *= norm_scale(norms, weights, name, &sum, d);
                norm(norms, weights, name, &sum, rows, d).expect("a norm")
            }
        };
    }
    let (rows, name) = (x.len() / d, format!("{prefix}norm{}.", attentions.len() + 1));
    match placement {
        Placement::Pre => {
            let from = norm(norms, weights, &name, &x, rows, d).expect("a norm");
            network(spec, weights, prefix, &from) + UNIT * largest(&x) + carried
        }
        Placement::Post => {
            let out = feed_forward(spec, weights, prefix, &x, rows).expect("a feed-forward network");
            let sum: Vec<f64> = out.iter().zip(&x).map(|(f, x)| f + x).collect();
            (network(spec, weights, prefix, &x) + carried) * norm_scale(norms, weights, &name, &sum, d)
        }
    }
}
