//! For programs that have no engine of their own: device set-up, uploads, readback. All that touches a queue stands here,
//! apart from the core, and nothing in the core needs it.
#![allow(clippy::disallowed_methods)]

mod beams;
#[cfg(feature = "safetensors")]
mod checkpoint;
mod decoding;

pub use beams::BeamPlans;
#[cfg(feature = "safetensors")]
pub use checkpoint::Loaded;
pub use decoding::{CHUNK_STEPS, Chunk, Decoding};

use std::sync::mpsc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::{Error, Result};
use crate::scratch::checked;
use crate::shape::Layout;
use crate::spec::{SEQUENCE_WORDS, Sequences, check_ids};
use crate::tensor::{Element, TensorView, Weight};
use crate::{Bindings, Options, Plan, Program, Role, Timing, wanted_experimental_features, wanted_features, wanted_limits};

/// Uploads go in pieces of at most this many bytes, so that a driver never stages a whole model at once.
pub const UPLOAD_BYTES: usize = 64 << 20;

/// From here on numbers round to infinity in f16.
const F16_LIMIT: f32 = 65520.0;

/// How to find and open a device.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Part of the adapter's name, in any case; `None` takes the one that wgpu prefers for speed.
    pub adapter: Option<String>,
    /// Open it with WebGPU's default limits and no features: the core tier.
    pub core_only: bool,
}

/// A device with its queue, opened by this module.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// Which adapter it is.
    pub info: wgpu::AdapterInfo,
    /// The device.
    pub device: wgpu::Device,
    /// Its queue.
    pub queue: wgpu::Queue,
    /// The matrix units that it may use: none unless it came from [`Gpu::open_experimental`].
    pub cooperative_matrices: Vec<wgpu::CooperativeMatrixProperties>,
}

/// What is said where no adapter is found.
pub const NO_ADAPTER: &str = "no Vulkan, Metal or DirectX 12 adapter; on Debian and Ubuntu, \
     `apt-get install mesa-vulkan-drivers` adds a software one";

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

/// The adapters of this machine, those of a graphics API that wgpu was built with.
#[must_use]
pub fn adapters() -> Vec<wgpu::AdapterInfo> {
    pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all())).iter().map(wgpu::Adapter::get_info).collect()
}

impl Gpu {
    /// Opens a device, blocking until it is there.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no such adapter, or it gives no device.
    pub fn open(setup: &Setup) -> Result<Self> {
        pollster::block_on(Self::open_async(setup))
    }

    /// As [`Gpu::open`], with cooperative matrices enabled where the adapter has them, for [`Gpu::options`] to pass on.
    ///
    /// # Safety
    /// wgpu's experimental features may have bugs that lead to undefined behaviour: the caller accepts that
    /// (see `wgpu::ExperimentalFeatures::enabled`).
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub unsafe fn open_experimental(setup: &Setup) -> Result<Self> {
        // SAFETY: the caller has accepted what experimental features may do.
        let token = unsafe { wgpu::ExperimentalFeatures::enabled() };
        pollster::block_on(Self::open_with(setup, Some(token)))
    }

    /// The default options of [`Kernels`](crate::Kernels) on this device, with its matrix units.
    #[must_use]
    pub fn options(&self) -> Options {
        Options::default().with_cooperative_matrices(self.cooperative_matrices.clone())
    }

    /// Opens a device.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub async fn open_async(setup: &Setup) -> Result<Self> {
        Self::open_with(setup, None).await
    }

    async fn open_with(setup: &Setup, experimental: Option<wgpu::ExperimentalFeatures>) -> Result<Self> {
        let instance = instance();
        let adapter = match &setup.adapter {
            Some(name) => {
                let found = instance.enumerate_adapters(wgpu::Backends::all()).await;
                let names: Vec<String> = found.iter().map(|a| a.get_info().name).collect();
                let matches = |a: &wgpu::Adapter| a.get_info().name.to_lowercase().contains(&name.to_lowercase());
                found.into_iter().find(matches).ok_or_else(|| {
                    Error::Device(format!("no adapter has {name:?} in its name; there are: {}", names.join(", ")))
                })?
            }
            None => {
                let options = wgpu::RequestAdapterOptions {
                    power_preference: wgpu::PowerPreference::HighPerformance,
                    ..wgpu::RequestAdapterOptions::default()
                };
                instance.request_adapter(&options).await.map_err(|_| Error::Device(NO_ADAPTER.into()))?
            }
        };
        let core = (wgpu::Features::empty(), wgpu::Limits::default());
        let (required_features, required_limits) =
            if setup.core_only { core } else { (wanted_features(&adapter), wanted_limits(&adapter)) };
        let mut descriptor = wgpu::DeviceDescriptor { required_features, required_limits, ..Default::default() };
        let mut cooperative_matrices = Vec::new();
        if let Some(token) = experimental.filter(|_| !wanted_experimental_features(&adapter).is_empty()) {
            descriptor.required_features |= wanted_experimental_features(&adapter);
            descriptor.experimental_features = token;
            cooperative_matrices = adapter.cooperative_matrix_properties();
        }
        let opened = adapter.request_device(&descriptor).await;
        let (device, queue) = opened.map_err(|e| Error::Device(e.to_string()))?;
        Ok(Self { info: adapter.get_info(), device, queue, cooperative_matrices })
    }

    /// A new contiguous tensor that holds `data`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of elements than `sizes` says, [`Error::Limit`] for more than a buffer holds,
    /// [`Error::Device`] when the device is out of memory.
    pub fn upload_f32(&self, sizes: &[usize], data: &[f32]) -> Result<TensorView> {
        self.upload(Element::F32, sizes, data.len(), bytemuck::cast_slice(data))
    }

    /// A new contiguous tensor of `element` ([`Element::F32`] or [`Element::F16`]) that holds `data`, rounded once, here, where it is
    /// narrower.
    ///
    /// # Errors
    /// As [`Gpu::upload_f32`]; [`Error::Option`] for a finite number that f16 cannot hold, [`Error::Element`] for `u32`.
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
            Element::U32 => {
                let (expected, found) = ("f32 or f16", element.name());
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
                return Err(Error::Missing { tensor: name.to_owned(), expected: layout.to_string() });
            };
            if sizes != layout.sizes() {
                return Err(Error::shape(name, layout, format!("{sizes:?}")));
            }
            found.push((name, element, sizes, data));
        }
        let upload = |(name, element, sizes, data)| Ok((name, self.upload_floats(element, sizes, data)?));
        found.into_iter().map(upload).collect()
    }

    /// Uploads a batch's sequences.
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
        TensorView::new(&self.buffer(layout.extent() * element.size())?, 0, element, layout)
    }

    /// New tensors of zeros, added to `bindings`, for every output and state of a program that they lack.
    ///
    /// # Errors
    /// As [`Gpu::upload_f32`].
    pub fn allocate(&self, program: &Program, bindings: &mut Bindings) -> Result<()> {
        for (name, role, element, layout) in program.tensors() {
            if matches!(role, Role::Output | Role::State) && bindings.get(name).is_none() {
                let buffer = self.buffer(layout.extent() * element.size())?;
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
        TensorView::new(&self.buffer(layout.extent() * element.size())?, 0, element, layout)
    }

    fn upload(&self, element: Element, sizes: &[usize], len: usize, bytes: &[u8]) -> Result<TensorView> {
        let view = self.empty(element, sizes, len)?;
        self.write(&view, bytes)?;
        Ok(view)
    }

    fn buffer(&self, bytes: u64) -> Result<wgpu::Buffer> {
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

    /// Refuses a plan that this device cannot run.
    fn expect_own(&self, plan: &Plan) -> Result<()> {
        if *plan.program().inner.kernels.device() == self.device {
            return Ok(());
        }
        Err(Error::option(format!("plan of {}", plan.program().name()), "one of this device", "one of another"))
    }

    /// Submits a plan once and waits for it.
    ///
    /// # Errors
    /// [`Error::Option`] for a plan of another device, [`Error::Device`] for a lost device.
    pub fn run(&self, plan: &Plan) -> Result<()> {
        self.expect_own(plan)?;
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.record(&mut encoder);
        self.queue.submit([encoder.finish()]);
        self.wait()
    }

    /// Runs a plan once and gives each dispatch's label and nanoseconds.
    ///
    /// # Errors
    /// As [`Timing::new`] and [`Gpu::run`].
    pub fn time(&self, plan: &Plan) -> Result<Vec<(String, f64)>> {
        self.expect_own(plan)?;
        let timing = Timing::new(plan)?;
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.record_timed(&mut encoder, &timing)?;
        self.queue.submit([encoder.finish()]);
        let bytes = self.map(timing.readback())?;
        let times = timing.nanoseconds(&bytes, self.queue.get_timestamp_period());
        Ok(times.into_iter().map(|(label, time)| (label.to_owned(), time)).collect())
    }

    /// Waits until all submitted work is done.
    ///
    /// # Errors
    /// [`Error::Device`] for a lost device.
    pub fn wait(&self) -> Result<()> {
        self.device.poll(wgpu::PollType::wait_indefinitely()).map(drop).map_err(|e| Error::Device(e.to_string()))
    }

    /// The elements of an `f32` or `f16` view in row-major order, read after all submitted work.
    ///
    /// # Errors
    /// [`Error::Element`] for another type, [`Error::Usage`] for a buffer without `COPY_SRC`, [`Error::Device`] for a lost device.
    pub fn read_f32(&self, view: &TensorView) -> Result<Vec<f32>> {
        match view.element() {
            Element::F16 => self.read(view, Element::F16, |b: [u8; 2]| f16::from_ne_bytes(b).to_f32()),
            _ => self.read(view, Element::F32, f32::from_ne_bytes),
        }
    }

    /// As [`Gpu::read_f32`], for `u32`.
    ///
    /// # Errors
    /// As [`Gpu::read_f32`].
    pub fn read_u32(&self, view: &TensorView) -> Result<Vec<u32>> {
        self.read(view, Element::U32, u32::from_ne_bytes)
    }

    fn read<T, const N: usize>(&self, view: &TensorView, element: Element, parse: fn([u8; N]) -> T) -> Result<Vec<T>> {
        if view.element() != element {
            let (expected, found) = (element.name(), view.element().name());
            return Err(Error::Element { tensor: "readback".into(), expected, found });
        }
        let size = element.size();
        // Whole words around an f16 view.
        let (first, end) = (view.offset() * size, (view.offset() + view.layout().extent()) * size);
        let start = first & !3;
        let bytes = self.read_bytes(view.buffer(), start, end.next_multiple_of(4) - start)?;
        let at = |i: usize| parse(std::array::from_fn(|b| bytes[(first - start) as usize + N * i + b]));
        Ok(indices(view.layout()).map(at).collect())
    }

    /// Bytes `offset .. offset + size` of a buffer, both multiples of 4.
    ///
    /// # Errors
    /// [`Error::Option`] for other offsets and sizes, [`Error::Usage`] for a buffer without `COPY_SRC`,
    /// [`Error::BufferTooSmall`] for one that ends before, [`Error::Device`] for a lost device.
    pub fn read_bytes(&self, buffer: &wgpu::Buffer, offset: u64, size: u64) -> Result<Vec<u8>> {
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
        let staging = checked(&self.device, "readback", || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("tileformer: readback"),
                size,
                usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
                mapped_at_creation: false,
            })
        })?;
        checked(&self.device, "readback", || {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, size);
            self.queue.submit([encoder.finish()]);
        })?;
        self.map(&staging)
    }

    fn map(&self, staging: &wgpu::Buffer) -> Result<Vec<u8>> {
        let failed = |e: &dyn std::fmt::Display| Error::Device(format!("readback: {e}"));
        let (send, receive) = mpsc::channel();
        staging.slice(..).map_async(wgpu::MapMode::Read, move |result| {
            // The receiver waits below; it is gone only after an error that is returned anyway.
            let _ = send.send(result);
        });
        self.wait()?;
        receive.recv().map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
        Ok(staging.slice(..).get_mapped_range().map_err(|e| failed(&e))?.to_vec())
    }
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
