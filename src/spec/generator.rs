//! What generates text, token by token: an embedding, a stack over caches, a projection to the vocabulary.

use super::cache::{CacheShape, DecodeState};
use super::layers::{Decoder, Embedding, Encoder, MultiHeadAttention, Norm, check_prefix};
use super::{AttentionOptions, Mask};
use crate::error::{Error, Result};
use crate::shape::nonzero;

/// The stack of a [`Generator`].
#[derive(Clone, Debug, PartialEq)]
pub enum GeneratorStack {
    /// Self-attention alone, as in GPT-2: encoder layers whose options make them causal.
    Encoder(Encoder),
    /// With cross-attention over a memory, as in 2017.
    Decoder(Decoder),
}

/// Ids in, ids out: embedding → stack over key/value caches → final norm → logits → choice of the next token.
///
/// Weights have the names that they have in a program without caches: those of [`Builder::embed`](crate::Builder::embed) under
/// `embedding_prefix`, those of the stack under `stack_prefix`.
///
/// In an engine's own encoder, one text of up to 1024 tokens:
///
/// ```no_run
/// use tileformer::layers::{GeneratorInputs, PrefillShape, StepShape};
/// use tileformer::spec::cache::{CachedRows, DecodeRow};
/// use tileformer::spec::generator::{Generator, GeneratorCaches};
/// use tileformer::{Bindings, Element, Error, Kernels, Plan, Program, Result, Role, Sampling, TensorView, wgpu};
///
/// const CACHES: GeneratorCaches = GeneratorCaches { slots: 1, capacity: 1024, memory_slots: 0, memory_capacity: 0 };
///
/// /// Once: pieces of up to 256 tokens of a prompt, and a step. Both have the same weights, and the same caches, `layers.N.cache`. New buffers are
/// /// for `STORAGE`, and for copies to and from them; they begin with zeros.
/// fn prepare(
///     kernels: &Kernels,
///     generator: &Generator,
///     weights: &Bindings,
///     new_buffer: impl Fn(u64) -> wgpu::Buffer,
/// ) -> Result<[Plan; 2]> {
///     let inputs = GeneratorInputs::new(CACHES, Element::F32);
///     let prompts = PrefillShape { sequences: 1, rows: 256, longest: 256, hidden: false };
///     let prefill = generator.prefill(kernels, &inputs, &prompts)?;
///     let step = generator.step(kernels, &inputs, &StepShape::new(1, CACHES.capacity))?;
///     let mut bindings = weights.clone();
///     for (name, role, element, layout) in prefill.tensors().chain(step.tensors()) {
///         if role != Role::Weight && bindings.get(name).is_none() {
///             let buffer = new_buffer(layout.bytes(element));
///             bindings.set(name, TensorView::new(&buffer, 0, element, *layout)?);
///         }
///     }
///     let bind = |program: &Program| program.bind(&bindings.known_to(program));
///     Ok([bind(&prefill)?, bind(&step)?])
/// }
///
/// /// A new text: the last token of a prompt is the first step's, those before it go into the cache, 256 at a time. What is written into a
/// /// buffer comes before all that is submitted with it, so that every piece is submitted by itself.
/// fn begin(
///     device: &wgpu::Device,
///     queue: &wgpu::Queue,
///     [prefill, step]: &[Plan; 2],
///     generator: &Generator,
///     prompt: &[u32],
/// ) -> Result<()> {
///     let missing = |name: &str| Error::Missing { tensor: name.into(), expected: "a generator's".into() };
///     let (&id, before) = prompt.split_last().ok_or_else(|| missing("prompt"))?;
///     let write = |plan: &Plan, name: &str, words: &[u32]| {
///         let view = plan.view(name).ok_or_else(|| missing(name))?;
///         queue.write_buffer(view.buffer(), 0, bytemuck::cast_slice(words));
///         Ok::<(), Error>(())
///     };
///     for (n, piece) in before.chunks(256).enumerate() {
///         let rows = [CachedRows { slot: 0, past: 256 * n, new: piece.len() }];
///         write(prefill, "ids", piece)?;
///         write(prefill, "sequences", CACHES.of_texts(generator).sequences(&rows)?.words())?;
///         let mut encoder = device.create_command_encoder(&Default::default());
///         prefill.record(&mut encoder);
///         queue.submit([encoder.finish()]);
///     }
///     let state = CACHES.decode(generator, &[Some(DecodeRow { slot: 0, past: before.len(), id, memory: None })])?;
///     let sampling = [Sampling::sampled(7).with_temperature(0.8)?.with_top_p(0.95)?.with_stops(&[50256])?];
///     write(step, "state", state.words())?;
///     write(step, "sampling", Sampling::words(&sampling))
/// }
///
/// /// Every frame: eight tokens more. Step number n writes row n of `tokens`, `u32` (steps, 1), which is there to be copied and mapped;
/// /// behind a stop token it is padding, and what is recorded beyond costs next to nothing.
/// fn go_on(encoder: &mut wgpu::CommandEncoder, [_, step]: &[Plan; 2]) {
///     let mut pass = encoder.begin_compute_pass(&Default::default());
///     (0..8).for_each(|_| step.record_in(&mut pass));
/// }
/// ```
///
/// [`Gpu::decode`](crate::convenience::Gpu::decode) is that loop with its readbacks, for programs without an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Generator {
    /// Ids to rows, without segments.
    pub embedding: Embedding,
    /// In front of the names of the embedding's weights: empty, or ending in a dot.
    pub embedding_prefix: String,
    /// The layers, with their final norm.
    pub stack: GeneratorStack,
    /// In front of the names of the stack's weights and caches: empty, or ending in a dot.
    pub stack_prefix: String,
    /// The name of the projection's weight (V, d_model): the token table's, to tie it.
    pub head_weight: String,
    /// The name of the projection's bias (V).
    pub head_bias: Option<String>,
}

impl Generator {
    /// No prefixes, and the token table as the projection.
    #[must_use]
    pub fn new(embedding: Embedding, stack: GeneratorStack) -> Self {
        Self {
            embedding,
            embedding_prefix: String::new(),
            stack,
            stack_prefix: String::new(),
            head_weight: "token_embedding.weight".into(),
            head_bias: None,
        }
    }

    /// How many layers there are.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        match &self.stack {
            GeneratorStack::Encoder(stack) => stack.n_layers,
            GeneratorStack::Decoder(stack) => stack.n_layers,
        }
    }

    /// Self-attention of every layer.
    #[must_use]
    pub fn attention(&self) -> &MultiHeadAttention {
        match &self.stack {
            GeneratorStack::Encoder(stack) => &stack.layer.attention,
            GeneratorStack::Decoder(stack) => &stack.layer.attention,
        }
    }

    /// Cross-attention of every layer, where there is one.
    #[must_use]
    pub fn cross_attention(&self) -> Option<&MultiHeadAttention> {
        match &self.stack {
            GeneratorStack::Encoder(_) => None,
            GeneratorStack::Decoder(stack) => Some(&stack.layer.cross_attention),
        }
    }

    pub(crate) fn final_norm(&self) -> Option<&Norm> {
        match &self.stack {
            GeneratorStack::Encoder(stack) => stack.final_norm.as_ref(),
            GeneratorStack::Decoder(stack) => stack.final_norm.as_ref(),
        }
    }

    pub(crate) fn positions_every_layer(&self) -> Option<usize> {
        match &self.stack {
            GeneratorStack::Encoder(stack) => stack.positions_every_layer,
            GeneratorStack::Decoder(stack) => stack.positions_every_layer,
        }
    }

    /// Refuses what cannot be computed.
    ///
    /// # Errors
    /// As the parts' own checks; [`Error::Option`] for a stack without layers, another width than the embedding's, self-attention that
    /// is not causal, a prefix that does not end in a dot, segments, masks, which no step has but for relative ones in self-attention, and
    /// positions in cross-attention (rotary, causal, windows, slopes, relative masks).
    pub fn check(&self) -> Result<()> {
        self.embedding.check()?;
        check_prefix(&self.embedding_prefix)?;
        check_prefix(&self.stack_prefix)?;
        nonzero("n_layers", self.n_layers())?;
        match &self.stack {
            GeneratorStack::Encoder(stack) => stack.layer.check()?,
            GeneratorStack::Decoder(stack) => stack.layer.check()?,
        }
        let attention = self.attention();
        if attention.d_model != self.embedding.d_model {
            let expected = format!("the embedding's d_model, {}", self.embedding.d_model);
            return Err(Error::option("d_model of the stack", expected, attention.d_model));
        }
        if !attention.options.causal {
            return Err(Error::option("self-attention of a generator", "causal", "not causal"));
        }
        if let Some(rows) = self.embedding.segments {
            return Err(Error::option("segments of a generator", "none", rows));
        }
        for options in [Some(attention), self.cross_attention()].into_iter().flatten().map(|a| &a.options) {
            if options.key_mask || matches!(options.mask, Some(Mask::Boolean | Mask::Additive)) {
                return Err(Error::option("masks of a generator", "none: lengths say what is seen", format!("{options:?}")));
            }
        }
        if let Some(cross) = self.cross_attention() {
            if cross.rotary.is_some() {
                return Err(Error::option("rotary positions of cross-attention", "none", "some"));
            }
            let AttentionOptions { causal, window_left, window_right, ref alibi, mask, .. } = cross.options;
            if causal || window_left.is_some() || window_right.is_some() || !alibi.is_empty() || mask.is_some() {
                let expected = "options that know no positions: a step has none among the memory's";
                return Err(Error::option("cross-attention of a generator", expected, format!("{:?}", cross.options)));
            }
        }
        Ok(())
    }
}

/// The caches that a generator runs on: slots of texts, and slots of memories where there is cross-attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GeneratorCaches {
    /// Texts.
    pub slots: usize,
    /// The longest text, S_max.
    pub capacity: usize,
    /// Memories.
    pub memory_slots: usize,
    /// The longest memory.
    pub memory_capacity: usize,
}

impl GeneratorCaches {
    /// For a stack without cross-attention.
    #[must_use]
    pub fn new(slots: usize, capacity: usize) -> Self {
        Self { slots, capacity, memory_slots: 0, memory_capacity: 0 }
    }

    /// With as many memories as texts.
    #[must_use]
    pub fn with_memory(self, memory_capacity: usize) -> Self {
        Self { memory_slots: self.slots, memory_capacity, ..self }
    }

    /// The cache of a layer's self-attention.
    #[must_use]
    pub fn of_texts(&self, generator: &Generator) -> CacheShape {
        CacheShape::of(generator.attention(), self.slots, self.capacity)
    }

    /// The cache of a layer's cross-attention, where there is one.
    #[must_use]
    pub fn of_memory(&self, generator: &Generator) -> Option<CacheShape> {
        generator.cross_attention().map(|a| CacheShape::of(a, self.memory_slots, self.memory_capacity))
    }

    /// The state of a batch about to take its first step.
    ///
    /// # Errors
    /// As [`DecodeState::new`].
    pub fn decode(&self, generator: &Generator, rows: &[Option<super::cache::DecodeRow>]) -> Result<DecodeState> {
        DecodeState::new(&self.of_texts(generator), self.of_memory(generator).as_ref(), rows)
    }
}
