//! What the attention kernels share on the host: options, masks and sequences.

use super::stride;
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::{AttentionOptions, MAX_SLOPES, Mask, SEQUENCE_WORDS};
use crate::tensor::Element;
use crate::variant::{Source, wgsl};

params! {
    /// The options as `Attention` in WGSL has them.
    Attention {
        scale: f32,
        softcap: f32,
        flags: u32,
        left: i32,
        right: i32,
        key_mask_batch: u32,
        mask_batch: u32,
        mask_head: u32,
        mask_row: u32,
        mask_key: u32,
        key_mask_key: u32,
        sequence_stride: u32,
        sequences_offset: u32,
        key_mask_offset: u32,
        mask_offset: u32,
        sequence_count: u32,
        slopes: [[f32; 4]; MAX_SLOPES / 4],
    }
}

/// The tiles of q · kᵀ.
pub(super) const QUERY_KEYS: Source = wgsl!("shared/query_keys.wgsl");

/// How both kinds of scores are finished and stored.
pub(super) const STORE_SCORES: Source = wgsl!("shared/store_scores.wgsl");

const CAUSAL: u32 = 1;
const KEY_MASK: u32 = 2;
const BOOLEAN_MASK: u32 = 4;
const ADDITIVE_MASK: u32 = 8;
const ALIBI: u32 = 16;
const SOFTCAP: u32 = 32;
const RELATIVE_MASK: u32 = 64;

/// A window that is open to one side: no position is further away, not even one of an offset of 2³⁰.
const OPEN: i32 = i32::MAX;

/// Which keys a query sees: [`AttentionOptions`] with the tensors that they speak of.
#[derive(Clone, Debug, Default)]
pub struct Visibility {
    /// The options. `key_mask` and `mask` say which of the tensors below there are.
    pub options: AttentionOptions,
    /// `u32` (B, 8), a [`Sequence`](crate::Sequence) each; without it every sequence has all T queries and S keys, one behind
    /// the other.
    pub sequences: Option<Tensor>,
    /// `u32` (B, S), nonzero = attended; either dimension may have size 1.
    pub key_mask: Option<Tensor>,
    /// (B, NH, T, S), `u32` or `f32` as `options.mask` says, or (NH, 2 · reach + 1) for a [`Mask::Relative`]; any dimension may have size 1.
    pub mask: Option<Tensor>,
}

impl Visibility {
    /// Options alone, for those that need no tensor.
    #[must_use]
    pub fn new(options: AttentionOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// Refuses tensors that do not fit (B, NH, T, S) or that the options do not speak of.
    pub(super) fn check(&self, builder: &Builder, label: &str, sizes: [usize; 4]) -> Result<()> {
        let [batch, n_heads, _, longest_k] = sizes;
        self.options.check(n_heads)?;
        if let Some(sequences) = self.sequences {
            builder.expect(label, "sequences", sequences, Element::U32, &[batch, SEQUENCE_WORDS])?;
        }
        agree("key_mask", self.options.key_mask, self.key_mask)?;
        agree("mask", self.options.mask.is_some(), self.mask)?;
        if let Some(key_mask) = self.key_mask {
            broadcast(builder, label, "key_mask", key_mask, Element::U32, &[batch, longest_k])?;
        }
        if let (Some(mask), Some(kind)) = (self.mask, self.options.mask) {
            match kind {
                Mask::Boolean => broadcast(builder, label, "mask", mask, Element::U32, &sizes)?,
                Mask::Additive => broadcast(builder, label, "mask", mask, Element::F32, &sizes)?,
                Mask::Relative { reach } => {
                    broadcast(builder, label, "mask", mask, Element::F32, &[n_heads, Mask::distances(reach)])?;
                }
            }
        }
        Ok(())
    }

    /// The parameters, for heads of `head_size`.
    pub(super) fn params(&self, head_size: usize) -> Attention {
        let options = &self.options;
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let window = |width: Option<u32>| width.map_or(OPEN, |w| w as i32);
        let mut slopes = [[0.0; 4]; MAX_SLOPES / 4];
        slopes.as_flattened_mut().iter_mut().zip(&options.alibi).for_each(|(to, from)| *to = *from);
        let (kind, [mask_batch, mask_head, mask_row, mask_key]) = match options.mask {
            None => (0, [0; 4]),
            Some(Mask::Boolean) => (BOOLEAN_MASK, [0, 1, 2, 3].map(|dimension| stride(self.mask, dimension))),
            Some(Mask::Additive) => (ADDITIVE_MASK, [0, 1, 2, 3].map(|dimension| stride(self.mask, dimension))),
            Some(Mask::Relative { reach }) => {
                (ADDITIVE_MASK | RELATIVE_MASK, [0, stride(self.mask, 0), reach, stride(self.mask, 1)])
            }
        };
        Attention {
            scale: options.scale_for(head_size),
            softcap: options.softcap.unwrap_or(1.0),
            flags: flag(options.causal, CAUSAL)
                | flag(options.key_mask, KEY_MASK)
                | kind
                | flag(!options.alibi.is_empty(), ALIBI)
                | flag(options.softcap.is_some(), SOFTCAP),
            left: window(options.window_left),
            right: window(options.window_right),
            key_mask_batch: stride(self.key_mask, 0),
            key_mask_key: stride(self.key_mask, 1),
            mask_batch,
            mask_head,
            mask_row,
            mask_key,
            sequence_stride: stride(self.sequences, 0),
            sequence_count: self.sequences.map_or(0, |s| s.layout().size(0)),
            slopes,
            ..Attention::default()
        }
    }
}

fn agree(name: &str, announced: bool, tensor: Option<Tensor>) -> Result<()> {
    match (announced, tensor) {
        (true, None) => Err(Error::Missing { tensor: name.into(), expected: "a tensor, as the options say".into() }),
        (false, Some(tensor)) => {
            Err(Error::option(name, "no tensor, as the options say", format!("one of {}", tensor.layout())))
        }
        _ => Ok(()),
    }
}

fn broadcast(builder: &Builder, label: &str, name: &str, tensor: Tensor, element: Element, sizes: &[usize]) -> Result<()> {
    let found = tensor.layout().sizes();
    let fits = found.len() == sizes.len() && found.iter().zip(sizes).all(|(f, s)| f == s || *f == 1);
    if !fits {
        let expected = format!("{sizes:?}, each dimension that or 1");
        return Err(Error::shape(name, expected, tensor.layout()));
    }
    builder.expect(label, name, tensor, element, found)
}

/// The sizes of q, k and scores, once they are known to fit each other.
pub(super) struct ScoresShape {
    /// Of q and k.
    pub(super) element: Element,
    pub(super) batch: usize,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) head_size: usize,
    pub(super) longest_q: usize,
    pub(super) longest_k: usize,
}

impl ScoresShape {
    pub(super) fn check(
        builder: &Builder,
        label: &str,
        q: Tensor,
        k: Tensor,
        scores: Tensor,
        visibility: &Visibility,
    ) -> Result<Self> {
        let &[batch, n_heads, longest_q, longest_k] = scores.layout().sizes() else {
            return Err(Error::shape("scores", "(B, NH, T, S)", scores.layout()));
        };
        builder.expect(label, "scores", scores, Element::F32, &[batch, n_heads, longest_q, longest_k])?;
        let &[q_rows, _, head_size] = q.layout().sizes() else {
            return Err(Error::shape("q", "(q_rows, NH, HS)", q.layout()));
        };
        let &[k_rows, n_kv_heads, _] = k.layout().sizes() else {
            return Err(Error::shape("k", "(k_rows, NH_kv, HS)", k.layout()));
        };
        let element = builder.float(label, "q", q)?;
        builder.expect(label, "q", q, element, &[q_rows, n_heads, head_size])?;
        builder.expect(label, "k", k, element, &[k_rows, n_kv_heads, head_size])?;
        heads_divide(n_heads, n_kv_heads)?;
        rows_fit("q", visibility, q_rows, batch, longest_q)?;
        rows_fit("k", visibility, k_rows, batch, longest_k)?;
        visibility.check(builder, label, [batch, n_heads, longest_q, longest_k])?;
        Ok(Self { element, batch, n_heads, n_kv_heads, head_size, longest_q, longest_k })
    }
}

pub(super) fn heads_divide(n_heads: usize, n_kv_heads: usize) -> Result<()> {
    if n_heads.is_multiple_of(n_kv_heads) {
        Ok(())
    } else {
        Err(Error::option("n_kv_heads", format!("a divisor of n_heads, {n_heads}"), n_kv_heads))
    }
}

/// Without sequences the rows of all B sequences must be there.
pub(super) fn rows_fit(name: &str, visibility: &Visibility, rows: usize, batch: usize, longest: usize) -> Result<()> {
    if visibility.sequences.is_none() && rows < batch.saturating_mul(longest) {
        return Err(Error::shape(name, format!("{batch} · {longest} rows, or sequences"), format!("{rows} rows")));
    }
    Ok(())
}
