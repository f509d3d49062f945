//! Readback: results copied into buffers that the host maps, and the elements of views from them.

use futures_channel::oneshot::{Receiver, channel};
use half::f16;

use super::{Gpu, waited};
use crate::error::{Error, Result};
use crate::scratch::checked;
use crate::shape::Layout;
use crate::tensor::{Element, TensorView};

/// A submission that copies into `staging`, which is mapped once it has run.
#[derive(Debug)]
pub(super) struct Returning {
    pub(super) staging: wgpu::Buffer,
    mapped: Receiver<std::result::Result<(), wgpu::BufferAsyncError>>,
    submission: wgpu::SubmissionIndex,
}

impl Gpu {
    /// A buffer to copy results into and to map.
    pub(super) fn staging(&self, what: &str, bytes: u64) -> Result<wgpu::Buffer> {
        checked(&self.device, "readback", || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(&format!("tileformer: {what}")),
                size: bytes,
                usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
                mapped_at_creation: false,
            })
        })
    }

    /// Submits what is recorded, and gives what the device says against it.
    pub(super) fn submit(&self, what: &str, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        checked(&self.device, what, || self.queue.submit([encoder.finish()]))
    }

    /// Submits what copies into `staging`.
    pub(super) fn submit_back(&self, what: &str, encoder: wgpu::CommandEncoder, staging: wgpu::Buffer) -> Result<Returning> {
        let (send, mapped) = channel();
        encoder.map_buffer_on_submit(&staging, wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only where nobody waits any more.
            let _ = send.send(result);
        });
        let submission = self.submit(what, encoder)?;
        Ok(Returning { staging, mapped, submission })
    }

    /// Waits for a submission and reads what it copied; the buffer can be copied into again then. In a browser `poll` does nothing, and the
    /// page has its turn; who stops waiting there may begin again.
    pub(super) async fn receive<T>(&self, returning: &mut Returning, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let Returning { staging, mapped, submission } = returning;
        let failed = |e: &dyn std::fmt::Display| Error::Device(format!("readback: {e}"));
        let wait = wgpu::PollType::Wait { submission_index: Some(submission.clone()), timeout: None };
        self.device.poll(wait).map_err(|e| failed(&e))?;
        mapped.await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        let found = read(&staging.slice(..).get_mapped_range().map_err(|e| failed(&e))?);
        staging.unmap();
        Ok(found)
    }

    /// The elements of an `f32` or `f16` view in row-major order, read after all submitted work.
    ///
    /// # Errors
    /// [`Error::Element`] for another type, [`Error::Usage`] for a buffer without `COPY_SRC`, [`Error::Device`] for a lost device.
    pub fn read_f32(&self, view: &TensorView) -> Result<Vec<f32>> {
        waited(self.read_f32_async(view))
    }

    /// As [`Gpu::read_f32`], for a browser, where nothing may block; elsewhere it blocks where it is awaited.
    ///
    /// # Errors
    /// As [`Gpu::read_f32`].
    pub async fn read_f32_async(&self, view: &TensorView) -> Result<Vec<f32>> {
        match view.element() {
            Element::F16 => self.read(view, Element::F16, |b: [u8; 2]| f16::from_ne_bytes(b).to_f32()).await,
            _ => self.read(view, Element::F32, f32::from_ne_bytes).await,
        }
    }

    /// As [`Gpu::read_f32`], for `u32`.
    ///
    /// # Errors
    /// As [`Gpu::read_f32`].
    pub fn read_u32(&self, view: &TensorView) -> Result<Vec<u32>> {
        waited(self.read_u32_async(view))
    }

    /// As [`Gpu::read_f32_async`], for `u32`.
    ///
    /// # Errors
    /// As [`Gpu::read_f32`].
    pub async fn read_u32_async(&self, view: &TensorView) -> Result<Vec<u32>> {
        self.read(view, Element::U32, u32::from_ne_bytes).await
    }

    async fn read<T, const N: usize>(&self, view: &TensorView, element: Element, parse: fn([u8; N]) -> T) -> Result<Vec<T>> {
        if view.element() != element {
            let (expected, found) = (element.name(), view.element().name());
            return Err(Error::Element { tensor: "readback".into(), expected, found });
        }
        let size = element.size();
        // Whole words around an f16 view.
        let (first, end) = (view.offset() * size, (view.offset() + view.layout().extent()) * size);
        let start = first & !3;
        let bytes = self.read_bytes_async(view.buffer(), start, end.next_multiple_of(4) - start).await?;
        let at = |i: usize| parse(std::array::from_fn(|b| bytes[(first - start) as usize + N * i + b]));
        Ok(indices(view.layout()).map(at).collect())
    }

    /// Bytes `offset .. offset + size` of a buffer, both multiples of 4.
    ///
    /// # Errors
    /// [`Error::Option`] for other offsets and sizes, [`Error::Usage`] for a buffer without `COPY_SRC`,
    /// [`Error::BufferTooSmall`] for one that ends before, [`Error::Device`] for a lost device.
    pub fn read_bytes(&self, buffer: &wgpu::Buffer, offset: u64, size: u64) -> Result<Vec<u8>> {
        waited(self.read_bytes_async(buffer, offset, size))
    }

    /// As [`Gpu::read_f32_async`], for bytes.
    ///
    /// # Errors
    /// As [`Gpu::read_bytes`].
    pub async fn read_bytes_async(&self, buffer: &wgpu::Buffer, offset: u64, size: u64) -> Result<Vec<u8>> {
        if !buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
            let found = format!("{:?}", buffer.usage());
            return Err(Error::Usage { tensor: "readback".into(), needed: "COPY_SRC", found });
        }
        if !(offset.is_multiple_of(4) && size.is_multiple_of(4)) {
            let found = format!("{size} bytes from byte {offset} on");
            return Err(Error::option("readback", "offset and size in multiples of 4", found));
        }
        let needed = offset.saturating_add(size);
        if needed > buffer.size() {
            return Err(Error::BufferTooSmall { tensor: "readback".into(), needed, size: buffer.size() });
        }
        if size == 0 {
            return Ok(Vec::new());
        }
        let staging = self.staging("readback", size)?;
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, size);
        let mut returning = self.submit_back("readback", encoder, staging)?;
        self.receive(&mut returning, <[u8]>::to_vec).await
    }
}

/// Refuses a view that the host cannot copy as a whole, to (`COPY_DST`) or from (`COPY_SRC`).
pub(super) fn expect_copied(name: &str, view: &TensorView, needed: &'static str) -> Result<()> {
    let usage = if needed == "COPY_DST" { wgpu::BufferUsages::COPY_DST } else { wgpu::BufferUsages::COPY_SRC };
    if !view.buffer().usage().contains(usage) {
        let found = format!("{:?}", view.buffer().usage());
        return Err(Error::Usage { tensor: name.into(), needed, found });
    }
    if !view.layout().is_dense() {
        return Err(Error::shape(name, "a view without gaps", view.layout()));
    }
    Ok(())
}

/// The element indices of a layout in row-major order.
fn indices(layout: &Layout) -> impl Iterator<Item = usize> + use<> {
    let (sizes, strides) = (layout.sizes().to_vec(), layout.strides().to_vec());
    (0..layout.len()).map(move |mut n| {
        let mut index = 0;
        for (&size, &stride) in sizes.iter().zip(&strides).rev() {
            index += n % size * stride;
            n /= size;
        }
        index
    })
}
