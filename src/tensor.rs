//! Views of the caller's buffers.

use crate::error::{Error, Result};
use crate::shape::Layout;

/// What one element of a tensor is on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// 32-bit float: activations, weights, additive masks.
    F32,
    /// 16-bit float: activations and weights in half the memory. Sums are f32 all the same.
    F16,
    /// 32-bit unsigned: ids, boolean masks (nonzero is true), sequences.
    U32,
}

impl Element {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> u64 {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::U32 => 4,
        }
    }

    /// The WGSL name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U32 => "u32",
        }
    }
}

/// A tensor: a layout over a buffer of the caller's, from an element offset on. Any offset works; offsets that are a
/// multiple of `min_storage_buffer_offset_alignment` bytes cost nothing.
///
/// The buffer must come from the `wgpu::Instance` that the program's device comes from: wgpu tells instances apart by nothing
/// that this crate could look at, and panics when they meet. A buffer of another device of that instance is an error.
///
/// Making a view touches neither device nor queue. A clone is another handle of the same buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorView {
    buffer: wgpu::Buffer,
    offset: u64,
    element: Element,
    layout: Layout,
}

impl TensorView {
    /// A view of `buffer` from element `offset` on.
    ///
    /// # Errors
    /// [`Error::Usage`] for a buffer without `STORAGE`, [`Error::BufferTooSmall`] for one that ends before the view does.
    pub fn new(buffer: &wgpu::Buffer, offset: u64, element: Element, layout: Layout) -> Result<Self> {
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::Usage {
                tensor: format!("a view {layout}"),
                needed: "STORAGE",
                found: format!("{:?}", buffer.usage()),
            });
        }
        // Bindings are whole words.
        let needed = offset.saturating_add(layout.extent()).saturating_mul(element.size()).saturating_add(3) & !3;
        if needed > buffer.size() {
            return Err(Error::BufferTooSmall { tensor: format!("a view {layout}"), needed, size: buffer.size() });
        }
        Ok(Self { buffer: buffer.clone(), offset, element, layout })
    }

    /// A contiguous `f32` tensor at the start of `buffer`.
    ///
    /// # Errors
    /// As [`TensorView::new`] and [`Layout::contiguous`].
    pub fn f32(buffer: &wgpu::Buffer, sizes: &[usize]) -> Result<Self> {
        Self::new(buffer, 0, Element::F32, Layout::contiguous(sizes)?)
    }

    /// A contiguous `f16` tensor at the start of `buffer`, the elements one behind the other.
    ///
    /// # Errors
    /// As [`TensorView::new`] and [`Layout::contiguous`].
    pub fn f16(buffer: &wgpu::Buffer, sizes: &[usize]) -> Result<Self> {
        Self::new(buffer, 0, Element::F16, Layout::contiguous(sizes)?)
    }

    /// A contiguous `u32` tensor at the start of `buffer`.
    ///
    /// # Errors
    /// As [`TensorView::new`] and [`Layout::contiguous`].
    pub fn u32(buffer: &wgpu::Buffer, sizes: &[usize]) -> Result<Self> {
        Self::new(buffer, 0, Element::U32, Layout::contiguous(sizes)?)
    }

    /// The buffer.
    #[must_use]
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Elements before the view's first.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What an element is.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
    }

    /// Sizes and strides.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

/// A weight: opaque, so that storage formats can be added without a change for those who bind it. Made from a view
/// (`Weight::from(view)`), or by the convenience module from a slice.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    view: TensorView,
}

impl Weight {
    /// The view that holds the weight's elements.
    #[must_use]
    pub fn view(&self) -> &TensorView {
        &self.view
    }
}

impl From<TensorView> for Weight {
    fn from(view: TensorView) -> Self {
        Self { view }
    }
}

impl From<Weight> for TensorView {
    fn from(weight: Weight) -> Self {
        weight.view
    }
}
