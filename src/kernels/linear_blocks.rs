//! Projections by weights in blocks of integers: `linear_blocks` for few rows, and `unpack_blocks` in front of the forms for many. Their twins
//! are [`blocks::unpack`] and [`reference::linear`](crate::reference::linear()) over it.

use super::linear_few::{form, part_rows, rows_that_fit};
use super::{Linear, stride};
use crate::builder::{Builder, Launch};
use crate::classes::UNPACK;
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::shape::Layout;
use crate::spec::blocks;
use crate::storage::Storage;
use crate::tuning::{Case, FEW_ROWS, Operation};
use crate::variant::{ACTIVATE, Binding, Kernel, Source, TANH, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        rows: u32,
        d_in: u32,
        d_out: u32,
        bits: u32,
        x_row: u32,
        weight_row: u32,
        residual_row: u32,
        y_row: u32,
        activation: u32,
        bias: u32,
        residual: u32,
        x_offset: u32,
        weight_offset: u32,
        bias_offset: u32,
        residual_offset: u32,
        y_offset: u32,
    }
}

params! {
    UnpackParams {
        rows: u32,
        groups: u32,
        workgroups: u32,
        bits: u32,
        weight_row: u32,
        y_row: u32,
        weight_offset: u32,
        y_offset: u32,
    }
}

const PARTS: Source = wgsl!("shared/blocks.wgsl");

pub(super) static KERNEL: Kernel = Kernel {
    name: "linear_blocks",
    shared: &[&TANH, &ACTIVATE, &PARTS],
    subgroups: &[],
    parts: &[],
    source: wgsl!("linear_blocks.wgsl"),
    bindings: &[
        Binding::read("weight", 0, 1, offset_of!(Params, weight_offset)).single(),
        Binding::read("bias", 0, 2, offset_of!(Params, bias_offset)),
        Binding::read("x", 1, 0, offset_of!(Params, x_offset)),
        Binding::read("residual", 1, 1, offset_of!(Params, residual_offset)),
        Binding::write("y", 2, offset_of!(Params, y_offset)),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

pub(super) static KERNEL_UNPACK: Kernel = Kernel {
    name: "unpack_blocks",
    shared: &[&PARTS],
    subgroups: &[],
    parts: &[],
    source: wgsl!("unpack_blocks.wgsl"),
    bindings: &[
        Binding::read("weight", 0, 1, offset_of!(UnpackParams, weight_offset)).single(),
        Binding::write("y", 0, offset_of!(UnpackParams, y_offset)),
    ],
    params_size: size_of::<UnpackParams>(),
    params_fields: UnpackParams::FIELDS,
};

/// Words of a unit, by which the shaders load blocks.
const UNIT: u32 = 4;

impl Builder {
    /// Whether a tensor is a weight in blocks.
    pub(crate) fn is_in_blocks(&self, tensor: Tensor) -> bool {
        self.element(tensor).block_bits().is_some()
    }

    /// A projection whose tensors are checked and whose weight is in blocks: as it is for few rows, else unpacked first, once for all rows in
    /// place of once for every four. `cached` is as in [`Builder::few_rows`].
    pub(crate) fn linear_in_blocks(&mut self, label: &str, linear: &Linear, cached: bool) -> Result<()> {
        let (rows, d_in, d_out) = linear.sizes();
        self.set_columns(label, linear.weight, d_in)?;
        let few = if self.batch_invariant() { cached } else { rows <= FEW_ROWS };
        let element = self.element(linear.x);
        let row = d_in.next_multiple_of(4);
        let (whole, unpacked) = (part_rows(self, linear.weight), rows_that_fit(self, element, row, d_out));
        for part in linear.in_parts(if few { whole } else { whole.min(unpacked) })? {
            if few {
                self.launch_blocks(label, &part)?;
                continue;
            }
            let rows = part.weight.layout().sizes()[0];
            let padded = self.scratch("weight", element, Layout::contiguous(&[rows, row])?)?;
            self.unpack_blocks(&format!("{label}.unpack"), part.weight, padded)?;
            self.linear_part(label, &Linear { weight: padded.narrow(1, 0, d_in)?, ..part })?;
        }
        Ok(())
    }

    fn launch_blocks(&mut self, label: &str, linear: &Linear) -> Result<()> {
        let &Linear { x, weight, bias, activation, residual, y } = linear;
        let (rows, d_in, d_out) = linear.sizes();
        let storage = self.storage_of(label, self.element(x), &[Some(x), bias, residual, Some(y)], &[])?;
        let case =
            Case { rows, columns: d_out, depth: d_in, ..self.few_case(Operation::LinearBlocks, KERNEL.name, storage) };
        let choice = self.choice(&case);
        let columns = u64::from(4 * choice.class.get("THREADS") / choice.class.get("K_THREADS"));
        let params = Params {
            rows: rows as u32,
            d_in: d_in as u32,
            d_out: d_out as u32,
            bits: self.element(weight).block_bits().unwrap_or(8),
            x_row: x.layout().stride(0),
            weight_row: weight.layout().stride(0) / UNIT,
            residual_row: stride(residual, 0),
            y_row: y.layout().stride(0),
            activation: activation as u32,
            bias: u32::from(bias.is_some()),
            residual: u32::from(residual.is_some()),
            ..Params::default()
        };
        self.launch(Launch {
            label,
            variant: Variant::of(&KERNEL, &choice, form(storage, &choice), 0),
            workgroups: (rows as u64).div_ceil(u64::from(choice.class.get("ROWS"))) * (d_out as u64).div_ceil(columns),
            params,
            operands: &[Some(weight), bias, Some(x), residual, Some(y)],
            flops: 2 * rows as u64 * d_in as u64 * d_out as u64,
            bytes: None,
        })
    }

    /// Appends y (d_out, whole groups of four columns) = what the blocks of a weight stand for.
    fn unpack_blocks(&mut self, label: &str, weight: Tensor, y: Tensor) -> Result<()> {
        let [rows, groups] = [y.layout().sizes()[0], y.layout().sizes()[1] / 4];
        let storage = Storage::of(self.element(y), self.kernels().class().f16(), true);
        let workgroups = (rows as u64 * groups as u64).div_ceil(u64::from(UNPACK.get("THREADS") * UNPACK.get("PASSES")));
        let params = UnpackParams {
            rows: rows as u32,
            groups: groups as u32,
            workgroups: u32::try_from(workgroups).unwrap_or(u32::MAX),
            bits: self.element(weight).block_bits().unwrap_or(8),
            weight_row: weight.layout().stride(0) / UNIT,
            y_row: y.layout().stride(0),
            ..UnpackParams::default()
        };
        self.launch(Launch {
            label,
            variant: Variant::core(&KERNEL_UNPACK, &UNPACK, storage),
            workgroups,
            params,
            operands: &[Some(weight), Some(y)],
            flops: rows as u64 * 4 * groups as u64,
            bytes: None,
        })
    }

    /// The weight (d_out, d_in) of a projection, in blocks where [`Builder::with_weights`] says so.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn projection_weight(&mut self, name: &str, [d_out, d_in]: [usize; 2]) -> Result<Tensor> {
        let element = self.weights();
        let weight = self.weight_as(name, element, Layout::contiguous(&blocks::stored_sizes(element, &[d_out, d_in]))?)?;
        if self.is_in_blocks(weight) {
            self.set_columns(name, weight, d_in)?;
        }
        Ok(weight)
    }

    /// Refuses a weight in blocks that is not (d_out, d_in).
    pub(super) fn expect_blocks(&self, label: &str, weight: Tensor, d_in: usize) -> Result<()> {
        let element = self.element(weight);
        let d_out = weight.layout().sizes().first().copied().unwrap_or(0);
        let words = blocks::row_words(element, d_in);
        self.expect(label, "weight", weight, element, &[d_out, words])?;
        let gaps = !weight.layout().stride(0).is_multiple_of(UNIT) || !weight.offset.is_multiple_of(u64::from(UNIT));
        if gaps {
            let name = self.part_name(label, "weight", weight);
            return Err(Error::shape(name, "rows of blocks from a multiple of four words on", weight.layout()));
        }
        Ok(())
    }
}
