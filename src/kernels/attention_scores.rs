//! `attention_scores`: the finished scores of all queries and keys.

use super::visibility::{Attention, QUERY_KEYS, STORE_SCORES, ScoresShape, Visibility};
use crate::builder::{Builder, Launch};
use crate::error::Result;
use crate::program::{Tensor, params};
use crate::tuning::{Case, Operation};
use crate::variant::{
    ATTENTION, Binding, Kernel, PRODUCT, SCORES, Source, TAKE_ROW, TANH, THREADS, THREADS_QUADS, TILE, TILE_QUADS, Variant,
    wgsl,
};
use std::mem::offset_of;

params! {
    Params {
        tiles_m: u32,
        tiles_n: u32,
        batch: u32,
        n_heads: u32,
        heads_per_kv: u32,
        head_size: u32,
        longest_q: u32,
        longest_k: u32,
        q_row: u32,
        q_head: u32,
        k_row: u32,
        k_head: u32,
        scores_batch: u32,
        scores_head: u32,
        scores_row: u32,
        q_offset: u32,
        k_offset: u32,
        scores_offset: u32,
        pad0: u32,
        pad1: u32,
        attention: Attention,
    }
}

const OPTIONS: usize = offset_of!(Params, attention);

const SOURCE: Source = wgsl!("attention_scores.wgsl");

pub(super) static KERNEL: Kernel = Kernel {
    name: "attention_scores",
    shared: &[&THREADS, &TILE, &PRODUCT, &TAKE_ROW, &ATTENTION, &TANH, &SCORES, &QUERY_KEYS, &STORE_SCORES],
    subgroups: &[&THREADS_QUADS, &TILE_QUADS, &TAKE_ROW, &ATTENTION, &TANH, &SCORES, &QUERY_KEYS, &STORE_SCORES, &SOURCE],
    parts: &[],
    source: SOURCE,
    bindings: &[
        Binding::read("q", 1, 0, offset_of!(Params, q_offset)),
        Binding::read("k", 1, 1, offset_of!(Params, k_offset)),
        Binding::read("sequences", 1, 2, OPTIONS + offset_of!(Attention, sequences_offset)).single(),
        Binding::read("key_mask", 1, 3, OPTIONS + offset_of!(Attention, key_mask_offset)).single(),
        Binding::read("mask", 1, 4, OPTIONS + offset_of!(Attention, mask_offset)).single(),
        Binding::write("scores", 5, offset_of!(Params, scores_offset)).wide(),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// `scores[b, h, i, j]` = the finished score of query i and key j, −∞ where the key is hidden from the query.
#[derive(Clone, Debug)]
pub struct AttentionScores {
    /// (q_rows, NH, HS)
    pub q: Tensor,
    /// (k_rows, NH_kv, HS); NH_kv divides NH
    pub k: Tensor,
    /// Options and masks.
    pub visibility: Visibility,
    /// `f32` (B, NH, T, S); every element is written
    pub scores: Tensor,
}

impl Builder {
    /// Appends softcap(scale · q·kᵀ) with ALiBi, additive mask and −∞ for hidden keys.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for tensors that do not fit each other, [`Error::Option`](crate::Error::Option) for heads
    /// that do not divide and as [`AttentionOptions::check`](crate::AttentionOptions::check), [`Error::Limit`](crate::Error::Limit)
    /// for scores that exceed a binding.
    pub fn attention_scores(&mut self, label: &str, args: &AttentionScores) -> Result<()> {
        let AttentionScores { q, k, visibility, scores } = args;
        let shape = ScoresShape::check(self, label, *q, *k, *scores, visibility)?;
        let ScoresShape { element, batch, n_heads, n_kv_heads, head_size, longest_q, longest_k } = shape;
        let storage = self.storage_of(label, element, &[Some(*q), Some(*k)], &[Some(*scores)])?;
        let choice = self.choice(&Case {
            operation: Operation::AttentionScores,
            kernel: KERNEL.name,
            storage,
            rows: longest_q,
            columns: longest_k,
            depth: head_size,
            ragged_columns: true,
            invariant: self.batch_invariant(),
            cached: false,
        });
        let class = choice.class;
        let tiles_m = (longest_q as u32).div_ceil(class.get("TILE_M"));
        let tiles_n = (longest_k as u32).div_ceil(class.get("TILE_N"));
        let params = Params {
            tiles_m,
            tiles_n,
            batch: batch as u32,
            n_heads: n_heads as u32,
            heads_per_kv: (n_heads / n_kv_heads) as u32,
            head_size: head_size as u32,
            longest_q: longest_q as u32,
            longest_k: longest_k as u32,
            q_row: q.layout().stride(0),
            q_head: q.layout().stride(1),
            k_row: k.layout().stride(0),
            k_head: k.layout().stride(1),
            scores_batch: scores.layout().stride(0),
            scores_head: scores.layout().stride(1),
            scores_row: scores.layout().stride(2),
            attention: visibility.params(head_size),
            ..Params::default()
        };
        let pairs = batch as u64 * n_heads as u64 * longest_q as u64 * longest_k as u64;
        self.launch(Launch {
            label,
            variant: Variant::of(&KERNEL, &choice, storage, 0),
            workgroups: u64::from(tiles_m) * u64::from(tiles_n) * batch as u64 * n_heads as u64,
            params,
            operands: &[Some(*q), Some(*k), visibility.sequences, visibility.key_mask, visibility.mask, Some(*scores)],
            flops: 2 * pairs * head_size as u64,
            bytes: None,
        })
    }
}
