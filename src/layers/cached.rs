//! Attention over a key/value cache, and the layers around it.

use super::Batch;
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::kernels::{CacheAppend, FewOutput, FusedAttention, FusedNorm, Linear, LinearFew};
use crate::program::Tensor;
use crate::shape::Layout;
use crate::spec::cache::{CacheShape, key_rows};
use crate::spec::generator::GeneratorStack;
use crate::spec::layers::{
    DecoderLayer, EncoderLayer, FeedForward, MultiHeadAttention, Norm, Placement, Projection, Score, check_prefix,
};
use crate::tensor::Element;

/// The rows of a layer over caches: new rows of texts whose past is in slots.
#[derive(Clone, Copy, Debug)]
pub struct CachedLayer {
    /// (q_rows, d_model)
    pub x: Tensor,
    /// The new rows over the slots, of [`CacheShape::batch`]: `longest_k` is the capacity.
    pub batch: Batch,
    /// (2, slots, NH_kv, capacity, W): read, and the new rows' keys and values written
    pub cache: Tensor,
    /// (q_rows, d_model); what rows that no sequence has hold afterwards is not said
    pub y: Tensor,
}

/// What cross-attention sees: the new rows over slots of projected memory.
#[derive(Clone, Copy, Debug)]
pub struct CachedMemory {
    /// The new rows over the memory's slots, of its [`CacheShape::batch`].
    pub batch: Batch,
    /// (2, slots, NH_kv, capacity, W): keys and values as [`Builder::remember`] left them
    pub cache: Tensor,
}

/// A norm in front of a projection: the prefix of its weights, and what it is.
type Before<'a> = Option<(String, &'a Norm)>;

impl Builder {
    /// y = linear(norm(x)), fused where there are few rows; rows that no sequence of `batch` has are left out then.
    fn project_rows(&mut self, label: &str, before: Before<'_>, batch: &Batch, linear: &Linear) -> Result<()> {
        let columns = linear.y.layout().sizes().last().copied().unwrap_or(0);
        if self.is_in_blocks(linear.weight) {
            let linear = Linear { x: self.norm_before(before, linear.x)?, ..*linear };
            self.check_linear(label, &linear)?;
            return self.linear_in_blocks(label, &linear, true);
        }
        if !self.few_rows(batch.shape.q_rows, columns, true) {
            let x = self.norm_before(before, linear.x)?;
            return self.linear(label, &Linear { x, ..*linear });
        }
        let norm = self.fused_norm(before, linear.x)?;
        let few = LinearFew { linear: *linear, norm, sequences: Some(batch.sequences), out: FewOutput::Rows };
        self.linear_few(label, &few)
    }

    /// Appends logits (rows, V) = linear(norm(x)), the projection to a vocabulary, and gives the largest of each workgroup's columns where
    /// the form that serves has them: the first stage of an argmax.
    pub(super) fn logits(
        &mut self,
        label: &str,
        before: Before<'_>,
        linear: &Linear,
        sequences: Option<Tensor>,
    ) -> Result<Option<Tensor>> {
        let &[rows, vocabulary] = linear.y.layout().sizes() else {
            return Err(Error::shape(label, "logits (rows, V)", linear.y.layout()));
        };
        let in_f32 = self.storage() == Element::F32;
        let wide = || linear.y.is_in_groups(4) && self.has_linear_wide(rows, linear.weight);
        if !self.few_rows(rows, vocabulary, true) && (in_f32 || wide()) {
            let linear = Linear { x: self.norm_before(before, linear.x)?, ..*linear };
            if in_f32 {
                self.linear(label, &linear)?;
            } else {
                self.linear_wide(label, &linear)?;
            }
            return Ok(None);
        }
        let norm = self.fused_norm(before, linear.x)?;
        let groups = self.logit_groups(linear.weight)?;
        let maxima = self.scratch("maxima", Element::U32, Layout::contiguous(&[rows, groups, 2])?)?;
        let out = FewOutput::Logits { maxima };
        self.linear_few(label, &LinearFew { linear: *linear, norm, sequences, out })?;
        Ok(Some(maxima))
    }

    /// norm(x) in scratch, or x itself.
    fn norm_before(&mut self, before: Before<'_>, x: Tensor) -> Result<Tensor> {
        let Some((prefix, norm)) = before else { return Ok(x) };
        let normed = self.scratch_like("normed", x)?;
        self.norm(&prefix, norm, x, normed)?;
        Ok(normed)
    }

    fn fused_norm(&mut self, before: Before<'_>, x: Tensor) -> Result<Option<FusedNorm>> {
        let Some((prefix, norm)) = before else { return Ok(None) };
        let columns = x.layout().sizes().last().copied().unwrap_or(0);
        let weight = self.vector(norm.weight, &format!("{prefix}weight"), columns)?;
        let bias = self.vector(norm.bias, &format!("{prefix}bias"), columns)?;
        Ok(Some(FusedNorm { kind: norm.kind, weight, bias, eps: norm.eps }))
    }

    /// Refuses an attention whose keys and values are not those of a cache, a cache of another shape, and a batch that sees less than all of
    /// a slot.
    fn check_cached(&self, prefix: &str, spec: &MultiHeadAttention, batch: Option<&Batch>, cache: Tensor) -> Result<()> {
        check_prefix(prefix)?;
        let label = prefix.trim_end_matches('.');
        spec.check()?;
        if spec.score != Score::Dot {
            return Err(Error::option(format!("score of {label}"), "Dot, over a cache", format!("{:?}", spec.score)));
        }
        let &[_, slots, _, capacity, _] = cache.layout().sizes() else {
            return Err(Error::shape(format!("cache of {label}"), "(2, slots, NH_kv, capacity, W)", cache.layout()));
        };
        let shape = CacheShape::of(spec, slots, capacity);
        self.expect(label, "cache", cache, self.storage(), shape.layout()?.sizes())?;
        match batch.map(|batch| batch.shape.longest_k).filter(|&longest| longest != capacity) {
            Some(longest) => {
                let expected = format!("the cache's capacity, {capacity}, as CacheShape::batch has it");
                Err(Error::option(format!("longest_k of {label}"), expected, longest))
            }
            None => Ok(()),
        }
    }

    /// As [`Builder::check_cached`], for keys of other rows.
    fn check_memory(&self, prefix: &str, spec: &MultiHeadAttention, batch: Option<&Batch>, cache: Tensor) -> Result<()> {
        if spec.rotary.is_some() {
            let label = prefix.trim_end_matches('.');
            return Err(Error::option(format!("rotary positions of {label}"), "self-attention", "keys of other rows"));
        }
        self.check_cached(prefix, spec, batch, cache)
    }

    /// Keys or values (`kind` 0 or 1) of a cache as rows (k_rows, NH_kv, size): key j of a slot is row `k_start` + j.
    fn cache_rows(&self, label: &str, cache: Tensor, kind: usize, size: usize) -> Result<Tensor> {
        let half = cache.select(0, kind)?;
        let (&[slots, heads, keys, width], strides) = (half.layout().sizes(), half.layout().strides()) else {
            return Err(Error::shape(format!("cache of {label}"), "(2, slots, NH_kv, capacity, W)", cache.layout()));
        };
        if strides != [heads * keys * width, keys * width, width, 1] {
            return Err(Error::shape(format!("cache of {label}"), "slots without gaps", cache.layout()));
        }
        let layout = Layout::overlapping([key_rows(slots, heads, keys), heads, size], [width, keys * width, 1])?;
        Ok(Tensor { layout, padded: false, ..half })
    }

    /// From queries q (q_rows, NH · HS) and a cache to y = `out_proj`(heads) + residual.
    fn attend_cached(
        &mut self,
        prefix: &str,
        spec: &MultiHeadAttention,
        batch: &Batch,
        (q, cache): (Tensor, Tensor),
        residual: Tensor,
        y: Tensor,
    ) -> Result<()> {
        let label = format!("{prefix}attention");
        let shape = batch.shape;
        let width = spec.n_heads.saturating_mul(spec.value_head_size);
        let heads = self.scratch("heads", self.storage(), Layout::contiguous(&[shape.q_rows, width])?)?;
        let q = q.split_heads(spec.n_heads, spec.head_size)?;
        let k = self.cache_rows(&label, cache, 0, spec.head_size)?;
        let v = self.cache_rows(&label, cache, 1, spec.value_head_size)?;
        let sizes = [shape.sequences, shape.longest_q, shape.longest_k];
        let out = heads.split_heads(spec.n_heads, spec.value_head_size)?;
        let visibility = self.visibility(prefix, spec, batch)?;
        let attention = FusedAttention { cached: true, ..FusedAttention::new(q, k, v, sizes, visibility, out) };
        self.attention(&label, &attention)?;
        let label = format!("{prefix}out_proj");
        let linear = self.out_projection(&label, spec, heads, Some(residual), y)?;
        self.project_rows(&label, None, batch, &linear)
    }

    /// Projects the new rows, norm in front, appends their keys and values to the cache, and gives q (q_rows, NH · HS).
    fn append_rows(
        &mut self,
        prefix: &str,
        spec: &MultiHeadAttention,
        before: Before<'_>,
        (batch, x, cache): (&Batch, Tensor, Tensor),
    ) -> Result<Tensor> {
        let total = spec.widths().iter().fold(0usize, |sum, &width| sum.saturating_add(width));
        let few = self.few_rows(batch.shape.q_rows, total, true);
        let in_blocks = self.weights().block_bits().is_some();
        if spec.projection == Projection::Stacked && spec.rotary.is_none() && few && !in_blocks {
            let norm = self.fused_norm(before, x)?;
            let (label, linear) = self.projection(prefix, spec, x, 0..3)?;
            let q = self.scratch("q", self.storage(), Layout::contiguous(&[batch.shape.q_rows, spec.widths()[0]])?)?;
            let out = FewOutput::Append { cache, head_size: spec.head_size, value_head_size: spec.value_head_size };
            let linear = Linear { y: q, ..linear };
            self.linear_few(&label, &LinearFew { linear, norm, sequences: Some(batch.sequences), out })?;
            return Ok(q);
        }
        let mut parts = [x; 3];
        match spec.projection {
            Projection::Stacked => {
                let (label, linear) = self.projection(prefix, spec, x, 0..3)?;
                self.project_rows(&label, before, batch, &linear)?;
                let mut column = 0;
                for (part, width) in parts.iter_mut().zip(spec.widths()) {
                    *part = linear.y.narrow(1, column, width)?;
                    column += width;
                }
            }
            Projection::Separate => {
                let x = self.norm_before(before, x)?;
                for (i, part) in parts.iter_mut().enumerate() {
                    let (label, linear) = self.projection(prefix, spec, x, i..i + 1)?;
                    self.project_rows(&label, None, batch, &linear)?;
                    *part = linear.y;
                }
            }
        }
        self.turn(prefix, spec, batch, &mut parts)?;
        let [q, k, v] = parts;
        self.append_projected(prefix, spec, [k, v], (batch.sequences, batch.shape.longest_q), cache)?;
        Ok(q)
    }

    /// k (rows, NH_kv · HS) and v (rows, NH_kv · VS) into the cache.
    fn append_projected(
        &mut self,
        prefix: &str,
        spec: &MultiHeadAttention,
        [k, v]: [Tensor; 2],
        (sequences, longest): (Tensor, usize),
        cache: Tensor,
    ) -> Result<()> {
        let k = k.split_heads(spec.n_kv_heads, spec.head_size)?;
        let v = v.split_heads(spec.n_kv_heads, spec.value_head_size)?;
        self.cache_append(&format!("{prefix}append"), &CacheAppend { k, v, sequences, longest, cache })
    }

    /// Appends the projection of a memory's keys and values into a cache, where cross-attention of any number of steps reads them.
    /// `sequences` (B, 8), of up to `longest` rows each, says which rows of memory (k_rows, k_width) are which slot's: a
    /// sequence's new rows are all its keys.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::check`], and as [`Builder::cached_encoder_layer`] for the cache.
    pub fn remember(
        &mut self,
        prefix: &str,
        spec: &MultiHeadAttention,
        memory: Tensor,
        (sequences, longest): (Tensor, usize),
        cache: Tensor,
    ) -> Result<()> {
        self.check_memory(prefix, spec, None, cache)?;
        let mut parts = [memory; 2];
        match spec.projection {
            Projection::Stacked => self.project_parts(prefix, spec, memory, 1, &mut parts)?,
            Projection::Separate => {
                (0..2).try_for_each(|i| self.project_parts(prefix, spec, memory, i + 1, &mut parts[i..=i]))?;
            }
        }
        self.append_projected(prefix, spec, parts, (sequences, longest), cache)
    }

    /// One of a layer's parts with its norm, in front of it or behind residual and sum: `f` gets the norm to put in front, the
    /// residual rows and where to put the sum. Gives the rows behind it, `y` where that is given.
    fn normed_part(
        &mut self,
        placement: Placement,
        (prefix, norm): (String, &Norm),
        x: Tensor,
        y: Option<Tensor>,
        f: impl FnOnce(&mut Self, Before<'_>, Tensor, Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let out = |b: &mut Self| y.map_or_else(|| b.scratch_like("part", x), Ok);
        match placement {
            Placement::Pre => {
                let out = out(self)?;
                f(self, Some((prefix, norm)), x, out)?;
                Ok(out)
            }
            Placement::Post => {
                let sum = self.scratch_like("sum", x)?;
                f(self, None, x, sum)?;
                let out = out(self)?;
                self.norm(&prefix, norm, sum, out)?;
                Ok(out)
            }
        }
    }

    /// y = `linear2`(activation(`linear1`(x))) + x, norm in front.
    fn feed_rows(
        &mut self,
        prefix: &str,
        spec: &FeedForward,
        before: Before<'_>,
        (batch, x, y): (&Batch, Tensor, Tensor),
    ) -> Result<()> {
        let (labels, [first, second]) = self.feed_forward_parts(prefix, spec, x, Some(x), y)?;
        self.project_rows(&labels[0], before, batch, &first)?;
        self.gate_hidden(prefix, spec, &first, &second)?;
        self.project_rows(&labels[1], None, batch, &second)
    }

    /// Appends an encoder layer over a cache; its options should make it causal, as GPT-2's is.
    ///
    /// # Errors
    /// As [`EncoderLayer::check`]; [`Error::Option`] for a score other than the dot product and a `longest_k` other than the cache's capacity,
    /// [`Error::Shape`] for a cache that is not [`CacheShape::of`] the attention or has gaps inside.
    pub fn cached_encoder_layer(&mut self, prefix: &str, spec: &EncoderLayer, rows: &CachedLayer) -> Result<()> {
        spec.check()?;
        let &CachedLayer { x, batch, cache, y } = rows;
        let attention = format!("{prefix}self_attn.");
        self.check_cached(&attention, &spec.attention, Some(&batch), cache)?;
        let norm = |i: usize| (format!("{prefix}norm{i}."), &spec.norm);
        let x = self.normed_part(spec.placement, norm(1), x, None, |b, before, x, out| {
            let q = b.append_rows(&attention, &spec.attention, before, (&batch, x, cache))?;
            b.attend_cached(&attention, &spec.attention, &batch, (q, cache), x, out)
        })?;
        self.normed_part(spec.placement, norm(2), x, Some(y), |b, before, x, out| {
            b.feed_rows(prefix, &spec.feed_forward, before, (&batch, x, out))
        })?;
        Ok(())
    }

    /// Appends what a layer of `stack` leaves in its cache, and nothing else of it.
    pub(super) fn cache_rows_only(&mut self, prefix: &str, stack: &GeneratorStack, rows: &CachedLayer) -> Result<()> {
        let (spec, placement, norm) = match stack {
            GeneratorStack::Encoder(stack) => (&stack.layer.attention, stack.layer.placement, &stack.layer.norm),
            GeneratorStack::Decoder(stack) => (&stack.layer.attention, stack.layer.placement, &stack.layer.norm),
        };
        let attention = format!("{prefix}self_attn.");
        self.check_cached(&attention, spec, Some(&rows.batch), rows.cache)?;
        let before = (placement == Placement::Pre).then(|| (format!("{prefix}norm1."), norm));
        self.append_rows(&attention, spec, before, (&rows.batch, rows.x, rows.cache)).map(drop)
    }

    /// Appends a decoder layer over a cache of its own and one of its memory.
    ///
    /// # Errors
    /// As [`DecoderLayer::check`] and [`Builder::cached_encoder_layer`].
    pub fn cached_decoder_layer(
        &mut self,
        prefix: &str,
        spec: &DecoderLayer,
        rows: &CachedLayer,
        memory: &CachedMemory,
    ) -> Result<()> {
        spec.check()?;
        let &CachedLayer { x, batch, cache, y } = rows;
        let [attention, cross] = ["self_attn.", "multihead_attn."].map(|name| format!("{prefix}{name}"));
        self.check_cached(&attention, &spec.attention, Some(&batch), cache)?;
        self.check_memory(&cross, &spec.cross_attention, Some(&memory.batch), memory.cache)?;
        let norm = |i: usize| (format!("{prefix}norm{i}."), &spec.norm);
        let x = self.normed_part(spec.placement, norm(1), x, None, |b, before, x, out| {
            let q = b.append_rows(&attention, &spec.attention, before, (&batch, x, cache))?;
            b.attend_cached(&attention, &spec.attention, &batch, (q, cache), x, out)
        })?;
        let x = self.normed_part(spec.placement, norm(2), x, None, |b, before, x, out| {
            let (label, linear) = b.projection(&cross, &spec.cross_attention, x, 0..1)?;
            b.project_rows(&label, before, &memory.batch, &linear)?;
            b.attend_cached(&cross, &spec.cross_attention, &memory.batch, (linear.y, memory.cache), x, out)
        })?;
        self.normed_part(spec.placement, norm(3), x, Some(y), |b, before, x, out| {
            b.feed_rows(prefix, &spec.feed_forward, before, (&batch, x, out))
        })?;
        Ok(())
    }
}
