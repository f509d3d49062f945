//! What the rows of the speed table do: one function a kind of work, from sizes to a program.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tileformer::kernels::{
    ActivationRows, AdditiveScores, Argmax, AttentionScores, AttentionValues, EmbeddingRows, LayerNorm, Linear,
    MaskedSoftmax, Visibility,
};
use tileformer::layers::{DecoderLayer, Encoder, EncoderLayer, Inputs};
use tileformer::{Activation, AttentionOptions, BatchShape, Builder, Element, Layout, Sequences};

use crate::rows::{Row, Work};

/// y = activation(x · Wᵀ + bias), rows × in × out. One row is limited by reading the weight.
pub(crate) fn linear(id: &str, [rows, d_in, d_out]: [usize; 3], activation: Activation) -> Row {
    let (m, k, n) = (rows as u64, d_in as u64, d_out as u64);
    let work = if rows == 1 { Work::Bytes(4 * (n * k + k + 2 * n)) } else { Work::Flops(2 * m * k * n) };
    let build = move |b: &mut Builder| {
        let x = b.input("x", Element::F32, Layout::contiguous(&[rows, d_in])?)?;
        let weight = b.weight("weight", Layout::contiguous(&[d_out, d_in])?)?;
        let bias = b.weight("bias", Layout::contiguous(&[d_out])?)?;
        let y = b.output("y", Element::F32, Layout::contiguous(&[rows, d_out])?)?;
        b.linear("linear", &Linear { bias: Some(bias), activation, ..Linear::new(x, weight, y) })
    };
    let plus = if activation == Activation::Identity { String::new() } else { format!(" + {activation:?}") };
    Row::new(id, format!("linear {rows}×{d_in}×{d_out}, bias{plus}"), work, build, Vec::new())
}

/// B, NH, T, S and HS of an attention.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) t: usize,
    pub(crate) s: usize,
    pub(crate) size: usize,
}

impl Heads {
    /// Pairs of a query and a key that it sees, in all heads.
    fn pairs(self, causal: bool, lengths: &[usize]) -> u64 {
        let seen = |i: usize, length: usize| if causal { length.min(i + 1) } else { length } as u64;
        let of = |length: &usize| (0..self.t).map(|i| seen(i, *length)).sum::<u64>();
        self.heads as u64 * lengths.iter().map(of).sum::<u64>()
    }

    fn what(self) -> String {
        let Self { batch, heads, t, s, size } = self;
        format!("B {batch}, NH {heads}, T {t}, S {s}, HS {size}")
    }
}

/// out = softmax(QKᵀ / √HS) · V. One query is limited by reading keys and values.
pub(crate) fn attention(id: &str, heads: Heads, causal: bool, lengths: &[usize]) -> Row {
    let Heads { batch, heads: n_heads, t, s, size } = heads;
    let row = (n_heads * size) as u64;
    let work = if t == 1 {
        Work::Bytes(4 * row * 2 * (lengths.iter().sum::<usize>() + batch) as u64)
    } else {
        Work::Flops(4 * heads.pairs(causal, lengths) * size as u64)
    };
    let build = move |b: &mut Builder| {
        let rows = |n: usize| Layout::contiguous(&[n, n_heads, size]);
        let q = b.input("q", Element::F32, rows(batch * t)?)?;
        let k = b.input("k", Element::F32, rows(batch * s)?)?;
        let v = b.input("v", Element::F32, rows(batch * s)?)?;
        let sequences = Some(b.input("sequences", Element::U32, Layout::contiguous(&[batch, 8])?)?);
        let out = b.output("out", Element::F32, rows(batch * t)?)?;
        let square = Layout::contiguous(&[batch, n_heads, t, s])?;
        let scores = b.scratch("scores", Element::F32, square)?;
        let probs = b.scratch("probs", Element::F32, square)?;
        let options = AttentionOptions { causal, ..AttentionOptions::default() };
        let visibility = Visibility { options, sequences, ..Visibility::default() };
        b.attention_scores("scores", &AttentionScores { q, k, visibility, scores })?;
        let plain = Visibility::new(AttentionOptions { scale: Some(1.0), ..AttentionOptions::default() });
        b.masked_softmax("softmax", &MaskedSoftmax { x: scores, visibility: plain, y: probs })?;
        let visibility = Visibility { sequences, ..Visibility::default() };
        b.attention_values("values", &AttentionValues { probs, v, visibility, out })
    };
    let causal = if causal { ", causal" } else { "" };
    let shortest = lengths.iter().min().copied().unwrap_or(s);
    let keys = if shortest == s { String::new() } else { format!(", key lengths {shortest}…{s}") };
    Row::new(id, format!("attention {}{causal}{keys}", heads.what()), work, build, sequences(t, lengths, s))
}

/// Scaled QKᵀ alone.
pub(crate) fn scores(id: &str, heads: Heads) -> Row {
    let Heads { batch, heads: n_heads, t, s, size } = heads;
    let work = Work::Flops(2 * heads.pairs(false, &vec![s; batch]) * size as u64);
    let build = move |b: &mut Builder| {
        let q = b.input("q", Element::F32, Layout::contiguous(&[batch * t, n_heads, size])?)?;
        let k = b.input("k", Element::F32, Layout::contiguous(&[batch * s, n_heads, size])?)?;
        let scores = b.output("scores", Element::F32, Layout::contiguous(&[batch, n_heads, t, s])?)?;
        b.attention_scores("scores", &AttentionScores { q, k, visibility: Visibility::default(), scores })
    };
    Row::new(id, format!("attention scores {}", heads.what()), work, build, Vec::new())
}

/// P·V alone.
pub(crate) fn values(id: &str, heads: Heads) -> Row {
    let Heads { batch, heads: n_heads, t, s, size } = heads;
    let work = Work::Flops(2 * heads.pairs(false, &vec![s; batch]) * size as u64);
    let build = move |b: &mut Builder| {
        let probs = b.input("probs", Element::F32, Layout::contiguous(&[batch, n_heads, t, s])?)?;
        let v = b.input("v", Element::F32, Layout::contiguous(&[batch * s, n_heads, size])?)?;
        let out = b.output("out", Element::F32, Layout::contiguous(&[batch * t, n_heads, size])?)?;
        b.attention_values("values", &AttentionValues { probs, v, visibility: Visibility::default(), out })
    };
    Row::new(id, format!("attention values {}", heads.what()), work, build, Vec::new())
}

/// Σ v · tanh(q + k), four operations an element.
pub(crate) fn additive(id: &str, heads: Heads) -> Row {
    let Heads { batch, heads: n_heads, t, s, size } = heads;
    let work = Work::Flops(4 * heads.pairs(false, &vec![s; batch]) * size as u64);
    let build = move |b: &mut Builder| {
        let q = b.input("q", Element::F32, Layout::contiguous(&[batch * t, n_heads, size])?)?;
        let k = b.input("k", Element::F32, Layout::contiguous(&[batch * s, n_heads, size])?)?;
        let vector = b.weight("vector", Layout::contiguous(&[n_heads, size])?)?;
        let scores = b.output("scores", Element::F32, Layout::contiguous(&[batch, n_heads, t, s])?)?;
        let visibility = Visibility::new(AttentionOptions { scale: Some(1.0), ..AttentionOptions::default() });
        b.additive_scores("scores", &AdditiveScores { q, k, vector, visibility, scores })
    };
    Row::new(id, format!("additive scores {}", heads.what()), work, build, Vec::new())
}

/// y = layer_norm(x + residual).
pub(crate) fn norm(id: &str, rows: usize, columns: usize) -> Row {
    let build = move |b: &mut Builder| {
        let layout = Layout::contiguous(&[rows, columns])?;
        let x = b.input("x", Element::F32, layout)?;
        let residual = Some(b.input("residual", Element::F32, layout)?);
        let weight = Some(b.weight("weight", Layout::contiguous(&[columns])?)?);
        let bias = Some(b.weight("bias", Layout::contiguous(&[columns])?)?);
        let y = b.output("y", Element::F32, layout)?;
        b.layer_norm("norm", &LayerNorm { residual, weight, bias, ..LayerNorm::new(x, y) })
    };
    let work = Work::Bytes(3 * 4 * (rows * columns) as u64);
    Row::new(id, format!("layer_norm {rows}×{columns} with residual add"), work, build, Vec::new())
}

/// y = softmax(x), no key hidden.
pub(crate) fn softmax(id: &str, sizes: [usize; 4]) -> Row {
    let build = move |b: &mut Builder| {
        let x = b.input("x", Element::F32, Layout::contiguous(&sizes)?)?;
        let y = b.output("y", Element::F32, Layout::contiguous(&sizes)?)?;
        b.masked_softmax("softmax", &MaskedSoftmax { x, visibility: Visibility::default(), y })
    };
    let (rows, columns) = (sizes[..3].iter().product::<usize>(), sizes[3]);
    let work = Work::Bytes(2 * 4 * (rows * columns) as u64);
    Row::new(id, format!("masked_softmax {rows}×{columns}"), work, build, Vec::new())
}

/// y = gelu(x).
pub(crate) fn activation(id: &str, rows: usize, columns: usize) -> Row {
    let build = move |b: &mut Builder| {
        let x = b.input("x", Element::F32, Layout::contiguous(&[rows, columns])?)?;
        let y = b.output("y", Element::F32, Layout::contiguous(&[rows, columns])?)?;
        b.activation("activation", &ActivationRows { x, activation: Activation::Gelu, y })
    };
    let work = Work::Bytes(2 * 4 * (rows * columns) as u64);
    Row::new(id, format!("activation {rows}×{columns}, Gelu"), work, build, Vec::new())
}

/// y = token + position + segment, as in BERT. The position and segment tables stay in a cache, so that only the token's row
/// and y count.
pub(crate) fn embedding(id: &str, batch: usize, longest: usize, columns: usize) -> Row {
    const VOCABULARY: usize = 30522;
    let rows = batch * longest;
    let build = move |b: &mut Builder| {
        let ids = b.input("ids", Element::U32, Layout::contiguous(&[rows])?)?;
        let segment_ids = b.input("segment_ids", Element::U32, Layout::contiguous(&[rows])?)?;
        let sequences = b.input("sequences", Element::U32, Layout::contiguous(&[batch, 8])?)?;
        let token = b.weight("token", Layout::contiguous(&[VOCABULARY, columns])?)?;
        let position = b.weight("position", Layout::contiguous(&[512, columns])?)?;
        let segment = b.weight("segment", Layout::contiguous(&[2, columns])?)?;
        let y = b.output("y", Element::F32, Layout::contiguous(&[rows, columns])?)?;
        let rows = EmbeddingRows {
            positions: Some(position),
            segments: Some((segment_ids, segment)),
            sequences: Some((sequences, longest)),
            ..EmbeddingRows::new(ids, token, y)
        };
        b.embedding("embedding", &rows)
    };
    let mut rng = StdRng::seed_from_u64(1);
    let mut data = sequences(longest, &vec![longest; batch], longest);
    data.push(("ids", (0..rows).map(|_| rng.random_range(0..VOCABULARY as u32)).collect()));
    data.push(("segment_ids", (0..rows).map(|_| rng.random_range(0..2)).collect()));
    let work = Work::Bytes(2 * 4 * (rows * columns) as u64);
    Row::new(id, format!("embedding {rows}×{columns}, token + position + segment"), work, build, data)
}

/// The largest element of each row of logits.
pub(crate) fn argmax(id: &str, rows: usize, columns: usize) -> Row {
    let build = move |b: &mut Builder| {
        let x = b.input("x", Element::F32, Layout::contiguous(&[rows, columns])?)?;
        let ids = b.output("ids", Element::U32, Layout::contiguous(&[rows])?)?;
        b.argmax("argmax", &Argmax { x, ids })
    };
    let work = Work::Bytes(4 * (rows * columns) as u64);
    Row::new(id, format!("argmax {rows}×{columns}"), work, build, Vec::new())
}

/// Post-norm encoder layers with GELU over B padded sequences of T rows.
pub(crate) fn encoder(id: &str, [batch, t]: [usize; 2], [d_model, n_heads, d_ff]: [usize; 3], n_layers: usize) -> Row {
    let mut layer = EncoderLayer::new(d_model, n_heads, d_ff);
    layer.feed_forward.activation = Activation::Gelu;
    let stack = Encoder::new(layer, n_layers);
    let (c, f, rows) = (d_model as u64, d_ff as u64, (batch * t) as u64);
    let flops = n_layers as u64 * rows * (2 * (4 * c * c + 2 * c * f) + 4 * t as u64 * c);
    let name = if n_layers == 1 { "encoder layer".into() } else { format!("encoder of {n_layers} layers") };
    let what = format!("{name} C {d_model}, NH {n_heads}, F {d_ff}, B {batch}, T {t}, Gelu, post-norm");
    Row {
        id: id.into(),
        what,
        work: Work::Flops(flops),
        build: Box::new(move |kernels| stack.program(kernels, &Inputs::new(BatchShape::padded(batch, t)))),
        data: sequences(t, &vec![t; batch], t),
    }
}

/// A causal post-norm decoder layer over B padded sequences of T rows and a memory of T rows.
pub(crate) fn decoder(id: &str, [batch, t]: [usize; 2], [d_model, n_heads, d_ff]: [usize; 3]) -> Row {
    let layer = DecoderLayer::new(d_model, n_heads, d_ff);
    let (c, f, t64) = (d_model as u64, d_ff as u64, t as u64);
    let pairs = t64 * (t64 + 1) / 2 + t64 * t64;
    let flops = batch as u64 * (t64 * 2 * (8 * c * c + 2 * c * f) + 4 * pairs * c);
    let mut data = sequences(t, &vec![t; batch], t);
    data.extend(data.clone().into_iter().map(|(_, words)| ("cross_sequences", words)));
    Row {
        id: id.into(),
        what: format!("decoder layer C {d_model}, NH {n_heads}, F {d_ff}, B {batch}, T = S = {t}, Relu, post-norm, causal"),
        work: Work::Flops(flops),
        build: Box::new(move |kernels| layer.program(kernels, &Inputs::new(BatchShape::cross(batch, t, t)))),
        data,
    }
}

/// `count` lengths spread evenly over `from` … `to`.
pub(crate) fn spread(count: usize, from: usize, to: usize) -> Vec<usize> {
    (0..count).map(|i| from + (to - from) * i / (count - 1).max(1)).collect()
}

/// The `sequences` input of a padded batch; no lengths past `longest_k` come from this file, which is all that is refused.
pub(crate) fn sequences(longest_q: usize, lengths: &[usize], longest_k: usize) -> Vec<(&'static str, Vec<u32>)> {
    let sequences = Sequences::cross(lengths.len(), longest_q, lengths, longest_k);
    sequences.map(|s| ("sequences", s.words().to_vec())).into_iter().collect()
}
