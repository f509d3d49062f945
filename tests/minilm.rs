//! The real all-MiniLM-L6-v2 against outputs that PyTorch computed in f64. Its weights are no part of this repository:
//!
//! ```text
//! sh examples/embed/fetch_minilm.sh
//! cargo test --test minilm -- --ignored --nocapture
//! ```
//!
//! `TILEFORMER_MINILM` names another folder than `target/minilm`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::PathBuf;
use std::time::Instant;

use common::on;
use safetensors::SafeTensors;
use tileformer::layers::Inputs;
use tileformer::models::Checkpoint;
use tileformer::models::bert::{Bert, BertInputs, Output};
use tileformer::{BatchShape, Bindings, Element, Role, Sequences};

const GOLDEN: &[u8] = include_bytes!("data/minilm_l6_v2.safetensors");
const ROWS: usize = 24;
const WIDTH: usize = 384;

fn checkpoint() -> Checkpoint {
    let folder = std::env::var_os("TILEFORMER_MINILM").map_or_else(|| PathBuf::from("target/minilm"), PathBuf::from);
    Checkpoint::open(folder).expect("the model: sh examples/embed/fetch_minilm.sh")
}

struct Golden<'a>(SafeTensors<'a>);

impl Golden<'_> {
    fn f64(&self, name: &str) -> Vec<f64> {
        self.0.tensor(name).unwrap().data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn u32(&self, name: &str) -> Vec<u32> {
        self.0.tensor(name).unwrap().data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

fn golden() -> Golden<'static> {
    Golden(SafeTensors::deserialize(GOLDEN).unwrap())
}

/// Ids of (B, T), and how many of each row count.
fn batch(golden: &Golden<'_>) -> (Vec<u32>, Vec<usize>) {
    let lengths = golden.u32("attention_mask").chunks_exact(ROWS).map(|row| row.iter().sum::<u32>() as usize).collect();
    (golden.u32("input_ids"), lengths)
}

/// The largest difference; NaN counts as infinite.
fn error(found: &[f32], right: &[f64]) -> f64 {
    assert_eq!(found.len(), right.len());
    found
        .iter()
        .zip(right)
        .map(|(&f, r)| (f64::from(f) - r).abs())
        .map(|e| if e.is_nan() { f64::INFINITY } else { e })
        .fold(0.0, f64::max)
}

fn run(element: Element, ids: &[u32], sequences: &Sequences, outputs: &[Output]) -> Vec<Vec<f32>> {
    let (gpu, checkpoint) = (&on().gpu, checkpoint());
    let bert = Bert::new(&checkpoint).unwrap();
    let inputs = Inputs::new(sequences.shape().to_self()).with_storage(element);
    let program = bert.program(&on().kernels, &inputs, outputs).unwrap();
    let mut bindings: Bindings = gpu.upload_checkpoint(&[&program], &checkpoint, &bert.weights(), |_| {}).unwrap();
    bindings
        .set("ids", gpu.upload_ids("ids", &[ids.len()], ids, bert.embedding.vocabulary).unwrap())
        .set("segment_ids", gpu.upload_u32(&[ids.len()], &vec![0; ids.len()]).unwrap())
        .set("sequences", gpu.upload_sequences(sequences).unwrap());
    for (name, _, element, layout) in program.tensors().filter(|(_, role, ..)| *role == Role::Output) {
        bindings.set(name, gpu.upload_floats(element, layout.sizes(), &vec![f32::NAN; layout.len()]).unwrap());
    }
    gpu.run(&program.bind(&bindings).unwrap()).unwrap();
    outputs.iter().map(|output| gpu.read_f32(bindings.get(&output.name()).unwrap()).unwrap()).collect()
}

fn cosine(a: &[f32], b: &[f64]) -> f64 {
    let dot = |f: &dyn Fn(usize) -> f64| (0..a.len()).map(f).sum::<f64>();
    let [aa, bb] = [dot(&|i| f64::from(a[i]).powi(2)), dot(&|i| b[i] * b[i])];
    dot(&|i| f64::from(a[i]) * b[i]) / (aa * bb).sqrt()
}

/// Rule: in f32 embeddings are within 2e-6, the last rows within 2e-4, padded or packed.
#[test]
#[ignore = "needs the model: sh examples/embed/fetch_minilm.sh"]
fn f32_is_pytorchs() {
    let golden = golden();
    let (ids, lengths) = batch(&golden);
    let mut outputs: Vec<Output> = (0..=6).map(Output::Hidden).collect();
    outputs.extend([Output::Attention(0), Output::Embedding]);
    let padded = Sequences::padded(&lengths, ROWS).unwrap();
    let found = run(Element::F32, &ids, &padded, &outputs);
    for (n, rows) in found[..7].iter().enumerate() {
        let off = error(rows, &golden.f64(&format!("hidden_{n}_f64")));
        println!("hidden {n}: {off:.2e}");
        assert!(off <= 2e-4, "hidden {n}: {off}");
    }
    let right = golden.f64("embedding_f64");
    let [attention, embedding] = [error(&found[7], &golden.f64("attn_0_f64")), error(&found[8], &right)];
    println!("attention 0: {attention:.2e}, embedding: {embedding:.2e}");
    assert!(attention <= 2e-6 && embedding <= 2e-6, "attention {attention}, embedding {embedding}");

    let packed: Vec<u32> = ids.chunks(ROWS).zip(&lengths).flat_map(|(row, &len)| row[..len].to_vec()).collect();
    let found = run(Element::F32, &packed, &Sequences::packed(&lengths).unwrap(), &[Output::Embedding]);
    let off = error(&found[0], &right);
    println!("embedding, packed: {off:.2e}");
    assert!(off <= 2e-6, "packed: {off}");
}

/// Rule: the CPU reference is within the same bounds.
#[test]
#[ignore = "needs the model: sh examples/embed/fetch_minilm.sh"]
fn the_reference_is_pytorchs() {
    let (golden, checkpoint) = (golden(), checkpoint());
    let (ids, lengths) = batch(&golden);
    let bert = Bert::new(&checkpoint).unwrap();
    let outputs = [Output::Hidden(6), Output::Embedding];
    let host = bert.host_weights::<f32>(&checkpoint, &outputs).unwrap();
    let sequences = Sequences::padded(&lengths, ROWS).unwrap();
    let inputs = BertInputs { ids: &ids, segment_ids: &vec![0; ids.len()], sequences: &sequences, key_mask: None };
    let found = bert.reference(&host.weights().unwrap(), &inputs, &outputs).unwrap();
    let off = |name: &str, golden_name: &str| error(&found[name], &golden.f64(golden_name));
    let [hidden, embedding] = [off("hidden.6", "hidden_6_f64"), off("embedding", "embedding_f64")];
    println!("reference: hidden 6 {hidden:.2e}, embedding {embedding:.2e}");
    assert!(hidden <= 2e-4 && embedding <= 2e-6, "hidden {hidden}, embedding {embedding}");
}

/// Rule: in f16 every embedding's cosine with the right one is at least 0.9999.
#[test]
#[ignore = "needs the model: sh examples/embed/fetch_minilm.sh"]
fn f16_points_the_same_way() {
    let golden = golden();
    let (ids, lengths) = batch(&golden);
    let found = run(Element::F16, &ids, &Sequences::padded(&lengths, ROWS).unwrap(), &[Output::Embedding]);
    let right = golden.f64("embedding_f64");
    for (n, (found, right)) in found[0].chunks(WIDTH).zip(right.chunks(WIDTH)).enumerate() {
        let cosine = cosine(found, right);
        println!("f16, sentence {n}: cosine {cosine:.7}");
        assert!(cosine >= 0.9999, "sentence {n}: {cosine}");
    }
}

/// Prints what loading takes, and how many sequences a second go through, the best of several runs: B 32, T 128, embeddings.
#[test]
#[ignore = "needs the model: sh examples/embed/fetch_minilm.sh"]
fn speed() {
    let (batch, rows) = (32, 128);
    let (gpu, start) = (&on().gpu, Instant::now());
    let checkpoint = checkpoint();
    let bert = Bert::new(&checkpoint).unwrap();
    println!("open: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    for element in [Element::F32, Element::F16] {
        let inputs = Inputs::new(BatchShape::padded(batch, rows)).with_storage(element);
        let program = bert.program(&on().kernels, &inputs, &[Output::Embedding]).unwrap();
        let start = Instant::now();
        let mut bindings = gpu.upload_checkpoint(&[&program], &checkpoint, &bert.weights(), |_| {}).unwrap();
        println!("{element:?}: upload {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        let ids: Vec<u32> = (0..batch * rows).map(|i| (i * 7919 % bert.embedding.vocabulary) as u32).collect();
        bindings
            .set("ids", gpu.upload_u32(&[ids.len()], &ids).unwrap())
            .set("segment_ids", gpu.zeros(Element::U32, &[ids.len()]).unwrap())
            .set("sequences", gpu.upload_sequences(&Sequences::padded(&vec![rows; batch], rows).unwrap()).unwrap())
            .set("embedding", gpu.zeros(element, &[batch, WIDTH]).unwrap());
        let plan = program.bind(&bindings).unwrap();
        let run = || {
            let start = Instant::now();
            gpu.run(&plan).unwrap();
            start.elapsed().as_secs_f64()
        };
        run();
        let best = (0..3).map(|_| run()).fold(f64::INFINITY, f64::min);
        println!("{element:?}: {:.0} ms, {:.2} sequences per second on {}", best * 1e3, batch as f64 / best, gpu.info.name);
    }
}
