//! `argmax`: the column of each row's largest element.

use super::rows_case;
use crate::builder::{Builder, Launch};
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::tensor::Element;
use crate::variant::{Binding, Kernel, ORDER, ROWS, ROWS_SUBGROUPS, Source, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        rows: u32,
        columns: u32,
        x_row: u32,
        id_stride: u32,
        x_offset: u32,
        ids_offset: u32,
    }
}

const SOURCE: Source = wgsl!("argmax.wgsl");

pub(super) static KERNEL: Kernel = Kernel {
    name: "argmax",
    shared: &[&ORDER, &ROWS],
    subgroups: &[&ORDER, &ROWS_SUBGROUPS, &SOURCE],
    parts: &[],
    source: SOURCE,
    bindings: &[
        Binding::read("x", 1, 0, offset_of!(Params, x_offset)).wide(),
        Binding::write("ids", 1, offset_of!(Params, ids_offset)).single(),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// `ids[row]` = the column of the row's largest element, the lowest of several. NaN is never chosen; a row of nothing else gives 0.
#[derive(Clone, Copy, Debug)]
pub struct Argmax {
    /// `f32` (rows, columns)
    pub x: Tensor,
    /// `u32` (rows), with any stride: a column of a matrix of ids, say.
    pub ids: Tensor,
}

impl Builder {
    /// Appends an argmax over each row.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Limit`] for one that exceeds a binding.
    pub fn argmax(&mut self, label: &str, args: &Argmax) -> Result<()> {
        let &Argmax { x, ids } = args;
        let &[rows, columns] = x.layout().sizes() else {
            return Err(Error::shape("x", "(rows, columns)", x.layout()));
        };
        self.expect(label, "x", x, Element::F32, &[rows, columns])?;
        self.expect_strided(label, "ids", ids, Element::U32, &[rows])?;
        let storage = self.storage_of(label, Element::F32, &[], &[Some(x)])?;
        let case = rows_case(KERNEL.name, storage, rows, columns, false);
        let choice = self.choice(&case);
        let class = choice.class;
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            x_row: x.layout().stride(0),
            id_stride: ids.layout().stride(0),
            ..Params::default()
        };
        self.launch(Launch {
            label,
            variant: Variant::of(&KERNEL, &choice, storage, 0),
            workgroups: u64::from((rows as u32).div_ceil(class.get("THREADS") / class.get("ROW_THREADS"))),
            params,
            operands: &[Some(x), Some(ids)],
            flops: rows as u64 * columns as u64,
            bytes: None,
        })
    }
}
