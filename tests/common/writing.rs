//! Texts of small models, greedily, through prefill and steps. Caches are full of NaN at first: whatever is read before it is written
//! shows.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use tileformer::layers::{GeneratorInputs, Inputs, PrefillShape, StepShape};
use tileformer::models::Checkpoint;
use tileformer::models::causal::CausalModel;
use tileformer::models::seq2seq::Seq2Seq;
use tileformer::spec::cache::{CachedRows, DecodeRow, DecodeState, STATE_WORDS};
use tileformer::spec::generator::GeneratorCaches;
use tileformer::spec::sampling::{SAMPLING_WORDS, Sampling};
use tileformer::{Bindings, Element, Program, Role, Sequences};

use crate::common::On;

/// New tokens of each text, and their log-probabilities.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    pub ids: Vec<Vec<u32>>,
    pub log_probs: Vec<Vec<f32>>,
}

/// States and outputs that programs lack: of NaN where they are floats.
fn allocate(on: &On, programs: &[&Program], bindings: &mut Bindings) {
    for program in programs {
        for (name, role, element, layout) in program.tensors() {
            if role == Role::State && element != Element::U32 && bindings.get(name).is_none() {
                let nan = vec![f32::NAN; layout.len()];
                bindings.set(name, on.gpu.upload_floats(element, layout.sizes(), &nan).unwrap());
            }
        }
        on.gpu.allocate(program, bindings).unwrap();
    }
}

/// Takes `steps` steps from a state.
fn decode(on: &On, step: &Program, mut bindings: Bindings, state: &DecodeState, rows: usize, steps: usize) -> Written {
    let gpu = &on.gpu;
    let sampling = vec![Sampling::greedy(); rows];
    let state_rows = state.words().len() / STATE_WORDS;
    bindings
        .set("state", gpu.upload_u32(&[state_rows, STATE_WORDS], state.words()).unwrap())
        .set("sampling", gpu.upload_u32(&[rows, SAMPLING_WORDS], Sampling::words(&sampling)).unwrap());
    let plan = step.bind(&bindings.known_to(step)).unwrap();
    let mut written = Written { ids: vec![Vec::new(); rows], log_probs: vec![Vec::new(); rows] };
    for chunk in gpu.decode(&plan, steps, 5).unwrap() {
        let chunk = chunk.unwrap();
        for (ids, log_probs) in chunk.tokens.chunks_exact(rows).zip(chunk.log_probs().chunks_exact(rows)) {
            for row in 0..rows {
                written.ids[row].push(ids[row]);
                written.log_probs[row].push(log_probs[row]);
            }
        }
    }
    written
}

/// Behind each prompt, of two tokens at least, `steps` tokens of a causal model.
pub fn causal(on: &On, checkpoint: &Checkpoint, storage: Element, prompts: &[Vec<u32>], steps: usize) -> Written {
    causal_of(on, checkpoint, [storage; 2], prompts, steps)
}

/// The same with rows stored in one way, and weights of projections in another.
pub fn causal_of(
    on: &On,
    checkpoint: &Checkpoint,
    [storage, weights]: [Element; 2],
    prompts: &[Vec<u32>],
    steps: usize,
) -> Written {
    let (gpu, rows) = (&on.gpu, prompts.len());
    let model = CausalModel::new(checkpoint).unwrap();
    let generator = model.generator();
    let pasts: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt[..prompt.len() - 1]).collect();
    let longest = pasts.iter().map(|past| past.len()).max().unwrap();
    let caches = GeneratorCaches::new(rows, longest + steps + 1);
    let inputs = GeneratorInputs::new(caches, storage).with_weights(weights);
    let ids = pasts.concat();
    let shape = PrefillShape { sequences: rows, rows: ids.len(), longest, hidden: false };
    let prefill = generator.prefill(&on.kernels, &inputs, &shape).unwrap();
    let step = StepShape { log_probs: true, ..StepShape::new(rows, steps) };
    let step = generator.step(&on.kernels, &inputs, &step).unwrap();
    let mut bindings = gpu.upload_causal(&[&prefill, &step], checkpoint, &model, |_| {}).unwrap();
    allocate(on, &[&prefill, &step], &mut bindings);
    let new = pasts.iter().enumerate().map(|(slot, past)| CachedRows { slot, past: 0, new: past.len() });
    let sequences = caches.of_texts(&generator).sequences(&new.collect::<Vec<_>>()).unwrap();
    bindings
        .set("ids", gpu.upload_u32(&[ids.len()], &ids).unwrap())
        .set("sequences", gpu.upload_sequences(&sequences).unwrap());
    gpu.run(&prefill.bind(&bindings.known_to(&prefill)).unwrap()).unwrap();
    let row = |(slot, past): (usize, &&[u32])| {
        Some(DecodeRow { slot, past: past.len(), id: *prompts[slot].last().unwrap(), memory: None })
    };
    let state = caches.decode(&generator, &pasts.iter().enumerate().map(row).collect::<Vec<_>>()).unwrap();
    decode(on, &step, bindings, &state, rows, steps)
}

/// For each source `steps` tokens behind token 0, over memories that are encoded as the sources lie.
pub fn seq2seq(
    on: &On,
    checkpoint: &Checkpoint,
    storage: Element,
    source: &Sequences,
    source_ids: &[u32],
    steps: usize,
) -> Written {
    seq2seq_of(on, checkpoint, [storage; 2], source, source_ids, steps)
}

/// The same with rows stored in one way, and weights of projections in another.
pub fn seq2seq_of(
    on: &On,
    checkpoint: &Checkpoint,
    [storage, weights]: [Element; 2],
    source: &Sequences,
    source_ids: &[u32],
    steps: usize,
) -> Written {
    let (gpu, model) = (&on.gpu, Seq2Seq::new(checkpoint).unwrap());
    let generator = model.generator();
    let shape = source.shape().to_self();
    let rows = shape.sequences;
    let caches = GeneratorCaches::new(rows, steps).with_memory(shape.longest_k);
    let inputs = GeneratorInputs::new(caches, storage).with_weights(weights);
    let step = StepShape { log_probs: true, ..StepShape::new(rows, steps) };
    let programs = [
        model.encode(&on.kernels, &Inputs::new(shape).with_storage(storage).with_weights(weights)).unwrap(),
        generator.remember(&on.kernels, &inputs, rows, shape.k_rows).unwrap(),
        generator.step(&on.kernels, &inputs, &step).unwrap(),
    ];
    let programs = programs.each_ref();
    let map = model.weights().unwrap();
    let mut bindings = gpu.upload_checkpoint(&programs, checkpoint, &map, |_| {}).unwrap();
    // One table on the device for source and target, where the checkpoint has one.
    assert_eq!(bindings.get("source.token_embedding.weight").is_some(), !model.shared);
    allocate(on, &programs, &mut bindings);
    let memory = caches.of_memory(&generator).unwrap();
    let keys = |slot: usize| source.as_slice()[slot].k_len as usize;
    let slot = |slot: usize| {
        let start = source.as_slice()[slot].k_start as usize;
        memory.sequence(start, &CachedRows { slot, past: 0, new: keys(slot) }).unwrap()
    };
    let slots = Sequences::new((0..rows).map(slot).collect()).unwrap();
    bindings
        .set("source.ids", gpu.upload_u32(&[source_ids.len()], source_ids).unwrap())
        .set("source.sequences", gpu.upload_sequences(source).unwrap())
        .set("memory_sequences", gpu.upload_sequences(&slots).unwrap());
    for program in &programs[..2] {
        gpu.run(&program.bind(&bindings.known_to(program)).unwrap()).unwrap();
    }
    let row = |slot: usize| Some(DecodeRow { slot, past: 0, id: 0, memory: Some((slot, keys(slot))) });
    let state = caches.decode(&generator, &(0..rows).map(row).collect::<Vec<_>>()).unwrap();
    decode(on, programs[2], bindings, &state, rows, steps)
}
