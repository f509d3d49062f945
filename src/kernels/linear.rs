//! y = activation(x · Wᵀ + bias) + residual: `linear` as tiles, `linear_split` and `linear_sum` where too few tiles would keep a device
//! busy. Few rows are `linear_few`'s.

use super::linear_few::{self, LinearFew, part_rows};
use super::stride;
use crate::builder::{Builder, Launch};
use crate::classes::{self, Class, FLAT};
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::Activation;
use crate::tensor::Element;
use crate::tuning::{Case, Choice, Operation};
use crate::variant::{ACTIVATE, Binding, Kernel, PRODUCT, Source, THREADS, THREADS_QUADS, TILE, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        rows: u32,
        d_in: u32,
        d_out: u32,
        split: u32,
        splits: u32,
        x_row: u32,
        weight_row: u32,
        residual_row: u32,
        y_row: u32,
        partial_row: u32,
        activation: u32,
        bias: u32,
        residual: u32,
        x_offset: u32,
        weight_offset: u32,
        bias_offset: u32,
        residual_offset: u32,
        y_offset: u32,
        partial_offset: u32,
    }
}

const PRODUCT_QUADS: Source = wgsl!("shared/product_quads.wgsl");
const PARAMS: Source = wgsl!("shared/linear.wgsl");
const OPERANDS: Source = wgsl!("shared/linear_operands.wgsl");
const EPILOGUE: Source = wgsl!("shared/linear_epilogue.wgsl");

const WEIGHT: Binding = Binding::read("weight", 0, 1, offset_of!(Params, weight_offset));
const BIAS: Binding = Binding::read("bias", 0, 2, offset_of!(Params, bias_offset));
const X: Binding = Binding::read("x", 1, 0, offset_of!(Params, x_offset));
const RESIDUAL: Binding = Binding::read("residual", 1, 1, offset_of!(Params, residual_offset));
const Y: Binding = Binding::write("y", 2, offset_of!(Params, y_offset));

pub(super) static KERNEL: Kernel = Kernel {
    name: "linear",
    shared: &[&THREADS, &TILE, &PRODUCT, &ACTIVATE, &PARAMS, &OPERANDS, &EPILOGUE],
    subgroups: &[&THREADS_QUADS, &TILE, &PRODUCT_QUADS, &ACTIVATE, &PARAMS, &OPERANDS, &EPILOGUE],
    parts: &[],
    source: wgsl!("linear.wgsl"),
    bindings: &[WEIGHT, BIAS, X, RESIDUAL, Y],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

pub(super) static KERNEL_SPLIT: Kernel = Kernel {
    name: "linear_split",
    shared: &[&TILE, &PRODUCT, &PARAMS, &OPERANDS],
    subgroups: &[],
    source: wgsl!("linear_split.wgsl"),
    bindings: &[WEIGHT, X, Binding::write("partial", 1, offset_of!(Params, partial_offset)).wide()],
    ..KERNEL
};

pub(super) static KERNEL_SUM: Kernel = Kernel {
    name: "linear_sum",
    shared: &[&ACTIVATE, &PARAMS, &EPILOGUE],
    subgroups: &[],
    source: wgsl!("linear_sum.wgsl"),
    bindings: &[BIAS, Binding::read("partial", 1, 0, offset_of!(Params, partial_offset)).wide(), RESIDUAL, Y],
    ..KERNEL
};

pub(super) static KERNEL_MATRIX: Kernel = Kernel {
    name: "linear_matrix",
    shared: &[&ACTIVATE, &PARAMS, &OPERANDS, &EPILOGUE],
    subgroups: &[],
    source: wgsl!("linear_matrix.wgsl"),
    ..KERNEL
};

pub(super) static KERNEL_HALVES: Kernel =
    Kernel { name: "linear_halves", source: wgsl!("linear_halves.wgsl"), ..KERNEL_MATRIX };

/// y = activation(x · Wᵀ + bias) + residual: all but the product in its epilogue.
#[doc(alias("matmul", "gemm"))]
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
    /// Few rows take a form that reads each weight once and has no tile to leave empty ([`LinearFew`]); outputs with too few tiles for a
    /// large GPU take two dispatches, parts of k side by side and their sum. Neither happens where
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
        let part_rows = part_rows(self, weight);
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
        let case = Case {
            operation: Operation::Linear,
            kernel: "",
            storage,
            rows,
            columns: d_out,
            depth: d_in,
            ragged_columns: false,
            invariant,
            cached: false,
        };
        let choice = self.choice(&case);
        let params = Params {
            rows: rows as u32,
            d_in: d_in as u32,
            d_out: d_out as u32,
            x_row: x_layout.stride(0),
            weight_row: weight.layout().stride(0),
            residual_row: stride(residual, 0),
            y_row: y_layout.stride(0),
            activation: activation as u32,
            bias: u32::from(bias.is_some()),
            residual: u32::from(residual.is_some()),
            ..Params::default()
        };
        let flops = 2 * rows as u64 * d_in as u64 * d_out as u64;
        if choice.kernel == KERNEL_SPLIT.name {
            return self.linear_split(label, linear, &case, &choice, params);
        }
        if choice.kernel == linear_few::KERNEL.name {
            return self.launch_few(label, &LinearFew::new(*linear), (0, d_out), &choice, storage);
        }
        let kernels = [&KERNEL_MATRIX, &KERNEL_HALVES];
        let kernel = kernels.into_iter().find(|k| k.name == choice.kernel).unwrap_or(&KERNEL);
        let launch = Launch {
            label,
            variant: Variant::of(kernel, &choice, storage, 0),
            workgroups: tiles(choice.class, rows, d_out),
            params,
            operands: &[Some(weight), bias, Some(x), residual, Some(y)],
            flops,
            bytes: None,
        };
        self.launch_in_forms(launch, tiles(classes::unaligned(choice.class), rows, d_out))
    }

    /// Parts of k side by side into scratch, then their sum with all that follows it.
    fn linear_split(&mut self, label: &str, linear: &Linear, case: &Case, choice: &Choice, params: Params) -> Result<()> {
        let &Linear { x, weight, bias, residual, y, .. } = linear;
        let &Case { rows, columns, depth, storage, .. } = case;
        let row = columns.next_multiple_of(4);
        let most = self.binding_elements(Element::F32) / (rows as u64 * row as u64).max(1);
        let (split, splits) = case.split(choice.class, most as usize);
        let partial = self.scratch_rows("partial", &[splits, rows, columns])?;
        let params = Params { split: split as u32, splits: splits as u32, partial_row: row as u32, ..params };
        let outputs = rows as u64 * columns as u64;
        let workgroups = |class| tiles(class, rows, columns) * splits as u64;
        let launch = Launch {
            label,
            variant: Variant::of(&KERNEL_SPLIT, choice, storage, 0),
            workgroups: workgroups(choice.class),
            params,
            operands: &[Some(weight), Some(x), Some(partial)],
            flops: 2 * outputs * depth as u64,
            bytes: None,
        };
        self.launch_in_forms(launch, workgroups(classes::unaligned(choice.class)))?;
        self.launch_second(Launch {
            label,
            variant: Variant::core(&KERNEL_SUM, &FLAT, storage),
            workgroups: (rows as u64 * columns.div_ceil(4) as u64).div_ceil(u64::from(FLAT.get("THREADS"))),
            params,
            operands: &[bias, Some(partial), residual, Some(y)],
            flops: outputs * splits as u64,
            bytes: None,
        })
    }
}

/// The workgroups of `class` that cover the output.
fn tiles(class: &Class, rows: usize, columns: usize) -> u64 {
    let [m, n] = ["TILE_M", "TILE_N"].map(|name| u64::from(class.get(name)));
    (rows as u64).div_ceil(m) * (columns as u64).div_ceil(n)
}
