//! `layer_norm`: y = (s − mean) / √(variance + eps) · weight + bias, s = x + residual; `rms_norm`: the same without the mean.

use super::{rows_case, stride};
use crate::builder::{Builder, Launch};
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::layers::Norm;
use crate::tensor::Element;
use crate::variant::{Binding, Kernel, ROOT, ROWS, ROWS_SUBGROUPS, Source, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        rows: u32,
        columns: u32,
        x_row: u32,
        residual_row: u32,
        y_row: u32,
        sum_row: u32,
        statistics_row: u32,
        residual: u32,
        weight: u32,
        bias: u32,
        sum: u32,
        statistics: u32,
        centered: u32,
        eps: f32,
        x_offset: u32,
        residual_offset: u32,
        weight_offset: u32,
        bias_offset: u32,
        y_offset: u32,
        sum_offset: u32,
        statistics_offset: u32,
    }
}

/// The form that has `sum_out` and `statistics`; one that is not wanted is bound to memory that nothing writes.
const OUTPUTS: u8 = 1;

const SOURCE: Source = wgsl!("layer_norm.wgsl");

pub(super) static KERNEL: Kernel = Kernel {
    name: "layer_norm",
    shared: &[&ROOT, &ROWS],
    subgroups: &[&ROOT, &ROWS_SUBGROUPS, &SOURCE],
    parts: &[(OUTPUTS, wgsl!("shared/norm_no_outputs.wgsl"), wgsl!("shared/norm_outputs.wgsl"))],
    source: SOURCE,
    bindings: &[
        Binding::read("weight", 0, 1, offset_of!(Params, weight_offset)),
        Binding::read("bias", 0, 2, offset_of!(Params, bias_offset)),
        Binding::read("x", 1, 0, offset_of!(Params, x_offset)),
        Binding::read("residual", 1, 1, offset_of!(Params, residual_offset)),
        Binding::write("y", 2, offset_of!(Params, y_offset)),
        Binding::write("sum_out", 3, offset_of!(Params, sum_offset)).optional(OUTPUTS),
        Binding::write("statistics", 4, offset_of!(Params, statistics_offset)).optional(OUTPUTS).single(),
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

/// Layer norm ([`Builder::layer_norm`]) or RMS norm ([`Builder::rms_norm`]) over the last dimension, with the residual added first. eps
/// stands inside the root, √(σ² + eps), where some texts write √σ² + eps.
///
/// Deviations from the mean are squared and summed in f32: below about 1e-19 they count as zero, and a row whose sum overflows
/// has no defined result.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    /// (rows, columns)
    pub x: Tensor,
    /// (rows, columns), added to x before the norm
    pub residual: Option<Tensor>,
    /// (columns)
    pub weight: Option<Tensor>,
    /// (columns)
    pub bias: Option<Tensor>,
    /// Added to the variance; at least 0.
    pub eps: f32,
    /// (rows, columns)
    pub y: Tensor,
    /// (rows, columns) = x + residual, which a pre-norm layer needs as its next residual
    pub sum: Option<Tensor>,
    /// `f32` (rows, 2): mean and 1 / √(variance + eps) of every row
    pub statistics: Option<Tensor>,
}

impl LayerNorm {
    /// y = norm(x), eps 1e-5, nothing else.
    #[must_use]
    pub fn new(x: Tensor, y: Tensor) -> Self {
        let eps = Norm::default().eps;
        Self { x, residual: None, weight: None, bias: None, eps, y, sum: None, statistics: None }
    }
}

impl Builder {
    /// Appends a layer norm.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Option`] for an eps that is negative or not finite,
    /// [`Error::Alias`] for an output that is also read, [`Error::Limit`] for a tensor that exceeds a binding.
    pub fn layer_norm(&mut self, label: &str, norm: &LayerNorm) -> Result<()> {
        self.normalise(label, norm, true)
    }

    /// Appends an RMS norm: y = s / √(mean of s² + eps) · weight + bias with s = x + residual. The mean among the statistics is 0.
    /// (Zhang and Sennrich, arXiv 1910.07467)
    ///
    /// # Errors
    /// As [`Builder::layer_norm`].
    pub fn rms_norm(&mut self, label: &str, norm: &LayerNorm) -> Result<()> {
        self.normalise(label, norm, false)
    }

    fn normalise(&mut self, label: &str, norm: &LayerNorm, centered: bool) -> Result<()> {
        let &LayerNorm { x, residual, weight, bias, eps, y, sum, statistics } = norm;
        let &[rows, columns] = x.layout().sizes() else {
            return Err(Error::shape("x", "(rows, columns)", x.layout()));
        };
        Norm { eps, ..Norm::default() }.check()?;
        let element = self.float(label, "x", x)?;
        for (name, tensor) in [("x", Some(x)), ("residual", residual), ("y", Some(y)), ("sum", sum)] {
            if let Some(tensor) = tensor {
                self.expect(label, name, tensor, element, &[rows, columns])?;
            }
        }
        for (name, tensor) in [("weight", weight), ("bias", bias)] {
            if let Some(tensor) = tensor {
                self.expect(label, name, tensor, element, &[columns])?;
            }
        }
        if let Some(statistics) = statistics {
            self.expect(label, "statistics", statistics, Element::F32, &[rows, 2])?;
        }
        let storage = self.storage_of(label, element, &[weight, bias, Some(x), residual, Some(y), sum], &[])?;
        let choice = self.choice(&rows_case(KERNEL.name, storage, rows, columns, false));
        let class = choice.class;
        let rows_per_group = class.get("THREADS") / class.get("ROW_THREADS");
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            x_row: x.layout().stride(0),
            residual_row: stride(residual, 0),
            y_row: y.layout().stride(0),
            sum_row: stride(sum, 0),
            statistics_row: stride(statistics, 0),
            residual: u32::from(residual.is_some()),
            weight: u32::from(weight.is_some()),
            bias: u32::from(bias.is_some()),
            sum: u32::from(sum.is_some()),
            statistics: u32::from(statistics.is_some()),
            centered: u32::from(centered),
            eps,
            ..Params::default()
        };
        let outputs = if sum.is_some() || statistics.is_some() { OUTPUTS } else { 0 };
        let operands = [weight, bias, Some(x), residual, Some(y), sum, statistics];
        self.launch(Launch {
            label,
            variant: Variant::of(&KERNEL, &choice, storage, outputs),
            workgroups: u64::from((rows as u32).div_ceil(rows_per_group)),
            params,
            operands: &operands[..if outputs == 0 { 5 } else { 7 }],
            flops: 8 * rows as u64 * columns as u64,
            bytes: None,
        })
    }
}
