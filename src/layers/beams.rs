//! The step of a beam search: parents' keys and values, then from ids to candidates.

use super::GeneratorInputs;
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::kernels::{BeamCandidates, CacheGather};
use crate::pipeline::Kernels;
use crate::program::Program;
use crate::shape::{Layout, nonzero};
use crate::spec::beams::BeamSearch;
use crate::spec::generator::Generator;
use crate::spec::sampling::seen_words;
use crate::tensor::Element;

/// What [`Generator::beam_step`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeamStepShape {
    /// Rows of the batch, B: beams of all sources.
    pub rows: usize,
    /// Candidates of each row, K.
    pub candidates: usize,
    /// Whether `bias` is an input, added to every row's log-probabilities (V).
    pub bias: bool,
    /// Whether log-probabilities are those among the tokens that are not banned.
    pub renormalized: bool,
}

impl BeamStepShape {
    /// What a search of up to `sources` sources at once needs.
    #[must_use]
    pub fn of(search: &BeamSearch, sources: usize) -> Self {
        Self {
            rows: sources.saturating_mul(search.beams),
            candidates: search.candidates(),
            bias: false,
            renormalized: search.renormalized,
        }
    }
}

impl Generator {
    /// One step of every row that does not rest: the keys and values of its parent are copied into its slot, its id is embedded, its own
    /// key and value are appended, and its most probable tokens come out. Which of them go on is for the host to say
    /// ([`Beams`](crate::spec::beams::Beams)): the state is as it was.
    ///
    /// | name | tensor |
    /// |---|---|
    /// | `state` | `u32` ([`DecodeState::rows`](crate::spec::cache::DecodeState::rows), 8): row b in slot b of the cache; rows of one source may share a slot of memory |
    /// | `parents` | `u32` (B): the slot of `parent_cache` that each row goes on from |
    /// | `banned` | `u32` (B, V / 32): a bit for each token that is not to be chosen |
    /// | `bias` | `f32` (V), where asked for |
    /// | `layers.N.parent_cache` | state, (2, slots, NH_kv, capacity, W): as the step before left `cache` |
    /// | `layers.N.cache` | state, the same, in another buffer |
    /// | `layers.N.cross_cache` | state, where there is cross-attention |
    /// | `candidates` | `u32` (B, K, 2): a token and the bits of its log-probability, the best one first |
    ///
    /// Two plans serve for a search, the caches of one the parents of the other.
    ///
    /// # Errors
    /// As [`Generator::check`]; [`Error::Option`] for more rows than slots, and more candidates than
    /// [`MAX_CANDIDATES`](crate::spec::beams::MAX_CANDIDATES).
    pub fn beam_step(&self, kernels: &Kernels, inputs: &GeneratorInputs, shape: &BeamStepShape) -> Result<Program> {
        self.check()?;
        let batch = shape.rows;
        nonzero("rows", batch)?;
        nonzero("candidates", shape.candidates)?;
        if batch > inputs.caches.slots {
            return Err(Error::option(
                "rows of the beam step",
                format!("at most {}, the slots", inputs.caches.slots),
                batch,
            ));
        }
        let mut b = Builder::new(kernels, "beam step").storing(inputs.storage, inputs.weights)?;
        let state = b.input("state", Element::U32, self.state_layout(batch)?)?;
        let sequences = state.narrow(0, 0, batch)?;
        let parents = b.input("parents", Element::U32, Layout::contiguous(&[batch])?)?;
        // One key more than the parent has, the row's own, which is written over.
        let lengths = Some(sequences.select(1, 3)?);
        for layer in 0..self.n_layers() {
            let texts = Some(inputs.caches.of_texts(self));
            let from = self.cache(&mut b, "parent_cache", layer, texts)?;
            let to = self.cache(&mut b, "cache", layer, texts)?;
            let label = format!("{}layers.{layer}.gather", self.stack_prefix);
            b.cache_gather(&label, &CacheGather { from, parents, lengths, to })?;
        }
        let (logits, _) = self.append_step(&mut b, inputs, state, batch, None)?;
        let vocabulary = self.embedding.vocabulary;
        let words = Layout::contiguous(&[batch, seen_words(vocabulary)])?;
        let banned = Some(b.input("banned", Element::U32, words)?);
        let bias = match shape.bias {
            true => Some(b.input("bias", Element::F32, Layout::contiguous(&[vocabulary])?)?),
            false => None,
        };
        let layout = Layout::contiguous(&[batch, shape.candidates, 2])?;
        let candidates = b.output("candidates", Element::U32, layout)?;
        let renormalized = shape.renormalized;
        let args = BeamCandidates { logits, bias, banned, renormalized, sequences: Some(sequences), candidates };
        b.beam_candidates("candidates", &args)?;
        b.finish()
    }
}
