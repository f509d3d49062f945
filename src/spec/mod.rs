//! What an operation is, apart from how it runs: the options that kernels, layers and the CPU reference share.

mod batch;
pub mod beams;
pub mod blocks;
pub mod cache;
pub mod generator;
pub mod layers;
mod pooling;
mod positions;
pub mod sampling;

pub use batch::{BatchShape, SEQUENCE_WORDS, Sequence, Sequences};
pub use pooling::Pooling;
pub use positions::{
    RotaryOrder, RotaryScaling, SinusoidOrder, relative_position_buckets, rotary_table, sinusoidal_positions,
};

use crate::error::{Error, Result};

/// The most heads that can have an ALiBi slope of their own: the slopes live in the kernel's uniform.
pub const MAX_SLOPES: usize = 128;

/// An elementwise function, fused into a projection's epilogue or run alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Activation {
    /// x
    #[default]
    Identity = 0,
    /// max(x, 0), as in the 2017 Transformer.
    Relu = 1,
    /// x · Φ(x) = x/2 · (1 + erf(x/√2)), as in BERT (Hendrycks and Gimpel, arXiv 1606.08415).
    Gelu = 2,
    /// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), as in GPT-2.
    GeluTanh = 3,
    /// x / (1 + e⁻ˣ), also called swish.
    Silu = 4,
    /// tanh(x), as in BERT's pooler.
    Tanh = 5,
}

/// What a mask holds. Every dimension may have size 1 and is broadcast then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// `u32` (B, NH, T, S): nonzero means attended.
    Boolean,
    /// `f32` (B, NH, T, S): added to the score; −∞ hides the key from the query, any finite value (−3.4e38 too) is only added.
    Additive,
    /// `f32` (NH, 2 · reach + 1): a relative position bias (Raffel et al., arXiv 1910.10683). What is added to the score depends on how far key j is
    /// behind query position p, and stands in column reach + j − p; what is further away than `reach` has the first or the last column. −∞
    /// hides. In a layer it is a weight, `relative_position_bias`, in `f32` whatever the storage.
    Relative {
        /// The largest distance with a column of its own, at most 2²⁴.
        reach: u32,
    },
}

/// The most distances to one side that [`Mask::Relative`] tells apart.
const MAX_REACH: u32 = 1 << 24;

impl Mask {
    /// Columns of a [`Mask::Relative`]: one for each distance from −reach to reach.
    #[must_use]
    pub(crate) fn distances(reach: u32) -> usize {
        (reach as usize).saturating_mul(2).saturating_add(1)
    }
}

/// Which keys a query sees and what is added to its scores. All options combine.
///
/// With p = i + offset, the offset being the sequence's ([`Sequence::offset`]):
///
/// ```text
/// score[i, j] = softcap(scale · q_i·k_j) − slope[h] · |p − j| + added[i, j]      softcap(x) = cap · tanh(x / cap)
/// visible[i, j] = j < k_len  and  key_mask[j]  and  boolean[i, j]  and  (j ≤ p if causal)  and  p − left ≤ j ≤ p + right
/// ```
///
/// where added\[i, j\] is an additive mask's entry, or relative\[h, reach + clamp(j − p, −reach, reach)\].
///
/// Scores must stay within f32, what is added included: one that overflows to −∞ counts as hidden, one that overflows to +∞
/// leaves its row undefined.
///
/// A row with no visible key gives zeros. A key that `k_len` or the key mask hides may be NaN or infinite; one that is
/// hidden from single queries only must be finite.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionOptions {
    /// Multiplies q·k; `None` is 1/√(head size), `Some(1.0)` the plain dot product.
    pub scale: Option<f32>,
    /// Bounds the scaled score to ±cap (Gemma 2); must be positive.
    pub softcap: Option<f32>,
    /// ALiBi slopes, one a query head, at most [`MAX_SLOPES`] (Press et al., arXiv 2108.12409); empty for none.
    pub alibi: Vec<f32>,
    /// Query i sees keys up to p only.
    pub causal: bool,
    /// How many keys before p are seen; `None` is all.
    pub window_left: Option<u32>,
    /// How many keys behind p are seen; `None` is all.
    pub window_right: Option<u32>,
    /// Whether a boolean key mask (B, S) is bound: `u32`, nonzero means attended.
    pub key_mask: bool,
    /// Whether a mask is bound, and of which kind.
    pub mask: Option<Mask>,
}

impl AttentionOptions {
    /// Causal attention, all else at its default.
    #[must_use]
    pub fn causal() -> Self {
        Self { causal: true, ..Self::default() }
    }

    /// The scale that applies to heads of `head_size`.
    #[must_use]
    pub fn scale_for(&self, head_size: usize) -> f32 {
        self.scale.unwrap_or_else(|| (1.0 / (head_size as f64).sqrt()) as f32)
    }

    /// Whether no key is ever hidden and nothing is added.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self { scale: self.scale, softcap: self.softcap, ..Self::default() }
    }

    /// Refuses what no kernel can compute.
    ///
    /// # Errors
    /// [`Error::Option`] for a scale that is not finite, a softcap that is not positive and normal, a slope that is not finite,
    /// another number of slopes than heads, a window past 2³⁰, or a reach past 2²⁴.
    pub fn check(&self, n_heads: usize) -> Result<()> {
        if let Some(scale) = self.scale.filter(|s| !s.is_finite()) {
            return Err(Error::option("scale", "a finite number", scale));
        }
        // A subnormal cap may be flushed to zero, and is divided by.
        if let Some(cap) = self.softcap.filter(|c| !(c.is_normal() && *c > 0.0)) {
            return Err(Error::option("softcap", "a positive normal number", cap));
        }
        if !self.alibi.is_empty() && self.alibi.len() != n_heads {
            return Err(Error::option("alibi", format!("one slope for each of {n_heads} heads"), self.alibi.len()));
        }
        if self.alibi.len() > MAX_SLOPES {
            return Err(Error::option("alibi", format!("at most {MAX_SLOPES} slopes"), self.alibi.len()));
        }
        if let Some(slope) = self.alibi.iter().find(|s| !s.is_finite()) {
            return Err(Error::option("alibi", "finite slopes", slope));
        }
        for (name, width) in [("window_left", self.window_left), ("window_right", self.window_right)] {
            if let Some(width) = width.filter(|w| *w > 1 << 30) {
                return Err(Error::option(name, "at most 2^30", width));
            }
        }
        if let Some(Mask::Relative { reach }) = self.mask
            && reach > MAX_REACH
        {
            return Err(Error::option("reach of the mask", format!("at most {MAX_REACH}"), reach));
        }
        Ok(())
    }
}

/// Refuses ids that lie outside a table of `rows` rows, naming the first.
///
/// # Errors
/// [`Error::Id`].
pub fn check_ids(tensor: &str, ids: &[u32], rows: usize) -> Result<()> {
    match ids.iter().position(|&id| id as usize >= rows) {
        Some(index) => Err(Error::Id { tensor: tensor.into(), index, id: ids[index], rows }),
        None => Ok(()),
    }
}
