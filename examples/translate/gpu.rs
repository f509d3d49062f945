//! Translation on a GPU: sources are encoded once, then each step makes one id of every sequence, its keys and values kept in caches.
//!
//! ```text
//! encode     source ids -> embedding -> encoder -> memory (rows of all sources, packed)
//! remember   memory -> keys and values of cross-attention, in a slot for each source
//! step       the last id of each sequence -> embedding -> decoder over the caches -> logits -> the next id
//!
//! encode, remember, then steps in chunks until every sequence has ended
//! ```
//!
//! A sequence that has ended rests on the GPU; the host learns of it with the chunk's ids.

use tileformer::convenience::{CHUNK_STEPS, Gpu};
use tileformer::spec::SEQUENCE_WORDS;
use tileformer::spec::cache::{CachedRows, DecodeRow};
use tileformer::spec::sampling::{SAMPLING_WORDS, Sampling};
use tileformer::{Bindings, Element, Kernels, Options, Plan, Program, Role, Scratch, Sequences, TensorView};

use crate::engine::{Engine, Result, Trace, padded_over_packed};
use crate::model::Model;
use crate::programs::{Programs, Size};
use crate::text::{TargetVocabulary, cut};

/// A model on a device.
pub(crate) struct OnGpu<'a> {
    gpu: Gpu,
    programs: Programs<'a>,
    model: &'a Model,
    weights: Bindings,
    batch: Option<Batch>,
}

/// The plans for batches of up to a size, and the buffers that the host writes and reads.
struct Batch {
    size: Size,
    encode: Plan,
    remember: Plan,
    step: Plan,
}

impl<'a> OnGpu<'a> {
    /// Uploads the model's weights.
    pub(crate) fn new(gpu: Gpu, model: &'a Model) -> Result<Self> {
        let kernels = Kernels::new(&gpu.device, Options::default())?;
        let mut weights = Bindings::new();
        for (name, weight) in &model.weights {
            weights.set(name, gpu.upload_weight(&weight.sizes, &weight.data)?);
        }
        Ok(Self { gpu, programs: Programs::new(kernels, model), model, weights, batch: None })
    }

    /// The program's weights by their names, and these views.
    fn bindings(&self, program: &Program, views: &[(&str, &TensorView)]) -> Bindings {
        let mut bindings = self.weights.known_to(program);
        bindings.extend(views.iter().map(|&(name, view)| (name, view.clone())));
        bindings
    }

    /// Programs, buffers and plans for batches of up to `size`.
    fn make_batch(&self, size: Size) -> tileformer::Result<Batch> {
        let programs = &self.programs;
        let all = [programs.encode(&size)?, programs.remember(&size)?, programs.step(&size)?];
        let scratch = Scratch::shared(&all.each_ref())?;
        let zeros = |element, sizes: &[usize]| self.gpu.zeros(element, sizes);
        let sampling = vec![Sampling::greedy().with_stops(&[TargetVocabulary::EOS])?; size.sequences];
        let mut bindings = self.weights.clone();
        bindings
            .set("source.ids", zeros(Element::U32, &[size.source_rows])?)
            .set("source.sequences", zeros(Element::U32, &[size.sequences, SEQUENCE_WORDS])?)
            .set("memory_sequences", zeros(Element::U32, &[size.sequences, SEQUENCE_WORDS])?)
            .set("sampling", self.gpu.upload_u32(&[size.sequences, SAMPLING_WORDS], Sampling::words(&sampling))?);
        all.iter().try_for_each(|program| self.gpu.allocate(program, &mut bindings))?;
        let bind = |program: &Program| program.bind_with(&bindings.known_to(program), &scratch);
        let [encode, remember, step] = [bind(&all[0])?, bind(&all[1])?, bind(&all[2])?];
        Ok(Batch { size, encode, remember, step })
    }

    /// One batch: four small uploads, one submission for the sources, one for each chunk of steps.
    fn run(&self, batch: &Batch, sources: &[Vec<u32>], steps: usize) -> tileformer::Result<Vec<Vec<u32>>> {
        let Batch { size, encode, remember, step } = batch;
        let write = |plan: &Plan, name: &str, words: &[u32]| match plan.view(name) {
            Some(view) => self.gpu.write(view, bytemuck::cast_slice(words)),
            None => Err(tileformer::Error::Missing { tensor: name.into(), expected: "a tensor of the plan".into() }),
        };
        // What is free in a batch that is not full: sequences without rows, rows without a sequence.
        let mut lengths: Vec<usize> = sources.iter().map(Vec::len).collect();
        lengths.resize(size.sequences, 0);
        let mut source_ids = sources.concat();
        source_ids.resize(size.source_rows, 0);
        let (caches, generator) = (self.programs.caches(size), self.programs.generator());
        let memory: Vec<CachedRows> =
            lengths.iter().enumerate().map(|(slot, &new)| CachedRows { slot, past: 0, new }).collect();
        let row = |slot: usize| DecodeRow { slot, past: 0, id: TargetVocabulary::BOS, memory: Some((slot, lengths[slot])) };
        let rows: Vec<_> = (0..size.sequences).map(|slot| (slot < sources.len()).then(|| row(slot))).collect();
        write(encode, "source.ids", &source_ids)?;
        write(encode, "source.sequences", Sequences::packed(&lengths)?.words())?;
        if let Some(shape) = caches.of_memory(&generator) {
            write(remember, "memory_sequences", shape.sequences(&memory)?.words())?;
        }
        write(step, "state", caches.decode(&generator, &rows)?.words())?;

        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        encode.record(&mut encoder);
        remember.record(&mut encoder);
        // The queue is this program's, as it would be an engine's.
        #[allow(clippy::disallowed_methods)]
        self.gpu.queue.submit([encoder.finish()]);
        let mut produced = vec![Vec::new(); sources.len()];
        for chunk in self.gpu.decode(step, steps, CHUNK_STEPS)? {
            for ids in chunk?.tokens.chunks_exact(size.sequences) {
                produced.iter_mut().zip(ids).for_each(|(row, &id)| row.push(id));
            }
        }
        Ok(produced.iter().map(|row| cut(row).to_vec()).collect())
    }
}

impl Engine for OnGpu<'_> {
    fn name(&self) -> String {
        self.gpu.info.name.clone()
    }

    fn prepare(&mut self, sources: &[Vec<u32>]) -> Result<()> {
        let size = Size::of(sources, self.model.config.max_target);
        if self.batch.as_ref().is_none_or(|batch| !batch.size.holds(&size)) {
            let batch = self.make_batch(size)?;
            // Some drivers compile a pipeline when it first runs: one step over a batch without rows has them all.
            self.run(&batch, &[], 1)?;
            self.batch = Some(batch);
        }
        Ok(())
    }

    fn translate(&mut self, sources: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
        self.prepare(sources)?;
        let batch = self.batch.as_ref().ok_or("no batch was prepared")?;
        let mut translations = Vec::with_capacity(sources.len());
        for sources in sources.chunks(batch.size.sequences) {
            translations.extend(self.run(batch, sources, self.model.steps())?);
        }
        Ok(translations)
    }

    fn trace(&mut self, source: &[u32], target: &[u32]) -> Result<Trace> {
        let (s, t) = (source.len(), target.len());
        let program = self.programs.trace(&Size { sequences: 1, source_rows: s, longest_source: s, target_rows: t })?;
        let gpu = &self.gpu;
        let sequences = |s: Sequences| gpu.upload_u32(&[1, SEQUENCE_WORDS], s.words());
        let mut bindings = self.bindings(
            &program,
            &[
                ("source.ids", &gpu.upload_ids("source ids", &[s], source, self.model.source.len())?),
                ("target.ids", &gpu.upload_ids("target ids", &[t], target, self.model.target.len())?),
                ("source.sequences", &sequences(Sequences::packed(&[s])?)?),
                ("target.sequences", &sequences(Sequences::packed(&[t])?)?),
                ("cross.sequences", &sequences(padded_over_packed(t, &[s])?)?),
            ],
        );
        for (name, _, element, layout) in program.tensors().filter(|(_, role, ..)| *role == Role::Output) {
            bindings.set(name, gpu.zeros(element, layout.sizes())?);
        }
        gpu.run(&program.bind(&bindings)?)?;
        let read = |name: &str| gpu.read_f32(bindings.get(name).ok_or_else(|| tileformer::Error::Device(name.into()))?);
        let layers = 0..self.model.config.n_decoder_layers;
        let cross_attention =
            layers.map(|n| read(&format!("decoder.layers.{n}.cross_weights"))).collect::<tileformer::Result<_>>()?;
        Ok(Trace { logits: read("logits")?, cross_attention })
    }
}
