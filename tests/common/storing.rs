//! Layers that round whatever a kernel stores: what storing f16 costs a computation whose sums are not in f16. Stacked projections, dot
//! products, no masks but those of the options and the lengths.

use std::ops::Range;

use tileformer::Activation;
use tileformer::layers::{DecoderLayer, EncoderLayer, FeedForward, MultiHeadAttention, Norm, Placement};
use tileformer::reference::layers::{self as twin, Batch, Weights};
use tileformer::reference::{self, Attention, Linear, Real};

use super::stored;

/// Weights, and what becomes of numbers that are stored.
pub struct Storing<'a, T> {
    pub weights: &'a Weights<'a, T>,
    pub store: fn(Vec<T>) -> Vec<T>,
}

/// As f16 holds them.
pub fn rounded(values: Vec<f32>) -> Vec<f32> {
    stored(tileformer::Element::F16, &values)
}

/// As they are.
pub fn exact(values: Vec<f64>) -> Vec<f64> {
    values
}

impl<T: Real> Storing<'_, T> {
    fn linear(
        &self,
        x: &[T],
        [weight, bias]: [&[T]; 2],
        activation: Activation,
        residual: Option<&[T]>,
        d_out: usize,
    ) -> Vec<T> {
        let d_in = weight.len() / d_out;
        let bias = Some(bias).filter(|b| !b.is_empty());
        let p = Linear { x, weight, bias, residual, activation, rows: x.len() / d_in, d_in, d_out };
        (self.store)(reference::linear(&p).expect("sizes of the case"))
    }

    /// Weight and bias, the latter empty where there is none.
    fn pair(&self, [weight, bias]: [String; 2], sizes: [usize; 2], has_bias: bool) -> [&[T]; 2] {
        let bias = self.weights.get_if(has_bias, &bias, &sizes[..1]).expect("a bias");
        [self.weights.get(&weight, &sizes).expect("a weight"), bias.unwrap_or_default()]
    }

    pub fn norm(&self, spec: &Norm, prefix: &str, x: &[T], columns: usize) -> Vec<T> {
        (self.store)(twin::norm(spec, self.weights, prefix, x, x.len() / columns, columns).expect("a norm"))
    }

    /// Those of q, k and v that are projected from x.
    fn project(&self, spec: &MultiHeadAttention, prefix: &str, x: &[T], parts: Range<usize>) -> Vec<T> {
        let (widths, c) = (spec.widths(), spec.d_model);
        let names = ["in_proj_weight", "in_proj_bias"].map(|name| format!("{prefix}{name}"));
        let [weight, bias] = self.pair(names, [widths.iter().sum(), c], spec.bias);
        let (at, width): (usize, usize) = (widths[..parts.start].iter().sum(), widths[parts].iter().sum());
        let bias = if spec.bias { &bias[at..][..width] } else { bias };
        self.linear(x, [&weight[at * c..][..width * c], bias], Activation::Identity, None, width)
    }

    fn turned(&self, spec: &MultiHeadAttention, batch: &Batch<'_, T>, x: Vec<T>, heads: usize) -> Vec<T> {
        let Some(rotary) = spec.rotary else { return x };
        let table = self.weights.get("rotary_table", &[rotary.positions, rotary.columns]).expect("a table");
        let mut positions = vec![-1; batch.shape.q_rows];
        for s in batch.sequences {
            (0..s.q_len).for_each(|t| positions[(s.q_start + t) as usize] = i64::from(s.offset) + i64::from(t));
        }
        let sizes = [positions.len(), heads, spec.head_size];
        let turned = reference::rotary(&x, sizes, (table, rotary.columns), rotary.order, &positions);
        (self.store)(turned.expect("sizes of the case"))
    }

    /// `out_proj`(attention of x over memory) + residual.
    fn attend(
        &self,
        spec: &MultiHeadAttention,
        prefix: &str,
        [x, memory, residual]: [&[T]; 3],
        batch: &Batch<'_, T>,
    ) -> Vec<T> {
        let q = self.turned(spec, batch, self.project(spec, prefix, x, 0..1), spec.n_heads);
        let k = self.turned(spec, batch, self.project(spec, prefix, memory, 1..2), spec.n_kv_heads);
        let v = self.project(spec, prefix, memory, 2..3);
        let attention = Attention {
            shape: batch.shape,
            n_heads: spec.n_heads,
            n_kv_heads: spec.n_kv_heads,
            head_size: spec.head_size,
            value_head_size: spec.value_head_size,
            options: &spec.options,
            sequences: batch.sequences,
            key_mask: batch.masks.key_mask,
            mask: batch.masks.mask,
        };
        let out = (self.store)(reference::attention(&attention, &q, &k, &v).expect("sizes of the case").0);
        let names = ["out_proj.weight", "out_proj.bias"].map(|name| format!("{prefix}{name}"));
        let pair = self.pair(names, [spec.d_model, spec.n_heads * spec.value_head_size], spec.bias);
        self.linear(&out, pair, Activation::Identity, Some(residual), spec.d_model)
    }

    /// `linear2`(activation(`linear1`(x))) + residual, or gated.
    fn feed(&self, spec: &FeedForward, prefix: &str, [x, residual]: [&[T]; 2]) -> Vec<T> {
        let &FeedForward { d_model: c, d_ff: f, activation, bias, gated } = spec;
        let names = |n: usize| ["weight", "bias"].map(|part| format!("{prefix}linear{n}.{part}"));
        let (width, first) = if gated { (2 * f, Activation::Identity) } else { (f, activation) };
        let mut hidden = self.linear(x, self.pair(names(1), [width, c], bias), first, None, width);
        if gated {
            let half = |at: usize| hidden.chunks_exact(width).flat_map(|row| row[at..at + f].to_vec()).collect::<Vec<T>>();
            hidden = (self.store)(reference::gate(&half(0), &half(f), activation).expect("halves"));
        }
        self.linear(&hidden, self.pair(names(2), [c, f], bias), Activation::Identity, Some(residual), c)
    }

    /// One part of a layer: f gets what is projected and the residual.
    fn part(
        &self,
        placement: Placement,
        norm: impl Fn(&[T]) -> Vec<T>,
        x: &[T],
        f: impl FnOnce(&[T], &[T]) -> Vec<T>,
    ) -> Vec<T> {
        match placement {
            Placement::Pre => f(&norm(x), x),
            Placement::Post => norm(&f(x, x)),
        }
    }

    pub fn encoder_layer(&self, spec: &EncoderLayer, prefix: &str, x: &[T], batch: &Batch<'_, T>) -> Vec<T> {
        let norm = |n: usize| move |x: &[T]| self.norm(&spec.norm, &format!("{prefix}norm{n}."), x, spec.attention.d_model);
        let x = self.part(spec.placement, norm(1), x, |x, residual| {
            self.attend(&spec.attention, &format!("{prefix}self_attn."), [x, x, residual], batch)
        });
        self.part(spec.placement, norm(2), &x, |x, residual| self.feed(&spec.feed_forward, prefix, [x, residual]))
    }

    pub fn decoder_layer(
        &self,
        spec: &DecoderLayer,
        prefix: &str,
        [x, memory]: [&[T]; 2],
        [batch, cross]: [&Batch<'_, T>; 2],
    ) -> Vec<T> {
        let norm = |n: usize| move |x: &[T]| self.norm(&spec.norm, &format!("{prefix}norm{n}."), x, spec.attention.d_model);
        let x = self.part(spec.placement, norm(1), x, |x, residual| {
            self.attend(&spec.attention, &format!("{prefix}self_attn."), [x, x, residual], batch)
        });
        let x = self.part(spec.placement, norm(2), &x, |x, residual| {
            self.attend(&spec.cross_attention, &format!("{prefix}multihead_attn."), [x, memory, residual], cross)
        });
        self.part(spec.placement, norm(3), &x, |x, residual| self.feed(&spec.feed_forward, prefix, [x, residual]))
    }
}
