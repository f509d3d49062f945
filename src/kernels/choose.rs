//! `choose`: the next token of every row, and the row's state behind it.

use super::stride;
use crate::builder::{Builder, Launch};
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::cache::{DecodeState, STATE_WORDS};
use crate::spec::sampling::{SAMPLING_WORDS, seen_words};
use crate::tensor::Element;
use crate::tuning::{Case, Operation};
use crate::variant::{Binding, Kernel, LOGITS, ORDER, Source, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        columns: u32,
        batch: u32,
        groups: u32,
        steps: u32,
        padding: u32,
        capacity: u32,
        flags: u32,
        share: u32,
        segments: u32,
        logits_row: u32,
        maxima_row: u32,
        maxima_group: u32,
        state_row: u32,
        tokens_row: u32,
        log_probs_row: u32,
        bias_row: u32,
        seen_row: u32,
        sampling_row: u32,
        logits_offset: u32,
        maxima_offset: u32,
        state_offset: u32,
        tokens_offset: u32,
        log_probs_offset: u32,
        bias_offset: u32,
        seen_offset: u32,
        sampling_offset: u32,
    }
}

const MAXIMA: u32 = 1;
const BIAS: u32 = 2;
const SEEN: u32 = 4;
const LOG_PROBS: u32 = 8;
const CROSS: u32 = 16;

/// Tokens are counted in f32.
const MOST_COLUMNS: usize = 1 << 24;

const PHILOX: Source = wgsl!("shared/philox.wgsl");
const PASSES: Source = wgsl!("shared/passes.wgsl");

pub(super) static KERNEL: Kernel = Kernel {
    name: "choose",
    shared: &[&ORDER, &LOGITS, &PHILOX, &PASSES],
    subgroups: &[],
    parts: &[],
    source: wgsl!("choose.wgsl"),
    bindings: &[
        Binding::read("logits", 1, 0, offset_of!(Params, logits_offset)).wide(),
        Binding::read("maxima", 1, 1, offset_of!(Params, maxima_offset)).single(),
        Binding::read("bias", 1, 2, offset_of!(Params, bias_offset)).single(),
        Binding::read("sampling", 1, 3, offset_of!(Params, sampling_offset)).single(),
        Binding::write("state", 4, offset_of!(Params, state_offset)).single(),
        Binding::write("tokens", 5, offset_of!(Params, tokens_offset)).single(),
        Binding::write("log_probs", 6, offset_of!(Params, log_probs_offset)).single(),
        Binding::write("seen", 7, offset_of!(Params, seen_offset)).single(),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// Chooses the next token of every row of a decode step as its [`Sampling`](crate::Sampling) says, hands it out, and moves the
/// row's [`DecodeState`] on or ends the row.
///
/// For a row b that does not rest, with k keys and step number s:
///
/// ```text
/// logits' = logits + bias; of seen tokens, over the penalty where positive, else times it
/// kept    = those of top-k, and of these top-p, of softmax(logits' / temperature)
/// token   = the largest logit', the lowest of several, or the first column at which the weights of kept tokens,
///           added up in order, exceed u times their sum
/// u       = Philox4x32-10(counter = (the sequence's offset, 0, 0, 0), key = seed), the upper 24 bits of its first word / 2²⁴
/// tokens[s][b] = id of b = token;  log_probs[s][b] = log softmax(logits)[token], of the model's own logits;  s += 1
/// ended   = token is a stop, or k ≥ limit, or k ≥ capacity
/// ```
///
/// (Salmon et al., SC 2011, for Philox: the random words are the same bits on every adapter.) An ended row has `q_len` 0 in its
/// sequences and flag 1, and flag 2 where a full cache ended it; another one has a key and a position more. A row that rests has
/// `padding` and a log-probability of 0 handed out, and its step counted. Past the last step of `tokens` nothing is handed out.
///
/// Logits of NaN or −∞ are never chosen, nor is a token whose bias is. A row with nothing else ends: `padding`, flags 1 and 4. With
/// bias or penalty, logits and biases beyond ±8·10³⁴ count as that. Options that the GPU finds out of range are taken to its ends.
/// Tokens less probable than e⁻¹⁰⁴ of the most probable one are never drawn.
#[doc(alias = "sample")]
#[derive(Clone, Copy, Debug)]
pub struct Choose {
    /// `f32` (B, V), V up to 2²⁴.
    pub logits: Tensor,
    /// `u32` (B, groups, 2): of each group of columns the largest logit, by its key, and its column. A greedy row without bias and
    /// penalty whose log-probabilities nobody wants reads these instead of the logits.
    pub maxima: Option<Tensor>,
    /// `f32` (V), or (B, V): added to the logits; −∞ bans a token.
    pub bias: Option<Tensor>,
    /// `u32` (B, 16): a [`Sampling`](crate::Sampling) a row.
    pub sampling: Tensor,
    /// `u32` (2 B, 8), or (3 B, 8) with `cross`: a [`DecodeState`].
    pub state: Tensor,
    /// Whether the state has sequences of cross-attention.
    pub cross: bool,
    /// `u32` (B, V / 32 rounded up): the tokens that a row's text has, a bit each, for the repetition penalty. The chosen one is
    /// added; [`MarkSeen`](super::MarkSeen) adds a prompt's.
    pub seen: Option<Tensor>,
    /// The most keys of a slot, S_max.
    pub capacity: usize,
    /// The token that is handed out for rows that rest.
    pub padding: u32,
    /// `u32` (steps, B).
    pub tokens: Tensor,
    /// `f32` (steps, B).
    pub log_probs: Option<Tensor>,
}

impl Choose {
    /// From logits alone, for rows without cross-attention; set the rest.
    #[must_use]
    pub fn new(logits: Tensor, sampling: Tensor, state: Tensor, capacity: usize, tokens: Tensor) -> Self {
        Self {
            logits,
            maxima: None,
            bias: None,
            sampling,
            state,
            cross: false,
            seen: None,
            capacity,
            padding: 0,
            tokens,
            log_probs: None,
        }
    }
}

impl Builder {
    /// Appends the choice of a token for every row.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Option`] for a vocabulary past 2²⁴ or a capacity of 0 or
    /// past 2³⁰, [`Error::Alias`] for two of the written tensors in one, [`Error::Limit`] for one that exceeds a binding.
    pub fn choose(&mut self, label: &str, args: &Choose) -> Result<()> {
        let &Choose { logits, maxima, bias, sampling, state, cross, seen, capacity, padding, tokens, log_probs } = args;
        let &[batch, columns] = logits.layout().sizes() else {
            return Err(Error::shape("logits", "(B, V)", logits.layout()));
        };
        if columns > MOST_COLUMNS {
            return Err(Error::option("V", format!("at most {MOST_COLUMNS}"), columns));
        }
        if !(1..1 << 30).contains(&capacity) {
            return Err(Error::option("capacity", "1 to 2^30 - 1", capacity));
        }
        self.expect(label, "logits", logits, Element::F32, &[batch, columns])?;
        self.expect(label, "sampling", sampling, Element::U32, &[batch, SAMPLING_WORDS])?;
        self.expect(label, "state", state, Element::U32, &[DecodeState::rows(batch, cross), STATE_WORDS])?;
        let &[steps, _] = tokens.layout().sizes() else {
            return Err(Error::shape("tokens", "(steps, B)", tokens.layout()));
        };
        self.expect(label, "tokens", tokens, Element::U32, &[steps, batch])?;
        if let Some(log_probs) = log_probs {
            self.expect(label, "log_probs", log_probs, Element::F32, &[steps, batch])?;
        }
        let mut groups = 0;
        if let Some(maxima) = maxima {
            let &[_, found, _] = maxima.layout().sizes() else {
                return Err(Error::shape("maxima", "(B, groups, 2)", maxima.layout()));
            };
            self.expect(label, "maxima", maxima, Element::U32, &[batch, found, 2])?;
            groups = found;
        }
        if let Some(bias) = bias {
            let each = [batch, columns];
            let sizes = if bias.layout().sizes().len() == 1 { &each[1..] } else { &each };
            self.expect(label, "bias", bias, Element::F32, sizes)?;
        }
        if let Some(seen) = seen {
            self.expect(label, "seen", seen, Element::U32, &[batch, seen_words(columns)])?;
        }
        let storage = self.storage_of(label, Element::F32, &[], &[Some(logits)])?;
        let case = Case {
            operation: Operation::Choose,
            kernel: KERNEL.name,
            storage,
            rows: batch,
            columns,
            depth: columns,
            ragged_columns: false,
            invariant: self.batch_invariant(),
            cached: false,
        };
        let choice = self.choice(&case);
        let flag = |bound: bool, bit: u32| if bound { bit } else { 0 };
        let params = Params {
            columns: columns as u32,
            batch: batch as u32,
            groups: groups as u32,
            steps: steps as u32,
            padding,
            capacity: capacity as u32,
            flags: flag(maxima.is_some(), MAXIMA)
                | flag(bias.is_some(), BIAS)
                | flag(seen.is_some(), SEEN)
                | flag(log_probs.is_some(), LOG_PROBS)
                | flag(cross, CROSS),
            share: choice.class.get("SHARE"),
            segments: choice.class.get("THREADS") / choice.class.get("SHARE"),
            logits_row: logits.layout().stride(0),
            maxima_row: stride(maxima, 0),
            maxima_group: stride(maxima, 1),
            state_row: state.layout().stride(0),
            tokens_row: tokens.layout().stride(0),
            log_probs_row: stride(log_probs, 0),
            bias_row: bias.filter(|b| b.layout().sizes().len() == 2).map_or(0, |b| b.layout().stride(0)),
            seen_row: stride(seen, 0),
            sampling_row: sampling.layout().stride(0),
            ..Params::default()
        };
        self.launch(Launch {
            label,
            variant: Variant::of(&KERNEL, &choice, storage, 0),
            workgroups: batch as u64,
            params,
            operands: &[Some(logits), maxima, bias, Some(sampling), Some(state), Some(tokens), log_probs, seen],
            flops: batch as u64 * columns as u64,
            bytes: None,
        })
    }
}
