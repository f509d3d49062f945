//! A model of one's own from the crate's layers: a classifier of texts. `cargo run --example own_model`
//!
//! ```text
//! ids (rows) -> embedding -> pre-norm encoder of 2 layers -> final norm (rows, C) -> mean of each text (B, C) -> logits (B, classes)
//! ```
//!
//! The model is said three times, each time as short as it gets: what it is ([`Classifier::new`]), what the GPU does
//! ([`Classifier::program`]), and what that must equal ([`Classifier::reference`]). [`on_gpu`] takes it from a shape to numbers, and [`run`]
//! compares. Where there is no adapter the reference runs alone, and a notice says so.
#![allow(clippy::disallowed_methods)] // This is the caller's side: it submits.

use std::error::Error;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tileformer::convenience::{Gpu, Setup};
use tileformer::kernels::Pool;
use tileformer::layers::{Embedding, Encoder, EncoderLayer, Norm, Placement};
use tileformer::reference::layers::{self as reference, Batch, Weights};
use tileformer::reference::{Linear, Real, linear, pool};
use tileformer::spec::Pooling;
use tileformer::{Activation, BatchShape, Builder, Element, Kernels, Layout, Program, Sequences};

/// The largest difference that f32 arithmetic explains, logits being around 1.
const TOLERANCE: f64 = 2e-5;

/// A model is what its parts are: plain structs whose fields are all the options that there are, shared by the GPU and the reference.
struct Classifier {
    embedding: Embedding,
    encoder: Encoder,
    classes: usize,
}

impl Classifier {
    /// 64 tokens, texts of at most 32, rows 48 wide, 4 heads, 96 wide between the projections, 5 classes.
    fn new() -> Self {
        let mut layer = EncoderLayer::new(48, 4, 96);
        layer.placement = Placement::Pre;
        layer.feed_forward.activation = Activation::Gelu;
        let encoder = Encoder::new(layer, 2).with_final_norm(Norm::default());
        Self { embedding: Embedding { positions: Some(32), ..Embedding::new(64, 48) }, encoder, classes: 5 }
    }

    /// Ids to logits, for every batch of up to `shape`: which rows make a text is data, in the input `sequences`.
    fn program(&self, kernels: &Kernels, shape: BatchShape) -> tileformer::Result<Program> {
        let (d_model, attention) = (self.embedding.d_model, &self.encoder.layer.attention);
        // Rows are f32; `with_storage(Element::F16)` behind `new` is all that it takes to halve them, and the weights.
        let mut b = Builder::new(kernels, "classifier");
        let storage = b.storage();
        // The inputs of every attention: `sequences`, and masks where its options have any.
        let batch = b.batch("", &attention.options, attention.n_heads, shape, None)?;
        // What stands between two dispatches is scratch: it shares memory with whatever does not live at the same time.
        let rows = Layout::contiguous(&[shape.q_rows, d_model])?;
        let (embedded, encoded) = (b.scratch("embedded", storage, rows)?, b.scratch("encoded", storage, rows)?);
        b.embed("", &self.embedding, &batch, embedded)?; // the input `ids`
        b.encoder("encoder.", &self.encoder, &batch, embedded, false, encoded)?;
        // Kernels and layers append in the same way. Rows that are no text's are never read here.
        let mean = b.scratch("mean", storage, Layout::contiguous(&[shape.sequences, d_model])?)?;
        let (sequences, longest) = (batch.sequences, shape.longest_k);
        b.pool("mean", &Pool { x: encoded, sequences, longest, pooling: Pooling::Mean, normalize: false, y: mean })?;
        // What the caller reads is an output, in memory of the caller's. It may be f32 where the rows are f16.
        let logits = b.output("logits", Element::F32, Layout::contiguous(&[shape.sequences, self.classes])?)?;
        b.head("classifier.weight", Some("classifier.bias"), mean, logits)?;
        b.finish()
    }

    /// The same by plain loops on the CPU, in f32 or f64: what the numbers of the GPU are judged by.
    fn reference<T: Real>(&self, weights: &Weights<'_, T>, ids: &[u32], texts: &Sequences) -> tileformer::Result<Vec<T>> {
        let (shape, sequences, d_in) = (texts.shape(), texts.as_slice(), self.embedding.d_model);
        let embedded = reference::embeddings(&self.embedding, weights, "", ids, None, Some(sequences))?;
        let batch = Batch::new(shape, sequences);
        let (encoded, _attention) = reference::encoder(&self.encoder, weights, "encoder.", &embedded, &batch)?;
        linear(&Linear {
            x: &pool(&encoded, sequences, Pooling::Mean, false, shape.q_rows, d_in)?,
            weight: weights.get("classifier.weight", &[self.classes, d_in])?,
            bias: Some(weights.get("classifier.bias", &[self.classes])?),
            residual: None,
            activation: Activation::Identity,
            rows: shape.sequences,
            d_in,
            d_out: self.classes,
        })
    }

    /// Weights as a file would have them, made by a seed: names and sizes are those of PyTorch's modules, `nn.Embedding`,
    /// `nn.TransformerEncoder` and `nn.Linear`, so that a state dict of these fits as it is.
    fn random_weights(&self, seed: u64) -> Vec<Weight<f32>> {
        let (c, f, classes) = (self.embedding.d_model, self.encoder.layer.feed_forward.d_ff, self.classes);
        let mut all: Vec<(String, Vec<usize>)> = vec![
            ("token_embedding.weight".into(), vec![self.embedding.vocabulary, c]),
            ("position_embedding.weight".into(), vec![self.embedding.positions.unwrap_or(0), c]),
        ];
        let mut pair = |name: String, weight: &[usize]| {
            let [weight_name, bias_name] = match name.ends_with("in_proj") {
                true => [format!("{name}_weight"), format!("{name}_bias")],
                false => [format!("{name}.weight"), format!("{name}.bias")],
            };
            all.extend([(weight_name, weight.to_vec()), (bias_name, weight[..1].to_vec())]);
        };
        for n in 0..self.encoder.n_layers {
            let layer = |part: &str| format!("encoder.layers.{n}.{part}");
            pair(layer("self_attn.in_proj"), &[3 * c, c]);
            pair(layer("self_attn.out_proj"), &[c, c]);
            pair(layer("linear1"), &[f, c]);
            pair(layer("linear2"), &[c, f]);
            pair(layer("norm1"), &[c]);
            pair(layer("norm2"), &[c]);
        }
        pair("encoder.norm".into(), &[c]);
        pair("classifier".into(), &[classes, c]);

        let mut rng = StdRng::seed_from_u64(seed);
        let mut numbers = |(name, sizes): (String, Vec<usize>)| {
            let scale = sizes.get(1).map_or(0.1, |&d_in| (3.0 / d_in as f32).sqrt());
            let middle = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
            let data = (0..sizes.iter().product()).map(|_| middle + rng.random_range(-scale..scale)).collect();
            Weight { name, sizes, data }
        };
        all.into_iter().map(&mut numbers).collect()
    }
}

/// A weight on the host.
struct Weight<T> {
    name: String,
    sizes: Vec<usize>,
    data: Vec<T>,
}

/// The logits (B, classes) of these texts on the GPU.
fn on_gpu(
    gpu: &Gpu,
    model: &Classifier,
    weights: &[Weight<f32>],
    ids: &[u32],
    texts: &Sequences,
) -> Result<Vec<f32>, Box<dyn Error>> {
    // Once a device: pipelines live here, and are compiled when a plan first needs them.
    let kernels = Kernels::new(&gpu.device, gpu.options())?;
    // Once a shape. No buffer is made, so that memory and cost can be looked at before anything is allocated.
    let program = model.program(&kernels, texts.shape())?;
    let (dispatches, scratch) = (program.dispatches().len(), program.scratch_bytes());
    eprintln!("{}: {dispatches} dispatches, {scratch} bytes of scratch", gpu.info.name);
    // Once a model. The program says what it reads: what is missing or has other sizes is refused by its name.
    let find = |name: &str| weights.iter().find(|w| w.name == name).map(|w| (&w.sizes[..], &w.data[..]));
    let mut bindings = gpu.upload_weights(&program, find)?;
    // What a batch brings. Ids that the table does not have are refused where the CPU sees them.
    bindings
        .set("ids", gpu.upload_ids("ids", &[ids.len()], ids, model.embedding.vocabulary)?)
        .set("sequences", gpu.upload_sequences(texts)?);
    gpu.allocate(&program, &mut bindings)?; // the output
    // Once a set of buffers: bind groups, pipelines, scratch. What is wrong shows here at the latest.
    let plan = program.bind(&bindings)?;
    // As often as wanted: recording only records, into an encoder of the caller's, among whatever else is in it.
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    plan.record(&mut encoder);
    gpu.queue.submit([encoder.finish()]);
    Ok(gpu.read_f32(bindings.get("logits").ok_or("the program has no logits")?)?)
}

/// What came of a run.
pub(crate) struct Report {
    /// (B, classes), where there was a GPU.
    pub(crate) gpu: Option<Vec<f32>>,
    /// (B, classes), in f64.
    pub(crate) reference: Vec<f64>,
    pub(crate) classes: usize,
}

/// Classifies three texts of different length, packed one behind the other without padding.
///
/// # Errors
/// What the device, the crate or the comparison says.
pub(crate) fn run(gpu: Option<&Gpu>) -> Result<Report, Box<dyn Error>> {
    let model = Classifier::new();
    let weights = model.random_weights(7);
    let texts = Sequences::packed(&[7, 20, 1])?;
    let ids: Vec<u32> = (0..texts.shape().q_rows as u32).map(|i| i * i * 5 % 64).collect();

    let widen = |w: &Weight<f32>| w.data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let wide: Vec<Vec<f64>> = weights.iter().map(widen).collect();
    let mut named = Weights::new();
    for (Weight { name, sizes, .. }, data) in weights.iter().zip(&wide) {
        named.insert(name, sizes, data)?;
    }
    let reference = model.reference(&named, &ids, &texts)?;
    let gpu = gpu.map(|gpu| on_gpu(gpu, &model, &weights, &ids, &texts)).transpose()?;
    for (i, (&found, &expected)) in gpu.iter().flatten().zip(&reference).enumerate() {
        let error = (f64::from(found) - expected).abs();
        if error.is_nan() || error > TOLERANCE {
            return Err(format!("logit {i}: expected {expected}, found {found}").into());
        }
    }
    Ok(Report { gpu, reference, classes: model.classes })
}

fn main() -> Result<(), Box<dyn Error>> {
    let gpu = Gpu::open(&Setup::default());
    if let Err(error) = &gpu {
        eprintln!("notice: running on the CPU reference alone: {error}");
    }
    let Report { gpu, reference, classes } = run(gpu.ok().as_ref())?;
    for (text, expected) in reference.chunks(classes).enumerate() {
        println!("text {text}, CPU reference: {expected:9.6?}");
        if let Some(found) = gpu.as_ref().and_then(|logits| logits.chunks(classes).nth(text)) {
            println!("text {text}, GPU:           {found:9.6?}");
        }
    }
    Ok(())
}
