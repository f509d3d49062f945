//! Buffers by name.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::program::{Inner, Program, Role, Slot};
use crate::tensor::TensorView;

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

    /// Those whose names a program has: of a whole model's weights, the ones that this program reads.
    #[must_use]
    pub fn known_to(&self, program: &Program) -> Self {
        program.tensors().filter_map(|(name, ..)| Some((name, self.get(name)?.clone()))).collect()
    }

    /// Those whose names begin with `prefix`, without it: `weights.under("layers.3.")` is what the fourth of twelve equal layers
    /// binds to the program that they share.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Self {
        self.iter().filter_map(|(name, view)| Some((name.strip_prefix(prefix)?, view.clone()))).collect()
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

impl Program {
    /// The tensor `name` of this program in `buffer`, from element `offset` on.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name that the program does not have; as [`TensorView::new`], naming the tensor.
    pub fn view(&self, name: &str, buffer: &wgpu::Buffer, offset: u64) -> Result<TensorView> {
        let (_, element, layout) = self.tensor(name).ok_or_else(|| unknown(&self.inner, name, |_| true))?;
        TensorView::named(|| name.to_owned(), buffer, offset, element, *layout)
    }

    /// Bytes of one buffer for all weights, each from a multiple of `align` bytes on, which is rounded up to whole words, and for a weight in
    /// blocks to 16 bytes: 256, the largest `min_storage_buffer_offset_alignment` there is, costs a plan nothing on any device.
    #[must_use]
    pub fn weight_bytes(&self, align: u64) -> u64 {
        self.weight_places(0, align).map(|(_, _, end)| end).last().unwrap_or(0)
    }

    /// All weights in one buffer, one behind the other in the order of [`Program::tensors`] from byte `first` on, as
    /// [`Program::weight_bytes`] counts them. Where each begins is its view's [`TensorView::offset`], in elements.
    ///
    /// ```no_run
    /// # fn f(program: &tileformer::Program, device: &wgpu::Device, queue: &wgpu::Queue, read: impl Fn(&str) -> Vec<f32>)
    /// #     -> tileformer::Result<()> {
    /// let buffer = device.create_buffer(&wgpu::BufferDescriptor {
    ///     label: Some("weights"),
    ///     size: program.weight_bytes(256),
    ///     usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
    ///     mapped_at_creation: false,
    /// });
    /// let bindings = program.weights_in(&buffer, 0, 256)?;
    /// for (name, view) in bindings.iter() {
    ///     queue.write_buffer(&buffer, 4 * view.offset(), bytemuck::cast_slice(&read(name)));
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`TensorView::new`], naming the weight.
    pub fn weights_in(&self, buffer: &wgpu::Buffer, first: u64, align: u64) -> Result<Bindings> {
        let place = |(slot, at, _): (&Slot, u64, u64)| {
            let offset = at / slot.element.size();
            let view = TensorView::named(|| slot.name.clone(), buffer, offset, slot.element, slot.layout)?;
            Ok((slot.name.clone(), view))
        };
        self.weight_places(first, align).map(place).collect()
    }

    /// Every weight with the bytes where it begins and ends.
    fn weight_places(&self, first: u64, align: u64) -> impl Iterator<Item = (&Slot, u64, u64)> {
        let align = align.max(1).saturating_add(3) & !3;
        let weights = self.inner.slots.iter().filter(|s| s.role == Role::Weight);
        weights.scan(first, move |end, slot| {
            // Blocks are loaded in units of 16 bytes.
            let align = if slot.element.block_bits().is_some() {
                align.checked_next_multiple_of(16).unwrap_or(align)
            } else {
                align
            };
            let at = end.checked_next_multiple_of(align).unwrap_or(u64::MAX);
            *end = at.saturating_add(slot.layout.bytes(slot.element));
            Some((slot, at, *end))
        })
    }
}

/// How many names an error says.
const NAMES: usize = 6;

/// Names that a program has, the most like `name` where they are many: those that begin and end as it does.
fn nearest(name: &str, mut known: Vec<&str>) -> String {
    fn same(a: impl Iterator<Item = char>, b: impl Iterator<Item = char>) -> usize {
        a.zip(b).take_while(|(a, b)| a == b).count()
    }
    known.sort_unstable();
    let more = known.len().saturating_sub(NAMES);
    if more == 0 {
        return known.join(", ");
    }
    known.sort_by_cached_key(|other| {
        std::cmp::Reverse(same(name.chars(), other.chars()) + same(name.chars().rev(), other.chars().rev()))
    });
    format!("{} and {more} more", known[..NAMES].join(", "))
}

/// The error for a name that a program does not have.
pub(crate) fn unknown(program: &Inner, name: &str, allowed: impl Fn(Role) -> bool) -> Error {
    let known = program.slots.iter().filter(|s| s.role != Role::Scratch && allowed(s.role));
    Error::Unknown { tensor: name.to_owned(), known: nearest(name, known.map(|s| s.name.as_str()).collect()) }
}

/// Checks bindings against a program's slots and puts them where they belong.
pub(crate) fn place_views(
    program: &Inner,
    bindings: &Bindings,
    views: &mut [Option<TensorView>],
    allowed: impl Fn(Role) -> bool,
) -> Result<()> {
    for (name, view) in bindings.iter() {
        let Some(&slot) = program.by_name.get(name) else {
            return Err(unknown(program, name, allowed));
        };
        let expected = &program.slots[slot];
        if !allowed(expected.role) {
            return Err(Error::option(name, "an input, output or state: a weight stays for a plan's life", "a weight"));
        }
        if view.element() != expected.element {
            return Err(Error::Element {
                tensor: name.to_owned(),
                expected: expected.element.name(),
                found: view.element().name(),
            });
        }
        if !view.layout().is_same_place(&expected.layout) {
            let found = match expected.role {
                Role::Weight => expected.layout.found_turned(view.layout()),
                _ => view.layout().to_string(),
            };
            return Err(Error::shape(name, expected.layout, found));
        }
        views[slot] = Some(view.clone());
    }
    Ok(())
}
