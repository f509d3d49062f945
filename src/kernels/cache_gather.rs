//! `cache_gather`: slots of one key/value cache into the slots of another.

use super::stride;
use crate::builder::{Builder, Launch};
use crate::classes::FLAT;
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::tensor::Element;
use crate::variant::{Binding, Kernel, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        groups: u32,
        workgroups: u32,
        columns: u32,
        heads: u32,
        count: u32,
        keys: u32,
        from_slots: u32,
        from_kind: u32,
        from_slot: u32,
        from_head: u32,
        from_row: u32,
        to_kind: u32,
        to_slot: u32,
        to_head: u32,
        to_row: u32,
        parent_stride: u32,
        length_stride: u32,
        lengths_bound: u32,
        from_offset: u32,
        parents_offset: u32,
        lengths_offset: u32,
        to_offset: u32,
    }
}

pub(super) static KERNEL: Kernel = Kernel {
    name: "cache_gather",
    shared: &[],
    subgroups: &[],
    parts: &[],
    source: wgsl!("cache_gather.wgsl"),
    bindings: &[
        Binding::read("origin", 1, 0, offset_of!(Params, from_offset)),
        Binding::read("parents", 1, 1, offset_of!(Params, parents_offset)).single(),
        Binding::read("lengths", 1, 2, offset_of!(Params, lengths_offset)).single(),
        Binding::write("to", 3, offset_of!(Params, to_offset)),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// Slot i of `to` = slot `parents[i]` of `from`, for i below the number of parents: the beams that go on, or texts that begin with
/// a prefix which is in a cache already.
#[derive(Clone, Copy, Debug)]
pub struct CacheGather {
    /// (2, slots, NH_kv, S, W)
    pub from: Tensor,
    /// `u32` (n), with any stride; one that `from` lacks leaves its slot as it is
    pub parents: Tensor,
    /// `u32` (n), with any stride: how many keys and values of each slot are copied; `None` copies as many as both caches can hold
    pub lengths: Option<Tensor>,
    /// (2, slots of its own, NH_kv, S of its own, W), in another buffer; n ≤ its slots
    pub to: Tensor,
}

impl Builder {
    /// Appends a gather of slots.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Alias`] for a cache that is both, [`Error::Limit`] for one that
    /// exceeds a binding.
    pub fn cache_gather(&mut self, label: &str, args: &CacheGather) -> Result<()> {
        let &CacheGather { from, parents, lengths, to } = args;
        let &[_, from_slots, heads, from_keys, columns] = from.layout().sizes() else {
            return Err(Error::shape("from", "(2, slots, NH_kv, S, W)", from.layout()));
        };
        let &[_, to_slots, _, to_keys, _] = to.layout().sizes() else {
            return Err(Error::shape("to", "(2, slots, NH_kv, S, W)", to.layout()));
        };
        let &[count] = parents.layout().sizes() else {
            return Err(Error::shape("parents", "(n)", parents.layout()));
        };
        let element = self.float(label, "from", from)?;
        self.expect(label, "from", from, element, &[2, from_slots, heads, from_keys, columns])?;
        self.expect(label, "to", to, element, &[2, to_slots, heads, to_keys, columns])?;
        self.expect_strided(label, "parents", parents, Element::U32, &[count.min(to_slots)])?;
        if let Some(lengths) = lengths {
            self.expect_strided(label, "lengths", lengths, Element::U32, &[count])?;
        }
        let keys = from_keys.min(to_keys);
        let groups = columns.div_ceil(4);
        let items = [2, count, heads, keys, groups].iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
        let workgroups = items.div_ceil(u64::from(FLAT.get("THREADS")));
        let params = Params {
            groups: groups as u32,
            workgroups: workgroups as u32,
            columns: columns as u32,
            heads: heads as u32,
            count: count as u32,
            keys: keys as u32,
            from_slots: from_slots as u32,
            from_kind: from.layout().stride(0),
            from_slot: from.layout().stride(1),
            from_head: from.layout().stride(2),
            from_row: from.layout().stride(3),
            to_kind: to.layout().stride(0),
            to_slot: to.layout().stride(1),
            to_head: to.layout().stride(2),
            to_row: to.layout().stride(3),
            parent_stride: parents.layout().stride(0),
            length_stride: stride(lengths, 0),
            lengths_bound: u32::from(lengths.is_some()),
            ..Params::default()
        };
        self.launch(Launch {
            label,
            variant: Variant::core(&KERNEL, &FLAT, self.storage_of(label, element, &[Some(from), Some(to)], &[])?),
            workgroups,
            params,
            operands: &[Some(from), Some(parents), lengths, Some(to)],
            flops: 0,
            bytes: Some(2 * items * 4 * element.size()),
        })
    }
}
