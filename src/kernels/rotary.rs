//! `rotary`: heads turned by angles of their row's position.

use super::stride;
use crate::builder::{Builder, Launch};
use crate::classes::FLAT;
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::{RotaryOrder, SEQUENCE_WORDS};
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
        size: u32,
        turned: u32,
        interleaved: u32,
        positions: u32,
        sequence_count: u32,
        sequence_stride: u32,
        id_stride: u32,
        x_row: u32,
        x_head: u32,
        y_row: u32,
        y_head: u32,
        table_row: u32,
        x_offset: u32,
        table_offset: u32,
        places_offset: u32,
        y_offset: u32,
    }
}

pub(super) static KERNEL: Kernel = Kernel {
    name: "rotary",
    shared: &[],
    subgroups: &[],
    parts: &[],
    source: wgsl!("rotary.wgsl"),
    bindings: &[
        Binding::read("table", 0, 1, offset_of!(Params, table_offset)).single(),
        Binding::read("x", 1, 0, offset_of!(Params, x_offset)),
        Binding::read("places", 1, 1, offset_of!(Params, places_offset)).single(),
        Binding::write("y", 2, offset_of!(Params, y_offset)),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// Where the rows of a [`Rotary`] stand.
#[derive(Clone, Copy, Debug)]
pub enum RotaryPositions {
    /// `u32` (B, 8) and the longest sequence: a row's position is its place in its sequence plus the sequence's offset. Rows that no
    /// sequence has are not written.
    Sequences(Tensor, usize),
    /// `u32` (rows): a position for each row.
    Ids(Tensor),
}

/// Rotary positions (Su et al., arXiv 2104.09864).
///
/// The first columns of each head are turned, two and two, by angles of the row's position; scores of turned queries and keys know the
/// distance between them alone.
#[doc(alias = "rope")]
#[derive(Clone, Copy, Debug)]
pub struct Rotary {
    /// (rows, heads, size)
    pub x: Tensor,
    /// `f32` (P, turned), cosines then sines of turned / 2 pairs, from [`rotary_table`](crate::spec::rotary_table); turned is even, and at
    /// most size: columns behind it are copied. A row whose position it lacks is copied too.
    pub table: Tensor,
    /// Which columns are a pair.
    pub order: RotaryOrder,
    /// Where the rows stand.
    pub positions: RotaryPositions,
    /// (rows, heads, size)
    pub y: Tensor,
}

impl Builder {
    /// Appends rotary positions.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Alias`] for a y that is also read, [`Error::Limit`] for one that
    /// exceeds a binding.
    pub fn rotary(&mut self, label: &str, args: &Rotary) -> Result<()> {
        let &Rotary { x, table, order, positions, y } = args;
        let &[rows, heads, size] = x.layout().sizes() else {
            return Err(Error::shape("x", "(rows, heads, size)", x.layout()));
        };
        let &[table_rows, turned] = table.layout().sizes() else {
            return Err(Error::shape("table", "(P, turned)", table.layout()));
        };
        let element = self.float(label, "x", x)?;
        self.expect(label, "x", x, element, &[rows, heads, size])?;
        self.expect(label, "y", y, element, &[rows, heads, size])?;
        if size < 2 {
            return Err(Error::shape("x", "heads of two columns at least, which are turned in pairs", x.layout()));
        }
        self.expect(label, "table", table, Element::F32, &[table_rows, turned.clamp(2, size) / 2 * 2])?;
        let (places, batch, longest) = match positions {
            RotaryPositions::Sequences(sequences, longest) => {
                crate::shape::nonzero("longest sequence", longest)?;
                let batch = sequences.layout().sizes()[0];
                self.expect(label, "sequences", sequences, Element::U32, &[batch, SEQUENCE_WORDS])?;
                (sequences, batch, longest)
            }
            RotaryPositions::Ids(ids) => {
                self.expect_strided(label, "position ids", ids, Element::U32, &[rows])?;
                (ids, 1, rows)
            }
        };
        let in_sequences = matches!(positions, RotaryPositions::Sequences(..));
        let groups = size.div_ceil(4);
        let items = [batch, longest, heads, groups].iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
        let workgroups = items.div_ceil(u64::from(FLAT.get("THREADS")));
        let params = Params {
            groups: groups as u32,
            workgroups: workgroups as u32,
            batch: batch as u32,
            longest: longest as u32,
            heads: heads as u32,
            size: size as u32,
            turned: turned as u32,
            interleaved: u32::from(order == RotaryOrder::Interleaved),
            positions: table_rows as u32,
            sequence_count: if in_sequences { batch as u32 } else { 0 },
            sequence_stride: stride(Some(places), 0),
            id_stride: stride(Some(places), 0),
            x_row: x.layout().stride(0),
            x_head: x.layout().stride(1),
            y_row: y.layout().stride(0),
            y_head: y.layout().stride(1),
            table_row: table.layout().stride(0),
            ..Params::default()
        };
        let storage = self.storage_of(label, element, &[Some(x), Some(y)], &[])?;
        self.launch(Launch {
            label,
            variant: Variant::core(&KERNEL, &FLAT, storage),
            workgroups,
            params,
            operands: &[Some(table), Some(x), Some(places), Some(y)],
            flops: 3 * (rows * heads * turned) as u64,
            bytes: None,
        })
    }
}
