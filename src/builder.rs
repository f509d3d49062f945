//! Builders: tensors by name, kernels appended one after another, scratch laid out.

mod launch;
mod stored;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::pipeline::Kernels;
use crate::program::{Dispatch, Inner, Operand, Program, Role, Slot, Tensor};
use crate::shape::Layout;
use crate::tensor::Element;
use crate::tuning::Case;
pub(crate) use launch::Launch;

static NEXT_BUILDER: AtomicU64 = AtomicU64::new(0);

/// Chains kernels into a [`Program`].
///
/// Name the tensors, append kernels and layers (the structs of [`crate::kernels`] and [`crate::layers`] are what the methods here take),
/// finish. An error leaves what was appended before it: drop the builder then.
///
/// A layer's `prefix` stands in front of its weights' names and is empty or ends in a dot, as in `encoder.layers.0.`; another one is refused.
/// ([`Builder::batch`]'s alone is free: `cross_` gives `cross_sequences`.)
///
/// ```no_run
/// # fn f(kernels: &tileformer::Kernels) -> tileformer::Result<()> {
/// use tileformer::{Builder, Element, Layout, kernels::Linear};
/// let mut b = Builder::new(kernels, "projection");
/// let x = b.input("x", Element::F32, Layout::contiguous(&[10, 64])?)?;
/// let weight = b.weight("weight", Layout::contiguous(&[128, 64])?)?;
/// let y = b.output("y", Element::F32, Layout::contiguous(&[10, 128])?)?;
/// b.linear("projection", &Linear::new(x, weight, y))?;
/// let program = b.finish()?;
/// println!("{}", program.describe());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Builder {
    id: u64,
    kernels: Kernels,
    name: String,
    /// What weights, and the tensors that layers put between their dispatches, are stored as.
    storage: Element,
    /// What weights of projections are stored as.
    weights: Element,
    slots: Vec<Slot>,
    by_name: HashMap<String, usize>,
    dispatches: Vec<Dispatch>,
    /// What the next dispatch was chosen for, where it was chosen.
    case: Option<Case>,
    arena: Vec<u8>,
    arena_parts: HashMap<Vec<u8>, usize>,
}

impl Builder {
    /// An empty program.
    #[must_use]
    pub fn new(kernels: &Kernels, name: &str) -> Self {
        Self {
            id: NEXT_BUILDER.fetch_add(1, Ordering::Relaxed),
            kernels: kernels.clone(),
            name: name.to_owned(),
            storage: Element::F32,
            weights: Element::F32,
            slots: Vec::new(),
            by_name: HashMap::new(),
            dispatches: Vec::new(),
            case: None,
            arena: Vec::new(),
            arena_parts: HashMap::new(),
        }
    }

    /// The device-wide state that the program will run on.
    #[must_use]
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    pub(crate) fn batch_invariant(&self) -> bool {
        self.kernels.options().batch_invariant
    }

    /// An activation that the caller binds and the program reads (`f32` or `f16` rows, or `u32` ids, masks and sequences). Asking for a
    /// name again gives the same tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Option`] for a name that is there with another layout or role.
    pub fn input(&mut self, name: &str, element: Element, layout: Layout) -> Result<Tensor> {
        self.slot(name, Role::Input, element, layout)
    }

    /// A weight that the caller binds, stored as [`Builder::storage`] says. Asking for a name again gives the same tensor: that is
    /// how weights are tied.
    ///
    /// # Errors
    /// As [`Builder::input`].
    pub fn weight(&mut self, name: &str, layout: Layout) -> Result<Tensor> {
        self.weight_as(name, self.storage, layout)
    }

    /// As [`Builder::weight`], stored as `element`: a bias by distance is f32, a weight in [`blocks`](crate::spec::blocks) has rows of words.
    ///
    /// # Errors
    /// As [`Builder::input`].
    pub fn weight_as(&mut self, name: &str, element: Element, layout: Layout) -> Result<Tensor> {
        self.slot(name, Role::Weight, element, layout)
    }

    /// A tensor that the caller binds and the program writes.
    ///
    /// # Errors
    /// As [`Builder::input`].
    pub fn output(&mut self, name: &str, element: Element, layout: Layout) -> Result<Tensor> {
        self.slot(name, Role::Output, element, layout)
    }

    /// A tensor that the caller binds and the program both reads and writes, from one run to the next.
    ///
    /// # Errors
    /// As [`Builder::input`].
    pub fn state(&mut self, name: &str, element: Element, layout: Layout) -> Result<Tensor> {
        self.slot(name, Role::State, element, layout)
    }

    /// A tensor between two dispatches, in memory of the plan's: one must write it before another reads it. The name serves in
    /// messages only.
    ///
    /// # Errors
    /// [`Error::Option`] for a layout that a shader cannot index.
    pub fn scratch(&mut self, name: &str, element: Element, layout: Layout) -> Result<Tensor> {
        self.push(name, Role::Scratch, element, layout);
        Ok(Tensor { builder: self.id, slot: self.slots.len() - 1, offset: 0, layout, padded: false })
    }

    /// Scratch whose rows are followed by room up to a multiple of four, so that any row length runs in groups of four.
    pub(crate) fn scratch_rows(&mut self, name: &str, sizes: &[usize]) -> Result<Tensor> {
        let mut padded = sizes.to_vec();
        if let Some(last) = padded.last_mut() {
            *last = last.next_multiple_of(4);
        }
        let tensor = self.scratch(name, Element::F32, Layout::contiguous(&padded)?)?;
        let layout = Layout::strided(sizes, tensor.layout.strides())?;
        Ok(Tensor { layout, padded: true, ..tensor })
    }

    fn slot(&mut self, name: &str, role: Role, element: Element, layout: Layout) -> Result<Tensor> {
        let slot = if let Some(&slot) = self.by_name.get(name) {
            let found = &self.slots[slot];
            if found.role != role || found.element != element {
                let expected = format!("{:?} of {}, as it is there already", found.role, found.element.name());
                return Err(Error::option(name, expected, format!("{role:?} of {}", element.name())));
            }
            if found.layout != layout {
                return Err(Error::shape(name, found.layout, layout));
            }
            slot
        } else {
            self.push(name, role, element, layout);
            self.by_name.insert(name.to_owned(), self.slots.len() - 1);
            self.slots.len() - 1
        };
        Ok(Tensor { builder: self.id, slot, offset: 0, layout, padded: false })
    }

    fn push(&mut self, name: &str, role: Role, element: Element, layout: Layout) {
        self.slots.push(Slot {
            name: name.to_owned(),
            role,
            element,
            layout,
            columns: None,
            scratch: None,
            first_write: None,
            last_read: None,
        });
    }

    /// The name of a tensor, for messages.
    pub(crate) fn tensor_name(&self, tensor: Tensor) -> &str {
        self.slots.get(tensor.slot).map_or("tensor", |s| s.name.as_str())
    }

    /// Refuses a tensor of another builder, or with other sizes than `sizes`, or whose last dimension is not dense. `what` is its
    /// part in the dispatch `label`.
    pub(crate) fn expect(&self, label: &str, what: &str, tensor: Tensor, element: Element, sizes: &[usize]) -> Result<()> {
        self.expect_strided(label, what, tensor, element, sizes)?;
        if !tensor.layout.is_dense_inside() {
            let name = self.part_name(label, what, tensor);
            return Err(Error::shape(name, "a last dimension of stride 1", tensor.layout));
        }
        Ok(())
    }

    /// As [`Builder::expect`], with any stride in the last dimension.
    pub(crate) fn expect_strided(
        &self,
        label: &str,
        what: &str,
        tensor: Tensor,
        element: Element,
        sizes: &[usize],
    ) -> Result<()> {
        if tensor.builder != self.id {
            let expected = format!("a tensor of program {:?}", self.name);
            return Err(Error::option(format!("{what} of {label}"), expected, "one of another program"));
        }
        let name = || self.part_name(label, what, tensor);
        let found = self.slots[tensor.slot].element;
        if found != element {
            return Err(Error::Element { tensor: name(), expected: element.name(), found: found.name() });
        }
        if tensor.layout.sizes() != sizes {
            return Err(Error::shape(name(), format!("{sizes:?}"), tensor.layout));
        }
        Ok(())
    }

    /// A tensor's name and its part in a dispatch: "logits (x of argmax)", or "x of argmax" where both are one.
    pub(crate) fn part_name(&self, label: &str, what: &str, tensor: Tensor) -> String {
        let name = self.tensor_name(tensor);
        let part = if label.is_empty() { what.to_owned() } else { format!("{what} of {label}") };
        if name == what { part } else { format!("{name} ({part})") }
    }

    /// The most elements of a weight or table that one binding holds, with room for the offset's remainder.
    pub(crate) fn binding_elements(&self, element: Element) -> u64 {
        let held = self.kernels.limits().max_storage_buffer_binding_size / element.size();
        held.saturating_sub(2 * self.kernels.tensor_step(element)).max(1)
    }

    /// The element of a tensor.
    pub(crate) fn element(&self, tensor: Tensor) -> Element {
        self.slots.get(tensor.slot).map_or(Element::F32, |s| s.element)
    }

    /// The finished program.
    ///
    /// # Errors
    /// [`Error::Option`] for a program without a dispatch or with an output of which nothing is written, [`Error::Limit`] for scratch that
    /// exceeds the device's largest buffer, [`Error::Device`] when it is out of memory.
    pub fn finish(mut self) -> Result<Program> {
        if self.dispatches.is_empty() {
            return Err(Error::option(self.name, "at least one dispatch", 0));
        }
        if let Some(slot) = self.slots.iter().find(|s| s.role == Role::Output && s.first_write.is_none()) {
            return Err(Error::option(&slot.name, "a dispatch that writes this output", "none"));
        }
        let scratch = self.assign_scratch()?;
        let arena = crate::scratch::uniform_buffer(&self.kernels, &self.name, &self.arena)?;
        Ok(Program {
            inner: Arc::new(Inner {
                kernels: self.kernels,
                name: self.name,
                slots: self.slots,
                by_name: self.by_name,
                dispatches: self.dispatches,
                arena_bytes: self.arena,
                arena,
                scratch,
            }),
        })
    }

    /// Gives every scratch tensor a buffer: one that is free at its first use, the smallest that is large enough or else the
    /// largest, which grows. Two tensors that meet in a dispatch are both alive then and never share.
    fn assign_scratch(&mut self) -> Result<Vec<u64>> {
        let mut last_use = HashMap::new();
        for (at, dispatch) in self.dispatches.iter().enumerate() {
            last_use.extend(dispatch.operands.iter().filter_map(Operand::slot).map(|slot| (slot, at)));
        }
        let (mut sizes, mut free): (Vec<u64>, Vec<usize>) = (Vec::new(), Vec::new());
        for at in 0..self.dispatches.len() {
            let used: Vec<usize> = self.dispatches[at].operands.iter().filter_map(Operand::slot).collect();
            for &slot in &used {
                let entry = &mut self.slots[slot];
                if entry.role != Role::Scratch || entry.scratch.is_some() {
                    continue;
                }
                let bytes = (entry.layout.extent() * entry.element.size()).next_multiple_of(16);
                let fits = free.iter().copied().filter(|&b| sizes[b] >= bytes).min_by_key(|&b| sizes[b]);
                let buffer = fits.or_else(|| free.iter().copied().max_by_key(|&b| sizes[b])).unwrap_or(sizes.len());
                free.retain(|&b| b != buffer);
                if buffer == sizes.len() {
                    sizes.push(0);
                }
                sizes[buffer] = sizes[buffer].max(bytes);
                entry.scratch = Some(buffer);
            }
            let mut ending: Vec<usize> = used.into_iter().filter(|slot| last_use.get(slot) == Some(&at)).collect();
            ending.sort_unstable();
            ending.dedup();
            free.extend(ending.into_iter().filter_map(|slot| self.slots[slot].scratch));
        }
        let allowed = self.kernels.limits().max_buffer_size;
        match sizes.iter().find(|&&needed| needed > allowed) {
            Some(&needed) => {
                Err(Error::Limit { what: format!("scratch of {}", self.name), limit: "max_buffer_size", needed, allowed })
            }
            None => Ok(sizes),
        }
    }
}
