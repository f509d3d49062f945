//! `masked_softmax`: softmax over keys, hidden keys left out.

use super::rows_case;
use super::visibility::{Attention, Visibility};
use crate::builder::{Builder, Launch};
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::AttentionOptions;
use crate::tensor::Element;
use crate::tuning::Case;
use crate::variant::{ATTENTION, Binding, Kernel, ROWS, ROWS_SUBGROUPS, SCORES, SOFTMAX, Source, TANH, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        rows: u32,
        batch: u32,
        n_heads: u32,
        longest_q: u32,
        longest_k: u32,
        x_batch: u32,
        x_head: u32,
        x_row: u32,
        y_batch: u32,
        y_head: u32,
        y_row: u32,
        x_offset: u32,
        y_offset: u32,
        options: u32,
        pad0: u32,
        pad1: u32,
        attention: Attention,
    }
}

const OPTIONS: usize = offset_of!(Params, attention);

const SOURCE: Source = wgsl!("masked_softmax.wgsl");

pub(super) static KERNEL: Kernel = Kernel {
    name: "masked_softmax",
    shared: &[&ROWS, &ATTENTION, &TANH, &SCORES, &SOFTMAX],
    subgroups: &[&ROWS_SUBGROUPS, &ATTENTION, &TANH, &SCORES, &SOFTMAX, &SOURCE],
    parts: &[],
    source: SOURCE,
    bindings: &[
        Binding::read("x", 1, 0, offset_of!(Params, x_offset)).wide(),
        Binding::read("sequences", 1, 1, OPTIONS + offset_of!(Attention, sequences_offset)).single(),
        Binding::read("key_mask", 1, 2, OPTIONS + offset_of!(Attention, key_mask_offset)).single(),
        Binding::read("mask", 1, 3, OPTIONS + offset_of!(Attention, mask_offset)).single(),
        Binding::write("y", 4, offset_of!(Params, y_offset)).wide(),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// y = softmax over the last dimension of scale · x − slope · |p − j| + additive, with the keys that the options hide (and
/// entries of −∞) at 0. A row with no visible key is all zeros.
///
/// Behind [`AttentionScores`](super::AttentionScores), which has applied the options already, the plain options serve.
#[derive(Clone, Debug)]
pub struct MaskedSoftmax {
    /// `f32` (B, NH, T, S)
    pub x: Tensor,
    /// Options and masks. The default scale is 1 here (a temperature t is `scale: Some(1.0 / t)`); softcap belongs to scores and
    /// is refused.
    pub visibility: Visibility,
    /// `f32` (B, NH, T, S); every element is written
    pub y: Tensor,
}

impl Builder {
    /// Appends a softmax over the last dimension.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Option`] for a softcap and as
    /// [`AttentionOptions::check`], [`Error::Alias`] for a y that is x, [`Error::Limit`] for one that exceeds a binding.
    pub fn masked_softmax(&mut self, label: &str, args: &MaskedSoftmax) -> Result<()> {
        let MaskedSoftmax { x, visibility, y } = args;
        let &[batch, n_heads, longest_q, longest_k] = x.layout().sizes() else {
            return Err(Error::shape("x", "(B, NH, T, S)", x.layout()));
        };
        self.expect(label, "x", *x, Element::F32, &[batch, n_heads, longest_q, longest_k])?;
        self.expect(label, "y", *y, Element::F32, &[batch, n_heads, longest_q, longest_k])?;
        visibility.check(self, label, [batch, n_heads, longest_q, longest_k])?;
        if let Some(cap) = visibility.options.softcap {
            return Err(Error::option("softcap", "none in a softmax", cap));
        }
        let plain = AttentionOptions { scale: visibility.options.scale, ..AttentionOptions::default() };
        let options = visibility.options != plain || visibility.sequences.is_some();
        let rows = batch as u64 * n_heads as u64 * longest_q as u64;
        let storage = self.storage_of(label, Element::F32, &[], &[Some(*x), Some(*y)])?;
        let case =
            Case { invariant: self.batch_invariant(), ..rows_case(KERNEL.name, storage, rows as usize, longest_k, true) };
        let choice = self.choice(&case);
        let class = choice.class;
        let rows_per_group = u64::from(class.get("THREADS") / class.get("ROW_THREADS"));
        let params = Params {
            rows: rows as u32,
            batch: batch as u32,
            n_heads: n_heads as u32,
            longest_q: longest_q as u32,
            longest_k: longest_k as u32,
            x_batch: x.layout().stride(0),
            x_head: x.layout().stride(1),
            x_row: x.layout().stride(2),
            y_batch: y.layout().stride(0),
            y_head: y.layout().stride(1),
            y_row: y.layout().stride(2),
            options: u32::from(options),
            attention: visibility.params(1),
            ..Params::default()
        };
        self.launch(Launch {
            label,
            variant: Variant::of(&KERNEL, &choice, storage, 0),
            workgroups: rows.div_ceil(rows_per_group),
            params,
            operands: &[Some(*x), visibility.sequences, visibility.key_mask, visibility.mask, Some(*y)],
            flops: 5 * rows * longest_k as u64,
            bytes: None,
        })
    }
}
