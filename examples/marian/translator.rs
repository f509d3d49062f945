//! A translation model on the GPU: sources are encoded and remembered once, then each step makes one token of every target.

use std::error::Error;

use tileformer::convenience::{CHUNK_STEPS, Gpu};
use tileformer::layers::{GeneratorInputs, Inputs, StepShape};
use tileformer::models::Checkpoint;
use tileformer::models::seq2seq::Seq2Seq;
use tileformer::spec::SEQUENCE_WORDS;
use tileformer::spec::cache::{CachedRows, DecodeRow};
use tileformer::spec::generator::{Generator, GeneratorCaches};
use tileformer::spec::sampling::{SAMPLING_WORDS, Sampling};
use tileformer::{BatchShape, Element, Kernels, Plan, Sequences};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a batch may reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) sequences: usize,
    /// Source tokens of all together.
    pub(crate) rows: usize,
    pub(crate) longest: usize,
    /// The most tokens of a target.
    pub(crate) steps: usize,
}

impl Size {
    /// What holds every batch of `batch` sources.
    pub(crate) fn of(sources: &[Vec<u32>], batch: usize, steps: usize) -> Self {
        let rows = |batch: &[Vec<u32>]| batch.iter().map(Vec::len).sum();
        Self {
            sequences: sources.len().min(batch),
            rows: sources.chunks(batch).map(rows).max().unwrap_or(0),
            longest: sources.iter().map(Vec::len).max().unwrap_or(0),
            steps,
        }
    }
}

/// A model that is ready for batches of up to a size.
pub(crate) struct Translator<'a> {
    gpu: &'a Gpu,
    generator: Generator,
    size: Size,
    caches: GeneratorCaches,
    start: u32,
    end: u32,
    encode: Plan,
    remember: Plan,
    step: Plan,
}

impl<'a> Translator<'a> {
    /// Uploads the weights.
    pub(crate) fn new(gpu: &'a Gpu, checkpoint: &Checkpoint, model: &Seq2Seq, size: Size, storage: Element) -> Result<Self> {
        let start = model.tokens.start.ok_or("config.json: no decoder_start_token_id")?;
        let end = model.tokens.end.ok_or("config.json: no eos_token_id")?;
        let kernels = Kernels::new(&gpu.device, gpu.options())?;
        let generator = model.generator();
        let Size { sequences, rows, longest, steps } = size;
        let caches = GeneratorCaches::new(sequences, steps).with_memory(longest);
        let inputs = GeneratorInputs { caches, storage };
        let source = BatchShape { sequences, q_rows: rows, longest_q: longest, k_rows: rows, longest_k: longest };
        let shape = StepShape { bias: true, padding: end, ..StepShape::new(sequences, steps) };
        let programs = [
            model.encode(&kernels, &Inputs::new(source).with_storage(storage))?,
            generator.remember(&kernels, &inputs, sequences, rows)?,
            generator.step(&kernels, &inputs, &shape)?,
        ];
        let mut bindings = gpu.upload_checkpoint(&programs.each_ref(), checkpoint, &model.weights()?, |_| {})?;
        // The padding token begins a target and is no part of it.
        let mut bias = vec![0.0; model.target.vocabulary];
        if let Some(bias) = model.tokens.padding.and_then(|id| bias.get_mut(id as usize)) {
            *bias = f32::NEG_INFINITY;
        }
        let sampling = vec![Sampling::greedy().with_stops(&[end])?; sequences];
        bindings
            .set("source.ids", gpu.zeros(Element::U32, &[rows])?)
            .set("source.sequences", gpu.zeros(Element::U32, &[sequences, SEQUENCE_WORDS])?)
            .set("memory_sequences", gpu.zeros(Element::U32, &[sequences, SEQUENCE_WORDS])?)
            .set("sampling", gpu.upload_u32(&[sequences, SAMPLING_WORDS], Sampling::words(&sampling))?)
            .set("bias", gpu.upload_f32(&[bias.len()], &bias)?);
        programs.iter().try_for_each(|program| gpu.allocate(program, &mut bindings))?;
        let bind = |program: &tileformer::Program| program.bind(&bindings.known_to(program));
        let [encode, remember, step] = [bind(&programs[0])?, bind(&programs[1])?, bind(&programs[2])?];
        Ok(Self { gpu, generator, size, caches, start, end, encode, remember, step })
    }

    /// The targets of sources, without their end tokens.
    pub(crate) fn run(&self, sources: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
        let Self { gpu, generator, size, caches, .. } = self;
        // What is free in a batch that is not full: sequences without rows, rows without a sequence.
        let mut lengths: Vec<usize> = sources.iter().map(Vec::len).collect();
        lengths.resize(size.sequences, 0);
        let mut ids = sources.concat();
        ids.resize(size.rows, 0);
        let memory = caches.of_memory(generator).ok_or("a decoder without cross-attention")?;
        let slots: Vec<_> = lengths.iter().enumerate().map(|(slot, &new)| CachedRows { slot, past: 0, new }).collect();
        let row = |slot: usize| DecodeRow { slot, past: 0, id: self.start, memory: Some((slot, lengths[slot])) };
        let rows: Vec<_> = (0..size.sequences).map(|slot| (slot < sources.len()).then(|| row(slot))).collect();
        let state = caches.decode(generator, &rows)?;
        let (source, slots) = (Sequences::packed(&lengths)?, memory.sequences(&slots)?);
        for (plan, name, words) in [
            (&self.encode, "source.ids", ids.as_slice()),
            (&self.encode, "source.sequences", source.words()),
            (&self.remember, "memory_sequences", slots.words()),
            (&self.step, "state", state.words()),
        ] {
            let view = plan.view(name).ok_or("the plan lacks an input")?;
            gpu.write(view, &words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>())?;
        }
        gpu.run(&self.encode)?;
        gpu.run(&self.remember)?;
        let mut targets = vec![Vec::new(); sources.len()];
        for chunk in gpu.decode(&self.step, size.steps, CHUNK_STEPS)? {
            for ids in chunk?.tokens.chunks_exact(size.sequences) {
                targets.iter_mut().zip(ids).for_each(|(target, &id)| target.push(id));
            }
        }
        for target in &mut targets {
            let length = target.iter().position(|&id| id == self.end).unwrap_or(target.len());
            target.truncate(length);
        }
        Ok(targets)
    }
}
