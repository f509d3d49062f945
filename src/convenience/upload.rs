//! Uploads: new tensors from the host's numbers, in pieces.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Gpu;
use crate::error::{Error, Result};
use crate::scratch::checked;
use crate::shape::Layout;
use crate::spec::{SEQUENCE_WORDS, Sequences, blocks, check_ids};
use crate::tensor::{Element, TensorView, Weight};
use crate::{Bindings, Program, Role};

/// Uploads go in pieces of at most this many bytes, so that a driver never stages a whole model at once (but in
/// a browser, where nothing waits in between).
pub const UPLOAD_BYTES: usize = 64 << 20;

/// From here on numbers round to infinity in f16.
const F16_LIMIT: f32 = 65520.0;

impl Gpu {
    /// A new contiguous tensor that holds `data`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of elements than `sizes` says, [`Error::Limit`] for more than a buffer holds,
    /// [`Error::Device`] when the device is out of memory.
    pub fn upload_f32(&self, sizes: &[usize], data: &[f32]) -> Result<TensorView> {
        self.upload(Element::F32, sizes, data.len(), bytemuck::cast_slice(data))
    }

    /// A new contiguous tensor of `element` that holds `data`, rounded once, here, where it is narrower: [`Element::F32`], [`Element::F16`], or
    /// rows of `sizes` as [`blocks`].
    ///
    /// # Errors
    /// As [`Gpu::upload_f32`]; [`Error::Option`] for a finite number that f16 cannot hold and one that is not finite in blocks,
    /// [`Error::Element`] for `u32`.
    pub fn upload_floats(&self, element: Element, sizes: &[usize], data: &[f32]) -> Result<TensorView> {
        match element {
            Element::F32 => self.upload_f32(sizes, data),
            Element::F16 => {
                if let Some(i) = data.iter().position(|x| x.is_finite() && x.abs() >= F16_LIMIT) {
                    let found = format!("{} at {i}", data[i]);
                    return Err(Error::option("upload as f16", "numbers within ±65504", found));
                }
                let view = self.empty(element, sizes, data.len())?;
                let mut at = 0;
                for piece in data.chunks(UPLOAD_BYTES / 2) {
                    let mut halves = vec![f16::ZERO; piece.len().next_multiple_of(2)];
                    halves[..piece.len()].convert_from_f32_slice(piece);
                    self.write_piece(
                        &view,
                        at,
                        bytemuck::cast_slice(halves.reinterpret_cast()),
                        data.len() > UPLOAD_BYTES / 2,
                    )?;
                    at += 2 * piece.len() as u64;
                }
                Ok(view)
            }
            Element::Int8 | Element::Int4 => {
                let count = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
                if count != Some(data.len()) {
                    return Err(Error::shape("upload", format!("{sizes:?}"), format!("{} elements", data.len())));
                }
                let words = blocks::pack(element, sizes.last().copied().unwrap_or(1), data)?;
                let sizes = blocks::stored_sizes(element, sizes);
                self.upload(element, &sizes, words.len(), bytemuck::cast_slice(&words))
            }
            Element::U32 => {
                let (expected, found) = ("f32, f16 or blocks", element.name());
                Err(Error::Element { tensor: "upload".into(), expected, found })
            }
        }
    }

    /// As [`Gpu::upload_f32`], for ids, masks and sequences.
    ///
    /// # Errors
    /// As [`Gpu::upload_f32`].
    pub fn upload_u32(&self, sizes: &[usize], data: &[u32]) -> Result<TensorView> {
        self.upload(Element::U32, sizes, data.len(), bytemuck::cast_slice(data))
    }

    /// Uploads ids, refusing those outside a table of `rows` rows.
    ///
    /// # Errors
    /// [`Error::Id`], and as [`Gpu::upload_f32`].
    pub fn upload_ids(&self, name: &str, sizes: &[usize], ids: &[u32], rows: usize) -> Result<TensorView> {
        check_ids(name, ids, rows)?;
        self.upload_u32(sizes, ids)
    }

    /// Uploads a weight.
    ///
    /// # Errors
    /// As [`Gpu::upload_f32`].
    pub fn upload_weight(&self, sizes: &[usize], data: &[f32]) -> Result<Weight> {
        self.upload_f32(sizes, data).map(Weight::from)
    }

    /// Uploads every weight of a program from slices that `find` knows by name, with their sizes, as what the program stores them
    /// as.
    ///
    /// # Errors
    /// [`Error::Missing`] for a weight that `find` does not know and [`Error::Shape`] for one of other sizes, each by name, before
    /// anything is uploaded; as [`Gpu::upload_f32`].
    pub fn upload_weights<'a>(
        &self,
        program: &Program,
        find: impl Fn(&str) -> Option<(&'a [usize], &'a [f32])>,
    ) -> Result<Bindings> {
        let mut found = Vec::new();
        for (name, _, element, layout) in program.tensors().filter(|(_, role, ..)| *role == Role::Weight) {
            let Some((sizes, data)) = find(name) else {
                let expected = format!("{} {layout}", element.name());
                return Err(Error::Missing { tensor: name.to_owned(), expected });
            };
            let expected = Layout::contiguous(&program.sizes(name).unwrap_or_else(|| layout.sizes().to_vec()))?;
            if sizes != expected.sizes() {
                return Err(Error::shape(name, expected, expected.found_turned(&Layout::contiguous(sizes)?)));
            }
            if let Some(at) = blocks::misfit(data).filter(|_| element.block_bits().is_some()) {
                let expected = format!("a number within ±65504, in {}", element.name());
                return Err(Error::option(format!("number {at} of {name}"), expected, data[at]));
            }
            found.push((name, element, sizes, data));
        }
        let upload = |(name, element, sizes, data)| Ok((name, self.upload_floats(element, sizes, data)?));
        found.into_iter().map(upload).collect()
    }

    /// Uploads a batch's sequences. Where a plan's shape has more of them, fill the batch up first: [`Sequences::for_shape`].
    ///
    /// # Errors
    /// As [`Gpu::upload_f32`].
    pub fn upload_sequences(&self, sequences: &Sequences) -> Result<TensorView> {
        self.upload_u32(&[sequences.as_slice().len(), SEQUENCE_WORDS], sequences.words())
    }

    /// A new contiguous tensor of zeros.
    ///
    /// # Errors
    /// As [`Gpu::upload_f32`].
    pub fn zeros(&self, element: Element, sizes: &[usize]) -> Result<TensorView> {
        let layout = Layout::contiguous(sizes)?;
        TensorView::new(&self.buffer(layout.bytes(element))?, 0, element, layout)
    }

    /// New tensors of zeros, added to `bindings`, for every output and state of a program that they lack.
    ///
    /// # Errors
    /// As [`Gpu::upload_f32`].
    pub fn allocate(&self, program: &Program, bindings: &mut Bindings) -> Result<()> {
        for (name, role, element, layout) in program.tensors() {
            if matches!(role, Role::Output | Role::State) && bindings.get(name).is_none() {
                let buffer = self.buffer(layout.bytes(element))?;
                bindings.set(name, TensorView::new(&buffer, 0, element, *layout)?);
            }
        }
        Ok(())
    }

    /// A new contiguous tensor for `len` elements.
    fn empty(&self, element: Element, sizes: &[usize], len: usize) -> Result<TensorView> {
        let layout = Layout::contiguous(sizes)?;
        if layout.len() != len {
            let expected = format!("{} elements for {layout}", layout.len());
            return Err(Error::shape("upload", expected, format!("{len} elements")));
        }
        TensorView::new(&self.buffer(layout.bytes(element))?, 0, element, layout)
    }

    fn upload(&self, element: Element, sizes: &[usize], len: usize, bytes: &[u8]) -> Result<TensorView> {
        let view = self.empty(element, sizes, len)?;
        self.write(&view, bytes)?;
        Ok(view)
    }

    /// A buffer for a tensor, copied to and from.
    pub(super) fn buffer(&self, bytes: u64) -> Result<wgpu::Buffer> {
        let allowed = self.device.limits().max_buffer_size;
        if bytes > allowed {
            return Err(Error::Limit { what: "buffer".into(), limit: "max_buffer_size", needed: bytes, allowed });
        }
        checked(&self.device, "a tensor's buffer", || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("tileformer: tensor"),
                // Bindings and copies are whole words.
                size: bytes.next_multiple_of(4),
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            })
        })
    }

    /// Overwrites a contiguous tensor, in pieces of at most [`UPLOAD_BYTES`].
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of bytes than the view has, a view with gaps, or one of f16 that begins or ends inside a
    /// word, [`Error::Usage`] for a buffer without `COPY_DST`.
    pub fn write(&self, view: &TensorView, bytes: &[u8]) -> Result<()> {
        let size = view.element().size();
        if !view.layout().is_dense() || view.layout().extent() * size != bytes.len() as u64 {
            let found = format!("{} bytes", bytes.len());
            return Err(Error::shape("upload", format!("a contiguous view of that size, not {}", view.layout()), found));
        }
        if !((view.offset() * size).is_multiple_of(4) && bytes.len().is_multiple_of(4)) {
            let found = format!("{} bytes from byte {} on", bytes.len(), view.offset() * size);
            return Err(Error::shape("upload", "whole words of 4 bytes", found));
        }
        for (n, piece) in bytes.chunks(UPLOAD_BYTES).enumerate() {
            self.write_piece(view, (n * UPLOAD_BYTES) as u64, piece, bytes.len() > UPLOAD_BYTES)?;
        }
        Ok(())
    }

    /// Overwrites whole words from byte `at` of a view on; waits where more pieces follow, so that no driver stages them all.
    fn write_piece(&self, view: &TensorView, at: u64, piece: &[u8], of_several: bool) -> Result<()> {
        if !view.buffer().usage().contains(wgpu::BufferUsages::COPY_DST) {
            let found = format!("{:?}", view.buffer().usage());
            return Err(Error::Usage { tensor: "upload".into(), needed: "COPY_DST", found });
        }
        let offset = view.offset() * view.element().size() + at;
        checked(&self.device, "upload", || self.queue.write_buffer(view.buffer(), offset, piece))?;
        if of_several {
            self.queue.submit([]);
            self.wait()?;
        }
        Ok(())
    }
}
