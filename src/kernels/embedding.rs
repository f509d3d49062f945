//! `embedding`: scale · token + position + segment, and positions added to rows.

use super::stride;
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
        columns: u32,
        scale: f32,
        first_position: u32,
        vocabulary: u32,
        part_first: u32,
        part_rows: u32,
        positions: u32,
        segments: u32,
        add: u32,
        sequence_count: u32,
        sequence_stride: u32,
        id_stride: u32,
        segment_id_stride: u32,
        token_row: u32,
        position_row: u32,
        segment_row: u32,
        add_row: u32,
        y_row: u32,
        token_offset: u32,
        position_offset: u32,
        segment_offset: u32,
        ids_offset: u32,
        segment_ids_offset: u32,
        sequences_offset: u32,
        add_offset: u32,
        y_offset: u32,
    }
}

pub(super) static KERNEL: Kernel = Kernel {
    name: "embedding",
    shared: &[],
    subgroups: &[],
    parts: &[],
    source: wgsl!("embedding.wgsl"),
    bindings: &[
        Binding::read("token", 0, 1, offset_of!(Params, token_offset)),
        Binding::read("position", 0, 2, offset_of!(Params, position_offset)),
        Binding::read("segment", 0, 3, offset_of!(Params, segment_offset)),
        Binding::read("ids", 1, 0, offset_of!(Params, ids_offset)).single(),
        Binding::read("segment_ids", 1, 1, offset_of!(Params, segment_ids_offset)).single(),
        Binding::read("sequences", 1, 2, offset_of!(Params, sequences_offset)).single(),
        Binding::read("add", 1, 3, offset_of!(Params, add_offset)),
        Binding::write("y", 4, offset_of!(Params, y_offset)),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// `y[row] = scale · token[ids[row]] + position[p] + segment[segment_ids[row]] + add[row]`, each part optional.
///
/// The position p of a row is its place in its sequence plus the sequence's offset plus `first_position`. An id, position or
/// segment outside its table gives a row of zeros.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingRows {
    /// `u32` (rows), with any stride, and (V, columns). A table larger than a binding is split over several dispatches.
    pub tokens: Option<(Tensor, Tensor)>,
    /// (P, columns), learned or from [`sinusoidal_positions`](crate::spec::sinusoidal_positions).
    pub positions: Option<Tensor>,
    /// `u32` (rows) and (G, columns).
    pub segments: Option<(Tensor, Tensor)>,
    /// (rows, columns), added as it is: positions before every layer are this with `positions`.
    pub add: Option<Tensor>,
    /// `u32` (B, 8) and the longest sequence; without them all rows are one sequence from position 0.
    pub sequences: Option<(Tensor, usize)>,
    /// Multiplies the token's row.
    pub scale: f32,
    /// Row of the position table that position 0 has.
    pub first_position: usize,
    /// (rows, columns); rows that no sequence has are not written
    pub y: Tensor,
}

impl EmbeddingRows {
    /// `y[row] = token[ids[row]]`.
    #[must_use]
    pub fn new(ids: Tensor, token: Tensor, y: Tensor) -> Self {
        Self { tokens: Some((ids, token)), ..Self::adding(y) }
    }

    /// Nothing yet; set what is added.
    #[must_use]
    pub fn adding(y: Tensor) -> Self {
        Self { tokens: None, positions: None, segments: None, add: None, sequences: None, scale: 1.0, first_position: 0, y }
    }
}

impl Builder {
    /// Appends a sum of table rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Option`] for a scale that is not finite or a first
    /// position past 2³⁰, [`Error::Alias`] for a y that is also read, [`Error::Limit`] for a tensor other than the token table
    /// that exceeds a binding.
    pub fn embedding(&mut self, label: &str, args: &EmbeddingRows) -> Result<()> {
        let &EmbeddingRows { tokens, positions, segments, add, sequences, scale, first_position, y } = args;
        let &[rows, columns] = y.layout().sizes() else {
            return Err(Error::shape("y", "(rows, columns)", y.layout()));
        };
        let element = self.float(label, "y", y)?;
        self.expect(label, "y", y, element, &[rows, columns])?;
        for (ids, table) in [tokens, segments].into_iter().flatten() {
            self.expect_strided(label, "ids", ids, Element::U32, &[rows])?;
            self.expect_table(label, table, element, columns)?;
        }
        if let Some(table) = positions {
            self.expect_table(label, table, element, columns)?;
        }
        if let Some(add) = add {
            self.expect(label, "add", add, element, &[rows, columns])?;
        }
        if let Some((sequences, longest)) = sequences {
            crate::shape::nonzero("longest sequence", longest)?;
            if longest > 1 << 30 {
                return Err(Error::option("longest sequence", "at most 2^30", longest));
            }
            self.expect(label, "sequences", sequences, Element::U32, &[sequences.layout().sizes()[0], SEQUENCE_WORDS])?;
        }
        if !scale.is_finite() {
            return Err(Error::option("scale", "a finite number", scale));
        }
        if first_position > 1 << 30 {
            return Err(Error::option("first_position", "at most 2^30", first_position));
        }
        let table_rows = |t: Option<Tensor>| t.map_or(0, |t| t.layout().size(0));
        let (batch, longest) = sequences.map_or((1, rows), |(s, longest)| (s.layout().sizes()[0], longest));
        let groups = columns.div_ceil(4) as u64;
        let workgroups = (batch as u64 * longest as u64).saturating_mul(groups).div_ceil(u64::from(FLAT.get("THREADS")));
        let params = Params {
            groups: groups as u32,
            workgroups: workgroups as u32,
            batch: batch as u32,
            longest: longest as u32,
            columns: columns as u32,
            scale,
            first_position: first_position as u32,
            vocabulary: table_rows(tokens.map(|(_, table)| table)),
            positions: table_rows(positions),
            segments: table_rows(segments.map(|(_, table)| table)),
            add: u32::from(add.is_some()),
            sequence_count: sequences.map_or(0, |_| batch as u32),
            sequence_stride: stride(sequences.map(|(s, _)| s), 0),
            id_stride: stride(tokens.map(|(ids, _)| ids), 0),
            segment_id_stride: stride(segments.map(|(ids, _)| ids), 0),
            token_row: stride(tokens.map(|(_, table)| table), 0),
            position_row: stride(positions, 0),
            segment_row: stride(segments.map(|(_, table)| table), 0),
            add_row: stride(add, 0),
            y_row: y.layout().stride(0),
            ..Params::default()
        };
        // As many rows of the token table as fit a binding.
        let vocabulary = params.vocabulary as usize;
        let fitting =
            tokens.map_or(0, |(_, t)| self.binding_elements(element) / t.layout().strides()[0].max(columns) as u64);
        let part_rows = if fitting >= vocabulary as u64 { vocabulary } else { (fitting as usize / 64 * 64).max(1) };
        for first in (0..vocabulary.max(1)).step_by(part_rows.max(1)) {
            let size = part_rows.min(vocabulary - first);
            let token = tokens.map(|(_, table)| table.narrow(0, first, size)).transpose()?;
            let segment = segments.map(|(_, table)| table);
            let storage = self.storage_of(label, element, &[token, positions, segment, add, Some(y)], &[])?;
            self.launch(Launch {
                label,
                variant: Variant::core(&KERNEL, &FLAT, storage),
                workgroups,
                params: Params { part_first: first as u32, part_rows: size as u32, ..params },
                operands: &[
                    token,
                    positions,
                    segment,
                    tokens.map(|(ids, _)| ids),
                    segments.map(|(ids, _)| ids),
                    sequences.map(|(s, _)| s),
                    add,
                    Some(y),
                ],
                flops: 3 * rows as u64 * columns as u64,
                bytes: Some(2 * element.size() * rows as u64 * columns as u64),
            })?;
        }
        Ok(())
    }

    fn expect_table(&self, label: &str, table: Tensor, element: Element, columns: usize) -> Result<()> {
        let rows = table.layout().sizes()[0];
        self.expect(label, "table", table, element, &[rows, columns])
    }
}
