//! Beam search: a step on the GPU, its candidates read back, and the next step.

use super::readback::expect_copied;
use super::{Gpu, waited};
use crate::error::{Error, Result};
use crate::layers::BeamStepShape;
use crate::spec::beams::{BeamSearch, Beams, Hypothesis};
use crate::spec::cache::DecodeRow;
use crate::spec::generator::{Generator, GeneratorCaches};
use crate::spec::sampling::seen_words;
use crate::tensor::TensorView;
use crate::{Bindings, Plan, Program, Role, Scratch};

/// The plans of a beam search, ready for any number of batches.
#[derive(Debug)]
pub struct BeamPlans<'a> {
    gpu: &'a Gpu,
    generator: Generator,
    caches: GeneratorCaches,
    /// The caches of one are the parents of the other.
    plans: [Plan; 2],
    /// What the host writes before a step.
    state: TensorView,
    parents: TensorView,
    banned: TensorView,
    candidates: TensorView,
    shape: BeamStepShape,
}

impl Gpu {
    /// Binds a program of [`Generator::beam_step`], with the generator, caches and shape that it was made for. `bindings` has the
    /// weights, and the caches of cross-attention that [`Generator::remember`] fills; what else the program has is allocated, caches
    /// twice, for the steps to take turns.
    ///
    /// # Errors
    /// [`Error::Missing`] for a program that is no beam step's, and for bindings without a weight or a cache of cross-attention; [`Error::Shape`]
    /// for another shape than the program's, and for what the host writes or reads in a view with gaps; [`Error::Usage`] for such a view of a
    /// buffer that the host cannot copy to or from; as [`Program::bind`] and [`Gpu::upload_f32`].
    pub fn beam_plans(
        &self,
        program: &Program,
        (generator, caches): (&Generator, &GeneratorCaches),
        shape: &BeamStepShape,
        bindings: &Bindings,
    ) -> Result<BeamPlans<'_>> {
        let mut bindings = bindings.known_to(program);
        for (name, role, element, layout) in program.tensors() {
            match role {
                _ if bindings.get(name).is_some() => {}
                Role::Input => {
                    bindings.set(name, self.zeros(element, layout.sizes())?);
                }
                // An empty one would be a memory that nobody has.
                Role::State if name.ends_with("cross_cache") => {
                    return Err(Error::Missing { tensor: name.into(), expected: layout.to_string() });
                }
                _ => {}
            }
        }
        self.allocate(program, &mut bindings)?;
        let view = |name: &str| {
            let found = bindings.get(name).cloned();
            found.ok_or_else(|| Error::Missing { tensor: name.into(), expected: "a beam step's".into() })
        };
        let [state, parents, banned, candidates] = [view("state")?, view("parents")?, view("banned")?, view("candidates")?];
        if candidates.layout().sizes() != [shape.rows, shape.candidates, 2] {
            let expected = format!("[{}, {}, 2]", shape.rows, shape.candidates);
            return Err(Error::shape("candidates", expected, candidates.layout()));
        }
        let uses = [(&state, "COPY_DST"), (&parents, "COPY_DST"), (&banned, "COPY_DST"), (&candidates, "COPY_SRC")];
        for ((view, needed), name) in uses.into_iter().zip(["state", "parents", "banned", "candidates"]) {
            expect_copied(name, view, needed)?;
        }
        let mut turned = bindings.clone();
        for (name, view) in bindings.iter() {
            if let Some(other) = name.strip_suffix("parent_cache").map(|layer| format!("{layer}cache"))
                && let Some(cache) = bindings.get(&other)
            {
                turned.set(name, cache.clone()).set(other, view.clone());
            }
        }
        let scratch = Scratch::shared(&[program])?;
        let plans = [program.bind_with(&bindings, &scratch)?, program.bind_with(&turned, &scratch)?];
        let (generator, caches, shape) = (generator.clone(), *caches, *shape);
        Ok(BeamPlans { gpu: self, generator, caches, plans, state, parents, banned, candidates, shape })
    }
}

impl BeamPlans<'_> {
    /// The best targets of sources, the best one first: source number s has its memory in slot s, of `lengths[s]` rows, as
    /// [`Generator::remember`] left it there. Beams of a source share it. Without cross-attention there are as many searches as lengths, all
    /// from the start token alone.
    ///
    /// Each step is a submission: the host writes state and parents, and reads candidates back, of which it keeps the hypotheses. It waits for
    /// every step, as the next one depends on what it chose.
    ///
    /// # Errors
    /// As [`BeamSearch::check`]; [`Error::Option`] for more beams than the step has rows, more candidates than it gives, probabilities that are
    /// not renormalized as the search's are, targets longer than the caches, and memories that there is no room for; [`Error::Device`] when the
    /// device is out of memory.
    pub fn search(&mut self, search: &BeamSearch, lengths: &[usize]) -> Result<Vec<Vec<Hypothesis>>> {
        waited(self.search_async(search, lengths))
    }

    /// As [`BeamPlans::search`], for a browser, where nothing may block; elsewhere it blocks where it is awaited.
    ///
    /// # Errors
    /// As [`BeamPlans::search`].
    pub async fn search_async(&mut self, search: &BeamSearch, lengths: &[usize]) -> Result<Vec<Vec<Hypothesis>>> {
        let vocabulary = self.generator.embedding.vocabulary;
        let mut beams = Beams::new(search, lengths.len(), vocabulary)?;
        let used = lengths.len().saturating_mul(search.beams);
        let BeamStepShape { rows: all, candidates: count, renormalized, .. } = self.shape;
        if used > all {
            let expected = format!("at most {} of {} beams, for {all} rows", all / search.beams, search.beams);
            return Err(Error::option("sources of the beam search", expected, lengths.len()));
        }
        if search.candidates() > count {
            let expected = format!("at least {} for {} beams", search.candidates(), search.beams);
            return Err(Error::option("candidates of the beam step", expected, count));
        }
        if search.renormalized != renormalized {
            return Err(Error::option(
                "renormalized",
                format!("{renormalized}, as the beam step is made"),
                search.renormalized,
            ));
        }
        if search.max_length - 1 > self.caches.capacity {
            let expected = format!("at most {}, one more than the caches hold", self.caches.capacity + 1);
            return Err(Error::option("max_length", expected, search.max_length));
        }
        let mut banned = vec![0; all * seen_words(vocabulary)];
        let mut parents = vec![0; all];
        let mut rows = vec![None; all];
        let mut words = vec![0; 2 * all * count];
        let crosses = self.generator.cross_attention().is_some();
        let staging = self.gpu.staging("candidates", 4 * self.candidates.layout().extent())?;
        for plan in self.plans.iter().cycle() {
            if beams.done() {
                break;
            }
            for (slot, row) in beams.rows().enumerate() {
                rows[slot] = row.map(|r| {
                    let memory = crosses.then(|| (r.source, lengths[r.source]));
                    DecodeRow { slot, past: r.past, id: r.id, memory }
                });
                parents[slot] = row.map_or(0, |r| r.parent as u32);
            }
            let state = self.caches.decode(&self.generator, &rows)?;
            self.gpu.write(&self.state, bytemuck::cast_slice(state.words()))?;
            self.gpu.write(&self.parents, bytemuck::cast_slice(&parents))?;
            if beams.bans_change() {
                beams.ban(&mut banned)?;
                self.gpu.write(&self.banned, bytemuck::cast_slice(&banned))?;
            }
            self.step(plan, &staging, &mut words).await?;
            beams.advance(&words[..2 * used * count])?;
        }
        Ok(beams.into_hypotheses())
    }

    /// Runs a step and reads its candidates.
    async fn step(&self, plan: &Plan, staging: &wgpu::Buffer, words: &mut [u32]) -> Result<()> {
        let mut encoder = self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        plan.record(&mut encoder);
        let (view, bytes) = (&self.candidates, 4 * words.len() as u64);
        encoder.copy_buffer_to_buffer(view.buffer(), 4 * view.offset(), staging, 0, bytes);
        let mut returning = self.gpu.submit_back(plan.program().name(), encoder, staging.clone())?;
        self.gpu.receive(&mut returning, |bytes| bytemuck::cast_slice_mut(words).copy_from_slice(bytes)).await
    }
}
