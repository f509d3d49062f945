//! The programs of the speed table's rows: from a task to dispatches.

use tileformer::kernels::{
    ActivationRows, AdditiveScores, Argmax, AttentionScores, AttentionValues, Choose, EmbeddingRows, FusedAttention,
    LayerNorm, Linear, MaskedSoftmax, Pool, Visibility,
};
use tileformer::layers::{DecoderLayer, Encoder, EncoderLayer, Inputs};
use tileformer::spec::Pooling;
use tileformer::spec::cache::{DecodeState, STATE_WORDS};
use tileformer::spec::sampling::SAMPLING_WORDS;
use tileformer::{Activation, AttentionOptions, BatchShape, Builder, Element, Kernels, Layout, Program, Result, Tensor};

use crate::task::{CAPACITY, Heads, Task, VOCABULARY};

/// The program that does a task, its tensors of `element`.
///
/// # Errors
/// [`tileformer::Error::Limit`] on a device that is too small for it.
pub(crate) fn program(task: &Task, element: Element, kernels: &Kernels, name: &str) -> Result<Program> {
    let mut b = Builder::new(kernels, name).with_storage(element)?;
    let mut rows = Rows { b: &mut b, element };
    match task {
        Task::Linear(sizes, activation) => linear(&mut rows, *sizes, *activation)?,
        Task::Attention(heads) => attention(&mut rows, heads)?,
        Task::Scores(heads) => scores(&mut rows, heads)?,
        Task::Values(heads) => values(&mut rows, heads)?,
        Task::Additive(heads) => additive(&mut rows, heads)?,
        Task::Norm(sizes) => norm(&mut rows, *sizes)?,
        Task::Softmax(sizes) => softmax(&mut rows, *sizes)?,
        Task::Gelu(sizes) => gelu(&mut rows, *sizes)?,
        Task::Embedding(sizes) => embedding(&mut rows, *sizes)?,
        Task::Pool(sizes) => pool(&mut rows, *sizes)?,
        Task::Argmax(sizes) => argmax(&mut rows, *sizes)?,
        Task::Choose(sizes) => choose(&mut rows, *sizes)?,
        Task::Encoder { batch: [batch, t], sizes: [d_model, n_heads, d_ff], layers } => {
            let mut layer = EncoderLayer::new(*d_model, *n_heads, *d_ff);
            layer.feed_forward.activation = Activation::Gelu;
            let inputs = Inputs::new(BatchShape::padded(*batch, *t)).with_storage(element);
            return Encoder::new(layer, *layers).program(kernels, &inputs);
        }
        Task::Decoder { batch: [batch, t], sizes: [d_model, n_heads, d_ff] } => {
            let layer = DecoderLayer::new(*d_model, *n_heads, *d_ff);
            return layer.program(kernels, &Inputs::new(BatchShape::cross(*batch, *t, *t)).with_storage(element));
        }
    }
    b.finish()
}

/// A builder whose tensors are of one type.
struct Rows<'a> {
    b: &'a mut Builder,
    element: Element,
}

impl Rows<'_> {
    fn input(&mut self, name: &str, sizes: &[usize]) -> Result<Tensor> {
        self.b.input(name, self.element, Layout::contiguous(sizes)?)
    }

    fn input_u32(&mut self, name: &str, sizes: &[usize]) -> Result<Tensor> {
        self.b.input(name, Element::U32, Layout::contiguous(sizes)?)
    }

    fn weight(&mut self, name: &str, sizes: &[usize]) -> Result<Tensor> {
        self.b.weight(name, Layout::contiguous(sizes)?)
    }

    fn output(&mut self, name: &str, sizes: &[usize]) -> Result<Tensor> {
        self.b.output(name, self.element, Layout::contiguous(sizes)?)
    }
}

fn linear(rows: &mut Rows<'_>, [n, d_in, d_out]: [usize; 3], activation: Activation) -> Result<()> {
    let x = rows.input("x", &[n, d_in])?;
    let weight = rows.weight("weight", &[d_out, d_in])?;
    let bias = Some(rows.weight("bias", &[d_out])?);
    let y = rows.output("y", &[n, d_out])?;
    rows.b.linear("linear", &Linear { bias, activation, ..Linear::new(x, weight, y) })
}

fn attention(rows: &mut Rows<'_>, heads: &Heads) -> Result<()> {
    let Heads { batch, heads: n_heads, t, s, size, causal, .. } = *heads;
    let q = rows.input("q", &[batch * t, n_heads, size])?;
    let k = rows.input("k", &[batch * s, n_heads, size])?;
    let v = rows.input("v", &[batch * s, n_heads, size])?;
    let sequences = Some(rows.input_u32("sequences", &[batch, 8])?);
    let out = rows.output("out", &[batch * t, n_heads, size])?;
    let options = AttentionOptions { causal, ..AttentionOptions::default() };
    let visibility = Visibility { options, sequences, ..Visibility::default() };
    let sizes = [batch, t, s];
    rows.b.attention(
        "attention",
        &FusedAttention { q, k, v, sizes, visibility, out, log_sum_exp: None, statistics: None, cached: false },
    )
}

fn scores(rows: &mut Rows<'_>, heads: &Heads) -> Result<()> {
    let Heads { batch, heads: n_heads, t, s, size, .. } = *heads;
    let q = rows.input("q", &[batch * t, n_heads, size])?;
    let k = rows.input("k", &[batch * s, n_heads, size])?;
    let scores = rows.b.output("scores", Element::F32, Layout::contiguous(&[batch, n_heads, t, s])?)?;
    rows.b.attention_scores("scores", &AttentionScores { q, k, visibility: Visibility::default(), scores })
}

fn values(rows: &mut Rows<'_>, heads: &Heads) -> Result<()> {
    let Heads { batch, heads: n_heads, t, s, size, .. } = *heads;
    let probs = rows.b.input("probs", Element::F32, Layout::contiguous(&[batch, n_heads, t, s])?)?;
    let v = rows.input("v", &[batch * s, n_heads, size])?;
    let out = rows.output("out", &[batch * t, n_heads, size])?;
    rows.b.attention_values("values", &AttentionValues { probs, v, visibility: Visibility::default(), out })
}

fn additive(rows: &mut Rows<'_>, heads: &Heads) -> Result<()> {
    let Heads { batch, heads: n_heads, t, s, size, .. } = *heads;
    let q = rows.input("q", &[batch * t, n_heads, size])?;
    let k = rows.input("k", &[batch * s, n_heads, size])?;
    let vector = rows.weight("vector", &[n_heads, size])?;
    let scores = rows.b.output("scores", Element::F32, Layout::contiguous(&[batch, n_heads, t, s])?)?;
    let visibility = Visibility::new(AttentionOptions { scale: Some(1.0), ..AttentionOptions::default() });
    rows.b.additive_scores("scores", &AdditiveScores { q, k, vector, visibility, scores })
}

fn norm(rows: &mut Rows<'_>, [n, columns]: [usize; 2]) -> Result<()> {
    let x = rows.input("x", &[n, columns])?;
    let residual = Some(rows.input("residual", &[n, columns])?);
    let weight = Some(rows.weight("weight", &[columns])?);
    let bias = Some(rows.weight("bias", &[columns])?);
    let y = rows.output("y", &[n, columns])?;
    rows.b.layer_norm("norm", &LayerNorm { residual, weight, bias, ..LayerNorm::new(x, y) })
}

fn softmax(rows: &mut Rows<'_>, sizes: [usize; 4]) -> Result<()> {
    let x = rows.input("x", &sizes)?;
    let y = rows.output("y", &sizes)?;
    rows.b.masked_softmax("softmax", &MaskedSoftmax { x, visibility: Visibility::default(), y })
}

fn gelu(rows: &mut Rows<'_>, sizes: [usize; 2]) -> Result<()> {
    let x = rows.input("x", &sizes)?;
    let y = rows.output("y", &sizes)?;
    rows.b.activation("activation", &ActivationRows { x, activation: Activation::Gelu, y })
}

fn embedding(rows: &mut Rows<'_>, [batch, t, columns]: [usize; 3]) -> Result<()> {
    let ids = rows.input_u32("ids", &[batch * t])?;
    let segment_ids = rows.input_u32("segment_ids", &[batch * t])?;
    let sequences = rows.input_u32("sequences", &[batch, 8])?;
    let token = rows.weight("token", &[VOCABULARY, columns])?;
    let position = rows.weight("position", &[512, columns])?;
    let segment = rows.weight("segment", &[2, columns])?;
    let y = rows.output("y", &[batch * t, columns])?;
    let embedding = EmbeddingRows {
        positions: Some(position),
        segments: Some((segment_ids, segment)),
        sequences: Some((sequences, t)),
        ..EmbeddingRows::new(ids, token, y)
    };
    rows.b.embedding("embedding", &embedding)
}

fn pool(rows: &mut Rows<'_>, [batch, t, columns]: [usize; 3]) -> Result<()> {
    let x = rows.input("x", &[batch * t, columns])?;
    let sequences = rows.input_u32("sequences", &[batch, 8])?;
    let y = rows.output("y", &[batch, columns])?;
    rows.b.pool("pool", &Pool { x, sequences, longest: t, pooling: Pooling::Mean, normalize: true, y })
}

fn argmax(rows: &mut Rows<'_>, sizes: [usize; 2]) -> Result<()> {
    let x = rows.input("x", &sizes)?;
    let ids = rows.b.output("ids", Element::U32, Layout::contiguous(&sizes[..1])?)?;
    rows.b.argmax("argmax", &Argmax { x, ids })
}

fn choose(rows: &mut Rows<'_>, [batch, columns]: [usize; 2]) -> Result<()> {
    let logits = rows.input("logits", &[batch, columns])?;
    let sampling = rows.input_u32("sampling", &[batch, SAMPLING_WORDS])?;
    let state = Layout::contiguous(&[DecodeState::rows(batch, false), STATE_WORDS])?;
    let state = rows.b.state("state", Element::U32, state)?;
    let tokens = rows.b.output("tokens", Element::U32, Layout::contiguous(&[1, batch])?)?;
    rows.b.choose("choose", &Choose::new(logits, sampling, state, CAPACITY, tokens))
}
