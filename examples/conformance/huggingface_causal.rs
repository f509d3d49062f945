//! Causal language models: forward passes, and greedy texts through a generator's caches.

use tileformer::layers::{GeneratorInputs, Inputs, PrefillShape, StepShape};
use tileformer::models::Checkpoint;
use tileformer::models::causal::{CausalInputs, CausalModel, Output};
use tileformer::spec::cache::{CachedRows, DecodeRow};
use tileformer::spec::generator::GeneratorCaches;
use tileformer::{BatchShape, Sequences};

use super::case::Case;
use super::gpu::Session;
use super::greedy::{Choice, Texts, expect_plain, ids_of};
use super::host::Array;
use super::huggingface::{Attended, like_ids, words};
use super::judge::{Outcome, Results, failed, unsupported};

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
        let mask = like_ids(case, "in.attention_mask", [batch, longest], 1)?;
        let attended = Attended::of(&mask, [batch, longest])?;
        model.layer.attention.options.key_mask = attended.key_mask.is_some();
        let outputs = case.outputs().filter_map(|(name, _)| Some((name.to_owned(), output(name)?))).collect();
        let shape = BatchShape::padded(batch, longest);
        let mut run = Self { checkpoint, model, ids, attended, shape, outputs, texts: Vec::new() };
        case.expect_inputs(&["input_ids", "attention_mask"])?;
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
        expect_plain(&self.checkpoint)?;
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
        // The end token, unless a text goes on behind it.
        let banned = ends(&self.checkpoint).into_iter().filter(|id| !made.contains(id)).collect();
        let texts = Texts::new(name, [length, prompt], expected, banned);
        let choices = self.choices(&texts)?;
        Ok(texts.up_to_close(choices.iter().map(Vec::as_slice)))
    }

    /// What stands behind each prompt of the expected texts and each of their tokens, on the CPU reference in f64.
    fn choices(&self, texts: &Texts) -> Outcome<Vec<Vec<Choice>>> {
        let mut model = self.model.clone();
        model.layer.attention.options.key_mask = false;
        let host = model.host_weights::<f64>(&self.checkpoint, &[Output::Logits])?;
        let weights = host.weights()?;
        let sequences = Sequences::packed(&[texts.length - 1])?;
        let of_text = |text: &[u32]| {
            let inputs = CausalInputs { ids: &text[..texts.length - 1], sequences: &sequences, key_mask: None };
            let mut found = model.reference(&weights, &inputs, &[Output::Logits])?;
            let logits = found.remove("logits").unwrap_or_default();
            let rows = logits.chunks_exact(model.embedding.vocabulary).skip(texts.prompt - 1);
            Ok(rows.map(|row| Choice::of(row, &texts.banned)).collect())
        };
        texts.rows().map(of_text).collect()
    }

    /// Each of our outputs once: an expected one may have two names.
    fn wanted(&self) -> Vec<Output> {
        let mut wanted = Vec::new();
        for (_, output) in &self.outputs {
            if !wanted.contains(output) {
                wanted.push(*output);
            }
        }
        wanted
    }

    /// The new tokens of all texts (steps, rows), greedily, through prefill and step.
    async fn generate(&self, session: &Session, texts: &Texts) -> Outcome<Vec<u32>> {
        let (gpu, kernels) = (session.gpu(), session.kernels());
        let mut model = self.model.clone();
        model.layer.attention.options.key_mask = false;
        let generator = model.generator();
        let (rows, steps, past) = (texts.rows().len(), texts.length - texts.prompt, texts.prompt - 1);
        let caches = GeneratorCaches::new(rows, texts.length);
        let inputs = GeneratorInputs { caches, storage: session.storage() };
        let step = generator.step(kernels, &inputs, &StepShape { bias: true, ..StepShape::new(rows, steps) })?;
        let mut bindings = gpu.upload_causal(&[&step], &self.checkpoint, &model, |_| {})?;
        gpu.allocate(&step, &mut bindings)?;
        let prompts = || texts.rows().map(|text| &text[..texts.prompt]);
        if past > 0 {
            let shape = PrefillShape { sequences: rows, rows: rows * past, longest: past, hidden: false };
            let prefill = generator.prefill(kernels, &inputs, &shape)?;
            let new: Vec<CachedRows> = (0..rows).map(|slot| CachedRows { slot, past: 0, new: past }).collect();
            let ids: Vec<u32> = prompts().flat_map(|prompt| prompt[..past].to_vec()).collect();
            let mut bindings = bindings.known_to(&prefill);
            bindings
                .set("ids", gpu.upload_u32(&[ids.len()], &ids)?)
                .set("sequences", gpu.upload_sequences(&caches.of_texts(&generator).sequences(&new)?)?);
            gpu.run(&session.plan(&prefill, &bindings).await?)?;
        }
        let row = |(slot, prompt): (usize, &[u32])| Some(DecodeRow { slot, past, id: prompt[past], memory: None });
        let state = caches.decode(&generator, &prompts().enumerate().map(row).collect::<Vec<_>>())?;
        if let Some(view) = bindings.get("state") {
            gpu.write(view, bytes_of(state.words()).as_slice())?;
        }
        texts.bind(gpu, generator.embedding.vocabulary, &mut bindings)?;
        let plan = session.plan(&step, &bindings.known_to(&step)).await?;
        let mut tokens = Vec::new();
        let mut decoding = gpu.decode(&plan, steps, tileformer::convenience::CHUNK_STEPS)?;
        while let Some(chunk) = decoding.next_async().await {
            tokens.extend(chunk?.tokens);
        }
        Ok(tokens)
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

    pub(super) async fn on_gpu(&self, session: &Session) -> Outcome<Results> {
        let mut results = Vec::new();
        if !self.outputs.is_empty() {
            let inputs = Inputs::new(self.shape).with_storage(session.storage());
            let program = self.model.program(session.kernels(), &inputs, &self.wanted())?;
            let bindings = session.gpu().upload_causal(&[&program], &self.checkpoint, &self.model, |_| {})?;
            let mut feeds = vec![("ids", self.ids.clone()), ("sequences", self.attended.sequences.words().to_vec())];
            feeds.extend(self.attended.key_mask.as_ref().map(|mask| ("key_mask", mask.clone())));
            let written = session.run_model(&program, bindings, &feeds.into_iter().collect()).await?;
            results = self.named(|name, _| written.get(name))?;
        }
        for texts in &self.texts {
            let (tokens, rows) = (self.generate(session, texts).await?, texts.rows().len());
            let of_row = |row: usize| tokens.iter().skip(row).step_by(rows).copied().collect();
            results.push(texts.output(&(0..rows).map(of_row).collect::<Vec<_>>())?);
        }
        Ok(results)
    }

    pub(super) fn on_reference(&self) -> Outcome<Results> {
        let mut results = Vec::new();
        if !self.outputs.is_empty() {
            let wanted = self.wanted();
            let host = self.model.host_weights::<f32>(&self.checkpoint, &wanted)?;
            let Attended { sequences, key_mask } = &self.attended;
            let inputs = CausalInputs { ids: &self.ids, sequences, key_mask: key_mask.as_deref() };
            let found = self.model.reference(&host.weights()?, &inputs, &wanted)?;
            results = self.named(|name, sizes| Array::new(sizes, found.get(name).cloned().unwrap_or_default()))?;
        }
        // The expected tokens are the past of each choice: as long as they agree, that is what a choice of its own would see.
        for texts in &self.texts {
            results.push(texts.output(&ids_of(&self.choices(texts)?))?);
        }
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
