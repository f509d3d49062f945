//! The programs of a generator: memory into caches, prompts into caches, and the step from ids to ids.

use super::{CachedLayer, CachedMemory};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::kernels::{Choose, Linear};
use crate::pipeline::Kernels;
use crate::program::{Program, Tensor};
use crate::shape::Layout;
use crate::spec::SEQUENCE_WORDS;
use crate::spec::cache::{CacheShape, DecodeState, STATE_WORDS};
use crate::spec::generator::{Generator, GeneratorCaches, GeneratorStack};
use crate::spec::layers::MultiHeadAttention;
use crate::spec::sampling::{SAMPLING_WORDS, seen_words};
use crate::tensor::Element;

/// What a generator's programs are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneratorInputs {
    /// The caches that they share.
    pub caches: GeneratorCaches,
    /// What weights, caches and rows are stored as.
    pub storage: Element,
    /// What weights of projections are stored as: as all else, or in blocks ([`Builder::with_weights`]).
    pub weights: Option<Element>,
}

impl GeneratorInputs {
    /// Weights, caches and rows as `storage`.
    #[must_use]
    pub fn new(caches: GeneratorCaches, storage: Element) -> Self {
        Self { caches, storage, weights: None }
    }

    /// With weights of projections as `element`, in all programs over the same weights.
    #[must_use]
    pub fn with_weights(self, element: Element) -> Self {
        Self { weights: Some(element), ..self }
    }
}

/// The largest batch of new rows that [`Generator::prefill`] takes at once. A longer prompt goes in several, of any size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillShape {
    /// Texts.
    pub sequences: usize,
    /// New rows of all of them together.
    pub rows: usize,
    /// The most new rows of one.
    pub longest: usize,
    /// Whether the rows behind the final norm are an output, `y` (rows, d_model).
    pub hidden: bool,
}

/// What [`Generator::step`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Rows of the batch, B.
    pub rows: usize,
    /// Rows of `tokens`: the most steps before the host resets the state.
    pub steps: usize,
    /// Whether the chosen tokens' log-probabilities are an output, `log_probs` (steps, B).
    pub log_probs: bool,
    /// Whether the logits that a step chose from are an output, `logits` (B, V), before any bias.
    pub logits: bool,
    /// Whether `bias` is an input, added to every row's logits (V).
    pub bias: bool,
    /// The id that a row which has ended writes.
    pub padding: u32,
}

impl StepShape {
    /// Ids alone.
    #[must_use]
    pub fn new(rows: usize, steps: usize) -> Self {
        Self { rows, steps, log_probs: false, logits: false, bias: false, padding: 0 }
    }
}

impl Generator {
    /// Keys and values of memories into the caches of cross-attention, once a source:
    ///
    /// | name | tensor |
    /// |---|---|
    /// | `memory` | (rows, k_width): the encoder's output |
    /// | `memory_sequences` | `u32` (sequences, 8): which rows go to which slot, from [`CacheShape::sequences`] with a past of 0 |
    /// | `layers.N.cross_cache` | state, (2, slots, NH_kv, capacity, W) |
    ///
    /// # Errors
    /// As [`Generator::check`]; [`Error::Option`] for a generator without cross-attention.
    pub fn remember(&self, kernels: &Kernels, inputs: &GeneratorInputs, sequences: usize, rows: usize) -> Result<Program> {
        self.check()?;
        let Some(cross) = self.cross_attention() else {
            return Err(Error::option("memory of a generator", "a stack with cross-attention", "none"));
        };
        let mut b = Builder::new(kernels, "remember").storing(inputs.storage, inputs.weights)?;
        let memory = b.input_rows("memory", rows, cross.k_width)?;
        let layout = Layout::contiguous(&[sequences, SEQUENCE_WORDS])?;
        let sequences = b.input("memory_sequences", Element::U32, layout)?;
        for layer in 0..self.n_layers() {
            let cache = self.cache(&mut b, "cross_cache", layer, inputs.caches.of_memory(self))?;
            b.remember(
                &format!("{}layers.{layer}.multihead_attn.", self.stack_prefix),
                cross,
                memory,
                (sequences, rows),
                cache,
            )?;
        }
        b.finish()
    }

    /// New rows of any number of texts into their caches:
    ///
    /// | name | tensor |
    /// |---|---|
    /// | `ids` | `u32` (rows): new tokens, packed or padded as the sequences say |
    /// | `sequences` | `u32` (B, 8): [`CacheShape::sequences`] |
    /// | `cross_sequences` | `u32` (B, 8): the same query rows over slots of memory, where there is cross-attention |
    /// | `layers.N.cache` | state, (2, slots, NH_kv, capacity, W) |
    /// | `layers.N.cross_cache` | state, where there is cross-attention |
    /// | `y` | (rows, d_model), where asked for |
    ///
    /// Leave the last token of a prompt to the first step, whose logits are the first that are wanted.
    ///
    /// # Errors
    /// As [`Generator::check`].
    pub fn prefill(&self, kernels: &Kernels, inputs: &GeneratorInputs, shape: &PrefillShape) -> Result<Program> {
        self.check()?;
        let mut b = Builder::new(kernels, "prefill").storing(inputs.storage, inputs.weights)?;
        let ids = b.input("ids", Element::U32, Layout::contiguous(&[shape.rows])?)?;
        let words = Layout::contiguous(&[shape.sequences, SEQUENCE_WORDS])?;
        let sequences = b.input("sequences", Element::U32, words)?;
        let cross = match self.cross_attention() {
            Some(_) => Some(b.input("cross_sequences", Element::U32, words)?),
            None => None,
        };
        let rows = Rows { count: shape.rows, longest: shape.longest, ids, sequences, cross };
        if !shape.hidden {
            self.append_stack(&mut b, inputs, &rows, Behind::Nothing)?;
            return b.finish();
        }
        let y = b.output_rows("y", shape.rows, self.embedding.d_model)?;
        match self.final_norm() {
            Some(norm) => {
                let x = b.scratch_like("hidden rows", y)?;
                self.append_stack(&mut b, inputs, &rows, Behind::Rows(x))?;
                b.norm(&format!("{}norm.", self.stack_prefix), norm, x, y)?;
            }
            None => self.append_stack(&mut b, inputs, &rows, Behind::Rows(y))?,
        }
        b.finish()
    }

    /// One step of every row that does not rest: its id is embedded, its key and value appended, the next id chosen, and the state
    /// advanced, all on the GPU. Record it as often as there are steps to take.
    ///
    /// | name | tensor |
    /// |---|---|
    /// | `state` | state, `u32` ([`DecodeState::rows`], 8): [`GeneratorCaches::decode`] |
    /// | `sampling` | `u32` (B, 16): a [`Sampling`](crate::spec::sampling::Sampling) each |
    /// | `seen` | state, `u32` (B, V / 32 rounded up): a bit for each token that the repetition penalty is for |
    /// | `bias` | `f32` (V), where asked for; −∞ bans a token |
    /// | `layers.N.cache` | state, (2, slots, NH_kv, capacity, W) |
    /// | `layers.N.cross_cache` | state, where there is cross-attention |
    /// | `tokens` | `u32` (steps, B): step by step the chosen ids, `padding` from a row's end on |
    /// | `log_probs` | `f32` (steps, B), where asked for |
    /// | `logits` | `f32` (B, V), where asked for: the last step's; those of a row that rests are undefined |
    ///
    /// To choose on the CPU instead, read `logits` behind a step and write the `state` for the next one, of rows whose past is one longer and whose
    /// id is the one that was chosen.
    ///
    /// The tokens of a prompt come into `seen` from the host, or by [`Builder::mark_seen`]; those that are chosen are added.
    ///
    /// # Errors
    /// As [`Generator::check`].
    pub fn step(&self, kernels: &Kernels, inputs: &GeneratorInputs, shape: &StepShape) -> Result<Program> {
        self.check()?;
        let batch = shape.rows;
        crate::shape::nonzero("rows", batch)?;
        let mut b = Builder::new(kernels, "decode step").storing(inputs.storage, inputs.weights)?;
        let has_cross = self.cross_attention().is_some();
        let state = b.state("state", Element::U32, self.state_layout(batch)?)?;
        let vocabulary = self.embedding.vocabulary;
        let logits = match shape.logits {
            true => Some(b.output("logits", Element::F32, Layout::contiguous(&[batch, vocabulary])?)?),
            false => None,
        };
        let (logits, maxima) = self.append_step(&mut b, inputs, state, batch, logits)?;
        let sampling = b.input("sampling", Element::U32, Layout::contiguous(&[batch, SAMPLING_WORDS])?)?;
        let seen = b.state("seen", Element::U32, Layout::contiguous(&[batch, seen_words(vocabulary)])?)?;
        let bias = match shape.bias {
            true => Some(b.input("bias", Element::F32, Layout::contiguous(&[vocabulary])?)?),
            false => None,
        };
        let log = Layout::contiguous(&[shape.steps, batch])?;
        let tokens = b.output("tokens", Element::U32, log)?;
        let log_probs = if shape.log_probs { Some(b.output("log_probs", Element::F32, log)?) } else { None };
        let choose = Choose {
            logits,
            maxima,
            state,
            cross: has_cross,
            tokens,
            log_probs,
            bias,
            seen: Some(seen),
            sampling,
            capacity: inputs.caches.capacity,
            padding: shape.padding,
        };
        b.choose("choose", &choose)?;
        b.finish()
    }

    /// The layout of a batch's decode state.
    pub(super) fn state_layout(&self, batch: usize) -> Result<Layout> {
        Layout::contiguous(&[DecodeState::rows(batch, self.cross_attention().is_some()), STATE_WORDS])
    }

    /// From the ids of a decode state to logits (B, V), in scratch where no tensor for them is given, and the largest of each workgroup's columns.
    pub(super) fn append_step(
        &self,
        b: &mut Builder,
        inputs: &GeneratorInputs,
        state: Tensor,
        batch: usize,
        logits: Option<Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let sequences = state.narrow(0, 0, batch)?;
        let cross = if self.cross_attention().is_some() { Some(state.narrow(0, batch, batch)?) } else { None };
        let ids = state.narrow(0, state.layout().sizes()[0] - batch, batch)?.select(1, 0)?;
        let rows = Rows { count: batch, longest: 1, ids, sequences, cross };
        let x = b.scratch("hidden rows", b.storage(), Layout::contiguous(&[batch, self.embedding.d_model])?)?;
        self.append_stack(b, inputs, &rows, Behind::Rows(x))?;
        self.append_logits(b, x, sequences, logits)
    }

    /// The state tensor of a layer's cache.
    pub(super) fn cache(&self, b: &mut Builder, name: &str, layer: usize, shape: Option<CacheShape>) -> Result<Tensor> {
        let name = format!("{}layers.{layer}.{name}", self.stack_prefix);
        let shape = shape.ok_or_else(|| Error::option(&name, "a stack with cross-attention", "none"))?;
        b.state(&name, b.storage(), shape.layout()?)
    }

    /// Embedding and layers, without the final norm.
    fn append_stack(&self, b: &mut Builder, inputs: &GeneratorInputs, rows: &Rows, behind: Behind) -> Result<()> {
        let over = |b: &mut Builder, attention: &MultiHeadAttention, cache: CacheShape, sequences: Tensor| {
            let shape = cache.batch(sequences.layout().sizes()[0], rows.count, rows.longest);
            b.batch_of("", &attention.options, attention.n_heads, shape, None, sequences)
        };
        let caches = &inputs.caches;
        let batch = over(b, self.attention(), caches.of_texts(self), rows.sequences)?;
        let cross = match (self.cross_attention(), caches.of_memory(self), rows.cross) {
            (Some(attention), Some(cache), Some(sequences)) => Some(over(b, attention, cache, sequences)?),
            _ => None,
        };
        let mut x = b.scratch("embedded", b.storage(), Layout::contiguous(&[rows.count, self.embedding.d_model])?)?;
        b.embed_ids(&self.embedding_prefix, &self.embedding, &batch, rows.ids, x)?;
        for layer in 0..self.n_layers() {
            if let Some(positions) = self.positions_every_layer() {
                let placed = b.scratch_like("placed", x)?;
                b.add_positions(&self.stack_prefix, positions, &batch, x, placed)?;
                x = placed;
            }
            let prefix = format!("{}layers.{layer}.", self.stack_prefix);
            let cache = self.cache(b, "cache", layer, Some(caches.of_texts(self)))?;
            let last = layer + 1 == self.n_layers();
            let y = match behind {
                Behind::Rows(y) if last => y,
                _ => b.scratch_like("layer", x)?,
            };
            let cached = CachedLayer { x, batch, cache, y };
            if last && behind == Behind::Nothing {
                return b.cache_rows_only(&prefix, &self.stack, &cached);
            }
            match &self.stack {
                GeneratorStack::Encoder(stack) => b.cached_encoder_layer(&prefix, &stack.layer, &cached)?,
                GeneratorStack::Decoder(stack) => {
                    let cache = self.cache(b, "cross_cache", layer, caches.of_memory(self))?;
                    let batch = cross.ok_or_else(|| Error::option("cross_sequences", "those of a memory", "none"))?;
                    b.cached_decoder_layer(&prefix, &stack.layer, &cached, &CachedMemory { batch, cache })?;
                }
            }
            x = y;
        }
        Ok(())
    }

    /// Final norm and projection in one: logits (B, V) and the largest of each workgroup's columns.
    fn append_logits(
        &self,
        b: &mut Builder,
        x: Tensor,
        sequences: Tensor,
        logits: Option<Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (batch, vocabulary) = (x.layout().sizes()[0], self.embedding.vocabulary);
        let d_model = self.embedding.d_model;
        let weight = b.weight(&self.head_weight, Layout::contiguous(&[vocabulary, d_model])?)?;
        let bias = match &self.head_bias {
            Some(name) => Some(b.weight(name, Layout::contiguous(&[vocabulary])?)?),
            None => None,
        };
        let before = self.final_norm().map(|norm| (format!("{}norm.", self.stack_prefix), norm));
        let logits = logits.map_or_else(|| b.scratch_rows("logits", &[batch, vocabulary]), Ok)?;
        let linear = Linear { bias, ..Linear::new(x, weight, logits) };
        b.logits("head", before, &linear, Some(sequences)).map(|maxima| (logits, maxima))
    }
}

/// What is wanted behind the last layer.
#[derive(Clone, Copy, PartialEq)]
enum Behind {
    /// Its keys and values are all that counts.
    Nothing,
    /// Its rows (rows, d_model).
    Rows(Tensor),
}

/// New rows of a program.
struct Rows {
    count: usize,
    longest: usize,
    ids: Tensor,
    sequences: Tensor,
    cross: Option<Tensor>,
}
