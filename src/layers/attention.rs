//! Multi-head attention.

use std::ops::Range;

use super::{Batch, Inputs};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::kernels::{
    AdditiveScores, AttentionScores, AttentionValues, AttentionWeights, FusedAttention, Linear, MAX_VALUE_SIZE,
    MaskedSoftmax, Rotary, RotaryPositions, Visibility,
};
use crate::pipeline::Kernels;
use crate::program::{Program, Tensor};
use crate::shape::Layout;
use crate::spec::layers::{AttentionPath, MultiHeadAttention, Projection, RotaryOptions, Score, check_prefix};
use crate::spec::{AttentionOptions, Mask};
use crate::tensor::Element;

/// The tensors of one multi-head attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRows {
    /// (q_rows, d_model): what queries are projected from
    pub x: Tensor,
    /// (k_rows, k_width): what keys are projected from; x itself in self-attention
    pub memory_k: Tensor,
    /// (k_rows, v_width): what values are projected from; x itself in self-attention
    pub memory_v: Tensor,
    /// (q_rows, d_model), added behind the output projection
    pub residual: Option<Tensor>,
    /// (B, NH, T, S): attention weights as an output; every element is written
    pub weights: Option<Tensor>,
    /// (q_rows, d_model)
    pub y: Tensor,
}

impl AttentionRows {
    /// Self-attention of x without residual.
    #[must_use]
    pub fn self_attention(x: Tensor, y: Tensor) -> Self {
        Self::cross(x, x, y)
    }

    /// Attention of x over a memory without residual.
    #[must_use]
    pub fn cross(x: Tensor, memory: Tensor, y: Tensor) -> Self {
        Self { x, memory_k: memory, memory_v: memory, residual: None, weights: None, y }
    }
}

impl MultiHeadAttention {
    /// Self-attention as a program of its own: `x` to `y`; names as in [`crate::layers`], weights without a prefix.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::check`]; [`Error::Limit`] for scores that exceed a binding.
    pub fn program(&self, kernels: &Kernels, inputs: &Inputs) -> Result<Program> {
        let inputs = Inputs { shape: inputs.shape.to_self(), ..inputs.clone() };
        self.program_of(kernels, &inputs, |_, x| Ok([x, x]))
    }

    /// Attention over other rows as a program of its own: `x`, `memory_k` (k_rows, k_width) and `memory_v` (k_rows, v_width) to `y`.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::program`].
    pub fn cross_program(&self, kernels: &Kernels, inputs: &Inputs) -> Result<Program> {
        let rows = inputs.shape.k_rows;
        self.program_of(kernels, inputs, |b, _| {
            Ok([b.input_rows("memory_k", rows, self.k_width)?, b.input_rows("memory_v", rows, self.v_width)?])
        })
    }

    fn program_of(
        &self,
        kernels: &Kernels,
        inputs: &Inputs,
        memory: impl FnOnce(&mut Builder, Tensor) -> Result<[Tensor; 2]>,
    ) -> Result<Program> {
        self.check()?;
        let shape = inputs.shape;
        let mut b = Builder::new(kernels, "multi-head attention").storing(inputs.storage, inputs.weights)?;
        let batch = b.batch("", &self.options, self.n_heads, shape, inputs.only_mask()?)?;
        let x = b.input_rows("x", shape.q_rows, self.d_model)?;
        let [memory_k, memory_v] = memory(&mut b, x)?;
        let y = b.output_rows("y", shape.q_rows, self.d_model)?;
        let weights = b.weights_output(inputs.attention_weights, "weights", self.n_heads, shape)?;
        b.multi_head_attention("", self, &batch, &AttentionRows { x, memory_k, memory_v, residual: None, weights, y })?;
        b.finish()
    }
}

impl Builder {
    /// Appends multi-head attention:
    ///
    /// ```text
    /// x (q_rows, d_model) -> q (q_rows, NH, HS) ; memory (k_rows, ·) -> k, v (k_rows, NH_kv, HS)
    /// q, k, v -> heads (q_rows, NH · HS) -> y (q_rows, d_model)
    /// ```
    ///
    /// From q, k and v to the heads it goes by [`AttentionPath`]: in one kernel, with a second one for weights
    /// as an output, or by scores and weights that are stored.
    ///
    /// Heads are split by strides: q, k and v of self-attention are columns of one projection. Rows of y that no sequence has
    /// are computed from whatever the scratch holds.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::check`], [`Builder::linear`] and [`Builder::attention_scores`]; [`Error::Option`] for a prefix that does not end in
    /// a dot.
    pub fn multi_head_attention(
        &mut self,
        prefix: &str,
        spec: &MultiHeadAttention,
        batch: &Batch,
        rows: &AttentionRows,
    ) -> Result<()> {
        check_prefix(prefix)?;
        spec.check()?;
        batch.shape.check()?;
        let label = prefix.trim_end_matches('.');
        self.expect(label, "x", rows.x, self.storage(), &[batch.shape.q_rows, spec.d_model])?;
        self.expect(label, "memory_k", rows.memory_k, self.storage(), &[batch.shape.k_rows, spec.k_width])?;
        self.expect(label, "memory_v", rows.memory_v, self.storage(), &[batch.shape.k_rows, spec.v_width])?;
        let mut parts = self.project(prefix, spec, rows)?;
        if spec.rotary.is_some() {
            if rows.memory_k != rows.x {
                return Err(Error::option(format!("rotary positions of {label}"), "self-attention", "keys of other rows"));
            }
            self.turn(prefix, spec, batch, &mut parts)?;
        }
        let [q, k, v] = parts;
        let shape = batch.shape;
        let width = spec.n_heads.saturating_mul(spec.value_head_size);
        let heads = self.scratch("heads", self.storage(), Layout::contiguous(&[shape.q_rows, width])?)?;
        let out = heads.split_heads(spec.n_heads, spec.value_head_size)?;
        let v = v.split_heads(spec.n_kv_heads, spec.value_head_size)?;
        let additive = matches!(spec.score, Score::Additive { .. });
        let fused = spec.path == AttentionPath::Fused && spec.value_head_size <= MAX_VALUE_SIZE;
        if fused && !additive {
            let [q, k] = self.score_operands(prefix, spec, [q, k])?;
            let visibility = self.visibility(prefix, spec, batch)?;
            self.attend_fused(prefix, batch, visibility, rows.weights, [q, k, v], out)?;
        } else {
            let stored = self.attend_separately(prefix, spec, batch, rows.weights, [q, k, v], out);
            stored.map_err(|error| match error {
                Error::Limit { what, limit, needed, allowed } if !additive && spec.value_head_size <= MAX_VALUE_SIZE => {
                    Error::Limit {
                        what: format!("{what}, which AttentionPath::Fused stores none of"),
                        limit,
                        needed,
                        allowed,
                    }
                }
                other => other,
            })?;
        }

        let label = format!("{prefix}out_proj");
        let linear = self.out_projection(&label, spec, heads, rows.residual, rows.y)?;
        self.linear(&label, &linear)
    }

    /// Which keys the queries of a batch see; what is added by distance is a weight.
    pub(super) fn visibility(&mut self, prefix: &str, spec: &MultiHeadAttention, batch: &Batch) -> Result<Visibility> {
        let options = spec.scored_options();
        let mask = match options.mask {
            Some(Mask::Relative { reach }) => {
                if let Some(mask) = batch.mask {
                    let label = format!("mask of {}", prefix.trim_end_matches('.'));
                    return Err(Error::option(label, "none beside a relative position bias", mask.layout()));
                }
                let layout = Layout::contiguous(&[spec.n_heads, Mask::distances(reach)])?;
                Some(self.weight_as(&format!("{prefix}relative_position_bias"), Element::F32, layout)?)
            }
            _ => batch.mask,
        };
        Ok(Visibility { options, sequences: Some(batch.sequences), key_mask: batch.key_mask, mask })
    }

    /// y = heads · Wᵀ + bias + residual.
    pub(super) fn out_projection(
        &mut self,
        label: &str,
        spec: &MultiHeadAttention,
        heads: Tensor,
        residual: Option<Tensor>,
        y: Tensor,
    ) -> Result<Linear> {
        let width = spec.n_heads.saturating_mul(spec.value_head_size);
        let weight = self.projection_weight(&format!("{label}.weight"), [spec.d_model, width])?;
        let bias = self.vector(spec.bias, &format!("{label}.bias"), spec.d_model)?;
        Ok(Linear { bias, residual, ..Linear::new(heads, weight, y) })
    }

    /// One kernel from q (q_rows, NH, HS), k (k_rows, NH_kv, HS) and v (k_rows, NH_kv, VS) to out (q_rows, NH, VS); where weights
    /// are wanted a second one makes them from the statistics of the first.
    fn attend_fused(
        &mut self,
        prefix: &str,
        batch: &Batch,
        visibility: Visibility,
        weights: Option<Tensor>,
        [q, k, v]: [Tensor; 3],
        out: Tensor,
    ) -> Result<()> {
        let shape = batch.shape;
        let rows = [2, shape.sequences, q.layout().sizes()[1], shape.longest_q];
        let statistics = match weights {
            Some(_) => Some(self.scratch("statistics", Element::F32, Layout::contiguous(&rows)?)?),
            None => None,
        };
        let sizes = [shape.sequences, shape.longest_q, shape.longest_k];
        let attention = FusedAttention { statistics, ..FusedAttention::new(q, k, v, sizes, visibility.clone(), out) };
        self.attention(&format!("{prefix}attention"), &attention)?;
        if let (Some(weights), Some(statistics)) = (weights, statistics) {
            let args = AttentionWeights { q, k, visibility, statistics, weights };
            self.attention_weights(&format!("{prefix}weights"), &args)?;
        }
        Ok(())
    }

    /// Scores, softmax and weighted values, each stored: q and k (rows, heads · size), v (k_rows, NH_kv, VS) to out (q_rows, NH, VS).
    fn attend_separately(
        &mut self,
        prefix: &str,
        spec: &MultiHeadAttention,
        batch: &Batch,
        weights: Option<Tensor>,
        [q, k, v]: [Tensor; 3],
        out: Tensor,
    ) -> Result<()> {
        let shape = batch.shape;
        let sizes = [shape.sequences, spec.n_heads, shape.longest_q, shape.longest_k];
        let scores = self.scratch_rows("scores", &sizes)?;
        let visibility = self.visibility(prefix, spec, batch)?;
        self.score(prefix, spec, [q, k], visibility, scores)?;

        let probs = match weights {
            Some(weights) => weights,
            None => self.scratch_rows("probs", &sizes)?,
        };
        let plain = Visibility::new(AttentionOptions { scale: Some(1.0), ..AttentionOptions::default() });
        let label = format!("{prefix}softmax");
        self.masked_softmax(&label, &MaskedSoftmax { x: scores, visibility: plain, y: probs })?;

        let visibility = Visibility { sequences: Some(batch.sequences), key_mask: batch.key_mask, ..Visibility::default() };
        self.attention_values(&format!("{prefix}values"), &AttentionValues { probs, v, visibility, out })
    }

    /// q, k and v: one projection for what comes from the same rows, as far as the weights lie together.
    fn project(&mut self, prefix: &str, spec: &MultiHeadAttention, rows: &AttentionRows) -> Result<[Tensor; 3]> {
        let inputs = [rows.x, rows.memory_k, rows.memory_v];
        let mut parts = [rows.x; 3];
        let mut first = 0;
        while first < 3 {
            let stacked = spec.projection == Projection::Stacked;
            let together = inputs[first..].iter().take_while(|i| stacked && **i == inputs[first]).count().max(1);
            self.project_parts(prefix, spec, inputs[first], first, &mut parts[first..first + together])?;
            first += together;
        }
        Ok(parts)
    }

    /// Turns projected queries and keys, in one dispatch where they lie side by side.
    pub(super) fn turn(
        &mut self,
        prefix: &str,
        spec: &MultiHeadAttention,
        batch: &Batch,
        parts: &mut [Tensor; 3],
    ) -> Result<()> {
        let Some(RotaryOptions { positions, columns, order }) = spec.rotary else { return Ok(()) };
        let table = self.input("rotary_table", Element::F32, Layout::contiguous(&[positions, columns])?)?;
        let label = format!("{prefix}rotary");
        let [q_width, k_width, _] = spec.widths();
        let rows = parts[0].layout().sizes()[0];
        let turned = self.scratch("turned", self.storage(), Layout::contiguous(&[rows, q_width + k_width])?)?;
        let [q, k] = [turned.narrow(1, 0, q_width)?, turned.narrow(1, q_width, k_width)?];
        let places = RotaryPositions::Sequences(batch.sequences, batch.shape.longest_q);
        let rotate = |b: &mut Self, x: Tensor, heads: usize, y: Tensor| {
            let [x, y] = [x.split_heads(heads, spec.head_size)?, y.split_heads(heads, spec.head_size)?];
            b.rotary(&label, &Rotary { x, table, order, positions: places, y })
        };
        match parts[0].beside(&parts[1]) {
            Some(both) => rotate(self, both, spec.n_heads + spec.n_kv_heads, turned)?,
            None => {
                rotate(self, parts[0], spec.n_heads, q)?;
                rotate(self, parts[1], spec.n_kv_heads, k)?;
            }
        }
        (parts[0], parts[1]) = (q, k);
        Ok(())
    }

    /// The projections of x from number `first` of q, k and v on, in one dispatch.
    pub(super) fn project_parts(
        &mut self,
        prefix: &str,
        spec: &MultiHeadAttention,
        x: Tensor,
        first: usize,
        parts: &mut [Tensor],
    ) -> Result<()> {
        let widths = &spec.widths()[first..first + parts.len()];
        let (label, linear) = self.projection(prefix, spec, x, first..first + parts.len())?;
        self.linear(&label, &linear)?;
        let mut column = 0;
        for (part, &width) in parts.iter_mut().zip(widths) {
            *part = linear.y.narrow(1, column, width)?;
            column += width;
        }
        Ok(())
    }

    /// The projection of x to `parts` of q, k and v, into scratch.
    pub(super) fn projection(
        &mut self,
        prefix: &str,
        spec: &MultiHeadAttention,
        x: Tensor,
        parts: Range<usize>,
    ) -> Result<(String, Linear)> {
        let widths = spec.widths();
        let sum = |widths: &[usize]| widths.iter().fold(0usize, |sum, &width| sum.saturating_add(width));
        let (total, at, width) = (sum(&widths), sum(&widths[..parts.start]), sum(&widths[parts.clone()]));
        let (label, weight) = if spec.projection == Projection::Stacked {
            let all = self.projection_weight(&format!("{prefix}in_proj_weight"), [total, spec.d_model])?;
            (format!("{prefix}in_proj"), all.narrow(0, at, width)?)
        } else {
            let label = format!("{prefix}{}_proj", ["q", "k", "v"][parts.start]);
            let inputs = [spec.d_model, spec.k_width, spec.v_width][parts.start];
            let weight = self.projection_weight(&format!("{label}_weight"), [width, inputs])?;
            (label, weight)
        };
        let bias = self.vector(spec.bias, &format!("{prefix}in_proj_bias"), total)?;
        let bias = bias.map(|b| b.narrow(0, at, width)).transpose()?;
        let rows = x.layout().sizes()[0];
        let y = self.scratch("projected", self.storage(), Layout::contiguous(&[rows, width])?)?;
        Ok((label, Linear { bias, ..Linear::new(x, weight, y) }))
    }

    /// The finished scores of q (q_rows, NH · HS) and k (k_rows, NH_kv · HS).
    fn score(
        &mut self,
        prefix: &str,
        spec: &MultiHeadAttention,
        [q, k]: [Tensor; 2],
        visibility: Visibility,
        scores: Tensor,
    ) -> Result<()> {
        let label = format!("{prefix}scores");
        let [q, k] = self.score_operands(prefix, spec, [q, k])?;
        match spec.score {
            Score::Dot | Score::General => self.attention_scores(&label, &AttentionScores { q, k, visibility, scores }),
            Score::Additive { .. } => {
                let sizes = &q.layout().sizes()[1..];
                let vector = self.weight(&format!("{prefix}score_vector"), Layout::contiguous(sizes)?)?;
                self.additive_scores(&label, &AdditiveScores { q, k, vector, visibility, scores })
            }
        }
    }

    /// q and k (rows, heads · size) as heads of what the score function compares.
    fn score_operands(&mut self, prefix: &str, spec: &MultiHeadAttention, [q, k]: [Tensor; 2]) -> Result<[Tensor; 2]> {
        let [q_width, k_width, _] = spec.widths();
        match spec.score {
            Score::Dot => {
                Ok([q.split_heads(spec.n_heads, spec.head_size)?, k.split_heads(spec.n_kv_heads, spec.head_size)?])
            }
            Score::General => {
                let k = self.project_score(prefix, "score_weight", k, q_width, k_width)?;
                Ok([q.split_heads(spec.n_heads, spec.head_size)?, k.split_heads(spec.n_heads, spec.head_size)?])
            }
            Score::Additive { width } => {
                let size = width.checked_div(spec.n_heads).ok_or_else(|| Error::option("n_heads", "at least 1", 0))?;
                let q = self.project_score(prefix, "score_query_weight", q, width, q_width)?;
                let k = self.project_score(prefix, "score_key_weight", k, width, k_width)?;
                Ok([q.split_heads(spec.n_heads, size)?, k.split_heads(spec.n_heads, size)?])
            }
        }
    }

    fn project_score(&mut self, prefix: &str, name: &str, x: Tensor, d_out: usize, d_in: usize) -> Result<Tensor> {
        let label = format!("{prefix}{name}");
        let weight = self.projection_weight(&label, [d_out, d_in])?;
        let rows = x.layout().sizes()[0];
        let y = self.scratch(name, self.storage(), Layout::contiguous(&[rows, d_out])?)?;
        self.linear(&label, &Linear::new(x, weight, y))?;
        Ok(y)
    }
}
