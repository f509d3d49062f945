//! Programs: dispatches, parameters, scratch and cost at a shape, before any buffer is there.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::pipeline::Kernels;
use crate::shape::Layout;
use crate::tensor::Element;
use crate::tuning::Case;
use crate::variant::{Binding, Variant};

/// Declares a kernel's parameters: a plain struct whose fields a test compares with WGSL's, one by one.
macro_rules! params {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        pub(crate) struct $name { $(pub(crate) $field: $kind),* }

        impl $name {
            #[cfg_attr(not(test), allow(dead_code))]
            pub(crate) const FIELDS: &'static [(&'static str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field))),*];
        }
    };
}
pub(crate) use params;

/// Who provides a tensor's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// The caller, for the life of a plan.
    Weight,
    /// The caller; read.
    Input,
    /// The caller; written.
    Output,
    /// The caller; read and written, by this run and by those before it: a key/value cache, say.
    State,
    /// The plan; lives between two dispatches.
    Scratch,
}

/// A tensor of a program that is being built: a name with a layout, or a part of one. It has no memory yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub(crate) builder: u64,
    pub(crate) slot: usize,
    pub(crate) offset: u64,
    pub(crate) layout: Layout,
    /// Whether every row is followed by room up to a multiple of four, which stores may fill.
    pub(crate) padded: bool,
}

impl Tensor {
    /// Sizes and strides.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    /// Whether it may be loaded and stored in groups of `n`, 4 or 2.
    pub(crate) fn is_in_groups(&self, n: u64) -> bool {
        let inside = self.layout.is_in_groups(n as usize) || (self.padded && self.layout.is_in_groups_outside(n as usize));
        inside && self.offset.is_multiple_of(n)
    }

    /// Whether it is a vector that may be loaded in pairs, whatever its size: bindings are whole words.
    pub(crate) fn is_vector_in_pairs(&self) -> bool {
        self.layout.sizes().len() == 1 && self.layout.is_in_groups_outside(2) && self.offset.is_multiple_of(2)
    }

    /// Elements from its first to behind its last, room included.
    pub(crate) fn extent(&self) -> u64 {
        if self.padded { self.layout.extent().next_multiple_of(4) } else { self.layout.extent() }
    }

    /// Elements `from .. from + size` of dimension `dim`.
    ///
    /// # Errors
    /// [`Error::Option`] for a range outside the dimension, or an empty one.
    pub fn narrow(&self, dim: usize, from: usize, size: usize) -> Result<Self> {
        let (mut sizes, strides) = (self.layout.sizes().to_vec(), self.layout.strides());
        let found = || format!("{from}..{} of dimension {dim}", from.saturating_add(size));
        if dim >= sizes.len() || size == 0 || from.checked_add(size).is_none_or(|end| end > sizes[dim]) {
            return Err(Error::option("range", format!("a part of {}", self.layout), found()));
        }
        // The room behind rows is that of their end.
        let rows_end = dim + 1 < sizes.len() || (from.is_multiple_of(4) && from + size == sizes[dim]);
        sizes[dim] = size;
        let offset = self.offset + (from * strides[dim]) as u64;
        let padded = self.padded && rows_end;
        Ok(Self { offset, layout: Layout::strided(&sizes, strides)?, padded, ..*self })
    }

    /// Element `at` of dimension `dim`, which goes: a column of a matrix, say.
    ///
    /// # Errors
    /// As [`Tensor::narrow`]; [`Error::Shape`] for a tensor of one dimension.
    pub fn select(&self, dim: usize, at: usize) -> Result<Self> {
        let narrow = self.narrow(dim, at, 1)?;
        let without = |all: &[usize]| all.iter().enumerate().filter(|(d, _)| *d != dim).map(|(_, v)| *v).collect::<Vec<_>>();
        let (sizes, strides) = (without(narrow.layout.sizes()), without(narrow.layout.strides()));
        if sizes.is_empty() {
            return Err(Error::shape("tensor", "at least two dimensions", self.layout));
        }
        Ok(Self {
            layout: Layout::strided(&sizes, &strides)?,
            padded: narrow.padded && dim + 1 < self.layout.sizes().len(),
            ..narrow
        })
    }

    /// Rows (N, a) and the rows (N, b) right behind each of them as one, (N, a + b), where they lie so.
    pub(crate) fn beside(&self, next: &Self) -> Option<Self> {
        let (&[rows, columns], &[next_rows, more]) = (self.layout.sizes(), next.layout.sizes()) else { return None };
        let together = self.slot == next.slot
            && self.builder == next.builder
            && rows == next_rows
            && self.layout.strides() == next.layout.strides()
            && next.offset == self.offset + columns as u64;
        let layout = Layout::strided(&[rows, columns + more], self.layout.strides()).ok()?;
        together.then_some(Self { layout, padded: false, ..*self })
    }

    /// Rows (N, heads · size) seen as (N, heads, size).
    ///
    /// # Errors
    /// [`Error::Shape`] for a tensor that is not (N, heads · size) with dense rows.
    pub fn split_heads(&self, heads: usize, size: usize) -> Result<Self> {
        let (sizes, strides) = (self.layout.sizes(), self.layout.strides());
        if sizes.len() != 2 || heads.checked_mul(size) != Some(sizes[1]) || !self.layout.is_dense_inside() {
            return Err(Error::shape("heads", format!("(rows, {heads} · {size}), dense"), self.layout));
        }
        let layout = Layout::strided(&[sizes[0], heads, size], &[strides[0], size, 1])?;
        Ok(Self { layout, padded: false, ..*self })
    }
}

/// A tensor's entry in a program.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) element: Element,
    pub(crate) layout: Layout,
    /// Of a weight in blocks, how many numbers are in a row.
    pub(crate) columns: Option<usize>,
    /// Which scratch buffer holds it.
    pub(crate) scratch: Option<usize>,
    /// The number of the first dispatch that writes it.
    pub(crate) first_write: Option<usize>,
    /// The number of the last dispatch that reads it.
    pub(crate) last_read: Option<usize>,
}

/// A tensor bound to a dispatch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    pub(crate) binding: &'static Binding,
    /// `None` binds nothing to an optional input.
    pub(crate) tensor: Option<Tensor>,
}

impl Operand {
    /// The slot, where something is bound.
    pub(crate) fn slot(&self) -> Option<usize> {
        self.tensor.map(|t| t.slot)
    }
}

/// A written operand and another one that lie in the same memory by `place`.
pub(crate) fn shared<K: PartialEq>(operands: &[Operand], place: impl Fn(Tensor) -> Option<K>) -> Option<(Tensor, Tensor)> {
    let bound = || operands.iter().enumerate().filter_map(|(i, o)| Some((i, o, o.tensor?)));
    for (i, _, written) in bound().filter(|(_, o, _)| o.binding.writes) {
        let same = |t: Tensor| matches!((place(t), place(written)), (Some(a), Some(b)) if a == b);
        if let Some((_, _, other)) = bound().find(|(k, _, t)| *k != i && same(*t)) {
            return Some((written, other));
        }
    }
    None
}

/// One dispatch of a program, with its cost.
#[derive(Clone, Debug)]
pub struct Dispatch {
    pub(crate) label: String,
    pub(crate) variant: Variant,
    /// What the variant was chosen for, where there was a choice.
    #[cfg_attr(not(feature = "convenience"), allow(dead_code))]
    pub(crate) case: Option<Case>,
    /// Whether it ends what the dispatch before it began: the choice was for both.
    #[cfg_attr(not(feature = "convenience"), allow(dead_code))]
    pub(crate) second: bool,
    pub(crate) grid: [u32; 3],
    /// The grid of the variant's unaligned form.
    pub(crate) unaligned_grid: [u32; 3],
    pub(crate) flops: u64,
    pub(crate) bytes: u64,
    pub(crate) params: std::ops::Range<usize>,
    pub(crate) operands: Vec<Operand>,
}

impl Dispatch {
    /// What it does in the layer, as in `self_attn.out_proj`.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The compiled form that runs. A plan whose views are not aligned to four elements takes the unaligned form instead.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Workgroups in x, y and z.
    #[must_use]
    pub fn grid(&self) -> [u32; 3] {
        self.grid
    }

    /// Floating-point operations at the program's full shape; a multiply-add counts two.
    #[must_use]
    pub fn flops(&self) -> u64 {
        self.flops
    }

    /// Bytes that must be read and written at least, at the program's full shape.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Dispatches at a shape, with their parameters on the device and their costs, but without buffers. Equal layers share one. A
/// clone is another handle of the same.
#[derive(Clone)]
pub struct Program {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) kernels: Kernels,
    pub(crate) name: String,
    pub(crate) slots: Vec<Slot>,
    pub(crate) by_name: HashMap<String, usize>,
    pub(crate) dispatches: Vec<Dispatch>,
    pub(crate) arena_bytes: Vec<u8>,
    pub(crate) arena: wgpu::Buffer,
    /// Bytes of each scratch buffer.
    pub(crate) scratch: Vec<u64>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Program {
    /// The program's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The dispatches in the order in which they run.
    #[must_use]
    pub fn dispatches(&self) -> &[Dispatch] {
        &self.inner.dispatches
    }

    /// The compiled forms that the program needs, each once: what a warm-up compiles. Views that are not aligned to four elements
    /// need others, which are compiled when they are bound.
    #[must_use]
    pub fn variants(&self) -> Vec<Variant> {
        let mut variants: Vec<Variant> = Vec::new();
        for dispatch in &self.inner.dispatches {
            if !variants.contains(&dispatch.variant) {
                variants.push(dispatch.variant);
            }
        }
        variants
    }

    /// Bytes of scratch that a plan of its own allocates, in all its buffers.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.inner.scratch.iter().sum()
    }

    /// Bytes of parameters on the device.
    #[must_use]
    pub fn parameter_bytes(&self) -> u64 {
        self.inner.arena.size()
    }

    /// Name, role, element type and layout of every tensor that the caller binds.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Role, Element, &Layout)> {
        let bound = self.inner.slots.iter().filter(|s| s.role != Role::Scratch);
        bound.map(|s| (s.name.as_str(), s.role, s.element, &s.layout))
    }

    /// Role, element type and layout of a tensor that the caller binds.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<(Role, Element, &Layout)> {
        let slot = &self.inner.slots[*self.inner.by_name.get(name)?];
        Some((slot.role, slot.element, &slot.layout))
    }

    /// The sizes in which the numbers of a tensor are given: those of its layout, but for a weight in [`blocks`](crate::spec::blocks), whose layout
    /// counts words.
    #[must_use]
    pub fn sizes(&self, name: &str) -> Option<Vec<usize>> {
        let slot = &self.inner.slots[*self.inner.by_name.get(name)?];
        let mut sizes = slot.layout.sizes().to_vec();
        if let (Some(columns), Some(last)) = (slot.columns, sizes.last_mut()) {
            *last = columns;
        }
        Some(sizes)
    }

    /// A table: dispatch, variant, grid, FLOPs, bytes.
    #[must_use]
    pub fn describe(&self) -> String {
        let rows = self.inner.dispatches.iter().map(|d| (d, d.variant));
        describe(&self.inner, rows)
    }
}

/// The table of [`Program::describe`], with the variants that run.
pub(crate) fn describe<'a>(program: &Inner, rows: impl Iterator<Item = (&'a Dispatch, Variant)>) -> String {
    let mut lines = vec![["dispatch", "variant", "grid", "FLOPs", "bytes"].map(str::to_owned)];
    let (mut flops, mut bytes) = (0u64, 0u64);
    for (d, variant) in rows {
        let grid = format!("{}×{}×{}", d.grid[0], d.grid[1], d.grid[2]);
        lines.push([d.label.clone(), variant.name(), grid, d.flops.to_string(), d.bytes.to_string()]);
        (flops, bytes) = (flops + d.flops, bytes + d.bytes);
    }
    let scratch = format!("{} bytes of scratch", program.scratch.iter().sum::<u64>());
    lines.push([format!("{} dispatches", lines.len() - 1), scratch, String::new(), flops.to_string(), bytes.to_string()]);
    let widths: [usize; 5] = std::array::from_fn(|i| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0));
    let mut text = format!("{}\n", program.name);
    for [label, variant, grid, flops, bytes] in lines {
        let [l, v, g, f, b] = widths;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label:<l$}  {variant:<v$}  {grid:>g$}  {flops:>f$}  {bytes:>b$}");
    }
    text
}
