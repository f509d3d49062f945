//! For programs that have no engine of their own: device set-up, uploads, readback. All that touches a queue stands here,
//! apart from the core, and nothing in the core needs it.
//!
//! In a browser nothing may block: what waits for the GPU has a form there whose name ends in `_async` ([`Gpu::open_async`],
//! [`Gpu::read_f32_async`], [`Decoding::next_async`], [`BeamPlans::search_async`]), and is an error without it, as [`Gpu::time`] and
//! [`Gpu::tune`] are. [`Gpu::wait`] comes back at once there, and with it [`Gpu::run`] and uploads: a readback waits for their results.
#![allow(clippy::disallowed_methods)]

mod beams;
#[cfg(feature = "safetensors")]
mod checkpoint;
mod decoding;
mod readback;
mod tune;
mod upload;

pub use beams::BeamPlans;
#[cfg(feature = "safetensors")]
pub use checkpoint::Loaded;
pub use decoding::{CHUNK_STEPS, Chunk, Decoding};
pub use upload::UPLOAD_BYTES;

use crate::error::{Error, Result};
use crate::{Options, Plan, Timing, wanted_experimental_features, wanted_features, wanted_limits};

/// How to find and open a device.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Part of the adapter's name, in any case; `None` takes the one that wgpu prefers for speed.
    pub adapter: Option<String>,
    /// Open it with WebGPU's default limits and no features: the core tier.
    pub core_only: bool,
}

/// A device with its queue: opened by this module, or one's own, put together from its parts.
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
pub const NO_ADAPTER: &str = if cfg!(target_family = "wasm") {
    "this browser has no WebGPU adapter"
} else {
    "no Vulkan, Metal or DirectX 12 adapter; on Debian and Ubuntu, `apt-get install mesa-vulkan-drivers` adds a software one"
};

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

/// The adapters of this machine, those of a graphics API that wgpu was built with. A browser names none.
#[must_use]
pub fn adapters() -> Vec<wgpu::AdapterInfo> {
    if can_wait().is_err() {
        return Vec::new();
    }
    pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all())).iter().map(wgpu::Adapter::get_info).collect()
}

/// Whether anything can be waited for: in a browser it cannot.
fn can_wait() -> Result<()> {
    if cfg!(target_family = "wasm") {
        return Err(Error::Device("a browser waits for nothing: await the form whose name ends in _async".into()));
    }
    Ok(())
}

/// The value of a future, waited for where that can be.
fn waited<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    can_wait()?;
    pollster::block_on(future)
}

impl Gpu {
    /// Opens a device, blocking until it is there.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no such adapter, or it gives no device.
    pub fn open(setup: &Setup) -> Result<Self> {
        waited(Self::open_async(setup))
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
        waited(Self::open_with(setup, Some(token)))
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
    /// [`Error::Option`] for a plan of another device, [`Error::Device`] for a lost device and for buffers that were destroyed or are mapped.
    pub fn run(&self, plan: &Plan) -> Result<()> {
        self.expect_own(plan)?;
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.record(&mut encoder);
        self.submit(plan.program().name(), encoder)?;
        self.wait()
    }

    /// Runs a plan once and gives each dispatch's label and nanoseconds.
    ///
    /// # Errors
    /// As [`Timing::new`] and [`Gpu::run`].
    pub fn time(&self, plan: &Plan) -> Result<Vec<(String, f64)>> {
        can_wait()?;
        self.expect_own(plan)?;
        let encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let timing = Timing::new(plan)?;
        let times = self.time_behind(encoder, plan, &timing)?;
        Ok(times.into_iter().map(|(label, time)| (label.to_owned(), time)).collect())
    }

    /// Runs a plan once behind what is recorded, and gives each dispatch's label and nanoseconds.
    fn time_behind<'a>(
        &self,
        mut encoder: wgpu::CommandEncoder,
        plan: &Plan,
        timing: &'a Timing,
    ) -> Result<Vec<(&'a str, f64)>> {
        plan.record_timed(&mut encoder, timing)?;
        let mut returning = self.submit_back(plan.program().name(), encoder, timing.readback().clone())?;
        let period = self.queue.get_timestamp_period();
        waited(self.receive(&mut returning, |bytes| timing.nanoseconds(bytes, period)))
    }

    /// Waits until all submitted work is done.
    ///
    /// # Errors
    /// [`Error::Device`] for a lost device.
    pub fn wait(&self) -> Result<()> {
        self.device.poll(wgpu::PollType::wait_indefinitely()).map(drop).map_err(|e| Error::Device(e.to_string()))
    }
}
