//! Translation on a GPU: three programs, recorded into one command encoder, with nothing read back before the end.
//!
//! ```text
//! encode   source ids -> embedding -> encoder -> memory (rows of all sources, packed)
//! step     target ids (B, T) -> embedding -> decoder over memory -> decoded (B · T, d_model)
//! choose   row t of each sequence in decoded -> logits (B, V) -> argmax -> column t + 1 of the target ids
//!
//! encode, then for t in 0 .. T - 1: step, choose[t]
//! ```
//!
//! Each step decodes all T rows anew, those that have no id yet too: attention is causal, so that they do not reach the rows
//! before them, and one plan serves all steps. A cache of keys and values would save that work.

use tileformer::convenience::Gpu;
use tileformer::spec::SEQUENCE_WORDS;
use tileformer::{Bindings, Element, Kernels, Layout, Options, Plan, Program, Role, Scratch, Sequences, TensorView};

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
    source_ids: TensorView,
    source_sequences: TensorView,
    target_ids: TensorView,
    target_sequences: TensorView,
    cross_sequences: TensorView,
    encode: Plan,
    step: Plan,
    choose: Vec<Plan>,
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
        let (encode, step, choose) = (programs.encode(&size)?, programs.step(&size)?, programs.choose(&size)?);
        let scratch = Scratch::shared(&[&encode, &step, &choose])?;
        let zeros = |element, sizes: &[usize]| self.gpu.zeros(element, sizes);
        let source_ids = zeros(Element::U32, &[size.source_rows])?;
        let target_ids = zeros(Element::U32, &[size.sequences * size.target_rows])?;
        let [source_sequences, target_sequences, cross_sequences] = [
            zeros(Element::U32, &[size.sequences, SEQUENCE_WORDS])?,
            zeros(Element::U32, &[size.sequences, SEQUENCE_WORDS])?,
            zeros(Element::U32, &[size.sequences, SEQUENCE_WORDS])?,
        ];
        let memory = zeros(Element::F32, programs.rows(size.source_rows)?.sizes())?;
        let decoded = zeros(Element::F32, programs.rows(size.sequences * size.target_rows)?.sizes())?;

        let views = [("source.ids", &source_ids), ("source.sequences", &source_sequences), ("memory", &memory)];
        let encode = encode.bind_with(&self.bindings(&encode, &views), &scratch)?;
        let views = [
            ("target.ids", &target_ids),
            ("target.sequences", &target_sequences),
            ("cross.sequences", &cross_sequences),
            ("memory", &memory),
            ("decoded", &decoded),
        ];
        let step = step.bind_with(&self.bindings(&step, &views), &scratch)?;
        let choose_at = |t: usize| {
            let first = (t * self.model.config.d_model) as u64;
            let last = TensorView::new(decoded.buffer(), first, Element::F32, programs.last_rows(&size)?)?;
            let column = Layout::strided(&[size.sequences], &[size.target_rows])?;
            let next = TensorView::new(target_ids.buffer(), t as u64 + 1, Element::U32, column)?;
            choose.bind_with(&self.bindings(&choose, &[("last", &last), ("next", &next)]), &scratch)
        };
        let choose = (0..self.model.steps()).map(choose_at).collect::<tileformer::Result<_>>()?;
        Ok(Batch { size, source_ids, source_sequences, target_ids, target_sequences, cross_sequences, encode, step, choose })
    }

    /// Records the encoder and the first `steps` steps of the decoder, and submits them as one.
    fn submit(&self, batch: &Batch, steps: usize) {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        batch.encode.record_in(&mut pass);
        for choose in &batch.choose[..steps] {
            batch.step.record_in(&mut pass);
            choose.record_in(&mut pass);
        }
        drop(pass);
        // The queue is this program's, as it would be an engine's.
        #[allow(clippy::disallowed_methods)]
        self.gpu.queue.submit([encoder.finish()]);
    }

    /// One batch: five small uploads, one submission, one readback.
    fn run(&self, batch: &Batch, sources: &[Vec<u32>]) -> tileformer::Result<Vec<Vec<u32>>> {
        let Size { sequences, source_rows, target_rows, .. } = batch.size;
        let write = |view: &TensorView, words: &[u32]| self.gpu.write(view, bytemuck::cast_slice(words));
        // What is free in a batch that is not full: sequences without rows, rows without a sequence.
        let mut lengths: Vec<usize> = sources.iter().map(Vec::len).collect();
        lengths.resize(sequences, 0);
        let mut source_ids = sources.concat();
        source_ids.resize(source_rows, 0);
        let mut target_ids = vec![0; sequences * target_rows];
        target_ids.iter_mut().step_by(target_rows).for_each(|id| *id = TargetVocabulary::BOS);
        write(&batch.source_ids, &source_ids)?;
        write(&batch.source_sequences, Sequences::packed(&lengths)?.words())?;
        write(&batch.target_ids, &target_ids)?;
        write(&batch.target_sequences, Sequences::padded(&vec![target_rows; sequences], target_rows)?.words())?;
        write(&batch.cross_sequences, padded_over_packed(target_rows, &lengths)?.words())?;

        self.submit(batch, batch.choose.len());
        let ids = self.gpu.read_u32(&batch.target_ids)?;
        let rows = ids.chunks_exact(target_rows).take(sources.len());
        Ok(rows.map(|row| cut(&row[1..]).to_vec()).collect())
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
            self.submit(&batch, 1);
            self.gpu.wait()?;
            self.batch = Some(batch);
        }
        Ok(())
    }

    fn translate(&mut self, sources: &[Vec<u32>]) -> Result<Vec<Vec<u32>>> {
        self.prepare(sources)?;
        let batch = self.batch.as_ref().ok_or("no batch was prepared")?;
        let mut translations = Vec::with_capacity(sources.len());
        for sources in sources.chunks(batch.size.sequences) {
            translations.extend(self.run(batch, sources)?);
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
