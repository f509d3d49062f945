//! A translation model on the GPU: sources are encoded and remembered once, then each step makes one token of every target, or of every
//! beam of them.

use std::error::Error;

use tileformer::convenience::{BeamPlans, CHUNK_STEPS, Gpu};
use tileformer::layers::{BeamStepShape, GeneratorInputs, Inputs, StepShape};
use tileformer::models::Checkpoint;
use tileformer::models::seq2seq::{Output, Seq2Seq};
use tileformer::spec::SEQUENCE_WORDS;
use tileformer::spec::beams::BeamSearch;
use tileformer::spec::cache::{CachedRows, DecodeRow};
use tileformer::spec::generator::{Generator, GeneratorCaches};
use tileformer::spec::sampling::{MAX_STOPS, SAMPLING_WORDS, Sampling};
use tileformer::{BatchShape, Bindings, Element, Kernels, Plan, Program, Sequences};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a batch may reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) sequences: usize,
    /// Source tokens of all together.
    pub(crate) rows: usize,
    pub(crate) longest: usize,
}

impl Size {
    /// What holds every batch of `batch` sources.
    pub(crate) fn of(sources: &[Vec<u32>], batch: usize) -> Self {
        let rows = |batch: &[Vec<u32>]| batch.iter().map(Vec::len).sum();
        Self {
            sequences: sources.len().min(batch),
            rows: sources.chunks(batch).map(rows).max().unwrap_or(0),
            longest: sources.iter().map(Vec::len).max().unwrap_or(0),
        }
    }
}

/// For each layer what every head looks at.
pub(crate) struct Maps {
    /// (NH, S, S)
    pub(crate) encoder: Vec<Vec<f32>>,
    /// (NH, T, T)
    pub(crate) decoder: Vec<Vec<f32>>,
    /// (NH, T, S)
    pub(crate) cross: Vec<Vec<f32>>,
}

impl Maps {
    /// Those of one forward pass, which gives outputs in their order.
    pub(crate) fn of(model: &Seq2Seq, forward: impl FnOnce(&[Output]) -> Result<Vec<Vec<f32>>>) -> Result<Self> {
        let (encoder, decoder) = (model.encoder.n_layers, model.decoder.n_layers);
        let mut outputs: Vec<Output> = (0..encoder).map(Output::EncoderAttention).collect();
        outputs.extend((0..decoder).map(Output::DecoderAttention));
        outputs.extend((0..decoder).map(Output::CrossAttention));
        let mut encoder_maps = forward(&outputs)?;
        let mut decoder_maps = encoder_maps.split_off(encoder);
        let cross = decoder_maps.split_off(decoder);
        Ok(Self { encoder: encoder_maps, decoder: decoder_maps, cross })
    }
}

/// Whether all of a search is the most probable token that is not banned, each time: a step on the GPU makes that alone.
fn is_plain(search: &BeamSearch) -> bool {
    let BeamSearch { beams, min_length, no_repeat_ngram, ref banned, forced_first, forced_last, .. } = *search;
    beams == 1
        && (min_length, no_repeat_ngram) == (0, 0)
        && (forced_first, forced_last) == (None, None)
        && banned.iter().all(|run| run.len() == 1)
        && search.ends.len() <= MAX_STOPS
}

/// What writes targets.
enum Writer<'a> {
    Greedy(Plan),
    Beams(Box<BeamPlans<'a>>),
}

/// A model that is ready for batches of up to a size.
pub(crate) struct Translator<'a> {
    gpu: &'a Gpu,
    kernels: Kernels,
    model: &'a Seq2Seq,
    generator: Generator,
    storing: [Element; 2],
    search: BeamSearch,
    size: Size,
    caches: GeneratorCaches,
    bindings: Bindings,
    encode: Plan,
    remember: Plan,
    writer: Writer<'a>,
}

impl<'a> Translator<'a> {
    /// Uploads the weights.
    pub(crate) fn new(
        gpu: &'a Gpu,
        checkpoint: &Checkpoint,
        model: &'a Seq2Seq,
        search: &BeamSearch,
        size: Size,
        storing: [Element; 2],
    ) -> Result<Self> {
        let kernels = Kernels::new(&gpu.device, gpu.options())?;
        let generator = model.generator();
        let Size { sequences, rows, longest } = size;
        let steps = search.max_length - 1;
        let caches = GeneratorCaches {
            memory_slots: sequences,
            memory_capacity: longest,
            ..GeneratorCaches::new(sequences * search.beams, steps)
        };
        let inputs = GeneratorInputs::new(caches, storing[0]).with_weights(storing[1]);
        let source = BatchShape { sequences, q_rows: rows, longest_q: longest, k_rows: rows, longest_k: longest };
        let end = search.ends[0];
        let beams = BeamStepShape::of(search, sequences);
        let step = match is_plain(search) {
            true => {
                let shape = StepShape { bias: true, padding: end, ..StepShape::new(sequences, steps) };
                generator.step(&kernels, &inputs, &shape)?
            }
            false => generator.beam_step(&kernels, &inputs, &beams)?,
        };
        let programs = [
            model.encode(&kernels, &Inputs::new(source).with_storage(storing[0]).with_weights(storing[1]))?,
            generator.remember(&kernels, &inputs, sequences, rows)?,
            step,
        ];
        let mut bindings = gpu.upload_checkpoint(&programs.each_ref(), checkpoint, &model.weights()?, |_| {})?;
        bindings
            .set("source.ids", gpu.zeros(Element::U32, &[rows])?)
            .set("source.sequences", gpu.zeros(Element::U32, &[sequences, SEQUENCE_WORDS])?)
            .set("memory_sequences", gpu.zeros(Element::U32, &[sequences, SEQUENCE_WORDS])?);
        let [encode, remember, step] = &programs;
        [encode, remember].into_iter().try_for_each(|program| gpu.allocate(program, &mut bindings))?;
        let writer = if !is_plain(search) {
            Writer::Beams(Box::new(gpu.beam_plans(step, (&generator, &caches), &beams, &bindings)?))
        } else {
            let mut bias = vec![0.0; model.target.vocabulary];
            // An end is never banned, as in a beam search.
            for run in search.banned.iter().filter(|run| !search.ends.contains(&run[0])) {
                bias[run[0] as usize] = f32::NEG_INFINITY;
            }
            let sampling = vec![Sampling::greedy().with_stops(&search.ends)?; sequences];
            bindings
                .set("sampling", gpu.upload_u32(&[sequences, SAMPLING_WORDS], Sampling::words(&sampling))?)
                .set("bias", gpu.upload_f32(&[bias.len()], &bias)?);
            gpu.allocate(step, &mut bindings)?;
            Writer::Greedy(step.bind(&bindings.known_to(step))?)
        };
        let bind = |program: &Program| program.bind(&bindings.known_to(program));
        let (encode, remember, search) = (bind(encode)?, bind(remember)?, search.clone());
        Ok(Self { gpu, kernels, model, generator, storing, search, size, caches, bindings, encode, remember, writer })
    }

    /// The targets of sources.
    pub(crate) fn run(&mut self, sources: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
        let Self { gpu, generator, size, caches, .. } = self;
        // What is free in a batch that is not full: sequences without rows, rows without a sequence.
        let mut lengths: Vec<usize> = sources.iter().map(Vec::len).collect();
        lengths.resize(size.sequences, 0);
        let mut ids = sources.concat();
        ids.resize(size.rows, 0);
        let memory = caches.of_memory(generator).ok_or("a decoder without cross-attention")?;
        let slots: Vec<_> = lengths.iter().enumerate().map(|(slot, &new)| CachedRows { slot, past: 0, new }).collect();
        let (source, slots) = (Sequences::packed(&lengths)?, memory.sequences(&slots)?);
        write(gpu, &self.encode, "source.ids", &ids)?;
        write(gpu, &self.encode, "source.sequences", source.words())?;
        write(gpu, &self.remember, "memory_sequences", slots.words())?;
        gpu.run(&self.encode)?;
        gpu.run(&self.remember)?;
        let step = match &mut self.writer {
            Writer::Greedy(step) => step,
            Writer::Beams(plans) => {
                let found = plans.search(&self.search, &lengths[..sources.len()])?;
                return Ok(found.into_iter().map(|best| best.into_iter().next().map_or(Vec::new(), |h| h.ids)).collect());
            }
        };
        let row = |slot: usize| DecodeRow { slot, past: 0, id: self.search.start, memory: Some((slot, lengths[slot])) };
        let rows: Vec<_> = (0..size.sequences).map(|slot| (slot < sources.len()).then(|| row(slot))).collect();
        write(gpu, step, "state", caches.decode(generator, &rows)?.words())?;
        let mut targets = vec![Vec::new(); sources.len()];
        for chunk in gpu.decode(step, caches.capacity, CHUNK_STEPS)? {
            for ids in chunk?.tokens.chunks_exact(size.sequences) {
                targets.iter_mut().zip(ids).for_each(|(target, &id)| target.push(id));
            }
        }
        Ok(targets)
    }

    /// The attention of a source and its target, by one forward pass over the same weights.
    pub(crate) fn maps(&self, source: &[u32], target: &[u32]) -> Result<Maps> {
        let (own, other) = (Sequences::packed(&[target.len()])?, Sequences::packed(&[source.len()])?);
        Maps::of(self.model, |outputs| {
            let [rows, weights] = self.storing;
            let inputs =
                Inputs::new(BatchShape::cross(1, target.len(), source.len())).with_storage(rows).with_weights(weights);
            let program = self.model.program(&self.kernels, &inputs, outputs)?;
            let (gpu, mut bindings) = (self.gpu, self.bindings.known_to(&program));
            bindings
                .set("source.ids", gpu.upload_u32(&[source.len()], source)?)
                .set("target.ids", gpu.upload_u32(&[target.len()], target)?)
                .set("source.sequences", gpu.upload_sequences(&other)?)
                .set("target.sequences", gpu.upload_sequences(&own)?)
                .set("cross.sequences", gpu.upload_sequences(&own.over(&other)?)?);
            gpu.allocate(&program, &mut bindings)?;
            gpu.run(&program.bind(&bindings)?)?;
            let map = |output: &Output| {
                let view = bindings.get(&output.name()).ok_or("the program lacks an output")?;
                Ok(gpu.read_f32(view)?)
            };
            outputs.iter().map(map).collect()
        })
    }
}

fn write(gpu: &Gpu, plan: &Plan, name: &str, words: &[u32]) -> Result<()> {
    let view = plan.view(name).ok_or("the plan lacks an input")?;
    Ok(gpu.write(view, &words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>())?)
}
