//! `mark_seen`: the tokens of new rows as bits of their text.

use crate::builder::{Builder, Launch};
use crate::classes::FLAT;
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::SEQUENCE_WORDS;
use crate::storage::Storage;
use crate::tensor::Element;
use crate::variant::{Binding, Kernel, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        batch: u32,
        longest: u32,
        words: u32,
        id_stride: u32,
        sequence_row: u32,
        seen_row: u32,
        ids_offset: u32,
        sequences_offset: u32,
        seen_offset: u32,
    }
}

pub(super) static KERNEL: Kernel = Kernel {
    name: "mark_seen",
    shared: &[],
    subgroups: &[],
    parts: &[],
    source: wgsl!("mark_seen.wgsl"),
    bindings: &[
        Binding::read("ids", 1, 0, offset_of!(Params, ids_offset)).single(),
        Binding::read("sequences", 1, 1, offset_of!(Params, sequences_offset)).single(),
        Binding::write("seen", 2, offset_of!(Params, seen_offset)).single(),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// Adds the tokens of every sequence's new rows to what its text has, for the repetition penalty of [`Choose`](super::Choose).
///
/// A sequence that begins a text, at offset 0, forgets the text before it; one without new rows is left alone.
#[derive(Clone, Copy, Debug)]
pub struct MarkSeen {
    /// `u32` (rows), with any stride.
    pub ids: Tensor,
    /// `u32` (B, 8).
    pub sequences: Tensor,
    /// The most new rows of a sequence.
    pub longest: usize,
    /// `u32` (B, V / 32 rounded up), a bit a token. Ids that it has no bit for are left out.
    pub seen: Tensor,
}

impl Builder {
    /// Appends the marking of new rows' tokens.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Option`] for a longest sequence of 0 or past the rows,
    /// [`Error::Limit`] for a tensor that exceeds a binding.
    pub fn mark_seen(&mut self, label: &str, args: &MarkSeen) -> Result<()> {
        let &MarkSeen { ids, sequences, longest, seen } = args;
        let &[rows] = ids.layout().sizes() else {
            return Err(Error::shape("ids", "(rows)", ids.layout()));
        };
        let &[batch, words] = seen.layout().sizes() else {
            return Err(Error::shape("seen", "(B, words)", seen.layout()));
        };
        if !(1..=rows).contains(&longest) {
            return Err(Error::option("longest", format!("1 to {rows}"), longest));
        }
        self.expect_strided(label, "ids", ids, Element::U32, &[rows])?;
        self.expect(label, "sequences", sequences, Element::U32, &[batch, SEQUENCE_WORDS])?;
        self.expect(label, "seen", seen, Element::U32, &[batch, words])?;
        let params = Params {
            batch: batch as u32,
            longest: longest as u32,
            words: words as u32,
            id_stride: ids.layout().stride(0),
            sequence_row: sequences.layout().stride(0),
            seen_row: seen.layout().stride(0),
            ..Params::default()
        };
        self.launch(Launch {
            label,
            variant: Variant::core(&KERNEL, &FLAT, Storage::F32),
            workgroups: batch as u64,
            params,
            operands: &[Some(ids), Some(sequences), Some(seen)],
            flops: 0,
            bytes: None,
        })
    }
}
