//! `pool`: one row of each sequence.

use crate::builder::{Builder, Launch};
use crate::classes::FLAT;
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::{Pooling, SEQUENCE_WORDS};
use crate::tensor::Element;
use crate::variant::{Binding, Kernel, ROOT, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        sequences: u32,
        longest: u32,
        columns: u32,
        only_first: u32,
        normalize: u32,
        x_row: u32,
        sequence_stride: u32,
        y_row: u32,
        x_offset: u32,
        sequences_offset: u32,
        y_offset: u32,
    }
}

pub(super) static KERNEL: Kernel = Kernel {
    name: "pool",
    shared: &[&ROOT],
    subgroups: &[],
    parts: &[],
    source: wgsl!("pool.wgsl"),
    bindings: &[
        Binding::read("x", 1, 0, offset_of!(Params, x_offset)),
        Binding::read("sequences", 1, 1, offset_of!(Params, sequences_offset)).single(),
        Binding::write("y", 2, offset_of!(Params, y_offset)),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// One row of each sequence: its first, as BERT's pooler reads it, or the mean, as a sentence embedding is (Reimers and Gurevych, arXiv 1908.10084).
///
/// The rows of a sequence are those that are keys, `k_start .. k_start + k_len`: padding is never read. A sequence without rows
/// gives zeros.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// (rows, columns)
    pub x: Tensor,
    /// `u32` (B, 8)
    pub sequences: Tensor,
    /// The most rows of a sequence; what is behind them does not count.
    pub longest: usize,
    /// Which rows count.
    pub pooling: Pooling,
    /// Whether y is scaled to length 1, y / max(‖y‖, 1e-12).
    pub normalize: bool,
    /// (B, columns)
    pub y: Tensor,
}

impl Builder {
    /// Appends a pooling of rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Option`] for a longest sequence of 0 or past 2³⁰,
    /// [`Error::Alias`] for a y that is also read, [`Error::Limit`] for a tensor that exceeds a binding.
    pub fn pool(&mut self, label: &str, args: &Pool) -> Result<()> {
        let &Pool { x, sequences, longest, pooling, normalize, y } = args;
        let &[rows, columns] = x.layout().sizes() else {
            return Err(Error::shape("x", "(rows, columns)", x.layout()));
        };
        let element = self.float(label, "x", x)?;
        let batch = sequences.layout().sizes()[0];
        self.expect(label, "x", x, element, &[rows, columns])?;
        self.expect(label, "sequences", sequences, Element::U32, &[batch, SEQUENCE_WORDS])?;
        self.expect(label, "y", y, element, &[batch, columns])?;
        if longest == 0 || longest > 1 << 30 {
            return Err(Error::option("longest sequence", "from 1 to 2^30", longest));
        }
        let storage = self.storage_of(label, element, &[Some(x), Some(y)], &[])?;
        let params = Params {
            sequences: batch as u32,
            longest: longest as u32,
            columns: columns as u32,
            only_first: u32::from(pooling == Pooling::First),
            normalize: u32::from(normalize),
            x_row: x.layout().stride(0),
            sequence_stride: sequences.layout().stride(0),
            y_row: y.layout().stride(0),
            ..Params::default()
        };
        let read = if pooling == Pooling::First { batch } else { rows } as u64;
        self.launch(Launch {
            label,
            variant: Variant::core(&KERNEL, &FLAT, storage),
            workgroups: batch as u64,
            params,
            operands: &[Some(x), Some(sequences), Some(y)],
            flops: read * columns as u64,
            bytes: Some(element.size() * (read + batch as u64) * columns as u64),
        })
    }
}
