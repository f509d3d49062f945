//! What a layer is, apart from how it runs: configurations that [`crate::layers`] and [`crate::reference`] share.
//!
//! Weights are known by the names that PyTorch gives them (`self_attn.in_proj_weight`, `linear1.bias`, `layers.0.norm2.weight`).

mod attention;

use super::{Activation, AttentionOptions};
use crate::error::{Error, Result};
use crate::shape::nonzero;
pub use attention::{AttentionPath, MultiHeadAttention, Projection, RotaryOptions, Score};

/// Refuses a prefix that would run into the names behind it.
pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    if prefix.is_empty() || prefix.ends_with('.') {
        return Ok(());
    }
    Err(Error::option(
        "prefix",
        format!("nothing, or what ends in a dot: {:?}", format!("{prefix}.")),
        format!("{prefix:?}"),
    ))
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
