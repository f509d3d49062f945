//! The rows of the speed table: id, work, program and data of each, for every bench that times them.
//!
//! The same ids stand for the same work in other programs, so that figures can be laid side by side. What a row counts as work is
//! what the operation needs, not what a kernel happens to do: FLOPs of visible keys only, every byte of a tensor once.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tileformer::convenience::Gpu;
use tileformer::{
    Activation, Bindings, Builder, Element, Kernels, Layout, Plan, Program, Result, Role, Scratch, TensorView,
};

use crate::work::{
    Heads, activation, additive, argmax, attention, decoder, embedding, encoder, linear, norm, scores, softmax, spread,
    values,
};

/// What limits a row, and how much of it one call needs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Floating-point operations; a multiply-add counts two.
    Flops(u64),
    /// Bytes read and written.
    Bytes(u64),
}

type Build = Box<dyn Fn(&Kernels) -> Result<Program>>;

/// One row of the table.
pub(crate) struct Row {
    /// The row's name in every program that times it.
    pub(crate) id: String,
    /// The work in words.
    pub(crate) what: String,
    /// The work in numbers.
    pub(crate) work: Work,
    pub(crate) build: Build,
    /// `u32` inputs by name. `f32` tensors are random.
    pub(crate) data: Vec<(&'static str, Vec<u32>)>,
}

impl Row {
    pub(crate) fn new(
        id: &str,
        what: impl Into<String>,
        work: Work,
        build: impl Fn(&mut Builder) -> Result<()> + 'static,
        data: Vec<(&'static str, Vec<u32>)>,
    ) -> Self {
        let name = id.to_owned();
        let build = move |kernels: &Kernels| {
            let mut b = Builder::new(kernels, &name);
            build(&mut b)?;
            b.finish()
        };
        Self { id: id.to_owned(), what: what.into(), work, build: Box::new(build), data }
    }

    /// The row under its id on a CPU adapter.
    fn small(self) -> Self {
        Self { id: format!("{}-small", self.id), ..self }
    }

    /// The program that does the row's work.
    ///
    /// # Errors
    /// [`tileformer::Error::Limit`] on a device that is too small for it.
    pub(crate) fn program(&self, kernels: &Kernels) -> Result<Program> {
        (self.build)(kernels)
    }

    /// Plans that do the same work on `copies` sets of inputs and weights, so that one finds nothing of itself in a cache when
    /// its turn comes again. They share outputs and scratch: a call then waits for the one before it, as in a layer.
    ///
    /// # Errors
    /// As [`Program::bind`].
    pub(crate) fn plans(&self, gpu: &Gpu, program: &Program, copies: usize) -> Result<Vec<Plan>> {
        let scratch = Scratch::shared(&[program])?;
        let mut random = Random::new();
        let mut bindings = Bindings::new();
        let mut plans = Vec::with_capacity(copies);
        for copy in 0..copies {
            for (name, role, element, layout) in program.tensors() {
                if role != Role::Output {
                    bindings.set(name, self.fill(gpu, &mut random, name, role, element, layout)?);
                } else if copy == 0 {
                    bindings.set(name, gpu.zeros(element, layout.sizes())?);
                }
            }
            plans.push(program.bind_with(&bindings, &scratch)?);
        }
        Ok(plans)
    }

    fn fill(
        &self,
        gpu: &Gpu,
        random: &mut Random,
        name: &str,
        role: Role,
        element: Element,
        layout: &Layout,
    ) -> Result<TensorView> {
        let sizes = layout.sizes();
        match self.data.iter().find(|(n, _)| *n == name) {
            Some((_, words)) => gpu.upload_u32(sizes, words),
            None if element == Element::U32 => gpu.zeros(element, sizes),
            None => {
                // Weights that keep the size of what goes through them: no exponential of a later kernel leaves its range.
                let columns = sizes.last().copied().unwrap_or(1) as f32;
                let scale = if role == Role::Weight { columns.sqrt().recip() } else { 1.0 };
                gpu.upload_f32(sizes, &random.take(layout.len(), scale))
            }
        }
    }
}

/// Bytes of inputs and weights, which a cache could hold from one call to the next.
pub(crate) fn cacheable_bytes(program: &Program) -> u64 {
    let read = program.tensors().filter(|(_, role, ..)| *role != Role::Output);
    read.map(|(.., element, layout)| layout.extent() * element.size()).sum()
}

/// Uniform numbers in −1 … 1: one block of them, repeated, since its making is not what is timed.
struct Random {
    block: Vec<f32>,
}

impl Random {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(0);
        Self { block: (0..1 << 18).map(|_| rng.random_range(-1.0..1.0)).collect() }
    }

    fn take(&mut self, len: usize, scale: f32) -> Vec<f32> {
        // Another start every time, so that no two tensors are alike.
        self.block.rotate_left(977);
        self.block.iter().cycle().take(len).map(|v| v * scale).collect()
    }
}

/// The rows for a GPU.
pub(crate) fn full() -> Vec<Row> {
    vec![
        linear("linear-4096", [4096, 4096, 4096], Activation::Identity),
        linear("linear-1024", [1024, 768, 3072], Activation::Gelu),
        linear("linear-128", [128, 768, 3072], Activation::Gelu),
        linear("linear-1@768", [1, 768, 3072], Activation::Identity),
        linear("linear-1@4096", [1, 4096, 4096], Activation::Identity),
        attention("attn-2048-64", Heads { batch: 8, heads: 16, t: 2048, s: 2048, size: 64 }, false, &[2048; 8]),
        attention("attn-2048-128c", Heads { batch: 8, heads: 16, t: 2048, s: 2048, size: 128 }, true, &[2048; 8]),
        attention("attn-128-64", Heads { batch: 32, heads: 12, t: 128, s: 128, size: 64 }, false, &spread(32, 64, 128)),
        attention("attn-1-64@b1", Heads { batch: 1, heads: 12, t: 1, s: 1024, size: 64 }, false, &[1024]),
        attention("attn-1-64@b32", Heads { batch: 32, heads: 12, t: 1, s: 1024, size: 64 }, false, &[1024; 32]),
        scores("scores-128-64", Heads { batch: 32, heads: 12, t: 128, s: 128, size: 64 }),
        values("values-128-64", Heads { batch: 32, heads: 12, t: 128, s: 128, size: 64 }),
        additive("additive-64", Heads { batch: 32, heads: 8, t: 64, s: 64, size: 64 }),
        norm("norm-768", 65536, 768),
        softmax("softmax-512", [32, 12, 512, 512]),
        activation("gelu-3072", 32768, 3072),
        embedding("embedding-768", 256, 128, 768),
        argmax("argmax-50257", 4096, 50257),
        encoder("bert-layer-128", [32, 128], [768, 12, 3072], 1),
        encoder("bert-layer-512", [8, 512], [768, 12, 3072], 1),
        decoder("base-decoder", [32, 64], [512, 8, 2048]),
        encoder("minilm", [32, 128], [384, 12, 1536], 6),
    ]
}

/// The rows for a CPU adapter.
pub(crate) fn small() -> Vec<Row> {
    let rows = [
        linear("linear-128", [128, 768, 3072], Activation::Gelu),
        linear("linear-512", [512, 512, 512], Activation::Identity),
        linear("linear-1@768", [1, 768, 3072], Activation::Identity),
        attention("attn-128-64", Heads { batch: 2, heads: 12, t: 128, s: 128, size: 64 }, false, &spread(2, 64, 128)),
        attention("attn-1-64@b1", Heads { batch: 1, heads: 12, t: 1, s: 1024, size: 64 }, false, &[1024]),
        scores("scores-128-64", Heads { batch: 2, heads: 12, t: 128, s: 128, size: 64 }),
        values("values-128-64", Heads { batch: 2, heads: 12, t: 128, s: 128, size: 64 }),
        additive("additive-64", Heads { batch: 1, heads: 8, t: 64, s: 64, size: 64 }),
        norm("norm-768", 512, 768),
        softmax("softmax-512", [1, 12, 256, 256]),
        activation("gelu-3072", 128, 3072),
        embedding("embedding-768", 4, 128, 768),
        argmax("argmax-50257", 8, 50257),
        encoder("bert-layer-128", [1, 128], [768, 12, 3072], 1),
        encoder("bert-layer-512", [1, 512], [256, 4, 1024], 1),
        encoder("bert-layer-32", [8, 32], [256, 4, 1024], 1),
        decoder("base-decoder", [2, 64], [512, 8, 2048]),
    ];
    rows.into_iter().map(Row::small).collect()
}
