//! `linear` and `linear_few`: y = activation(x · Wᵀ + bias) + residual, as tiles or for a few rows.

use super::stride;
use crate::builder::{Builder, Launch};
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::Activation;
use crate::tuning::{Case, Operation};
use crate::variant::{ACTIVATE, Binding, Kernel, Source, TILE, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        rows: u32,
        d_in: u32,
        d_out: u32,
        tiles_m: u32,
        tiles_n: u32,
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

const COMMON: Source = wgsl!("shared/linear.wgsl");

/// The bindings of both forms.
const BINDINGS: &[Binding] = &[
    Binding::read("weight", 0, 1, offset_of!(Params, weight_offset)),
    Binding::read("bias", 0, 2, offset_of!(Params, bias_offset)),
    Binding::read("x", 1, 0, offset_of!(Params, x_offset)),
    Binding::read("residual", 1, 1, offset_of!(Params, residual_offset)),
    Binding::write("y", 2, offset_of!(Params, y_offset)),
];

pub(super) static KERNEL: Kernel = Kernel {
    name: "linear",
    shared: &[&TILE, &ACTIVATE, &COMMON],
    subgroups: &[],
    parts: &[],
    source: wgsl!("linear.wgsl"),
    bindings: BINDINGS,
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

pub(super) static KERNEL_FEW: Kernel =
    Kernel { name: "linear_few", shared: &[&ACTIVATE, &COMMON], source: wgsl!("linear_few.wgsl"), ..KERNEL };

pub(super) static KERNEL_MATRIX: Kernel =
    Kernel { name: "linear_matrix", shared: &[&ACTIVATE, &COMMON], source: wgsl!("linear_matrix.wgsl"), ..KERNEL };

/// y = activation(x · Wᵀ + bias) + residual, everything in one dispatch.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// (rows, d_in)
    pub x: Tensor,
    /// (d_out, d_in), as PyTorch keeps it. One larger than a binding is split over several dispatches.
    pub weight: Tensor,
    /// (d_out)
    pub bias: Option<Tensor>,
    /// Between bias and residual.
    pub activation: Activation,
    /// (rows, d_out)
    pub residual: Option<Tensor>,
    /// (rows, d_out)
    pub y: Tensor,
}

impl Linear {
    /// y = x · Wᵀ.
    #[must_use]
    pub fn new(x: Tensor, weight: Tensor, y: Tensor) -> Self {
        Self { x, weight, bias: None, activation: Activation::Identity, residual: None, y }
    }
}

impl Builder {
    /// Appends y = activation(x · Wᵀ + bias) + residual.
    ///
    /// One to eight rows take a form that reads each weight once and has no tile to leave empty, unless
    /// [`Options::batch_invariant`](crate::Options) is set.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Alias`] for a y that is also read, [`Error::Limit`] for a
    /// tensor other than the weight that exceeds a binding.
    pub fn linear(&mut self, label: &str, linear: &Linear) -> Result<()> {
        let &Linear { x, weight, bias, residual, y, .. } = linear;
        let (&[rows, d_in], &[d_out, _]) = (x.layout().sizes(), weight.layout().sizes()) else {
            return Err(Error::shape(
                label,
                "x (rows, d_in) and weight (d_out, d_in)",
                format!("{} and {}", x.layout(), weight.layout()),
            ));
        };
        let element = self.float(label, "x", x)?;
        self.expect(label, "x", x, element, &[rows, d_in])?;
        self.expect(label, "weight", weight, element, &[d_out, d_in])?;
        self.expect(label, "y", y, element, &[rows, d_out])?;
        if let Some(bias) = bias {
            self.expect(label, "bias", bias, element, &[d_out])?;
        }
        if let Some(residual) = residual {
            self.expect(label, "residual", residual, element, &[rows, d_out])?;
        }
        // As many rows of the weight as fit a binding, a multiple of a tile.
        let weight_row = weight.layout().strides()[0].max(d_in) as u64;
        let fitting = self.binding_elements(element) / weight_row;
        let part_rows = if fitting >= d_out as u64 { d_out } else { (fitting as usize / 64 * 64).max(1) };
        for first in (0..d_out).step_by(part_rows) {
            let size = part_rows.min(d_out - first);
            let part = Linear {
                weight: weight.narrow(0, first, size)?,
                bias: bias.map(|b| b.narrow(0, first, size)).transpose()?,
                residual: residual.map(|r| r.narrow(1, first, size)).transpose()?,
                y: y.narrow(1, first, size)?,
                ..*linear
            };
            self.linear_part(label, &part)?;
        }
        Ok(())
    }

    fn linear_part(&mut self, label: &str, linear: &Linear) -> Result<()> {
        let &Linear { x, weight, bias, activation, residual, y } = linear;
        let (x_layout, y_layout) = (x.layout(), y.layout());
        let (rows, d_in, d_out) = (x_layout.sizes()[0], x_layout.sizes()[1], y_layout.sizes()[1]);
        let invariant = self.batch_invariant();
        let storage = self.storage_of(label, self.element(x), &[Some(x), Some(weight), bias, residual, Some(y)], &[])?;
        let choice = self.choose(&Case {
            operation: Operation::Linear,
            kernel: "",
            storage,
            rows,
            columns: d_out,
            depth: d_in,
            ragged_columns: false,
            invariant,
        });
        let class = choice.class;
        let (kernel, tile_m, tile_n) = if choice.kernel == KERNEL_FEW.name {
            (&KERNEL_FEW, class.get("ROWS"), 4 * class.get("THREADS") / class.get("K_THREADS"))
        } else if choice.kernel == KERNEL_MATRIX.name {
            (&KERNEL_MATRIX, class.get("TILE_M"), class.get("TILE_N"))
        } else {
            (&KERNEL, class.get("TILE_M"), class.get("TILE_N"))
        };
        let (tiles_m, tiles_n) = ((rows as u32).div_ceil(tile_m), (d_out as u32).div_ceil(tile_n));
        let params = Params {
            rows: rows as u32,
            d_in: d_in as u32,
            d_out: d_out as u32,
            tiles_m,
            tiles_n,
            x_row: x_layout.stride(0),
            weight_row: weight.layout().stride(0),
            residual_row: stride(residual, 0),
            y_row: y_layout.stride(0),
            activation: activation as u32,
            bias: u32::from(bias.is_some()),
            residual: u32::from(residual.is_some()),
            ..Params::default()
        };
        self.launch(Launch {
            label,
            variant: Variant::of(kernel, &choice, storage, 0),
            workgroups: u64::from(tiles_m) * u64::from(tiles_n),
            params,
            operands: &[Some(weight), bias, Some(x), residual, Some(y)],
            flops: 2 * rows as u64 * d_in as u64 * d_out as u64,
            bytes: None,
        })
    }
}
