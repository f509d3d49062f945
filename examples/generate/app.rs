//! From arguments to text that appears as it is made.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use tileformer::convenience::{Gpu, Setup};
use tileformer::spec::sampling::Sampling;

use crate::cli::{self, Blocks, Failure};
use crate::model::{Folder, Text};
use crate::sheet;

/// Continues a text.
#[derive(Debug, Parser)]
#[command(name = "generate")]
pub(crate) struct Args {
    /// What to continue; without it, all of standard input
    prompt: Option<String>,
    /// The model's folder: config.json of a GPT-2, Llama, Mistral or Qwen2, safetensors, tokenizer.json
    #[arg(long, value_name = "DIR", required_unless_present = "list_adapters")]
    model: Option<PathBuf>,
    /// New tokens, at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    tokens: u32,
    /// Divides the logits before a token is drawn; 0 takes the most probable one
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the K most probable tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Draw from the fewest tokens that have the probability P together
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Makes tokens that the text has less probable, above 1
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// What draws depend on: the same seed draws the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Never end before --tokens: the end token is banned
    #[arg(long)]
    endless: bool,
    /// Tokens between two pieces of text
    #[arg(long, default_value_t = tileformer::convenience::CHUNK_STEPS as u32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    chunk: u32,
    /// Store weights, rows and caches in f16: half the memory
    #[arg(long)]
    f16: bool,
    /// Store the weights of projections in blocks of integers
    #[arg(long, value_name = "KIND")]
    weights: Option<Blocks>,
    /// Use the adapter with this in its name, in any case
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Draw the attention of every head of every layer over the whole text: an SVG file
    #[arg(long, value_name = "FILE.svg")]
    attention: Option<PathBuf>,
    /// List the adapters and end
    #[arg(long)]
    list_adapters: bool,
}

/// Runs the program and gives its exit code. Text is written to `out` as it is made, all else to `notices`.
pub(crate) fn run(args: &Args, input: impl BufRead, out: &mut dyn Write, notices: &mut dyn Write) -> u8 {
    let result = if args.list_adapters { cli::list_adapters(notices) } else { generate(args, input, out, notices) };
    cli::finish(result, out, notices)
}

/// Writes the text; what is left to be printed behind it is its last line's end.
fn generate(args: &Args, mut input: impl BufRead, out: &mut dyn Write, notices: &mut dyn Write) -> Result<String, Failure> {
    let sampling = sampling(args).map_err(|e| Failure::Usage(e.to_string()))?;
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None => {
            let mut text = String::new();
            input.read_to_string(&mut text).map_err(|e| Failure::Usage(format!("standard input: {e}")))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
    };
    if let Some(path) = &args.attention {
        cli::check_sheets(path, 1)?;
    }
    let start = Instant::now();
    let model = args.model.as_deref().ok_or_else(|| Failure::Usage("--model names a folder".into()))?;
    let folder = Folder::open(model)?;
    let ids = folder.encode(&prompt)?;
    let mut steps = args.tokens as usize;
    if let Some(positions) = folder.model.positions() {
        if ids.len() > positions {
            let found = ids.len();
            return Err(Failure::Usage(format!("the text has {found} tokens, and the model {positions} positions")));
        }
        // The last token is chosen, and needs no position.
        let room = positions - ids.len() + 1;
        if steps > room {
            writeln!(notices, "notice: at most {room} new tokens, as the model has {positions} positions")?;
            steps = room;
        }
    }
    let gpu = Gpu::open(&Setup { adapter: args.adapter.clone(), ..Setup::default() })?;
    let storing = cli::storing(args.f16, args.weights);
    let text = Text { ids: &ids, steps, sampling, endless: args.endless, storing };
    let ready = folder.prepare(&gpu, &text)?;
    let prepared = start.elapsed().as_secs_f64() * 1e3;

    let start = Instant::now();
    // A reader that has gone, as `| head` does, ends the text and is no failure.
    let mut gone = write!(out, "{prompt}").and_then(|()| out.flush()).is_err();
    let (mut stream, mut all) = (folder.stream(&ids)?, ids.clone());
    let mut chunks = ready.decode(&gpu, args.chunk as usize)?;
    while let Some(tokens) = if gone { None } else { chunks.next() } {
        let mut piece = String::new();
        for id in tokens? {
            all.push(id);
            piece += &stream.step(id).map_err(|e| e.to_string())?.unwrap_or_default();
        }
        gone = write!(out, "{piece}").and_then(|()| out.flush()).is_err();
    }
    let seconds = start.elapsed().as_secs_f64().max(1e-9);
    let made = all.len() - ids.len();
    let (name, rate, ms) = (&gpu.info.name, made as f64 / seconds, seconds * 1e3);
    writeln!(
        notices,
        "{name}: {made} tokens in {ms:.1} ms: {rate:.1} tokens per second\n\
         (before that {prepared:.1} ms for device, weights, pipelines and a prompt of {} tokens)",
        ids.len()
    )?;
    if let Some(path) = &args.attention {
        if all.len() > sheet::MOST_TOKENS {
            writeln!(notices, "notice: the sheet shows the first {} of {} tokens", sheet::MOST_TOKENS, all.len())?;
            all.truncate(sheet::MOST_TOKENS);
        }
        cli::write_sheet(path, 0, &folder.draw(&gpu, &ready, &all)?)?;
    }
    Ok("\n".into())
}

fn sampling(args: &Args) -> tileformer::Result<Sampling> {
    Sampling::sampled(args.seed)
        .with_temperature(args.temperature)?
        .with_top_k(args.top_k)
        .with_top_p(args.top_p)?
        .with_repetition_penalty(args.repetition_penalty)
}
