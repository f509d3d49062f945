//! Attention: softmax(scores(q, k)) · v, and which keys a query sees.

use super::{Real, attention_scores, attention_values, count, expect_len, masked_softmax};
use crate::error::{Error, Result};
use crate::shape::nonzero;
use crate::spec::{AttentionOptions, BatchShape, Mask, Sequence};

/// A mask over (B, NH, T, S), each of its `sizes` the full one, or 1 to be broadcast; or over heads and distances.
#[derive(Clone, Copy, Debug)]
pub enum MaskValues<'a, T> {
    /// Nonzero means attended.
    Boolean {
        /// The mask's own sizes.
        sizes: [usize; 4],
        /// Row major.
        values: &'a [u32],
    },
    /// Added to the score; −∞ hides the key from the query.
    Additive {
        /// The mask's own sizes.
        sizes: [usize; 4],
        /// Row major.
        values: &'a [T],
    },
    /// Added to the score by the distance from query to key; −∞ hides the key from the query.
    Relative {
        /// The largest distance with a column of its own.
        reach: u32,
        /// (NH, 2 · reach + 1) or (1, 2 · reach + 1), row major.
        values: &'a [T],
    },
}

impl<T> MaskValues<'_, T> {
    fn kind(&self) -> Mask {
        match self {
            Self::Boolean { .. } => Mask::Boolean,
            Self::Additive { .. } => Mask::Additive,
            Self::Relative { reach, .. } => Mask::Relative { reach: *reach },
        }
    }

    /// Refuses sizes that do not fit scores (B, NH, T, S), and values that do not fit these.
    fn check(&self, full: [usize; 4]) -> Result<()> {
        let (sizes, full) = match *self {
            Self::Boolean { sizes, .. } | Self::Additive { sizes, .. } => (sizes.to_vec(), full.to_vec()),
            Self::Relative { reach, values } => {
                let columns = Mask::distances(reach);
                (vec![if values.len() == columns { 1 } else { full[1] }, columns], vec![full[1], columns])
            }
        };
        if sizes.iter().zip(&full).any(|(&size, &full)| size != 1 && size != full) {
            return Err(Error::shape("mask", format!("{full:?}, each or 1"), format!("{sizes:?}")));
        }
        let found = match self {
            Self::Boolean { values, .. } => values.len(),
            Self::Additive { values, .. } | Self::Relative { values, .. } => values.len(),
        };
        expect_len("mask", &sizes, found)
    }
}

/// Where the value of a mask of `sizes` for `at`, (b, h, i, j), stands.
fn broadcast(sizes: [usize; 4], at: [usize; 4]) -> usize {
    let mut index = 0usize;
    for (size, at) in sizes.into_iter().zip(at) {
        index = index.saturating_mul(size).saturating_add(if size == 1 { 0 } else { at });
    }
    index
}

/// What the mask adds to the score of query i, at position p, and key j of head h of sequence b; −∞ hides.
fn added<T: Real>(att: &Attention<'_, T>, [b, h, i, j]: [usize; 4], p: i64) -> Option<T> {
    match att.mask? {
        MaskValues::Boolean { .. } => None,
        MaskValues::Additive { sizes, values } => values.get(broadcast(sizes, [b, h, i, j])).copied(),
        MaskValues::Relative { reach, values } => {
            let reach = i64::from(reach);
            let column = (reach + (j as i64 - p).clamp(-reach, reach)) as usize;
            let columns = Mask::distances(reach as u32);
            let h = if values.len() == columns { 0 } else { h };
            values.get(h.saturating_mul(columns).saturating_add(column)).copied()
        }
    }
}

/// What all steps of attention share: sizes, options, where each sequence lies, masks.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a, T> {
    /// B, T and S, and the rows of queries and keys.
    pub shape: BatchShape,
    /// Query heads, NH.
    pub n_heads: usize,
    /// Key/value heads; query head h reads key head h / (n_heads / n_kv_heads).
    pub n_kv_heads: usize,
    /// Width of one query or key head.
    pub head_size: usize,
    /// Width of one value head.
    pub value_head_size: usize,
    /// What is seen, and what is added.
    pub options: &'a AttentionOptions,
    /// One a sequence (B).
    pub sequences: &'a [Sequence],
    /// (B, S), nonzero means attended; bound exactly where [`AttentionOptions::key_mask`] says so.
    pub key_mask: Option<&'a [u32]>,
    /// Bound exactly where [`AttentionOptions::mask`] says so.
    pub mask: Option<MaskValues<'a, T>>,
}

impl<T: Real> Attention<'_, T> {
    /// (B, NH, T, S)
    #[must_use]
    pub fn score_sizes(&self) -> [usize; 4] {
        [self.shape.sequences, self.n_heads, self.shape.longest_q, self.shape.longest_k]
    }

    /// Refuses sizes, sequences and masks that do not fit together.
    ///
    /// # Errors
    /// [`Error::Option`] for a size of 0, heads that do not divide, a sequence that leaves the shape, a mask of the wrong
    /// kind, and as [`AttentionOptions::check`]; [`Error::Shape`] for a slice of another length; [`Error::Missing`] for a
    /// mask that the options speak of.
    pub fn check(&self) -> Result<()> {
        self.shape.check()?;
        for (name, size) in [
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("head_size", self.head_size),
            ("value_head_size", self.value_head_size),
        ] {
            nonzero(name, size)?;
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(Error::option("n_kv_heads", format!("a divisor of n_heads, {}", self.n_heads), self.n_kv_heads));
        }
        self.options.check(self.n_heads)?;
        count("scores", &self.score_sizes())?;
        self.check_sequences()?;
        self.check_masks()
    }

    fn check_sequences(&self) -> Result<()> {
        if self.sequences.len() != self.shape.sequences {
            let (expected, found) = (self.shape.sequences, self.sequences.len());
            return Err(Error::shape("sequences", format!("{expected} sequences"), format!("{found} sequences")));
        }
        for (b, s) in self.sequences.iter().enumerate() {
            let [q_start, q_len, k_start, k_len] = [s.q_start, s.q_len, s.k_start, s.k_len].map(|n| n as usize);
            for (name, found, most) in [
                ("q_len", q_len, self.shape.longest_q),
                ("q_start + q_len", q_start.saturating_add(q_len), self.shape.q_rows),
                ("k_len", k_len, self.shape.longest_k),
                ("k_start + k_len", k_start.saturating_add(k_len), self.shape.k_rows),
            ] {
                if found > most {
                    return Err(Error::option(format!("sequences[{b}]: {name}"), format!("at most {most}"), found));
                }
            }
        }
        Ok(())
    }

    fn check_masks(&self) -> Result<()> {
        let full = self.score_sizes();
        let missing =
            |tensor: &str, sizes: &[usize]| Error::Missing { tensor: tensor.into(), expected: format!("{sizes:?}") };
        let unasked = |tensor: &str| Error::option(tensor, "none, as the options have none", "one");
        match (self.options.key_mask, self.key_mask) {
            (true, Some(mask)) => expect_len("key_mask", &[full[0], full[3]], mask.len())?,
            (true, None) => return Err(missing("key_mask", &[full[0], full[3]])),
            (false, Some(_)) => return Err(unasked("key_mask")),
            (false, None) => {}
        }
        match (self.options.mask, &self.mask) {
            (Some(kind), Some(mask)) => {
                if mask.kind() != kind {
                    return Err(Error::option("mask", format!("{kind:?} values"), format!("{:?} values", mask.kind())));
                }
                mask.check(full)
            }
            (Some(Mask::Relative { reach }), None) => Err(missing("mask", &[full[1], Mask::distances(reach)])),
            (Some(_), None) => Err(missing("mask", &full)),
            (None, Some(_)) => Err(unasked("mask")),
            (None, None) => Ok(()),
        }
    }

    /// The key head that query head `h` reads.
    pub(super) fn kv_head(&self, h: usize) -> usize {
        h / (self.n_heads / self.n_kv_heads)
    }

    /// The scores (B, NH, T, S) of a checked attention: −∞ where a key is hidden, else
    /// softcap(scale · raw) − slope\[h\] · |p − j| + added\[i, j\], with `raw` called as (h, query row, key row).
    pub(super) fn scores(&self, scale: f32, raw: impl Fn(usize, usize, usize) -> T) -> Vec<T> {
        let [sequences, n_heads, longest_q, longest_k] = self.score_sizes();
        // scores (B, NH, T, S)
        let mut scores = vec![T::neg_infinity(); sequences * n_heads * longest_q * longest_k];
        for (b, sequence) in self.sequences.iter().enumerate() {
            for h in 0..n_heads {
                for i in 0..sequence.q_len as usize {
                    let row = ((b * n_heads + h) * longest_q + i) * longest_k;
                    for j in (0..sequence.k_len as usize).filter(|&j| visible(self, b, h, i, j)) {
                        let mut score = T::of(scale) * raw(h, sequence.q_start as usize + i, sequence.k_start as usize + j);
                        if let Some(cap) = self.options.softcap {
                            score = T::of(cap) * (score / T::of(cap)).tanh();
                        }
                        scores[row + j] = biased(self, score, b, h, i, j);
                    }
                }
            }
        }
        scores
    }
}

/// Whether sequence `b` has key `j` at all: j < k_len and key_mask\[j\]. A key that it has not is never read.
pub(super) fn has_key<T: Real>(att: &Attention<'_, T>, b: usize, j: usize) -> bool {
    let within = att.sequences.get(b).is_some_and(|s| j < s.k_len as usize);
    within
        && att
            .key_mask
            .is_none_or(|mask| mask.get(b.saturating_mul(att.shape.longest_k).saturating_add(j)).is_some_and(|&m| m != 0))
}

/// Whether query `i` of sequence `b` sees key `j` under head `h`; false for what lies outside the sequence.
///
/// ```text
/// j < k_len  and  key_mask[j]  and  boolean[i, j]  and  (j ≤ p if causal)  and  p − left ≤ j ≤ p + right      p = i + offset
/// ```
///
/// An additive or relative mask of −∞ hides as a boolean one does.
#[must_use]
pub fn visible<T: Real>(att: &Attention<'_, T>, b: usize, h: usize, i: usize, j: usize) -> bool {
    let Some(sequence) = att.sequences.get(b) else { return false };
    if i >= sequence.q_len as usize || h >= att.n_heads || !has_key(att, b, j) {
        return false;
    }
    let p = position(sequence, i);
    let masked_in = match att.mask {
        None => true,
        Some(MaskValues::Boolean { sizes, values }) => values.get(broadcast(sizes, [b, h, i, j])).is_some_and(|&m| m != 0),
        Some(_) => added(att, [b, h, i, j], p).is_some_and(|added| added != T::neg_infinity()),
    };
    let j = j as i64;
    masked_in
        && (!att.options.causal || j <= p)
        && att.options.window_left.is_none_or(|left| p - i64::from(left) <= j)
        && att.options.window_right.is_none_or(|right| j <= p + i64::from(right))
}

/// `score` − slope\[h\] · |p − j| + added\[i, j\]: what is added to a score once it is scaled and capped.
pub(super) fn biased<T: Real>(att: &Attention<'_, T>, score: T, b: usize, h: usize, i: usize, j: usize) -> T {
    let (mut score, p) = (score, position(&att.sequences[b], i));
    if let Some(&slope) = att.options.alibi.get(h) {
        score -= T::of(slope) * T::of((p - j as i64).abs() as f64);
    }
    if let Some(added) = added(att, [b, h, i, j], p) {
        score += added;
    }
    score
}

/// p = i + offset
fn position(sequence: &Sequence, i: usize) -> i64 {
    i as i64 + i64::from(sequence.offset)
}

/// Attention from projected queries to output, and the attention weights, by the separate kernels:
///
/// ```text
/// q (q_rows, NH, head_size), k (k_rows, n_kv_heads, head_size) -> scores (B, NH, T, S) -> probs (B, NH, T, S)
/// probs, v (k_rows, n_kv_heads, value_head_size) -> out (q_rows, NH, value_head_size)
/// ```
///
/// # Errors
/// As [`attention_scores()`] and [`attention_values()`].
pub fn attention<T: Real>(att: &Attention<'_, T>, q: &[T], k: &[T], v: &[T]) -> Result<(Vec<T>, Vec<T>)> {
    let scores = attention_scores(att, q, k)?;
    let [sequences, n_heads, longest_q, longest_k] = att.score_sizes();
    let probs = masked_softmax(&scores, sequences * n_heads * longest_q, longest_k, 1.0)?;
    let out = attention_values(att, &probs, v)?;
    Ok((out, probs))
}
