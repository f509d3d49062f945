//! From arguments to what is printed.

#[path = "../shared/program.rs"]
mod program;

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use program::{Failure, finish, list_adapters};
use tileformer::convenience::{Gpu, Setup};

use crate::cpu::Cpu;
use crate::engine::{self, Engine};
use crate::gpu::OnGpu;
use crate::model::{DATES, Model};
use crate::plot::{self, Sheet};
use crate::text::{Line, TargetVocabulary, argument_lines, read_lines};

/// The most sheets that one run draws.
const MOST_SHEETS: usize = 100;
/// The most lines that are complained about.
const MOST_COMPLAINTS: usize = 10;

/// Translates dates in English to ISO dates on the GPU: `the 3rd of May, 1979` to `1979-05-03`.
#[derive(Debug, Parser)]
#[command(name = "translate")]
pub(crate) struct Args {
    /// What to translate; without any, the lines of standard input that are not blank. They run as one batch, or as batches of 256
    texts: Vec<String>,
    /// Draw the cross-attention of every head of every decoder layer: an SVG file for the first text, FILE-2.svg and so on for more
    #[arg(long, value_name = "FILE.svg")]
    attention: Option<PathBuf>,
    /// Use the CPU reference even where there is an adapter
    #[arg(long)]
    cpu: bool,
    /// Use the adapter with this in its name, in any case
    #[arg(long, value_name = "NAME", conflicts_with = "cpu")]
    adapter: Option<String>,
    /// List the adapters and end
    #[arg(long)]
    list_adapters: bool,
    /// Another model than the one in this program, as train.py writes it
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

/// Runs the program and gives its exit code. Nothing is written to `out` before everything is translated and drawn.
pub(crate) fn run(args: &Args, input: impl BufRead, out: &mut dyn Write, notices: &mut dyn Write) -> u8 {
    finish(translate(args, input, notices), out, notices)
}

/// All that is to be printed.
fn translate(args: &Args, input: impl BufRead, notices: &mut dyn Write) -> Result<String, Failure> {
    if args.list_adapters {
        return list_adapters(notices);
    }
    let start = Instant::now();
    let model = read_model(args.model.as_deref())?;
    let lines = match args.texts.is_empty() {
        true => read_lines(input).map_err(|e| Failure::Usage(e.to_string()))?,
        false => argument_lines(&args.texts),
    };
    let sources = encode(&model, &lines)?;
    if let Some(path) = &args.attention {
        check_sheets(path, lines.len())?;
    }

    let mut engine = choose_engine(args, &model, notices)?;
    engine.prepare(&sources)?;
    let prepared = start.elapsed();
    let start = Instant::now();
    let produced = engine.translate(&sources)?;
    let elapsed = start.elapsed();

    let translations: Vec<String> = produced.iter().map(|ids| model.target.decode(ids)).collect();
    if let Some(path) = &args.attention {
        for (i, (line, (source, produced))) in lines.iter().zip(sources.iter().zip(&produced)).enumerate() {
            let path = numbered(path, i);
            let svg = draw(&model, engine.as_mut(), &line.text, source, produced)?;
            fs::write(&path, svg).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    let mut text = String::new();
    for (line, translation) in lines.iter().zip(&translations) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} → {translation}", line.text);
    }
    let tokens = produced.iter().map(Vec::len).sum();
    Ok(text + &summary(engine.name(), lines.len(), tokens, elapsed, prepared))
}

/// The lines as ids, or what is wrong with those that cannot be.
fn encode(model: &Model, lines: &[Line]) -> Result<Vec<Vec<u32>>, Failure> {
    if lines.is_empty() {
        return Err(Failure::Usage("there is nothing to translate: no argument, and no line that is not blank".into()));
    }
    let (mut sources, mut errors) = (Vec::new(), Vec::new());
    for line in lines {
        match model.source.encode(line) {
            Ok(ids) => sources.push(ids),
            Err(error) => errors.push(error.to_string()),
        }
    }
    if errors.is_empty() {
        return Ok(sources);
    }
    let more = errors.len().saturating_sub(MOST_COMPLAINTS);
    errors.truncate(MOST_COMPLAINTS);
    if more > 0 {
        errors.push(format!("and {more} more lines"));
    }
    Err(Failure::Usage(errors.join("\n")))
}

fn read_model(path: Option<&Path>) -> Result<Model, Failure> {
    let Some(path) = path else { return Ok(Model::parse(DATES)?) };
    let in_file = |error: Box<dyn Error>| format!("{}: {error}", path.display());
    let bytes = fs::read(path).map_err(|e| in_file(e.into()))?;
    Ok(Model::parse(&bytes).map_err(in_file)?)
}

/// The GPU, unless the CPU is asked for or there is no adapter; of the latter a notice tells.
fn choose_engine<'a>(args: &Args, model: &'a Model, notices: &mut dyn Write) -> Result<Box<dyn Engine + 'a>, Failure> {
    if args.cpu {
        return Ok(Box::new(Cpu::new(model)?));
    }
    match Gpu::open(&Setup { adapter: args.adapter.clone(), ..Setup::default() }) {
        Ok(gpu) => Ok(Box::new(OnGpu::new(gpu, model)?)),
        Err(error) if args.adapter.is_some() => Err(error.into()),
        Err(error) => {
            writeln!(notices, "notice: translating on the CPU reference: {error}")?;
            Ok(Box::new(Cpu::new(model)?))
        }
    }
}

/// Refuses files that cannot be drawn, before anything is translated.
fn check_sheets(path: &Path, sheets: usize) -> Result<(), Failure> {
    if path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("svg")) {
        return Err(Failure::Usage(format!("{}: attention is drawn as SVG, to a file that ends in .svg", path.display())));
    }
    if sheets > MOST_SHEETS {
        return Err(Failure::Usage(format!(
            "--attention draws a sheet for each text, {MOST_SHEETS} at most; there are {sheets}"
        )));
    }
    Ok(())
}

/// The path of sheet number `i`: FILE.svg, FILE-2.svg, FILE-3.svg, …
fn numbered(path: &Path, i: usize) -> PathBuf {
    if i == 0 {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{}.svg", i + 1));
    path.with_file_name(name)
}

/// The sheet of one text and its translation, as SVG.
pub(crate) fn draw(
    model: &Model,
    engine: &mut dyn Engine,
    text: &str,
    source: &[u32],
    produced: &[u32],
) -> engine::Result<String> {
    // Row t of the decoder reads token t and writes token t + 1.
    let mut target = vec![TargetVocabulary::BOS];
    target.extend(&produced[..produced.len().saturating_sub(1)]);
    let trace = engine.trace(source, &target)?;
    plot::svg(&Sheet {
        source: text.chars().map(String::from).collect(),
        produced: produced.iter().map(|&id| model.target.token(id).to_owned()).collect(),
        title: format!("{text} → {}", model.target.decode(produced)),
        least_certain: trace.least_certain(produced),
        n_heads: model.config.n_heads,
        layers: &trace.cross_attention,
    })
}

/// Where it ran and how long it took.
fn summary(name: String, lines: usize, tokens: usize, elapsed: Duration, prepared: Duration) -> String {
    let milliseconds = |d: Duration| d.as_secs_f64() * 1e3;
    let rate = tokens as f64 / elapsed.as_secs_f64().max(1e-9);
    let (ms, before) = (milliseconds(elapsed), milliseconds(prepared));
    let lines = if lines == 1 { "1 line".into() } else { format!("{lines} lines") };
    format!(
        "\n{name}: {lines}, {tokens} tokens in {ms:.1} ms, {rate:.0} tokens per second\n\
         (from source ids to target ids on the host; before that {before:.1} ms for device, weights, pipelines and plans)\n"
    )
}
