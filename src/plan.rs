//! Plans: a program bound to buffers, recorded, timed.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::pipeline::{Kernels, Variant, now};
use crate::program::{self, Inner, Operand, Program, Role, Tensor};
use crate::tensor::TensorView;
use crate::tuning::Lanes;

/// Buffers by the names of a program's tensors.
///
/// ```no_run
/// # fn f(program: &tileformer::Program, x: tileformer::TensorView, y: tileformer::TensorView) -> tileformer::Result<()> {
/// let mut bindings = tileformer::Bindings::new();
/// bindings.set("x", x).set("y", y);
/// let plan = program.bind(&bindings)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    views: HashMap<String, TensorView>,
}

impl Bindings {
    /// No bindings yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds a view (or a [`Weight`](crate::Weight)) to a name; a later one replaces an earlier one.
    pub fn set(&mut self, name: impl Into<String>, view: impl Into<TensorView>) -> &mut Self {
        self.views.insert(name.into(), view.into());
        self
    }

    /// What is bound to a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TensorView> {
        self.views.get(name)
    }

    /// Names and views.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorView)> {
        self.views.iter().map(|(name, view)| (name.as_str(), view))
    }
}

impl<S: Into<String>, V: Into<TensorView>> Extend<(S, V)> for Bindings {
    fn extend<I: IntoIterator<Item = (S, V)>>(&mut self, items: I) {
        self.views.extend(items.into_iter().map(|(name, view)| (name.into(), view.into())));
    }
}

impl<S: Into<String>, V: Into<TensorView>> FromIterator<(S, V)> for Bindings {
    fn from_iter<I: IntoIterator<Item = (S, V)>>(items: I) -> Self {
        let mut bindings = Self::new();
        bindings.extend(items);
        bindings
    }
}

/// Scratch memory, which plans that do not run at once can share.
#[derive(Clone, Debug)]
pub struct Scratch {
    buffers: Vec<wgpu::Buffer>,
}

impl Scratch {
    /// Memory that serves each of `programs`, one at a time.
    ///
    /// # Errors
    /// [`Error::Device`] when the device is out of memory, [`Error::Option`] for programs of different devices.
    pub fn shared(programs: &[&Program]) -> Result<Self> {
        let Some(first) = programs.first() else { return Ok(Self { buffers: Vec::new() }) };
        let device = first.inner.kernels.device();
        if programs.iter().any(|p| p.inner.kernels.device() != device) {
            return Err(Error::option("scratch", "programs of one device", "programs of several"));
        }
        let mut sizes = Vec::new();
        for program in programs {
            let count = program.inner.scratch.len().max(sizes.len());
            sizes.resize(count, 0u64);
            sizes.iter_mut().zip(&program.inner.scratch).for_each(|(size, &needed)| *size = needed.max(*size));
        }
        let buffers = checked(&first.inner.kernels, "scratch", || {
            let create = |size: &u64| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("tileformer: scratch"),
                    size: *size,
                    usage: wgpu::BufferUsages::STORAGE,
                    mapped_at_creation: false,
                })
            };
            sizes.iter().map(create).collect()
        })?;
        Ok(Self { buffers })
    }

    /// Bytes of all its buffers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.buffers.iter().map(wgpu::Buffer::size).sum()
    }
}

/// Runs what creates device objects, and returns as an error what the device says against it.
fn checked<T>(kernels: &Kernels, what: &str, create: impl FnOnce() -> T) -> Result<T> {
    let device = kernels.device();
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let value = create();
    let (validation, memory) = (now(validation.pop()), now(memory.pop()));
    match validation.flatten().or(memory.flatten()) {
        Some(error) => Err(Error::Device(format!("{what}: {error}"))),
        None => Ok(value),
    }
}

/// An immutable uniform buffer that holds `bytes`.
pub(crate) fn uniform_buffer(kernels: &Kernels, name: &str, bytes: &[u8]) -> Result<wgpu::Buffer> {
    let buffer = checked(kernels, name, || {
        kernels.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some(name),
            size: bytes.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        })
    })?;
    let failed = |e: &dyn fmt::Display| Error::Device(format!("{name}: {e}"));
    buffer.slice(..).get_mapped_range_mut().map_err(|e| failed(&e))?.copy_from_slice(bytes);
    buffer.unmap();
    Ok(buffer)
}

/// Bytes between two places for parameters.
fn parameter_step(kernels: &Kernels) -> usize {
    kernels.limits().min_uniform_buffer_offset_alignment.max(16) as usize
}

/// A dispatch with everything that recording needs.
#[derive(Clone, Debug)]
struct Bound {
    pipeline: wgpu::ComputePipeline,
    groups: [wgpu::BindGroup; 2],
    grid: [u32; 3],
    variant: Variant,
}

/// A program bound to buffers. Recording it cannot fail, allocates nothing beyond what wgpu does, and may happen any number
/// of times, in any encoder of the device.
#[derive(Clone)]
pub struct Plan {
    program: Program,
    scratch: Scratch,
    /// One for each slot that the caller binds.
    views: Vec<Option<TensorView>>,
    arena: Arena,
    bound: Vec<Bound>,
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
    /// [`Error::Compile`] and [`Error::Device`] for what the device does.
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
        if let Some((slot, _)) =
            inner.slots.iter().zip(&views).find(|(slot, view)| slot.role != Role::Scratch && view.is_none())
        {
            return Err(Error::Missing { tensor: slot.name.clone(), expected: slot.layout.to_string() });
        }
        let mut plan =
            Plan { program: self.clone(), scratch: scratch.clone(), views, arena: Arena::Shared, bound: Vec::new() };
        plan.build(None)?;
        Ok(plan)
    }
}

/// Checks bindings against a program's slots and puts them where they belong.
fn place_views(
    program: &Inner,
    bindings: &Bindings,
    views: &mut [Option<TensorView>],
    allowed: impl Fn(Role) -> bool,
) -> Result<()> {
    for (name, view) in bindings.iter() {
        let slot = program.by_name.get(name).copied().filter(|&s| allowed(program.slots[s].role));
        let Some(slot) = slot else {
            let mut known: Vec<&str> = program
                .slots
                .iter()
                .filter(|s| s.role != Role::Scratch && allowed(s.role))
                .map(|s| s.name.as_str())
                .collect();
            known.sort_unstable();
            return Err(Error::Unknown { tensor: name.to_owned(), known: known.join(", ") });
        };
        let expected = &program.slots[slot];
        if view.element() != expected.element {
            return Err(Error::Element {
                tensor: name.to_owned(),
                expected: expected.element.name(),
                found: view.element().name(),
            });
        }
        if *view.layout() != expected.layout {
            return Err(Error::shape(name, expected.layout, view.layout()));
        }
        views[slot] = Some(view.clone());
    }
    Ok(())
}

impl Plan {
    /// The program that is bound.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
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

    /// Binds other activations (inputs and outputs); what is not named stays. One new bind group for each dispatch that is
    /// touched. After an error the plan is as it was.
    ///
    /// # Errors
    /// As [`Program::bind`]; [`Error::Unknown`] for a weight, which stays for a plan's life.
    pub fn rebind(&mut self, bindings: &Bindings) -> Result<()> {
        let mut next = self.clone();
        let activation = |role| matches!(role, Role::Input | Role::Output);
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
        let same_parameters = self.choose_arena(inner)? && touched.is_some();
        let mut bound = Vec::with_capacity(inner.dispatches.len());
        for (at, dispatch) in inner.dispatches.iter().enumerate() {
            let hit = |o: &Operand| touched.is_none_or(|t| o.slot().is_some_and(|slot| t[slot]));
            match self.bound.get(at) {
                Some(old) if same_parameters && !dispatch.operands.iter().any(hit) => bound.push(old.clone()),
                old => bound.push(self.bind_dispatch(inner, at, old.filter(|_| same_parameters))?),
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
        let align = u64::from(inner.kernels.limits().min_storage_buffer_offset_alignment) / 4;
        let step = parameter_step(&inner.kernels);
        // Equal parameters share a place in the program's arena, but two dispatches may need other offsets in them: in a copy
        // every dispatch has a place of its own.
        let mut bytes: Vec<u8> = Vec::new();
        let mut differs = false;
        for dispatch in &inner.dispatches {
            let mut params = inner.arena_bytes[dispatch.params.clone()].to_vec();
            for operand in &dispatch.operands {
                let Some(tensor) = operand.tensor else { continue };
                if let Some((_, first)) = self.locate(inner, tensor.slot(), tensor.offset()) {
                    program::write_offset(&mut params, operand.binding, first % align);
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
                let step = parameter_step(&inner.kernels);
                (buffer, inner.dispatches[..at].iter().map(|d| d.params.len().next_multiple_of(step)).sum())
            }
        };
        wgpu::BufferBinding { buffer, offset: offset as u64, size: std::num::NonZeroU64::new(range.len() as u64) }
    }

    fn bind_dispatch(&self, inner: &Inner, at: usize, old: Option<&Bound>) -> Result<Bound> {
        let dispatch = &inner.dispatches[at];
        let limits = inner.kernels.limits();
        let align = u64::from(limits.min_storage_buffer_offset_alignment) / 4;
        let buffer_of = |t: Tensor| self.locate(inner, t.slot(), t.offset()).map(|(buffer, _)| buffer);
        if let Some((written, other)) = program::shared(&dispatch.operands, buffer_of) {
            let name = |t: Tensor| inner.slots[t.slot()].name.clone();
            return Err(Error::Alias { dispatch: dispatch.label.clone(), written: name(written), other: name(other) });
        }

        let mut variant = dispatch.variant;
        let mut entries: [Vec<wgpu::BindGroupEntry<'_>>; 2] = Default::default();
        for operand in &dispatch.operands {
            let (buffer, offset, size) = match operand.tensor {
                None => (inner.kernels.nothing(), 0, inner.kernels.nothing().size()),
                Some(tensor) => {
                    let slot = &inner.slots[tensor.slot()];
                    let Some((buffer, first)) = self.locate(inner, tensor.slot(), tensor.offset()) else { continue };
                    let remainder = first % align;
                    if operand.binding.grouped && !remainder.is_multiple_of(4) {
                        variant.lanes = Lanes::One;
                    }
                    let size = (remainder + tensor.extent()) * 4;
                    if size > limits.max_storage_buffer_binding_size {
                        return Err(Error::Limit {
                            what: slot.name.clone(),
                            limit: "max_storage_buffer_binding_size",
                            needed: size,
                            allowed: limits.max_storage_buffer_binding_size,
                        });
                    }
                    (buffer, (first - remainder) * 4, size)
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
        // Weights stay for a plan's life, so group 0 does too while parameters and pipeline do.
        let kept = old.filter(|o| o.variant == variant).map(|o| o.groups[0].clone());
        let groups = checked(&inner.kernels, &dispatch.label, || [kept.unwrap_or_else(|| group(0)), group(1)])?;
        Ok(Bound { pipeline: pipeline.pipeline, groups, grid: dispatch.grid, variant })
    }

    /// Records the dispatches into a compute pass of the caller's. Afterwards the pass's pipeline and bind groups 0 and 1 are
    /// this plan's.
    pub fn record_in(&self, pass: &mut wgpu::ComputePass<'_>) {
        for bound in &self.bound {
            bound.record(pass);
        }
    }

    /// Records the dispatches into one compute pass of their own.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let descriptor = wgpu::ComputePassDescriptor { label: Some(self.program.name()), timestamp_writes: None };
        self.record_in(&mut encoder.begin_compute_pass(&descriptor));
    }

    /// Records the dispatches with a timestamp on either side of each; see [`Timing`].
    ///
    /// # Errors
    /// [`Error::Option`] for a timing that was made for another number of dispatches.
    pub fn record_timed(&self, encoder: &mut wgpu::CommandEncoder, timing: &Timing) -> Result<()> {
        if timing.labels.len() != self.bound.len() {
            return Err(Error::option("timing", format!("{} dispatches", self.bound.len()), timing.labels.len()));
        }
        for (i, bound) in self.bound.iter().enumerate() {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some(&timing.labels[i]),
                timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                    query_set: &timing.queries,
                    beginning_of_pass_write_index: Some(2 * i as u32),
                    end_of_pass_write_index: Some(2 * i as u32 + 1),
                }),
            });
            bound.record(&mut pass);
        }
        let count = 2 * self.bound.len() as u32;
        encoder.resolve_query_set(&timing.queries, 0..count, &timing.resolved, 0);
        encoder.copy_buffer_to_buffer(&timing.resolved, 0, &timing.readback, 0, timing.readback.size());
        Ok(())
    }
}

impl Bound {
    fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.groups[0], &[]);
        pass.set_bind_group(1, &self.groups[1], &[]);
        let [x, y, z] = self.grid;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Timestamps of every dispatch of a plan.
///
/// ```no_run
/// # fn f(plan: &tileformer::Plan, device: &wgpu::Device, queue: &wgpu::Queue) -> Result<(), Box<dyn std::error::Error>> {
/// use tileformer::Timing;
/// let timing = Timing::new(plan)?;
/// let mut encoder = device.create_command_encoder(&Default::default());
/// plan.record_timed(&mut encoder, &timing)?;
/// queue.submit([encoder.finish()]);
/// timing.readback().slice(..).map_async(wgpu::MapMode::Read, |_| ());
/// device.poll(wgpu::PollType::wait_indefinitely())?;
/// for (label, nanoseconds) in timing.nanoseconds(&timing.readback().slice(..).get_mapped_range()?, queue.get_timestamp_period()) {
///     println!("{label}: {nanoseconds} ns");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Timing {
    labels: Vec<String>,
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readback: wgpu::Buffer,
}

impl Timing {
    /// Room for the timestamps of a plan.
    ///
    /// # Errors
    /// [`Error::Feature`] on a device without `TIMESTAMP_QUERY`, [`Error::Limit`] for more dispatches than a query set holds,
    /// [`Error::Device`] when it is out of memory.
    pub fn new(plan: &Plan) -> Result<Self> {
        let kernels = &plan.program.inner.kernels;
        let device = kernels.device();
        if !device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Err(Error::Feature { what: "timing".into(), feature: "TIMESTAMP_QUERY" });
        }
        let count = 2 * plan.bound.len() as u32;
        if count > wgpu::QUERY_SET_MAX_QUERIES {
            let (needed, allowed) = (u64::from(count), u64::from(wgpu::QUERY_SET_MAX_QUERIES));
            return Err(Error::Limit { what: "timing".into(), limit: "QUERY_SET_MAX_QUERIES", needed, allowed });
        }
        let buffer = |usage| {
            let size = u64::from(count) * 8;
            let label = Some("tileformer: timing");
            device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
        };
        checked(kernels, "timing", || Self {
            labels: plan.program.dispatches().iter().map(|d| d.label.clone()).collect(),
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("tileformer: timing"),
                ty: wgpu::QueryType::Timestamp,
                count,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            readback: buffer(wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ),
        })
    }

    /// The buffer to map once the work is done.
    #[must_use]
    pub fn readback(&self) -> &wgpu::Buffer {
        &self.readback
    }

    /// Label and time of every dispatch, from the mapped bytes and the queue's nanoseconds per tick.
    #[must_use]
    pub fn nanoseconds(&self, mapped: &[u8], period: f32) -> Vec<(&str, f64)> {
        let tick = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
        let spans = mapped.chunks_exact(16).map(|b| tick(&b[8..]).saturating_sub(tick(&b[..8])) as f64 * f64::from(period));
        self.labels.iter().map(String::as_str).zip(spans).collect()
    }
}
