//! What a layer is, apart from how it runs: configurations that [`crate::layers`] and [`crate::reference`] share.
//!
//! Weights are known by the names that PyTorch gives them (`self_attn.in_proj_weight`, `linear1.bias`, `layers.0.norm2.weight`).

use super::{Activation, AttentionOptions, RotaryOrder};
use crate::error::{Error, Result};
use crate::shape::nonzero;

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
/// [`rotary_table`](super::rotary_table).
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

/// Where a layer's norms stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// norm(x + f(x)), as in 2017 and BERT.
    #[default]
    Post,
    /// x + f(norm(x)), as in GPT-2.
    Pre,
}

/// What a norm divides by, and whether it subtracts the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormKind {
    /// (x − mean) / √(variance + eps) (Ba et al., arXiv 1607.06450).
    #[default]
    Layer,
    /// x / √(mean of x² + eps), as in Llama (Zhang and Sennrich, arXiv 1910.07467).
    Rms,
}

/// A norm over the last dimension, times weight plus bias. eps stands inside the root.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Layer norm or RMS norm.
    pub kind: NormKind,
    /// Added to the variance; at least 0.
    pub eps: f32,
    /// Whether `weight` is bound.
    pub weight: bool,
    /// Whether `bias` is bound.
    pub bias: bool,
}

impl Default for Norm {
    fn default() -> Self {
        Self { kind: NormKind::Layer, eps: 1e-5, weight: true, bias: true }
    }
}

impl Norm {
    /// RMS norm with a weight and no bias.
    #[must_use]
    pub fn rms(eps: f32) -> Self {
        Self { kind: NormKind::Rms, eps, weight: true, bias: false }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.eps.is_finite() && self.eps >= 0.0 {
            Ok(())
        } else {
            Err(Error::option("eps", "a finite number of at least 0", self.eps))
        }
    }
}

/// Position-wise feed-forward network: `linear2`(activation(`linear1`(x))), or gated, `linear2`(activation(g) · u) with g and u the two
/// halves of `linear1`(x) (Shazeer, arXiv 2002.05202).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedForward {
    /// Width of input and output.
    pub d_model: usize,
    /// Width between.
    pub d_ff: usize,
    /// Between the two projections.
    pub activation: Activation,
    /// Whether `linear1.bias` and `linear2.bias` are bound.
    pub bias: bool,
    /// Whether `linear1.weight` is (2 · d_ff, d_model), the gate's rows first.
    pub gated: bool,
}

/// An encoder layer: self-attention (`self_attn.`), then feed-forward (`linear1.`, `linear2.`), each with a residual and a
/// norm (`norm1.`, `norm2.`).
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderLayer {
    /// Self-attention.
    pub attention: MultiHeadAttention,
    /// Feed-forward network.
    pub feed_forward: FeedForward,
    /// Both norms.
    pub norm: Norm,
    /// Where they stand.
    pub placement: Placement,
}

impl EncoderLayer {
    /// A post-norm layer with biases and ReLU, as in 2017.
    #[must_use]
    pub fn new(d_model: usize, n_heads: usize, d_ff: usize) -> Self {
        Self {
            attention: MultiHeadAttention::new(d_model, n_heads),
            feed_forward: FeedForward { d_model, d_ff, activation: Activation::Relu, bias: true, gated: false },
            norm: Norm::default(),
            placement: Placement::Post,
        }
    }

    /// Without any bias, in projections and norms (PyTorch's `bias=False`).
    #[must_use]
    pub fn without_bias(mut self) -> Self {
        (self.attention.bias, self.feed_forward.bias, self.norm.bias) = (false, false, false);
        self
    }

    /// Refuses what cannot be computed.
    ///
    /// # Errors
    /// As [`MultiHeadAttention::check`]; [`Error::Option`] for a bad eps or widths that do not meet.
    pub fn check(&self) -> Result<()> {
        self.attention.check()?;
        check_feed_forward(&self.feed_forward, self.attention.d_model)?;
        self.norm.check()
    }
}

/// A decoder layer: self-attention (`self_attn.`), cross-attention over the encoder's output (`multihead_attn.`), then
/// feed-forward, each with a residual and a norm (`norm1.`, `norm2.`, `norm3.`).
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderLayer {
    /// Self-attention; causal in [`DecoderLayer::new`].
    pub attention: MultiHeadAttention,
    /// Cross-attention: queries from the decoder, keys and values from the memory.
    pub cross_attention: MultiHeadAttention,
    /// Feed-forward network.
    pub feed_forward: FeedForward,
    /// All three norms.
    pub norm: Norm,
    /// Where they stand.
    pub placement: Placement,
}

impl DecoderLayer {
    /// A causal post-norm layer with biases and ReLU, as in 2017; the memory is as wide as the decoder.
    #[must_use]
    pub fn new(d_model: usize, n_heads: usize, d_ff: usize) -> Self {
        let mut attention = MultiHeadAttention::new(d_model, n_heads);
        attention.options = AttentionOptions::causal();
        Self {
            attention,
            cross_attention: MultiHeadAttention::new(d_model, n_heads),
            feed_forward: FeedForward { d_model, d_ff, activation: Activation::Relu, bias: true, gated: false },
            norm: Norm::default(),
            placement: Placement::Post,
        }
    }

    /// Without any bias, in projections and norms (PyTorch's `bias=False`).
    #[must_use]
    pub fn without_bias(mut self) -> Self {
        (self.attention.bias, self.cross_attention.bias) = (false, false);
        (self.feed_forward.bias, self.norm.bias) = (false, false);
        self
    }

    /// Refuses what cannot be computed.
    ///
    /// # Errors
    /// As [`EncoderLayer::check`].
    pub fn check(&self) -> Result<()> {
        self.attention.check()?;
        self.cross_attention.check()?;
        if self.cross_attention.d_model != self.attention.d_model {
            let expected = format!("the layer's d_model, {}", self.attention.d_model);
            return Err(Error::option("cross_attention.d_model", expected, self.cross_attention.d_model));
        }
        check_feed_forward(&self.feed_forward, self.attention.d_model)?;
        self.norm.check()
    }
}

fn check_feed_forward(feed_forward: &FeedForward, d_model: usize) -> Result<()> {
    nonzero("d_ff", feed_forward.d_ff)?;
    if feed_forward.d_model == d_model {
        Ok(())
    } else {
        Err(Error::option("feed_forward.d_model", format!("the layer's d_model, {d_model}"), feed_forward.d_model))
    }
}

/// Equal layers one after another (`layers.0.`, `layers.1.`, …), with an optional final norm (`norm.`).
#[derive(Clone, Debug, PartialEq)]
pub struct Stack<L> {
    /// The layer.
    pub layer: L,
    /// How many.
    pub n_layers: usize,
    /// The norm behind the last layer, which pre-norm stacks need.
    pub final_norm: Option<Norm>,
    /// Whether the position table (`position_embedding.weight`) is added again before every layer; rows in it, position 0 the first.
    pub positions_every_layer: Option<usize>,
}

/// A stack of encoder layers.
pub type Encoder = Stack<EncoderLayer>;
/// A stack of decoder layers.
pub type Decoder = Stack<DecoderLayer>;

impl<L> Stack<L> {
    /// `n_layers` layers and nothing else.
    #[must_use]
    pub fn new(layer: L, n_layers: usize) -> Self {
        Self { layer, n_layers, final_norm: None, positions_every_layer: None }
    }

    /// With a final norm.
    #[must_use]
    pub fn with_final_norm(self, norm: Norm) -> Self {
        Self { final_norm: Some(norm), ..self }
    }
}

/// Ids to rows: scale · `token_embedding.weight` of the id + `position_embedding.weight` of the position +
/// `segment_embedding.weight` of the segment, then an optional norm (`norm.`).
///
/// The position of a row is its place in its sequence plus the sequence's offset plus `first_position`. An id, segment or
/// position outside its table gives a row of zeros before the norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Embedding {
    /// Rows of the token table, V.
    pub vocabulary: usize,
    /// Columns of every table.
    pub d_model: usize,
    /// Rows of the position table, learned or from [`super::sinusoidal_positions`]; `None` for no positions.
    pub positions: Option<usize>,
    /// Row of the position table that position 0 has (BART's are 2 further on).
    pub first_position: usize,
    /// Rows of the segment table; `None` for no segments.
    pub segments: Option<usize>,
    /// Multiplies the token's row (√d_model in 2017).
    pub scale: f32,
    /// The norm behind the sum.
    pub norm: Option<Norm>,
}

impl Embedding {
    /// Tokens only, scale 1.
    #[must_use]
    pub fn new(vocabulary: usize, d_model: usize) -> Self {
        Self { vocabulary, d_model, positions: None, first_position: 0, segments: None, scale: 1.0, norm: None }
    }

    /// Refuses what cannot be computed.
    ///
    /// # Errors
    /// [`Error::Option`] for a size of 0, a scale that is not finite, or a bad eps.
    pub fn check(&self) -> Result<()> {
        nonzero("vocabulary", self.vocabulary)?;
        nonzero("d_model", self.d_model)?;
        nonzero("positions", self.positions.unwrap_or(1))?;
        nonzero("segments", self.segments.unwrap_or(1))?;
        if !self.scale.is_finite() {
            return Err(Error::option("scale", "a finite number", self.scale));
        }
        self.norm.as_ref().map_or(Ok(()), Norm::check)
    }
}
