//! `beam_candidates`: the most probable tokens of every row, each with its log-probability.

use super::stride;
use crate::builder::{Builder, Launch};
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::SEQUENCE_WORDS;
use crate::spec::beams::MAX_CANDIDATES;
use crate::spec::sampling::seen_words;
use crate::storage::Storage;
use crate::tensor::Element;
use crate::tuning::{Case, Operation};
use crate::variant::{Binding, Kernel, LOGITS, ORDER, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        columns: u32,
        batch: u32,
        count: u32,
        flags: u32,
        share: u32,
        shares: u32,
        logits_row: u32,
        bias_row: u32,
        banned_row: u32,
        sequences_row: u32,
        candidates_row: u32,
        candidate_stride: u32,
        logits_offset: u32,
        bias_offset: u32,
        banned_offset: u32,
        sequences_offset: u32,
        candidates_offset: u32,
    }
}

const BIAS: u32 = 1;
const BANNED: u32 = 2;
const SEQUENCES: u32 = 4;
const RENORMALIZED: u32 = 8;

/// The longest row: columns and their groups are counted in 32 bits.
const MOST_COLUMNS: usize = 1 << 24;

pub(super) static KERNEL: Kernel = Kernel {
    name: "beam_candidates",
    shared: &[&ORDER, &LOGITS],
    subgroups: &[],
    parts: &[],
    source: wgsl!("beam_candidates.wgsl"),
    bindings: &[
        Binding::read("logits", 1, 0, offset_of!(Params, logits_offset)).wide(),
        Binding::read("bias", 1, 1, offset_of!(Params, bias_offset)).single(),
        Binding::read("banned", 1, 2, offset_of!(Params, banned_offset)).single(),
        Binding::read("sequences", 1, 3, offset_of!(Params, sequences_offset)).single(),
        Binding::write("candidates", 4, offset_of!(Params, candidates_offset)).single(),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// The K most probable tokens of every row with their log-probabilities, the most probable one first and of equal ones the lowest:
/// what a beam can go on with.
///
/// ```text
/// candidates[b][i] = token t, the bits of log softmax(logits[b])[t] + bias[b][t] as an f32
/// ```
///
/// Tokens whose logit is NaN or −∞, whose bias is, or whose bit in `banned` is set are no candidates. A row that has fewer than K
/// ends with the token `u32::MAX` at −∞. With a bias, logits and biases beyond ±8·10³⁴ count as that.
#[derive(Clone, Copy, Debug)]
pub struct BeamCandidates {
    /// `f32` (B, V), V up to 2²⁴.
    pub logits: Tensor,
    /// `f32` (V), or (B, V): added to the log-probabilities; −∞ bans a token.
    pub bias: Option<Tensor>,
    /// `u32` (V / 32 rounded up), or (B, as many): a bit for each token that is banned.
    pub banned: Option<Tensor>,
    /// Whether probabilities are those among the tokens that are left, their biases counted: log softmax of logits + bias, without
    /// those that are banned. Else they are the model's own.
    pub renormalized: bool,
    /// `u32` (B, 8): a row that rests, with `q_len` 0, is left out, its candidates as they were.
    pub sequences: Option<Tensor>,
    /// `u32` (B, K, 2), K up to [`MAX_CANDIDATES`].
    pub candidates: Tensor,
}

impl BeamCandidates {
    /// From logits alone, for every row; set the rest.
    #[must_use]
    pub fn new(logits: Tensor, candidates: Tensor) -> Self {
        Self { logits, bias: None, banned: None, renormalized: false, sequences: None, candidates }
    }
}

impl Builder {
    /// Appends the choice of every row's candidates.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Option`] for a vocabulary past 2²⁴ or more candidates than
    /// [`MAX_CANDIDATES`], [`Error::Limit`] for a tensor that exceeds a binding.
    pub fn beam_candidates(&mut self, label: &str, args: &BeamCandidates) -> Result<()> {
        let &BeamCandidates { logits, bias, banned, renormalized, sequences, candidates } = args;
        let &[batch, columns] = logits.layout().sizes() else {
            return Err(Error::shape("logits", "(B, V)", logits.layout()));
        };
        let &[_, count, _] = candidates.layout().sizes() else {
            return Err(Error::shape("candidates", "(B, K, 2)", candidates.layout()));
        };
        if columns > MOST_COLUMNS {
            return Err(Error::option("V", format!("at most {MOST_COLUMNS}"), columns));
        }
        if count > MAX_CANDIDATES {
            return Err(Error::option("candidates", format!("at most {MAX_CANDIDATES} a row"), count));
        }
        self.expect(label, "logits", logits, Element::F32, &[batch, columns])?;
        self.expect(label, "candidates", candidates, Element::U32, &[batch, count, 2])?;
        let of_each = |tensor: Tensor| tensor.layout().sizes().len() != 1;
        if let Some(bias) = bias {
            self.expect(label, "bias", bias, Element::F32, &[batch, columns][usize::from(!of_each(bias))..])?;
        }
        if let Some(banned) = banned {
            let sizes = [batch, seen_words(columns)];
            self.expect(label, "banned", banned, Element::U32, &sizes[usize::from(!of_each(banned))..])?;
        }
        if let Some(sequences) = sequences {
            self.expect(label, "sequences", sequences, Element::U32, &[batch, SEQUENCE_WORDS])?;
        }
        let case = Case {
            operation: Operation::Choose,
            kernel: KERNEL.name,
            storage: Storage::F32,
            rows: batch,
            columns,
            depth: columns,
            ragged_columns: false,
            invariant: self.batch_invariant(),
            cached: false,
        };
        let choice = self.choice(&case);
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let row = |tensor: Option<Tensor>| stride(tensor.filter(|t| of_each(*t)), 0);
        let params = Params {
            columns: columns as u32,
            batch: batch as u32,
            count: count as u32,
            flags: flag(bias.is_some(), BIAS)
                | flag(banned.is_some(), BANNED)
                | flag(sequences.is_some(), SEQUENCES)
                | flag(renormalized, RENORMALIZED),
            share: choice.class.get("SHARE"),
            shares: choice.class.get("THREADS") / choice.class.get("SHARE"),
            logits_row: logits.layout().stride(0),
            bias_row: row(bias),
            banned_row: row(banned),
            sequences_row: stride(sequences, 0),
            candidates_row: candidates.layout().stride(0),
            candidate_stride: candidates.layout().stride(1),
            ..Params::default()
        };
        self.launch(Launch {
            label,
            variant: Variant::of(&KERNEL, &choice, Storage::F32, 0),
            workgroups: batch as u64,
            params,
            operands: &[Some(logits), bias, banned, sequences, Some(candidates)],
            flops: 2 * batch as u64 * columns as u64,
            bytes: None,
        })
    }
}
