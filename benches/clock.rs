//! Time on the device.

use std::time::{Duration, Instant};

use tileformer::convenience::Gpu;
use tileformer::{Error, Plan, Result, wgpu};

/// Times recorded plans: by timestamps around one compute pass where the device has them, else by the clock around submit and
/// wait.
pub(crate) struct Clock<'a> {
    gpu: &'a Gpu,
    timestamps: Option<(wgpu::QuerySet, wgpu::Buffer)>,
}

impl<'a> Clock<'a> {
    /// The best clock that the device has.
    pub(crate) fn new(gpu: &'a Gpu) -> Self {
        let available = gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY);
        let timestamps = available.then(|| {
            let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("clock"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            });
            let resolved = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("clock"),
                size: 16,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            (queries, resolved)
        });
        Self { gpu, timestamps }
    }

    /// What the times are.
    pub(crate) fn name(&self) -> &'static str {
        if self.timestamps.is_some() { "GPU timestamps around one pass" } else { "wall clock of submit and wait" }
    }

    /// The time of `calls` recordings in one pass, the plans taking turns.
    ///
    /// # Errors
    /// [`Error::Device`] for a lost device, or timestamps that stand still.
    pub(crate) fn time(&self, plans: &[Plan], calls: u64) -> Result<Duration> {
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let timestamp_writes = self.timestamps.as_ref().map(|(query_set, _)| wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let descriptor = wgpu::ComputePassDescriptor { label: Some("calls"), timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        for (plan, _) in plans.iter().cycle().zip(0..calls) {
            plan.record_in(&mut pass);
        }
        drop(pass);
        let Some((queries, resolved)) = &self.timestamps else {
            let commands = encoder.finish();
            let start = Instant::now();
            self.gpu.queue.submit([commands]);
            self.gpu.wait()?;
            return Ok(start.elapsed());
        };
        encoder.resolve_query_set(queries, 0..2, resolved, 0);
        self.gpu.queue.submit([encoder.finish()]);
        let bytes = self.gpu.read_bytes(resolved, 0, 16)?;
        let tick = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
        let ticks = tick(&bytes[8..]).saturating_sub(tick(&bytes[..8]));
        if ticks == 0 {
            return Err(Error::Device("the timestamps around a pass are equal".into()));
        }
        Ok(Duration::from_secs_f64(ticks as f64 * f64::from(self.gpu.queue.get_timestamp_period()) * 1e-9))
    }
}
