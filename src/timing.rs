//! Timestamps of single dispatches.

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::scratch::checked;

impl Plan {
    /// Records the dispatches with a timestamp on either side of each; see [`Timing`].
    ///
    /// # Errors
    /// [`Error::Option`] for a timing that was made for another number of dispatches or on another device.
    pub fn record_timed(&self, encoder: &mut wgpu::CommandEncoder, timing: &Timing) -> Result<()> {
        if timing.labels.len() != self.bound.len() {
            return Err(Error::option("timing", format!("{} dispatches", self.bound.len()), timing.labels.len()));
        }
        if timing.device != *self.program().inner.kernels.device() {
            return Err(Error::option("timing", "one of the plan's device", "one of another"));
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
    device: wgpu::Device,
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
        let kernels = &plan.program().inner.kernels;
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
        checked(device, "timing", || Self {
            device: device.clone(),
            labels: plan.program().dispatches().iter().map(|d| d.label.clone()).collect(),
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
