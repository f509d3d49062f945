//! Projections of a few rows: `linear_few`, with a norm in front; `linear_append`, whose keys and values go into a cache;
//! `linear_logits`, with the first stage of an argmax.

mod check;

use super::{Linear, key_rows, stride};
use crate::builder::{Builder, Launch};
use crate::classes::{self, Class};
use crate::error::{Error, Result};
use crate::program::{Tensor, params};
use crate::spec::layers::NormKind;
use crate::storage::Storage;
use crate::tensor::Element;
use crate::tuning::{Case, Choice, Operation};
use crate::variant::{ACTIVATE, Binding, Kernel, ORDER, ROOT, Source, TANH, Variant, wgsl};
use std::mem::offset_of;

params! {
    Params {
        rows: u32,
        d_in: u32,
        d_out: u32,
        first_column: u32,
        x_row: u32,
        weight_row: u32,
        residual_row: u32,
        y_row: u32,
        activation: u32,
        bias: u32,
        residual: u32,
        norm: u32,
        norm_weight: u32,
        norm_bias: u32,
        eps: f32,
        sequence_count: u32,
        sequence_stride: u32,
        q_columns: u32,
        heads: u32,
        head_size: u32,
        value_size: u32,
        capacity: u32,
        key_rows: u32,
        cache_kind: u32,
        cache_head: u32,
        cache_row: u32,
        maxima_row: u32,
        maxima_group: u32,
        x_offset: u32,
        weight_offset: u32,
        bias_offset: u32,
        norm_weight_offset: u32,
        norm_bias_offset: u32,
        residual_offset: u32,
        y_offset: u32,
        cache_offset: u32,
        maxima_offset: u32,
        sequences_offset: u32,
    }
}

const FEW: Source = wgsl!("shared/few.wgsl");
const MEET: Source = wgsl!("shared/few_meet.wgsl");
const MEET_SUBGROUPS: Source = wgsl!("shared/few_subgroups.wgsl");
const SOURCE: Source = wgsl!("linear_few.wgsl");
const SOURCE_APPEND: Source = wgsl!("linear_append.wgsl");
const SOURCE_LOGITS: Source = wgsl!("linear_logits.wgsl");

const WEIGHT: Binding = Binding::read("weight", 0, 1, offset_of!(Params, weight_offset));
const BIAS: Binding = Binding::read("bias", 0, 2, offset_of!(Params, bias_offset));
const NORM_WEIGHT: Binding = Binding::read("norm_weight", 0, 3, offset_of!(Params, norm_weight_offset));
const NORM_BIAS: Binding = Binding::read("norm_bias", 0, 4, offset_of!(Params, norm_bias_offset));
const X: Binding = Binding::read("x", 1, 0, offset_of!(Params, x_offset));
const SEQUENCES: Binding = Binding::read("sequences", 1, 3, offset_of!(Params, sequences_offset)).single();

pub(super) static KERNEL: Kernel = Kernel {
    name: "linear_few",
    shared: &[&TANH, &ACTIVATE, &ROOT, &FEW, &MEET],
    subgroups: &[&TANH, &ACTIVATE, &ROOT, &FEW, &MEET_SUBGROUPS, &SOURCE],
    parts: &[],
    source: SOURCE,
    bindings: &[
        WEIGHT,
        BIAS,
        NORM_WEIGHT,
        NORM_BIAS,
        X,
        Binding::read("residual", 1, 1, offset_of!(Params, residual_offset)),
        Binding::write("y", 2, offset_of!(Params, y_offset)),
        SEQUENCES,
    ],
    params_size: size_of::<Params>(),
    params_fields: Params::FIELDS,
};

pub(super) static KERNEL_APPEND: Kernel = Kernel {
    name: "linear_append",
    subgroups: &[&TANH, &ACTIVATE, &ROOT, &FEW, &MEET_SUBGROUPS, &SOURCE_APPEND],
    source: SOURCE_APPEND,
    bindings: &[
        WEIGHT,
        BIAS,
        NORM_WEIGHT,
        NORM_BIAS,
        X,
        Binding::write("y", 1, offset_of!(Params, y_offset)),
        Binding::write("cache", 2, offset_of!(Params, cache_offset)),
        SEQUENCES,
    ],
    ..KERNEL
};

pub(super) static KERNEL_LOGITS: Kernel = Kernel {
    name: "linear_logits",
    shared: &[&TANH, &ACTIVATE, &ORDER, &ROOT, &FEW, &MEET],
    subgroups: &[&TANH, &ACTIVATE, &ORDER, &ROOT, &FEW, &MEET_SUBGROUPS, &SOURCE_LOGITS],
    source: SOURCE_LOGITS,
    bindings: &[
        WEIGHT,
        BIAS,
        NORM_WEIGHT,
        NORM_BIAS,
        X,
        Binding::write("y", 1, offset_of!(Params, y_offset)).single(),
        Binding::write("maxima", 2, offset_of!(Params, maxima_offset)).single(),
        SEQUENCES,
    ],
    ..KERNEL
};

/// Columns of a group of [`FewOutput::Logits`], and what a split weight is a multiple of.
const GROUP: usize = 64;

/// A norm of each row in front of a projection, times weight plus bias.
#[derive(Clone, Copy, Debug)]
pub struct FusedNorm {
    /// Layer norm or RMS norm.
    pub kind: NormKind,
    /// (d_in)
    pub weight: Option<Tensor>,
    /// (d_in)
    pub bias: Option<Tensor>,
    /// Added to the variance; at least 0.
    pub eps: f32,
}

/// Where the results of [`LinearFew`] go.
#[derive(Clone, Copy, Debug)]
pub enum FewOutput {
    /// y (rows, d_out).
    Rows,
    /// The columns are [q (NH·HS) | k (NH_kv·HS) | v (NH_kv·VS)]: y (rows, NH·HS) gets q, the cache k and v. New row t of a sequence is
    /// key number `k_len − q_len + t` of its slot; one that the slot has no room for is not written.
    Append {
        /// (2, slots, NH_kv, S, W), W at least HS and VS; slots and heads without gaps
        cache: Tensor,
        /// HS
        head_size: usize,
        /// VS
        value_head_size: usize,
    },
    /// y (rows, V) is f32 whatever x and the weight are stored as.
    Logits {
        /// `u32` (rows, [`Builder::logit_groups`], 2): for each group of 64 columns its largest logit, as a number that orders as the
        /// floats do (0 for NaN, below every other), and its column, the lowest of equals.
        maxima: Tensor,
    },
}

/// y = activation(norm(x) · Wᵀ + bias) + residual, always in the form for few rows: right for any number of them, fast for up to 16.
/// A row's bits do not depend on how many there are (on what that rests, [`Options::batch_invariant`](crate::Options) says).
#[doc(alias = "gemv")]
#[derive(Clone, Copy, Debug)]
pub struct LinearFew {
    /// The projection. Only [`FewOutput::Rows`] takes a residual.
    pub linear: Linear,
    /// In front of it.
    pub norm: Option<FusedNorm>,
    /// `u32` (B, 8): rows that none of these [`Sequence`](crate::Sequence)s has are neither computed nor written. Quickest where row b is
    /// of sequence b, as in a decode step.
    pub sequences: Option<Tensor>,
    /// Where the results go.
    pub out: FewOutput,
}

impl LinearFew {
    /// A projection without a norm, for all rows.
    #[must_use]
    pub fn new(linear: Linear) -> Self {
        Self { linear, norm: None, sequences: None, out: FewOutput::Rows }
    }
}

/// How a projection is cut: rows of the weight at a time, as many as a binding holds, a multiple of a tile.
pub(super) fn part_rows(builder: &Builder, weight: Tensor) -> usize {
    let (sizes, strides) = (weight.layout().sizes(), weight.layout().strides());
    rows_that_fit(builder, builder.element(weight), strides[0].max(sizes[1]), sizes[0])
}

/// How many of `rows` rows of `row` elements a binding holds: all, or a multiple of a tile.
pub(super) fn rows_that_fit(builder: &Builder, element: Element, row: usize, rows: usize) -> usize {
    let fitting = builder.binding_elements(element) / row as u64;
    if fitting >= rows as u64 { rows } else { (fitting as usize / GROUP * GROUP).max(1) }
}

impl Builder {
    /// How many groups of columns the maxima of [`FewOutput::Logits`] have for a weight (V, d_in): one for 64 columns, where the weight is
    /// split counted anew in each part.
    ///
    /// # Errors
    /// [`Error::Shape`] for a weight of another rank.
    pub fn logit_groups(&self, weight: Tensor) -> Result<usize> {
        let &[columns, _] = weight.layout().sizes() else {
            return Err(Error::shape("weight", "(V, d_in)", weight.layout()));
        };
        let part = part_rows(self, weight);
        Ok(columns / part * part.div_ceil(GROUP) + (columns % part).div_ceil(GROUP))
    }

    /// Whether the table prefers the form for few rows for a projection to `columns` columns; `cached` says that the rows are new ones of
    /// texts in a cache, whose bits must not depend on the pieces that they come in where [`Options::batch_invariant`](crate::Options) is
    /// set.
    #[must_use]
    pub fn few_rows(&self, rows: usize, columns: usize, cached: bool) -> bool {
        let storage = Storage::of(self.storage(), self.kernels().class().f16(), true);
        let case = Case { rows, columns, depth: columns, cached, ..self.few_case(Operation::Linear, "", storage) };
        self.unmeasured_choice(&case).kernel == KERNEL.name
    }

    pub(super) fn few_case(&self, operation: Operation, kernel: &'static str, storage: Storage) -> Case {
        let (ragged_columns, invariant) = (false, self.batch_invariant());
        Case { operation, kernel, storage, rows: 1, columns: 1, depth: 1, ragged_columns, invariant, cached: false }
    }

    /// Appends y = activation(norm(x) · Wᵀ + bias) + residual in the form for few rows.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors that do not fit each other, [`Error::Option`] for an eps that is negative or not finite or a residual
    /// where the results are no rows, [`Error::Missing`] for an append without sequences, [`Error::Alias`] for a tensor that is written and also
    /// read, [`Error::Limit`] for a tensor other than the weight that exceeds a binding.
    pub fn linear_few(&mut self, label: &str, few: &LinearFew) -> Result<()> {
        let Linear { x, weight, y, .. } = few.linear;
        let q_columns = self.check_few(label, few)?;
        let (d_out, part_rows) = (weight.layout().sizes()[0], part_rows(self, weight));
        let mut first_group = 0;
        for first in (0..d_out).step_by(part_rows) {
            let size = part_rows.min(d_out - first);
            let groups = size.div_ceil(GROUP);
            let Linear { bias, residual, .. } = few.linear;
            let mut part = *few;
            part.linear.weight = weight.narrow(0, first, size)?;
            part.linear.bias = bias.map(|b| b.narrow(0, first, size)).transpose()?;
            part.linear.residual = residual.map(|r| r.narrow(1, first, size)).transpose()?;
            match &mut part.out {
                FewOutput::Append { .. } => {}
                FewOutput::Rows => part.linear.y = y.narrow(1, first, size)?,
                FewOutput::Logits { maxima } => {
                    part.linear.y = y.narrow(1, first, size)?;
                    *maxima = maxima.narrow(1, first_group, groups)?;
                }
            }
            first_group += groups;
            let storage = self.few_storage(label, &part)?;
            let kernel = match part.out {
                FewOutput::Rows => &KERNEL,
                FewOutput::Append { .. } => &KERNEL_APPEND,
                FewOutput::Logits { .. } => &KERNEL_LOGITS,
            };
            let plain = part.norm.is_none() && kernel.name == KERNEL.name;
            let operation = if plain { Operation::LinearFew } else { Operation::LinearNormed };
            let case = self.few_case(operation, kernel.name, storage);
            let [rows, depth] = [0, 1].map(|dim| x.layout().sizes()[dim]);
            let choice = self.choice(&Case { rows, columns: size, depth, ..case });
            self.launch_few(label, &part, (first, q_columns), &choice, storage)?;
        }
        Ok(())
    }

    fn few_storage(&self, label: &str, few: &LinearFew) -> Result<Storage> {
        let Linear { x, weight, bias, residual, y, .. } = few.linear;
        let [norm_weight, norm_bias] = few.norm.map_or([None; 2], |n| [n.weight, n.bias]);
        let mut floats = vec![Some(x), Some(weight), bias, norm_weight, norm_bias, residual];
        match few.out {
            FewOutput::Rows => floats.push(Some(y)),
            // Its heads, which groups of columns must not straddle.
            FewOutput::Append { cache, head_size, value_head_size } => {
                let [k, v] = [head_size, value_head_size].map(|size| cache.narrow(4, 0, size));
                floats.extend([Some(y), Some(cache), Some(k?), Some(v?)]);
            }
            FewOutput::Logits { .. } => {}
        }
        self.storage_of(label, self.element(x), &floats, &[])
    }

    /// One dispatch; `first` is the number of its first column, `q_columns` how many are no keys and values.
    pub(super) fn launch_few(
        &mut self,
        label: &str,
        few: &LinearFew,
        (first, q_columns): (usize, usize),
        choice: &Choice,
        storage: Storage,
    ) -> Result<()> {
        let Linear { x, weight, bias, activation, residual, y } = few.linear;
        let ([rows, d_in], d_out) = ([0, 1].map(|dim| x.layout().sizes()[dim]), weight.layout().sizes()[0]);
        let storage = form(storage, choice);
        let [norm_weight, norm_bias] = few.norm.map_or([None; 2], |n| [n.weight, n.bias]);
        let mut params = Params {
            rows: rows as u32,
            d_in: d_in as u32,
            d_out: d_out as u32,
            first_column: first as u32,
            x_row: x.layout().stride(0),
            weight_row: weight.layout().stride(0),
            residual_row: stride(residual, 0),
            y_row: y.layout().stride(0),
            activation: activation as u32,
            bias: u32::from(bias.is_some()),
            residual: u32::from(residual.is_some()),
            norm: few.norm.map_or(0, |n| if n.kind == NormKind::Layer { 1 } else { 2 }),
            norm_weight: u32::from(norm_weight.is_some()),
            norm_bias: u32::from(norm_bias.is_some()),
            eps: few.norm.map_or(0.0, |n| n.eps),
            sequence_count: few.sequences.map_or(0, |s| s.layout().size(0)),
            sequence_stride: stride(few.sequences, 0),
            q_columns: q_columns as u32,
            ..Params::default()
        };
        let front = [Some(weight), bias, norm_weight, norm_bias, Some(x)];
        let size = |tensor: Tensor| self.element(tensor).size() * tensor.layout().len() as u64;
        let mut bytes: u64 = front.iter().flatten().chain(&residual).map(|&t| size(t)).sum();
        let (kernel, back) = match few.out {
            FewOutput::Rows => {
                bytes += size(y);
                (&KERNEL, [residual, Some(y)])
            }
            FewOutput::Append { cache, head_size, value_head_size } => {
                let layout = cache.layout();
                bytes += self.element(cache).size() * (rows * d_out) as u64;
                params.heads = layout.size(2);
                params.head_size = head_size as u32;
                params.value_size = value_head_size as u32;
                params.capacity = layout.size(3);
                params.key_rows = key_rows(cache);
                params.cache_kind = layout.stride(0);
                params.cache_head = layout.stride(2);
                // Of slots with one key too: a row's number counts keys of all slots and heads.
                params.cache_row = layout.strides()[3] as u32;
                (&KERNEL_APPEND, [Some(y), Some(cache)])
            }
            FewOutput::Logits { maxima } => {
                bytes += size(y) + size(maxima);
                params.maxima_row = maxima.layout().stride(0);
                params.maxima_group = maxima.layout().stride(1);
                (&KERNEL_LOGITS, [Some(y), Some(maxima)])
            }
        };
        let norm_flops = if few.norm.is_some() { 8 * rows as u64 * d_in as u64 } else { 0 };
        let tiles = |class: &Class| {
            let columns = if kernel.name == KERNEL_LOGITS.name { GROUP } else { columns(class) };
            (rows as u64).div_ceil(u64::from(class.get("ROWS"))) * (d_out as u64).div_ceil(columns as u64)
        };
        let launch = Launch {
            label,
            variant: Variant::of(kernel, choice, storage, 0),
            workgroups: tiles(choice.class),
            params,
            operands: &[&front[..], &back, &[few.sequences]].concat(),
            flops: 2 * rows as u64 * d_in as u64 * d_out as u64 + norm_flops,
            bytes: Some(bytes),
        };
        self.launch_in_forms(launch, tiles(classes::unaligned(choice.class)))
    }
}

/// Columns of one pass of a workgroup: four for K_THREADS threads.
fn columns(class: &Class) -> usize {
    (4 * class.get("THREADS") / class.get("K_THREADS")) as usize
}

/// How the classes of CPU adapters load f16, whether or not the device has the type: in pairs, which take half the loads.
pub(super) fn form(storage: Storage, choice: &Choice) -> Storage {
    let pairs = storage == Storage::F16x4 && choice.class.get("K_THREADS") == 1;
    if pairs { Storage::Packedx4 } else { storage }
}
