//! `gate`: y = activation(gate) · up, the middle of a gated feed-forward network.

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
        gate_row: u32,
        up_row: u32,
        y_row: u32,
        gate_offset: u32,
        up_offset: u32,
        y_offset: u32,
    }
}

pub(super) static KERNEL: Kernel = Kernel {
    name: "gate",
    shared: &[&TANH, &ACTIVATE],
    subgroups: &[],
    parts: &[],
    source: wgsl!("gate.wgsl"),
    bindings: &[
        Binding::read("gate", 1, 0, offset_of!(Params, gate_offset)),
        Binding::read("up", 1, 1, offset_of!(Params, up_offset)),
        Binding::write("y", 2, offset_of!(Params, y_offset)),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// y = activation(gate) · up: with SiLU, SwiGLU (Shazeer, arXiv 2002.05202).
#[doc(alias("swiglu", "glu"))]
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// (rows, columns)
    pub gate: Tensor,
    /// (rows, columns): other columns of the same projection, say
    pub up: Tensor,
    /// Of the gate.
    pub activation: Activation,
    /// (rows, columns)
    pub y: Tensor,
}

impl Builder {
    /// Appends y = activation(gate) · up.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Alias`] for a y that is also read, [`Error::Limit`] for one that
    /// exceeds a binding.
    pub fn gate(&mut self, label: &str, args: &Gate) -> Result<()> {
        let &Gate { gate, up, activation, y } = args;
        let &[rows, columns] = gate.layout().sizes() else {
            return Err(Error::shape("gate", "(rows, columns)", gate.layout()));
        };
        let element = self.float(label, "gate", gate)?;
        for (name, tensor) in [("gate", gate), ("up", up), ("y", y)] {
            self.expect(label, name, tensor, element, &[rows, columns])?;
        }
        let groups = columns.div_ceil(4) as u32;
        let workgroups = (rows as u64 * u64::from(groups)).div_ceil(u64::from(FLAT.get("THREADS")));
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            groups,
            workgroups: workgroups as u32,
            kind: activation as u32,
            gate_row: gate.layout().stride(0),
            up_row: up.layout().stride(0),
            y_row: y.layout().stride(0),
            ..Params::default()
        };
        let storage = self.storage_of(label, element, &[Some(gate), Some(up), Some(y)], &[])?;
        self.launch(Launch {
            label,
            variant: Variant::core(&KERNEL, &FLAT, storage),
            workgroups,
            params,
            operands: &[Some(gate), Some(up), Some(y)],
            flops: 2 * rows as u64 * columns as u64,
            bytes: None,
        })
    }
}
