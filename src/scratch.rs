//! What the crate allocates on the device: scratch and parameters.

use std::fmt;

use crate::error::{Error, Result};
use crate::pipeline::{Kernels, now};
use crate::program::Program;

/// Scratch memory, which plans that do not run at once can share.
#[derive(Clone, Debug)]
pub struct Scratch {
    pub(crate) buffers: Vec<wgpu::Buffer>,
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
        let buffers = checked(device, "scratch", || {
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

/// Runs what creates or writes device objects, and returns as an error what the device says against it. A browser says it later: there
/// no scope is asked, which nobody would hear, and what is wrong reaches the device's own handler, or the console.
pub(crate) fn checked<T>(device: &wgpu::Device, what: &str, create: impl FnOnce() -> T) -> Result<T> {
    if cfg!(target_family = "wasm") {
        return Ok(create());
    }
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
    let buffer = checked(kernels.device(), name, || {
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
