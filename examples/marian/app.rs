//! From arguments to what is printed.

use std::fmt::Write as _;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use tileformer::Element;
use tileformer::convenience::{Gpu, Setup};
use tileformer::models::Checkpoint;
use tileformer::models::seq2seq::Seq2Seq;

use crate::cli::{self, Failure};
use crate::pieces::Pieces;
use crate::translator::{Size, Translator};

/// Texts of a batch.
const BATCH: usize = 16;

/// Translates texts.
#[derive(Debug, Parser)]
#[command(name = "marian")]
pub(crate) struct Args {
    /// What to translate; without any, the lines of --file or of standard input that are not blank
    texts: Vec<String>,
    /// Take the lines of this file
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    file: Option<PathBuf>,
    /// The model's folder: config.json, safetensors, source.spm and vocab.json
    #[arg(long, value_name = "DIR", default_value = ".")]
    model: PathBuf,
    /// The most tokens of a translation
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    longest: u32,
    /// Store weights and rows in f16: half the memory
    #[arg(long)]
    f16: bool,
    /// Use the adapter with this in its name, in any case
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// List the adapters and end
    #[arg(long)]
    list_adapters: bool,
}

/// Runs the program and gives its exit code. Nothing is written to `out` before everything is translated.
pub(crate) fn run(args: &Args, input: impl BufRead, out: &mut dyn Write, notices: &mut dyn Write) -> u8 {
    let result = if args.list_adapters { cli::list_adapters(notices) } else { translate(args, input, notices) };
    cli::finish(result, out, notices)
}

/// All that is to be printed.
fn translate(args: &Args, input: impl BufRead, notices: &mut dyn Write) -> Result<String, Failure> {
    let texts = cli::texts(&args.texts, args.file.as_deref(), input)?;
    let start = Instant::now();
    if !args.model.is_dir() {
        return Err(Failure::Usage(format!("{}: no such folder; --model names one", args.model.display())));
    }
    let checkpoint = Checkpoint::open(&args.model)?;
    let model = Seq2Seq::new(&checkpoint)?;
    let pieces = Pieces::open(&args.model)?;
    let positions = model.source.positions.unwrap_or(512);
    let mut sources = Vec::with_capacity(texts.len());
    for text in &texts {
        let mut ids = pieces.encode(text)?;
        tileformer::spec::check_ids("vocab.json", &ids, model.source.vocabulary)?;
        if ids.len() > positions {
            writeln!(notices, "notice: only the first {positions} tokens are read of: {text}")?;
            ids.truncate(positions - 1);
            ids.push(pieces.end());
        }
        sources.push(ids);
    }
    let gpu = Gpu::open(&Setup { adapter: args.adapter.clone(), ..Setup::default() })?;
    let storage = if args.f16 { Element::F16 } else { Element::F32 };
    let longest = (args.longest as usize).min(model.target.positions.unwrap_or(512));
    let translator = Translator::new(&gpu, &checkpoint, &model, Size::of(&sources, BATCH, longest), storage)?;
    let (prepared, start) = (start.elapsed(), Instant::now());
    let (mut printed, mut tokens) = (String::new(), 0);
    for batch in sources.chunks(BATCH) {
        for target in translator.run(batch)? {
            tokens += target.len();
            // Writing to a String cannot fail.
            let _ = writeln!(printed, "{}", pieces.decode(&target));
        }
    }
    let (seconds, before) = (start.elapsed().as_secs_f64().max(1e-9), prepared.as_secs_f64() * 1e3);
    let (name, rate) = (&gpu.info.name, tokens as f64 / seconds);
    writeln!(
        notices,
        "{name}: {tokens} tokens in {:.1} ms, {rate:.0} per second (before that {before:.1} ms for tokens, device, weights, \
         pipelines and plans)",
        seconds * 1e3
    )?;
    Ok(printed)
}
