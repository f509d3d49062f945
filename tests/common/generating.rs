//! A generator with made weights: its twin, and its caches on the device.

use rand::rngs::StdRng;
use tileformer::convenience::Gpu;
use tileformer::layers::{
    Decoder, DecoderLayer, Embedding, Encoder, EncoderLayer, GeneratorInputs, Norm, Placement, PrefillShape, Projection,
    RotaryOptions, StepShape,
};
use tileformer::reference::layers::{self as twin, Batch};
use tileformer::spec::cache::CachedRows;
use tileformer::spec::generator::{Generator, GeneratorCaches, GeneratorStack};
use tileformer::spec::{RotaryOrder, RotaryScaling, rotary_table};
use tileformer::{
    Activation, AttentionOptions, BatchShape, Bindings, Element, Kernels, Program, Role, Sequence, Sequences, TensorView,
};

use super::cases::{Data, Made, Twin};
use super::{gpu, uniform};

/// A text, with the memory that it looks at where there is one.
#[derive(Clone, Debug)]
pub struct Text {
    pub ids: Vec<u32>,
    pub memory: Option<Data>,
}

/// Caches and weights on the device, for any program of a generator.
pub struct Session {
    pub kernels: Kernels,
    pub generator: Generator,
    pub inputs: GeneratorInputs,
    pub made: Made,
    pub bindings: Bindings,
}

impl Session {
    pub fn new(kernels: &Kernels, generator: &Generator, caches: GeneratorCaches, storage: Element, made: &Made) -> Self {
        let inputs = GeneratorInputs::new(caches, storage);
        let mut bindings = Bindings::new();
        for (name, data) in &made.all {
            let element = if name == "rotary_table" { Element::F32 } else { storage };
            bindings.set(name, gpu().upload_floats(element, &data.sizes, &data.f32).unwrap());
        }
        let mut session =
            Self { kernels: kernels.clone(), generator: generator.clone(), inputs, made: made.clone(), bindings };
        // NaN everywhere: whatever is read before it is written shows.
        for (name, role, element, layout) in session.prefill_program(1, 1, 1).tensors() {
            if role == Role::State {
                let nan = vec![f32::NAN; layout.len()];
                let view = gpu().upload_floats(element, layout.sizes(), &nan).unwrap();
                session.bindings.set(name, view);
            }
        }
        session
    }

    fn prefill_program(&self, sequences: usize, rows: usize, longest: usize) -> Program {
        let shape = PrefillShape { sequences, rows, longest, hidden: true };
        self.generator.prefill(&self.kernels, &self.inputs, &shape).unwrap()
    }

    /// The program's weights and caches, and these.
    pub fn bindings(&self, program: &Program, views: &[(&str, &TensorView)]) -> Bindings {
        let mut bindings = self.bindings.known_to(program);
        bindings.extend(views.iter().map(|&(name, view)| (name, view.clone())));
        bindings
    }

    /// Memories into the slots of the same numbers.
    pub fn remember(&self, memories: &[&Data]) {
        let shape = self.inputs.caches.of_memory(&self.generator).unwrap();
        let width = self.generator.cross_attention().unwrap().k_width;
        let counts: Vec<usize> = memories.iter().map(|m| m.f32.len() / width).collect();
        let rows: Vec<_> = counts.iter().enumerate().map(|(slot, &new)| CachedRows { slot, past: 0, new }).collect();
        let sequences = shape.sequences(&rows).unwrap();
        let total = counts.iter().sum();
        let program = self.generator.remember(&self.kernels, &self.inputs, memories.len(), total).unwrap();
        let all: Vec<f32> = memories.iter().flat_map(|m| m.f32.clone()).collect();
        let memory = gpu().upload_floats(self.inputs.storage, &[total, width], &all).unwrap();
        let views = [("memory", &memory), ("memory_sequences", &gpu().upload_sequences(&sequences).unwrap())];
        gpu().run(&program.bind(&self.bindings(&program, &views)).unwrap()).unwrap();
    }

    /// New ids behind a slot's past, several texts at once: the rows behind the final norm of each.
    pub fn extend(&self, texts: &[(CachedRows, &[u32], usize)]) -> Vec<Vec<f32>> {
        let gpu: &Gpu = gpu();
        let rows: Vec<CachedRows> = texts.iter().map(|t| t.0).collect();
        let sequences = self.inputs.caches.of_texts(&self.generator).sequences(&rows).unwrap();
        let ids: Vec<u32> = texts.iter().flat_map(|t| t.1.to_vec()).collect();
        let longest = rows.iter().map(|r| r.new).max().unwrap();
        let program = self.prefill_program(rows.len(), ids.len(), longest);
        let d_model = self.generator.embedding.d_model;
        let y = gpu.upload_floats(self.inputs.storage, &[ids.len(), d_model], &vec![f32::NAN; ids.len() * d_model]).unwrap();
        let ids_view = gpu.upload_u32(&[ids.len()], &ids).unwrap();
        let sequences_view = gpu.upload_sequences(&sequences).unwrap();
        let mut bindings = self.bindings(&program, &[("ids", &ids_view), ("sequences", &sequences_view), ("y", &y)]);
        if let Some(shape) = self.inputs.caches.of_memory(&self.generator) {
            let over = |(s, t): (&Sequence, &(CachedRows, &[u32], usize))| {
                let own = shape.sequence(0, &CachedRows { slot: t.0.slot, past: t.2, new: 0 }).unwrap();
                Sequence { k_start: own.k_start, k_len: own.k_len, ..*s }
            };
            let cross = Sequences::new(sequences.as_slice().iter().zip(texts).map(over).collect()).unwrap();
            bindings.set("cross_sequences", gpu.upload_sequences(&cross).unwrap());
        }
        gpu.run(&program.bind(&bindings).unwrap()).unwrap();
        let found = gpu.read_f32(&y).unwrap();
        let mut at = 0;
        let part = |r: &CachedRows| {
            at += r.new;
            found[(at - r.new) * d_model..at * d_model].to_vec()
        };
        rows.iter().map(part).collect()
    }
}

/// The rows behind the final norm of a text, all at once and without a cache.
pub fn twin_rows<T: Twin>(generator: &Generator, made: &Made, text: &Text) -> Vec<T> {
    let weights = made.weights::<T>();
    let rows = text.ids.len();
    let own = [Sequence { q_len: rows as u32, k_len: rows as u32, ..Sequence::default() }];
    let batch = Batch::new(BatchShape::padded(1, rows), &own);
    let x = twin::embeddings(&generator.embedding, &weights, &generator.embedding_prefix, &text.ids, None, None).unwrap();
    match (&generator.stack, &text.memory) {
        (GeneratorStack::Encoder(stack), _) => {
            twin::encoder(stack, &weights, &generator.stack_prefix, &x, &batch).unwrap().0
        }
        (GeneratorStack::Decoder(stack), memory) => {
            let memory = memory.as_ref().unwrap();
            let keys = memory.f32.len() / stack.layer.cross_attention.k_width;
            let over = [Sequence { k_len: keys as u32, ..own[0] }];
            let cross = Batch::new(BatchShape::cross(1, rows, keys), &over);
            let memory = T::of_data(memory);
            twin::decoder(stack, &weights, &generator.stack_prefix, &x, memory, &batch, &cross).unwrap().y
        }
    }
}

/// Texts of these lengths, over memories of these, if any.
pub fn texts(generator: &Generator, lengths: &[usize], memories: &[usize], rng: &mut StdRng) -> Vec<Text> {
    let vocabulary = generator.embedding.vocabulary;
    let width = generator.cross_attention().map(|a| a.k_width);
    let one = |(i, &length): (usize, &usize)| Text {
        ids: (0..length).map(|_| super::cases::below(rng, vocabulary) as u32).collect(),
        memory: width.map(|w| Data::new(&[memories[i], w], uniform(rng, memories[i] * w, -1.0, 1.0))),
    };
    lengths.iter().enumerate().map(one).collect()
}

/// The longest text.
pub const CAPACITY: usize = 45;

/// GPT-2's kind: pre-norm, learned positions, tied head.
pub fn gpt(d_model: usize, n_heads: usize) -> Generator {
    let mut layer = EncoderLayer::new(d_model, n_heads, 2 * d_model + 4);
    layer.placement = Placement::Pre;
    layer.feed_forward.activation = Activation::GeluTanh;
    layer.attention.options = AttentionOptions::causal();
    let embedding = Embedding { positions: Some(CAPACITY), ..Embedding::new(53, d_model) };
    Generator::new(embedding, GeneratorStack::Encoder(Encoder::new(layer, 2).with_final_norm(Norm::default())))
}

/// Llama's kind: RMS norm, rotary positions, grouped heads, gates, no biases.
fn llama(d_model: usize, n_heads: usize, n_kv_heads: usize) -> Generator {
    let mut layer = EncoderLayer::new(d_model, n_heads, d_model + 12).without_bias();
    layer.placement = Placement::Pre;
    (layer.feed_forward.activation, layer.feed_forward.gated) = (Activation::Silu, true);
    layer.norm = Norm::rms(1e-6);
    layer.attention.options = AttentionOptions::causal();
    layer.attention.n_kv_heads = n_kv_heads;
    let columns = layer.attention.head_size / 2 * 2;
    layer.attention.rotary = Some(RotaryOptions { positions: CAPACITY, columns, order: RotaryOrder::Halves });
    let stack = Encoder::new(layer, 2).with_final_norm(Norm::rms(1e-6));
    let mut generator = Generator::new(Embedding::new(61, d_model), GeneratorStack::Encoder(stack));
    generator.head_weight = "lm_head.weight".into();
    generator
}

/// 2017's kind: post-norm, cross-attention.
fn translator(d_model: usize, n_heads: usize) -> Generator {
    let layer = DecoderLayer::new(d_model, n_heads, 3 * d_model);
    let embedding = Embedding { scale: 1.5, positions: Some(64), ..Embedding::new(37, d_model) };
    let mut generator = Generator::new(embedding, GeneratorStack::Decoder(Decoder::new(layer, 2)));
    (generator.embedding_prefix, generator.stack_prefix) = ("target.".into(), "decoder.".into());
    generator.head_weight = "target.token_embedding.weight".into();
    generator
}

/// Generators whose options differ in all that caches meet.
pub fn generators() -> Vec<(&'static str, Generator)> {
    let mut grouped = gpt(24, 6);
    let GeneratorStack::Encoder(stack) = &mut grouped.stack else { unreachable!() };
    let attention = &mut stack.layer.attention;
    (attention.n_kv_heads, attention.head_size, attention.value_head_size) = (2, 8, 12);
    attention.options.window_left = Some(7);
    attention.options.softcap = Some(3.0);
    let mut separate = gpt(20, 4);
    let GeneratorStack::Encoder(stack) = &mut separate.stack else { unreachable!() };
    stack.layer.attention.projection = Projection::Separate;
    stack.layer.attention.options.alibi = vec![0.5, 0.25, 0.125, 0.0625];
    stack.layer.placement = Placement::Post;
    stack.final_norm = None;
    stack.positions_every_layer = Some(CAPACITY);
    separate.embedding.positions = None;
    let mut odd = gpt(21, 3);
    odd.embedding.norm = Some(Norm::default());
    let mut pre = translator(32, 4);
    let GeneratorStack::Decoder(stack) = &mut pre.stack else { unreachable!() };
    stack.layer.placement = Placement::Pre;
    stack.final_norm = Some(Norm::default());
    stack.layer.cross_attention.n_kv_heads = 1;
    let mut interleaved = llama(40, 4, 4);
    let GeneratorStack::Encoder(stack) = &mut interleaved.stack else { unreachable!() };
    stack.layer.attention.rotary = Some(RotaryOptions { positions: CAPACITY, columns: 6, order: RotaryOrder::Interleaved });
    stack.layer.attention.projection = Projection::Separate;
    vec![
        ("llama", llama(32, 4, 2)),
        ("rotary, a part of the head, interleaved", interleaved),
        ("pre-norm", gpt(32, 4)),
        ("grouped, windowed", grouped),
        ("separate, post-norm, positions every layer", separate),
        ("odd widths", odd),
        ("decoder, post-norm", translator(32, 4)),
        ("decoder, pre-norm", pre),
    ]
}

pub fn seeded_session(kernels: &Kernels, generator: &Generator, storage: Element, rng: &mut StdRng) -> Session {
    session_of(kernels, generator, storage, 4, rng)
}

/// The same with so many slots.
pub fn session_of(kernels: &Kernels, generator: &Generator, storage: Element, slots: usize, rng: &mut StdRng) -> Session {
    let caches = GeneratorCaches::new(slots, CAPACITY);
    let caches = if generator.cross_attention().is_some() { caches.with_memory(19) } else { caches };
    let inputs = GeneratorInputs::new(caches, storage);
    let shape = PrefillShape { sequences: 1, rows: 1, longest: 1, hidden: true };
    let mut programs = vec![
        generator.prefill(kernels, &inputs, &shape).unwrap(),
        generator.step(kernels, &inputs, &StepShape::new(1, 1)).unwrap(),
    ];
    if generator.cross_attention().is_some() {
        programs.push(generator.remember(kernels, &inputs, 1, 1).unwrap());
    }
    let mut made = Made::default();
    for program in &programs {
        Made::of(program, rng).all.into_iter().for_each(|(name, data)| {
            made.all.entry(name).or_insert(data);
        });
    }
    if let Some(RotaryOptions { positions, columns, .. }) = generator.attention().rotary {
        let table = rotary_table(positions, columns, 1000.0, RotaryScaling::None).unwrap();
        made.all.insert("rotary_table".into(), Data::new(&[positions, columns], table));
    }
    Session::new(kernels, generator, caches, storage, &made)
}
