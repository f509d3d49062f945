//! A decoder of GPT-2's kind with random weights, ready to decode.

use std::time::{Duration, Instant};

use tileformer::convenience::Gpu;
use tileformer::layers::{
    BeamStepShape, Embedding, Encoder, EncoderLayer, GeneratorInputs, Norm, Placement, PrefillShape, StepShape,
};
use tileformer::spec::beams::BeamSearch;
use tileformer::spec::cache::{CachedRows, DecodeRow};
use tileformer::spec::generator::{Generator, GeneratorCaches, GeneratorStack};
use tileformer::spec::sampling::{SAMPLING_WORDS, Sampling};
use tileformer::{
    Activation, AttentionOptions, BatchShape, Bindings, Builder, Element, Kernels, Layout, Plan, Program, Result, Role,
    Scratch, Sequences, TensorView, wgpu,
};

use crate::fill::Fill;

/// The sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) n_layers: usize,
    pub(crate) d_model: usize,
    pub(crate) n_heads: usize,
    pub(crate) d_ff: usize,
    pub(crate) vocabulary: usize,
}

/// What is decoded: B texts that have `context` tokens each, `steps` more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) batch: usize,
    pub(crate) context: usize,
    pub(crate) steps: usize,
}

impl Sizes {
    /// Pre-norm layers with biases and GELU, learned positions, the token table as the projection.
    pub(crate) fn generator(&self, positions: usize) -> Generator {
        let mut layer = EncoderLayer::new(self.d_model, self.n_heads, self.d_ff);
        layer.placement = Placement::Pre;
        layer.feed_forward.activation = Activation::GeluTanh;
        layer.attention.options = AttentionOptions::causal();
        let embedding = Embedding { positions: Some(positions), ..Embedding::new(self.vocabulary, self.d_model) };
        let stack = Encoder::new(layer, self.n_layers).with_final_norm(Norm::default());
        Generator::new(embedding, GeneratorStack::Encoder(stack))
    }

    /// Bytes that one step must read at least: every weight once, and of each text its keys and values.
    pub(crate) fn bytes(&self, run: &Run, element: Element) -> u64 {
        let Self { n_layers, d_model, d_ff, vocabulary, .. } = *self;
        let layer = 4 * d_model * d_model + 2 * d_model * d_ff + 9 * d_model + d_ff;
        let keys = run.context + run.steps.div_ceil(2);
        let elements = n_layers * (layer + run.batch * 2 * keys * d_model) + vocabulary * d_model + 2 * d_model;
        elements as u64 * element.size()
    }
}

/// A model on a device, its prompts in the caches.
pub(crate) struct Decode<'a> {
    gpu: &'a Gpu,
    state: TensorView,
    first: Vec<u32>,
    run: Run,
    /// How long the prompts took into the caches, pipelines included.
    #[allow(dead_code)] // The bench, which has this file too, has no such row.
    pub(crate) prefill: Duration,
    pub(crate) step: Plan,
}

/// Random weights for the programs of `generator`.
pub(crate) fn weights(gpu: &Gpu, kernels: &Kernels, generator: &Generator, element: Element, seed: u32) -> Result<Bindings> {
    let inputs = GeneratorInputs::new(GeneratorCaches::new(1, 1), element);
    let program = generator.step(kernels, &inputs, &StepShape::new(1, 1))?;
    let mut fill = Fill::new(gpu, seed);
    let mut weights = Bindings::new();
    for (name, _, element, layout) in program.tensors().filter(|(_, role, ..)| *role == Role::Weight) {
        let sizes = layout.sizes();
        // As GPT-2 starts: 0.02; norms around nothing would end everything, so that theirs reach to one.
        let scale = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.035 };
        weights.set(name, fill.tensor(element, sizes, scale)?);
    }
    Ok(weights)
}

impl<'a> Decode<'a> {
    /// Programs, caches and plans; the prompts, of random tokens, go into the caches.
    ///
    /// # Errors
    /// [`tileformer::Error::Limit`] on a device that is too small for it.
    pub(crate) fn new(
        gpu: &'a Gpu,
        kernels: &Kernels,
        (generator, weights, element): (&Generator, &Bindings, Element),
        run: Run,
        sampling: impl Fn(u64) -> Result<Sampling>,
    ) -> Result<Self> {
        let caches = GeneratorCaches::new(run.batch, run.context + run.steps);
        let inputs = GeneratorInputs::new(caches, element);
        let step = generator.step(kernels, &inputs, &StepShape::new(run.batch, run.steps))?;
        let mut bindings = weights.clone();
        let sampling = (0..run.batch as u64).map(sampling).collect::<Result<Vec<Sampling>>>()?;
        bindings.set("sampling", gpu.upload_u32(&[run.batch, SAMPLING_WORDS], Sampling::words(&sampling))?);
        gpu.allocate(&step, &mut bindings)?;
        let prompt = |b: usize, i: usize| ((b * 7919 + i * 104_729) % generator.embedding.vocabulary) as u32;
        // The last token of a prompt is the first step's.
        let rows = run.context.saturating_sub(1);
        let start = Instant::now();
        if rows > 0 {
            prefill(gpu, kernels, (generator, &inputs), &bindings, run.batch, rows, prompt)?;
        }
        gpu.wait()?;
        let prefill = start.elapsed();
        let scratch = Scratch::shared(&[&step])?;
        let step = step.bind_with(&bindings.known_to(&step), &scratch)?;
        let row = |slot| Some(DecodeRow { slot, past: rows, id: prompt(slot, rows), memory: None });
        let first = caches.decode(generator, &(0..run.batch).map(row).collect::<Vec<_>>())?.words().to_vec();
        let state = step.view("state").cloned();
        let state =
            state.ok_or_else(|| tileformer::Error::Missing { tensor: "state".into(), expected: "a step's".into() })?;
        Ok(Self { gpu, state, first, run, prefill, step })
    }

    /// Decodes all steps in chunks, from the prompts on: the time from the first submission to the last ids, and the ids (steps, B).
    ///
    /// # Errors
    /// [`tileformer::Error::Device`] for a lost device.
    pub(crate) fn decode(&self, chunk: usize) -> Result<(Duration, Vec<u32>)> {
        self.gpu.write(&self.state, bytemuck::cast_slice(&self.first))?;
        self.gpu.wait()?;
        let start = Instant::now();
        let mut ids = Vec::new();
        for part in self.gpu.decode(&self.step, self.run.steps, chunk)? {
            ids.extend(part?.tokens);
        }
        Ok((start.elapsed(), ids))
    }
}

impl Decode<'_> {
    /// Each dispatch's label and nanoseconds in the first step behind the prompts.
    ///
    /// # Errors
    /// As [`Gpu::time`].
    #[allow(dead_code)] // The bench, which has this file too, times whole runs.
    pub(crate) fn time_step(&self) -> Result<Vec<(String, f64)>> {
        self.gpu.write(&self.state, bytemuck::cast_slice(&self.first))?;
        self.gpu.time(&self.step)
    }

    /// Host time to record a chunk of steps and submit it, over rows that all rest, so that a CPU adapter does nothing beside.
    ///
    /// # Errors
    /// [`tileformer::Error::Device`] for a lost device.
    #[allow(dead_code)] // As above.
    pub(crate) fn record(&self, chunk: usize) -> Result<Duration> {
        let resting = vec![0u32; self.first.len()];
        self.gpu.write(&self.state, bytemuck::cast_slice(&resting))?;
        let mut best = Duration::MAX;
        for _ in 0..20 {
            self.gpu.wait()?;
            let start = Instant::now();
            let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                (0..chunk).for_each(|_| self.step.record_in(&mut pass));
            }
            self.gpu.queue.submit([encoder.finish()]);
            best = best.min(start.elapsed());
        }
        self.gpu.wait()?;
        Ok(best)
    }
}

/// Seconds of a step without caches: all `rows` rows of a text through every layer, and the logits of the last one.
///
/// # Errors
/// As [`Decode::new`].
#[allow(dead_code)] // The bench, which has this file too, has no such row.
pub(crate) fn uncached(
    gpu: &Gpu,
    kernels: &Kernels,
    (generator, weights, element): (&Generator, &Bindings, Element),
    rows: usize,
) -> Result<f64> {
    let GeneratorStack::Encoder(stack) = &generator.stack else { return Ok(f64::NAN) };
    let mut b = Builder::new(kernels, "uncached step").with_storage(element)?;
    let attention = &stack.layer.attention;
    let batch = b.batch("", &attention.options, attention.n_heads, BatchShape::padded(1, rows), None)?;
    let layout = Layout::contiguous(&[rows, generator.embedding.d_model])?;
    let (x, y) = (b.scratch("embedded", element, layout)?, b.scratch("y", element, layout)?);
    b.embed("", &generator.embedding, &batch, x)?;
    b.encoder("", stack, &batch, x, false, y)?;
    let logits = b.output("logits", element, Layout::contiguous(&[1, generator.embedding.vocabulary])?)?;
    b.head(&generator.head_weight, None, y.narrow(0, rows - 1, 1)?, logits)?;
    let program = b.finish()?;
    let mut bindings = weights.known_to(&program);
    bindings
        .set("ids", gpu.zeros(Element::U32, &[rows])?)
        .set("sequences", gpu.upload_sequences(&Sequences::padded(&[rows], rows)?)?);
    gpu.allocate(&program, &mut bindings)?;
    let plan = program.bind(&bindings)?;
    gpu.run(&plan)?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        gpu.run(&plan)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Seconds of a step of a beam search over `rows` rows, from the start token on, and its dispatches.
///
/// # Errors
/// As [`Decode::new`]; [`tileformer::Error::Option`] for beams that there cannot be.
#[allow(dead_code)] // The bench, which has this file too, has no such row.
pub(crate) fn beams(
    gpu: &Gpu,
    kernels: &Kernels,
    (generator, weights, element): (&Generator, &Bindings, Element),
    [rows, beams, steps]: [usize; 3],
) -> Result<(f64, usize)> {
    let caches = GeneratorCaches::new(rows, steps);
    let inputs = GeneratorInputs::new(caches, element);
    let mut search = BeamSearch::new(beams, 0, 0);
    search.ends.clear();
    search.max_length = steps + 1;
    let shape = BeamStepShape { rows, ..BeamStepShape::of(&search, 0) };
    let program = generator.beam_step(kernels, &inputs, &shape)?;
    let mut plans = gpu.beam_plans(&program, (generator, &caches), &shape, weights)?;
    let texts = vec![0; rows.checked_div(beams).unwrap_or(0)];
    plans.search(&search, &texts)?;
    let start = Instant::now();
    plans.search(&search, &texts)?;
    Ok((start.elapsed().as_secs_f64() / steps as f64, program.dispatches().len()))
}

/// The most new rows of a prefill.
const PREFILL_ROWS: usize = 512;

/// `rows` tokens of every text into its slot, some of all texts at a time.
fn prefill(
    gpu: &Gpu,
    kernels: &Kernels,
    (generator, inputs): (&Generator, &GeneratorInputs),
    bindings: &Bindings,
    batch: usize,
    rows: usize,
    prompt: impl Fn(usize, usize) -> u32,
) -> Result<()> {
    let longest = (PREFILL_ROWS / batch).clamp(1, rows);
    let shape = PrefillShape { sequences: batch, rows: batch * longest, longest, hidden: false };
    let program: Program = generator.prefill(kernels, inputs, &shape)?;
    let mut bindings = bindings.known_to(&program);
    let ids = gpu.zeros(Element::U32, &[shape.rows])?;
    let sequences = gpu.zeros(Element::U32, &[batch, tileformer::spec::SEQUENCE_WORDS])?;
    bindings.set("ids", ids.clone()).set("sequences", sequences.clone());
    let plan = program.bind(&bindings)?;
    for past in (0..rows).step_by(longest) {
        let new = longest.min(rows - past);
        let texts: Vec<CachedRows> = (0..batch).map(|slot| CachedRows { slot, past, new }).collect();
        let mut words: Vec<u32> =
            (0..batch).flat_map(|b| (past..past + new).map(move |i| (b, i))).map(|(b, i)| prompt(b, i)).collect();
        words.resize(shape.rows, 0);
        gpu.write(&ids, bytemuck::cast_slice(&words))?;
        gpu.write(&sequences, bytemuck::cast_slice(inputs.caches.of_texts(generator).sequences(&texts)?.words()))?;
        gpu.run(&plan)?;
    }
    Ok(())
}
