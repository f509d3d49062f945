//! A folder with a causal language model in it, and a text of it on the GPU.

use std::error::Error;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tileformer::convenience::Gpu;
use tileformer::layers::{GeneratorInputs, Inputs, PrefillShape, StepShape};
use tileformer::models::Checkpoint;
use tileformer::models::causal::{CausalModel, Output};
use tileformer::spec::SEQUENCE_WORDS;
use tileformer::spec::cache::{CachedRows, DecodeRow};
use tileformer::spec::generator::GeneratorCaches;
use tileformer::spec::sampling::{MAX_STOPS, SAMPLING_WORDS, Sampling, seen_words};
use tileformer::{BatchShape, Bindings, Element, Kernels, Plan, Sequences};
use tokenizers::tokenizer::DecodeStream;
use tokenizers::{DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

use crate::sheet::{self, Part, Sheet};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Ids to text, piece by piece.
pub(crate) type Stream<'a> =
    DecodeStream<'a, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// The most rows of a prompt that run at once.
const PREFILL_ROWS: usize = 512;

/// A model that is open, its weights not read yet.
pub(crate) struct Folder {
    checkpoint: Checkpoint,
    pub(crate) model: CausalModel,
    tokenizer: Tokenizer,
    /// The tokens that end a text.
    ends: Vec<u32>,
}

/// What is to be made.
pub(crate) struct Text<'a> {
    /// The prompt, one token at least.
    pub(crate) ids: &'a [u32],
    pub(crate) steps: usize,
    pub(crate) sampling: Sampling,
    /// Whether the end tokens are banned.
    pub(crate) endless: bool,
    /// Rows, and weights of projections.
    pub(crate) storing: [Element; 2],
}

/// A text whose prompt is in the caches.
pub(crate) struct Ready {
    kernels: Kernels,
    /// With positions for the whole text.
    model: CausalModel,
    storing: [Element; 2],
    bindings: Bindings,
    step: Plan,
    steps: usize,
    ends: Vec<u32>,
}

impl Folder {
    /// Opens a folder.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Err(format!("{}: no such folder; --model names another", path.display()).into());
        }
        let checkpoint = Checkpoint::open(path)?;
        let model = CausalModel::new(&checkpoint)?;
        let file = path.join("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        tokenizer.with_padding(None).with_truncation(None).map_err(|e| e.to_string())?;
        let ends = ids_of(checkpoint.config().get("eos_token_id"));
        if ends.len() > MAX_STOPS {
            return Err(format!("config.json: eos_token_id: at most {MAX_STOPS} tokens, found {}", ends.len()).into());
        }
        Ok(Self { checkpoint, model, tokenizer, ends })
    }

    /// Text to ids; a model's first token where there is no text.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(text, true).map_err(|e| format!("{text:?}: {e}"))?.get_ids().to_vec();
        if ids.is_empty() {
            ids = ids_of(self.checkpoint.config().get("bos_token_id"));
            ids.truncate(1);
        }
        if ids.is_empty() {
            return Err("there is no text, and the model has no token that begins one".into());
        }
        tileformer::spec::check_ids("tokenizer", &ids, self.model.embedding.vocabulary)?;
        Ok(ids)
    }

    /// What turns new ids into text, behind those of a prompt.
    pub(crate) fn stream(&self, prompt: &[u32]) -> Result<Stream<'_>> {
        let mut stream = self.tokenizer.decode_stream(true);
        for &id in prompt {
            stream.step(id).map_err(|e| e.to_string())?;
        }
        Ok(stream)
    }

    /// Puts weights on the device, with a bar on a terminal, and the prompt into caches that have room for the whole text.
    pub(crate) fn prepare(&self, gpu: &Gpu, text: &Text<'_>) -> Result<Ready> {
        let kernels = Kernels::new(&gpu.device, gpu.options())?;
        let capacity = text.ids.len() + text.steps;
        let model = self.model.clone().with_rotary_positions(capacity);
        let (generator, [rows, weights]) = (model.generator(), text.storing);
        let inputs = GeneratorInputs::new(GeneratorCaches::new(1, capacity), rows).with_weights(weights);
        let step = generator.step(&kernels, &inputs, &StepShape { bias: true, ..StepShape::new(1, text.steps) })?;
        let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("weights {bar:40} {bytes} of {total_bytes}")?);
        let mut bindings = gpu.upload_causal(&[&step], &self.checkpoint, &model, |loaded| {
            bar.set_length(loaded.total);
            bar.set_position(loaded.bytes);
        })?;
        bar.finish_and_clear();
        gpu.allocate(&step, &mut bindings)?;

        let past = text.ids.len() - 1;
        if past > 0 {
            let longest = past.min(PREFILL_ROWS);
            let shape = PrefillShape { sequences: 1, rows: longest, longest, hidden: false };
            let prefill = generator.prefill(&kernels, &inputs, &shape)?;
            let (ids, sequences) = (gpu.zeros(Element::U32, &[longest])?, gpu.zeros(Element::U32, &[1, SEQUENCE_WORDS])?);
            let mut bindings: Bindings = bindings.known_to(&prefill);
            bindings.set("ids", ids.clone()).set("sequences", sequences.clone());
            let plan = prefill.bind(&bindings)?;
            for (i, piece) in text.ids[..past].chunks(longest).enumerate() {
                let rows = CachedRows { slot: 0, past: i * longest, new: piece.len() };
                let mut words = piece.to_vec();
                words.resize(longest, 0);
                gpu.write(&ids, &bytes(&words))?;
                gpu.write(&sequences, &bytes(inputs.caches.of_texts(&generator).sequences(&[rows])?.words()))?;
                gpu.run(&plan)?;
            }
        }

        let vocabulary = generator.embedding.vocabulary;
        let (mut bias, mut seen) = (vec![0.0; vocabulary], vec![0u32; seen_words(vocabulary)]);
        let stops = if text.endless { &[][..] } else { &self.ends };
        if text.endless {
            for &end in &self.ends {
                if let Some(bias) = bias.get_mut(end as usize) {
                    *bias = f32::NEG_INFINITY;
                }
            }
        }
        for &id in text.ids {
            seen[id as usize / 32] |= 1 << (id % 32);
        }
        let row = DecodeRow { slot: 0, past, id: text.ids[past], memory: None };
        let state = inputs.caches.decode(&generator, &[Some(row)])?;
        for (name, words) in [("state", state.words()), ("seen", &seen)] {
            gpu.write(bindings.get(name).ok_or("the program lacks a state")?, &bytes(words))?;
        }
        let sampling = [text.sampling.with_stops(stops)?];
        bindings
            .set("sampling", gpu.upload_u32(&[1, SAMPLING_WORDS], Sampling::words(&sampling))?)
            .set("bias", gpu.upload_f32(&[vocabulary], &bias)?);
        let step = step.bind(&bindings.known_to(&step))?;
        let ends = stops.to_vec();
        Ok(Ready { kernels, model, storing: text.storing, bindings, step, steps: text.steps, ends })
    }

    /// The attention of a whole text as a sheet, by one forward pass over the same weights.
    pub(crate) fn draw(&self, gpu: &Gpu, ready: &Ready, ids: &[u32]) -> Result<String> {
        let outputs: Vec<Output> = (0..ready.model.n_layers).map(Output::Attention).collect();
        let [rows, weights] = ready.storing;
        let inputs = Inputs::new(BatchShape::padded(1, ids.len())).with_storage(rows).with_weights(weights);
        let program = ready.model.program(&ready.kernels, &inputs, &outputs)?;
        let mut bindings = ready.bindings.known_to(&program);
        bindings
            .set("ids", gpu.upload_u32(&[ids.len()], ids)?)
            .set("sequences", gpu.upload_sequences(&Sequences::packed(&[ids.len()])?)?);
        gpu.allocate(&program, &mut bindings)?;
        gpu.run(&program.bind(&bindings)?)?;
        let mut layers = Vec::new();
        for output in &outputs {
            layers.push(gpu.read_f32(bindings.get(&output.name()).ok_or("the program lacks an output")?)?);
        }
        let text = |ids: &[u32]| self.tokenizer.decode(ids, false).map_err(|e| e.to_string());
        let tokens = ids.iter().map(|&id| Ok(text(&[id])?.trim().to_owned())).collect::<Result<Vec<_>>>()?;
        let n_heads = ready.model.layer.attention.n_heads;
        let part = Part { name: "", from: &tokens, to: &tokens, second: &[], n_heads, layers: &layers };
        sheet::svg(&Sheet { title: &text(ids)?, parts: &[part] })
    }
}

impl Ready {
    /// New tokens in pieces of `chunk`, up to an end token, which is left out.
    pub(crate) fn decode<'a>(&'a self, gpu: &'a Gpu, chunk: usize) -> Result<impl Iterator<Item = Result<Vec<u32>>> + 'a> {
        let mut chunks = gpu.decode(&self.step, self.steps, chunk)?;
        let mut ended = false;
        Ok(std::iter::from_fn(move || {
            let chunk = if ended { None } else { chunks.next() }?;
            Some(chunk.map_err(Into::into).map(|chunk| {
                let tokens: Vec<u32> = chunk.tokens.iter().copied().take_while(|id| !self.ends.contains(id)).collect();
                ended = tokens.len() < chunk.tokens.len();
                tokens
            }))
        }))
    }
}

/// The ids of an option: one, several or none.
fn ids_of(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
