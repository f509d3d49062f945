//! Decoding in chunks: the GPU runs one while the host records the next and reads the one before.

use std::collections::VecDeque;

use super::readback::{Returning, expect_copied};
use super::{Gpu, can_wait};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::spec::cache::{DecodeState, STATE_WORDS};
use crate::tensor::{Element, TensorView};

/// Steps recorded into one submission, unless told otherwise: few enough that other work of the device, and its watchdog, come to
/// their turn, enough that submitting costs little a step.
pub const CHUNK_STEPS: usize = 8;

/// Chunks that are under way at once: one runs while the next is recorded.
const AHEAD: usize = 2;

/// What a chunk of steps gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The first step's number.
    pub first_step: usize,
    /// (steps, B): the chosen ids, the padding id from a row's end on.
    pub tokens: Vec<u32>,
    /// (steps, B) where the program has log-probabilities, else empty: their bits.
    log_probs: Vec<u32>,
    /// Whether each row rests by the end of the chunk.
    pub ended: Vec<bool>,
}

impl Chunk {
    /// (steps, B): log-probabilities of the chosen ids, where the program has them, 0 from a row's end on.
    #[must_use]
    pub fn log_probs(&self) -> Vec<f32> {
        self.log_probs.iter().copied().map(f32::from_bits).collect()
    }
}

/// Steps of a [`Generator`](crate::spec::generator::Generator) in chunks, as an iterator that ends when every row rests or all steps
/// are taken. The state must stand at step 0 when it begins.
#[derive(Debug)]
#[must_use = "nothing is submitted before a chunk is asked for"]
pub struct Decoding<'a> {
    gpu: &'a Gpu,
    plan: &'a Plan,
    /// State, tokens, log-probabilities: what is copied back.
    state: &'a TensorView,
    logs: Vec<&'a TensorView>,
    batch: usize,
    steps: usize,
    chunk: usize,
    submitted: usize,
    under_way: VecDeque<UnderWay>,
    free: Vec<wgpu::Buffer>,
    failed: bool,
}

/// A chunk that was submitted.
#[derive(Debug)]
struct UnderWay {
    first: usize,
    count: usize,
    returning: Returning,
}

impl Gpu {
    /// Takes `steps` steps of the plan of a [`Generator::step`](crate::spec::generator::Generator::step), in chunks of `chunk`
    /// ([`CHUNK_STEPS`], say).
    ///
    /// ```no_run
    /// # fn f(gpu: &tileformer::convenience::Gpu, step: &tileformer::Plan) -> tileformer::Result<()> {
    /// for chunk in gpu.decode(step, 100, tileformer::convenience::CHUNK_STEPS)? {
    ///     println!("{:?}", chunk?.tokens); // (steps of the chunk, B)
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Missing`] for a plan without `state` and `tokens`, [`Error::Shape`] for ones that are no step's, [`Error::Option`] for more
    /// steps than `tokens` has rows, a chunk of none or a plan of another device, [`Error::Element`] for ids that are no `u32` and
    /// log-probabilities that are no `f32`, [`Error::Usage`] for buffers without `COPY_SRC`,
    /// [`Error::Device`] when the device is out of memory.
    pub fn decode<'a>(&'a self, plan: &'a Plan, steps: usize, chunk: usize) -> Result<Decoding<'a>> {
        self.expect_own(plan)?;
        let view = |name: &str| {
            plan.view(name).ok_or_else(|| Error::Missing { tensor: name.into(), expected: "a decode step's".into() })
        };
        let (state, tokens) = (view("state")?, view("tokens")?);
        let &[most, batch] = tokens.layout().sizes() else {
            return Err(Error::shape("tokens", "(steps, B)", tokens.layout()));
        };
        if steps > most {
            return Err(Error::option("steps", format!("at most {most}, the rows of tokens"), steps));
        }
        crate::shape::nonzero("chunk", chunk)?;
        let chunk = chunk.min(steps.max(1));
        match state.layout().sizes() {
            &[rows, STATE_WORDS] if rows >= DecodeState::rows(batch, false) => {}
            _ => return Err(Error::shape("state", format!("that of {batch} rows, (2 B or 3 B, 8)"), state.layout())),
        }
        let log_probs = plan.view("log_probs");
        if let Some(other) = log_probs.filter(|view| view.layout().sizes() != tokens.layout().sizes()) {
            return Err(Error::shape("log_probs", format!("{:?}, as tokens", tokens.layout().sizes()), other.layout()));
        }
        let mut wanted = vec![("state", state, Element::U32), ("tokens", tokens, Element::U32)];
        wanted.extend(log_probs.map(|view| ("log_probs", view, Element::F32)));
        for (name, view, element) in wanted {
            if view.element() != element {
                return Err(Error::Element { tensor: name.into(), expected: element.name(), found: view.element().name() });
            }
            expect_copied(name, view, "COPY_SRC")?;
        }
        let logs: Vec<_> = std::iter::once(tokens).chain(log_probs).collect();
        let bytes = 4 * (logs.len() * chunk * batch + batch * STATE_WORDS) as u64;
        let free = (0..AHEAD).map(|_| self.staging("tokens", bytes));
        let free = free.collect::<Result<_>>()?;
        let under_way = VecDeque::with_capacity(AHEAD);
        Ok(Decoding { gpu: self, plan, state, logs, batch, steps, chunk, submitted: 0, under_way, free, failed: false })
    }
}

impl Decoding<'_> {
    /// Records and submits the next chunk, its ids on their way back.
    fn submit(&mut self, staging: wgpu::Buffer) -> Result<()> {
        let (first, count) = (self.submitted, self.chunk.min(self.steps - self.submitted));
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for _ in 0..count {
                self.plan.record_in(&mut pass);
            }
        }
        let row = 4 * self.batch as u64;
        let mut at = 0;
        for log in &self.logs {
            let from = 4 * log.offset() + first as u64 * row;
            encoder.copy_buffer_to_buffer(log.buffer(), from, &staging, at, count as u64 * row);
            at += count as u64 * row;
        }
        // The last B rows of the state say who rests.
        let words = (self.batch * STATE_WORDS) as u64;
        let from = 4 * (self.state.offset() + self.state.layout().extent() - words);
        encoder.copy_buffer_to_buffer(self.state.buffer(), from, &staging, at, 4 * words);
        let returning = self.gpu.submit_back(self.plan.program().name(), encoder, staging)?;
        self.under_way.push_back(UnderWay { first, count, returning });
        self.submitted += count;
        Ok(())
    }

    /// Waits for the oldest chunk, which is under way until it is there.
    async fn receive(&mut self) -> Result<Option<Chunk>> {
        let Some(UnderWay { returning, .. }) = self.under_way.front_mut() else { return Ok(None) };
        let words: Vec<u32> = self.gpu.receive(returning, bytemuck::pod_collect_to_vec).await?;
        let Some(UnderWay { first, count, returning }) = self.under_way.pop_front() else { return Ok(None) };
        self.free.push(returning.staging);
        let size = count * self.batch;
        let log = |i: usize| words[i * size..(i + 1) * size].to_vec();
        let flags = words[self.logs.len() * size..].chunks(STATE_WORDS).take(self.batch).map(|row| row[2] & 1 != 0);
        let log_probs = if self.logs.len() > 1 { log(1) } else { Vec::new() };
        Ok(Some(Chunk { first_step: first, tokens: log(0), log_probs, ended: flags.collect() }))
    }

    /// The next chunk, as the iterator gives it, for a browser, where nothing may block; elsewhere it blocks where it is awaited. Who drops
    /// the future before it is done loses nothing: the next one has that chunk.
    ///
    /// # Errors
    /// As an item: [`Error::Device`] for a lost device and for buffers that were destroyed or are mapped.
    pub async fn next_async(&mut self) -> Option<Result<Chunk>> {
        while self.submitted < self.steps && !self.failed {
            let Some(staging) = self.free.pop() else { break };
            if let Err(error) = self.submit(staging) {
                self.under_way.clear();
                self.failed = true;
                return Some(Err(error));
            }
        }
        let chunk = self.receive().await.transpose()?;
        match &chunk {
            // What is under way beyond this leaves at once on the GPU, and has nothing to tell.
            Ok(chunk) if chunk.ended.iter().all(|ended| *ended) => {
                self.under_way.clear();
                self.submitted = self.steps;
            }
            Ok(_) => {}
            Err(_) => {
                self.under_way.clear();
                self.failed = true;
            }
        }
        Some(chunk)
    }
}

impl Iterator for Decoding<'_> {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = can_wait() {
            return (!std::mem::replace(&mut self.failed, true)).then_some(Err(error));
        }
        pollster::block_on(self.next_async())
    }
}
