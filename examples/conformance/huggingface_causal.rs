//! Causal language models: forward passes, and greedy texts through a generator's caches.

use tileformer::layers::{GeneratorInputs, Inputs, PrefillShape, StepShape};
use tileformer::models::Checkpoint;
use tileformer::models::causal::{CausalInputs, CausalModel, Output};
use tileformer::spec::cache::{CachedRows, DecodeRow};
use tileformer::spec::generator::GeneratorCaches;
use tileformer::spec::sampling::{SAMPLING_WORDS, Sampling};
use tileformer::{BatchShape, Element, Sequences};

use super::case::Case;
use super::gpu::Session;
use super::host::Array;
use super::huggingface::{Attended, Model, words};
use super::judge::{Outcome, Results, failed, unsupported};

/// Behind two logits that are as close as this, rounding chooses the token.
const CLOSE: f64 = 1e-3;

/// A model with its inputs, ready to be run anywhere.
pub(crate) struct Run {
    checkpoint: Checkpoint,
    model: CausalModel,
    /// (B · T)
    ids: Vec<u32>,
    attended: Attended,
    shape: BatchShape,
    /// Each expected output's name, and ours.
    outputs: Vec<(String, Output)>,
    texts: Vec<Texts>,
}

/// Expected texts: prompts of one length, and as many tokens behind each.
struct Texts {
    name: String,
    /// Of all tokens of a text.
    length: usize,
    prompt: usize,
    /// (rows, length)
    expected: Vec<u32>,
    /// The end token, unless a text goes on behind it.
    banned: Vec<u32>,
    /// How many tokens of each text are compared: up to the first that rounding may choose.
    compared: Vec<usize>,
}

impl Run {
    /// Reads a case.
    pub(crate) fn new(case: &Case) -> Outcome<Self> {
        let checkpoint = Checkpoint::from_bytes(case.text("config")?, vec![("the case's weights".into(), case.weights()?)])?;
        let mut model = CausalModel::new(&checkpoint)?;
        let (sizes, ids) = words(case, "in.input_ids")?;
        let &[batch, longest] = sizes else {
            return failed(format!("in.input_ids: expected (B, T), found {sizes:?}"));
        };
        if ids.is_empty() {
            return unsupported("sequences with a dimension of size 0");
        }
        let mask = match case.get("in.attention_mask") {
            None => vec![1; ids.len()],
            Some(_) => match words(case, "in.attention_mask")? {
                (other, values) if other == sizes => values,
                (other, _) => return failed(format!("in.attention_mask: expected {sizes:?}, found {other:?}")),
            },
        };
        let attended = Attended::of(&mask, [batch, longest])?;
        model.layer.attention.options.key_mask = attended.key_mask.is_some();
        let outputs = case.outputs().filter_map(|(name, _)| Some((name.to_owned(), output(name)?))).collect();
        let shape = BatchShape::padded(batch, longest);
        let mut run = Self { checkpoint, model, ids, attended, shape, outputs, texts: Vec::new() };
        for (name, _) in case.outputs() {
            if let Some(which) = name.strip_prefix("greedy_ids") {
                let texts = run.texts(case, name, which, &mask)?;
                run.texts.push(texts);
            }
        }
        Ok(run)
    }

    /// The texts of `greedy_ids`, of all rows, or of `greedy_ids_rowN`.
    fn texts(&self, case: &Case, name: &str, which: &str, mask: &[u32]) -> Outcome<Texts> {
        let (batch, prompt) = (self.shape.sequences, self.shape.longest_q);
        let first = match which.strip_prefix("_row").map(str::parse::<usize>) {
            None if which.is_empty() => Some(0),
            Some(Ok(row)) if row < batch => Some(row),
            _ => None,
        };
        let Some(first) = first else { return failed(format!("out.{name}: of which rows?")) };
        let (sizes, expected) = words(case, &format!("out.{name}"))?;
        let &[rows, length] = sizes else { return failed(format!("out.{name}: expected (rows, T), found {sizes:?}")) };
        if rows == 0 || rows > batch - first || length <= prompt {
            return failed(format!("out.{name}: {sizes:?} are no texts behind prompts of {prompt} tokens"));
        }
        let prompts = first * prompt..(first + rows) * prompt;
        if mask[prompts.clone()].contains(&0) {
            return unsupported("texts behind padded prompts");
        }
        let given = expected.chunks_exact(length).flat_map(|text| &text[..prompt]);
        if !given.eq(&self.ids[prompts]) {
            return failed(format!("out.{name}: the texts do not begin with the prompts"));
        }
        if expected.iter().any(|&id| id as usize >= self.model.embedding.vocabulary) {
            return failed(format!("out.{name}: a token outside the vocabulary"));
        }
        let new = |text: &[u32]| text[prompt..].to_vec();
        let made: Vec<u32> = expected.chunks_exact(length).flat_map(new).collect();
        let banned = ends(&self.checkpoint).into_iter().filter(|id| !made.contains(id)).collect();
        let mut texts = Texts { name: name.to_owned(), length, prompt, expected, banned, compared: Vec::new() };
        for text in texts.expected.chunks_exact(length) {
            let close = self.best(&texts, text)?.into_iter().position(|(_, margin)| margin <= CLOSE);
            texts.compared.push(close.map_or(length, |at| prompt + at));
        }
        Ok(texts)
    }

    /// For every new token of a text, the best one behind the tokens before it, and by how much, on the CPU reference in f64.
    fn best(&self, texts: &Texts, text: &[u32]) -> Outcome<Vec<(u32, f64)>> {
        let ids = &text[..texts.length - 1];
        let mut model = self.model.clone();
        model.layer.attention.options.key_mask = false;
        let host = model.host_weights::<f64>(&self.checkpoint, &[Output::Logits])?;
        let sequences = Sequences::packed(&[ids.len()])?;
        let inputs = CausalInputs { ids, sequences: &sequences, key_mask: None };
        let mut found = model.reference(&host.weights()?, &inputs, &[Output::Logits])?;
        let logits = found.remove("logits").unwrap_or_default();
        let best = |row: &[f64]| {
            let mut best = (0, f64::NEG_INFINITY);
            let mut second = f64::NEG_INFINITY;
            for (id, &logit) in (0u32..).zip(row).filter(|(id, _)| !texts.banned.contains(id)) {
                if logit > best.1 {
                    (best, second) = ((id, logit), best.1);
                } else {
                    second = second.max(logit);
                }
            }
            (best.0, best.1 - second)
        };
        Ok(logits.chunks_exact(model.embedding.vocabulary).skip(texts.prompt - 1).map(best).collect())
    }

    fn wanted(&self) -> Vec<Output> {
        self.outputs.iter().map(|(_, output)| *output).collect()
    }

    /// The new tokens of all texts (steps, rows), greedily, through prefill and step.
    fn generate(&self, session: &Session, texts: &Texts) -> Outcome<Vec<u32>> {
        let (gpu, kernels) = (session.gpu(), session.kernels());
        let mut model = self.model.clone();
        model.layer.attention.options.key_mask = false;
        let generator = model.generator();
        let (rows, steps, past) = (texts.compared.len(), texts.length - texts.prompt, texts.prompt - 1);
        let caches = GeneratorCaches::new(rows, texts.length);
        let inputs = GeneratorInputs { caches, storage: session.storage() };
        let step = generator.step(kernels, &inputs, &StepShape { bias: true, ..StepShape::new(rows, steps) })?;
        let mut bindings = gpu.upload_causal(&[&step], &self.checkpoint, &model, |_| {})?;
        gpu.allocate(&step, &mut bindings)?;
        let prompts = || texts.expected.chunks_exact(texts.length).map(|text| &text[..texts.prompt]);
        if past > 0 {
            let shape = PrefillShape { sequences: rows, rows: rows * past, longest: past, hidden: false };
            let prefill = generator.prefill(kernels, &inputs, &shape)?;
            let new: Vec<CachedRows> = (0..rows).map(|slot| CachedRows { slot, past: 0, new: past }).collect();
            let ids: Vec<u32> = prompts().flat_map(|prompt| prompt[..past].to_vec()).collect();
            let mut bindings = bindings.known_to(&prefill);
            bindings
                .set("ids", gpu.upload_u32(&[ids.len()], &ids)?)
                .set("sequences", gpu.upload_sequences(&caches.of_texts(&generator).sequences(&new)?)?);
            gpu.run(&prefill.bind(&bindings)?)?;
        }
        let row = |(slot, prompt): (usize, &[u32])| Some(DecodeRow { slot, past, id: prompt[past], memory: None });
        let state = caches.decode(&generator, &prompts().enumerate().map(row).collect::<Vec<_>>())?;
        let mut bias = vec![0.0; generator.embedding.vocabulary];
        for &id in &texts.banned {
            if let Some(bias) = bias.get_mut(id as usize) {
                *bias = f32::NEG_INFINITY;
            }
        }
        if let Some(view) = bindings.get("state") {
            gpu.write(view, bytes_of(state.words()).as_slice())?;
        }
        let sampling = gpu.upload_u32(&[rows, SAMPLING_WORDS], Sampling::words(&vec![Sampling::greedy(); rows]))?;
        bindings.set("sampling", sampling).set("bias", gpu.upload_floats(Element::F32, &[bias.len()], &bias)?);
        let plan = step.bind(&bindings.known_to(&step))?;
        let mut tokens = Vec::new();
        for chunk in gpu.decode(&plan, steps, tileformer::convenience::CHUNK_STEPS)? {
            tokens.extend(chunk?.tokens);
        }
        Ok(tokens)
    }

    /// Texts of these new tokens, one after another of each row. Behind what is compared the expected ones stand.
    fn with_texts(&self, results: &mut Results, mut new: impl FnMut(&Texts) -> Outcome<Vec<Vec<u32>>>) -> Outcome<()> {
        for texts in &self.texts {
            let mut ids = Vec::with_capacity(texts.expected.len());
            let made = new(texts)?;
            for ((text, &compared), new) in texts.expected.chunks_exact(texts.length).zip(&texts.compared).zip(&made) {
                let whole = text[..texts.prompt].iter().chain(new);
                ids.extend(whole.take(compared).chain(text.iter().skip(compared)).map(|&id| id as f32));
            }
            results.push((texts.name.clone(), Array::new(&[made.len(), texts.length], ids)?));
        }
        Ok(())
    }

    /// The outputs by their expected names, batch first.
    fn named(&self, mut take: impl FnMut(&str, &[usize]) -> Outcome<Array<f32>>) -> Outcome<Results> {
        let (batch, longest) = (self.shape.sequences, self.shape.longest_q);
        let named = |(name, output): &(String, Output)| {
            let sizes = match output {
                Output::Attention(_) => vec![batch, self.model.layer.attention.n_heads, longest, longest],
                Output::Logits => vec![batch, longest, self.model.embedding.vocabulary],
                _ => vec![batch, longest, self.model.embedding.d_model],
            };
            Ok((name.clone(), take(&output.name(), &sizes)?.reshape(&sizes)?))
        };
        self.outputs.iter().map(named).collect()
    }
}

impl Model for Run {
    fn on_gpu(&self, session: &Session) -> Outcome<Results> {
        let mut results = Vec::new();
        if !self.outputs.is_empty() {
            let inputs = Inputs::new(self.shape).with_storage(session.storage());
            let program = self.model.program(session.kernels(), &inputs, &self.wanted())?;
            let bindings = session.gpu().upload_causal(&[&program], &self.checkpoint, &self.model, |_| {})?;
            let mut feeds = vec![("ids", self.ids.clone()), ("sequences", self.attended.sequences.words().to_vec())];
            feeds.extend(self.attended.key_mask.as_ref().map(|mask| ("key_mask", mask.clone())));
            let mut written = session.run_model(&program, bindings, &feeds.into_iter().collect())?;
            results = self.named(|name, _| written.take(name))?;
        }
        self.with_texts(&mut results, |texts| {
            let (tokens, rows) = (self.generate(session, texts)?, texts.compared.len());
            Ok((0..rows).map(|row| tokens.iter().skip(row).step_by(rows).copied().collect()).collect())
        })?;
        Ok(results)
    }

    fn on_reference(&self) -> Outcome<Results> {
        let mut results = Vec::new();
        if !self.outputs.is_empty() {
            let wanted = self.wanted();
            let host = self.model.host_weights::<f32>(&self.checkpoint, &wanted)?;
            let Attended { sequences, key_mask } = &self.attended;
            let inputs = CausalInputs { ids: &self.ids, sequences, key_mask: key_mask.as_deref() };
            let mut found = self.model.reference(&host.weights()?, &inputs, &wanted)?;
            results = self.named(|name, sizes| Array::new(sizes, found.remove(name).unwrap_or_default()))?;
        }
        // The expected tokens are the past of each choice: as long as they agree, that is what a choice of its own would see.
        self.with_texts(&mut results, |texts| {
            let ids = |text: &[u32]| Ok(self.best(texts, text)?.into_iter().map(|(id, _)| id).collect());
            texts.expected.chunks_exact(texts.length).map(ids).collect()
        })?;
        Ok(results)
    }
}

/// Our output for an expected one.
fn output(name: &str) -> Option<Output> {
    let number = |prefix: &str| name.strip_prefix(prefix).and_then(|n| n.parse::<usize>().ok());
    match name {
        "logits" => Some(Output::Logits),
        _ => number("hidden_").map(Output::Hidden).or_else(|| number("attention_").map(Output::Attention)),
    }
}

/// The tokens that end a text: one, several or none.
fn ends(checkpoint: &Checkpoint) -> Vec<u32> {
    let id = |value: &serde_json::Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match checkpoint.config().get("eos_token_id") {
        Some(serde_json::Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
