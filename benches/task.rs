//! The kinds of work in the speed table: sizes, what they need at least, and their words.
//!
//! What counts as work is what the operation needs, not what a kernel happens to do: FLOPs of visible keys only, every byte of a
//! tensor once.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tileformer::spec::cache::{CacheShape, DecodeRow, DecodeState};
use tileformer::{Activation, Element, Result, Sampling, Sequences};

/// The rows of the token table of an embedding.
pub(crate) const VOCABULARY: usize = 30522;

/// The keys of a slot: more than a row that is timed draws tokens.
pub(crate) const CAPACITY: usize = 1 << 20;

/// How the next token is drawn.
const TEMPERATURE: f32 = 0.8;
const TOP_K: u32 = 50;
const TOP_P: f32 = 0.95;

/// What limits a row, and how much of it one call needs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Floating-point operations; a multiply-add counts two.
    Flops(u64),
    /// Bytes read and written.
    Bytes(u64),
}

/// B, NH, T, S and HS of an attention, and which keys a query sees.
#[derive(Clone, Debug)]
pub(crate) struct Heads {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) t: usize,
    pub(crate) s: usize,
    pub(crate) size: usize,
    pub(crate) causal: bool,
    /// Keys of each sequence.
    pub(crate) lengths: Vec<usize>,
}

impl Heads {
    /// Every query sees every key.
    pub(crate) fn all([batch, heads, t, s, size]: [usize; 5]) -> Self {
        Self { batch, heads, t, s, size, causal: false, lengths: vec![s; batch] }
    }

    pub(crate) fn causal(sizes: [usize; 5]) -> Self {
        Self { causal: true, ..Self::all(sizes) }
    }

    /// Key lengths spread evenly over S/2 … S.
    pub(crate) fn padded(sizes: [usize; 5]) -> Self {
        let [batch, _, _, s, _] = sizes;
        let length = |i: usize| s / 2 + (s - s / 2) * i / (batch - 1).max(1);
        Self { lengths: (0..batch).map(length).collect(), ..Self::all(sizes) }
    }

    /// Whether some key stands behind the end of its sequence.
    pub(crate) fn is_padded(&self) -> bool {
        self.lengths.iter().any(|&length| length < self.s)
    }

    /// Pairs of a query and a key that it sees, in all heads.
    fn pairs(&self) -> u64 {
        let seen = |i: usize, length: usize| if self.causal { length.min(i + 1) } else { length } as u64;
        let of = |length: &usize| (0..self.t).map(|i| seen(i, *length)).sum::<u64>();
        self.heads as u64 * self.lengths.iter().map(of).sum::<u64>()
    }

    fn what(&self) -> String {
        let Self { batch, heads, t, s, size, .. } = self;
        let causal = if self.causal { ", causal" } else { "" };
        let keys = match self.lengths.iter().min() {
            Some(shortest) if self.is_padded() => format!(", key lengths {shortest}…{s}"),
            _ => String::new(),
        };
        format!("B {batch}, NH {heads}, T {t}, S {s}, HS {size}{causal}{keys}")
    }
}

/// What a row does.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    /// y = activation(x · Wᵀ + bias): rows, in, out.
    Linear([usize; 3], Activation),
    /// out = softmax(QKᵀ / √HS) · V.
    Attention(Heads),
    /// Scaled QKᵀ alone.
    Scores(Heads),
    /// P·V alone.
    Values(Heads),
    /// Σ v · tanh(q + k).
    Additive(Heads),
    /// y = layer_norm(x + residual): rows, columns.
    Norm([usize; 2]),
    /// y = softmax(x) over S, no key hidden: B, NH, T, S.
    Softmax([usize; 4]),
    /// y = gelu(x): rows, columns.
    Gelu([usize; 2]),
    /// y = token + position + segment, as in BERT: B, T, C.
    Embedding([usize; 3]),
    /// The mean of each sequence's rows, of length 1: batch, rows of a sequence, columns.
    Pool([usize; 3]),
    /// The largest element of each row of logits: rows, columns.
    Argmax([usize; 2]),
    /// The next token of each row of logits, drawn by temperature, top-k and top-p: rows, columns.
    Choose([usize; 2]),
    /// Post-norm encoder layers with GELU over padded sequences.
    Encoder { batch: [usize; 2], sizes: [usize; 3], layers: usize },
    /// A causal post-norm decoder layer with ReLU, over as many rows of memory.
    Decoder { batch: [usize; 2], sizes: [usize; 3] },
}

impl Task {
    /// The work in words.
    pub(crate) fn what(&self) -> String {
        let layer = |[batch, t]: [usize; 2], [c, n_heads, f]: [usize; 3]| {
            format!("C {c}, NH {n_heads}, F {f}, B {batch}, T {t}, post-norm")
        };
        match self {
            Self::Linear([rows, d_in, d_out], Activation::Identity) => format!("linear {rows}×{d_in}×{d_out}, bias"),
            Self::Linear([rows, d_in, d_out], activation) => {
                format!("linear {rows}×{d_in}×{d_out}, bias + {activation:?}")
            }
            Self::Attention(heads) => format!("attention {}", heads.what()),
            Self::Scores(heads) => format!("attention scores {}", heads.what()),
            Self::Values(heads) => format!("attention values {}", heads.what()),
            Self::Additive(heads) => format!("additive scores {}", heads.what()),
            Self::Norm([rows, columns]) => format!("layer_norm {rows}×{columns} with residual add"),
            Self::Softmax([b, n_heads, t, s]) => format!("masked_softmax {}×{s}", b * n_heads * t),
            Self::Gelu([rows, columns]) => format!("activation {rows}×{columns}, Gelu"),
            Self::Embedding([b, t, c]) => format!("embedding {}×{c}, token + position + segment", b * t),
            Self::Pool([b, t, c]) => format!("pool {b}×{t}×{c}, mean of length 1"),
            Self::Argmax([rows, columns]) => format!("argmax {rows}×{columns}"),
            Self::Choose([rows, columns]) => {
                format!("choose {rows}×{columns}, temperature {TEMPERATURE}, top-k {TOP_K}, top-p {TOP_P}")
            }
            Self::Encoder { batch, sizes, layers: 1 } => format!("encoder layer {}, Gelu", layer(*batch, *sizes)),
            Self::Encoder { batch, sizes, layers } => {
                format!("encoder of {layers} layers {}, Gelu", layer(*batch, *sizes))
            }
            Self::Decoder { batch, sizes } => format!("decoder layer {}, T = S, Relu, causal", layer(*batch, *sizes)),
        }
    }

    /// Whether there is the task in f16: scores and probabilities are f32 whatever the rest is, and so is what else works on them
    /// alone.
    pub(crate) fn has_f16(&self) -> bool {
        !matches!(
            self,
            Self::Scores(_) | Self::Values(_) | Self::Additive(_) | Self::Softmax(_) | Self::Argmax(_) | Self::Choose(_)
        )
    }

    /// The work in numbers, for tensors of `element`.
    pub(crate) fn work(&self, element: Element) -> Work {
        let bytes = |elements: usize| Work::Bytes(element.size() * elements as u64);
        let flops = |each: u64, heads: &Heads| Work::Flops(each * heads.pairs() * heads.size as u64);
        match self {
            // One row is limited by reading the weight.
            Self::Linear([1, d_in, d_out], _) => bytes(d_out * d_in + d_in + 2 * d_out),
            Self::Linear([rows, d_in, d_out], _) => Work::Flops(2 * (rows * d_in * d_out) as u64),
            // One query is limited by reading keys and values.
            Self::Attention(heads) if heads.t == 1 => {
                bytes(heads.heads * heads.size * 2 * (heads.lengths.iter().sum::<usize>() + heads.batch))
            }
            Self::Attention(heads) | Self::Additive(heads) => flops(4, heads),
            Self::Scores(heads) | Self::Values(heads) => flops(2, heads),
            Self::Norm([rows, columns]) => bytes(3 * rows * columns),
            Self::Softmax(sizes) => bytes(2 * sizes.iter().product::<usize>()),
            Self::Gelu([rows, columns]) => bytes(2 * rows * columns),
            // The position and segment tables stay in a cache: only the token's row and y count.
            Self::Embedding([b, t, c]) => bytes(2 * b * t * c),
            Self::Pool([b, t, c]) => bytes(b * (t + 1) * c),
            Self::Argmax([rows, columns]) | Self::Choose([rows, columns]) => bytes(rows * columns),
            Self::Encoder { batch: [b, t], sizes: [c, _, f], layers } => {
                Work::Flops((layers * b * t * (2 * (4 * c * c + 2 * c * f) + 4 * t * c)) as u64)
            }
            Self::Decoder { batch: [b, t], sizes: [c, _, f] } => {
                let pairs = t * (t + 1) / 2 + t * t;
                Work::Flops((b * (t * 2 * (8 * c * c + 2 * c * f) + 4 * pairs * c)) as u64)
            }
        }
    }

    /// `u32` inputs by name; other tensors are random.
    ///
    /// # Errors
    /// None that these sizes cause.
    pub(crate) fn data(&self) -> Result<Vec<(&'static str, Vec<u32>)>> {
        Ok(match self {
            Self::Attention(heads) => sequences("sequences", heads.t, &heads.lengths, heads.s),
            Self::Embedding([batch, t, _]) => {
                let mut rng = StdRng::seed_from_u64(1);
                let mut data = sequences("sequences", *t, &vec![*t; *batch], *t);
                data.push(("ids", (0..batch * t).map(|_| rng.random_range(0..VOCABULARY as u32)).collect()));
                data.push(("segment_ids", (0..batch * t).map(|_| rng.random_range(0..2)).collect()));
                data
            }
            Self::Pool([batch, t, _]) | Self::Encoder { batch: [batch, t], .. } => {
                sequences("sequences", *t, &vec![*t; *batch], *t)
            }
            Self::Choose([rows, _]) => {
                let cache = CacheShape { slots: *rows, n_kv_heads: 1, capacity: CAPACITY, width: 1 };
                let row = |slot| Some(DecodeRow { slot, past: 128, id: 0, memory: None });
                let state = DecodeState::new(&cache, None, &(0..*rows).map(row).collect::<Vec<_>>())?;
                let draw = |row| Sampling::sampled(row).with_temperature(TEMPERATURE)?.with_top_k(TOP_K).with_top_p(TOP_P);
                let sampling = (0..*rows as u64).map(draw).collect::<Result<Vec<_>>>()?;
                vec![("state", state.words().to_vec()), ("sampling", Sampling::words(&sampling).to_vec())]
            }
            Self::Decoder { batch: [batch, t], .. } => {
                let mut data = sequences("sequences", *t, &vec![*t; *batch], *t);
                data.extend(sequences("cross_sequences", *t, &vec![*t; *batch], *t));
                data
            }
            _ => Vec::new(),
        })
    }
}

/// A `sequences` input of a padded batch; no lengths past `longest_k` come from this file, which is all that is refused.
fn sequences(name: &'static str, longest_q: usize, lengths: &[usize], longest_k: usize) -> Vec<(&'static str, Vec<u32>)> {
    let sequences = Sequences::cross(lengths.len(), longest_q, lengths, longest_k);
    sequences.map(|s| (name, s.words().to_vec())).into_iter().collect()
}
