//! y = activation(x · Wᵀ + bias) + residual: `linear` as tiles, `linear_split` and `linear_sum` where too few tiles would keep a device
//! busy; on matrix units `linear_matrix`, `linear_matrix_split`, `linear_wide` into f32, and `linear_halves` from it. Few rows are
//! `linear_few`'s.

use super::linear_few::{self, LinearFew, part_rows};
use super::stride;
use crate::builder::{Builder, Launch};
use crate::classes::{self, Class, FLAT};
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::shape::Layout;
use crate::spec::Activation;
use crate::storage::{Storage, Tier};
use crate::tensor::Element;
use crate::tuning::{Case, Choice, Operation};
use crate::variant::{
    ACTIVATE, Binding, Kernel, PRODUCT, Source, TAKE_ROW, TANH, THREADS, THREADS_QUADS, TILE, TILE_QUADS, Variant, wgsl,
};
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

const PARAMS: Source = wgsl!("shared/linear.wgsl");
const OPERANDS: Source = wgsl!("shared/linear_operands.wgsl");
const EPILOGUE: Source = wgsl!("shared/linear_epilogue.wgsl");
const STORE: Source = wgsl!("shared/linear_store.wgsl");
const WHOLE: Source = wgsl!("shared/linear_whole.wgsl");
const PARTS: Source = wgsl!("shared/linear_parts.wgsl");
const SOURCE: Source = wgsl!("linear.wgsl");
const STORE_WIDE: Source = wgsl!("shared/linear_store_wide.wgsl");

const WEIGHT: Binding = Binding::read("weight", 0, 1, offset_of!(Params, weight_offset));
const BIAS: Binding = Binding::read("bias", 0, 2, offset_of!(Params, bias_offset));
const X: Binding = Binding::read("x", 1, 0, offset_of!(Params, x_offset));
const RESIDUAL: Binding = Binding::read("residual", 1, 1, offset_of!(Params, residual_offset));
const Y: Binding = Binding::write("y", 2, offset_of!(Params, y_offset));
const WIDE_BINDINGS: &[Binding] = &[WEIGHT, BIAS, X, RESIDUAL, Binding::write("y", 2, offset_of!(Params, y_offset)).wide()];

pub(super) static KERNEL: Kernel = Kernel {
    name: "linear",
    shared: &[&THREADS, &TILE, &PRODUCT, &TAKE_ROW, &TANH, &ACTIVATE, &PARAMS, &OPERANDS, &EPILOGUE, &STORE],
    subgroups: &[&THREADS_QUADS, &TILE_QUADS, &TAKE_ROW, &TANH, &ACTIVATE, &PARAMS, &OPERANDS, &EPILOGUE, &STORE, &SOURCE],
    parts: &[],
    source: SOURCE,
    bindings: &[WEIGHT, BIAS, X, RESIDUAL, Y],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

pub(super) static KERNEL_SPLIT: Kernel = Kernel {
    name: "linear_split",
    shared: &[&TILE, &PRODUCT, &TAKE_ROW, &PARAMS, &OPERANDS],
    subgroups: &[],
    source: wgsl!("linear_split.wgsl"),
    bindings: &[WEIGHT, X, Binding::write("partial", 1, offset_of!(Params, partial_offset)).wide()],
    ..KERNEL
};

pub(super) static KERNEL_SUM: Kernel = Kernel {
    name: "linear_sum",
    shared: &[&TANH, &ACTIVATE, &PARAMS, &EPILOGUE, &STORE],
    subgroups: &[],
    source: wgsl!("linear_sum.wgsl"),
    bindings: &[BIAS, Binding::read("partial", 1, 0, offset_of!(Params, partial_offset)).wide(), RESIDUAL, Y],
    ..KERNEL
};

pub(super) static KERNEL_MATRIX: Kernel = Kernel {
    name: "linear_matrix",
    shared: &[&TANH, &ACTIVATE, &PARAMS, &OPERANDS, &EPILOGUE, &STORE, &WHOLE],
    subgroups: &[],
    source: wgsl!("linear_matrix.wgsl"),
    ..KERNEL
};

/// Into f32, as logits are whatever the storage.
pub(super) static KERNEL_WIDE: Kernel = Kernel {
    name: "linear_wide",
    shared: &[&TANH, &ACTIVATE, &PARAMS, &OPERANDS, &EPILOGUE, &STORE_WIDE, &WHOLE],
    bindings: WIDE_BINDINGS,
    subgroups: &[],
    source: wgsl!("linear_matrix.wgsl"),
    ..KERNEL
};

/// Parts of k side by side.
pub(super) static KERNEL_MATRIX_SPLIT: Kernel = Kernel {
    name: "linear_matrix_split",
    shared: &[&TANH, &ACTIVATE, &PARAMS, &OPERANDS, &EPILOGUE, &PARTS],
    subgroups: &[],
    source: wgsl!("linear_matrix.wgsl"),
    bindings: WIDE_BINDINGS,
    ..KERNEL
};

pub(super) static KERNEL_HALVES: Kernel = Kernel {
    name: "linear_halves",
    shared: &[&TANH, &ACTIVATE, &PARAMS, &OPERANDS, &EPILOGUE, &STORE],
    subgroups: &[],
    source: wgsl!("linear_halves.wgsl"),
    ..KERNEL
};

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

    /// Rows, d_in and d_out of what has been checked.
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        let [rows, d_in] = [0, 1].map(|dim| self.x.layout().sizes()[dim]);
        (rows, d_in, self.y.layout().sizes()[1])
    }

    /// As projections of up to `rows` rows of the weight each, with what belongs to these.
    pub(super) fn in_parts(&self, rows: usize) -> Result<Vec<Self>> {
        let d_out = self.y.layout().sizes()[1];
        let part = |first: usize| {
            let size = rows.min(d_out - first);
            Ok(Self {
                weight: self.weight.narrow(0, first, size)?,
                bias: self.bias.map(|b| b.narrow(0, first, size)).transpose()?,
                residual: self.residual.map(|r| r.narrow(1, first, size)).transpose()?,
                y: self.y.narrow(1, first, size)?,
                ..*self
            })
        };
        (0..d_out).step_by(rows).map(part).collect()
    }

    fn params(&self) -> Params {
        let &Self { x, weight, bias, activation, residual, y } = self;
        let (rows, d_in, d_out) = self.sizes();
        Params {
            rows: rows as u32,
            d_in: d_in as u32,
            d_out: d_out as u32,
            x_row: x.layout().stride(0),
            weight_row: weight.layout().stride(0),
            residual_row: stride(residual, 0),
            y_row: y.layout().stride(0),
            activation: activation as u32,
            bias: u32::from(bias.is_some()),
            residual: u32::from(residual.is_some()),
            ..Params::default()
        }
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
        self.check_linear(label, linear)?;
        if self.is_in_blocks(linear.weight) {
            return self.linear_in_blocks(label, linear, false);
        }
        linear.in_parts(part_rows(self, linear.weight))?.iter().try_for_each(|part| self.linear_part(label, part))
    }

    /// Refuses tensors that do not fit each other.
    pub(crate) fn check_linear(&self, label: &str, linear: &Linear) -> Result<()> {
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
        match self.is_in_blocks(weight) {
            true => self.expect_blocks(label, weight, d_in)?,
            false => self.expect_weight(label, linear, element)?,
        }
        self.expect(label, "y", y, element, &[rows, d_out])?;
        if let Some(bias) = bias {
            self.expect(label, "bias", bias, element, &[d_out])?;
        }
        if let Some(residual) = residual {
            self.expect(label, "residual", residual, element, &[rows, d_out])?;
        }
        Ok(())
    }

    /// Refuses a weight (·, ·) that is not (out, d_in), and says of one that has d_in rows that it is turned.
    pub(super) fn expect_weight(&self, label: &str, linear: &Linear, element: Element) -> Result<()> {
        let (_, d_in, _) = linear.sizes();
        let weight = linear.weight;
        let &[rows, columns] = weight.layout().sizes() else { return Ok(()) };
        if columns != d_in && rows == d_in {
            let expected = Layout::contiguous(&[columns, d_in])?;
            let name = self.part_name(label, "weight", weight);
            return Err(Error::shape(name, expected, expected.found_turned(weight.layout())));
        }
        self.expect(label, "weight", weight, element, &[rows, d_in])
    }

    pub(super) fn linear_part(&mut self, label: &str, linear: &Linear) -> Result<()> {
        let &Linear { x, weight, bias, residual, y, .. } = linear;
        let (rows, d_in, d_out) = linear.sizes();
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
        match choice.kernel {
            name if name == KERNEL_SPLIT.name || name == KERNEL_MATRIX_SPLIT.name => {
                self.linear_split(label, linear, &case, &choice)
            }
            name if name == linear_few::KERNEL.name => {
                self.launch_few(label, &LinearFew::new(*linear), (0, d_out), &choice, storage)
            }
            name => {
                let kernels = [&KERNEL_MATRIX, &KERNEL_HALVES];
                let kernel = kernels.into_iter().find(|k| k.name == name).unwrap_or(&KERNEL);
                self.launch_tiles(label, linear, Variant::of(kernel, &choice, storage, 0))
            }
        }
    }

    /// One dispatch for all of k.
    fn launch_tiles(&mut self, label: &str, linear: &Linear, variant: Variant) -> Result<()> {
        let &Linear { x, weight, bias, residual, y, .. } = linear;
        let (rows, d_in, d_out) = linear.sizes();
        let launch = Launch {
            label,
            variant,
            workgroups: tiles(variant.class, rows, d_out),
            params: linear.params(),
            operands: &[Some(weight), bias, Some(x), residual, Some(y)],
            flops: 2 * rows as u64 * d_in as u64 * d_out as u64,
            bytes: None,
        };
        self.launch_in_forms(launch, tiles(classes::unaligned(variant.class), rows, d_out))
    }

    /// Whether there is a form for many rows of f16 into f32, as logits are: on matrix units.
    pub(crate) fn has_linear_wide(&self, rows: usize, weight: Tensor) -> bool {
        let storage = Storage::of(self.element(weight), self.kernels().class().f16(), true);
        let &[columns, depth] = weight.layout().sizes() else { return false };
        self.unmeasured_choice(&self.wide_case(storage, [rows, columns, depth])).tier == Tier::Matrix
    }

    /// [`Builder::linear`] from f16 into a y in f32 whose rows have room for whole groups of four, where there is a form for it.
    pub(crate) fn linear_wide(&mut self, label: &str, linear: &Linear) -> Result<()> {
        let &Linear { x, weight, bias, y, .. } = linear;
        let (rows, depth, _) = linear.sizes();
        debug_assert!(linear.residual.is_none(), "{label}: logits have no residual");
        let storage = self.storage_of(label, self.element(x), &[Some(x), Some(weight), bias], &[Some(y)])?;
        for part in linear.in_parts(part_rows(self, weight))? {
            let columns = part.weight.layout().sizes()[0];
            let choice = self.choice(&self.wide_case(storage, [rows, columns, depth]));
            self.launch_tiles(label, &part, Variant::of(&KERNEL_WIDE, &choice, storage, 0))?;
        }
        Ok(())
    }

    fn wide_case(&self, storage: Storage, [rows, columns, depth]: [usize; 3]) -> Case {
        Case {
            operation: Operation::LinearWide,
            kernel: KERNEL_WIDE.name,
            storage,
            rows,
            columns,
            depth,
            ragged_columns: false,
            invariant: self.batch_invariant(),
            cached: false,
        }
    }

    /// Parts of k side by side into scratch, then their sum with all that follows it.
    fn linear_split(&mut self, label: &str, linear: &Linear, case: &Case, choice: &Choice) -> Result<()> {
        let &Linear { x, weight, bias, residual, y, .. } = linear;
        let &Case { rows, columns, depth, storage, .. } = case;
        let row = columns.next_multiple_of(4);
        let most = self.binding_elements(Element::F32) / (rows as u64 * row as u64).max(1);
        let (split, splits) = case.split(choice.class, most as usize);
        let partial = self.scratch_rows("partial", &[splits, rows, columns])?;
        let params = Params { split: split as u32, splits: splits as u32, partial_row: row as u32, ..linear.params() };
        let outputs = rows as u64 * columns as u64;
        let workgroups = |class| tiles(class, rows, columns) * splits as u64;
        // On matrix units the parts are a y of their own, without what follows their sum.
        let parts = Params { y_row: row as u32, activation: 0, bias: 0, residual: 0, ..params };
        let matrix_operands = [Some(weight), None, Some(x), None, Some(partial)];
        let operands = [Some(weight), Some(x), Some(partial)];
        let (kernel, own, operands): (_, _, &[_]) = match choice.tier {
            Tier::Matrix => (&KERNEL_MATRIX_SPLIT, parts, &matrix_operands),
            _ => (&KERNEL_SPLIT, params, &operands),
        };
        let launch = Launch {
            label,
            variant: Variant::of(kernel, choice, storage, 0),
            workgroups: workgroups(choice.class),
            params: own,
            operands,
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
