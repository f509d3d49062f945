//! `additive_scores`: finished scores of vᵀ tanh(q + k).

use super::visibility::{Attention, STORE_SCORES, ScoresShape, Visibility};
use crate::builder::{Builder, Launch};
use crate::classes::FLAT;
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::variant::{ATTENTION, Binding, Kernel, SCORES, TANH, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        workgroups: u32,
        key_groups: u32,
        batch: u32,
        n_heads: u32,
        head_size: u32,
        longest_q: u32,
        longest_k: u32,
        q_row: u32,
        q_head: u32,
        k_row: u32,
        k_head: u32,
        vector_head: u32,
        scores_batch: u32,
        scores_head: u32,
        scores_row: u32,
        q_offset: u32,
        k_offset: u32,
        vector_offset: u32,
        scores_offset: u32,
        pad0: u32,
        attention: Attention,
    }
}

const OPTIONS: usize = offset_of!(Params, attention);

pub(super) static KERNEL: Kernel = Kernel {
    name: "additive_scores",
    shared: &[&ATTENTION, &TANH, &SCORES, &STORE_SCORES],
    subgroups: &[],
    parts: &[],
    source: wgsl!("additive_scores.wgsl"),
    bindings: &[
        Binding::read("vector", 0, 1, offset_of!(Params, vector_offset)),
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

/// `scores[b, h, i, j]` = Σ over d of `vector[h, d] · tanh(q[i, h, d] + k[j, h, d])`, finished as [`AttentionScores`](super::AttentionScores) are.
///
/// The additive score of Bahdanau et al., arXiv 1409.0473, with q and k already projected.
#[derive(Clone, Debug)]
pub struct AdditiveScores {
    /// (q_rows, NH, HS) = W₂ · query
    pub q: Tensor,
    /// (k_rows, NH, HS) = W₁ · key
    pub k: Tensor,
    /// (NH, HS), a weight
    pub vector: Tensor,
    /// Options and masks; the default scale is that of the dot product, so most callers set 1.
    pub visibility: Visibility,
    /// `f32` (B, NH, T, S); every element is written
    pub scores: Tensor,
}

impl Builder {
    /// Appends the additive scores.
    ///
    /// # Errors
    /// As [`Builder::attention_scores`]; [`Error::Option`] for grouped heads.
    pub fn additive_scores(&mut self, label: &str, args: &AdditiveScores) -> Result<()> {
        let AdditiveScores { q, k, vector, visibility, scores } = args;
        let shape = ScoresShape::check(self, label, *q, *k, *scores, visibility)?;
        let ScoresShape { element, batch, n_heads, n_kv_heads, head_size, longest_q, longest_k } = shape;
        if n_kv_heads != n_heads {
            return Err(Error::option("n_kv_heads", format!("n_heads, {n_heads}, with an additive score"), n_kv_heads));
        }
        self.expect(label, "vector", *vector, element, &[n_heads, head_size])?;
        let key_groups = longest_k.div_ceil(4);
        let threads = batch as u64 * n_heads as u64 * longest_q as u64 * key_groups as u64;
        let workgroups = threads.div_ceil(u64::from(FLAT.get("THREADS")));
        let params = Params {
            workgroups: workgroups as u32,
            key_groups: key_groups as u32,
            batch: batch as u32,
            n_heads: n_heads as u32,
            head_size: head_size as u32,
            longest_q: longest_q as u32,
            longest_k: longest_k as u32,
            q_row: q.layout().stride(0),
            q_head: q.layout().stride(1),
            k_row: k.layout().stride(0),
            k_head: k.layout().stride(1),
            vector_head: vector.layout().stride(0),
            scores_batch: scores.layout().stride(0),
            scores_head: scores.layout().stride(1),
            scores_row: scores.layout().stride(2),
            attention: visibility.params(head_size),
            ..Params::default()
        };
        let storage = self.storage_of(label, element, &[Some(*q), Some(*k), Some(*vector)], &[Some(*scores)])?;
        self.launch(Launch {
            label,
            variant: Variant::core(&KERNEL, &FLAT, storage),
            workgroups,
            params,
            operands: &[
                Some(*vector),
                Some(*q),
                Some(*k),
                visibility.sequences,
                visibility.key_mask,
                visibility.mask,
                Some(*scores),
            ],
            flops: 4 * batch as u64 * n_heads as u64 * longest_q as u64 * longest_k as u64 * head_size as u64,
            bytes: None,
        })
    }
}
