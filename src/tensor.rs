//! Views of the caller's buffers.

use crate::error::{Error, Result};
use crate::shape::Layout;

/// What one element of a tensor is on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Element {
    /// 32-bit float: activations, weights, additive masks.
    F32,
    /// 16-bit float: activations and weights in half the memory. Sums are f32 all the same. In a buffer they are IEEE binary16, little-endian, one
    /// behind the other whatever the device; the buffer holds the last word of 4 bytes whole. Kernels' results saturate at ±65504, and a NaN may
    /// come out as one of these on some devices.
    F16,
    /// 32-bit unsigned: ids, boolean masks (nonzero is true), sequences.
    U32,
    /// Weights of projections as integers of 8 bits in blocks: 9 bits a weight in rows of whole blocks. An element is a word of 32 bits of a row; [`crate::spec::blocks`] says
    /// what is in it. Offsets are multiples of four.
    Int8,
    /// The same with integers of 4 bits: 5 bits a weight.
    Int4,
}

impl Element {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> u64 {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::U32 | Self::Int8 | Self::Int4 => 4,
        }
    }

    /// Bits of a weight in blocks; of what is in none, `None`.
    #[must_use]
    pub(crate) fn block_bits(self) -> Option<u32> {
        match self {
            Self::Int8 => Some(8),
            Self::Int4 => Some(4),
            Self::F32 | Self::F16 | Self::U32 => None,
        }
    }

    /// What messages call it; of the first three the WGSL name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::U32 => "u32",
            Self::Int8 => "int8 blocks",
            Self::Int4 => "int4 blocks",
        }
    }
}

impl Layout {
    /// Bytes of a buffer that holds this layout of `element` and nothing else: up to the last element, in whole words of 4 bytes.
    ///
    /// ```
    /// use tileformer::{Element, Layout};
    /// assert_eq!(Layout::contiguous(&[3, 5])?.bytes(Element::F16), 32);
    /// # Ok::<(), tileformer::Error>(())
    /// ```
    #[must_use]
    pub fn bytes(&self, element: Element) -> u64 {
        whole_words(self.extent(), element)
    }
}

/// Bytes of that many elements, up to the end of the last word.
fn whole_words(elements: u64, element: Element) -> u64 {
    elements.saturating_mul(element.size()).saturating_add(3) & !3
}

/// A tensor: a layout over a buffer of the caller's, from an element offset on. Any offset works; offsets that are a
/// multiple of `min_storage_buffer_offset_alignment` bytes cost nothing.
///
/// The buffer must be one of the program's device. wgpu lets nobody look which device a buffer is of: one of another device of the same
/// `wgpu::Instance` is an error when it is bound; one of another instance makes wgpu panic, or stands for whichever buffer has its number
/// here, without a word.
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
        Self::named(|| format!("a view {layout}"), buffer, offset, element, layout)
    }

    /// As [`TensorView::new`], for a tensor that errors name.
    pub(crate) fn named(
        name: impl Fn() -> String,
        buffer: &wgpu::Buffer,
        offset: u64,
        element: Element,
        layout: Layout,
    ) -> Result<Self> {
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::Usage { tensor: name(), needed: "STORAGE", found: format!("{:?}", buffer.usage()) });
        }
        if element.block_bits().is_some() && !offset.is_multiple_of(4) {
            return Err(Error::option(
                format!("offset of {}", name()),
                "a multiple of four words, as of all blocks",
                offset,
            ));
        }
        // Bindings are whole words.
        let needed = whole_words(offset.saturating_add(layout.extent()), element);
        if needed > buffer.size() {
            return Err(Error::BufferTooSmall { tensor: name(), needed, size: buffer.size() });
        }
        Ok(Self { buffer: buffer.clone(), offset, element, layout })
    }

    /// The same tensor from element `offset` of its buffer on: a view into one buffer that holds many.
    ///
    /// ```no_run
    /// # fn f(weights: &tileformer::wgpu::Buffer) -> tileformer::Result<()> {
    /// # use tileformer::TensorView;
    /// let bias = TensorView::f32(weights, &[768])?.at(768 * 768)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`TensorView::new`].
    pub fn at(&self, offset: u64) -> Result<Self> {
        Self::new(&self.buffer, offset, self.element, self.layout)
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
