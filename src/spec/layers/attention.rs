//! Multi-head attention, apart from how it runs.

use crate::error::{Error, Result};
use crate::shape::nonzero;
use crate::spec::{AttentionOptions, RotaryOrder};

/// How q, k and v come out of the layer's inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Projection {
    /// One weight `in_proj_weight` (q + k + v widths, d_model): one dispatch for self-attention, two for cross-attention.
    #[default]
    Stacked,
    /// `q_proj_weight`, `k_proj_weight` and `v_proj_weight`, each (width, inputs), as where keys or values have another input width.
    Separate,
}

/// How attention gets from queries, keys and values to its output. Both give the same within rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionPath {
    /// One kernel that streams over the keys, with memory of O(T), and a second one where attention weights are an output. Where
    /// it cannot serve (additive scores, value heads wider than 256) the separate kernels do.
    #[default]
    Fused,
    /// Scores, softmax and weighted values one after the other: the scores (B, NH, T, S) must fit a binding.
    Separate,
}

/// How a query and a key give a score before scale, softcap, ALiBi and masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Score {
    /// qᵀk; with [`AttentionOptions::scale`] at its default the scaled dot product of 2017.
    #[default]
    Dot,
    /// qᵀWk (Luong et al., arXiv 1508.04025): `score_weight` (n_heads · head size, n_heads · head size) projects the keys.
    /// The default scale is 1; heads cannot be grouped.
    General,
    /// vᵀ tanh(W₁k + W₂q) (Bahdanau et al., arXiv 1409.0473): `score_key_weight` and `score_query_weight` project to `width`
    /// columns, split among the heads; `score_vector` is (n_heads, width / n_heads). The default scale is 1; heads cannot be grouped.
    Additive {
        /// Columns of all heads together.
        width: usize,
    },
}

/// Rotary positions of an attention (Su et al., arXiv 2104.09864).
///
/// Queries and keys are turned by their row's position before they meet, by the input `rotary_table`, `f32` (positions, columns), from
/// [`rotary_table`](crate::spec::rotary_table).
#[doc(alias = "rope")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotaryOptions {
    /// Rows of the table.
    pub positions: usize,
    /// Columns of a head that are turned, an even number.
    pub columns: usize,
    /// Which of them are pairs.
    pub order: RotaryOrder,
}

/// Multi-head attention with its projections: q, k, v = linear(inputs) → attention → `out_proj` (arXiv 1706.03762, 3.2).
#[derive(Clone, Debug, PartialEq)]
pub struct MultiHeadAttention {
    /// Width of the query input and of the output.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; each serves `n_heads / n_kv_heads` query heads (Ainslie et al., arXiv 2305.13245).
    pub n_kv_heads: usize,
    /// Width of one query or key head.
    pub head_size: usize,
    /// Width of one value head.
    pub value_head_size: usize,
    /// Width of the rows that keys are projected from.
    pub k_width: usize,
    /// Width of the rows that values are projected from.
    pub v_width: usize,
    /// Whether the projections have biases: `in_proj_bias` (q + k + v widths) and `out_proj.bias`.
    pub bias: bool,
    /// Where the projection weights are.
    pub projection: Projection,
    /// How scores are formed.
    pub score: Score,
    /// Rotary positions of queries and keys, in self-attention.
    pub rotary: Option<RotaryOptions>,
    /// Whether scores are stored between the kernels.
    pub path: AttentionPath,
    /// Masks, scale and positions.
    pub options: AttentionOptions,
}

impl MultiHeadAttention {
    /// Heads of `d_model / n_heads` (refused later where that does not divide), biases, stacked projections, no masks.
    #[must_use]
    pub fn new(d_model: usize, n_heads: usize) -> Self {
        let divides = n_heads > 0 && d_model.is_multiple_of(n_heads);
        let head_size = if divides { d_model / n_heads } else { 0 };
        Self {
            d_model,
            n_heads,
            n_kv_heads: n_heads,
            head_size,
            value_head_size: head_size,
            k_width: d_model,
            v_width: d_model,
            bias: true,
            projection: Projection::Stacked,
            score: Score::Dot,
            rotary: None,
            path: AttentionPath::Fused,
            options: AttentionOptions::default(),
        }
    }

    /// Columns of the projected queries, keys and values.
    #[must_use]
    pub fn widths(&self) -> [usize; 3] {
        [
            self.n_heads.saturating_mul(self.head_size),
            self.n_kv_heads.saturating_mul(self.head_size),
            self.n_kv_heads.saturating_mul(self.value_head_size),
        ]
    }

    /// The options with the default scale of the score function filled in.
    #[must_use]
    pub fn scored_options(&self) -> AttentionOptions {
        let scale = match self.score {
            Score::Dot => Some(self.options.scale_for(self.head_size)),
            Score::General | Score::Additive { .. } => self.options.scale.or(Some(1.0)),
        };
        AttentionOptions { scale, ..self.options.clone() }
    }

    /// Refuses what cannot be computed.
    ///
    /// # Errors
    /// [`Error::Option`] for a size of 0, heads that do not divide, a stacked projection of inputs that differ in width, rotary columns
    /// that are odd or more than a head has, grouped heads with another score than the dot product, and as
    /// [`AttentionOptions::check`].
    pub fn check(&self) -> Result<()> {
        for (name, size) in [
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("k_width", self.k_width),
            ("v_width", self.v_width),
        ] {
            nonzero(name, size)?;
        }
        if self.head_size == 0 || self.value_head_size == 0 {
            let expected = format!("a divisor of d_model, {}, or head sizes of at least 1", self.d_model);
            return Err(Error::option("n_heads", expected, self.n_heads));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(Error::option("n_kv_heads", format!("a divisor of n_heads, {}", self.n_heads), self.n_kv_heads));
        }
        if self.projection == Projection::Stacked && (self.k_width != self.d_model || self.v_width != self.d_model) {
            let found = format!("k_width {} and v_width {}", self.k_width, self.v_width);
            return Err(Error::option("projection", format!("Separate, or inputs of width {}", self.d_model), found));
        }
        if let Some(RotaryOptions { positions, columns, .. }) = self.rotary {
            nonzero("positions of the rotary table", positions)?;
            if columns == 0 || columns > self.head_size || !columns.is_multiple_of(2) {
                let expected = format!("an even number up to the head size, {}", self.head_size);
                return Err(Error::option("columns of rotary positions", expected, columns));
            }
        }
        if let Score::Additive { width } = self.score {
            nonzero("width of the additive score", width)?;
            if !width.is_multiple_of(self.n_heads) {
                let expected = format!("a multiple of n_heads, {}", self.n_heads);
                return Err(Error::option("width of the additive score", expected, width));
            }
            if self.n_kv_heads != self.n_heads {
                let expected = format!("n_heads, {}, with an additive score", self.n_heads);
                return Err(Error::option("n_kv_heads", expected, self.n_kv_heads));
            }
        }
        if self.score == Score::General && self.n_kv_heads != self.n_heads {
            return Err(Error::option(
                "n_kv_heads",
                format!("n_heads, {}, with a general score", self.n_heads),
                self.n_kv_heads,
            ));
        }
        self.options.check(self.n_heads)
    }
}
