//! Time on the device.

use std::time::{Duration, Instant};

use tileformer::convenience::Gpu;
use tileformer::{Error, Plan, Result, wgpu};

/// As many calls are timed as one.
pub(crate) const CALLS: u64 = 20;

/// No submission lasts longer, as far as one call allows: drivers give up on those that take seconds.
const LONGEST: Duration = Duration::from_millis(500);

/// A batch lasts at least as long where only the clock around submit and wait is there, which has a cost of its own.
const SHORTEST_BY_WALL: Duration = Duration::from_millis(20);

/// Work runs so long before it is timed, so that a GPU has left its idle clocks.
const WARM_UP: Duration = Duration::from_millis(200);

/// On a CPU adapter sampling ends after so long, once there are [`FEWEST`] samples.
const BUDGET: Duration = Duration::from_secs(4);
const FEWEST: usize = 5;

/// Times compute passes: by timestamps around them where the device has them, else by the clock around submit and wait.
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

    /// The time of one pass.
    ///
    /// # Errors
    /// [`Error::Device`] for a lost device, or timestamps that stand still.
    pub(crate) fn time(&self, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) -> Result<Duration> {
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let timestamp_writes = self.timestamps.as_ref().map(|(query_set, _)| wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let descriptor = wgpu::ComputePassDescriptor { label: Some("calls"), timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        record(&mut pass);
        drop(pass);
        let Some((queries, resolved)) = &self.timestamps else {
            return self.time_commands(encoder);
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

    /// The time from the submission of commands to their end.
    ///
    /// # Errors
    /// [`Error::Device`] for a lost device.
    pub(crate) fn time_commands(&self, encoder: wgpu::CommandEncoder) -> Result<Duration> {
        let commands = encoder.finish();
        let start = Instant::now();
        self.gpu.queue.submit([commands]);
        self.gpu.wait()?;
        Ok(start.elapsed())
    }

    /// Whether another sample is wanted behind `taken` since `start`.
    pub(crate) fn wants_more(&self, taken: usize, samples: usize, start: Instant) -> bool {
        let in_time = self.gpu.info.device_type != wgpu::DeviceType::Cpu || start.elapsed() < BUDGET;
        taken < samples && (taken < FEWEST || in_time)
    }
}

/// Calls of one row's plans, in turn, that are timed as one.
pub(crate) struct Batch<'a> {
    clock: &'a Clock<'a>,
    plans: Vec<Plan>,
    calls: u64,
}

impl<'a> Batch<'a> {
    /// Chooses how many calls are timed as one, and warms up.
    ///
    /// # Errors
    /// As [`Clock::time`].
    pub(crate) fn new(clock: &'a Clock<'a>, plans: Vec<Plan>) -> Result<Self> {
        let mut batch = Self { clock, plans, calls: 1 };
        batch.time()?;
        let one = batch.time()?.max(1e-9);
        let fit = |time: Duration| (time.as_secs_f64() / one) as u64;
        let enough = if clock.timestamps.is_some() { CALLS } else { CALLS.max(fit(SHORTEST_BY_WALL)) };
        batch.calls = enough.min(fit(LONGEST)).max(1);
        let start = Instant::now();
        while start.elapsed() < WARM_UP {
            batch.time()?;
        }
        Ok(batch)
    }

    /// Seconds of a call, the mean of one batch.
    ///
    /// # Errors
    /// As [`Clock::time`].
    pub(crate) fn time(&self) -> Result<f64> {
        let time = self.clock.time(|pass| {
            for (plan, _) in self.plans.iter().cycle().zip(0..self.calls) {
                plan.record_in(pass);
            }
        })?;
        Ok(time.as_secs_f64() / self.calls as f64)
    }
}

/// Seconds of a call over all samples.
pub(crate) struct Times {
    pub(crate) median: f64,
    pub(crate) best: f64,
}

impl Times {
    /// Of no samples, both are NaN.
    pub(crate) fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |i: usize| samples.get(i).copied().unwrap_or(f64::NAN);
        Self { median: at(samples.len() / 2), best: at(0) }
    }
}
