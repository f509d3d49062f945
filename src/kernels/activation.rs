//! `activation`: y = activation(x), element by element.

use crate::builder::{Builder, Launch};
use crate::classes::FLAT;
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::Activation;
use crate::variant::{ACTIVATE, Binding, Kernel, TANH, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        rows: u32,
        columns: u32,
        groups: u32,
        workgroups: u32,
        kind: u32,
        x_row: u32,
        y_row: u32,
        x_offset: u32,
        y_offset: u32,
    }
}

pub(super) static KERNEL: Kernel = Kernel {
    name: "activation",
    shared: &[&TANH, &ACTIVATE],
    subgroups: &[],
    parts: &[],
    source: wgsl!("activation.wgsl"),
    bindings: &[
        Binding::read("x", 1, 0, offset_of!(Params, x_offset)),
        Binding::write("y", 1, offset_of!(Params, y_offset)),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// y = activation(x) where no projection is there to fuse it into.
#[derive(Clone, Copy, Debug)]
pub struct ActivationRows {
    /// (rows, columns)
    pub x: Tensor,
    /// Which one.
    pub activation: Activation,
    /// (rows, columns)
    pub y: Tensor,
}

impl Builder {
    /// Appends y = activation(x).
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Alias`] for a y that is x, [`Error::Limit`] for one that
    /// exceeds a binding.
    pub fn activation(&mut self, label: &str, activation: &ActivationRows) -> Result<()> {
        let &ActivationRows { x, activation, y } = activation;
        let &[rows, columns] = x.layout().sizes() else {
            return Err(Error::shape("x", "(rows, columns)", x.layout()));
        };
        let element = self.float(label, "x", x)?;
        self.expect(label, "x", x, element, &[rows, columns])?;
        self.expect(label, "y", y, element, &[rows, columns])?;
        let groups = columns.div_ceil(4) as u32;
        let workgroups = (rows as u64 * u64::from(groups)).div_ceil(u64::from(FLAT.get("THREADS")));
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            groups,
            workgroups: workgroups as u32,
            kind: activation as u32,
            x_row: x.layout().stride(0),
            y_row: y.layout().stride(0),
            ..Params::default()
        };
        self.launch(Launch {
            label,
            variant: Variant::core(&KERNEL, &FLAT, self.storage_of(label, element, &[Some(x), Some(y)], &[])?),
            workgroups,
            params,
            operands: &[Some(x), Some(y)],
            flops: rows as u64 * columns as u64,
            bytes: None,
        })
    }
}
