//! The rows of the speed table, and their data on the GPU, for every bench that times them.
//!
//! The same ids stand for the same work in other programs, so that figures can be laid side by side.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tileformer::convenience::Gpu;
use tileformer::{Activation, Bindings, Element, Kernels, Layout, Plan, Program, Result, Role, Scratch, TensorView, wgpu};

use crate::clock::CALLS;
use crate::task::{Heads, Task, Work};
use crate::work;

/// What a row's inputs overflow together: larger than the last-level cache of any GPU of today.
const CACHE_BYTES: u64 = 64 << 20;

/// One row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The row's name in every program that times it.
    pub(crate) id: String,
    /// How its tensors are stored.
    pub(crate) element: Element,
    pub(crate) task: Task,
}

impl Row {
    pub(crate) fn work(&self) -> Work {
        self.task.work(self.element)
    }

    /// The program that does the row's work.
    ///
    /// # Errors
    /// [`tileformer::Error::Limit`] on a device that is too small for it.
    pub(crate) fn program(&self, kernels: &Kernels) -> Result<Program> {
        work::program(&self.task, self.element, kernels, &self.id)
    }

    /// Plans that do the same work on several sets of inputs and weights, so that one finds nothing of itself in a cache when
    /// its turn comes again. They share outputs and scratch: a call then waits for the one before it, as in a layer. A CPU
    /// adapter takes one set: its cache is a part of what such a machine has.
    ///
    /// # Errors
    /// As [`Program::bind`].
    pub(crate) fn plans(&self, gpu: &Gpu, program: &Program) -> Result<Vec<Plan>> {
        let scratch = Scratch::shared(&[program])?;
        let data = self.task.data()?;
        let mut random = Random::new();
        let mut bindings = Bindings::new();
        let mut plans = Vec::new();
        for copy in 0..copies(gpu, cacheable_bytes(program)) {
            for (name, role, element, layout) in program.tensors() {
                let sizes = layout.sizes();
                if role == Role::Output {
                    if copy == 0 {
                        bindings.set(name, gpu.zeros(element, sizes)?);
                    }
                } else if let Some((_, words)) = data.iter().find(|(n, _)| *n == name) {
                    bindings.set(name, gpu.upload_u32(sizes, words)?);
                } else {
                    bindings.set(name, random.tensor(gpu, role, element, layout)?);
                }
            }
            plans.push(program.bind_with(&bindings, &scratch)?);
        }
        Ok(plans)
    }
}

/// A type of tensors, as every program that times the rows calls it.
pub(crate) fn dtype(element: Element) -> &'static str {
    match element {
        Element::F32 => "float32",
        Element::F16 => "float16",
        other => other.name(),
    }
}

/// As many sets of `bytes` as overflow a cache together.
pub(crate) fn copies(gpu: &Gpu, bytes: u64) -> u64 {
    match gpu.info.device_type {
        wgpu::DeviceType::Cpu => 1,
        _ => (1 + 3 * CACHE_BYTES / bytes.max(1)).min(CALLS),
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

    fn tensor(&mut self, gpu: &Gpu, role: Role, element: Element, layout: &Layout) -> Result<TensorView> {
        let sizes = layout.sizes();
        // Weights that keep the size of what goes through them: no exponential of a later kernel leaves its range.
        let columns = sizes.last().copied().unwrap_or(1) as f32;
        let scale = if role == Role::Weight { columns.sqrt().recip() } else { 1.0 };
        match element {
            Element::U32 => gpu.zeros(element, sizes),
            floats => gpu.upload_floats(floats, sizes, &self.take(layout.len(), scale)),
        }
    }

    fn take(&mut self, len: usize, scale: f32) -> Vec<f32> {
        // Another start every time, so that no two tensors are alike.
        self.block.rotate_left(977);
        self.block.iter().cycle().take(len).map(|v| v * scale).collect()
    }
}

/// The rows for a GPU.
pub(crate) fn full() -> Vec<Row> {
    let encoder = |batch, sizes, layers| Task::Encoder { batch, sizes, layers };
    let tasks = [
        ("linear-4096", Task::Linear([4096, 4096, 4096], Activation::Identity)),
        ("linear-1024", Task::Linear([1024, 768, 3072], Activation::Gelu)),
        ("linear-128", Task::Linear([128, 768, 3072], Activation::Gelu)),
        ("linear-1@768", Task::Linear([1, 768, 3072], Activation::Identity)),
        ("linear-1@4096", Task::Linear([1, 4096, 4096], Activation::Identity)),
        ("attn-2048-64", Task::Attention(Heads::all([8, 16, 2048, 2048, 64]))),
        ("attn-2048-128c", Task::Attention(Heads::causal([8, 16, 2048, 2048, 128]))),
        ("attn-128-64", Task::Attention(Heads::padded([32, 12, 128, 128, 64]))),
        ("attn-1-64@b1", Task::Attention(Heads::all([1, 12, 1, 1024, 64]))),
        ("attn-1-64@b32", Task::Attention(Heads::all([32, 12, 1, 1024, 64]))),
        ("scores-128-64", Task::Scores(Heads::all([32, 12, 128, 128, 64]))),
        ("values-128-64", Task::Values(Heads::all([32, 12, 128, 128, 64]))),
        ("additive-64", Task::Additive(Heads::all([32, 8, 64, 64, 64]))),
        ("norm-768", Task::Norm([65536, 768])),
        ("softmax-512", Task::Softmax([32, 12, 512, 512])),
        ("gelu-3072", Task::Gelu([32768, 3072])),
        ("embedding-768", Task::Embedding([256, 128, 768])),
        ("pool-384", Task::Pool([256, 128, 384])),
        ("argmax-50257", Task::Argmax([4096, 50257])),
        ("choose-50257", Task::Choose([32, 50257])),
        ("bert-layer-128", encoder([32, 128], [768, 12, 3072], 1)),
        ("bert-layer-512", encoder([8, 512], [768, 12, 3072], 1)),
        ("base-decoder", Task::Decoder { batch: [32, 64], sizes: [512, 8, 2048] }),
        ("minilm", encoder([32, 128], [384, 12, 1536], 6)),
    ];
    rows(tasks, "")
}

/// The rows for a CPU adapter, their ids with `-small` behind.
pub(crate) fn small() -> Vec<Row> {
    let encoder = |batch, sizes| Task::Encoder { batch, sizes, layers: 1 };
    let tasks = [
        ("linear-128", Task::Linear([128, 768, 3072], Activation::Gelu)),
        ("linear-512", Task::Linear([512, 512, 512], Activation::Identity)),
        ("linear-1@768", Task::Linear([1, 768, 3072], Activation::Identity)),
        ("attn-128-64", Task::Attention(Heads::padded([2, 12, 128, 128, 64]))),
        ("attn-1-64@b1", Task::Attention(Heads::all([1, 12, 1, 1024, 64]))),
        ("scores-128-64", Task::Scores(Heads::all([2, 12, 128, 128, 64]))),
        ("values-128-64", Task::Values(Heads::all([2, 12, 128, 128, 64]))),
        ("additive-64", Task::Additive(Heads::all([1, 8, 64, 64, 64]))),
        ("norm-768", Task::Norm([512, 768])),
        ("softmax-512", Task::Softmax([1, 12, 256, 256])),
        ("gelu-3072", Task::Gelu([128, 3072])),
        ("embedding-768", Task::Embedding([4, 128, 768])),
        ("pool-384", Task::Pool([8, 128, 384])),
        ("argmax-50257", Task::Argmax([8, 50257])),
        ("choose-50257", Task::Choose([8, 50257])),
        ("bert-layer-128", encoder([1, 128], [768, 12, 3072])),
        ("bert-layer-512", encoder([1, 512], [256, 4, 1024])),
        ("bert-layer-32", encoder([8, 32], [256, 4, 1024])),
        ("base-decoder", Task::Decoder { batch: [2, 64], sizes: [512, 8, 2048] }),
    ];
    rows(tasks, "-small")
}

/// The tasks in f32, then those that there are in f16.
fn rows<const N: usize>(tasks: [(&str, Task); N], suffix: &str) -> Vec<Row> {
    let row = |element, (id, task): &(&str, Task)| Row { id: format!("{id}{suffix}"), element, task: task.clone() };
    let f16 = tasks.iter().filter(|(_, task)| task.has_f16());
    tasks.iter().map(|task| row(Element::F32, task)).chain(f16.map(|task| row(Element::F16, task))).collect()
}
