//! Models from one text to another: forward passes, and greedy texts through a generator's caches.

use tileformer::convenience::CHUNK_STEPS;
use tileformer::layers::{GeneratorInputs, Inputs, StepShape};
use tileformer::models::Checkpoint;
use tileformer::models::seq2seq::{Output, Seq2Seq, Seq2SeqInputs, Tokens};
use tileformer::spec::cache::{CachedRows, DecodeRow};
use tileformer::spec::generator::GeneratorCaches;
use tileformer::{BatchShape, Bindings, Program, Sequences};

use super::case::Case;
use super::gpu::Session;
use super::greedy::{Choice, Texts, banned, bytes_of, expect_plain, ids_of};
use super::host::Array;
use super::huggingface::{Attended, BLIND_ROWS, checkpoint, configured, like_ids, words};
use super::judge::{Outcome, Results, failed, unsupported};

/// The name of the expected texts.
const TEXTS: &str = "greedy_ids";

/// A model with its inputs, ready to be run anywhere.
pub(crate) struct Run {
    checkpoint: Checkpoint,
    model: Seq2Seq,
    /// (B · S)
    source_ids: Vec<u32>,
    attended: Attended,
    /// (B · T); none where texts are all that is expected.
    target_ids: Vec<u32>,
    shape: BatchShape,
    /// Each expected output's name, and ours.
    outputs: Vec<(String, Output)>,
    texts: Option<Texts>,
}

impl Run {
    /// Reads a case.
    pub(crate) fn new(case: &Case) -> Outcome<Self> {
        let checkpoint = checkpoint(case)?;
        let mut model = configured(Seq2Seq::new(&checkpoint))?;
        case.expect_inputs(&["input_ids", "attention_mask", "decoder_input_ids"])?;
        let (sizes, source_ids) = matrix(case, "in.input_ids")?;
        let [batch, longest] = sizes;
        let mask = like_ids(case, "in.attention_mask", sizes, 1)?;
        let attended = Attended::of(&mask, sizes)?;
        if attended.some_have_none {
            return unsupported(BLIND_ROWS);
        }
        let is_masked = attended.key_mask.is_some();
        model.encoder.layer.attention.options.key_mask = is_masked;
        model.decoder.layer.cross_attention.options.key_mask = is_masked;
        let (targets, target_ids) = match case.get("in.decoder_input_ids") {
            None => (1, Vec::new()),
            Some(_) => match matrix(case, "in.decoder_input_ids")? {
                ([rows, targets], ids) if rows == batch => (targets, ids),
                (other, _) => return failed(format!("in.decoder_input_ids: expected {batch} rows, found {other:?}")),
            },
        };
        let layers = [model.encoder.n_layers, model.decoder.n_layers];
        let outputs = case.outputs().filter_map(|(name, _)| Some((name.to_owned(), output(name, layers)?))).collect();
        let shape = BatchShape::cross(batch, targets, longest);
        let mut run = Self { checkpoint, model, source_ids, attended, target_ids, shape, outputs, texts: None };
        if case.outputs().any(|(name, _)| name == TEXTS) {
            if is_masked {
                return unsupported("greedy texts of sources that a mask has holes in");
            }
            run.texts = Some(run.read_texts(case)?);
        }
        Ok(run)
    }

    fn read_texts(&self, case: &Case) -> Outcome<Texts> {
        expect_plain(&self.checkpoint)?;
        let name = format!("out.{TEXTS}");
        let ([rows, length], expected) = matrix(case, &name)?;
        let Some(start) = self.model.tokens.start else { return failed("config.json: no decoder_start_token_id") };
        if rows != self.shape.sequences || length < 2 {
            return failed(format!("{name}: [{rows}, {length}] are no texts of {} sources", self.shape.sequences));
        }
        if expected.iter().step_by(length).any(|&id| id != start) {
            return failed(format!("{name}: a text that does not begin with {start}"));
        }
        let mut banned = banned(&self.checkpoint)?;
        banned.extend(self.model.tokens.end);
        let texts = Texts::new(TEXTS, [length, 1], expected, banned);
        let choices = self.choices(&texts)?;
        Ok(texts.up_to_close(choices.iter().map(Vec::as_slice)))
    }

    /// What stands behind each token of the expected texts, on the CPU reference in f64.
    fn choices(&self, texts: &Texts) -> Outcome<Vec<Vec<Choice>>> {
        let (rows, longest) = (self.shape.sequences, texts.length - 1);
        let target_ids: Vec<u32> = texts.rows().flat_map(|text| &text[..longest]).copied().collect();
        let target = Sequences::padded(&vec![longest; rows], longest)?;
        let host = self.model.host_weights::<f64>(&self.checkpoint, &[Output::Logits])?;
        let found = self.model.reference(&host.weights()?, &self.inputs(&target_ids, &target), &[Output::Logits])?;
        let Some(logits) = found.get("logits") else { return failed("no logits") };
        let Tokens { forced_first, forced_last, .. } = self.model.tokens;
        let choice = |(at, row): (usize, &[f64])| {
            let last = forced_last.filter(|_| at % longest + 1 == longest);
            match last.or(forced_first.filter(|_| at % longest == 0)) {
                Some(id) => Choice { id, margin: f64::INFINITY },
                None => Choice::of(row, &texts.banned),
            }
        };
        let all: Vec<_> = logits.chunks_exact(self.model.target.vocabulary).enumerate().map(choice).collect();
        Ok(all.chunks_exact(longest).map(<[_]>::to_vec).collect())
    }

    /// What the reference reads, with these targets.
    fn inputs<'a>(&'a self, target_ids: &'a [u32], target: &'a Sequences) -> Seq2SeqInputs<'a> {
        let Attended { sequences, key_mask, .. } = &self.attended;
        Seq2SeqInputs { source_ids: &self.source_ids, source: sequences, target_ids, target, key_mask: key_mask.as_deref() }
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

    /// The targets' sequences, which the case pads to one length.
    fn targets(&self) -> Outcome<Sequences> {
        let BatchShape { sequences, longest_q, .. } = self.shape;
        Ok(Sequences::padded(&vec![longest_q; sequences], longest_q)?)
    }

    fn upload(&self, session: &Session, programs: &[&Program]) -> Outcome<Bindings> {
        Ok(session.gpu().upload_checkpoint(programs, &self.checkpoint, &self.model.weights()?, |_| {})?)
    }

    /// The tokens behind the start of every text (B, length − 1), greedily, through encode, remember and step.
    async fn generate(&self, session: &Session, texts: &Texts) -> Outcome<Vec<Vec<u32>>> {
        let (gpu, kernels, generator) = (session.gpu(), session.kernels(), self.model.generator());
        let BatchShape { sequences: rows, k_rows, longest_k, .. } = self.shape;
        let tokens = self.model.tokens;
        let steps = texts.length - 1 - usize::from(tokens.forced_last.is_some());
        let caches = GeneratorCaches::new(rows, texts.length).with_memory(longest_k);
        let inputs = GeneratorInputs::new(caches, session.storage());
        let source = BatchShape::padded(rows, longest_k);
        let encode = self.model.encode(kernels, &Inputs::new(source).with_storage(session.storage()))?;
        let remember = generator.remember(kernels, &inputs, rows, k_rows)?;
        let step = generator.step(kernels, &inputs, &StepShape { bias: true, ..StepShape::new(rows, steps.max(1)) })?;
        let programs = [&encode, &remember, &step];
        let mut bindings = self.upload(session, &programs)?;
        programs.iter().try_for_each(|program| gpu.allocate(program, &mut bindings))?;

        let Some(memory) = caches.of_memory(&generator) else { return failed("a decoder without cross-attention") };
        let lengths: Vec<usize> = self.attended.sequences.as_slice().iter().map(|s| s.k_len as usize).collect();
        let slots = lengths.iter().enumerate();
        let slot = |(slot, &new): (usize, &usize)| memory.sequence(slot * longest_k, &CachedRows { slot, past: 0, new });
        let slots = Sequences::new(slots.map(slot).collect::<tileformer::Result<_>>()?)?;
        let state = |past: usize, id: u32| {
            let row = |slot: usize| Some(DecodeRow { slot, past, id, memory: Some((slot, lengths[slot])) });
            caches.decode(&generator, &(0..rows).map(row).collect::<Vec<_>>())
        };
        let first = state(0, tokens.start.unwrap_or(0))?;
        let state_sizes = [first.words().len() / 8, 8];
        bindings
            .set("source.ids", gpu.upload_u32(&[k_rows], &self.source_ids)?)
            .set("source.sequences", gpu.upload_sequences(&self.attended.sequences)?)
            .set("memory_sequences", gpu.upload_sequences(&slots)?)
            .set("state", gpu.upload_u32(&state_sizes, first.words())?);
        texts.bind(gpu, generator.embedding.vocabulary, &mut bindings)?;
        for program in [&encode, &remember] {
            gpu.run(&session.plan(program, &bindings.known_to(program)).await?)?;
        }
        let plan = session.plan(&step, &bindings.known_to(&step)).await?;
        let forced_first = tokens.forced_first.filter(|_| steps > 0);
        if let (Some(id), Some(view)) = (forced_first, bindings.get("state")) {
            // The step over the start token leaves its keys and values; what it chooses is not looked at.
            gpu.run(&plan)?;
            gpu.write(view, bytes_of(state(1, id)?.words()).as_slice())?;
        }
        let mut made = vec![Vec::from_iter(forced_first); rows];
        let mut decoding = gpu.decode(&plan, steps - usize::from(forced_first.is_some()), CHUNK_STEPS)?;
        while let Some(chunk) = decoding.next_async().await {
            for ids in chunk?.tokens.chunks_exact(rows) {
                made.iter_mut().zip(ids).for_each(|(text, &id)| text.push(id));
            }
        }
        made.iter_mut().for_each(|text| text.extend(tokens.forced_last));
        Ok(made)
    }

    /// The outputs by their expected names, batch first.
    fn named(&self, mut take: impl FnMut(&str, &[usize]) -> Outcome<Array<f32>>) -> Outcome<Results> {
        let BatchShape { sequences, longest_q, longest_k, .. } = self.shape;
        let (encoder, decoder) = (&self.model.encoder.layer, &self.model.decoder.layer);
        let named = |(name, output): &(String, Output)| {
            let sizes = match output {
                Output::EncoderHidden(_) => vec![sequences, longest_k, self.model.source.d_model],
                Output::EncoderAttention(_) => vec![sequences, encoder.attention.n_heads, longest_k, longest_k],
                Output::DecoderAttention(_) => vec![sequences, decoder.attention.n_heads, longest_q, longest_q],
                Output::CrossAttention(_) => vec![sequences, decoder.cross_attention.n_heads, longest_q, longest_k],
                Output::Logits => vec![sequences, longest_q, self.model.target.vocabulary],
                _ => vec![sequences, longest_q, self.model.target.d_model],
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
            let (source, target) = (&self.attended.sequences, self.targets()?);
            let mut feeds = vec![
                ("source.ids", self.source_ids.clone()),
                ("source.sequences", source.words().to_vec()),
                ("target.ids", self.target_ids.clone()),
                ("target.sequences", target.words().to_vec()),
                ("cross.sequences", target.over(source)?.words().to_vec()),
            ];
            let masks = ["source.key_mask", "cross.key_mask"];
            feeds.extend(self.attended.key_mask.iter().flat_map(|mask| masks.map(|name| (name, mask.clone()))));
            let bindings = self.upload(session, &[&program])?;
            let written = session.run_model(&program, bindings, &feeds.into_iter().collect()).await?;
            results = self.named(|name, _| written.get(name))?;
        }
        if let Some(texts) = &self.texts {
            results.push(texts.output(&self.generate(session, texts).await?)?);
        }
        Ok(results)
    }

    pub(super) fn on_reference(&self) -> Outcome<Results> {
        let mut results = Vec::new();
        if !self.outputs.is_empty() {
            let wanted = self.wanted();
            let host = self.model.host_weights::<f32>(&self.checkpoint, &wanted)?;
            let target = self.targets()?;
            let found = self.model.reference(&host.weights()?, &self.inputs(&self.target_ids, &target), &wanted)?;
            results = self.named(|name, sizes| Array::new(sizes, found.get(name).cloned().unwrap_or_default()))?;
        }
        // The expected tokens are the past of each choice: as long as they agree, that is what a choice of its own would see.
        if let Some(texts) = &self.texts {
            results.push(texts.output(&ids_of(&self.choices(texts)?))?);
        }
        Ok(results)
    }
}

/// Our output for an expected one.
fn output(name: &str, [encoder_layers, decoder_layers]: [usize; 2]) -> Option<Output> {
    let number = |prefix: &str| name.strip_prefix(prefix).and_then(|n| n.parse::<usize>().ok());
    match name {
        "logits" => Some(Output::Logits),
        "last_hidden" => Some(Output::DecoderHidden(decoder_layers)),
        "encoder_last_hidden" => Some(Output::EncoderHidden(encoder_layers)),
        _ => number("encoder_hidden_")
            .map(Output::EncoderHidden)
            .or_else(|| number("encoder_attention_").map(Output::EncoderAttention))
            .or_else(|| number("decoder_hidden_").map(Output::DecoderHidden))
            .or_else(|| number("decoder_attention_").map(Output::DecoderAttention))
            .or_else(|| number("cross_attention_").map(Output::CrossAttention)),
    }
}

/// Integers of two dimensions, neither of size 0.
fn matrix(case: &Case, name: &str) -> Outcome<([usize; 2], Vec<u32>)> {
    match words(case, name)? {
        (&[rows, columns], values) if rows > 0 && columns > 0 => Ok(([rows, columns], values)),
        (&[_, _], _) => unsupported("sequences with a dimension of size 0"),
        (sizes, _) => failed(format!("{name}: expected two dimensions, found {sizes:?}")),
    }
}
