//! The programs of the translation: what is dispatched, at which shape. They know nothing of buffers.

use tileformer::layers::{DecoderRows, GeneratorInputs, StepShape};
use tileformer::spec::generator::{Generator, GeneratorCaches, GeneratorStack};
use tileformer::{AttentionOptions, BatchShape, Builder, Element, Kernels, Layout, Program, Result, Tensor};

use crate::engine::BATCH;
use crate::model::Model;

/// What a batch may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) sequences: usize,
    /// Source rows of all sequences together.
    pub(crate) source_rows: usize,
    pub(crate) longest_source: usize,
    /// Target rows of each sequence, T.
    pub(crate) target_rows: usize,
}

impl Size {
    /// The size that holds every batch of `sources`.
    pub(crate) fn of(sources: &[Vec<u32>], target_rows: usize) -> Self {
        let rows = |batch: &[Vec<u32>]| batch.iter().map(Vec::len).sum();
        Self {
            sequences: sources.len().min(BATCH),
            source_rows: sources.chunks(BATCH).map(rows).max().unwrap_or(0),
            longest_source: sources.iter().map(Vec::len).max().unwrap_or(0),
            target_rows,
        }
    }

    /// Whether plans of this size serve the other too.
    pub(crate) fn holds(&self, other: &Self) -> bool {
        self.sequences >= other.sequences
            && self.source_rows >= other.source_rows
            && self.longest_source >= other.longest_source
            && self.target_rows == other.target_rows
    }

    /// Packed source rows that attend to themselves.
    fn source(&self) -> BatchShape {
        let &Self { sequences, source_rows, longest_source, .. } = self;
        BatchShape {
            sequences,
            q_rows: source_rows,
            longest_q: longest_source,
            k_rows: source_rows,
            longest_k: longest_source,
        }
    }

    /// Padded target rows that attend to themselves.
    fn target(&self) -> BatchShape {
        BatchShape::padded(self.sequences, self.target_rows)
    }

    /// Target rows that attend to source rows.
    fn cross(&self) -> BatchShape {
        BatchShape { k_rows: self.source_rows, longest_k: self.longest_source, ..self.target() }
    }
}

/// Makes programs of a model for a device.
pub(crate) struct Programs<'a> {
    kernels: Kernels,
    model: &'a Model,
}

impl<'a> Programs<'a> {
    /// For the device of `kernels`.
    pub(crate) fn new(kernels: Kernels, model: &'a Model) -> Self {
        Self { kernels, model }
    }

    /// Appends source ids -> memory (source_rows, d_model).
    fn append_encoder(&self, b: &mut Builder, size: &Size, memory: Tensor) -> Result<()> {
        let plain = AttentionOptions::default();
        let source = b.batch("source.", &plain, self.model.config.n_heads, size.source(), None)?;
        let x = b.scratch("embedded source", Element::F32, *memory.layout())?;
        b.embed("source.", &self.model.source_embedding(), &source, x)?;
        b.encoder("encoder.", &self.model.encoder(), &source, x, false, memory)
    }

    /// Appends target ids, memory -> y (B · T, d_model); with the attention weights as outputs where `weights` is set.
    fn append_decoder(&self, b: &mut Builder, size: &Size, memory: Tensor, weights: bool, y: Tensor) -> Result<()> {
        let decoder = self.model.decoder();
        let n_heads = self.model.config.n_heads;
        let target = b.batch("target.", &decoder.layer.attention.options, n_heads, size.target(), None)?;
        let cross = b.batch("cross.", &decoder.layer.cross_attention.options, n_heads, size.cross(), None)?;
        let x = b.scratch("embedded target", Element::F32, *y.layout())?;
        b.embed("target.", &self.model.target_embedding(), &target, x)?;
        b.decoder("decoder.", &decoder, &DecoderRows { x, batch: target, memory, cross, y }, weights)
    }

    /// Source ids -> memory.
    pub(crate) fn encode(&self, size: &Size) -> Result<Program> {
        let mut b = Builder::new(&self.kernels, "encode");
        let memory = b.output("memory", Element::F32, self.rows(size.source_rows)?)?;
        self.append_encoder(&mut b, size, memory)?;
        b.finish()
    }

    /// What the decoder's steps run: target embedding, decoder, projection.
    pub(crate) fn generator(&self) -> Generator {
        let stack = GeneratorStack::Decoder(self.model.decoder());
        Generator {
            embedding_prefix: "target.".into(),
            stack_prefix: "decoder.".into(),
            head_weight: "target.token_embedding.weight".into(),
            ..Generator::new(self.model.target_embedding(), stack)
        }
    }

    /// The keys and values that are kept: a slot for each sequence, and one for its source.
    pub(crate) fn caches(&self, size: &Size) -> GeneratorCaches {
        GeneratorCaches::new(size.sequences, self.model.steps()).with_memory(size.longest_source)
    }

    fn inputs(&self, size: &Size) -> GeneratorInputs {
        GeneratorInputs::new(self.caches(size), Element::F32)
    }

    /// Memory -> keys and values of cross-attention, once a source.
    pub(crate) fn remember(&self, size: &Size) -> Result<Program> {
        let (sequences, rows) = (size.sequences, size.source_rows);
        self.generator().remember(&self.kernels, &self.inputs(size), sequences, rows)
    }

    /// The id of each sequence -> its next id, keys and values kept.
    pub(crate) fn step(&self, size: &Size) -> Result<Program> {
        let shape = StepShape::new(size.sequences, self.model.steps());
        self.generator().step(&self.kernels, &self.inputs(size), &shape)
    }

    /// Rows of the model's width.
    pub(crate) fn rows(&self, rows: usize) -> Result<Layout> {
        Layout::contiguous(&[rows, self.model.config.d_model])
    }

    /// Source and target in one program, with the attention weights and the logits of every row.
    pub(crate) fn trace(&self, size: &Size) -> Result<Program> {
        let mut b = Builder::new(&self.kernels, "trace");
        let memory = b.scratch("memory", Element::F32, self.rows(size.source_rows)?)?;
        let y = b.scratch("decoded", Element::F32, self.rows(size.target_rows)?)?;
        let logits = Layout::contiguous(&[size.target_rows, self.model.target.len()])?;
        let logits = b.output("logits", Element::F32, logits)?;
        self.append_encoder(&mut b, size, memory)?;
        self.append_decoder(&mut b, size, memory, true, y)?;
        b.head("target.token_embedding.weight", None, y, logits)?;
        b.finish()
    }
}
