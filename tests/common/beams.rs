//! What the tests of beam search share: the models of tests/data/beams, the search on the GPU, and a plain one over the reference.

use super::common::On;
use safetensors::SafeTensors;
use tileformer::convenience::BeamPlans;
use tileformer::layers::{BeamStepShape, GeneratorInputs, Inputs};
use tileformer::models::seq2seq::{Output, Seq2Seq, Seq2SeqInputs};
use tileformer::models::{Checkpoint, Config, HostWeights};
use tileformer::spec::beams::{BeamSearch, EarlyStopping, Hypothesis, MAX_CANDIDATES};
use tileformer::spec::cache::CachedRows;
use tileformer::spec::generator::GeneratorCaches;
use tileformer::{BatchShape, Element, Error, Result, Sequences, TensorView, wgpu};

const FILES: [&[u8]; 2] =
    [include_bytes!("../data/beams/marian.safetensors"), include_bytes!("../data/beams/bart.safetensors")];

/// What the library found with some settings.
pub struct Found {
    pub settings: Config,
    /// Each row's tokens behind the start token, padded.
    pub ids: Vec<Vec<u32>>,
    pub scores: Option<Vec<f32>>,
}

/// A model, its sources, and what was found in them.
pub struct Case {
    pub checkpoint: Checkpoint,
    pub model: Seq2Seq,
    pub sources: Vec<Vec<u32>>,
    pub found: Vec<Found>,
    weights: HostWeights<f64>,
}

/// All of them.
pub fn cases() -> impl Iterator<Item = Case> {
    FILES.into_iter().map(Case::new)
}

fn words(file: &SafeTensors<'_>, name: &str) -> Option<(usize, Vec<u32>)> {
    let view = file.tensor(name).ok()?;
    let words = view.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Some((*view.shape().last().unwrap(), words))
}

impl Case {
    fn new(bytes: &[u8]) -> Self {
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        let file = SafeTensors::deserialize(bytes).unwrap();
        let weights = file.iter().filter_map(|(name, view)| Some((name.strip_prefix("w.")?.to_owned(), view)));
        let weights = safetensors::serialize(weights, None).unwrap();
        let checkpoint = Checkpoint::from_bytes(&metadata["config"], vec![("weights".into(), weights)]).unwrap();
        let model = Seq2Seq::new(&checkpoint).unwrap();
        let (longest, ids) = words(&file, "in.input_ids").unwrap();
        let (_, mask) = words(&file, "in.attention_mask").unwrap();
        let rows = ids.chunks_exact(longest).zip(mask.chunks_exact(longest));
        let sources = rows.map(|(ids, mask)| ids[..mask.iter().sum::<u32>() as usize].to_vec()).collect();
        let all: Vec<serde_json::Value> = serde_json::from_str(&metadata["settings"]).unwrap();
        let found = all.iter().enumerate().map(|(i, settings)| {
            let (length, ids) = words(&file, &format!("out.{i}.ids")).unwrap();
            let scores = words(&file, &format!("out.{i}.scores"));
            Found {
                settings: Config::parse("generation_config.json", &settings.to_string()).unwrap(),
                ids: ids.chunks_exact(length).map(|row| row[1..].to_vec()).collect(),
                scores: scores.map(|(_, bits)| bits.into_iter().map(f32::from_bits).collect()),
            }
        });
        let weights = model.host_weights(&checkpoint, &[Output::Logits]).unwrap();
        Self { found: found.collect(), checkpoint, model, sources, weights }
    }

    pub fn vocabulary(&self) -> usize {
        self.model.target.vocabulary
    }

    /// Searches on the GPU, sources padded to the longest, in a step of `rows` rows.
    pub fn search(
        &self,
        on: &On,
        element: Element,
        sources: &[Vec<u32>],
        search: &BeamSearch,
        rows: usize,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let shape = BeamStepShape::of(search, sources.len());
        let shape = BeamStepShape { rows, candidates: shape.candidates.clamp(2, MAX_CANDIDATES), ..shape };
        self.with_plans(on, element, sources, &shape, |plans, lengths| plans.search(search, lengths))
    }

    /// Plans whose memories are there, and the lengths of these.
    pub fn with_plans<R>(
        &self,
        on: &On,
        element: Element,
        sources: &[Vec<u32>],
        shape: &BeamStepShape,
        run: impl FnOnce(&mut BeamPlans<'_>, &[usize]) -> Result<R>,
    ) -> Result<R> {
        let (gpu, kernels, generator) = (&on.gpu, &on.kernels, self.model.generator());
        let lengths: Vec<usize> = sources.iter().map(Vec::len).collect();
        let (batch, longest) = (sources.len(), *lengths.iter().max().unwrap());
        let caches =
            GeneratorCaches { memory_slots: batch, memory_capacity: longest, ..GeneratorCaches::new(shape.rows, 11) };
        let inputs = GeneratorInputs::new(caches, element);
        let source = BatchShape::padded(batch, longest);
        let encode = self.model.encode(kernels, &Inputs::new(source).with_storage(element))?;
        let remember = generator.remember(kernels, &inputs, batch, batch * longest)?;
        let step = generator.beam_step(kernels, &inputs, shape)?;
        let programs = [&encode, &remember, &step];
        let mut bindings = gpu.upload_checkpoint(&programs, &self.checkpoint, &self.model.weights()?, |_| {})?;
        [&encode, &remember].iter().try_for_each(|program| gpu.allocate(program, &mut bindings))?;
        let ids: Vec<u32> =
            sources.iter().flat_map(|s| s.iter().copied().chain(std::iter::repeat_n(0, longest - s.len()))).collect();
        let memory = caches.of_memory(&generator).unwrap();
        let slot = |(slot, &new): (usize, &usize)| memory.sequence(slot * longest, &CachedRows { slot, past: 0, new });
        let slots = Sequences::new(lengths.iter().enumerate().map(slot).collect::<Result<_>>()?)?;
        bindings
            .set("source.ids", gpu.upload_u32(&[ids.len()], &ids)?)
            .set("source.sequences", gpu.upload_sequences(&Sequences::padded(&lengths, longest)?)?)
            .set("memory_sequences", gpu.upload_sequences(&slots)?);
        for program in [&encode, &remember] {
            gpu.run(&program.bind(&bindings.known_to(program))?)?;
        }
        let weights = bindings.iter().filter(|(name, _)| !name.ends_with("cross_cache"));
        let weights = weights.map(|(name, view)| (name, view.clone())).collect();
        let missing = gpu.beam_plans(&step, (&generator, &caches), shape, &weights).unwrap_err();
        assert!(matches!(missing, Error::Missing { .. }), "{missing}");
        let (_, _, element, layout) = step.tensors().find(|(name, ..)| *name == "candidates").unwrap();
        let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: layout.extent() * element.size(),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let mut unread = bindings.clone();
        unread.set("candidates", TensorView::new(&buffer, 0, element, *layout)?);
        let unread = gpu.beam_plans(&step, (&generator, &caches), shape, &unread).unwrap_err();
        assert!(matches!(unread, Error::Usage { .. }), "{unread}");
        run(&mut gpu.beam_plans(&step, (&generator, &caches), shape, &bindings)?, &lengths)
    }

    /// log softmax of the reference's logits in f64 behind the last token of each of these beginnings.
    pub fn log_probs(&self, source: &[u32], targets: &[Vec<u32>]) -> Vec<Vec<f64>> {
        let repeated = |len: usize| Sequences::packed(&vec![len; targets.len()]).unwrap();
        let inputs = Seq2SeqInputs {
            source_ids: &source.repeat(targets.len()),
            source: &repeated(source.len()),
            target_ids: &targets.concat(),
            target: &repeated(targets[0].len()),
            key_mask: None,
        };
        let logits = self.model.reference(&self.weights.weights().unwrap(), &inputs, &[Output::Logits]).unwrap();
        let of_each = logits["logits"].chunks_exact(self.vocabulary() * targets[0].len());
        of_each.map(|rows| log_softmax(&rows[rows.len() - self.vocabulary()..])).collect()
    }
}

fn log_softmax(x: &[f64]) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = x.iter().map(|x| (x - most).exp()).sum::<f64>().ln() + most;
    x.iter().map(|x| x - log_sum).collect()
}

const NEVER: f64 = -1e9;

/// What the library's logits processors make of a row of log-probabilities.
fn processed(search: &BeamSearch, ids: &[u32], mut row: Vec<f64>) -> Vec<f64> {
    let n = search.no_repeat_ngram;
    if n > 0 && ids.len() + 1 >= n {
        for run in ids.windows(n).filter(|run| run[..n - 1] == ids[ids.len() + 1 - n..]) {
            row[run[n - 1] as usize] = f64::NEG_INFINITY;
        }
    }
    for run in &search.banned {
        let prefix = &run[..run.len() - 1];
        if run.len() <= ids.len() && ids.ends_with(prefix) {
            row[run[prefix.len()] as usize] = f64::NEG_INFINITY;
        }
    }
    if ids.len() < search.min_length {
        search.ends.iter().for_each(|&end| row[end as usize] = f64::NEG_INFINITY);
    }
    let forced =
        [search.forced_first.filter(|_| ids.len() == 1), search.forced_last.filter(|_| ids.len() + 1 == search.max_length)];
    for id in forced.into_iter().flatten() {
        row.fill(f64::NEG_INFINITY);
        row[id as usize] = 0.0;
    }
    if search.renormalized { log_softmax(&row) } else { row }
}

/// The highest `k` with their places, and by how little the order of these and the next one is decided.
fn top(values: &[f64], k: usize, margin: &mut f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    for pair in order[..order.len().min(k + 1)].windows(2).filter(|pair| values[pair[1]] > 0.5 * NEVER) {
        *margin = margin.min(values[pair[0]] - values[pair[1]]);
    }
    order.truncate(k);
    order
}

/// The search over the reference in f64 as the library writes it, masks of −10⁹ and all, and how close its closest decision was.
pub fn plain(case: &Case, source: &[u32], search: &BeamSearch) -> (Vec<(Vec<u32>, f64)>, f64) {
    let (n, keep) = (search.beams, (search.ends.len() + 1).max(2) * search.beams);
    let mut margin = f64::INFINITY;
    let mut running: Vec<(Vec<u32>, f64)> = (0..n).map(|i| (vec![search.start], if i == 0 { 0.0 } else { NEVER })).collect();
    let mut complete: Vec<(Vec<u32>, f64, bool)> = vec![(vec![search.start], NEVER, false); n];
    let power = |length: usize| (length as f64).powf(search.length_penalty.into());
    loop {
        let length = running[0].0.len();
        let targets: Vec<Vec<u32>> = running.iter().map(|(ids, _)| ids.clone()).collect();
        let rows = case.log_probs(source, &targets);
        let of_beam = |((ids, score), row): (&(Vec<u32>, f64), Vec<f64>)| -> Vec<f64> {
            processed(search, ids, row).into_iter().map(|p| p + score).collect()
        };
        let all: Vec<f64> = running.iter().zip(rows).flat_map(of_beam).collect();
        let best = top(&all, keep, &mut margin);
        let continued: Vec<(Vec<u32>, f64, bool)> = best
            .iter()
            .map(|&at| {
                let id = (at % case.vocabulary()) as u32;
                let ids = [&running[at / case.vocabulary()].0[..], &[id]].concat();
                let hits = search.ends.contains(&id) || ids.len() >= search.max_length;
                (ids, all[at], hits)
            })
            .collect();
        let runs: Vec<f64> = continued.iter().map(|(_, score, hits)| score + if *hits { NEVER } else { 0.0 }).collect();
        running = top(&runs, n, &mut margin).into_iter().map(|at| (continued[at].0.clone(), runs[at])).collect();
        for (rank, (ids, score, hits)) in continued.iter().enumerate() {
            let joins = *hits && rank < n;
            complete.push((ids.clone(), score / power(length) + if joins { 0.0 } else { NEVER }, joins));
        }
        let scores: Vec<f64> = complete.iter().map(|(_, score, _)| *score).collect();
        complete = top(&scores, n, &mut margin).into_iter().map(|at| complete[at].clone()).collect();
        let most = search.early_stopping == EarlyStopping::Never && search.length_penalty > 0.0;
        let possible = running[0].1 / power(if most { search.max_length - 1 } else { length });
        let worst = complete.iter().map(|(_, score, _)| *score).fold(f64::INFINITY, f64::min);
        let finished = complete.iter().all(|(_, _, done)| *done);
        let improves = complete.iter().any(|(_, _, done)| possible > if *done { worst } else { NEVER });
        if finished && possible > 0.5 * NEVER {
            margin = margin.min((possible - worst).abs());
        }
        let stops = (finished && search.early_stopping == EarlyStopping::Yes) || continued.iter().all(|(_, _, hits)| *hits);
        if !improves || stops {
            let found = complete.into_iter().filter(|(_, score, _)| *score > 0.5 * NEVER);
            return (found.map(|(ids, score, _)| (ids[1..].to_vec(), score)).take(search.returned).collect(), margin);
        }
    }
}

/// The greedy target: at each step the most probable token, up to an end token or the greatest length, and the closest decision.
pub fn greedy(case: &Case, source: &[u32], search: &BeamSearch) -> (Vec<u32>, f64) {
    let (mut ids, mut margin) = (vec![search.start], f64::INFINITY);
    while ids.len() < search.max_length {
        let row = processed(search, &ids, case.log_probs(source, &[ids.clone()]).remove(0));
        ids.push(top(&row, 1, &mut margin)[0] as u32);
        if search.ends.contains(ids.last().unwrap()) {
            break;
        }
    }
    (ids[1..].to_vec(), margin)
}

/// Every target that the search may find, by trying all of them, the best ones first.
pub fn exhaustive(case: &Case, source: &[u32], search: &BeamSearch) -> Vec<(Vec<u32>, f64)> {
    let mut open = vec![(vec![search.start], 0.0)];
    let mut complete = Vec::new();
    for length in 1..search.max_length {
        let targets: Vec<Vec<u32>> = open.iter().map(|(ids, _): &(Vec<u32>, f64)| ids.clone()).collect();
        let rows = case.log_probs(source, &targets);
        let mut next = Vec::new();
        for ((ids, score), row) in open.iter().zip(rows) {
            for (id, p) in processed(search, ids, row).into_iter().enumerate().filter(|(_, p)| *p > NEVER) {
                let (ids, score) = ([&ids[..], &[id as u32]].concat(), score + p);
                if search.ends.contains(&(id as u32)) || length + 1 == search.max_length {
                    complete.push((ids[1..].to_vec(), score / (length as f64).powf(search.length_penalty.into())));
                } else {
                    next.push((ids, score));
                }
            }
        }
        open = next;
    }
    complete.sort_by(|a, b| b.1.total_cmp(&a.1));
    complete
}
