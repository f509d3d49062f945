//! From arguments to what is printed.

use std::fmt::Write as _;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use tileformer::convenience::{Gpu, Setup};
use tileformer::layers::Embedding;
use tileformer::models::Checkpoint;
use tileformer::models::seq2seq::Seq2Seq;
use tileformer::spec::beams::{BeamSearch, MAX_BEAMS};

use crate::cli::{self, Blocks, Failure};
use crate::cpu::Cpu;
use crate::sheet::{self, Part, Sheet};
use crate::text::Text;
use crate::translator::{Maps, Result as Translated, Size, Translator};

/// Texts of a batch, at most, and beams of all of them.
const BATCH: usize = 16;
const ROWS: usize = 32;

/// Writes a text for each text: its translation, its summary, or what else the model was trained for.
#[derive(Debug, Parser)]
#[command(name = "text_to_text")]
pub(crate) struct Args {
    /// The texts, for T5 with what is to be done in front; without any, the lines of --file or of standard input that are not blank
    texts: Vec<String>,
    /// Take the lines of this file
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    file: Option<PathBuf>,
    /// The model's folder: config.json of a Marian, BART, T5 or mT5, safetensors, and source.spm with vocab.json, or tokenizer.json
    #[arg(long, value_name = "DIR", default_value = ".")]
    model: PathBuf,
    /// Beams of a beam search; 1 takes the most probable token each time. As the model's settings say where it is left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_BEAMS as i64))]
    beams: Option<u32>,
    /// The most tokens of what is written
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    longest: u32,
    /// Store weights and rows in f16: half the memory
    #[arg(long, conflicts_with = "cpu")]
    f16: bool,
    /// Store the weights of projections in blocks of integers
    #[arg(long, value_name = "KIND", conflicts_with = "cpu")]
    weights: Option<Blocks>,
    /// Use the CPU reference even where there is an adapter
    #[arg(long)]
    cpu: bool,
    /// Use the adapter with this in its name, in any case
    #[arg(long, value_name = "NAME", conflicts_with = "cpu")]
    adapter: Option<String>,
    /// List the adapters and end
    #[arg(long)]
    list_adapters: bool,
    /// Draw the attention of every head of every layer, within the text and what is written for it and from one to the other: an SVG file for
    /// the first text, FILE-2.svg and so on for more
    #[arg(long, value_name = "FILE.svg")]
    attention: Option<PathBuf>,
}

/// Runs the program and gives its exit code. Nothing is written to `out` before everything is translated.
pub(crate) fn run(args: &Args, input: impl BufRead, out: &mut dyn Write, notices: &mut dyn Write) -> u8 {
    let result = if args.list_adapters { cli::list_adapters(notices) } else { translate(args, input, notices) };
    cli::finish(result, out, notices)
}

/// Where translations are made.
enum Engine<'a> {
    Gpu(Box<Translator<'a>>),
    Cpu(Cpu<'a>),
}

impl Engine<'_> {
    fn run(&mut self, sources: &[Vec<u32>]) -> Translated<Vec<Vec<u32>>> {
        match self {
            Self::Gpu(gpu) => gpu.run(sources),
            Self::Cpu(cpu) => cpu.run(sources),
        }
    }

    fn maps(&self, source: &[u32], target: &[u32]) -> Translated<Maps> {
        match self {
            Self::Gpu(gpu) => gpu.maps(source, target),
            Self::Cpu(cpu) => cpu.maps(source, target),
        }
    }
}

/// All that is to be printed.
fn translate(args: &Args, input: impl BufRead, notices: &mut dyn Write) -> Result<String, Failure> {
    let texts = cli::texts(&args.texts, args.file.as_deref(), input)?;
    if let Some(path) = &args.attention {
        cli::check_sheets(path, texts.len())?;
    }
    let start = Instant::now();
    if !args.model.is_dir() {
        return Err(Failure::Usage(format!("{}: no such folder; --model names one", args.model.display())));
    }
    let checkpoint = Checkpoint::open(&args.model)?;
    let model = Seq2Seq::new(&checkpoint)?;
    let search = search(args, &checkpoint, &model)?;
    let vocabulary = Text::open(&args.model)?;
    let positions = positions(&model.source);
    let mut sources = Vec::with_capacity(texts.len());
    for text in &texts {
        let mut ids = vocabulary.encode(text)?;
        tileformer::spec::check_ids("tokens", &ids, model.source.vocabulary)?;
        if ids.len() > positions {
            writeln!(notices, "notice: only the first {positions} tokens are read of: {text}")?;
            let end = ids.pop();
            ids.truncate(positions - 1);
            ids.extend(end);
        }
        sources.push(ids);
    }
    let gpu = open(args, notices)?;
    let batch = (ROWS / search.beams).clamp(1, BATCH);
    let mut engine = match &gpu {
        Some(gpu) => {
            let storing = cli::storing(args.f16, args.weights);
            let size = Size::of(&sources, batch);
            Engine::Gpu(Box::new(Translator::new(gpu, &checkpoint, &model, &search, size, storing)?))
        }
        None => Engine::Cpu(Cpu::new(&checkpoint, &model, &search)?),
    };
    let (prepared, start) = (start.elapsed(), Instant::now());
    let (mut printed, mut tokens, mut targets) = (String::new(), 0, Vec::with_capacity(sources.len()));
    for batch in sources.chunks(batch) {
        for mut target in engine.run(batch)? {
            let length = target.iter().position(|id| search.ends.contains(id)).unwrap_or(target.len());
            target.truncate(length);
            tokens += target.len();
            // Writing to a String cannot fail.
            let _ = writeln!(printed, "{}", vocabulary.decode(&target)?);
            targets.push(target);
        }
    }
    let (seconds, before) = (start.elapsed().as_secs_f64().max(1e-9), prepared.as_secs_f64() * 1e3);
    let (name, rate) = (gpu.as_ref().map_or("CPU reference", |gpu| &gpu.info.name), tokens as f64 / seconds);
    writeln!(
        notices,
        "{name}: {tokens} tokens in {:.1} ms, {rate:.0} per second (before that {before:.1} ms for tokens, device, weights, \
         pipelines and plans)",
        seconds * 1e3
    )?;
    if let Some(path) = &args.attention {
        for (i, (source, target)) in sources.iter_mut().zip(&mut targets).enumerate() {
            target.insert(0, search.start);
            for ids in [&mut *source, target] {
                if ids.len() > sheet::MOST_TOKENS {
                    writeln!(notices, "notice: a sheet shows the first {} of {} tokens", sheet::MOST_TOKENS, ids.len())?;
                    ids.truncate(sheet::MOST_TOKENS);
                }
            }
            cli::write_sheet(path, i, &draw(&engine, &model, &vocabulary, (source, target))?)?;
        }
    }
    Ok(printed)
}

/// What is looked for: as the model's settings say, or with as many beams as the arguments do.
fn search(args: &Args, checkpoint: &Checkpoint, model: &Seq2Seq) -> Result<BeamSearch, Failure> {
    let mut search = model.beam_search(checkpoint.generation_config())?;
    search.beams = args.beams.map_or(search.beams, |beams| beams as usize);
    search.returned = 1;
    // The padding token begins a target and is no part of it.
    search.banned.extend(model.tokens.padding.map(|id| vec![id]));
    search.max_length = (args.longest as usize).min(positions(&model.target)) + 1;
    Ok(search)
}

/// The most tokens of a text.
fn positions(embedding: &Embedding) -> usize {
    embedding.positions.map_or(usize::MAX, |rows| rows - embedding.first_position)
}

/// The GPU, unless the CPU is asked for or there is no adapter; of the latter a notice tells.
fn open(args: &Args, notices: &mut dyn Write) -> Result<Option<Gpu>, Failure> {
    if args.cpu {
        return Ok(None);
    }
    match Gpu::open(&Setup { adapter: args.adapter.clone(), ..Setup::default() }) {
        Ok(gpu) => Ok(Some(gpu)),
        Err(error) if args.adapter.is_some() => Err(error.into()),
        Err(error) => {
            writeln!(notices, "notice: running on the CPU reference: {error}")?;
            Ok(None)
        }
    }
}

/// The attention of a source and its target as a sheet.
fn draw(engine: &Engine<'_>, model: &Seq2Seq, vocabulary: &Text, (source, target): (&[u32], &[u32])) -> Translated<String> {
    let maps = engine.maps(source, target)?;
    let labels = |ids: &[u32]| ids.iter().map(|&id| vocabulary.piece(id)).collect::<Vec<_>>();
    let (from, to) = (labels(source), labels(target));
    let (own, other) = (&model.encoder.layer, &model.decoder.layer);
    let part = |name, n_heads, (from, to), layers| Part { name, from, to, second: &[], n_heads, layers };
    let parts = [
        part("encoder ", own.attention.n_heads, (&from[..], &from[..]), &maps.encoder[..]),
        part("decoder ", other.attention.n_heads, (&to, &to), &maps.decoder),
        part("decoder to source ", other.cross_attention.n_heads, (&to, &from), &maps.cross),
    ];
    let title = format!("{} → {}", vocabulary.decode(source)?, vocabulary.decode(target)?);
    sheet::svg(&Sheet { title: &title, parts: &parts })
}
