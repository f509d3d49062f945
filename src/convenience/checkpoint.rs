//! Weights from a checkpoint to the device.

use std::collections::BTreeMap;

use super::{Gpu, UPLOAD_BYTES};
use crate::error::{Error, Result};
use crate::models::causal::CausalModel;
use crate::models::{Checkpoint, WeightMap};
use crate::scratch::checked;
use crate::{Bindings, Program, Role};

/// How much of a model is on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Bytes that were written, as the programs store them.
    pub bytes: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Gpu {
    /// Uploads every weight that `programs` read, each once, as what they store it as: names by `map`, numbers converted on their way from the
    /// checkpoint's memory into the driver's. At most [`UPLOAD_BYTES`] are under way at a time. `progress` is called behind every
    /// piece.
    ///
    /// # Errors
    /// As [`WeightMap::resolve`], by name, before anything is uploaded; [`Error::Option`] for a weight that two programs want in different
    /// ways, [`Error::Checkpoint`] for a number that f16 cannot hold, [`Error::Limit`] for a weight larger than a buffer,
    /// [`Error::Device`] when the device is out of memory.
    pub fn upload_checkpoint(
        &self,
        programs: &[&Program],
        checkpoint: &Checkpoint,
        map: &WeightMap,
        mut progress: impl FnMut(Loaded),
    ) -> Result<Bindings> {
        let mut wanted = BTreeMap::new();
        for program in programs {
            for (name, _, element, layout) in program.tensors().filter(|(_, role, ..)| *role == Role::Weight) {
                let (sizes, kind) = (program.sizes(name).unwrap_or_default(), element.name());
                let other = wanted.insert(name, (layout, element, sizes.clone()));
                if let Some((_, other, before)) = other.filter(|o| (o.0, o.1, &o.2) != (layout, element, &sizes)) {
                    let found = format!("{kind} {sizes:?} and {} {before:?} of other programs", other.name());
                    return Err(Error::option(name, "one layout and element in all programs", found));
                }
            }
        }
        let mut found = Vec::with_capacity(wanted.len());
        for (name, (layout, element, sizes)) in wanted {
            found.push((name, element, layout, map.resolve(name, &sizes, checkpoint)?));
        }
        let total = found.iter().map(|(_, element, _, source)| source.len_as(*element) as u64 * element.size()).sum();
        let mut loaded = Loaded { bytes: 0, total };
        let (mut bindings, mut staged) = (Bindings::new(), 0);
        for (name, element, layout, source) in found {
            let view = self.zeros(element, layout.sizes())?;
            let (size, len) = (element.size() as usize, source.len_as(element));
            // Whole rows of blocks, of which one may be longer than a piece.
            let row = if element.block_bits().is_some() { layout.sizes().last().copied().unwrap_or(1).max(1) } else { 1 };
            let at_once = (UPLOAD_BYTES / size / row).max(1) * row;
            for first in (0..len).step_by(at_once) {
                let range = first..len.min(first + at_once);
                // Whole words: behind an odd number of f16 the buffer has room.
                let bytes = (range.len() * size).next_multiple_of(4);
                if staged + bytes > UPLOAD_BYTES {
                    self.flush()?;
                    staged = 0;
                }
                let Some(length) = wgpu::BufferSize::new(bytes as u64) else { continue };
                let at = (first * size) as u64;
                let write = || self.queue.write_buffer_with(view.buffer(), at, length);
                let mut staging = checked(&self.device, name, write)?
                    .ok_or_else(|| Error::Device(format!("{name}: no memory to stage {bytes} bytes")))?;
                if bytes > range.len() * size {
                    staging.slice(bytes - 4..).copy_from_slice(&[0; 4]);
                }
                loaded.bytes += (range.len() * size) as u64;
                source.convert(element, range, |at, piece| staging.slice(at..at + piece.len()).copy_from_slice(piece))?;
                checked(&self.device, name, || drop(staging))?;
                staged += bytes;
                progress(loaded);
            }
            bindings.set(name, view);
        }
        self.flush()?;
        Ok(bindings)
    }

    /// Uploads every weight that `programs` of a causal language model read, as [`Gpu::upload_checkpoint`], and the input `rotary_table` where
    /// they have it.
    ///
    /// # Errors
    /// As [`Gpu::upload_checkpoint`] and [`CausalModel::rotary_table`].
    pub fn upload_causal(
        &self,
        programs: &[&Program],
        checkpoint: &Checkpoint,
        model: &CausalModel,
        progress: impl FnMut(Loaded),
    ) -> Result<Bindings> {
        let mut bindings = self.upload_checkpoint(programs, checkpoint, &model.weights(), progress)?;
        let reads = |program: &&Program| program.tensors().any(|(name, ..)| name == "rotary_table");
        if programs.iter().any(reads)
            && let Some((sizes, table)) = model.rotary_table()?
        {
            bindings.set("rotary_table", self.upload_f32(&sizes, &table)?);
        }
        Ok(bindings)
    }

    /// Hands over what is staged, and waits, so that its memory is free again.
    fn flush(&self) -> Result<()> {
        self.queue.submit([]);
        self.wait()
    }
}
