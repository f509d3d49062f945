//! `cache_append`: projected keys and values of new rows into a key/value cache.

use super::key_rows;
use crate::builder::{Builder, Launch};
use crate::classes::FLAT;
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::SEQUENCE_WORDS;
use crate::tensor::Element;
use crate::variant::{Binding, Kernel, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        groups: u32,
        workgroups: u32,
        batch: u32,
        longest: u32,
        heads: u32,
        head_size: u32,
        value_size: u32,
        capacity: u32,
        key_rows: u32,
        sequence_stride: u32,
        k_row: u32,
        k_head: u32,
        v_row: u32,
        v_head: u32,
        cache_kind: u32,
        cache_head: u32,
        cache_row: u32,
        k_offset: u32,
        v_offset: u32,
        sequences_offset: u32,
        cache_offset: u32,
    }
}

pub(super) static KERNEL: Kernel = Kernel {
    name: "cache_append",
    shared: &[],
    subgroups: &[],
    parts: &[],
    source: wgsl!("cache_append.wgsl"),
    bindings: &[
        Binding::read("k", 1, 0, offset_of!(Params, k_offset)),
        Binding::read("v", 1, 1, offset_of!(Params, v_offset)),
        Binding::read("sequences", 1, 2, offset_of!(Params, sequences_offset)).single(),
        Binding::write("cache", 3, offset_of!(Params, cache_offset)),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// Keys and values of each sequence's new rows into its slot of a cache.
///
/// New row t is key number `k_len − q_len + t`, from [`Sequence::k_start`](crate::Sequence) on. A key that a slot has no room for is
/// not written.
#[doc(alias = "kv_cache")]
#[derive(Clone, Copy, Debug)]
pub struct CacheAppend {
    /// (rows, NH_kv, HS)
    pub k: Tensor,
    /// (rows, NH_kv, VS)
    pub v: Tensor,
    /// `u32` (B, 8) with `k_start` = slot · NH_kv · S, as [`CacheShape`](crate::spec::cache::CacheShape) makes them
    pub sequences: Tensor,
    /// The most new rows of a sequence.
    pub longest: usize,
    /// (2, slots, NH_kv, S, W), W at least HS and VS; slots and heads without gaps
    pub cache: Tensor,
}

impl Builder {
    /// Appends keys and values to a cache.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Alias`] for a k or v in the cache's buffer, [`Error::Limit`] for a
    /// tensor that exceeds a binding.
    pub fn cache_append(&mut self, label: &str, args: &CacheAppend) -> Result<()> {
        let &CacheAppend { k, v, sequences, longest, cache } = args;
        let (&[rows, heads, head_size], &[_, _, value_size]) = (k.layout().sizes(), v.layout().sizes()) else {
            let found = format!("{} and {}", k.layout(), v.layout());
            return Err(Error::shape(label, "k (rows, NH_kv, HS) and v (rows, NH_kv, VS)", found));
        };
        let &[_, slots, _, capacity, width] = cache.layout().sizes() else {
            return Err(Error::shape("cache", "(2, slots, NH_kv, S, W)", cache.layout()));
        };
        let &[batch, _] = sequences.layout().sizes() else {
            return Err(Error::shape("sequences", "(B, 8)", sequences.layout()));
        };
        let element = self.float(label, "k", k)?;
        self.expect(label, "k", k, element, &[rows, heads, head_size])?;
        self.expect(label, "v", v, element, &[rows, heads, value_size])?;
        let width = width.max(head_size).max(value_size);
        self.expect(label, "cache", cache, element, &[2, slots, heads, capacity, width])?;
        let strides = cache.layout().strides();
        if strides[1] != heads * strides[2] || strides[2] != capacity * strides[3] {
            return Err(Error::shape("cache", "slots and heads without gaps", cache.layout()));
        }
        self.expect(label, "sequences", sequences, Element::U32, &[batch, SEQUENCE_WORDS])?;
        crate::shape::nonzero("longest", longest)?;
        let groups = head_size.max(value_size).div_ceil(4);
        let items = [batch, longest, 2, heads, groups].iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
        let workgroups = items.div_ceil(u64::from(FLAT.get("THREADS")));
        let params = Params {
            groups: groups as u32,
            workgroups: workgroups as u32,
            batch: batch as u32,
            longest: longest as u32,
            heads: heads as u32,
            head_size: head_size as u32,
            value_size: value_size as u32,
            capacity: capacity as u32,
            key_rows: key_rows(cache),
            sequence_stride: sequences.layout().stride(0),
            k_row: k.layout().stride(0),
            k_head: k.layout().stride(1),
            v_row: v.layout().stride(0),
            v_head: v.layout().stride(1),
            cache_kind: cache.layout().stride(0),
            cache_head: cache.layout().stride(2),
            // Of slots with one key too: a row's number counts keys of all slots and heads.
            cache_row: strides[3] as u32,
            ..Params::default()
        };
        let storage = self.storage_of(label, element, &[Some(k), Some(v), Some(cache)], &[])?;
        self.launch(Launch {
            label,
            variant: Variant::core(&KERNEL, &FLAT, storage),
            workgroups,
            params,
            operands: &[Some(k), Some(v), Some(sequences), Some(cache)],
            flops: 0,
            bytes: Some(2 * element.size() * (rows * heads * (head_size + value_size)) as u64),
        })
    }
}
