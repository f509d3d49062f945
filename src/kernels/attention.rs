//! `attention`: scores, softmax and values in one dispatch, nothing of size T · S in memory.

use super::stride;
use super::visibility::{Attention, Visibility, heads_divide, rows_fit};
use crate::builder::{Builder, Launch};
use crate::classes::{HEADS_QUERIES, REDUCE};
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::shape::{Layout, MAX_ELEMENTS};
use crate::tensor::Element;
use crate::tuning::{Case, Operation};
use crate::variant::{ATTENTION, Binding, Kernel, SCORES, SOFTMAX, Source, TANH, THREADS, THREADS_QUADS, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        tiles_m: u32,
        batch: u32,
        n_heads: u32,
        heads_per_kv: u32,
        head_size: u32,
        value_size: u32,
        longest_q: u32,
        longest_k: u32,
        q_row: u32,
        q_head: u32,
        k_row: u32,
        k_head: u32,
        v_row: u32,
        v_head: u32,
        out_row: u32,
        out_head: u32,
        statistics: u32,
        statistics_kind: u32,
        statistics_batch: u32,
        statistics_head: u32,
        q_offset: u32,
        k_offset: u32,
        v_offset: u32,
        out_offset: u32,
        statistics_offset: u32,
        splits: u32,
        pad0: u32,
        pad1: u32,
        attention: Attention,
    }
}

const OPTIONS: usize = offset_of!(Params, attention);

const Q: Binding = Binding::read("q", 1, 0, offset_of!(Params, q_offset));
const K: Binding = Binding::read("k", 1, 1, offset_of!(Params, k_offset));
const V: Binding = Binding::read("v", 1, 2, offset_of!(Params, v_offset));
const SEQUENCES: Binding = Binding::read("sequences", 1, 3, OPTIONS + offset_of!(Attention, sequences_offset)).single();
const KEY_MASK: Binding = Binding::read("key_mask", 1, 4, OPTIONS + offset_of!(Attention, key_mask_offset)).single();
const MASK: Binding = Binding::read("mask", 1, 5, OPTIONS + offset_of!(Attention, mask_offset)).single();
const OUT: Binding = Binding::write("out", 6, offset_of!(Params, out_offset));
const STATISTICS: Binding = Binding::write("statistics", 7, offset_of!(Params, statistics_offset)).single();

const COMMON: Source = wgsl!("shared/fused.wgsl");
const INPUTS: Source = wgsl!("shared/fused_inputs.wgsl");
const ROWS: Source = wgsl!("shared/fused_rows.wgsl");
const PRODUCTS: Source = wgsl!("shared/fused_products.wgsl");
const SOURCE_QUADS: Source = wgsl!("attention_quads.wgsl");

pub(super) static KERNEL: Kernel = Kernel {
    name: "attention",
    shared: &[&THREADS, &ATTENTION, &TANH, &SCORES, &SOFTMAX, &COMMON, &INPUTS, &ROWS, &PRODUCTS],
    subgroups: &[&THREADS_QUADS, &ATTENTION, &TANH, &SCORES, &SOFTMAX, &COMMON, &INPUTS, &ROWS, &SOURCE_QUADS],
    parts: &[],
    source: wgsl!("attention.wgsl"),
    bindings: &[Q, K, V, SEQUENCES, KEY_MASK, MASK, OUT, STATISTICS],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

pub(super) static KERNEL_MATRIX: Kernel = Kernel {
    name: "attention_matrix",
    shared: &[&ATTENTION, &TANH, &SCORES, &SOFTMAX, &COMMON, &INPUTS, &ROWS],
    subgroups: &[],
    source: wgsl!("attention_matrix.wgsl"),
    ..KERNEL
};

pub(super) static KERNEL_SPLIT: Kernel = Kernel {
    name: "attention_split",
    shared: &[&ATTENTION, &TANH, &SCORES, &SOFTMAX, &COMMON, &INPUTS],
    subgroups: &[],
    source: wgsl!("attention_split.wgsl"),
    bindings: &[Q, K, V, SEQUENCES, KEY_MASK, MASK, Binding::write("partial", 6, offset_of!(Params, out_offset)).single()],
    ..KERNEL
};

pub(super) static KERNEL_REDUCE: Kernel = Kernel {
    name: "attention_reduce",
    shared: &[&ATTENTION, &SOFTMAX, &COMMON, &ROWS],
    subgroups: &[],
    source: wgsl!("attention_reduce.wgsl"),
    bindings: &[Binding::read("partial", 1, 0, offset_of!(Params, q_offset)).single(), SEQUENCES, KEY_MASK, OUT, STATISTICS],
    ..KERNEL
};

/// The widest value head that `attention` takes.
pub const MAX_VALUE_SIZE: usize = 256;

/// out = softmax(scores(q, k)) · v, streaming over the keys.
///
/// What [`AttentionScores`](super::AttentionScores), [`MaskedSoftmax`](super::MaskedSoftmax) and
/// [`AttentionValues`](super::AttentionValues) do together, but with memory of O(T) (Dao, arXiv 2307.08691).
///
/// The attention weights come from a second pass, [`AttentionWeights`](super::AttentionWeights).
#[doc(alias("flash_attention", "scaled_dot_product_attention"))]
#[derive(Clone, Debug)]
pub struct FusedAttention {
    /// (q_rows, NH, HS)
    pub q: Tensor,
    /// (k_rows, NH_kv, HS); NH_kv divides NH
    pub k: Tensor,
    /// (k_rows, NH_kv, VS), VS at most 256
    pub v: Tensor,
    /// B, T and S: how many sequences there are, and the longest of each kind.
    pub sizes: [usize; 3],
    /// Options and masks.
    pub visibility: Visibility,
    /// (q_rows, NH, VS); rows that no sequence has are not written
    pub out: Tensor,
    /// `f32` (B, NH, T): the logarithm of the sum of exponentials of a row's scores. −∞ for a row with no visible key, and for those
    /// that a sequence lacks: every element is written.
    pub log_sum_exp: Option<Tensor>,
    /// `f32` (2, B, NH, T): of each row a score that exponentials are relative to, the largest or one near it, and the sum of
    /// exponentials of the distances to it, 0 where there is no visible key; what [`AttentionWeights`](super::AttentionWeights) reads. A logarithm would lose the sum beside a large score.
    /// Not together with `log_sum_exp`.
    pub statistics: Option<Tensor>,
    /// Whether the queries are new rows of texts whose keys are in a cache: with [`Options::batch_invariant`](crate::Options) a row's bits
    /// do not depend on how many came with it then.
    pub cached: bool,
}

impl FusedAttention {
    /// No second output, and queries that are no new rows over a cache.
    #[must_use]
    pub fn new(q: Tensor, k: Tensor, v: Tensor, sizes: [usize; 3], visibility: Visibility, out: Tensor) -> Self {
        Self { q, k, v, sizes, visibility, out, log_sum_exp: None, statistics: None, cached: false }
    }
}

impl Builder {
    /// Appends attention from projected queries, keys and values to output.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Option`] for value heads wider than 256, heads that do not
    /// divide and as [`AttentionOptions::check`](crate::AttentionOptions::check), [`Error::Alias`] for an out that is also read,
    /// [`Error::Limit`] for a tensor that exceeds a binding.
    pub fn attention(&mut self, label: &str, args: &FusedAttention) -> Result<()> {
        let FusedAttention { q, k, v, visibility, out, log_sum_exp, statistics, .. } = args;
        let shape = Shape::check(self, label, args)?;
        let Shape { element, batch, n_heads, n_kv_heads, head_size, value_size, longest_q, longest_k } = shape;
        let storage = self.storage_of(label, element, &[Some(*q), Some(*k), Some(*v), Some(*out)], &[])?;
        let case = Case {
            operation: Operation::Attention,
            kernel: "",
            storage,
            rows: longest_q,
            columns: value_size,
            depth: head_size,
            ragged_columns: false,
            invariant: self.batch_invariant(),
            cached: args.cached,
        };
        let mut choice = self.choice(&case);
        let splits = longest_k.div_ceil(choice.class.get("KEYS") as usize);
        let rows = batch.saturating_mul(n_heads).saturating_mul(longest_q);
        let parts = [splits, rows, 4 * (value_size.div_ceil(4) + 1)];
        let needed = parts.iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
        let allowed = self.binding_elements(Element::F32).min(MAX_ELEMENTS);
        if choice.kernel == KERNEL_SPLIT.name && needed > allowed {
            if case.invariant && case.cached {
                let what = format!("parts of {label}, batch invariant: fewer rows at once need less");
                let [needed, allowed] = [needed, allowed].map(|n| n.saturating_mul(4));
                return Err(Error::Limit { what, limit: "max_storage_buffer_binding_size", needed, allowed });
            }
            // Too many parts for a binding: what more queries would take.
            choice = self.unmeasured_choice(&Case { rows: usize::MAX, ..case });
        }
        let (kernel, queries) = if choice.kernel == KERNEL_MATRIX.name {
            (&KERNEL_MATRIX, choice.class.get("TILE_M"))
        } else if choice.kernel == KERNEL_SPLIT.name {
            (&KERNEL_SPLIT, choice.class.get("QUERIES"))
        } else {
            (&KERNEL, HEADS_QUERIES)
        };
        let tiles_m = (longest_q as u32).div_ceil(queries);
        let (kind, wanted) = match (log_sum_exp, statistics) {
            (None, None) => (0, None),
            (Some(_), None) => (1, *log_sum_exp),
            (None, Some(_)) => (2, *statistics),
            (Some(_), Some(_)) => {
                return Err(Error::option(format!("statistics of {label}"), "none beside log_sum_exp", "both"));
            }
        };
        let params = Params {
            tiles_m,
            batch: batch as u32,
            n_heads: n_heads as u32,
            heads_per_kv: (n_heads / n_kv_heads) as u32,
            head_size: head_size as u32,
            value_size: value_size as u32,
            longest_q: longest_q as u32,
            longest_k: longest_k as u32,
            q_row: q.layout().stride(0),
            q_head: q.layout().stride(1),
            k_row: k.layout().stride(0),
            k_head: k.layout().stride(1),
            v_row: v.layout().stride(0),
            v_head: v.layout().stride(1),
            out_row: out.layout().stride(0),
            out_head: out.layout().stride(1),
            statistics: kind,
            statistics_kind: stride(*statistics, 0),
            // Batch and head are the second and third last dimension of either.
            statistics_batch: if kind == 2 { stride(wanted, 1) } else { stride(wanted, 0) },
            statistics_head: if kind == 2 { stride(wanted, 2) } else { stride(wanted, 1) },
            splits: splits as u32,
            attention: visibility.params(head_size),
            ..Params::default()
        };
        if kernel.name == KERNEL_SPLIT.name {
            let partial = self.scratch("partial", Element::F32, Layout::contiguous(&parts)?)?;
            return self.attention_split(label, args, wanted, partial, params, Variant::of(kernel, &choice, storage, 0));
        }
        let product = |sizes: &[usize]| sizes.iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
        self.launch(Launch {
            label,
            variant: Variant::of(kernel, &choice, storage, 0),
            workgroups: product(&[tiles_m as usize, batch, n_heads]),
            params,
            operands: &[
                Some(*q),
                Some(*k),
                Some(*v),
                visibility.sequences,
                visibility.key_mask,
                visibility.mask,
                Some(*out),
                wanted,
            ],
            flops: product(&[2, rows, longest_k, head_size + value_size]),
            bytes: None,
        })
    }

    /// Parts of the keys side by side into scratch, then the rows from them.
    fn attention_split(
        &mut self,
        label: &str,
        args: &FusedAttention,
        wanted: Option<Tensor>,
        partial: Tensor,
        params: Params,
        variant: Variant,
    ) -> Result<()> {
        let FusedAttention { q, k, v, visibility, out, .. } = args;
        let rows = u64::from(params.batch) * u64::from(params.n_heads) * u64::from(params.longest_q);
        let tiles = u64::from(params.batch) * u64::from(params.n_heads) * u64::from(params.tiles_m);
        self.launch(Launch {
            label,
            variant,
            workgroups: tiles * u64::from(params.splits),
            params,
            operands: &[
                Some(*q),
                Some(*k),
                Some(*v),
                visibility.sequences,
                visibility.key_mask,
                visibility.mask,
                Some(partial),
            ],
            flops: 2 * rows * u64::from(params.longest_k) * u64::from(params.head_size + params.value_size),
            bytes: None,
        })?;
        let threads = rows * u64::from(params.value_size.div_ceil(4));
        self.launch_second(Launch {
            label: &format!("{label}.reduce"),
            variant: Variant::core(&KERNEL_REDUCE, &REDUCE, variant.storage.in_groups(false)),
            workgroups: threads.div_ceil(u64::from(REDUCE.get("THREADS"))),
            params,
            operands: &[Some(partial), visibility.sequences, visibility.key_mask, Some(*out), wanted],
            flops: 3 * rows * u64::from(params.splits) * u64::from(params.value_size),
            bytes: None,
        })
    }
}

/// The sizes of an attention, once its tensors are known to fit each other.
struct Shape {
    /// Of q, k, v and out.
    element: Element,
    batch: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_size: usize,
    value_size: usize,
    longest_q: usize,
    longest_k: usize,
}

impl Shape {
    fn check(builder: &Builder, label: &str, args: &FusedAttention) -> Result<Self> {
        let FusedAttention { q, k, v, sizes, visibility, out, log_sum_exp, statistics, cached: _ } = args;
        let &[batch, longest_q, longest_k] = sizes;
        for (name, size) in [("B", batch), ("T", longest_q), ("S", longest_k)] {
            crate::shape::nonzero(name, size)?;
            if size as u64 > MAX_ELEMENTS {
                return Err(Error::option(format!("{name} of {label}"), format!("at most {MAX_ELEMENTS}"), size));
            }
        }
        let &[q_rows, n_heads, head_size] = q.layout().sizes() else {
            return Err(Error::shape("q", "(q_rows, NH, HS)", q.layout()));
        };
        let &[k_rows, n_kv_heads, _] = k.layout().sizes() else {
            return Err(Error::shape("k", "(k_rows, NH_kv, HS)", k.layout()));
        };
        let &[_, _, value_size] = v.layout().sizes() else {
            return Err(Error::shape("v", "(k_rows, NH_kv, VS)", v.layout()));
        };
        if value_size > MAX_VALUE_SIZE {
            return Err(Error::option(
                format!("value head size of {label}"),
                format!("at most {MAX_VALUE_SIZE}"),
                value_size,
            ));
        }
        let scores = [batch, n_heads, longest_q, longest_k];
        let element = builder.float(label, "q", *q)?;
        builder.expect(label, "q", *q, element, &[q_rows, n_heads, head_size])?;
        builder.expect(label, "k", *k, element, &[k_rows, n_kv_heads, head_size])?;
        builder.expect(label, "v", *v, element, &[k_rows, n_kv_heads, value_size])?;
        builder.expect(label, "out", *out, element, &[q_rows, n_heads, value_size])?;
        if let Some(sums) = log_sum_exp {
            builder.expect(label, "log_sum_exp", *sums, Element::F32, &[batch, n_heads, longest_q])?;
        }
        if let Some(statistics) = statistics {
            builder.expect(label, "statistics", *statistics, Element::F32, &[2, batch, n_heads, longest_q])?;
        }
        heads_divide(n_heads, n_kv_heads)?;
        rows_fit("q", visibility, q_rows, batch, longest_q)?;
        rows_fit("k", visibility, k_rows, batch, longest_k)?;
        visibility.check(builder, label, scores)?;
        Ok(Self { element, batch, n_heads, n_kv_heads, head_size, value_size, longest_q, longest_k })
    }
}
