//! Causal language models: forward passes, and greedy texts through a generator's caches.

use tileformer::layers::{GeneratorInputs, Inputs, PrefillShape, StepShape};
use tileformer::models::Checkpoint;
use tileformer::models::causal::{CausalInputs, CausalModel, Output};
use tileformer::spec::cache::{CachedRows, DecodeRow};
use tileformer::spec::generator::GeneratorCaches;
use tileformer::{BatchShape, Sequences};

use super::case::Case;
use super::gpu::Session;
use super::greedy::{Choice, Texts, banned, bytes_of, expect_plain, ids_of, tokens};
use super::host::Array;
use super::huggingface::{Attended, BLIND_ROWS, checkpoint, configured, like_ids, words};
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
    texts: Vec<Continued>,
}

/// An output of texts: of all at once, or each by itself where padding stands in front of some.
struct Continued {
    name: String,
    /// (rows, T)
    sizes: [usize; 2],
    /// The tokens in front of the prompts, and the texts without them.
    parts: Vec<(Vec<u32>, Texts)>,
}

impl Continued {
    /// The output with what was made of each part: its new tokens row by row.
    fn output(&self, made: &[Vec<Vec<u32>>]) -> Outcome<(String, Array<f32>)> {
        let mut ids = Vec::new();
        for ((padding, texts), made) in self.parts.iter().zip(made) {
            let (_, found) = texts.output(made)?;
            for text in found.values().chunks_exact(texts.length) {
                ids.extend(padding.iter().map(|&id| id as f32).chain(text.iter().copied()));
            }
        }
        Ok((self.name.clone(), Array::new(&self.sizes, ids)?))
    }
}

impl Run {
    /// Reads a case.
    pub(crate) fn new(case: &Case) -> Outcome<Self> {
        let checkpoint = checkpoint(case)?;
        let mut model = configured(CausalModel::new(&checkpoint))?;
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
        let layers = model.n_layers;
        let outputs: Vec<_> =
            case.outputs().filter_map(|(name, _)| Some((name.to_owned(), output(name, layers)?))).collect();
        if attended.some_begin_hidden && !outputs.is_empty() {
            return unsupported(BLIND_ROWS);
        }
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
    fn texts(&self, case: &Case, name: &str, which: &str, mask: &[u32]) -> Outcome<Continued> {
        expect_plain(&self.checkpoint)?;
        let (batch, prompt) = (self.shape.sequences, self.shape.longest_q);
        for (key, counts) in [("forced_eos_token_id", true), ("forced_bos_token_id", prompt == 1)] {
            if counts && !tokens(&self.checkpoint, key)?.is_empty() {
                return unsupported(format!("texts with {key}"));
            }
        }
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
        let given = expected.chunks_exact(length).flat_map(|text| &text[..prompt]);
        if !given.eq(&self.ids[prompts.clone()]) {
            return failed(format!("out.{name}: the texts do not begin with the prompts"));
        }
        if expected.iter().any(|&id| id as usize >= self.model.embedding.vocabulary) {
            return failed(format!("out.{name}: a token outside the vocabulary"));
        }
        let new = |text: &[u32]| text[prompt..].to_vec();
        let made: Vec<u32> = expected.chunks_exact(length).flat_map(new).collect();
        // The end tokens, unless a text goes on behind one.
        let ends = tokens(&self.checkpoint, "eos_token_id")?;
        let mut banned = banned(&self.checkpoint)?;
        banned.extend(ends.into_iter().filter(|id| !made.contains(id)));
        // Padding in front counts for nothing, not even for positions.
        let hidden = |row: &[u32]| row.iter().take_while(|&&m| m == 0).count();
        let padding: Vec<usize> = mask[prompts.clone()].chunks_exact(prompt).map(hidden).collect();
        if std::iter::zip(mask[prompts].chunks_exact(prompt), &padding).any(|(row, &n)| n == prompt || row[n..].contains(&0))
        {
            return unsupported("texts behind prompts with padding at their ends, or of nothing else");
        }
        let together = if padding.iter().all(|&n| n == 0) { rows } else { 1 };
        let mut parts = Vec::new();
        for (texts, padding) in expected.chunks_exact(together * length).zip(padding) {
            let (padding, kept) = texts.split_at(padding);
            let length = length - padding.len();
            let texts = Texts::new(name, [length, prompt - padding.len()], kept.to_vec(), banned.clone());
            let choices = self.choices(&texts)?;
            parts.push((padding.to_vec(), texts.up_to_close(choices.iter().map(Vec::as_slice))));
        }
        Ok(Continued { name: name.to_owned(), sizes: [rows, length], parts })
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
        let inputs = GeneratorInputs::new(caches, session.storage());
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
        for continued in &self.texts {
            let mut made = Vec::new();
            for (_, texts) in &continued.parts {
                let (tokens, rows) = (self.generate(session, texts).await?, texts.rows().len());
                let of_row = |row: usize| tokens.iter().skip(row).step_by(rows).copied().collect();
                made.push((0..rows).map(of_row).collect());
            }
            results.push(continued.output(&made)?);
        }
        Ok(results)
    }

    pub(super) fn on_reference(&self) -> Outcome<Results> {
        let mut results = Vec::new();
        if !self.outputs.is_empty() {
            let wanted = self.wanted();
            let host = self.model.host_weights::<f32>(&self.checkpoint, &wanted)?;
            let Attended { sequences, key_mask, .. } = &self.attended;
            let inputs = CausalInputs { ids: &self.ids, sequences, key_mask: key_mask.as_deref() };
            let found = self.model.reference(&host.weights()?, &inputs, &wanted)?;
            results = self.named(|name, sizes| Array::new(sizes, found.get(name).cloned().unwrap_or_default()))?;
        }
        // The expected tokens are the past of each choice: as long as they agree, that is what a choice of its own would see.
        for continued in &self.texts {
            let made = |(_, texts): &(Vec<u32>, Texts)| Ok(ids_of(&self.choices(texts)?));
            results.push(continued.output(&continued.parts.iter().map(made).collect::<Outcome<Vec<_>>>()?)?);
        }
        Ok(results)
    }
}

/// Our output for an expected one.
fn output(name: &str, layers: usize) -> Option<Output> {
    let number = |prefix: &str| name.strip_prefix(prefix).and_then(|n| n.parse::<usize>().ok());
    match name {
        "logits" => Some(Output::Logits),
        "last_hidden" => Some(Output::Hidden(layers)),
        _ => number("hidden_").map(Output::Hidden).or_else(|| number("attention_").map(Output::Attention)),
    }
}
