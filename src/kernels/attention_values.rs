//! `attention_values`: out = probs · v.

use super::visibility::{Attention, Visibility, heads_divide, rows_fit};
use crate::builder::{Builder, Launch};
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::AttentionOptions;
use crate::tensor::Element;
use crate::tuning::{Case, Operation};
use crate::variant::{
    ATTENTION, Binding, Kernel, PRODUCT, Source, TAKE_ROW, THREADS, THREADS_QUADS, TILE, TILE_QUADS, Variant, wgsl,
};
use std::mem::offset_of;

params! {
    Params {
        tiles_m: u32,
        tiles_n: u32,
        batch: u32,
        n_heads: u32,
        heads_per_kv: u32,
        value_size: u32,
        longest_q: u32,
        longest_k: u32,
        probs_batch: u32,
        probs_head: u32,
        probs_row: u32,
        v_row: u32,
        v_head: u32,
        out_row: u32,
        out_head: u32,
        probs_offset: u32,
        v_offset: u32,
        out_offset: u32,
        pad0: u32,
        pad1: u32,
        attention: Attention,
    }
}

const OPTIONS: usize = offset_of!(Params, attention);

const SOURCE: Source = wgsl!("attention_values.wgsl");

pub(super) static KERNEL: Kernel = Kernel {
    name: "attention_values",
    shared: &[&THREADS, &TILE, &PRODUCT, &TAKE_ROW, &ATTENTION],
    subgroups: &[&THREADS_QUADS, &TILE_QUADS, &TAKE_ROW, &ATTENTION, &SOURCE],
    parts: &[],
    source: SOURCE,
    bindings: &[
        Binding::read("probs", 1, 0, offset_of!(Params, probs_offset)).wide(),
        Binding::read("v", 1, 1, offset_of!(Params, v_offset)),
        Binding::read("sequences", 1, 2, OPTIONS + offset_of!(Attention, sequences_offset)).single(),
        Binding::read("key_mask", 1, 3, OPTIONS + offset_of!(Attention, key_mask_offset)).single(),
        Binding::write("out", 4, offset_of!(Params, out_offset)),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// `out[i, h]` = Σ over j of `probs[b, h, i, j] · v[j, h]`. Keys past the length or hidden by the key mask never reach it, whatever they hold.
#[derive(Clone, Debug)]
pub struct AttentionValues {
    /// `f32` (B, NH, T, S); finite up to each sequence's length, at keys that the key mask hides too, and anything behind it
    pub probs: Tensor,
    /// (k_rows, NH_kv, VS); NH_kv divides NH
    pub v: Tensor,
    /// Sequences and key mask; other options have no meaning here and are ignored.
    pub visibility: Visibility,
    /// (q_rows, NH, VS); rows that no sequence has are not written
    pub out: Tensor,
}

impl Builder {
    /// Appends the weighted sum of values.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Option`] for heads that do not divide, [`Error::Alias`] for
    /// an out that is also read, [`Error::Limit`] for a tensor that exceeds a binding.
    pub fn attention_values(&mut self, label: &str, args: &AttentionValues) -> Result<()> {
        let AttentionValues { probs, v, visibility, out } = args;
        let &[batch, n_heads, longest_q, longest_k] = probs.layout().sizes() else {
            return Err(Error::shape("probs", "(B, NH, T, S)", probs.layout()));
        };
        self.expect(label, "probs", *probs, Element::F32, &[batch, n_heads, longest_q, longest_k])?;
        let &[k_rows, n_kv_heads, value_size] = v.layout().sizes() else {
            return Err(Error::shape("v", "(k_rows, NH_kv, VS)", v.layout()));
        };
        let &[q_rows, ..] = out.layout().sizes() else {
            return Err(Error::shape("out", "(q_rows, NH, VS)", out.layout()));
        };
        let element = self.float(label, "v", *v)?;
        self.expect(label, "v", *v, element, &[k_rows, n_kv_heads, value_size])?;
        self.expect(label, "out", *out, element, &[q_rows, n_heads, value_size])?;
        heads_divide(n_heads, n_kv_heads)?;
        let visibility = Visibility {
            options: AttentionOptions { key_mask: visibility.key_mask.is_some(), ..AttentionOptions::default() },
            mask: None,
            ..visibility.clone()
        };
        rows_fit("out", &visibility, q_rows, batch, longest_q)?;
        rows_fit("v", &visibility, k_rows, batch, longest_k)?;
        visibility.check(self, label, [batch, n_heads, longest_q, longest_k])?;
        let storage = self.storage_of(label, element, &[Some(*v), Some(*out)], &[Some(*probs)])?;
        let choice = self.choice(&Case {
            operation: Operation::AttentionValues,
            kernel: KERNEL.name,
            storage,
            rows: longest_q,
            columns: value_size,
            depth: longest_k,
            ragged_columns: false,
            invariant: self.batch_invariant(),
            cached: false,
        });
        let class = choice.class;
        let tiles_m = (longest_q as u32).div_ceil(class.get("TILE_M"));
        let tiles_n = (value_size as u32).div_ceil(class.get("TILE_N"));
        let params = Params {
            tiles_m,
            tiles_n,
            batch: batch as u32,
            n_heads: n_heads as u32,
            heads_per_kv: (n_heads / n_kv_heads) as u32,
            value_size: value_size as u32,
            longest_q: longest_q as u32,
            longest_k: longest_k as u32,
            probs_batch: probs.layout().stride(0),
            probs_head: probs.layout().stride(1),
            probs_row: probs.layout().stride(2),
            v_row: v.layout().stride(0),
            v_head: v.layout().stride(1),
            out_row: out.layout().stride(0),
            out_head: out.layout().stride(1),
            attention: visibility.params(value_size),
            ..Params::default()
        };
        let pairs = batch as u64 * n_heads as u64 * longest_q as u64 * longest_k as u64;
        self.launch(Launch {
            label,
            variant: Variant::of(&KERNEL, &choice, storage, 0),
            workgroups: u64::from(tiles_m) * u64::from(tiles_n) * batch as u64 * n_heads as u64,
            params,
            operands: &[Some(*probs), Some(*v), visibility.sequences, visibility.key_mask, Some(*out)],
            flops: 2 * pairs * value_size as u64,
            bytes: None,
        })
    }
}
