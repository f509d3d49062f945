//! `attention_weights`: the weights of a fused attention, in a second pass.

use super::visibility::{Attention, QUERY_KEYS, ScoresShape, Visibility};
use crate::builder::{Builder, Launch};
use crate::error::Result;
use crate::program::{Tensor, params};
use crate::tensor::Element;
use crate::tuning::{Case, Operation};
use crate::variant::{ATTENTION, Binding, Kernel, PRODUCT, SCORES, SOFTMAX, TAKE_ROW, TANH, TILE, Variant, wgsl};
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
        weights_batch: u32,
        weights_head: u32,
        weights_row: u32,
        q_offset: u32,
        k_offset: u32,
        weights_offset: u32,
        statistics_kind: u32,
        statistics_batch: u32,
        statistics_head: u32,
        statistics_offset: u32,
        pad0: u32,
        pad1: u32,
        attention: Attention,
    }
}

const OPTIONS: usize = offset_of!(Params, attention);

pub(super) static KERNEL: Kernel = Kernel {
    name: "attention_weights",
    shared: &[&TILE, &PRODUCT, &TAKE_ROW, &ATTENTION, &TANH, &SCORES, &SOFTMAX, &QUERY_KEYS],
    subgroups: &[],
    parts: &[],
    source: wgsl!("attention_weights.wgsl"),
    bindings: &[
        Binding::read("q", 1, 0, offset_of!(Params, q_offset)),
        Binding::read("k", 1, 1, offset_of!(Params, k_offset)),
        Binding::read("sequences", 1, 2, OPTIONS + offset_of!(Attention, sequences_offset)).single(),
        Binding::read("key_mask", 1, 3, OPTIONS + offset_of!(Attention, key_mask_offset)).single(),
        Binding::read("mask", 1, 4, OPTIONS + offset_of!(Attention, mask_offset)).single(),
        Binding::read("statistics", 1, 5, offset_of!(Params, statistics_offset)).single(),
        Binding::write("weights", 6, offset_of!(Params, weights_offset)).wide(),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// `weights[b, h, i, j]` = exp(score − largest) / sum, 0 where the key is hidden from the query: what
/// [`FusedAttention`](super::FusedAttention) of the same q, k and visibility weighs values with.
#[derive(Clone, Debug)]
pub struct AttentionWeights {
    /// (q_rows, NH, HS)
    pub q: Tensor,
    /// (k_rows, NH_kv, HS); NH_kv divides NH
    pub k: Tensor,
    /// Options and masks.
    pub visibility: Visibility,
    /// `f32` (2, B, NH, T): [`FusedAttention::statistics`](super::FusedAttention::statistics)
    pub statistics: Tensor,
    /// `f32` (B, NH, T, S); every element is written
    pub weights: Tensor,
}

impl Builder {
    /// Appends the attention weights behind [`Builder::attention`].
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for tensors that do not fit each other, [`Error::Option`](crate::Error::Option) for heads
    /// that do not divide and as [`AttentionOptions::check`](crate::AttentionOptions::check), [`Error::Limit`](crate::Error::Limit)
    /// for weights that exceed a binding.
    pub fn attention_weights(&mut self, label: &str, args: &AttentionWeights) -> Result<()> {
        let AttentionWeights { q, k, visibility, statistics, weights } = args;
        let shape = ScoresShape::check(self, label, *q, *k, *weights, visibility)?;
        let ScoresShape { element, batch, n_heads, n_kv_heads, head_size, longest_q, longest_k } = shape;
        self.expect(label, "statistics", *statistics, Element::F32, &[2, batch, n_heads, longest_q])?;
        let storage = self.storage_of(label, element, &[Some(*q), Some(*k)], &[Some(*weights)])?;
        let choice = self.choice(&Case {
            operation: Operation::AttentionWeights,
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
            weights_batch: weights.layout().stride(0),
            weights_head: weights.layout().stride(1),
            weights_row: weights.layout().stride(2),
            statistics_kind: statistics.layout().stride(0),
            statistics_batch: statistics.layout().stride(1),
            statistics_head: statistics.layout().stride(2),
            attention: visibility.params(head_size),
            ..Params::default()
        };
        let pairs = batch as u64 * n_heads as u64 * longest_q as u64 * longest_k as u64;
        self.launch(Launch {
            label,
            variant: Variant::of(&KERNEL, &choice, storage, 0),
            workgroups: u64::from(tiles_m) * u64::from(tiles_n) * batch as u64 * n_heads as u64,
            params,
            operands: &[
                Some(*q),
                Some(*k),
                visibility.sequences,
                visibility.key_mask,
                visibility.mask,
                Some(*statistics),
                Some(*weights),
            ],
            flops: 2 * pairs * head_size as u64,
            bytes: None,
        })
    }
}
