//! Plans: a program bound to buffers, recorded, timed.

use std::fmt;
use std::sync::Arc;

use crate::bindings::{Bindings, place_views};
use crate::error::{Error, Result};
use crate::overlap;
use crate::program::{self, Inner, Operand, Program, Role, Tensor, shared};
use crate::scratch::{Scratch, checked, uniform_buffer};
use crate::tensor::TensorView;
use crate::variant::{Load, Variant};

/// A dispatch with everything that recording needs.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pipeline: wgpu::ComputePipeline,
    groups: [wgpu::BindGroup; 2],
    grid: [u32; 3],
    variant: Variant,
}

/// A program bound to buffers. Recording it cannot fail, allocates nothing beyond what wgpu does, and may happen any number
/// of times, in any encoder of the device.
///
/// What a run computes is what stands in the buffers by then. A batch that is smaller than the program's
/// [`BatchShape`](crate::BatchShape) needs no other plan; write its sequences whole, by
/// [`Sequences::for_shape`](crate::Sequences::for_shape), as entries of a larger batch before it would run on.
#[derive(Clone)]
pub struct Plan {
    program: Program,
    scratch: Scratch,
    /// One for each slot that the caller binds.
    views: Vec<Option<TensorView>>,
    arena: Arena,
    pub(crate) bound: Vec<Bound>,
}

/// The parameters that a plan uses: the program's, or a copy in which other offsets stand.
#[derive(Clone)]
enum Arena {
    Shared,
    Own(wgpu::Buffer, Arc<[u8]>),
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Program {
    /// The program on buffers, with scratch of its own.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Unknown`], [`Error::Element`] and [`Error::Shape`] for names and layouts that are not the
    /// program's; [`Error::Usage`], [`Error::BufferTooSmall`], [`Error::Alias`] and [`Error::Limit`] for what wgpu would refuse;
    /// [`Error::Alias`] too for views with bytes in common of which a dispatch writes one, where the other is a weight, a result or a state, or
    /// a later dispatch reads it (a result may take the place of an input that nothing reads any more); [`Error::Compile`] and
    /// [`Error::Device`] for what the device does.
    pub fn bind(&self, bindings: &Bindings) -> Result<Plan> {
        self.bind_with(bindings, &Scratch::shared(&[self])?)
    }

    /// The program on buffers, with scratch that other plans may use too, though not at the same time: recorded one after the
    /// other into one encoder they do not meet.
    ///
    /// # Errors
    /// As [`Program::bind`]; [`Error::BufferTooSmall`] for scratch that was made for other programs.
    pub fn bind_with(&self, bindings: &Bindings, scratch: &Scratch) -> Result<Plan> {
        let inner = &*self.inner;
        for (i, &needed) in inner.scratch.iter().enumerate() {
            let size = scratch.buffers.get(i).map_or(0, wgpu::Buffer::size);
            if size < needed {
                return Err(Error::BufferTooSmall { tensor: format!("scratch of {}", inner.name), needed, size });
            }
        }
        let mut views: Vec<Option<TensorView>> = vec![None; inner.slots.len()];
        place_views(inner, bindings, &mut views, |_| true)?;
        let mut missing = inner.slots.iter().zip(&views).filter(|(slot, view)| slot.role != Role::Scratch && view.is_none());
        if let Some((slot, _)) = missing.next() {
            let more = match missing.count() {
                0 => String::new(),
                more => format!(", and {more} more that are not bound"),
            };
            let expected = format!("{} {}{more}", slot.element.name(), slot.layout);
            return Err(Error::Missing { tensor: slot.name.clone(), expected });
        }
        let mut plan =
            Plan { program: self.clone(), scratch: scratch.clone(), views, arena: Arena::Shared, bound: Vec::new() };
        plan.build(None)?;
        Ok(plan)
    }
}

impl Plan {
    /// The program that is bound.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// What is bound to a name of the program's.
    #[must_use]
    pub fn view(&self, name: &str) -> Option<&TensorView> {
        let slot = *self.program.inner.by_name.get(name)?;
        self.views[slot].as_ref()
    }

    /// The variants that run, one a dispatch.
    #[must_use]
    pub fn variants(&self) -> Vec<Variant> {
        self.bound.iter().map(|b| b.variant).collect()
    }

    /// A table as [`Program::describe`] makes it, with the variants that run on these buffers.
    #[must_use]
    pub fn describe(&self) -> String {
        let inner = &self.program.inner;
        program::describe(inner, inner.dispatches.iter().zip(&self.bound).map(|(d, b)| (d, b.variant)))
    }

    /// Binds other activations (inputs, outputs and states); what is not named stays. One new bind group for each dispatch that is
    /// touched. After an error the plan is as it was.
    ///
    /// # Errors
    /// As [`Program::bind`]; [`Error::Option`] for a weight, which stays for a plan's life.
    pub fn rebind(&mut self, bindings: &Bindings) -> Result<()> {
        let mut next = self.clone();
        let activation = |role| matches!(role, Role::Input | Role::Output | Role::State);
        place_views(&self.program.inner, bindings, &mut next.views, activation)?;
        let touched: Vec<bool> = self.views.iter().zip(&next.views).map(|(a, b)| a != b).collect();
        next.build(Some(&touched))?;
        *self = next;
        Ok(())
    }

    /// Builds the bind groups of every dispatch, or of those that have a touched slot.
    fn build(&mut self, touched: Option<&[bool]>) -> Result<()> {
        let program = self.program.clone();
        let inner = &*program.inner;
        overlap::check(inner, &self.views)?;
        let same_parameters = self.choose_arena(inner)? && touched.is_some();
        let mut bound = Vec::with_capacity(inner.dispatches.len());
        for (at, dispatch) in inner.dispatches.iter().enumerate() {
            let hit = |o: &Operand| touched.is_none_or(|t| o.slot().is_some_and(|slot| t[slot]));
            match self.bound.get(at) {
                Some(old) if same_parameters && !dispatch.operands.iter().any(hit) => bound.push(old.clone()),
                old => {
                    let group_0_stays = same_parameters && !dispatch.operands.iter().any(|o| o.binding.group == 0 && hit(o));
                    bound.push(self.bind_dispatch(inner, at, old.filter(|_| group_0_stays))?);
                }
            }
        }
        self.bound = bound;
        Ok(())
    }

    /// Where a tensor lies: its buffer and the element at which it begins.
    fn locate(&self, inner: &Inner, slot: usize, offset: u64) -> Option<(&wgpu::Buffer, u64)> {
        match inner.slots[slot].scratch {
            Some(buffer) => Some((self.scratch.buffers.get(buffer)?, offset)),
            None => self.views[slot].as_ref().map(|view| (view.buffer(), view.offset() + offset)),
        }
    }

    /// Uses the program's parameters where the views' offsets are those it was made for, else a copy with the right ones.
    /// Returns whether the parameters are the same as before.
    fn choose_arena(&mut self, inner: &Inner) -> Result<bool> {
        let step = inner.kernels.parameter_step();
        // Equal parameters share a place in the program's arena, but two dispatches may need other offsets in them: in a copy
        // every dispatch has a place of its own.
        let mut bytes: Vec<u8> = Vec::new();
        let mut differs = false;
        for dispatch in &inner.dispatches {
            let mut params = inner.arena_bytes[dispatch.params.clone()].to_vec();
            for operand in &dispatch.operands {
                let Some(tensor) = operand.tensor else { continue };
                if let Some((_, first)) = self.locate(inner, tensor.slot(), tensor.offset()) {
                    let element = inner.slots[tensor.slot()].element;
                    operand.binding.write_offset(&mut params, first % inner.kernels.tensor_step(element));
                }
            }
            differs |= params != inner.arena_bytes[dispatch.params.clone()];
            bytes.resize(bytes.len().next_multiple_of(step), 0);
            bytes.extend_from_slice(&params);
        }
        if !differs {
            let same = matches!(self.arena, Arena::Shared);
            self.arena = Arena::Shared;
            return Ok(same);
        }
        if matches!(&self.arena, Arena::Own(_, old) if **old == *bytes) {
            return Ok(true);
        }
        self.arena = Arena::Own(uniform_buffer(&inner.kernels, &inner.name, &bytes)?, bytes.into());
        Ok(false)
    }

    /// The uniform range of dispatch number `at`.
    fn parameters<'a>(&'a self, inner: &'a Inner, at: usize) -> wgpu::BufferBinding<'a> {
        let range = &inner.dispatches[at].params;
        let (buffer, offset) = match &self.arena {
            Arena::Shared => (&inner.arena, range.start),
            Arena::Own(buffer, _) => {
                let step = inner.kernels.parameter_step();
                (buffer, inner.dispatches[..at].iter().map(|d| d.params.len().next_multiple_of(step)).sum())
            }
        };
        wgpu::BufferBinding { buffer, offset: offset as u64, size: std::num::NonZeroU64::new(range.len() as u64) }
    }

    fn bind_dispatch(&self, inner: &Inner, at: usize, old: Option<&Bound>) -> Result<Bound> {
        let dispatch = &inner.dispatches[at];
        let limits = inner.kernels.limits();
        let buffer_of = |t: Tensor| self.locate(inner, t.slot(), t.offset()).map(|(buffer, _)| buffer);
        if let Some((written, other)) = shared(&dispatch.operands, buffer_of) {
            let name = |t: Tensor| inner.slots[t.slot()].name.clone();
            return Err(Error::Alias { dispatch: dispatch.label.clone(), written: name(written), other: name(other) });
        }

        let mut variant = dispatch.variant;
        let mut entries: [Vec<wgpu::BindGroupEntry<'_>>; 2] = Default::default();
        for operand in &dispatch.operands {
            let (buffer, offset, size) = match operand.tensor {
                None => inner.kernels.nothing(operand.binding),
                Some(tensor) => {
                    let slot = &inner.slots[tensor.slot()];
                    let Some((buffer, first)) = self.locate(inner, tensor.slot(), tensor.offset()) else { continue };
                    let bytes = slot.element.size();
                    let remainder = first % inner.kernels.tensor_step(slot.element);
                    if operand.binding.load != Load::Single && !remainder.is_multiple_of(4) {
                        variant = dispatch.variant.unaligned();
                        variant.storage = variant.storage.on(inner.kernels.class());
                    }
                    if operand.binding.load == Load::Grouped && !remainder.is_multiple_of(variant.storage.lanes()) {
                        let expected = "an even offset, as f16 is stored in pairs here";
                        return Err(Error::shape(&slot.name, expected, format!("offset {first}")));
                    }
                    // Bindings are whole words.
                    let size = ((remainder + tensor.extent()) * bytes).next_multiple_of(4);
                    if size > limits.max_storage_buffer_binding_size {
                        return Err(Error::Limit {
                            what: slot.name.clone(),
                            limit: "max_storage_buffer_binding_size",
                            needed: size,
                            allowed: limits.max_storage_buffer_binding_size,
                        });
                    }
                    (buffer, (first - remainder) * bytes, size)
                }
            };
            entries[operand.binding.group as usize].push(wgpu::BindGroupEntry {
                binding: operand.binding.binding,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer,
                    offset,
                    size: std::num::NonZeroU64::new(size),
                }),
            });
        }
        let pipeline = inner.kernels.pipeline(&variant)?;
        entries[0]
            .push(wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(self.parameters(inner, at)) });
        let group = |i: usize| {
            inner.kernels.device().create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&dispatch.label),
                layout: &pipeline.groups[i],
                entries: &entries[i],
            })
        };
        // Group 0 stays while parameters, pipeline and whatever stands in for weights do.
        let kept = old.filter(|o| o.variant == variant).map(|o| o.groups[0].clone());
        let groups = checked(inner.kernels.device(), &dispatch.label, || [kept.unwrap_or_else(|| group(0)), group(1)]);
        let groups = groups.map_err(|error| match error {
            // wgpu names neither the binding's tensor nor, where it has no label, its buffer.
            Error::Device(what) => {
                let bound = dispatch.operands.iter().filter_map(|o| Some((o.binding, &inner.slots[o.slot()?].name)));
                let names: Vec<_> = bound.map(|(b, name)| format!("{name} ({}.{})", b.group, b.binding)).collect();
                Error::Device(format!("{what}; bound are, by group and binding, {}", names.join(", ")))
            }
            other => other,
        })?;
        let grid = if variant == dispatch.variant { dispatch.grid } else { dispatch.unaligned_grid };
        Ok(Bound { pipeline: pipeline.pipeline, groups, grid, variant })
    }

    /// Records the dispatches into a compute pass of the caller's. Afterwards the pass's pipeline and bind groups 0 and 1 are
    /// this plan's.
    pub fn record_in(&self, pass: &mut wgpu::ComputePass<'_>) {
        for bound in &self.bound {
            bound.record(pass);
        }
    }

    /// Records the dispatches number `part` of [`Program::dispatches`] and no others, so that a long run can be spread over frames; numbers beyond
    /// the last are left out. The parts of one run must come in order, each dispatch once; until the last of them has run, nothing else may use the
    /// plan's scratch ([`Scratch::shared`]) or change what it reads.
    pub fn record_part(&self, pass: &mut wgpu::ComputePass<'_>, part: std::ops::Range<usize>) {
        let end = part.end.min(self.bound.len());
        for bound in self.bound.get(part.start..end).unwrap_or_default() {
            bound.record(pass);
        }
    }

    /// Records the dispatches into one compute pass of their own.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let descriptor = wgpu::ComputePassDescriptor { label: Some(self.program.name()), timestamp_writes: None };
        self.record_in(&mut encoder.begin_compute_pass(&descriptor));
    }
}

impl Bound {
    pub(crate) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.groups[0], &[]);
        pass.set_bind_group(1, &self.groups[1], &[]);
        let [x, y, z] = self.grid;
        pass.dispatch_workgroups(x, y, z);
    }
}
